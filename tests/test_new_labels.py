"""New labels against their standard deviations before they are learned: counts, what chance does, warnings, files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from conftest import DESCRIPTOR, alloy, label

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.calibration.new_labels import NewLabels
from mfgp.evaluation import evaluate
from mfgp.notes.prequential import CHANCE, MOST


@pytest.fixture(scope="module")
def fitted() -> MultiFidelityGP:
    config = FitConfig(descriptor=DESCRIPTOR, model={"n_inducing": 100})
    frames = read_frames({"low": [label(alloy(i), "low") for i in range(30)]})
    return MultiFidelityGP.fit(frames, config, progress=False)


def new(n: int, first: int = 200) -> list[Atoms]:
    return [label(alloy(first + i), "low") for i in range(n)]


def of(model: MultiFidelityGP, kind: str) -> NewLabels:
    assert model.calibration is not None
    return next(t for t in model.calibration.tested if t.kind == kind)


def test_shares_are_those_of_the_model_that_does_not_know_the_labels(fitted: MultiFidelityGP, tmp_path: Path) -> None:
    """In two updates, with the file of the model between them; a calibration that is made afterwards has none."""
    first, second, model = new(4), new(3, 300), copy.copy(fitted)
    shares = [evaluate(model, list(read_frames({"low": [a]})), "low").forces.scores.coverage95 for a in first]
    model.update(first)
    assert (of(model, "forces").structures, of(model, "forces").inside) == (4, pytest.approx(sum(shares)))
    model.save(tmp_path / "model.mfgp")
    model = MultiFidelityGP.load(tmp_path / "model.mfgp")
    found = evaluate(model, list(read_frames({"low": second})), "low")
    inside = sum(float(abs(e) < 1.96 * s) for e, s in zip(found.energy.error, found.energy.std, strict=True))
    before = of(model, "energy")
    model.update(second)
    assert of(model, "energy").structures == 7
    assert of(model, "energy").inside == before.inside + inside
    assert of(model, "virial").structures == 7
    assert 0.0 < sum(shares) < 4.0  # something to get wrong
    model.calibrate(read_frames({"low": [*(label(alloy(i), "low") for i in range(30)), *first, *second]}))
    assert model.calibration is not None
    assert not model.calibration.tested
    assert fitted.calibration is not None
    assert not fitted.calibration.tested  # another model


def test_labels_beyond_chance_are_told_and_others_counted(fitted: MultiFidelityGP) -> None:
    model = copy.copy(fitted).update(new(8))  # pytest raises warnings
    (note,) = (n for n in model.notes() if "before updates learned" in n)
    assert note.startswith("note: ")
    assert f"{100 * of(model, 'forces').share:.0f} % of the forces of 8 structures" in note
    wrong, rng = new(8), np.random.default_rng(0)
    for atoms in wrong:
        atoms.arrays["REF_forces"] += rng.normal(0, 0.3, (len(atoms), 3))  # eV/Å
    other = copy.copy(fitted)
    with pytest.warns(
        UserWarning, match=r"'low': before updates learned them, only .* % of the forces of 8 structures"
    ):
        other.update(wrong)
    assert any(n.startswith("warning: fidelity 'low': before") for n in other.notes())
    assert of(other, "energy") == of(model, "energy")
    other.update(new(1, 300))  # told once


def test_of_many_structures_some_are_looked_at(fitted: MultiFidelityGP) -> None:
    many = new(MOST + 4, 500)
    assert of(copy.copy(fitted).update(many), "forces").structures == MOST


def test_without_a_calibration_nothing_is_tested(fitted: MultiFidelityGP) -> None:
    model = copy.copy(fitted)
    model.calibration = None
    assert model.update(new(2)).calibration is None
    assert not [n for n in model.notes() if "learned" in n]


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("c", "n"), [(5, 3), (30, 8), (200, 40)])
def test_chance_is_rare_for_labels_like_those_calibrated_on(c: int, n: int, shared: float) -> None:
    """Components that go together in a structure, in parts or wholly; widths from c structures."""
    rng, runs = np.random.default_rng(c + n), 1000

    def errors(structures: int) -> np.ndarray:
        common, own = rng.standard_normal((runs, structures, 1)), rng.standard_normal((runs, structures, 30))
        return shared * common + (1 - shared**2) ** 0.5 * own

    width = np.sqrt((errors(c) ** 2).mean((1, 2)))[:, None, None]

    def chances(factor: float) -> np.ndarray:
        shares = (np.abs(errors(n)) < 1.96 * factor * width).mean(2)
        return np.array([NewLabels("low", "forces").plus(h.tolist()).chance(c) for h in shares])

    usual = chances(1.0)
    assert (usual < 0.05).mean() < 0.07
    assert (usual < CHANCE).mean() <= CHANCE
    assert n < 40 or (chances(0.5) < CHANCE).mean() > (0.3 if shared == 1.0 else 0.95)


def test_one_outside_is_not_certain() -> None:
    assert NewLabels("low", "energy").plus([0.0]).chance(30) > CHANCE
    assert NewLabels("low", "energy").plus([0.0, 1.0, 1.0]).chance(30) > CHANCE
    assert NewLabels("low", "energy").plus([0.0] * 4).chance(30) < CHANCE
    assert NewLabels("low", "energy").plus([1.0] * 40).chance(30) > 0.5


def test_sums_go_on() -> None:
    both = NewLabels("low", "forces").plus([0.5, 1.0]).plus([0.25])
    assert both == NewLabels("low", "forces", 3, 1.75, 1.3125)
