"""Warnings of labels that all others contradict, and of left-out errors too few to calibrate on.

A label that all others contradict is learned half, and called noise for the rest, with all labels of its level: one energy
off by 1 eV among 30 frames of four atoms makes the forces twice as wrong. Judged are left-out errors over their calibrated
standard deviations (without novelty), over those of the bulk of their like (scores.bulk): so many wrong labels can be among
them, and none hides by widening what is expected of all.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from mfgp.calibration.calibration import MIN_STRUCTURES, Calibration
from mfgp.calibration.leave_one_out import LeftOut
from mfgp.calibration.scores import MIN_LABELS, bulk
from mfgp.frames import Frame, FrameSet

CONTRADICTED = {"energy": 6.0, "forces": 12.0}  # deviations of the bulk; good labels: docs/doctor.md
PASSED_OVER = 0.25  # share of the structures of a level
KINDS = {"energy": ("energy", "energies"), "forces": ("forces", "forces"), "virial": ("stress", "stresses")}
MATTERS = {"energy": 0.002, "forces": 0.1}  # eV/atom, eV/Å; nearly exact labels have errors of heavy tails below


def warn_of_left_out(frames: FrameSet, sample: FrameSet, calibration: Calibration, left_out: Sequence[LeftOut]) -> None:
    """Warn of what left-out errors of a `sample` of the training frames say of labels and of the `calibration` that was
    fitted to them."""
    told = _warn_of_passed_over(sample, left_out, bool(calibration.fitted))
    rest = [level for level in frames.levels if level not in told]
    if calibration.fitted:
        _warn_of_few(rest, frames, left_out)
    elif rest:
        at = f" at {', '.join(rest)}" if told else ""
        why = f"too few structures to calibrate on{at}; standard deviations are the posterior's own"
        warnings.warn(why, stacklevel=5)
    _warn_of_contradictions(frames.levels, calibration, left_out)


def passed_over(frames: FrameSet, left_out: Sequence[LeftOut]) -> dict[str, tuple[int, int]]:
    """Of each level, how many of its frames could not be left out, and how many it has, where that is a large share."""
    found, out = {id(part.frame) for part in left_out}, {}
    for level in frames.levels:
        own = [f for f in frames.of(level) if not f.isolated_atom]
        missing = sum(id(f) not in found for f in own)
        if missing > PASSED_OVER * len(own):
            out[level] = missing, len(own)
    return out


def _warn_of_passed_over(frames: FrameSet, left_out: Sequence[LeftOut], fitted: bool) -> set[str]:
    """Where many of the frames could not be left out a calibration rests on those that are easy to predict; the levels.

    fitted: whether there is a calibration; where there is none, of levels that have enough structures for one.
    """
    told = set[str]()
    for level, (missing, of) in passed_over(frames, left_out).items():
        if fitted or of >= MIN_STRUCTURES:
            warnings.warn(
                f"fidelity {level!r}: predictions of {missing} of {of} structures could not be compared with their labels: "
                "without a structure's own labels nothing says what they are, or these are so nearly exact that rounding "
                f"hides the difference. {consequence(missing, of, fitted)}",
                stacklevel=6,
            )
            told.add(level)
    return told


def consequence(missing: int, of: int, fitted: bool) -> str:
    """What that means for a user, and what to do."""
    rest = f"are scaled to the errors of the other {of - missing}" if fitted and missing < of else "were never checked"
    return (
        f"So the standard deviations there {rest}, and of new structures they may be too small: label more structures like "
        "these, several of each composition and kind, or check with `mfgp evaluate` on labels that were held out"
    )


def _warn_of_few(levels: Sequence[str], frames: FrameSet, left_out: Sequence[LeftOut]) -> None:
    """Kinds of labels that a level has, but that too few left-out structures have to be calibrated on."""
    count = Counter((part.frame.fidelity, part.kind) for part in left_out)
    for level in levels:
        own, few = [f for f in frames.of(level) if not f.isolated_atom], []
        for kind, (label, name) in KINDS.items():
            n = max(count[level, kind], count[level, "forces"] if kind == "virial" else 0)  # whose factors virials take
            if n < MIN_STRUCTURES and (labelled := sum(getattr(f, label) is not None for f in own)):
                few.append(f"{name} of {count[level, kind]} left-out structures (of {labelled})")
        if few:
            warnings.warn(
                f"fidelity {level!r}: {' and '.join(few)} are too few to calibrate on (what symmetry makes zero does not "
                "count, nor structures that nothing else says enough of); their standard deviations are the posterior's own "
                "and may be too narrow. Labels of more structures would help",
                stacklevel=6,
            )


def _warn_of_contradictions(levels: Sequence[str], calibration: Calibration, left_out: Sequence[LeftOut]) -> None:
    """Labels that all others contradict."""
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
                "Look at them (mfgp doctor DATA --model MODEL lists them). Wrong labels make everything at their level less "
                "certain and less accurate: fit again without them. The furthest of a few structures of their kind can look "
                "like that, too: more like them would help",
                stacklevel=6,
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
