"""Atoms that are closer to each other than any of their elements in the training data."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from conftest import alloy, label
from typer.testing import CliRunner

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.calculator import LOOK
from mfgp.cli import app
from mfgp.data.closest_pairs import CLOSER, REACH, closest_pairs, merged, too_close


@pytest.fixture(scope="module")
def model(two_levels: FrameSet, config: FitConfig) -> MultiFidelityGP:
    training = config.training.model_copy(update={"optimise": False, "calibrate": True})
    return MultiFidelityGP.fit(two_levels, config.model_copy(update={"training": training}), progress=False)


def pressed(distance: float) -> Atoms:
    """An alloy with two atoms pushed together."""
    atoms = alloy(130)
    atoms.set_distance(0, 1, distance, fix=0, mic=True)
    return atoms


def closest_of(model: MultiFidelityGP) -> dict[tuple[int, int], float]:
    assert model.calibration is not None
    return dict(model.calibration.closest)


def test_they_are_the_shortest_of_all_structures(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    expected: dict[tuple[int, int], float] = {}
    for frame in two_levels.training():
        distance = frame.atoms.repeat(2).get_all_distances(mic=True) + 100 * np.eye(8 * len(frame.atoms))
        numbers = frame.atoms.repeat(2).numbers
        for a, b in combinations_with_replacement((29, 79), 2):
            found = distance[np.ix_(numbers == a, numbers == b)]
            if found.size and found.min() <= REACH:
                expected[a, b] = min(expected.get((a, b), REACH), float(found.min()))
    assert len(expected) == 3
    assert closest_of(model) == pytest.approx(expected, abs=1e-9)  # Å


def test_a_pair_that_is_too_close_and_what_is_not_known() -> None:
    known = {(1, 8): 0.9, (1, 1): 1.5}
    assert too_close(molecule("H2O"), known) is None
    water = molecule("H2O")
    water.set_distance(0, 1, 0.9 * CLOSER - 0.01, fix=0)
    assert (
        too_close(water, known)
        == f"H and O are {0.9 * CLOSER - 0.01:.2f} Å apart, in the training data at least 0.90 Å"
    )
    water.set_distance(0, 1, 0.9 * CLOSER + 0.01, fix=0)
    assert too_close(water, known) is None
    assert (
        too_close(molecule("O2"), known)
        == "O and O are 1.25 Å apart, in the training data at least 3.00 Å (never nearer there)"
    )
    assert too_close(molecule("O2"), {}) is None
    assert too_close(Atoms("O"), known) is None
    assert too_close(bulk("Cu", a=2.8), {(29, 29): 2.4}) is not None  # an image of the atom itself
    assert merged({(1, 1): 0.7}, {(1, 1): 0.8, (1, 8): 1.0}) == {(1, 1): 0.7, (1, 8): 1.0}
    assert closest_pairs([]) == {}


@pytest.mark.parametrize("uncertainty", ["none", "energies", "full"])
def test_predict_warns_of_the_first(model: MultiFidelityGP, uncertainty: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(alloy(130), uncertainty=uncertainty)
    with pytest.warns(UserWarning, match=r"structure 1 of the list .* are 1\.30 Å apart, in the training data") as told:
        model.predict([alloy(130), pressed(1.3), pressed(1.2)], uncertainty=uncertainty)
    assert len(told) == 1
    assert told[0].filename == __file__


def test_a_calculator_warns_once_and_looks_at_some_steps_alone(model: MultiFidelityGP) -> None:
    calculator = model.calculator("high", uncertainty="none")
    atoms = alloy(130)
    atoms.calc = calculator
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(3 * LOOK):
            atoms.positions = pressed(1.3 + 1e-3 * step).positions if step >= LOOK // 2 else alloy(130).positions
            atoms.get_forces()
            if step < LOOK:
                assert not told
    assert len(told) == 1
    assert f"are {1.3 + 1e-3 * LOOK:.2f} Å apart" in str(told[0].message)


def test_the_file_and_updates_keep_them(model: MultiFidelityGP, tmp_path: Path) -> None:
    model.save(tmp_path / "model.mfgp")
    again = MultiFidelityGP.load(tmp_path / "model.mfgp")
    assert closest_of(again) == closest_of(model)
    before = closest_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a structure unlike the others
        again.update([label(pressed(1.6), "high")])
    after = closest_of(again)
    assert min(after.values()) == pytest.approx(1.6, abs=1e-6)
    assert {key for key in before if after[key] < before[key]} != set()
    assert too_close(pressed(1.45), after) is None
    assert too_close(pressed(1.45), before) is not None


def test_models_of_earlier_versions_say_nothing(model: MultiFidelityGP) -> None:
    old = copy.copy(model)
    assert model.calibration is not None
    old.calibration = replace(model.calibration, closest={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old.predict(pressed(1.3), uncertainty="none")


def test_the_commands_say_so(model: MultiFidelityGP, tmp_path: Path) -> None:
    model.save(tmp_path / "model.mfgp")
    write(tmp_path / "in.extxyz", [label(alloy(130), "high"), label(pressed(1.3), "high")])
    arguments = [str(tmp_path / name) for name in ("model.mfgp", "in.extxyz")]
    for command, where in ((["predict", "-o", str(tmp_path / "out.extxyz")], ""), (["evaluate"], f"{arguments[1]} ")):
        done = CliRunner().invoke(app, [*command, *arguments, "-f", "high"])
        said = " ".join(done.output.split())
        assert done.exit_code == 0, said
        assert f"in 1 of 2 structures atoms are too close to trust forces: {where}frame 1," in said
        assert said.count("too close") == 1
