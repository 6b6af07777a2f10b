"""Energies and forces of a level that are not of one function are named with the likely reason; good labels never."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.io import write
from conftest import DESCRIPTOR, alloy, label
from typer.testing import CliRunner

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.cli import app
from mfgp.notes.contradictions import contradiction_notes, energy_factor, likely

SETTINGS = {
    "descriptor": DESCRIPTOR,
    "model": {"zeta": 2, "n_inducing": 60},
    "training": {"max_iterations": 30, "calibrate": False},
}
HARTREE, KCAL, BOHR = 27.2114, 23.0605, 1.889726  # eV, 1/eV, 1/Å


def scaled(
    energy: float = 1.0, forces: float = 1.0, stress: bool = True, n: int = 20, level: str = "low"
) -> list[Atoms]:
    """Alloys with labels in other units."""
    out = [label(alloy(i), level) for i in range(n)]
    for atoms in out:
        atoms.info["REF_energy"] *= energy
        atoms.arrays["REF_forces"] *= forces
        if not stress:
            del atoms.info["REF_stress"]
    return out


def fitted(frames: FrameSet, **settings: object) -> MultiFidelityGP:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MultiFidelityGP.fit(frames, FitConfig(**SETTINGS, **settings), progress=False)


@pytest.mark.parametrize(
    ("energy", "forces", "stress", "factor", "reason"),
    [
        (1.0, -1.0, True, -1.0, "the sign of the forces is that of the gradient (negate them)."),
        (1.0, KCAL, True, 1 / KCAL, "forces in kcal/mol/Å"),
        (1 / HARTREE, 1.0, False, 1 / HARTREE, "energies in Hartree"),
        (1 / HARTREE, 1.0 / (HARTREE * BOHR), False, BOHR, "forces in eV/bohr or both in atomic units"),
    ],
)
def test_signs_and_units_are_named(energy: float, forces: float, stress: bool, factor: float, reason: str) -> None:
    model = fitted(read_frames({"low": scaled(energy, forces, stress)}))
    assert abs(energy_factor(model, 0).factor / factor - 1.0) < 0.1
    (note,) = contradiction_notes(model)
    assert note.startswith("level low: its energies and forces contradict each other")
    assert reason in note


@pytest.mark.parametrize(("energy", "forces"), [(1.0, 1.0), (1.0, -1.0), (1 / HARTREE, 1.0)])
def test_what_baselines_say_is_not_scaled_with_the_energies(energy: float, forces: float) -> None:
    """Labels near a baseline: energies less what it says are no multiple of what forces less what it says are of."""
    frames = read_frames({"low": scaled(energy, forces, stress=False, level="high")})
    model = fitted(frames, baselines=[{"name": "emt"}])
    found = energy_factor(model, 0)
    if energy == forces == 1.0:
        assert contradiction_notes(model) == []
        assert found.gain < 3.0  # nats
    else:
        assert abs(found.factor / (energy / forces) - 1.0) < 0.1
        assert len(contradiction_notes(model)) == 1


def test_good_labels_are_no_news() -> None:
    noisy = scaled()
    for atoms, noise in zip(noisy, np.random.default_rng(0).normal(0, 0.5, len(noisy)), strict=True):
        atoms.info["REF_energy"] += noise  # eV; the energies scatter by 0.4 eV beside it
    for frames in (scaled(), scaled(stress=False), noisy):
        model = fitted(read_frames({"low": frames}))
        assert contradiction_notes(model) == []
        assert energy_factor(model, 0).gain < 3.0  # nats


def test_energies_of_other_structures_are_named() -> None:
    frames = scaled(n=24)
    energies = [atoms.info["REF_energy"] for atoms in frames]
    for atoms, energy in zip(frames, energies[::-1], strict=True):
        atoms.info["REF_energy"] = energy
    (note,) = contradiction_notes(fitted(read_frames({"low": frames})))
    assert "energies of other structures" in note


@pytest.mark.filterwarnings("default:level low. its energies")  # of the fit
def test_fit_and_doctor_say_so_once(tmp_path: Path) -> None:
    write(tmp_path / "low.extxyz", scaled(forces=-1.0))
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**SETTINGS, "fidelities": [{"name": "low", "train": "low.extxyz"}]})
    )
    with pytest.warns(UserWarning, match="level low: its energies and forces contradict each other"):
        MultiFidelityGP.fit(read_frames({"low": tmp_path / "low.extxyz"}), FitConfig(**SETTINGS), progress=False)
    model = str(tmp_path / "m.mfgp")
    fit = CliRunner().invoke(app, ["fit", str(tmp_path / "config.yaml"), "-o", model])
    assert fit.stderr.count("contradict each other") == 1
    doctor = CliRunner().invoke(app, ["doctor", str(tmp_path / "low.extxyz"), "--model", model, "--rounds", "0"])
    assert "error: energies and forces: level low: its energies and forces contradict" in " ".join(
        doctor.stdout.split()
    )
    assert doctor.exit_code == 1


def test_factors_are_units() -> None:
    assert likely(-0.0368) == ": the sign of the forces is that of the gradient (negate them) and energies in Hartree"
    assert likely(22.8) == ": energies in kcal/mol"
    assert likely(50.9) == ": forces in Ha/bohr"
    assert likely(1.865) == ": forces in eV/bohr or both in atomic units"
    assert likely(3.0) == ""
