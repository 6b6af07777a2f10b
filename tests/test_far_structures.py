"""Structures whose energies a model knows far less well than those it was trained on are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from conftest import alloy, label
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.cli import app
from mfgp.notes.far_structures import far_structures
from mfgp.predict.prediction import Prediction
from mfgp.predict.weights_variances import weights_variances


@pytest.fixture(scope="module")
def model(two_levels: FrameSet, config: FitConfig) -> MultiFidelityGP:
    training = config.training.model_copy(update={"calibrate": True})
    return MultiFidelityGP.fit(two_levels, config.model_copy(update={"training": training}), progress=False)


LIKE_THEM = [alloy(200 + i) for i in range(40)]
OTHERS = [bulk("Cu", cubic=True), bulk("Au", "bcc", a=3.3, cubic=True)]


def predicted(model: MultiFidelityGP, structures: Sequence[Atoms], uncertainty: str = "energies") -> list[Prediction]:
    found = model.predict(list(structures), "high", uncertainty=uncertainty)
    assert isinstance(found, list)
    return found


@pytest.mark.filterwarnings("ignore:.*apart, in the training data")
def test_novelty_is_the_weights_standard_deviation_over_the_usual_one(model: MultiFidelityGP) -> None:
    """Beyond the factor's limit of 10 in variance, too; the same from rows and descriptor, calibrated or not."""
    assert model.calibration is not None
    structures, predictor = [*LIKE_THEM[:3], *OTHERS], model.predictor("high")
    usual, expected = model.calibration.energy_novelty[predictor.level].reference, []
    for atoms in structures:
        rows = model.features.functionals(atoms).phi
        variance = weights_variances(rows, predictor.columns_of(atoms), predictor.covariance)[0]
        expected.append(float(variance) ** 0.5 / len(atoms) / usual**0.5)
    assert max(expected) > 50.0
    for uncertainty in ("full", "energies"):
        novelty = [p.novelty for p in predicted(model, structures, uncertainty)]
        assert_allclose(np.array(novelty, dtype=float), expected, rtol=1e-4)
    assert model.predictor("high", calibrated=False)(structures[0]).novelty == pytest.approx(expected[0], rel=1e-4)
    assert model.predict(structures[0], "high", uncertainty="none").novelty is None  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.*apart, in the training data")
def test_others_are_told_and_those_of_the_kind_trained_on_are_not(model: MultiFidelityGP) -> None:
    assert far_structures(LIKE_THEM, predicted(model, LIKE_THEM)) is None
    assert far_structures([], []) is None
    structures = [*LIKE_THEM[:2], *OTHERS]
    predictions = predicted(model, structures)
    said = far_structures(structures, predictions)
    assert said is not None
    worst = max(range(2, 4), key=lambda i: (predictions[i].energy_std or 0.0) / len(structures[i]))
    assert said.startswith(f"{sum((p.novelty or 0) > 10 for p in predictions)} of 4 structures are far from all")
    assert f"or worse, frame {worst} ({structures[worst].symbols})" in said
    exact = [replace(p, energy_std=1e-3) for p in predictions]  # nearly exact labels: ten times next to nothing
    assert far_structures(structures, exact) is None


def test_without_a_calibration_nothing_is_known(two_levels: FrameSet, config: FitConfig) -> None:
    plain = config.model_copy(update={"training": config.training.model_copy(update={"optimise": False})})
    raw = MultiFidelityGP.fit(two_levels, plain, progress=False)
    assert raw.calibration is None
    found = predicted(raw, LIKE_THEM[:1])
    assert found[0].novelty is None
    assert far_structures(LIKE_THEM[:1], found) is None


def test_the_command_says_so(model: MultiFidelityGP, tmp_path: Path) -> None:
    model.save(tmp_path / "model.mfgp")
    for structures, told in ((LIKE_THEM[:3], False), ([LIKE_THEM[0], OTHERS[1]], True)):
        write(tmp_path / "in.extxyz", [label(a, "high") for a in structures])
        arguments = [str(tmp_path / name) for name in ("model.mfgp", "in.extxyz", "out.extxyz")]
        for option in ("--raw-std", "--by-level", "--no-uncertainty"):
            done = CliRunner().invoke(app, ["predict", *arguments[:2], "-o", arguments[2], "-f", "high", option])
            said = " ".join(done.output.split())
            assert done.exit_code == 0, said
            assert ("warning: 1 of 2 structures are far from all" in said) == (told and option != "--no-uncertainty")
