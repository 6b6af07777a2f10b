"""Single calculations: checks of what comes out, calculators by name, and what a killed process leaves."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from campaign_systems import traced
from conftest import alloy

from mfgp import ConfigError
from mfgp.campaign.calculators import make_calculator
from mfgp.campaign.labelling import Job, calculate, checked, left_behind, other_spin
from mfgp.data.structure_json import structure_of, structure_record
from mfgp.frames import frames_from


def job_of(folder: Path, mode: str, **checks: Any) -> Job:
    settings = {"trace": str(folder / "trace"), "mode": mode}
    return Job(1, 1, "low", structure_record(alloy(1)), str(folder / "job"), None, settings, factory=traced, **checks)


def test_labels_are_those_of_the_calculator(tmp_path: Path) -> None:
    found = calculate(job_of(tmp_path, ""))
    atoms = alloy(1)
    atoms.calc = EMT()
    assert found.outcome == "done"
    assert found.energy == atoms.get_potential_energy(force_consistent=True)
    np.testing.assert_array_equal(found.forces, atoms.get_forces())
    np.testing.assert_array_equal(found.stress, atoms.get_stress())
    assert found.wall_seconds > 0
    labelled = found.atoms(alloy(1), "low")
    assert labelled.info["REF_energy"] == found.energy
    assert labelled.info["fidelity"] == "low"
    assert calculate(job_of(tmp_path, "", stress=False)).stress is None


def test_a_calculator_without_stress_gives_none(tmp_path: Path) -> None:
    found = calculate(job_of(tmp_path, "no stress all"))  # as ASE's Vasp with isif: 0
    assert found.outcome == "done"
    assert found.stress is None
    assert found.forces is not None


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("raise all", "CalculationFailed: SCF did not converge (campaign_systems.py:"),
        ("nan all", "forces not finite"),
        ("huge all", "a force of 1732 eV/Å on atom 0, above max_force 100"),
        ("unconverged all", "did not converge"),
        ("relax all", "moved the atoms by 0.02 Å: a relaxation"),
        ("relax cell all", "changed the cell by 0.01 Å: a relaxation"),
    ],
)
def test_what_fails_says_why_and_has_no_labels(tmp_path: Path, mode: str, why: str) -> None:
    found = calculate(job_of(tmp_path, mode))
    assert found.outcome == "failed"
    assert why in found.why
    assert found.energy is None
    assert left_behind(tmp_path / "job") == found


def test_an_atom_in_another_cell_or_rounded_has_not_moved() -> None:
    class Wrapping(EMT):
        def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
            super().calculate(atoms, *args, **kwargs)
            atoms.positions[1] += atoms.cell[0]
            atoms.positions += 1e-5
            self.atoms = atoms.copy()

    atoms = alloy(1)
    before = atoms.copy()
    assert checked(Wrapping(), atoms, {}, 0.0, 100.0).outcome == "done"
    assert atoms == before


def test_spin_states(tmp_path: Path) -> None:
    spin = {"spin": {"Cu": [2.0, 4.0]}, "spin_tolerance": 0.5}
    assert calculate(job_of(tmp_path, "spin all", **spin)).outcome == "done"
    low = calculate(job_of(tmp_path, "spin_low all", **spin))
    assert low.outcome == "rejected"
    assert "another spin state: Cu" in low.why
    assert low.energy is not None  # kept, apart
    for mode in ("", "spin_zero all"):  # as ASE's Vasp without lorbit
        unknown = calculate(job_of(tmp_path, mode, **spin))
        assert unknown.outcome == "rejected"
        assert "lorbit: 11" in unknown.why
        assert unknown.energy is not None
        assert unknown.magmoms is None
    atoms = Atoms("FeMnO", positions=np.eye(3))
    assert other_spin(atoms, np.array([-3.7, 4.6, 0.1]), {"Fe": [4], "Mn": [5]}, 0.9) == ""
    assert "Mn1 3.90" in other_spin(atoms, np.array([3.7, 3.9, 0.1]), {"Fe": [4], "Mn": [5]}, 0.9)


def test_calculators_by_name(tmp_path: Path) -> None:
    assert isinstance(make_calculator("emt", {}, tmp_path), EMT)
    espresso = {"profile": {"command": "pw.x", "pseudo_dir": "/pseudo"}, "input_data": {"control": {}}}
    assert make_calculator("espresso", espresso, tmp_path).directory == tmp_path  # type: ignore[attr-defined]
    vasp = make_calculator("vasp", {"xc": "pbe", "encut": 500, "directory": "elsewhere"}, tmp_path)
    assert Path(vasp.directory) == tmp_path  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"no calculator named 'os\.system'"):
        make_calculator("os.system", {}, tmp_path)


def test_structures_are_kept_exactly() -> None:
    atoms = alloy(3)
    atoms.positions *= 1 / 3
    atoms.set_initial_magnetic_moments([1.0, -1.0, 0.0, 0.1])
    atoms.info = {"name": "x", "strain": np.float64(0.1), "list": np.arange(3)}
    again = structure_of(structure_record(atoms))
    assert again == atoms
    np.testing.assert_array_equal(again.get_initial_magnetic_moments(), [1.0, -1.0, 0.0, 0.1])
    assert again.info == {"name": "x", "strain": 0.1, "list": [0, 1, 2]}


def test_a_calculation_that_still_runs_is_not_started_again(tmp_path: Path) -> None:
    directory = tmp_path / "job"
    job = job_of(tmp_path, "")
    assert left_behind(directory) == "gone"
    outcome = calculate(job)
    assert outcome.outcome == "done"
    assert left_behind(directory) == outcome
    with open(directory / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert left_behind(directory) == "running"
        with pytest.raises(RuntimeError, match="is locked by a running calculation"):
            calculate(job)
    (directory / "result.json").write_text('{"outcome": "done", ')  # what no atomic write leaves
    assert left_behind(directory) == "gone"


def test_moments_are_labels(tmp_path: Path) -> None:
    found = calculate(job_of(tmp_path, "spin all"))
    frames = frames_from({"low": [found.atoms(alloy(1), "low")]}, ["low"])
    np.testing.assert_array_equal(frames.frames[0].magmoms, np.where(alloy(1).numbers == 29, 3.9, 0.0))
