"""Labels that look like a slip are told: by a fit, from what all others say of them."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from conftest import alloy, label, molecules

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.scores import bulk
from mfgp.notes.surprises import force_factor, warn_of_surprises

HARTREE_PER_BOHR = 51.4220675  # eV/Å

CONFIG = FitConfig(
    descriptor={"r_cut": 4.0, "n_max": 4, "l_max": 3, "sigma": 0.5}, model={"zeta": 2, "n_inducing": 100}
)


def labelled(level: str) -> list[Atoms]:
    return [label(alloy(i), level) for i in range(20)]


def fit(low: list[Atoms], high: list[Atoms]) -> MultiFidelityGP:
    return MultiFidelityGP.fit(read_frames({"low": low, "high": high}), CONFIG, progress=False)


def test_good_labels_are_not_suspected() -> None:
    assert fit(labelled("low"), labelled("high")).calibration is not None  # pytest raises warnings


def test_an_energy_that_all_others_contradict_is_told() -> None:
    high = labelled("high")
    high[3].info["REF_energy"] += 0.5
    with pytest.warns(UserWarning, match=r"'high': energies of 1 of 20 frames .* frame 3 .* meV/atom off") as told:
        fit(labelled("low"), high)
    assert len(told) == 1


def test_a_force_that_all_others_contradict_is_told() -> None:
    low = labelled("low")
    low[5].arrays["REF_forces"][1] += (0.0, 3.0, -3.0)
    with pytest.warns(UserWarning, match=r"'low': forces of 1 of 20 frames .* frame 5 .* eV/Å off"):
        fit(low, labelled("high"))


def test_a_calibration_on_few_of_the_structures_is_told(tmp_path: Path) -> None:
    """Nearly exact labels of a few molecules: rounding hides what the others say of most."""
    few = molecules("H2O", 12, 3)
    config = FitConfig(preset="molecule", model={"n_inducing": 200})
    said = r"predictions of (\d+) of 12 structures could not be compared .* scaled to the errors of the other \d+, and"
    with pytest.warns(UserWarning, match=said) as told:
        fitted = MultiFidelityGP.fit(few, config, progress=False)
    (found,) = (m for w in told if (m := re.search(said, str(w.message))))
    missing = int(found.group(1))
    assert 3 < missing < 12
    fitted.save(tmp_path / "model.mfgp")
    notes = MultiFidelityGP.load(tmp_path / "model.mfgp").notes()
    assert notes == fitted.notes()
    start = f"warning: {missing} of 12 structures at {few.levels[0]} could not be left out. So the standard deviations there"
    assert sum(note.startswith(start) for note in notes) == 1


@pytest.mark.parametrize("n", [3, 2])
def test_where_none_can_be_left_out_the_reason_is_told(n: int) -> None:
    """Nearly exact labels, and more inducing points than they say anything of; or just too few of them."""
    levels = {
        "low": [label(alloy(i), "low") for i in range(6)],
        "high": [label(alloy(90 + i), "high") for i in range(n)],
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = MultiFidelityGP.fit(read_frames(levels), FitConfig(preset="solid"), progress=False)
    told = sorted(str(w.message) for w in caught)
    assert fitted.calibration is None
    assert all(w.filename == __file__ for w in caught)
    assert told[n - 2].startswith("fidelity 'low': predictions of 6 of 6 structures could not be compared")
    assert "So the standard deviations there were never checked, and of new structures they may be" in told[n - 2]
    assert sum("the posterior's own, never compared with an error" in note for note in fitted.notes()) == 1
    if n == 3:
        assert told[0].startswith("fidelity 'high': predictions of 3 of 3 structures could not be compared")
    else:
        assert told[1] == "too few structures to calibrate on at high; standard deviations are the posterior's own"


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_kind_of_label_that_too_few_structures_have_is_told(n: int) -> None:
    """Not of energies that the level has none of, nor of those of three structures; one alone cannot be left out."""
    high = labelled("high")
    for atoms in high[n:]:
        del atoms.info["REF_energy"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = fit(labelled("low"), high)
    assert model.calibration is not None
    assert {f.kind for f in model.calibration.fitted if f.level == "high"} >= {"forces"}
    found = [str(w.message).partition(" to calibrate on")[0] for w in told]
    few = f"fidelity 'high': energies of {n - n % 2} left-out structures (of {n}) are too few"
    assert found == ([few] if n in (1, 2) else [])
    assert all(w.filename == __file__ for w in told)


def test_the_bulk_is_what_a_normal_distribution_has_and_wrong_labels_do_not_move_it() -> None:
    rng = np.random.default_rng(0)
    for components in (1, 3):
        scores = np.sqrt((rng.normal(0.0, 2.0, (20000, components)) ** 2).mean(1))
        assert bulk(scores, components) == pytest.approx(2.0, rel=0.02)
        scores[:1000] = 1e6
        assert bulk(scores, components) == pytest.approx(2.0, rel=0.1)


def test_forces_in_another_unit_or_of_the_wrong_sign_are_told(model: MultiFidelityGP) -> None:
    def told(factor: float) -> str:
        frames = read_frames({"low": [label(alloy(500 + i), "low") for i in range(3)]})
        for frame in frames:
            frame.forces[:] *= factor  # type: ignore[index]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_surprises(model, frames)
        assert len(caught) <= 1
        return str(caught[0].message) if caught else ""

    for factor in (0.7, 1.0, 1.5):
        assert told(factor) == ""
    assert "new forces at low are 0.0" in told(1 / HARTREE_PER_BOHR)
    assert "as those in Hartree/Bohr are" in told(1 / HARTREE_PER_BOHR)
    assert "as those in Ry/Bohr are" in told(2 / HARTREE_PER_BOHR)
    assert "as those in kcal/mol/Å are" in told(23.06)
    assert "as gradients of the energy are" in told(-1.0)
    assert "times what the model expects. Are they" in told(90.0)


def test_few_forces_are_not_told(model: MultiFidelityGP) -> None:
    frames = read_frames({"low": [label(alloy(500), "low")[:3]]})
    predictor = model.predictor("low")
    off = [(f, replace(predictor(f.atoms, "none"), forces=5 * f.forces)) for f in frames]
    assert force_factor(off) is None  # nine components


def test_between_two_and_fifteen_times_the_forces_have_to_be_alike(model: MultiFidelityGP) -> None:
    frame = read_frames({"low": [label(alloy(500), "low")]}).frames[0]
    expected = replace(model.predictor("low")(frame.atoms, "none"), forces=frame.forces / 3)
    assert force_factor([(frame, expected)]) == pytest.approx(3.0, abs=1e-9)
    expected.forces[0] *= 1.5  # as far from the data
    assert force_factor([(frame, expected)]) is None


def test_small_errors_of_energies_are_not_told(model: MultiFidelityGP) -> None:
    predictor = model.predictor("low")
    for shift, n in ((0.05, 0), (0.2, 1)):  # eV/atom; 0.2 was let through before
        frames = read_frames({"low": [label(alloy(500), "low")]})
        frame = replace(frames.frames[0], energy=predictor(alloy(500), "none").energy + 4 * shift)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_surprises(model, FrameSet(frames.levels, (frame,)))
        assert len(caught) == n
