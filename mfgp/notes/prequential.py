"""What new labels say of a calibration before they are learned (new_labels.py), and what a user is told of it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mfgp.calibration.new_labels import NewLabels
from mfgp.data.training_frames import spread
from mfgp.evaluation import compare, label_std
from mfgp.frames import FrameSet
from mfgp.predict.batched import predict_many

if TYPE_CHECKING:
    from mfgp.calibration.calibration import Calibration
    from mfgp.model import MultiFidelityGP

KINDS = {"energy": "energy", "forces": "forces", "stress": "virial"}  # of an evaluation and of a calibration
NAMES = {"energy": "energies", "forces": "forces", "virial": "stresses"}
MOST = 16  # structures of each level, in one update
CHANCE = 0.01  # probability of so few in their intervals


def tested(model: MultiFidelityGP, frames: FrameSet) -> Calibration | None:
    """The calibration of `model` with what labels say of it that the model is about to learn; warns, once for each level,
    where they lie outside their 95 % intervals too often for chance.

    MOST structures of each level are looked at, drawn with the seed of the configuration: a prediction with standard
    deviations takes two or three times as long as learning its structure. Isolated atoms, labels that symmetry makes zero,
    and kinds of labels that a level is not calibrated on, say nothing.
    """
    if model.calibration is None:
        return None
    known, fitted = {(t.level, t.kind): t for t in model.calibration.tested}, model.calibration.structures()
    for key, shares in _shares(model, spread(frames, MOST, model.config.seed)).items():
        if key in fitted:
            known[key] = known.get(key, NewLabels(*key)).plus(shares)
    calibration = replace(model.calibration, tested=tuple(known.values()))
    fresh = [level for level in model.levels if not any(_too_narrow(model.calibration, [level]))]
    for text in _too_narrow(calibration, fresh):
        warnings.warn(text, stacklevel=3)
    return calibration


def _shares(model: MultiFidelityGP, frames: FrameSet) -> dict[tuple[str, str], list[float]]:
    """Of the labels of each frame, level and kind, that lie in their 95 % intervals."""
    out = defaultdict[tuple[str, str], list[float]](list)
    for level in model.levels:
        own = [f for f in frames.of(level) if f.labelled]
        predictions = predict_many(model.predictor(level), [f.atoms for f in own])
        for frame, prediction in zip(own, predictions, strict=True):
            for kind, found in compare(frame, prediction, label_std(model, frame, prediction)).items():
                if kind in KINDS and len((told := found.telling).error):
                    inside = np.abs(told.error) <= 1.959964 * told.std
                    out[level, KINDS[kind]].append(float(inside.mean()))
    return out


def prequential_notes(model: MultiFidelityGP) -> list[str]:
    """How many new labels lay in their intervals, level by level; warnings where that are too few for chance."""
    if model.calibration is None:
        return []
    out = []
    for level in model.levels:
        if own := [t for t in model.calibration.tested if t.level == level]:
            out.append(
                f"note: before updates learned them, {_listed(own)} at {level} lay in their 95 % intervals. The calibration "
                "is that of the data before: `calibrate` on all frames brings it up to date."
            )
    return [*out, *(f"warning: {text}" for text in _too_narrow(model.calibration, model.levels))]


def _too_narrow(calibration: Calibration, levels: Sequence[str]) -> Iterator[str]:
    """Of levels whose new labels lay outside their intervals too often."""
    fitted = calibration.structures()
    for level in levels:
        own = [t for t in calibration.tested if t.level == level]
        if few := [t for t in own if t.chance(fitted[level, t.kind]) < CHANCE]:
            yield (
                f"fidelity {level!r}: before updates learned them, only {_listed(few)} lay in their 95 % intervals. The "
                "calibration is of the earlier data, which these are not like: standard deviations can be too small, of "
                "structures like the earlier ones, too. Fit again with all data, or `calibrate` on them (a campaign with "
                "`fit` does so by itself)"
            )


def _listed(found: Sequence[NewLabels]) -> str:
    return ", ".join(f"{100 * t.share:.0f} % of the {NAMES[t.kind]} of {t.structures} structures" for t in found)
