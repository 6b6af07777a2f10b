"""Feature values: against DScribe, invariances, batches, dtypes, errors, smoothness at the cutoff."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation
from systems import SYSTEMS, ethanol, isolated_atom, phosphate, rattled_silicon, sodium_chloride, triclinic, water

from descriptors import SOAP, RadialScaling, SOAPConfig, jacobian

SMALL = SOAPConfig(r_cut=4.0, n_max=3, l_max=3)
PERIODIC = ["rattled_silicon", "sodium_chloride", "triclinic", "left_handed", "slab", "phosphate"]
ALL_SPECIES = (1, 3, 6, 7, 8, 11, 13, 14, 15, 17, 25, 26, 29, 79)


def _soap(atoms: Atoms, config: SOAPConfig = SMALL) -> SOAP:
    return SOAP(config, sorted({int(z) for z in atoms.numbers}))


@pytest.mark.reference
@pytest.mark.parametrize("scaling", [None, RadialScaling(r0=2.0, m=4), RadialScaling(r0=1.4, m=2.5)])
@pytest.mark.parametrize("name", SYSTEMS)
def test_features_are_those_of_dscribe(name: str, scaling: RadialScaling | None) -> None:
    reference = pytest.importorskip("descriptors.dscribe_soap")
    atoms = SYSTEMS[name]()
    species = sorted({int(z) for z in atoms.numbers} | {8})
    for r_cut, n_max, l_max, sigma in ((4.0, 3, 4, 0.5), (5.0, 8, 6, 0.4)):
        config = SOAPConfig(r_cut=r_cut, n_max=n_max, l_max=l_max, sigma=sigma, cutoff_width=0, radial_scaling=scaling)
        expected = reference.DScribeSOAP(config, species)
        found = SOAP(config, species)
        assert found.n_features == expected.n_features
        q = expected.features([atoms])
        assert float(q.std(dim=1).min()) > 1e-4
        assert_allclose(found.features([atoms]), q, rtol=0, atol=1e-8)


@pytest.mark.reference
def test_dscribe_has_no_smooth_cutoff_and_no_contraction() -> None:
    reference = pytest.importorskip("descriptors.dscribe_soap")
    with pytest.raises(ValueError, match="smooth cutoff"):
        reference.DScribeSOAP(SOAPConfig(), [14])
    with pytest.raises(ValueError, match="contraction"):
        reference.DScribeSOAP(SOAPConfig(cutoff_width=0, contraction=0.99), [14])


def test_dot_products_are_the_soap_kernel() -> None:
    """sum_l 8 pi^2/(2l+1) sum over all channel pairs of (sum_m c_a c_b) (sum_m c'_a c'_b), normalised."""
    atoms = ethanol()
    soap = _soap(atoms)
    coefficients = soap.coefficients(soap.neighborhoods([atoms]))
    products = [c @ c.transpose(1, 2) * np.pi * np.sqrt(8 / c.shape[2]) for c in coefficients]  # 2l+1 = c.shape[2]
    full = torch.cat([p.flatten(1) for p in products], dim=1)  # [centre, all (l, a, b)]
    kernel = full @ full.T
    norms = kernel.diagonal().sqrt()
    q = soap.features([atoms])
    assert_allclose(q @ q.T, kernel / norms[:, None] / norms, rtol=0, atol=1e-13)
    assert float((kernel / norms[:, None] / norms).min()) < 0.9


@pytest.mark.parametrize("name", SYSTEMS)
def test_features_are_unit_vectors(name: str) -> None:
    q = _soap(SYSTEMS[name]()).features([SYSTEMS[name]()])
    assert_allclose(torch.linalg.vector_norm(q, dim=1), 1, rtol=0, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), mirrored=st.booleans(), name=st.sampled_from(sorted(SYSTEMS)))
def test_rotation_reflection_translation_and_order(seed: int, mirrored: bool, name: str) -> None:
    atoms, rng = SYSTEMS[name](), np.random.default_rng(seed)
    turn = Rotation.random(rng=rng).as_matrix() * (-1 if mirrored else 1)
    order = rng.permutation(len(atoms))
    moved = atoms[order]
    moved.set_cell(moved.cell.array @ turn.T)
    moved.positions = moved.positions @ turn.T + rng.normal(0, 20, 3)  # Å
    soap = _soap(atoms)
    assert_allclose(soap.features([moved]), soap.features([atoms])[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PERIODIC)
def test_periodic_images_are_the_same_atom(name: str) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms)
    q = soap.features([atoms])
    rng = np.random.default_rng(0)
    moved = atoms.copy()
    moved.positions += (rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
    wrapped = atoms.copy()
    wrapped.wrap()
    repeats = [2 if p else 1 for p in atoms.pbc]
    assert_allclose(soap.features([moved]), q, rtol=0, atol=1e-12)
    assert_allclose(soap.features([wrapped]), q, rtol=0, atol=1e-12)
    assert_allclose(soap.features([atoms * repeats]), q.repeat(int(np.prod(repeats)), 1), rtol=0, atol=1e-12)


def test_another_cell_of_the_same_lattice() -> None:
    atoms = triclinic()
    sheared = atoms.copy()
    sheared.set_cell(np.array([[1, 1, 0], [0, 1, 2], [0, 0, 1]]) @ atoms.cell.array)
    soap = _soap(atoms)
    assert_allclose(soap.features([sheared]), soap.features([atoms]), rtol=0, atol=1e-12)


def test_a_batch_gives_what_its_structures_give_alone() -> None:
    structures = [f() for f in SYSTEMS.values()]
    soap = SOAP(SOAPConfig(r_cut=4.0, n_max=2, l_max=2), ALL_SPECIES)
    batch = soap.features(structures)
    assert_allclose(batch, torch.cat([soap.features([a]) for a in structures]), rtol=0, atol=1e-13)
    nb = soap.neighborhoods(structures)
    assert_allclose(soap.expand(nb).features, batch, rtol=0, atol=1e-13)


def test_features_distinguish_species_and_geometry() -> None:
    atoms = phosphate()
    q = _soap(atoms).features([atoms])
    kernel = (q @ q.T).fill_diagonal_(0)
    assert float(kernel.max()) < 1 - 1e-4


def test_an_isolated_atom_has_finite_features_and_no_derivatives() -> None:
    soap = SOAP(SMALL, [8])
    nb = soap.neighborhoods([isolated_atom()])
    expansion = soap.expand(nb)
    jac = jacobian(soap, nb)
    assert bool(torch.isfinite(expansion.features).all())
    assert soap.pullback(expansion, torch.ones_like(expansion.features)).shape == (0, 3)
    assert (jac.centre.tolist(), jac.atom.tolist()) == ([0], [0])
    assert float(jac.d_positions.abs().max()) == 0
    assert float(jac.d_strain.abs().max()) == 0


def test_atoms_on_top_of_each_other_are_finite() -> None:
    soap = SOAP(SMALL, [1])
    nb = soap.neighborhoods([Atoms("H3", [[0, 0, 0], [0, 0, 0], [1, 0, 0]])])
    assert len(nb.centre) == 6
    jac = jacobian(soap, nb)
    assert bool(torch.isfinite(jac.d_positions).all())
    assert float(jac.d_positions.abs().max()) > 0.1  # 1/Å


@pytest.mark.parametrize("width", [0.0, 1.0])
def test_derivatives_are_continuous_where_a_neighbor_leaves(width: float) -> None:
    """dq/dr of the leaving atom falls as h^2 at r_cut - h with the smooth cutoff; it jumps with the hard one."""
    soap = SOAP(SOAPConfig(r_cut=4.0, n_max=4, l_max=3, cutoff_width=width), [1, 8])

    def slope(h: float) -> float:
        distance = soap.neighbor_cutoff - h  # Å
        positions = [[0, 0, 0], [0.9, 0.1, 0], [0.3, np.sqrt(distance**2 - 0.09), 0]]
        nb = soap.neighborhoods([Atoms("OHH", positions)])
        expansion = soap.expand(nb)
        leaving = (nb.centre == 0) & (nb.neighbor == 2)
        rows = [soap.pullback(expansion, _unit(expansion.features, k))[leaving] for k in range(soap.n_features)]
        return float(torch.cat(rows).abs().max())

    ratio = slope(2e-3) / slope(1e-3)
    assert ratio == pytest.approx(4 if width > 0 else 1, abs=0.1)


def _unit(features: torch.Tensor, column: int) -> torch.Tensor:
    out = torch.zeros_like(features)
    out[0, column] = 1
    return out


@pytest.mark.parametrize("name", ["ethanol", "rattled_silicon", "phosphate"])
def test_float32_is_close_to_float64(name: str) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms, SOAPConfig(n_max=8, l_max=6))
    double, single = soap.neighborhoods([atoms]), soap.neighborhoods([atoms], dtype=torch.float32)
    e64, e32 = soap.expand(double), soap.expand(single)
    gradient = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(e64.features.shape)))
    f64, f32 = soap.pullback(e64, gradient), soap.pullback(e32, gradient.float())
    j64, j32 = jacobian(soap, double), jacobian(soap, single)
    for tensor in (e32.features, f32, j32.features, j32.d_positions, j32.d_strain, soap.values(single)):
        assert tensor.dtype == torch.float32
    assert_allclose(e32.features, e64.features, rtol=0, atol=1e-6)
    assert_allclose(f32, f64, rtol=0, atol=2e-5 * float(f64.abs().max()))  # 1/Å
    assert_allclose(j32.d_positions, j64.d_positions, rtol=0, atol=1e-5)  # 1/Å
    assert_allclose(j32.d_strain, j64.d_strain, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_gpu_gives_what_the_cpu_gives(name: str, cuda: torch.device) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms)
    host, device = soap.neighborhoods([atoms]), soap.neighborhoods([atoms], device=cuda)
    e_host, e_device = soap.expand(host), soap.expand(device)
    j_host, j_device = jacobian(soap, host), jacobian(soap, device)
    assert e_device.features.device.type == "cuda"
    assert_allclose(e_device.features.cpu(), e_host.features, rtol=0, atol=1e-12)
    gradient = torch.ones_like(e_host.features)
    forces = soap.pullback(e_device, gradient.to(cuda))
    assert_allclose(forces.cpu(), soap.pullback(e_host, gradient), rtol=0, atol=1e-11)
    assert_allclose(j_device.d_positions.cpu(), j_host.d_positions, rtol=0, atol=1e-11)
    assert_allclose(j_device.d_strain.cpu(), j_host.d_strain, rtol=0, atol=1e-11)


def test_unknown_elements_are_named() -> None:
    soap = SOAP(SMALL, [14, 8])
    assert soap.species == (8, 14)
    with pytest.raises(ValueError, match="not been set up for Na, Cl; it knows O, Si"):
        soap.features([rattled_silicon(), sodium_chloride()])
    with pytest.raises(ValueError, match="not been set up for H; it knows O, Si"):
        soap.expand(soap.neighborhoods([water()]))


@pytest.mark.parametrize("species", [[], [8, 8], [0, 8]])
def test_a_wrong_set_of_species_is_an_error(species: list[int]) -> None:
    with pytest.raises(ValueError, match="each atomic number once"):
        SOAP(SMALL, species)
