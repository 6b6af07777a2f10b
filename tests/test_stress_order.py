"""Shear stresses in the order of another program are named after a fit, right ones never."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.io import write
from conftest import DESCRIPTOR, alloy, label
from typer.testing import CliRunner

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.cli import app
from mfgp.stress_order import residuals, stress_order_notes

SETTINGS = {
    "descriptor": DESCRIPTOR,
    "model": {"zeta": 2, "n_inducing": 60},
    "training": {"max_iterations": 20, "calibrate": False},
}


def ordered(n: int, order: tuple[int, ...] = (0, 1, 2), level: str = "low") -> list[Atoms]:
    """Alloys whose shear labels yz xz xy are written in another order."""
    out = [label(alloy(i), level) for i in range(n)]
    for atoms in out:
        atoms.info["REF_stress"][3:] = atoms.info["REF_stress"][3:][list(order)]
    return out


def test_the_order_of_the_labels_has_the_smallest_residual() -> None:
    predictions = np.random.default_rng(0).normal(size=(8, 3))
    for order in permutations(range(3)):
        found = residuals(predictions[:, order], predictions)
        assert found[order] == 0.0
        assert min(value for other, value in found.items() if other != order) > 0.5


@pytest.mark.parametrize(
    ("order", "name"),
    [((2, 0, 1), "xx yy zz xy yz xz, that of VASP"), ((2, 1, 0), "xx yy zz xy xz yz, that of LAMMPS")],
)
def test_other_orders_are_named(order: tuple[int, ...], name: str) -> None:
    frames = read_frames({"low": ordered(12, order), "high": ordered(12, level="high")})
    (note,) = stress_order_notes(MultiFidelityGP.fit(frames, FitConfig(**SETTINGS), progress=False), frames)
    assert note.startswith(f"level low: the shear stresses agree with the model far better in the order {name}")


def test_the_right_order_and_few_frames_are_no_news() -> None:
    for frames in (read_frames({"low": ordered(12)}), read_frames({"low": ordered(7, (2, 0, 1))})):
        assert stress_order_notes(MultiFidelityGP.fit(frames, FitConfig(**SETTINGS), progress=False), frames) == []


def test_fit_and_doctor_say_so(tmp_path: Path) -> None:
    write(tmp_path / "low.extxyz", ordered(12, (2, 0, 1)))
    settings = {**SETTINGS, "fidelities": [{"name": "low", "train": "low.extxyz"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    model = str(tmp_path / "m.mfgp")
    fit = CliRunner().invoke(app, ["fit", str(tmp_path / "config.yaml"), "-o", model])
    assert "warning: level low: the shear stresses agree" in fit.stderr
    doctor = CliRunner().invoke(app, ["doctor", str(tmp_path / "low.extxyz"), "--model", model, "--rounds", "0"])
    assert "warning: stress order: level low: the shear stresses agree" in doctor.stdout
