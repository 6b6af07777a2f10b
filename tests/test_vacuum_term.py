"""Isolated atoms: their term, what they fix, and that they cost the rest of a fit nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from model_files import as_written
from numpy.testing import assert_allclose

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.doctor.composition import reference_checks
from mfgp.fit import fitting
from mfgp.gp.vacuum_term import Together, VacuumTerm, vacuum_term

TERM = VacuumTerm((29, 79), 4.0, 1.0)
CONFIG = {
    "descriptor": {"r_cut": 4.0, "n_max": 4, "l_max": 3, "sigma": 0.5},
    "model": {"zeta": 2, "n_inducing": 60},
    "training": {"calibrate": False},
}


def calculator(level: str) -> EMT | SumCalculator:
    return (
        EMT() if level == "low" else SumCalculator([EMT(), LennardJones(sigma=2.3, epsilon=0.05, rc=6.0, smooth=True)])
    )


def labelled(atoms: Atoms, level: str, forces: bool = True) -> Atoms:
    out = atoms.copy()
    work = atoms.copy()
    work.calc = calculator(level)
    out.info = {
        "REF_energy": work.get_potential_energy() + (1.5 * (atoms.numbers == 29).sum() if level == "high" else 0)
    }
    if forces:
        out.set_array("REF_forces", work.get_forces())
    return out


def alloy(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
    atoms.symbols[rng.permutation(4)[:2]] = "Au"
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.12, (4, 3))
    return atoms


def data(isolated: bool, seed: int = 0) -> dict[str, list[Atoms]]:
    out = {"low": [labelled(alloy(100 * seed + i), "low") for i in range(24)]}
    out["high"] = [labelled(alloy(100 * seed + i), "high") for i in range(6)]
    for level, frames in out.items():
        frames += [labelled(Atoms(s), level, forces=False) for s in ("Cu", "Au")] * isolated
    return out


def fitted(frames: dict[str, list[Atoms]], **changes: object) -> MultiFidelityGP:
    return MultiFidelityGP.fit(read_frames(frames), FitConfig(**{**CONFIG, **changes}), progress=False)


@pytest.fixture(scope="module")
def with_atoms() -> MultiFidelityGP:
    return fitted(data(True))


def detached(kind: str) -> Atoms:
    """Atoms whose nearest neighbour lies where f_c goes to zero, and others near and far."""
    if kind == "cluster":
        return Atoms("CuAuCuAu", positions=[[0, 0, 0], [3.3, 0.2, 0], [0, 3.6, 0.4], [-9, 0, 0]])
    if kind == "dimer":
        return Atoms("CuCu", positions=[[0, 0, 0], [1.9, 2.0, 2.1]])
    cell = [[4.2, 0, 0], [0.3, 4.3, 0], [0.1, 0.2, 4.4]]
    return Atoms("CuAu", scaled_positions=[[0, 0, 0], [0.5, 0.49, 0.51]], cell=cell, pbc=True)


@pytest.mark.parametrize("kind", ["cluster", "dimer", "crystal"])
def test_rows_are_derivatives(kind: str) -> None:
    atoms, step = detached(kind), 3e-5
    rows = TERM.rows(atoms)
    own = [0, 2, 4] if kind == "dimer" else range(6)
    assert rows[0, own].abs().min() > 0.01
    assert rows[1:-6, own].abs().max(0).values.min() > 0.05

    def energy(change: Callable[[Atoms], None]) -> np.ndarray:
        moved = atoms.copy()
        change(moved)
        return TERM.rows(moved)[0].numpy()

    for k in range(3 * len(atoms)):

        def move(moved: Atoms, by: float, k: int = k) -> None:
            moved.positions.flat[k] += by

        slope = (energy(lambda a: move(a, step)) - energy(lambda a: move(a, -step))) / (2 * step)
        assert_allclose(rows[1 + k], -slope, atol=1e-5)
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):

        def strain(moved: Atoms, by: float, i: int = i, j: int = j) -> None:
            tensor = np.eye(3)
            tensor[i, j] += by / 2
            tensor[j, i] += by / 2
            moved.positions = moved.positions @ tensor
            moved.cell = moved.cell.array @ tensor

        slope = (energy(lambda a: strain(a, step)) - energy(lambda a: strain(a, -step))) / (2 * step)
        assert_allclose(rows[len(rows) - 6 + k], -slope, atol=1e-5)
    coefficients = torch.tensor([0.7, -1.3, 0.4, 0.9, -0.6, 0.2], dtype=torch.float64)
    assert_allclose(TERM.energies(atoms, coefficients).sum(), rows[0] @ coefficients, atol=1e-12)


def test_it_is_zero_in_solids_and_one_for_isolated_atoms() -> None:
    assert not TERM.acts_on(alloy(0))
    assert TERM.rows(alloy(0)).abs().max() == 0.0
    assert_allclose(TERM.rows(Atoms("Au"))[0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], atol=1e-15)
    wide = bulk("Cu", "sc", a=3.1, cubic=True)  # no neighbour within 3 Å, the first at a distance of f_c > 0
    wide.set_cell([3.05, 3.05, 3.05])
    assert TERM.acts_on(wide)
    assert 0.0 < float(TERM.rows(wide)[0, 0]) < 1e-6
    assert TERM.rows(Atoms("H"))[0].abs().max() == 0.0  # no column of this element


def test_isolated_atoms_are_predicted_and_are_e0(with_atoms: MultiFidelityGP) -> None:
    for level in ("low", "high"):
        for symbol in ("Cu", "Au"):
            atom = labelled(Atoms(symbol), level, forces=False)
            p = with_atoms.predict(atom, level, uncertainty="full")
            assert p.energy == pytest.approx(atom.info["REF_energy"], abs=1e-6)
            assert with_atoms.hyperparameters()["e0"][level][symbol] == pytest.approx(p.energy, abs=1e-3)
            assert p.energies[0] == pytest.approx(p.energy, abs=1e-9)
            for uncertainty in ("energies", "by_level"):
                assert with_atoms.predict(atom, level, uncertainty=uncertainty).energy_std == pytest.approx(
                    p.energy_std, abs=1e-7
                )


@pytest.mark.parametrize("level", ["low", "high"])
def test_a_level_without_isolated_atoms_knows_them_to_a_few_ev(level: str) -> None:
    """It was 100 eV and more, without a word: the prior of c was that of its change to the next level, too."""
    frames = data(True)
    other = {"low": "high", "high": "low"}[level]
    model = fitted({**frames, level: data(False)[level]})
    for symbol in ("Cu", "Au"):
        found, truth = (m.predict(Atoms(symbol), level) for m in (model, fitted(frames)))
        assert 1.0 < found.energy_std < 10.0  # eV
        assert abs(found.energy - truth.energy) < 2.0 * found.energy_std
        assert model.predict(Atoms(symbol), other).energy_std < 0.02
    (note,) = [note for note in model.notes() if "isolated" in note]
    assert note.startswith(f"note: no isolated atom of Cu, Au at {level}, only at {other}:")


def test_levels_with_isolated_atoms_have_no_note(with_atoms: MultiFidelityGP) -> None:
    assert not [note for note in with_atoms.notes() if "isolated" in note]


def test_atomisation_energies_are_known_as_total_energies_are(with_atoms: MultiFidelityGP) -> None:
    """Each atom had 5 meV, and n of them n times that: four times the standard deviation of the total energy, and more."""
    atoms = alloy(31)
    for level in ("low", "high"):
        structures = [atoms, Atoms("Cu"), Atoms("Au")]
        total = with_atoms.energy_combination(structures, [1, 0, 0], level)
        assert total.covariance[1, 1] ** 0.5 < 5e-4  # eV
        assert total.std > 1e-3
        assert total.with_coefficients([1, -2, -2]).std < 1.2 * total.std


def test_isolated_atoms_cost_no_accuracy(with_atoms: MultiFidelityGP) -> None:
    """Without their term the error of forces was four times that of a fit without isolated atoms."""
    without = fitted(data(False))
    tests = [labelled(alloy(9000 + i), "low") for i in range(10)]
    labels = np.concatenate([a.get_array("REF_forces") for a in tests])
    errors = [
        np.sqrt(np.mean((np.concatenate([m.predict(a, "low").forces for a in tests]) - labels) ** 2))
        for m in (with_atoms, without)
    ]
    assert errors[1] < 0.2 * np.sqrt(np.mean(labels**2))
    assert errors[0] < 1.15 * errors[1]


def test_an_atom_leaves_smoothly(with_atoms: MultiFidelityGP) -> None:
    """Forces are slopes of the energy all the way from a dimer to two isolated atoms, in a calculator that is kept."""
    atoms = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 2.5]])
    atoms.calc = with_atoms.calculator("high", uncertainty="none")
    energies = {}
    for z in (2.5, 2.95, 3.2, 3.5, 3.8, 3.99, 4.5):
        for step in (-1e-4, 0.0, 1e-4):
            atoms.positions[1, 2] = z + step
            energies[step] = atoms.get_potential_energy()
            assert energies[step] == pytest.approx(with_atoms.predict(atoms, "high").energy, abs=1e-8)
        atoms.positions[1, 2] = z
        assert atoms.get_forces()[1, 2] == pytest.approx(-(energies[1e-4] - energies[-1e-4]) / 2e-4, abs=2e-5)
    apart = sum(with_atoms.predict(Atoms(s), "high").energy for s in ("Cu", "Au"))
    assert energies[0.0] == pytest.approx(apart, abs=1e-6)


def test_the_way_of_an_atom_that_leaves_is_not_taken_as_known(with_atoms: MultiFidelityGP) -> None:
    """Its ends are; h is a choice. Standard deviations of energies and forces say so, those of combinations likewise."""
    stds = {}
    for z in (2.9, 3.3, 3.5, 3.8, 4.1):
        atoms = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, z]])
        p = with_atoms.predict(atoms, "high", uncertainty="full")
        stds[z] = (p.energy_std, p.forces_std[1, 2])
        assert with_atoms.energy_combination([atoms], [1], "high").std == pytest.approx(p.energy_std, rel=1e-6)
        assert with_atoms.predict(atoms, "high", uncertainty="energies").energy_std == pytest.approx(
            p.energy_std, rel=1e-4
        )
    for z in (3.3, 3.5):
        assert 1.0 < stds[z][1] < 10.0  # eV/Å
    assert stds[3.5][0] > 0.2  # eV
    assert max(stds[4.1]) < 1e-3
    term = with_atoms.columns.vacuum
    assert term is not None
    b = with_atoms.weights[:, -2 * len(term.species) :]
    assert b.abs().max() < 1e-6  # eV; no data of such atoms, so means are as without


def test_data_tell_the_way_of_an_atom_that_leaves(with_atoms: MultiFidelityGP) -> None:
    frames = data(True)
    for level in frames:
        frames[level] += [
            labelled(Atoms("CuAu", positions=[[0, 0, 0], [0, 0, z]]), level) for z in (2.9, 3.1, 3.4, 3.6, 3.8)
        ]
    told, atoms = fitted(frames), Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 3.5]])
    label = labelled(atoms, "high").get_array("REF_forces")
    errors, stds = [], []
    for model in (told, with_atoms):
        p = model.predict(atoms, "high", uncertainty="full")
        errors.append(np.abs(p.forces - label).max())
        stds.append(p.forces_std[1, 2])
    assert errors[0] < 0.3 * errors[1]
    assert stds[0] < 0.3 * stds[1]


def test_a_file_of_schema_11_takes_the_way_as_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fitting, "vacuum_term", partial(vacuum_term, shapes=0))
    model = fitted(data(True))
    model.save(tmp_path / "old.mfgp")
    as_written(tmp_path / "old.mfgp", {"schema": 11}, ("vacuum_shapes",))
    loaded = MultiFidelityGP.load(tmp_path / "old.mfgp")
    atoms = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 3.5]])
    found, expected = (m.predict(atoms, "high", uncertainty="full") for m in (loaded, model))
    assert found.energy == pytest.approx(expected.energy, abs=1e-10)
    assert_allclose(found.forces_std, expected.forces_std, rtol=0, atol=1e-10)
    assert loaded.columns.size == 4


def test_a_loaded_model_is_the_same_one(with_atoms: MultiFidelityGP, tmp_path: Path) -> None:
    with_atoms.save(tmp_path / "m.mfgp")
    loaded = MultiFidelityGP.load(tmp_path / "m.mfgp")
    assert loaded.columns.vacuum == with_atoms.columns.vacuum
    for atoms in (alloy(7), detached("cluster"), Atoms("Cu")):
        found, expected = (m.predict(atoms, "high", uncertainty="full") for m in (loaded, with_atoms))
        assert found.energy == pytest.approx(expected.energy, abs=1e-10)
        assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-10)
        assert_allclose(found.forces_std, expected.forces_std, rtol=0, atol=1e-10)


def test_an_update_with_isolated_atoms_is_a_refit(with_atoms: MultiFidelityGP) -> None:
    """Of the element that has a column; another one's fix its e0 alone, with a warning."""
    frames = data(True)
    some = {level: [a for a in of if str(a.symbols) != "Cu" or level == "low"] for level, of in frames.items()}
    model = fitted(some)
    assert model.columns.vacuum.species == (29, 79)  # type: ignore[union-attr]
    model.update({"high": frames["high"][-2:-1]})
    assert model.predict(Atoms("Cu"), "high").energy == pytest.approx(frames["high"][-2].info["REF_energy"], abs=1e-5)
    alone = fitted(data(False))
    assert alone.columns.vacuum is None
    with pytest.warns(UserWarning, match="isolated atoms of Au: the fit had none .* need a new fit") as told:
        alone.update({"low": frames["low"][-1:]})
    assert [w.filename for w in told] == [__file__]
    assert abs(alone.predict(Atoms("Au"), "low").energy - frames["low"][-1].info["REF_energy"]) > 0.1  # eV
    assert alone.hyperparameters()["e0"]["low"]["Au"] == pytest.approx(frames["low"][-1].info["REF_energy"], abs=1e-3)


