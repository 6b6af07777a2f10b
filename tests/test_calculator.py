"""The ASE calculator: results, relaxation and molecular dynamics through it, and its warnings."""

from __future__ import annotations

import pickle
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from conftest import alloy
from numpy.testing import assert_allclose

from mfgp import DataError, MultiFidelityGP, read_frames
from mfgp import calculator as module
from mfgp.calculator import UncertaintyWarning
from mfgp.data.labels import OWN_CALCULATOR

CLUSTER = Atoms("Cu2Au", positions=[[0, 0, 0], [2.4, 0.2, 0.1], [0.9, 2.2, 0.7]])


def test_results_hold_means_and_standard_deviations(model: MultiFidelityGP) -> None:
    atoms = alloy(90)
    atoms.calc = model.calculator(fidelity="low")
    p = model.predict(atoms, "low")
    assert atoms.get_potential_energy() == p.energy == atoms.get_potential_energy(force_consistent=True)
    assert_allclose(atoms.get_forces(), p.forces, rtol=0, atol=1e-12)
    assert_allclose(atoms.get_stress(), p.stress, rtol=0, atol=1e-12)
    assert_allclose(atoms.get_potential_energies().sum(), p.energy, rtol=0, atol=1e-9)
    results = atoms.calc.results
    assert results["energy_std"] > 0
    for name, shape in (("energies_std", (4,)), ("forces_std", (4, 3)), ("stress_std", (6,))):
        assert results[name].shape == shape
        assert (results[name] >= 0).all()


def test_ase_gets_its_own_properties(model: MultiFidelityGP) -> None:
    """energy_std and its like are no properties to ASE, which ended in a KeyError."""
    atoms = alloy(90)
    atoms.calc = model.calculator(fidelity="low")
    found = atoms.get_properties(["energy", "forces"])
    assert found["energy"] == atoms.calc.results["energy"] == atoms.get_potential_energy()
    assert_allclose(found["forces"], atoms.get_forces(), rtol=0, atol=0)
    assert "energy_std" in atoms.calc.results


def test_trajectories_and_databases_say_the_level(model: MultiFidelityGP, tmp_path: Path) -> None:
    atoms = alloy(90)
    atoms.calc = model.calculator(fidelity="low", uncertainty="none")
    atoms.get_forces()
    write(tmp_path / "run.traj", atoms)
    assert read(tmp_path / "run.traj").calc.parameters["fidelity"] == "low"
    with connect(tmp_path / "run.db") as rows:
        rows.write(atoms)
        assert rows.get(1).calculator_parameters["fidelity"] == "low"


def test_a_vector_in_the_plane_of_a_slab_is_no_cell(model: MultiFidelityGP) -> None:
    atoms = alloy(90)
    atoms.pbc = (True, True, False)
    assert model.predict(atoms, "low").stress is not None
    atoms.cell[2] = atoms.cell[0] - 2 * atoms.cell[1]  # to rounding: a stress of 1e16 eV/Å^3
    assert model.predict(atoms, "low").stress is None
    atoms.calc = model.calculator(fidelity="low")
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


@pytest.mark.parametrize("suffix", ["", ".traj", ".db", ".json"])
def test_its_results_are_no_labels(model: MultiFidelityGP, tmp_path: Path, suffix: str) -> None:
    atoms = alloy(90)
    atoms.calc = model.calculator(fidelity="low", uncertainty="none")
    assert atoms.calc.name == OWN_CALCULATOR
    energy, forces, _ = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    source = tmp_path / f"run{suffix}" if suffix else [atoms]
    if suffix:
        write(source, atoms)
    with pytest.raises(
        DataError, match=r"predictions of a model \(its calculator is .*write them under REF_energy and"
    ):
        read_frames({"low": source})
    atoms.info["REF_energy"] = energy
    atoms.set_array("REF_forces", forces)
    (frame,) = read_frames({"low": [atoms]})
    assert frame.label_names == ("energy", "forces")  # the stress is still the model's


def test_forces_agree_with_ase_finite_differences(model: MultiFidelityGP) -> None:
    atoms = alloy(91)
    atoms.calc = model.calculator(uncertainty="none")
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.1
    numerical = calculate_numerical_forces(atoms, eps=2e-4)  # energies carry 5e-11 eV of rounding
    assert_allclose(forces, numerical, rtol=0, atol=1e-6)


