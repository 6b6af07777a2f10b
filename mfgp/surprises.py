"""Labels that look like a slip (another unit, reference or code, a calculation that went wrong): those that a model is
about to learn, against what it expects, and those that it was fitted to, against what all others say.

A label that all others contradict is learned half, and called noise for the rest, with all labels of its level: one energy
off by 1 eV among 30 frames of four atoms makes the forces twice as wrong. Judged are left-out errors over their calibrated
standard deviations (without novelty), over those of the bulk of their like (scores.bulk): so many wrong labels can be among
them, and none hides by widening what is expected of all.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mfgp.calibration import Calibration
from mfgp.frames import Frame, FrameSet
from mfgp.leave_one_out import LeftOut
from mfgp.scores import MIN_LABELS, bulk

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

DEVIATIONS, LEAST = 8.0, 0.5  # standard deviations and eV/atom, both of which an energy has to be off by
CONTRADICTED = {"energy": 6.0, "forces": 12.0}  # deviations of the bulk; good labels: docs/doctor.md
MATTERS = {"energy": 0.002, "forces": 0.1}  # eV/atom, eV/Å; nearly exact labels have errors of heavy tails below


def warn_of_surprises(model: MultiFidelityGP, frames: FrameSet) -> None:
    """Warn of energies that `model` would not have thought possible, before it learns them."""
    labelled = [f for f in frames if f.energy is not None and not f.isolated_atom]
    predictors = {level: model.predictor(level) for level in {f.fidelity for f in labelled}}
    found = []
    for frame in labelled:
        predictor, n = predictors[frame.fidelity], len(frame.atoms)
        off = abs(predictor(frame.atoms, "none").energy - _energy(frame))
        if off <= LEAST * n:
            continue
        std = float(np.hypot(predictor(frame.atoms, "energies").energy_std or 0.0, frame.energy_sigma or 0.0))
        if off > DEVIATIONS * std:
            found.append((off / n, std / n, frame))
    if found:
        off, std, frame = max(found, key=lambda x: x[0])
        warnings.warn(
            f"{len(found)} of {len(labelled)} new energies are far from what the model expects, most {frame.source} "
            f"({frame.atoms.symbols}, {frame.fidelity}): {_energy(frame) / len(frame.atoms):.3f} eV/atom, {off:.2f} off "
            f"where {std:.3f} was expected. Is it a total energy in eV, of the reference and settings of the others? It is "
            "learned nevertheless; the model from before is in its file",
            stacklevel=3,
        )


def _energy(frame: Frame) -> float:
    assert frame.energy is not None
    return frame.energy


def warn_of_contradictions(levels: Sequence[str], calibration: Calibration, left_out: Sequence[LeftOut]) -> None:
    """Warn of labels that all others contradict; `calibration` was fitted to their left-out errors."""
    for t, level in enumerate(levels):
        for kind, limit in CONTRADICTED.items():
            own = [part for part in left_out if (part.frame.fidelity, part.kind) == (level, kind)]
            found = sorted(_contradicted(own, t, calibration, limit), key=lambda x: -x[0])
            if not found:
                continue
            score, off, frame = found[0]
            many, one = ("energies", "energy") if kind == "energy" else ("forces", "a force")
            frames = len({id(f) for *_, f in found})
            warnings.warn(
                f"fidelity {level!r}: {many} of {frames} of {len(own)} frames are contradicted by all other labels, most "
                f"{one} of {frame.source} ({frame.atoms.symbols}): {off} off what these say, {score:.0f} times the usual. "
                "Such labels make everything at their level less certain and less accurate: look at them (mfgp doctor DATA "
                "--model MODEL lists them), and fit again without what is wrong",
                stacklevel=4,
            )


def _contradicted(
    parts: Sequence[LeftOut], level: int, calibration: Calibration, limit: float
) -> Iterator[tuple[float, str, Frame]]:
    """Of the worst label of each frame and species beyond the limit: deviations of the bulk, how far off, the frame."""
    raw: dict[int, list[tuple[LeftOut, np.ndarray, np.ndarray]]] = defaultdict(list)
    for part in parts:
        for z in np.unique(part.species).tolist():
            own = part.species == z
            scale = calibration.energy[level] if part.kind == "energy" else calibration.forces[level][z]
            variance = scale.weights * part.weight_variance + scale.residual * part.residual_variance
            error = np.abs(part.error[own])
            raw[z].append((part, error, error / np.sqrt(variance + scale.noise * part.noise_variance)[own]))
    for alike in raw.values():
        scores = np.concatenate([score for *_, score in alike])
        usual = bulk(scores)
        if len(scores) < MIN_LABELS or usual == 0.0:
            continue
        for part, error, score in alike:
            worst = int(score.argmax())
            size = float(error[worst]) / (len(part.frame.atoms) ** 0.5 if part.kind == "energy" else 1.0)
            if score[worst] > limit * usual and size > MATTERS[part.kind]:
                off = f"{1e3 * size:.0f} meV/atom" if part.kind == "energy" else f"{size:.2f} eV/Å"
                yield float(score[worst]) / usual, off, part.frame
