"""Labels that disagree with everything else a model has seen: leave-one-label-out scores.

A label (the energy of a frame, the force on one atom) with rows A_B and residual r_B, in units of the noise, has with
H_BB = A_B P^-1 A_B^T the left-out error and covariance

    e_B = -(I - H_BB)^-1 r_B,        V_B = a [(I - H_BB)^-1 - I] + r diag(residual variance) + b I

as in leave_one_out, but all other labels of the structure stay in, at its own level and at the others: a wrong energy stands
out against the forces beside it, a wrong force against its neighbours', one level against the next. The factors a, r, b
are those of the calibration (1 without one; novelty and the scatter by composition, to which a wrong label itself adds,
are left out). Without them the variance that the inducing points do not carry can drown the rest, and with it what tells a
structure that the model knows badly from a label that is wrong. The score is

    |e_B|_V = sqrt(e_B^T V_B^-1 e_B / n_B),    over its 80 % quantile among its kind, level and species

in standard deviations of the bulk (the quantile of a normal distribution counts as 1.28): a model whose standard deviations
are too wide or too narrow finds the same labels, one whose errors have a heavy tail, as those of a small model have, does
not take its tail for wrong labels, and up to one label in five may be wrong. A score says that a label and the model
disagree; which of them is wrong it cannot say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import chdtri

from mfgp.calibration import Scale
from mfgp.doctor_report import SEE_ALL, Finding, about, examples
from mfgp.frames import Frame, FrameSet
from mfgp.leave_one_out import LabelledRows, Smoother, hat_inverse, labelled_parts
from mfgp.progress import Report, silent

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
LIMITS = {
    "energy": 3.7,
    "forces": 5.3,
}  # robust standard deviations; a normal distribution passes 3.7 once in 5000 labels
QUANTILE = 0.8
MIN_LABELS = 8  # of a kind, level and species, for a quantile to say anything
LISTED = 10  # labels in a message


@dataclass(frozen=True)
class LabelScore:
    """How far a label is from what all others say.

    kind: energy (eV, total) or forces (on `atom`, eV/Å). deviation: predicted without the label - label, [1] or [3]. std:
    what is expected of it if the label is as good as the others (of one component of a force); calibrated where the model
    is. score: length of the deviation in standard deviations of the bulk of its like.
    """

    frame: Frame
    kind: str
    atom: int | None
    deviation: Array
    std: float
    score: float

    @property
    def suspect(self) -> bool:
        return self.score > LIMITS[self.kind]

    @property
    def error(self) -> float:
        """The deviation of an energy, the length of that of a force."""
        return float(self.deviation[0]) if self.kind == "energy" else float(np.linalg.norm(self.deviation))

    @property
    def label(self) -> Array:
        """The label itself, [1] eV or [3] eV/Å."""
        values = self.frame.energy if self.atom is None else self._forces()[self.atom]
        return np.atleast_1d(np.asarray(values, dtype=float))

    def _forces(self) -> Array:
        assert self.frame.forces is not None
        return self.frame.forces

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: energies in eV (total), forces in eV/Å."""
        return {
            "frame": self.frame.source,
            "formula": str(self.frame.atoms.symbols),
            "fidelity": self.frame.fidelity,
            "kind": self.kind,
            "atom": self.atom,
            "label": self.label.tolist(),
            "predicted": (self.label + self.deviation).tolist(),
            "deviation": self.deviation.tolist(),
            "std": self.std,
            "score": self.score,
        }


def label_scores(model: MultiFidelityGP, frames: FrameSet, report: Report = silent) -> list[LabelScore]:
    """Scores of the energies and of the force on every atom of training frames of `model`.

    Raises DataError for frames that it was not trained on.
    """
    model.check_seen(frames)
    smoother = Smoother.of(model.posterior())
    raw: dict[tuple[str, str, int], list[LabelScore]] = defaultdict(list)
    for i, frame in enumerate(frames):
        for part in labelled_parts(model, smoother, frame, model.features.functionals(frame.atoms)):
            for species, score in _scores(model, smoother, part):
                raw[frame.fidelity, score.kind, species].append(score)
        report("leave one label out", i + 1, len(frames), frame.fidelity)
    return [score for alike in raw.values() for score in _in_bulk_deviations(alike)]


