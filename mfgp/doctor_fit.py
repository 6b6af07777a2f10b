"""Labels that disagree with everything else a model has seen: leave-one-label-out scores.

A label (the energy of a frame, the force on one atom) with rows A_B and residual r_B, in units of the noise, has the
left-out error and covariance

    e_B = -(I - H_BB)^-1 r_B,        V_B = (I - H_BB)^-1 + diag(residual variance),        H_BB = A_B P^-1 A_B^T

as in leave_one_out, but all other labels of the structure stay in, at its own level and at the others: a wrong energy stands
out against the forces beside it, a wrong force against its neighbours', one level against the next. The score is

    |e_B|_V = sqrt(e_B^T V_B^-1 e_B / n_B),    divided by its median over the labels of its kind, level and species

so that a model whose standard deviations are too wide or too narrow finds the same labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mfgp.doctor_report import Finding, about, examples
from mfgp.frames import Frame, FrameSet
from mfgp.leave_one_out import CrossLevel, LabelledRows, hat, hat_inverse, labelled_parts
from mfgp.progress import Report, silent

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

LIMITS = {"energy": 5.5, "forces": 6.0}  # times the median score; a normal distribution passes 5.5 once in 5000 labels
MIN_LABELS = 8  # of a kind, level and species, for a median to say anything


@dataclass(frozen=True)
class LabelScore:
    """How far a label is from what all others say: score against the median of its like; error as predicted - label.

    kind: energy (error in eV) or forces (norm of the error on `atom`, eV/Å).
    """

    frame: Frame
    kind: str
    atom: int | None
    error: float
    score: float

    @property
    def suspect(self) -> bool:
        return self.score > LIMITS[self.kind]


def label_scores(model: MultiFidelityGP, frames: FrameSet, report: Report = silent) -> list[LabelScore]:
    """Scores of the energies and of the force on every atom of training frames of `model`.

    Raises DataError for frames that it was not trained on.
    """
    model.check_seen(frames)
    joint = CrossLevel.of(model.posterior())
    raw: dict[tuple[str, str, int], list[LabelScore]] = defaultdict(list)
    for i, frame in enumerate(frames):
        for part in labelled_parts(model, joint, frame, model.features.functionals(frame.atoms)):
            for species, score in _scores(joint, part):
                raw[frame.fidelity, score.kind, species].append(score)
        report("leave one label out", i + 1, len(frames), frame.fidelity)
    return [score for alike in raw.values() for score in _against_median(alike)]


def _scores(joint: CrossLevel, part: LabelledRows) -> Iterator[tuple[int, LabelScore]]:
    """Unscaled scores of the labels of one kind of a frame, with the species they belong to (0 for energies)."""
    n = len(part.frame.atoms)
    if part.kind == "energy":
        found = _left_out(joint, part, slice(0, 1))
        if found is not None:
            yield 0, LabelScore(part.frame, "energy", None, float(found[0][0]) * n**0.5, found[1])
    if part.kind == "forces":
        for k, atom in enumerate(np.flatnonzero(part.frame.force_mask).tolist()):
            found = _left_out(joint, part, slice(3 * k, 3 * k + 3))
            if found is not None:
                species = int(part.frame.atoms.numbers[atom])
                yield species, LabelScore(part.frame, "forces", atom, float(found[0].norm()), found[1])


def _left_out(joint: CrossLevel, part: LabelledRows, rows: slice) -> tuple[Tensor, float] | None:
    """Left-out error of some rows, in the unit of the label, and its length in standard deviations.

    None where nothing else determines them.
    """
    block = part.block(rows)
    inverse = hat_inverse(hat(joint, block, block), joint.rounding([block]))
    if inverse is None:
        return None
    error = -inverse @ block.residual
    variance = inverse + torch.diag(block.excess)
    distance = float(error @ torch.linalg.solve(variance, error)) / len(error)
    return error * part.noise, max(distance, 0.0) ** 0.5


def _against_median(alike: Sequence[LabelScore]) -> Iterator[LabelScore]:
    if len(alike) < MIN_LABELS:
        return
    median = float(np.median([s.score for s in alike])) or 1.0
    for s in alike:
        yield LabelScore(s.frame, s.kind, s.atom, s.error, s.score / median)


def fit_checks(scores: Sequence[LabelScore], frames: FrameSet) -> list[Finding]:
    """Findings about labels that the rest of the data contradict, worst first, and about those that have no score.

    scores: of `frames`, which have one for each kind that enough of their like carry.
    """
    out = []
    scored = {id(s.frame) for s in scores}
    if unscored := [f for f in frames if id(f) not in scored and not f.isolated_atom]:
        message = f"{len(unscored)} frames have no leave-one-out score, {examples(unscored)}: "
        message += "labels with a sigma of their own, or too few of their kind."
        out.append(about("info", "leave-one-out", message, unscored))
    for level in dict.fromkeys(s.frame.fidelity for s in scores):
        for kind, unit in (("energy", "eV"), ("forces", "eV/Å")):
            chosen = [s for s in scores if s.suspect and s.kind == kind and s.frame.fidelity == level]
            if chosen:
                worst = sorted(chosen, key=lambda s: -s.score)
                bad = list({id(s.frame): s.frame for s in worst}.values())
                what = "energies" if kind == "energy" else "forces"
                out.append(
                    about(
                        "warning",
                        "leave-one-out",
                        f"fidelity {level!r}: {what} of {len(bad)} frames disagree with all other labels, "
                        f"{examples(bad)}; worst {_named(worst[0], unit)}. Look at them, compute them again, or remove "
                        "them.",
                        bad,
                    )
                )
    return out


def _named(s: LabelScore, unit: str) -> str:
    where = "" if s.atom is None else f"atom {s.atom} ({s.frame.atoms.symbols[s.atom]}), "
    return f"{where}off by {abs(s.error):.2f} {unit}, {s.score:.0f} times the median"
