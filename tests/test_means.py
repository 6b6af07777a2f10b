"""Means step by step: the list of pairs with a skin, float32, the products behind them, standard deviations of energies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from conftest import alloy
from numpy.testing import assert_allclose
from systems import SYSTEMS

from descriptors import SOAP, RadialTable, SkinPairs, SOAPConfig
from descriptors.density import density_coefficients, density_pullback, lay_out, pair_terms_with_slopes
from descriptors.soap import environments
from descriptors.streamed import streamed_coefficients, streamed_pullback
from mfgp import DataError, MultiFidelityGP
from mfgp.gp.centring import mean_features
from mfgp.gp.inducing import build_basis
from mfgp.gp.kernels import power
from mfgp.gp.observations import local_features
from mfgp.predict import energy_variances as energy_variances_module
from mfgp.predict import local_variances
from mfgp.predict.energy_variances import EnergyForms, energy_variances
from mfgp.predict.energy_variances import local_variances as local_energy_variances
from mfgp.predict.means import inner_products

ALL_SPECIES = (1, 3, 6, 7, 8, 11, 13, 14, 15, 17, 25, 26, 29, 79)


def test_forces_along_dynamics_do_not_depend_on_the_skin(model: MultiFidelityGP) -> None:
    atoms = alloy(95, repeat=2, rattle=0.05)
    atoms.calc = model.calculator(uncertainty="none", skin=0.3)
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(3))
    dynamics, fresh, compared = VelocityVerlet(atoms, timestep=2 * units.fs), model.predictor(), []

    def compare() -> None:
        p = fresh(atoms, "none")
        assert_allclose(atoms.get_forces(), p.forces, rtol=0, atol=1e-10)  # eV/Å
        assert_allclose(atoms.get_stress(), p.stress, rtol=0, atol=1e-12)  # eV/Å^3
        assert atoms.get_potential_energy() == pytest.approx(p.energy, abs=1e-9)  # eV
        compared.append(np.abs(p.forces).max())

    dynamics.attach(compare)
    dynamics.run(60)
    assert min(compared) > 0.1  # eV/Å: something to get wrong
    assert 1 < atoms.calc.predictor.pairs.searches < 30  # of 61 steps


def test_pairs_are_searched_when_the_structure_changes(model: MultiFidelityGP) -> None:
    predictor, fresh = model.predictor(skin=0.5), model.predictor()
    atoms = alloy(96)
    for step, change in enumerate(
        (
            lambda a: None,
            lambda a: a.set_cell(a.cell.array * 1.02, scale_atoms=True),
            lambda a: a.set_cell(a.cell.array + 0.01),  # atoms stay
            lambda a: a.set_pbc((True, True, False)),
            lambda a: a.numbers.__setitem__(slice(None), np.where(a.numbers == 29, 79, 29)),
            lambda a: a.positions.__setitem__(1, a.positions[1] + [0.26, 0.0, 0.0]),  # more than half of the skin
            lambda a: a.append("Cu"),
        )
    ):
        change(atoms)
        if len(atoms) == 5:
            atoms.positions[-1] = [0.3, 0.2, -2.2]
        found, expected = predictor(atoms, "none"), fresh(atoms, "none")
        assert predictor.pairs.searches == step + 1
        assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-10)  # eV/Å
        assert found.energy == pytest.approx(expected.energy, abs=1e-9)  # eV
    atoms.positions += 0.05  # less than half of the skin
    predictor(atoms, "none")
    assert predictor.pairs.searches == step + 1


@pytest.mark.parametrize("uncertainty", ["full", "energies", "none"])
def test_positions_of_another_type_are_those_in_float64(model: MultiFidelityGP, uncertainty: str) -> None:
    """ASE lets another array take the place of the positions; what it holds counts, in float64."""
    single, double, predictor = alloy(96), alloy(96), model.predictor(skin=0.3)
    single.arrays["positions"] = single.positions.astype(np.float32)
    double.positions = single.positions
    assert np.abs(double.positions - alloy(96).positions).max() > 0  # Å
    for _ in range(2):  # after a search, and with the pairs of the last one
        found, expected = predictor(single, uncertainty), model.predict(double, uncertainty=uncertainty)
        assert found.forces.dtype == np.float64
        assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-10)  # eV/Å


def test_steps_into_nonsense_are_errors(model: MultiFidelityGP) -> None:
    predictor, atoms = model.predictor(skin=3.0), alloy(97)
    predictor(atoms, "none")
    close = atoms.copy()
    close.positions[1] = close.positions[0] + [0.1, 0.0, 0.0]
    with pytest.raises(DataError, match="apart"):
        model.predictor(skin=9.0)(close, "none")
    near = predictor.pairs._last.atoms  # the last search serves both
    near.positions[:] = close.positions
    with pytest.raises(DataError, match="apart"):
        predictor(close, "none")
    atoms.positions[0, 0] = np.nan
    with pytest.raises(DataError, match="non-finite"):
        predictor(atoms, "none")
    with pytest.raises(ValueError, match="skin"):
        model.predictor(skin=-0.1)


@pytest.mark.parametrize("width", [0.0, 0.8])
@pytest.mark.parametrize("name", SYSTEMS)
def test_streamed_passes_are_those_over_all_pairs(name: str, width: float) -> None:
    atoms = SYSTEMS[name]()
    soap = SOAP(SOAPConfig(r_cut=4.0, n_max=3, l_max=4, cutoff_width=width), ALL_SPECIES)
    nb = soap.neighborhoods([atoms])
    env = environments(soap, nb)
    slots = lay_out(env, len(soap.species))
    terms, slopes = pair_terms_with_slopes(slots, soap.basis, soap.config)
    expected = density_coefficients(env, slots, terms, soap.basis, len(soap.species))
    pairs = soap.radial_slots(slots)
    for ours, theirs in zip(streamed_coefficients(pairs, env.species, len(soap.species)), expected, strict=True):
        assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    rng = np.random.default_rng(1)
    gradient = [torch.from_numpy(rng.normal(size=tuple(c.shape))) for c in expected]
    found = streamed_pullback(pairs, gradient).index_select(0, slots.of_pair)
    assert_allclose(found, density_pullback(slots, terms, slopes, gradient), rtol=0, atol=1e-11)  # 1/Å


@pytest.mark.parametrize("width", [0.0, 0.8])
@pytest.mark.parametrize("name", SYSTEMS)
def test_slots_beyond_the_cutoff_count_nothing(name: str, width: float) -> None:
    atoms = SYSTEMS[name]()
    soap = SOAP(SOAPConfig(r_cut=4.0, n_max=3, l_max=2, cutoff_width=width), ALL_SPECIES)
    pairs = SkinPairs(soap, skin=1.5)(atoms)
    q = soap.expand_slots(pairs.slots, pairs.species).features
    assert_allclose(q, soap.features([atoms]), rtol=0, atol=1e-13)
    table = RadialTable.of(soap.basis, soap.config, torch.float32)
    q32 = soap.expand_slots(pairs.slots, pairs.species, table).features
    assert q32.dtype == torch.float64
    assert_allclose(q32, q, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [90, 98])
def test_float32_forces_are_close_and_the_gradient_of_its_energy(model: MultiFidelityGP, seed: int) -> None:
    double, single = model.predictor(), model.predictor(dtype="float32")
    atoms = alloy(seed)
    p, s = double(atoms, "energies"), single(atoms, "energies")
    assert np.abs(p.forces).max() > 0.1
    assert_allclose(s.forces, p.forces, rtol=0, atol=1e-4)  # eV/Å
    assert_allclose(s.energies, p.energies, rtol=0, atol=1e-4)  # eV
    assert_allclose(s.energies_std, p.energies_std, rtol=0, atol=1e-4)  # eV
    assert_allclose(s.stress, p.stress, rtol=0, atol=1e-5)  # eV/Å^3
    assert np.abs(s.forces - p.forces).max() > 0
    h, numerical = 0.01, []  # Å
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * h
        numerical.append(single(moved, "none").energy)
    exact = [double(a, "none").energy for a in (_moved(atoms, h), _moved(atoms, -h))]
    difference = (numerical[0] - numerical[1]) - (exact[0] - exact[1])
    assert abs(difference) < 1e-5  # eV
    with pytest.raises(ValueError, match="float64 or float32"):
        model.predictor(dtype="float16")


def _moved(atoms: Atoms, step: float) -> Atoms:
    out = atoms.copy()
    out.positions[1, 2] += step
    return out


def test_float32_conserves_energy_as_float64_does(model: MultiFidelityGP) -> None:
    """NVE at 300 K over 0.4 ps: the total energy strays as far as the time step makes it, and drifts no more."""

    def strays(dtype: str) -> tuple[float, float]:
        atoms = alloy(93, rattle=0.03)
        atoms.calc = model.calculator(uncertainty="none", dtype=dtype)
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(1))
        energies: list[float] = []
        dynamics = VelocityVerlet(atoms, timestep=4 * units.fs)
        dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
        dynamics.run(100)
        return float(np.std(energies)), float(np.polyfit(np.arange(len(energies)), energies, 1)[0])

    (spread64, drift64), (spread32, drift32) = strays("float64"), strays("float32")
    assert spread64 > 1e-5  # eV: something to lose
    assert abs(spread32 - spread64) < 0.2 * spread64
    assert abs(drift32 - drift64) < 1e-7  # eV per step


def test_deviations_of_energies_are_those_with_all_rows(model: MultiFidelityGP) -> None:
    atoms = alloy(99)
    full, energies, local = (model.predict(atoms, uncertainty=u) for u in ("full", "energies", "local"))
    assert energies.energy_std == pytest.approx(full.energy_std, abs=1e-8)  # eV
    assert_allclose(energies.energies_std, full.energies_std, rtol=0, atol=1e-8)  # eV
    assert full.energies_std.min() > 1e-4
    assert_allclose(local.energies_std, energies.energies_std, rtol=1e-13)
    assert_allclose(local.forces, energies.forces, rtol=0, atol=1e-13)
    assert local.energy_std is None


@pytest.mark.parametrize("smallest_pivot", [0.0, 2.0])  # with the inverse of L, and without
@pytest.mark.parametrize("sizes", [(200,), (4, 5, 6)])  # one block, and several, which end inside a species
@pytest.mark.parametrize("counts", [(12,), (9, 5), (9, 1), (11, 7, 6)])
def test_forms_of_energies_are_the_sums_that_they_stand_for(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], sizes: tuple[int, ...], smallest_pivot: float
) -> None:
    monkeypatch.setattr(energy_variances_module, "SMALL_PIVOT", smallest_pivot)
    monkeypatch.setattr(local_variances, "SIZES", sizes)
    rng, m, species = np.random.default_rng(4), sum(counts), (13, 28, 79)[: len(counts)]

    def directions(n: int) -> torch.Tensor:
        q = torch.from_numpy(rng.normal(size=(n, 30)))
        return q / torch.linalg.vector_norm(q, dim=1, keepdim=True)

    basis = build_basis(species, tuple(directions(n) for n in counts), torch.arange(m), zeta=2)
    root = torch.from_numpy(rng.normal(size=(m + 3, m + 3)))
    root[2] = 0.0  # a direction that is known
    root[m] *= 1e3  # columns of other units
    c, q, extra = root @ root.T, directions(6), torch.from_numpy(rng.normal(size=(1, 3)))
    members = ((torch.arange(6),), (torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])))[len(counts) > 1]
    members = (*members, *(torch.arange(0) for _ in counts[2:]))  # a species without atoms
    numbers = torch.empty(6, dtype=torch.long)
    for z, own in zip(species, members, strict=True):
        numbers[own] = z
    forms = EnergyForms.of(basis, c, 0.7, [300.0, 200.0, 100.0][: len(counts)])
    found = energy_variances(basis, forms, q, members, inner_products(basis, q, members), extra)
    phi = local_features(basis, q, numbers)  # [atom, M]
    rows, residual = phi.clone(), phi.new_empty(6)
    parts = zip(basis.blocks(), members, mean_features(basis), (300.0, 200.0, 100.0), strict=False)
    for (index, columns), own, row, amplitude in parts:
        rows[own] -= row
        residual[own] = amplitude * (1.0 - phi[own].square().sum(1))
        explained = phi[:, columns].sum(0).square().sum()
        assert float(found.explained[0, index]) == pytest.approx(float(explained), rel=1e-10)
    total = torch.cat([phi.sum(0), extra[0]])
    assert float(found.weights) == pytest.approx(float(total @ c @ total), rel=1e-10)
    assert_allclose(found.local, 0.7 * ((rows @ c[:m, :m]) * rows).sum(1) + residual, rtol=1e-9, atol=0)
    alone = local_energy_variances(basis, forms, members, inner_products(basis, q, members), len(q))
    assert_allclose(alone, found.local, rtol=1e-13)


@pytest.mark.parametrize("n", range(7))
def test_integer_powers(n: int) -> None:
    x = torch.linspace(-1.2, 1.2, 11, dtype=torch.float64)
    before = x.clone()
    assert_allclose(power(x, n), x**n, rtol=0, atol=1e-14)
    assert torch.equal(x, before)