def test_a_calculator_travels_to_another_process(model: MultiFidelityGP) -> None:
    """As multiprocessing and joblib send it; a model file has no part in it."""
    atoms, there = alloy(91), alloy(91)
    atoms.calc = model.calculator(fidelity="high", uncertainty="local")
    atoms.get_forces()
    there.calc = pickle.loads(pickle.dumps(atoms.calc))
    there.rattle(1e-3, seed=0)
    atoms.rattle(1e-3, seed=0)
    assert_allclose(there.get_forces(), atoms.get_forces(), rtol=0, atol=1e-12)
    assert_allclose(there.calc.results["energies_std"], atoms.calc.results["energies_std"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("uncertainty", ["none", "local"])
def test_it_goes_on_here_after_it_was_sent(model: MultiFidelityGP, uncertainty: str) -> None:
    """multiprocessing moves the memory of the tensors that it sends: what compiled loops read must not move with it."""
    atoms = alloy(92)
    atoms.calc = model.calculator(fidelity="high", uncertainty=uncertainty)
    expected = atoms.get_potential_energy()
    ForkingPickler.dumps(atoms)
    moved = [torch.rand(n, dtype=torch.float64) for n in range(1, 3000, 7)]  # takes the place of what was freed
    for calculator in (atoms.calc, model.calculator(fidelity="high", uncertainty=uncertainty)):
        there = alloy(92)
        there.calc = calculator
        there.rattle(1e-3, seed=0)
        there.get_potential_energy()
        there.positions = atoms.positions
        assert there.get_potential_energy() == pytest.approx(expected, abs=1e-9)
    assert moved


def test_molecule_has_no_stress(model: MultiFidelityGP) -> None:
    atoms = CLUSTER.copy()
    atoms.calc = model.calculator()
    assert np.isfinite(atoms.get_potential_energy())
    assert "stress" not in atoms.calc.results
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_relaxation_of_positions_and_cell_lowers_the_energy(model: MultiFidelityGP) -> None:
    atoms = alloy(92)
    atoms.calc = model.calculator(uncertainty="none")
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=60)
    assert atoms.get_potential_energy() < before - 0.01


@pytest.mark.slow
def test_nve_error_falls_fourfold_when_the_step_halves(model: MultiFidelityGP) -> None:
    def spread(timestep: float) -> float:
        atoms = alloy(93, rattle=0.03)
        atoms.calc = model.calculator(uncertainty="none")
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(1))
        energies: list[float] = []
        dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
        dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
        dynamics.run(int(200 / timestep))
        return float(np.std(energies))

    coarse, fine = spread(4.0), spread(2.0)
    assert coarse > 1e-6  # eV: something to get wrong
    assert 3.0 < coarse / fine < 5.0


def test_threshold_warns_and_names_the_atom(model: MultiFidelityGP) -> None:
    atoms = alloy(94)
    for uncertainty, name in (("full", "forces_std"), ("energies", "energies_std"), ("local", "energies_std")):
        atoms.calc = model.calculator(uncertainty=uncertainty, uncertainty_threshold=1e-9)
        with pytest.warns(UncertaintyWarning, match=rf"{name} of atom \d \((Cu|Au)\)"):
            atoms.get_potential_energy()
        atoms.calc = model.calculator(uncertainty=uncertainty, uncertainty_threshold=1e9)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            atoms.get_potential_energy()


def test_unknown_settings_and_elements(model: MultiFidelityGP) -> None:
    with pytest.raises(ValueError, match="one of full, sampled, energies, local, none"):
        model.calculator(uncertainty="some")
    with pytest.raises(ValueError, match="needs uncertainty"):
        model.calculator(uncertainty="none", uncertainty_threshold=0.1)
    atoms = Atoms("CuNi", positions=[[0, 0, 0], [2.4, 0, 0]])
    atoms.calc = model.calculator()
    with pytest.raises(DataError, match="not seen Ni"):
        atoms.get_potential_energy()


@pytest.mark.parametrize(
    "change", ["nothing", "positions", "numbers", "cell", "pbc", "initial_magmoms", "initial_charges"]
)
def test_changes_are_found_as_ase_finds_them(model: MultiFidelityGP, change: str) -> None:
    atoms = alloy(50)
    calculator = model.calculator(uncertainty="none")
    atoms.calc = calculator
    atoms.get_potential_energy()
    moved = atoms.copy()
    if change == "positions":
        moved.positions[1, 2] += 1e-9
    if change == "numbers":
        moved.numbers[:] = moved.numbers[::-1]
    if change == "cell":
        moved.cell[0, 0] += 1e-9
    if change == "pbc":
        moved.pbc = [True, True, False]
    if change.startswith("initial"):
        moved.set_array(change, np.ones(len(moved)))
    assert calculator.check_state(moved) == Calculator.check_state(calculator, moved)
    assert calculator.check_state(moved) == ([] if change == "nothing" else [change])


def test_options_that_do_not_exist_are_errors(model: MultiFidelityGP) -> None:
    with pytest.raises(TypeError, match="uncertainity"):
        model.calculator(uncertainity="none")
    with pytest.raises(ValueError, match="needs draws of 1 or more, not 0"):
        model.calculator(uncertainty="sampled", draws=0)
    with pytest.raises(TypeError, match=r"uncertainty, fidelity: give options to model.calculator"):
        model.calculator().set(uncertainty="none", fidelity="low")
    with pytest.raises(ValueError, match="must be positive"):
        model.calculator(uncertainty_threshold=-1.0)


def test_slow_steps_with_all_standard_deviations_are_told_once(
    model: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(n: int) -> None:
        for seed in range(n):
            atoms.rattle(0.01, seed=seed)
            atoms.get_forces()

    atoms = alloy(90)
    atoms.calc = model.calculator()
    steps(3)  # pytest: a warning is an error
    monkeypatch.setattr(module, "SLOW", 0.0)
    atoms.calc = model.calculator(uncertainty="energies")
    steps(3)
    atoms.calc = model.calculator()
    steps(1)
    with pytest.warns(UserWarning, match=r"nearly all of it .* pass uncertainty='energies'") as told:
        steps(1)
    assert [w.filename for w in told] == [__file__]
    steps(3)
