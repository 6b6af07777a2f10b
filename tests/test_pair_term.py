"""The pair term: its derivatives, its place in a model, and what it is worth where energies are pair energies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose
from systems import SYSTEMS

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.config import PairConfig
from mfgp.errors import ConfigError
from mfgp.gp.pair_term import PairTerm

STEP = 1e-5  # Å, and dimensionless strain
PAIR = {"r_cut": 5.0, "n": 8, "std": 1.0}


def _term(atoms: Atoms) -> PairTerm:
    return PairTerm(PairConfig(r_cut=4.0, n=7), tuple(sorted({int(z) for z in atoms.numbers})))


def _coefficients(term: PairTerm) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=term.size))


@pytest.mark.parametrize("name", ["ethanol", "sodium_chloride", "triclinic", "slab"])
def test_forces_and_virials_are_derivatives(name: str) -> None:
    atoms = SYSTEMS[name]()
    term = _term(atoms)
    c = _coefficients(term)
    values = (term.rows(atoms) @ c).numpy()

    def energy(moved: Atoms) -> float:
        return float((term.rows(moved) @ c)[0])

    expected = np.zeros_like(values[1:-6])
    for k in range(len(expected)):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions.reshape(-1)[k] += sign * STEP
            expected[k] -= sign * energy(moved) / (2 * STEP)
    assert np.abs(expected).max() > 0.1  # eV/Å
    assert_allclose(values[1:-6], expected, rtol=0, atol=1e-6)
    for v, (x, y) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        found = 0.0
        for sign in (1, -1):
            strain = np.eye(3)
            strain[x, y] += 0.5 * sign * STEP
            strain[y, x] += 0.5 * sign * STEP
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain)
            moved.positions = atoms.positions @ strain
            found -= sign * energy(moved) / (2 * STEP)
        assert found == pytest.approx(values[-6 + v], abs=1e-6)


def test_columns_belong_to_pairs_of_elements_in_either_order() -> None:
    term = PairTerm(PairConfig(r_cut=4.0, n=5), (1, 6, 8))
    assert term.size == 30
    first, second = (term.rows(Atoms(s, [[0, 0, 0], [0, 0, 1.4]])) for s in ("CO", "OC"))
    assert torch.equal(first[0], second[0])
    assert set(torch.nonzero(first[0]).flatten().tolist()) == set(range(20, 25))  # HH HC HO CC CO OO
    r = 1.4
    expected = np.exp(-0.5 * (r / 0.8 - np.arange(5)) ** 2)
    assert_allclose(first[0, 20:25], expected, rtol=0, atol=1e-12)


def test_nothing_is_left_at_the_cutoff() -> None:
    term = PairTerm(PairConfig(r_cut=3.0, n=6), (1,))
    value, slope = term.functions(torch.tensor([3.0 - 1e-7, 2.9], dtype=torch.float64))
    assert float(value[0].abs().max()) < 1e-12
    assert float(slope[0].abs().max()) < 1e-9  # 1/Å
    assert float(value[1].abs().max()) > 1e-4


def test_energies_of_atoms_add_up() -> None:
    atoms = SYSTEMS["triclinic"]()
    term = _term(atoms)
    c = _coefficients(term)
    local = term.energies(atoms, c)
    assert float(local.abs().max()) > 0.1  # eV
    assert float(local.sum()) == pytest.approx(float((term.rows(atoms) @ c)[0]), abs=1e-10)


@pytest.fixture(scope="module")
def paired(two_levels: FrameSet) -> MultiFidelityGP:
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 12},
        pair=PAIR,
        training={"max_iterations": 30, "calibrate": False},
    )
    return MultiFidelityGP.fit(two_levels, config, progress=False)


def test_a_model_with_it_has_forces_stress_and_local_energies_of_its_energy(paired: MultiFidelityGP) -> None:
    atoms = alloy(50)
    p = paired.predict(atoms, uncertainty="none")
    numeric = np.zeros(3)
    for k in range(3):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[1, k] += sign * STEP
            numeric[k] -= sign * paired.predict(moved, uncertainty="none").energy / (2 * STEP)
    assert np.abs(numeric).max() > 0.1  # eV/Å
    assert_allclose(p.forces[1], numeric, rtol=0, atol=1e-5)
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array * (1 + sign * STEP), scale_atoms=True)
        energies.append(paired.predict(moved, uncertainty="none").energy)
    assert p.stress is not None
    assert p.stress[:3].sum() == pytest.approx((energies[0] - energies[1]) / (2 * STEP) / atoms.get_volume(), abs=1e-6)
    assert p.energies.sum() == pytest.approx(p.energy, abs=1e-8)
    full = paired.predict(atoms)
    assert_allclose(full.forces, p.forces, rtol=0, atol=1e-8)
    assert float(paired.weights[:, -paired.columns.pair.size :].abs().max()) > 1e-3  # type: ignore[union-attr]


def test_model_file_and_update_keep_it(paired: MultiFidelityGP, tmp_path: Path) -> None:
    paired.save(tmp_path / "pair.mfgp")
    loaded = MultiFidelityGP.load(tmp_path / "pair.mfgp")
    atoms = alloy(51)
    a, b = paired.predict(atoms), loaded.predict(atoms)
    assert a.energy == pytest.approx(b.energy, abs=1e-9)
    assert_allclose(a.forces_std, b.forces_std, rtol=0, atol=1e-9)
    before = loaded.predict(atoms).energy_std
    loaded.update([label(alloy(51), "high")])
    after = loaded.predict(atoms).energy_std
    assert before is not None
    assert after is not None
    assert after < before


def test_it_carries_pair_energies_that_few_inducing_points_cannot(two_levels: FrameSet) -> None:
    low = FrameSet(("low",), tuple(two_levels.of("low")))

    def residual(pair: dict[str, float] | None) -> float:
        config = FitConfig(
            descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 4}, pair=pair, training={"calibrate": False}
        )
        model = MultiFidelityGP.fit(low, config, progress=False)
        held_out = [label(alloy(100 + i), "low") for i in range(3)]
        errors = [model.predict(a, uncertainty="none").forces - a.arrays["REF_forces"] for a in held_out]
        return float(np.sqrt(np.mean(np.square(errors))))

    assert residual(PAIR) < 0.7 * residual(None)  # type: ignore[arg-type]


def test_off_by_default_and_checked(model: MultiFidelityGP) -> None:
    assert FitConfig().pair is None
    assert model.columns.pair is None
    assert model.columns.size == 2
    with pytest.raises(ConfigError, match=r"pair\.r_cut"):
        FitConfig(pair={"r_cut": -1.0})