def _scores(model: MultiFidelityGP, smoother: Smoother, part: LabelledRows) -> Iterator[tuple[int, LabelScore]]:
    """Unscaled scores of the labels of one kind of a frame, with the species they belong to (0 for energies)."""
    if part.kind == "energy":
        scale = Scale() if model.calibration is None else model.calibration.energy[part.level]
        score = _left_out(smoother, part, None, slice(0, 1), scale)
        if score is not None:
            yield 0, score
    if part.kind == "forces":
        for k, atom in enumerate(np.flatnonzero(part.frame.force_mask).tolist()):
            species = int(part.frame.atoms.numbers[atom])
            scale = Scale() if model.calibration is None else model.calibration.forces[part.level][species]
            score = _left_out(smoother, part, atom, slice(3 * k, 3 * k + 3), scale)
            if score is not None:
                yield species, score


def _left_out(smoother: Smoother, part: LabelledRows, atom: int | None, rows: slice, scale: Scale) -> LabelScore | None:
    """Left-out deviation of some rows, its standard deviation and its length in these; None where nothing else says."""
    block = part.block(rows)
    inverse = hat_inverse(block.turned @ block.turned.T, smoother.smallest([block]))
    if inverse is None:
        return None
    error, one = -inverse @ block.residual, torch.eye(len(inverse)).to(inverse)
    variance = scale.weights * (inverse - one) + scale.residual * torch.diag(block.excess) + scale.noise * one
    score = max(float(error @ torch.linalg.solve(variance, error)) / len(error), 0.0) ** 0.5
    unit = part.noise * (len(part.frame.atoms) ** 0.5 if part.kind == "energy" else 1.0)  # eV or eV/Å
    std = unit * float(variance.diagonal().mean()) ** 0.5
    return LabelScore(part.frame, part.kind, atom, (unit * error).cpu().numpy(), std, score)


def _in_bulk_deviations(alike: Sequence[LabelScore]) -> Iterator[LabelScore]:
    """The same with scores over their quantile, which is 1 for a normal distribution of the stated widths."""
    if len(alike) < MIN_LABELS:
        return
    n = len(alike[0].deviation)
    normal = float(chdtri(n, 1.0 - QUANTILE) / n) ** 0.5
    bulk = float(np.quantile([s.score for s in alike], QUANTILE)) / normal or 1.0
    for s in alike:
        yield replace(s, score=s.score / bulk)


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
        for kind in LIMITS:
            chosen = [s for s in scores if s.suspect and s.kind == kind and s.frame.fidelity == level]
            if chosen:
                out.append(_contradicted(level, kind, sorted(chosen, key=lambda s: -s.score)))
    return out


def _contradicted(level: str, kind: str, worst: Sequence[LabelScore]) -> Finding:
    bad = list({id(s.frame): s.frame for s in worst}.values())
    message = f"fidelity {level!r}: {'energies' if kind == 'energy' else 'forces'} of {len(bad)} "
    message += f"{'frame disagrees' if len(bad) == 1 else 'frames disagree'} with all other labels:"
    message += "".join(f"\n  {_described(s)}" for s in worst[:LISTED])
    if len(worst) > LISTED:
        message += f"\n  and {len(worst) - LISTED} more labels ({SEE_ALL})"
    message += (
        "\n  The model may be wrong instead, above all a small one, on a structure unlike the others: see whether "
    )
    message += "a model with more inducing points names them too, and look at them, before you compute them again."
    return about("warning", "leave-one-out", message, bad)


def _described(s: LabelScore) -> str:
    """One line about a label: where, what, and how far from what the others say."""
    where = f"{s.frame.source} ({s.frame.atoms.symbols})"
    far = f"{s.score:.1f} standard deviations of the bulk"
    if s.atom is None:
        n = len(s.frame.atoms)
        values = f"label {s.label[0] / n:.4f} eV/atom; predicted without it - label = {1e3 * s.error / n:+.1f} meV/atom"
        return f"{where}: {values}, std {1e3 * s.std / n:.1f}, {far}"
    label, deviation = (f"({', '.join(f'{x:+.2f}' for x in v)})" for v in (s.label, s.deviation))
    atom = f"atom {s.atom} ({s.frame.atoms.symbols[s.atom]})"
    values = f"label {label} eV/Å; predicted without it - label = {deviation} eV/Å, {s.error:.2f} long"
    return f"{where}, {atom}: {values}, std {s.std:.2f} a component, {far}"
