"""Labels that were spoiled on purpose stand out in leave-one-label-out scores; good ones do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from conftest import DESCRIPTOR, alloy, label
from typer.testing import CliRunner

from mfgp import DataError, FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.cli import app
from mfgp.doctor_fit import LabelScore, fit_checks, label_scores

CONFIG = FitConfig(
    descriptor=DESCRIPTOR,
    model={"zeta": 3, "n_inducing": 150},
    training={"max_iterations": 30, "calibrate": False},
)


def data() -> dict[str, list[Atoms]]:
    low = [label(alloy(i, rattle=0.08), "low") for i in range(40)]
    return {"low": low, "high": [label(alloy(i, rattle=0.08), "high") for i in range(20)]}


def scored(frames: dict[str, list[Atoms]]) -> tuple[list[LabelScore], FrameSet]:
    read = read_frames(frames)
    model = MultiFidelityGP.fit(read, CONFIG, progress=False)
    return label_scores(model, read), read


def suspects(scores: list[LabelScore]) -> set[tuple[str, str, int | None]]:
    return {(s.frame.source, s.kind, s.atom) for s in scores if s.suspect}


@pytest.fixture(scope="module")
def clean() -> list[LabelScore]:
    return scored(data())[0]


def test_good_labels_are_left_alone(clean: list[LabelScore]) -> None:
    assert len(clean) == 60 * 5  # an energy and four forces each
    assert len({source for source, _, _ in suspects(clean)}) <= 1  # of 60 structures
    assert np.median([s.score for s in clean]) == pytest.approx(1.0, abs=0.3)


def test_a_force_of_the_wrong_sign_is_found() -> None:
    frames = data()
    forces = frames["high"][4].arrays["REF_forces"]
    assert np.linalg.norm(forces[2]) > 0.5  # eV/Å
    forces[2] *= -1
    scores, read = scored(frames)
    worst = max((s for s in scores if s.kind == "forces"), key=lambda s: s.score)
    assert worst.frame.source == read.of("high")[4].source
    assert worst.atom == 2
    assert worst.suspect
    assert worst.error == pytest.approx(2 * np.linalg.norm(forces[2]), rel=0.3)


def test_an_energy_that_is_off_is_found() -> None:
    frames = data()
    frames["low"][7].info["REF_energy"] += 0.2
    scores, read = scored(frames)
    worst = max((s for s in scores if s.kind == "energy"), key=lambda s: s.score)
    assert worst.frame.source == read.of("low")[7].source
    assert worst.suspect
    assert worst.error == pytest.approx(-0.2, abs=0.05)
    (finding,) = [f for f in fit_checks(scores, read) if "energies" in f.message and "'low'" in f.message]
    assert finding.frames[0] == read.of("low")[7].source
    assert "off by 0.2" in finding.message


def test_a_swapped_level_is_found() -> None:
    """A low label given as high: its energy lacks the shift between the levels."""
    frames = data()
    swapped = label(alloy(90, rattle=0.08), "low")
    swapped.info["fidelity"] = "high"
    frames["high"].append(swapped)
    scores, read = scored(frames)
    assert (read.of("high")[20].source, "energy", None) in suspects(scores)


def test_command_line_lists_them(tmp_path: Path) -> None:
    frames = data()
    frames["high"][3].arrays["REF_forces"][1] *= -1
    for level, atoms in frames.items():
        write(tmp_path / f"{level}.extxyz", atoms)
    read = read_frames({level: tmp_path / f"{level}.extxyz" for level in frames})
    MultiFidelityGP.fit(read, CONFIG, progress=False).save(tmp_path / "model.mfgp")
    files = [str(tmp_path / f"{level}.extxyz") for level in frames]
    done = CliRunner().invoke(app, ["doctor", *files, "--model", str(tmp_path / "model.mfgp")])
    assert done.exit_code == 0, done.output
    assert "leave-one-out" in done.output
    assert "high.extxyz frame 3" in done.output.replace("\n", " ")


def test_only_training_data_can_be_scored(clean: list[LabelScore]) -> None:
    model = MultiFidelityGP.fit(read_frames(data()), CONFIG, progress=False)
    with pytest.raises(DataError, match="not in the training data"):
        label_scores(model, read_frames({"low": [label(alloy(70), "low")], "high": [label(alloy(71), "high")]}))
