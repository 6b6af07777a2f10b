"""Evaluations say when 95 % intervals hold too few labels for chance, and only then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import alloy, label

from mfgp import Frame, MultiFidelityGP, read_frames
from mfgp.calibration.new_labels import NewLabels
from mfgp.evaluation import Evaluation, evaluate, label_std
from mfgp.notes.narrow_intervals import narrow_intervals


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(read_frames({"high": [label(alloy(200 + i), "high") for i in range(10)]}))


def drawn(model: MultiFidelityGP, frames: list[Frame], width: float, seed: int) -> Evaluation:
    """The evaluation of labels that are off by `width` standard deviations times a normal number."""
    rng, out = np.random.default_rng(seed), []
    for frame in frames:
        p = model.predict(frame.atoms, "high")
        std = label_std(model, frame, p)
        assert p.stress is not None
        assert std.stress is not None
        energy = p.energy + width * std.energy * rng.normal()
        forces = p.forces + width * std.forces * rng.normal(size=p.forces.shape)
        stress = p.stress + width * std.stress * rng.normal(size=6)
        out.append(replace(frame, energy=energy, forces=forces, stress=stress))
    return evaluate(model, out, "high")


def test_honest_intervals_are_no_news_and_narrow_ones_are_named(model: MultiFidelityGP, frames: list[Frame]) -> None:
    for seed in range(4):
        assert narrow_intervals(model, drawn(model, frames, 1.0, seed)) is None
    text = narrow_intervals(model, drawn(model, frames, 6.0, 0))
    assert text is not None
    for part in ("% of the energies of 10 structures", "% of the forces of 10", "% of the stresses of 10", "calibrate"):
        assert part in text
    assert "\n" not in text


def test_a_structure_counts_as_one(model: MultiFidelityGP, frames: list[Frame]) -> None:
    """Of 12 force components each, which are right or wrong together: nine right ones and one wrong one are no news."""
    result = drawn(model, frames, 0.0, 0)
    shares = {t.kind: t for t in result.intervals}
    assert shares["forces"] == NewLabels("high", "forces", 10, 10.0, 10.0)
    together = replace(result, intervals=(NewLabels("high", "forces").plus([1.0] * 9 + [0.0]),))
    assert narrow_intervals(model, together) is None
    spread = replace(result, intervals=(NewLabels("high", "forces").plus([0.9, 0.8] * 60),))
    assert "only 85 % of the forces of 120 structures" in (narrow_intervals(model, spread) or "")


def test_isolated_atoms_say_nothing(model: MultiFidelityGP, frames: list[Frame]) -> None:
    atom = replace(frames[0], isolated_atom=True, energy=100.0, forces=None, stress=None)
    assert evaluate(model, [atom], "high").intervals == ()
