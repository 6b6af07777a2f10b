"""Labels that look like a slip (another unit, reference or code, a calculation that went wrong): those that a model is
about to learn, against what it expects, and those that it was fitted to, against what all others say.

A label that all others contradict is learned half, and called noise for the rest, with all labels of its level: one energy
off by 1 eV among 30 frames of four atoms makes the forces twice as wrong. Judged are left-out errors over their calibrated
standard deviations (without novelty), over those of the bulk of their like (scores.bulk): so many wrong labels can be among
them, and none hides by widening what is expected of all.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from mfgp.calibration import Calibration
from mfgp.calibration_fit import MIN_STRUCTURES
from mfgp.frames import Frame, FrameSet
from mfgp.leave_one_out import LeftOut
from mfgp.prediction import Prediction
from mfgp.scores import MIN_LABELS, bulk

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

LEARNED = "They are learned nevertheless; the model from before is in its file"
DEVIATIONS, LEAST = 8.0, 0.1  # standard deviations and eV/atom, both of which an energy has to be off by
COMPONENTS, ALIKE, USUAL = 10, 0.8, (0.6, 15.0)  # of forces: how many, their cosine, factors that are no surprise
CERTAIN, USUAL_THEN = 0.999, 1.7  # cosine where the model knows such structures, and the upper factor there
UNITS = {"Hartree/Bohr": 51.422, "Ry/Bohr": 25.711, "eV/Bohr": 1.8897, "kcal/mol/Å": 0.043364}  # in eV/Å
CONTRADICTED = {"energy": 6.0, "forces": 12.0}  # deviations of the bulk; good labels: docs/doctor.md
PASSED_OVER = 0.25  # share of the structures of a level
KINDS = {"energy": ("energy", "energies"), "forces": ("forces", "forces"), "virial": ("stress", "stresses")}
MATTERS = {"energy": 0.002, "forces": 0.1}  # eV/atom, eV/Å; nearly exact labels have errors of heavy tails below


def warn_of_surprises(model: MultiFidelityGP, frames: FrameSet, then: str = LEARNED) -> None:
    """Warn of energies that `model` would not have thought possible, before it learns them, and of forces that are a factor
    times what it expects; and of isolated atoms that it has no term for. then: what comes of the former."""
    _warn_of_isolated(model, frames)
    own = [f for f in frames if not f.isolated_atom and (f.energy is not None or f.forces is not None)]
    predictors = {level: model.predictor(level) for level in {f.fidelity for f in own}}
    expected = [(f, predictors[f.fidelity](f.atoms, "none")) for f in own]
    energies = sum(f.energy is not None for f in own)
    found = []
    for frame, p in expected:
        if frame.energy is None or (off := abs(p.energy - frame.energy)) <= LEAST * (n := len(frame.atoms)):
            continue
        std = predictors[frame.fidelity](frame.atoms, "energies").energy_std or 0.0
        std = float(np.hypot(std, frame.energy_sigma or 0.0))
        if off > DEVIATIONS * std:
            found.append((off / n, std / n, frame))
    if found:
        off, std, frame = max(found, key=lambda x: x[0])
        warnings.warn(
            f"{len(found)} of {energies} new energies are far from what the model expects, most {frame.source} "
            f"({frame.atoms.symbols}, {frame.fidelity}): {_energy(frame) / len(frame.atoms):.3f} eV/atom, "
            f"{off:.2f} off where {std:.3f} was expected. Is it a total energy in eV, of the reference and settings of the "
            f"others? {then}",
            stacklevel=3,
        )
    for level in model.levels:
        _warn_of_factor(level, force_factor([(f, p) for f, p in expected if f.fidelity == level]), then)


def _warn_of_isolated(model: MultiFidelityGP, frames: FrameSet) -> None:
    """Isolated atoms of elements without a column in the vacuum term, which only a fit makes."""
    term = model.columns.vacuum
    known = set() if term is None else set(term.species)
    new = {int(f.atoms.numbers[0]) for f in frames if f.isolated_atom and f.energy is not None} - known
    if new:
        names = ", ".join(chemical_symbols[z] for z in sorted(new))
        warnings.warn(
            f"isolated atoms of {names}: the fit had none of them (or an earlier version made it), so they change e0 alone "
            "and are not predicted as labelled. Energies of atoms that leave, and atomisation energies, need a new fit with "
            "these frames",
            stacklevel=4,
        )


def _warn_of_factor(level: str, factor: float | None, then: str) -> None:
    if factor is None:
        return
    unit = next((name for name, size in UNITS.items() if abs(factor * size - 1.0) < 0.1), None)
    like = f", as those in {unit} are" if unit is not None else ", as gradients of the energy are" if factor < 0 else ""
    warnings.warn(
        f"the new forces at {level} are {factor:.3g} times what the model expects{like}. Are they forces, in eV/Å? {then}",
        stacklevel=4,
    )


def force_factor(pairs: Sequence[tuple[Frame, Prediction]]) -> float | None:
    """sum F.F' / sum F'^2 of forces F and expected ones F', where it is far from 1 and they are alike but for it.

    Far from its data a model expects too little, never too much: EMT alloys have factors of 2 - 10 there, cosines of 0.8 -
    0.996, so that between USUAL_THEN and USUAL[1] the cosine has to be above CERTAIN.
    """
    given = [(f.forces[f.force_mask], p.forces[f.force_mask]) for f, p in pairs if f.forces is not None]
    if not given:
        return None
    label, model = (np.concatenate([pair[k].ravel() for pair in given]) for k in (0, 1))
    lengths = float(np.linalg.norm(label) * np.linalg.norm(model))
    if np.count_nonzero(label) < COMPONENTS or lengths == 0.0:
        return None
    cosine, factor = float(label @ model / lengths), float(label @ model / (model @ model))
    most = USUAL_THEN if cosine > CERTAIN else USUAL[1]
    return factor if abs(cosine) > ALIKE and not USUAL[0] <= factor <= most else None


def _energy(frame: Frame) -> float:
    assert frame.energy is not None
    return frame.energy


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


def _warn_of_passed_over(frames: FrameSet, left_out: Sequence[LeftOut], fitted: bool) -> set[str]:
    """Where many of the frames could not be left out a calibration rests on those that are easy to predict; the levels.

    fitted: whether there is a calibration; where there is none, of levels that have enough structures for one.
    """
    found, told = {id(part.frame) for part in left_out}, set[str]()
    for level in frames.levels:
        own = [f for f in frames.of(level) if not f.isolated_atom]
        missing = sum(id(f) not in found for f in own)
        if missing > PASSED_OVER * len(own) and (fitted or len(own) >= MIN_STRUCTURES):
            rest = "rest on the others" if fitted and missing < len(own) else "are the posterior's own"
            warnings.warn(
                f"fidelity {level!r}: {missing} of {len(own)} structures cannot be left out, since nothing else says what "
                f"they are, or rounding hides it beside nearly exact labels. Standard deviations {rest} and may be too "
                "narrow; more structures would help",
                stacklevel=6,
            )
            told.add(level)
    return told


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
