"""Evaluations whose energies are off by much the same amount per atom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.io import write
from conftest import alloy, label
from typer.testing import CliRunner

from mfgp import MultiFidelityGP
from mfgp.cli import app
from mfgp.evaluation import Comparison, Evaluation
from mfgp.notes.energy_shift import energy_shift


def of_errors(error: np.ndarray, std: float) -> Evaluation:
    """Errors [n] and one standard deviation, eV/atom."""
    nothing = Comparison(*(np.zeros(0) for _ in range(3)))
    energy = Comparison(np.zeros(len(error)), error, np.full(len(error), std))
    return Evaluation("high", len(error), 4 * len(error), energy, nothing, None, np.zeros(0, dtype=np.int64))


def test_a_shift_is_told_with_what_is_left_without_it() -> None:
    scatter = 1e-3 * np.array([1.0, -1.0, 2.0, -2.0])  # eV/atom
    for sign, word in ((0.5, "high"), (-0.5, "low")):
        said = energy_shift(of_errors(sign + scatter, 2e-3))
        assert said is not None
        assert (
            f"of 4 structures are predicted 500 meV/atom too {word} in the mean; without this shift an RMSE of 1.58"
            in said
        )
    assert energy_shift(of_errors(scatter, 2e-3)) is None
    assert energy_shift(of_errors(0.5 + scatter, 0.5)) is None  # the model knows that it does not know
    assert energy_shift(of_errors(0.005 + scatter, 1e-3)) is None  # scatter of the same size
    assert energy_shift(of_errors((0.5 + scatter)[:3], 2e-3)) is None


def test_honest_errors_are_no_shift() -> None:
    rng = np.random.default_rng(0)
    for n in (4, 10, 100):
        assert sum(energy_shift(of_errors(rng.normal(0, 0.002, n), 0.002)) is not None for _ in range(1000)) <= 5


def test_the_command_says_so(model: MultiFidelityGP, tmp_path: Path) -> None:
    model.save(tmp_path / "model.mfgp")
    for shift in (0.0, 1.0):
        frames = [label(alloy(300 + i), "high") for i in range(6)]
        for atoms in frames:
            atoms.info["REF_energy"] -= shift * len(atoms)
        write(tmp_path / "data.extxyz", frames)
        done = CliRunner().invoke(
            app, ["evaluate", str(tmp_path / "model.mfgp"), str(tmp_path / "data.extxyz"), "-f", "high"]
        )
        said = " ".join(done.output.split())
        assert done.exit_code == 0, said
        assert ("warning: the energies of 6 structures are predicted" in said) == (shift > 0)
