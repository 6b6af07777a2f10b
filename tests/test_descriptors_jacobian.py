"""dq/dr and dq/d(strain) against finite differences, and the reverse pass against the Jacobian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose
from systems import SYSTEMS, phosphate, rattled_silicon, sodium_chloride

from descriptors import SOAP, Jacobian, RadialScaling, SOAPConfig, fit_contraction, jacobian
from descriptors.soap import jacobian_bytes

STEP = 1e-5  # Å, or strain
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy
HARD = SOAPConfig(r_cut=4.0, n_max=3, l_max=3, cutoff_width=0.0)
SMOOTH = SOAPConfig(r_cut=4.0, n_max=3, l_max=3, cutoff_width=1.5, radial_scaling=RadialScaling(r0=1.5, m=3))


def _soap(atoms: Atoms, config: SOAPConfig, retained: float | None = None) -> SOAP:
    soap = SOAP(config, sorted({int(z) for z in atoms.numbers}))
    if retained is None:
        return soap
    return SOAP(config, soap.species, fit_contraction(soap, [soap.neighborhoods([atoms])], retained))


def _dense(jac: Jacobian, n_atoms: int) -> torch.Tensor:
    """[centre, atom, 3, D]."""
    out = jac.d_positions.new_zeros(n_atoms, n_atoms, *jac.d_positions.shape[1:])
    out[jac.centre, jac.atom] = jac.d_positions
    return out


def _displaced(soap: SOAP, atoms: Atoms, atom: int, axis: int) -> torch.Tensor:
    """dq/dr by central differences, [centre, D] 1/Å."""
    plus, minus = atoms.copy(), atoms.copy()
    plus.positions[atom, axis] += STEP
    minus.positions[atom, axis] -= STEP
    return (soap.features([plus]) - soap.features([minus])) / (2 * STEP)


def _strained(soap: SOAP, atoms: Atoms, x: int, y: int) -> torch.Tensor:
    """dq/d(strain) by central differences of a symmetric strain, [centre, D]."""
    q = []
    for step in (STEP, -STEP):
        strain = np.zeros((3, 3))
        strain[x, y] += 0.5 * step
        strain[y, x] += 0.5 * step
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array @ (np.eye(3) + strain))
        moved.positions = atoms.positions @ (np.eye(3) + strain)
        q.append(soap.features([moved]))
    return (q[0] - q[1]) / (2 * STEP)


@pytest.mark.parametrize("retained", [None, 0.99])
@pytest.mark.parametrize("config", [HARD, SMOOTH], ids=["hard", "smooth"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_derivatives_are_finite_differences(name: str, config: SOAPConfig, retained: float | None) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms, config, retained)
    jac = jacobian(soap, soap.neighborhoods([atoms]))
    dense = _dense(jac, len(atoms))
    if len(atoms) > 1:
        assert float(dense.abs().max()) > 1e-3  # 1/Å: something to get wrong
        assert float(jac.d_strain.abs().max()) > 1e-3
    for atom in range(min(len(atoms), 5)):
        for axis in range(3):
            assert_allclose(dense[:, atom, axis], _displaced(soap, atoms, atom, axis), rtol=0, atol=1e-8)  # 1/Å
    for v, (x, y) in enumerate(VOIGT):
        assert_allclose(jac.d_strain[:, v], _strained(soap, atoms, x, y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("retained", [None, 0.99])
@pytest.mark.parametrize("config", [HARD, SMOOTH], ids=["hard", "smooth"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_reverse_pass_contracts_the_jacobian(name: str, config: SOAPConfig, retained: float | None) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms, config, retained)
    nb = soap.neighborhoods([atoms])
    expansion, jac = soap.expand(nb), jacobian(soap, nb)
    gradient = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(expansion.features.shape)))  # dE/dq
    pairs = soap.pullback(expansion, gradient)  # [pair, 3]
    by_atom = gradient.new_zeros(len(atoms), 3).index_add_(0, nb.neighbor, pairs).index_add_(0, nb.centre, -pairs)
    assert_allclose(by_atom, torch.einsum("caxd,cd->ax", _dense(jac, len(atoms)), gradient), rtol=0, atol=1e-10)
    tensor = pairs.T @ nb.vectors  # [3, 3]
    tensor = 0.5 * (tensor + tensor.T)
    by_strain = torch.stack([tensor[x, y] for x, y in VOIGT])
    assert_allclose(by_strain, torch.einsum("cvd,cd->v", jac.d_strain, gradient), rtol=0, atol=1e-10)
    if len(atoms) > 1:
        assert float(by_atom.abs().max()) > 1e-3
    assert_allclose(jac.features, expansion.features, rtol=0, atol=1e-14)


def test_rows_are_unique_sorted_pairs_with_the_centre_itself() -> None:
    atoms = sodium_chloride()
    soap = _soap(atoms, SMOOTH)
    jac = jacobian(soap, soap.neighborhoods([atoms, atoms]))
    assert jac.centre.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert jac.atom.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert jac.centres.tolist() == [0, 1, 2, 3]
    assert_allclose(jac.d_positions[4:], jac.d_positions[:4], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["water", "rattled_silicon", "phosphate"])
def test_nothing_changes_when_all_atoms_move_together(name: str) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms, SMOOTH)
    dense = _dense(jacobian(soap, soap.neighborhoods([atoms])), len(atoms))
    assert_allclose(dense.sum(dim=1), 0, rtol=0, atol=1e-13)
    assert float(dense.abs().max()) > 1e-2  # 1/Å


def test_blocks_of_centres_give_the_whole() -> None:
    structures = [phosphate(), phosphate()]
    soap = _soap(structures[0], SMOOTH)
    nb = soap.neighborhoods(structures)
    whole = jacobian(soap, nb)
    blocks = soap.centre_blocks(nb, 2e6)
    assert 2 < len(blocks) < 28
    parts = [jacobian(soap, nb, block) for block in blocks]
    assert torch.equal(torch.cat([p.centres for p in parts]), torch.arange(28))
    assert torch.equal(torch.cat([p.centre for p in parts]), whole.centre)
    assert torch.equal(torch.cat([p.atom for p in parts]), whole.atom)
    assert_allclose(torch.cat([p.features for p in parts]), whole.features, rtol=0, atol=1e-14)
    assert_allclose(torch.cat([p.d_positions for p in parts]), whole.d_positions, rtol=0, atol=1e-13)
    assert_allclose(torch.cat([p.d_strain for p in parts]), whole.d_strain, rtol=0, atol=1e-13)


def test_any_ascending_choice_of_centres() -> None:
    atoms = rattled_silicon()
    soap = _soap(atoms, HARD)
    nb = soap.neighborhoods([atoms])
    whole, part = jacobian(soap, nb), jacobian(soap, nb, torch.tensor([1, 6]))
    chosen = (whole.centre == 1) | (whole.centre == 6)
    assert torch.equal(part.centre, whole.centre[chosen])
    assert torch.equal(part.atom, whole.atom[chosen])
    assert_allclose(part.d_positions, whole.d_positions[chosen], rtol=0, atol=1e-13)
    assert_allclose(part.d_strain, whole.d_strain[[1, 6]], rtol=0, atol=1e-13)


def test_blocks_respect_their_memory() -> None:
    soap = _soap(rattled_silicon(), HARD)
    nb = soap.neighborhoods([rattled_silicon()])
    needed = jacobian_bytes(soap, nb)  # [centre]
    jac = jacobian(soap, nb)
    assert float(needed.sum()) > (jac.d_positions.numel() + jac.d_strain.numel()) * 8
    for limit in (1.0, float(needed[:3].sum()), 1e12):
        blocks = soap.centre_blocks(nb, limit)
        assert torch.equal(torch.cat(blocks), torch.arange(8))
        assert (len(blocks) == 8) == (limit == 1.0)
        for block in blocks:
            assert len(block) == 1 or float(needed[block].sum()) <= limit
    assert len(soap.centre_blocks(nb, 1e12)) == 1
    assert soap.centre_blocks(soap.neighborhoods([]), 1e6) == []