def test_that_atoms_are_together_is_known_until_they_may_have_parted() -> None:
    atoms = alloy(3)
    slack = TERM.slack(atoms)
    assert 0.1 < slack < 1.0
    known = Together(atoms.copy(), slack)
    assert known.still(atoms)
    for far, holds in ((0.49 * slack, True), (0.51 * slack, False)):
        moved = atoms.copy()
        moved.positions[2, 1] += far
        assert known.still(moved) == holds
    for change in ("cell", "numbers", "pbc"):
        other = atoms.copy()
        if change == "cell":
            other.set_cell(other.cell.array * 1.01)
        elif change == "numbers":
            other.symbols[0] = "Ag"
        else:
            other.pbc = (True, True, False)
        assert not known.still(other)
    assert TERM.slack(detached("dimer")) == 0.0


def test_isolated_atoms_that_disagree_are_told() -> None:
    """Two spin states of an atom, say; what the fit makes of them is their mean."""
    frames = data(False)["low"][:8]
    frames += [Atoms("Cu", cell=[box] * 3, pbc=True, info={"REF_energy": e}) for box, e in ((10, 3.5), (12, 5.5))]
    read = read_frames({"low": frames})
    with pytest.warns(UserWarning, match=r"isolated Cu atoms have different energies, 3\.5000 .*, 5\.5000"):
        model = MultiFidelityGP.fit(read, FitConfig(**CONFIG), progress=False)
    assert model.predict(Atoms("Cu")).energy == pytest.approx(4.5, abs=1e-3)
    (finding,) = [f for f in reference_checks(read) if f.check == "isolated atoms" and f.severity == "warning"]
    assert "from 3.5000 to 5.5000 eV" in finding.message
    assert len(finding.frames) == 2
    frames[-1].info["REF_energy"] = 3.505
    assert all(
        f.severity == "info" for f in reference_checks(read_frames({"low": frames})) if f.check == "isolated atoms"
    )
