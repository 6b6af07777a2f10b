"""Suspect labels left out, everything fitted again, all labels scored again: large errors hide small ones.

A wrong label raises what its level takes for noise, so that a smaller error beside it is no surprise. In each round the
suspects of the one before are left out of the fit (label by label; of a frame with more than FEW all), with the descriptor
and the inducing points of the first. What is left in is scored in closed form as before; what is left out by the same
formula for labels that a model has not seen, with A_B its rows and r_B its residual,

    e_B = -r_B,        V_B = a A_B P^-1 A_B^T + r diag(residual variance) + b I

so that a good label that was left out by mistake is cleared. It ends when a round names what was left out in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mfgp.base.progress import bars
from mfgp.doctor.fit import LabelScore, Place, scores_and_cells
from mfgp.doctor.report import Finding, about, examples
from mfgp.errors import NumericalError
from mfgp.frames import Frame, FrameSet

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

ROUNDS = 3  # fits without suspects, at most
FEW = 3  # suspect labels of a frame; with more of them all of its labels are left out
MOST = 0.2  # share of the frames of a level that may be left out: the bulk of the scores must be of good labels
WORTH_SAYING = 0.95  # of left-out errors with allowance for the cell over those without

Labels = frozenset[Place]  # of a frame


@dataclass(frozen=True)
class Scoring:
    """Scores of the last round and of `model` itself; how many labels the last fit did without, and of which frames.

    cells: levels whose energies have errors that follow the cell, in the last round, as scores_and_cells has them.
    why: what kept suspects in, if something did.
    """

    scores: list[LabelScore]
    first: list[LabelScore]
    cells: dict[str, tuple[float, float]]
    left_out: int = 0
    frames: tuple[Frame, ...] = ()
    why: str = ""

    def findings(self) -> list[Finding]:
        """What was done beside scoring, and what the scores make allowance for."""
        much = {level: found for level, found in self.cells.items() if found[1] < WORTH_SAYING * found[0]}
        out = [_of_cells(level, *found, self.scores) for level, found in much.items()]
        message = "large errors hide small ones, "
        if self.left_out:
            message += (
                f"so {self.left_out} labels of {len(self.frames)} frames, {examples(self.frames)}, were left out, "
            )
            message += "everything was fitted again, and all labels were scored by that fit."
        elif self.why and any(s.suspect and s.kind != "moment" for s in self.scores):
            message += f"and nothing was fitted again without the suspects: {self.why}."
        else:
            return out
        return [*out, about("info", "leave-one-out", message, self.frames)]


def _of_cells(level: str, plain: float, rest: float, scores: Sequence[LabelScore]) -> Finding:
    """That energies of a level have errors that follow the cell; rms of left-out ones without and with allowance for it."""
    atoms = float(np.median([len(s.frame.atoms) for s in scores if s.kind == "energy" and s.frame.fidelity == level]))
    message = (
        f"fidelity {level!r}: energies hold a part that follows the cell and that the model does not have: from those "
    )
    message += (
        f"of like cells they are known to {rest * atoms**0.5:.2g} eV in {atoms:.0f} atoms, from the model alone to "
    )
    message += (
        f"{plain * atoms**0.5:.2g}. Too few k-points do that, or k-points or a basis set that change with the cell; "
    )
    message += "with more inducing points it may be less. Scores of energies make allowance for it, predictions cannot."
    return about("info", "errors by cell", message)


def scores_without_suspects(
    model: MultiFidelityGP, frames: FrameSet, rounds: int = ROUNDS, progress: bool = False
) -> Scoring:
    """Scores of the labels of training frames of `model`, by fits without the suspects where there are any.

    Nothing is fitted again where `frames` are not all of its training data. Raises DataError for frames that it was not
    trained on; `model` stays as it is.
    """
    with bars(progress) as report:
        scores, cells = scores_and_cells(model, frames, report)
        first = scores
    other = "these are not the model's training data to the last digit, all of them and no others"
    why, out = "" if set(frames.frame_hashes()) == model.seen else other, dict[int, Labels]()
    for _ in range(0 if why else rounds):
        found = _suspects(scores)
        if not _few(frames, found):
            why = f"they are in more than {100 * MOST:.0f} % of the frames of a level"
        if why or found == out:
            break
        rest = (_without(f, found.get(id(f))) for f in frames)
        kept = FrameSet(model.levels, tuple(f for f in rest if f.labelled or f.magmoms is not None))  # moments stay in
        try:
            fitted = _fitted_again(model, kept, progress)
        except NumericalError as error:  # what was found until then is worth saying
            why = f"that fit failed ({error})"
            break
        out = found
        with bars(progress) as report:
            scores, cells = scores_and_cells(fitted, frames, report, out)
    left_out = [(f, out[id(f)]) for f in frames if id(f) in out]
    labels, whose = sum(len(labels) for _, labels in left_out), tuple(f for f, _ in left_out)
    return Scoring(scores, first, cells, labels, whose, why)


def _suspects(scores: Sequence[LabelScore]) -> dict[int, Labels]:
    """Suspect energies, forces and stresses by frame, all where there are more than FEW."""
    found: dict[int, set[Place]] = {}
    every: dict[int, set[Place]] = {}
    for s in scores:
        if s.kind != "moment":
            unscored: set[Place] = set() if s.frame.stress is None else {"stress"}  # where few frames have a stress
            every.setdefault(id(s.frame), unscored).add(s.place)
            if s.suspect:
                found.setdefault(id(s.frame), set()).add(s.place)
    return {key: frozenset(every[key] if len(own) > FEW else own) for key, own in found.items()}


def _few(frames: FrameSet, found: dict[int, Labels]) -> bool:
    """Whether every level keeps enough of its frames."""
    levels = (frames.of(level) for level in frames.levels)
    return all(sum(id(f) in found for f in own) <= MOST * len(own) for own in levels)


def _without(frame: Frame, labels: Labels | None) -> Frame:
    """The frame without some of its labels."""
    if labels is None:
        return frame
    atoms = np.array([a for a in labels if isinstance(a, int)], dtype=int)
    mask = frame.force_mask.copy()
    mask[atoms] = False
    rest = replace(frame, force_mask=mask, forces=frame.forces if mask.any() else None)
    rest = replace(rest, energy=None) if None in labels else rest
    return replace(rest, stress=None) if "stress" in labels else rest


def _fitted_again(model: MultiFidelityGP, frames: FrameSet, progress: bool) -> MultiFidelityGP:
    """The same kind of model, fitted to other frames; what the first fit warned of is not said again."""
    baselines = {b.name: b for b in model.baselines}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return type(model).fit(frames, model.config, baselines=baselines, features=model.features, progress=progress)
