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

Magnetic moments are scored too, those of an element in a frame left out together (leave_one_out.left_out_moments). They
tell of charges: where the moments of a frame disagree with all others, its energies and forces may do so because the
electrons are elsewhere, which is another charge state and not a wrong label. An element with moments of both signs has no
such scores: its geometry does not say which sign an atom takes.
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
from mfgp.features import Functionals
from mfgp.frames import Frame, FrameSet
from mfgp.leave_one_out import LabelledRows, Smoother, hat_inverse, labelled_parts, left_out_moments
from mfgp.progress import Report, silent

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
LIMITS = {
    "energy": 3.7,
    "forces": 5.3,
    "moment": 3.7,
}  # robust standard deviations; a normal distribution passes 3.7 once in 5000 labels
CHARGE = 0.2  # Bohr magnetons; high-spin ions of 3d metals change by 0.5 and more with their charge
QUANTILE = 0.8
MIN_LABELS = 8  # of a kind, level and species, for a quantile to say anything
LISTED = 10  # labels in a message


@dataclass(frozen=True)
class LabelScore:
    """How far a label is from what all others say.

    kind: energy (eV, total), forces (on `atom`, eV/Å) or moment (of `atom`, Bohr magnetons). deviation: predicted without
    the label - label, [1] or [3]. std: what is expected of it if the label is as good as the others (of one component of a
    force); of energies and forces calibrated where the model is. score: length of the deviation in standard deviations of
    the bulk of its like.
    """

    frame: Frame
    kind: str
    atom: int | None
    deviation: Array
    std: float
    score: float

    @property
    def suspect(self) -> bool:
        return self.score > LIMITS[self.kind] and (self.kind != "moment" or abs(self.error) > CHARGE)

    @property
    def error(self) -> float:
        """The deviation of an energy or a moment, the length of that of a force."""
        return float(np.linalg.norm(self.deviation)) if self.kind == "forces" else float(self.deviation[0])

    @property
    def label(self) -> Array:
        """The label itself, [1] eV, [3] eV/Å or [1] Bohr magnetons."""
        if self.kind == "energy":
            return np.array([self.frame.energy], dtype=float)
        by_atom = self.frame.forces if self.kind == "forces" else self.frame.magmoms
        assert by_atom is not None
        return np.atleast_1d(by_atom[self.atom]).astype(float)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: energies in eV (total), forces in eV/Å, moments in Bohr magnetons."""
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
    """Scores of the energies, of the force on every atom and of the moments of training frames of `model`.

    Raises DataError for frames that it was not trained on.
    """
    model.check_seen(frames)
    smoother = Smoother.of(model.posterior())
    raw: dict[tuple[str, str, int], list[LabelScore]] = defaultdict(list)
    for i, frame in enumerate(frames):
        functionals = model.features.functionals(frame.atoms)
        for part in labelled_parts(model, smoother, frame, functionals):
            for species, score in _scores(model, smoother, part):
                raw[frame.fidelity, score.kind, species].append(score)
        for species, score in _moment_scores(model, frame, functionals):
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


def _moment_scores(model: MultiFidelityGP, frame: Frame, functionals: Functionals) -> Iterator[tuple[int, LabelScore]]:
    """Unscaled scores of the moments of a frame, with the species they belong to."""
    if frame.magmoms is None or frame.isolated_atom:
        return
    basis = model.features.basis
    for index, columns in basis.blocks():
        species = basis.species[index]
        posterior = model.sites.get((model.level(frame.fidelity), species))
        own = np.flatnonzero(frame.atoms.numbers == species)
        if posterior is None or not len(own):
            continue
        phi = functionals.local[torch.from_numpy(own).to(functionals.local.device), columns]  # [atom, M_s]
        left = left_out_moments(posterior, phi, torch.from_numpy(frame.magmoms[own]).to(phi))
        if left is not None:
            mean, stds = (value.cpu().numpy() for value in left)
            for atom, deviation, std in zip(own.tolist(), mean - frame.magmoms[own], stds.tolist(), strict=True):
                yield species, LabelScore(frame, "moment", atom, np.array([deviation]), std, abs(deviation) / std)


def _in_bulk_deviations(alike: Sequence[LabelScore]) -> Iterator[LabelScore]:
    """The same with scores over their quantile, which is 1 for a normal distribution of the stated widths."""
    if len(alike) < MIN_LABELS:
        return
    moments = [s.label[0] for s in alike if s.kind == "moment"]
    if moments and min(moments) < -CHARGE and max(moments) > CHARGE:
        return
    n = len(alike[0].deviation)
    normal = float(chdtri(n, 1.0 - QUANTILE) / n) ** 0.5
    bulk = float(np.quantile([s.score for s in alike], QUANTILE)) / normal or 1.0
    for s in alike:
        yield replace(s, score=s.score / bulk)


def fit_checks(scores: Sequence[LabelScore], frames: FrameSet) -> list[Finding]:
    """Findings about labels that the rest of the data contradict, worst first, and about those that have no score.

    scores: of `frames`, which have one for each kind that enough of their like carry. Labels of frames whose moments
    disagree with all others, too, are in a finding of their own.
    """
    out = []
    scored = {id(s.frame) for s in scores if s.kind != "moment"}
    if unscored := [f for f in frames if id(f) not in scored and not f.isolated_atom]:
        message = f"{len(unscored)} frames have no leave-one-out score, {examples(unscored)}: "
        message += "labels with a sigma of their own, or too few of their kind."
        out.append(about("info", "leave-one-out", message, unscored))
    charged = {id(f) for f in other_moments(scores)}
    for level in dict.fromkeys(s.frame.fidelity for s in scores):
        suspects = sorted((s for s in scores if s.suspect and s.frame.fidelity == level), key=lambda s: -s.score)
        for kind in ("energy", "forces"):
            if chosen := [s for s in suspects if s.kind == kind and id(s.frame) not in charged]:
                out.append(_contradicted(level, kind, chosen))
        if chosen := [s for s in suspects if id(s.frame) in charged]:
            out.append(_moments_too(level, chosen))
    return out


def other_moments(scores: Sequence[LabelScore]) -> list[Frame]:
    """Frames of which a magnetic moment disagrees with all others."""
    return _frames_of([s for s in scores if s.kind == "moment" and s.suspect])


def _contradicted(level: str, kind: str, worst: Sequence[LabelScore]) -> Finding:
    bad = _frames_of(worst)
    message = f"fidelity {level!r}: {'energies' if kind == 'energy' else 'forces'} of {len(bad)} "
    message += f"{'frame disagrees' if len(bad) == 1 else 'frames disagree'} with all other labels:"
    message += _listed(worst)
    message += (
        "\n  The model may be wrong instead, above all a small one, on a structure unlike the others: see whether "
    )
    message += "a model with more inducing points names them too, and look at them, before you compute them again."
    return about("warning", "leave-one-out", message, bad)


def _moments_too(level: str, worst: Sequence[LabelScore]) -> Finding:
    bad = _frames_of(worst)
    message = f"fidelity {level!r}: magnetic moments of {len(bad)} "
    message += (
        f"{'frame disagrees' if len(bad) == 1 else 'frames disagree'} with all others; these and other labels there:"
    )
    message += _listed(worst)
    message += (
        "\n  The electrons may be elsewhere than in frames like these. Another charge state is no wrong label, but a "
    )
    message += (
        "start from the moments of the other charge order may end lower. Or the labels belong to another structure, "
    )
    message += "or the model has seen too few frames like it."
    return about("warning", "other moments", message, bad)


def _frames_of(worst: Sequence[LabelScore]) -> list[Frame]:
    return list({id(s.frame): s.frame for s in worst}.values())


def _listed(worst: Sequence[LabelScore]) -> str:
    more = f"\n  and {len(worst) - LISTED} more labels ({SEE_ALL})" if len(worst) > LISTED else ""
    return "".join(f"\n  {_described(s)}" for s in worst[:LISTED]) + more


def _described(s: LabelScore) -> str:
    """One line about a label: where, what, and how far from what the others say."""
    where = f"{s.frame.source} ({s.frame.atoms.symbols})"
    far = f"{s.score:.1f} standard deviations of the bulk"
    if s.atom is None:
        n = len(s.frame.atoms)
        values = f"label {s.label[0] / n:.4f} eV/atom; predicted without it - label = {1e3 * s.error / n:+.1f} meV/atom"
        return f"{where}: {values}, std {1e3 * s.std / n:.1f}, {far}"
    atom = f"atom {s.atom} ({s.frame.atoms.symbols[s.atom]})"
    if s.kind == "moment":
        values = (
            f"moment {s.label[0]:.2f} Bohr magnetons; {s.label[0] + s.error:.2f} is predicted from the other frames"
        )
        return f"{where}, {atom}: {values}, std {s.std:.2f}, {far}"
    label, deviation = (f"({', '.join(f'{x:+.2f}' for x in v)})" for v in (s.label, s.deviation))
    values = f"label {label} eV/Å; predicted without it - label = {deviation} eV/Å, {s.error:.2f} long"
    return f"{where}, {atom}: {values}, std {s.std:.2f} a component, {far}"
