"""Labels that disagree with everything else a model has seen: leave-one-label-out scores.

A label (the energy of a frame, its stress, the force on one atom) with rows A_B and residual r_B, in units of the noise,
has with H_BB = A_B Q^-1 A_B^T (leave_one_out.py) the left-out error and covariance

    e_B = -(I - H_BB)^-1 r_B,        V_B = a [(I - H_BB)^-1 - I] + r diag(residual variance) + b I

as there, but all other labels of the structure stay in, at its own level and at the others: a wrong energy stands
out against the forces beside it, a wrong force against its neighbours', one level against the next. The factors a, r, b
are those of the calibration (1 without one; novelty and the scatter by composition, to which a wrong label itself adds,
are left out). Without them the variance that the inducing points do not carry can drown the rest, and with it what tells a
structure that the model knows badly from a label that is wrong. The score is

    |e_B|_V = sqrt(e_B^T V_B^-1 e_B / n_B),    over its 80 % quantile among its kind, level and species

in standard deviations of the bulk (the quantile of a normal distribution counts as 1.28; of n_B components, where symmetry
leaves fewer of some stresses than of others, as that of the root of chi^2 / n_B): a model whose standard deviations
are too wide or too narrow finds the same labels, one whose errors have a heavy tail, as those of a small model have, does
not take its tail for wrong labels, and up to one label in five may be wrong. A score says that a label and the model
disagree; which of them is wrong it cannot say. Energies are left out one by one as well, but an error that they share with
those of like cells is expected of them (cell_errors.py).

Magnetic moments are scored too, those of an element in a frame left out together (leave_one_out.left_out_moments). They
tell of charges: where the moments of a frame disagree with all others, its energies and forces may do so because the
electrons are elsewhere, which is another charge state and not a wrong label. An element with moments of both signs has no
such scores: its geometry does not say which sign an atom takes.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mfgp.base.progress import Report, silent
from mfgp.calibration.calibration import Scale
from mfgp.calibration.leave_one_out import LabelledRows, Smoother, hat_inverse, labelled_parts, left_out_moments
from mfgp.calibration.scores import MIN_LABELS, bulk
from mfgp.doctor.cell_errors import TOGETHER, CellErrors, Energies, cell_errors, rms, without_doubtful
from mfgp.frames import Frame, FrameSet
from mfgp.gp.functionals import Functionals
from mfgp.gp.observations import components

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
Place: TypeAlias = int | str | None  # of a label in its frame: None its energy, "stress", else the force on an atom
LIMITS = {
    "energy": 3.7,
    "forces": 5.3,
    "stress": 3.7,
    "moment": 3.7,
}  # robust standard deviations; a normal distribution passes 3.7 once in 5000 labels
SECOND_LOOK = 2.7  # of energies; a normal distribution passes it once in 144
CHARGE = 0.2  # Bohr magnetons; high-spin ions of 3d metals change by 0.5 and more with their charge


@dataclass(frozen=True)
class LabelScore:
    """How far a label is from what all others say.

    kind: energy (eV, total), forces (on `atom`, eV/Å), stress (eV/Å^3) or moment (of `atom`, Bohr magnetons). deviation:
    predicted without the label - label, [1], [3] or, of a stress, [6] with zeros where symmetry leaves nothing. std: what is
    expected of it if the label is as good as the others (of one component of a force, of one on the diagonal of a stress);
    calibrated where the model is, but for moments. score: length of the deviation in standard deviations of the bulk of its
    like.
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
    def second_look(self) -> bool:
        """An energy, no suspect, that is further off than most."""
        return self.kind == "energy" and SECOND_LOOK < self.score <= LIMITS[self.kind]

    @property
    def error(self) -> float:
        """The deviation of an energy or a moment, the length of that of a force or stress."""
        return float(self.deviation[0]) if len(self.deviation) == 1 else float(np.linalg.norm(self.deviation))

    @property
    def axes(self) -> NDArray[np.bool_]:
        """Which components are scored, as long as the deviation."""
        return self.deviation != 0.0 if self.kind == "stress" else np.ones(len(self.deviation), dtype=bool)

    @property
    def place(self) -> Place:
        """Which label of its frame it is, as `label_scores` takes those that a model has not seen."""
        return "stress" if self.kind == "stress" else self.atom

    @property
    def label(self) -> Array:
        """The label itself, [1] eV, [3] eV/Å, [6] eV/Å^3 or [1] Bohr magnetons."""
        if self.kind == "energy":
            return np.array([self.frame.energy], dtype=float)
        if self.kind == "stress":
            return np.array(self.frame.stress, dtype=float)
        by_atom = self.frame.forces if self.kind == "forces" else self.frame.magmoms
        assert by_atom is not None
        return np.atleast_1d(by_atom[self.atom]).astype(float)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: energies in eV (total), forces in eV/Å, stresses in eV/Å^3, moments in Bohr magnetons."""
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


def label_scores(
    model: MultiFidelityGP,
    frames: FrameSet,
    report: Report = silent,
    unseen: Mapping[int, Collection[Place]] | None = None,
) -> list[LabelScore]:
    """Scores of the energies, of the force on every atom, of the stresses and of the moments of training frames of `model`.

    unseen: labels that it was not trained on, by id of their frame. Without it DataError is raised for frames that the
    model was not trained on.
    """
    return scores_and_cells(model, frames, report, unseen)[0]


def scores_and_cells(
    model: MultiFidelityGP,
    frames: FrameSet,
    report: Report = silent,
    unseen: Mapping[int, Collection[Place]] | None = None,
) -> tuple[list[LabelScore], dict[str, tuple[float, float]]]:
    """The same, and what allowance for errors that follow the cell does at the levels that need it.

    That is the root mean square of left-out energies without and with it, eV per sqrt(atom).
    """
    if unseen is None:
        model.check_seen(frames)
    smoother = Smoother.of(model)
    raw: dict[tuple[str, str, int], list[LabelScore]] = defaultdict(list)
    energies: dict[str, list[Energies]] = defaultdict(list)
    chosen = sorted((frame for frame in frames if not frame.isolated_atom), key=_alike)
    virial = any(frame.stress is not None for frame in chosen)
    made = iter(model.features.functionals_of_many([frame.atoms for frame in chosen], virial))
    done = 0
    for alike in _together(chosen):
        parts: list[LabelledRows] = []
        for frame in alike:
            functionals, left = next(made), (unseen or {}).get(id(frame), ())
            for part in labelled_parts(model, smoother, frame, functionals):
                if part.kind == "energy":
                    parts.append(part)
                for species, score in _scores(model, smoother, part, left):
                    raw[frame.fidelity, score.kind, species].append(score)
            for species, score in _moment_scores(model, frame, functionals):
                raw[frame.fidelity, score.kind, species].append(score)
            done += 1
            report("leave one label out", done, len(chosen), frame.fidelity)
        if parts:
            seen = [None not in (unseen or {}).get(id(part.frame), ()) for part in parts]
            energies[alike[0].fidelity].append(Energies.of(smoother, parts, seen))
    cells: dict[str, tuple[float, float]] = {}
    for level, groups in energies.items():
        clear = without_doubtful(groups)
        found = cell_errors(clear)
        if found is not None:
            cells[level] = rms(clear, None), rms(clear, found)
        counted = groups if found is None else clear
        raw[level, "energy", 0] = [s for group in counted for s in _energy_scores(model, group, found)]
    return [score for alike in raw.values() for score in _in_bulk_deviations(alike)], cells


def _alike(frame: Frame) -> tuple[str, tuple[int, ...]]:
    """Level and composition, by which frames are sorted."""
    return frame.fidelity, tuple(np.bincount(frame.atoms.numbers).tolist())


def _together(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """Sorted frames by level and composition, TOGETHER at most."""
    for _, group in itertools.groupby(frames, key=_alike):
        while some := list(itertools.islice(group, TOGETHER)):
            yield some


def _energy_scores(model: MultiFidelityGP, group: Energies, cells: CellErrors | None) -> Iterator[LabelScore]:
    """Unscaled scores of energies, but of those of which nothing else says anything."""
    for k, (frame, error, variance) in enumerate(zip(group.frames, *group.left_out(cells), strict=True)):
        level, scale = model.level(frame.fidelity), Scale()
        if model.calibration is not None:
            scale = model.calibration.energy[level]
            rare = model.calibration.rare(level, set(frame.atoms.numbers.tolist()))
            scale = scale.widening if rare else scale
        if np.isfinite(error):
            expected = scale.weights * (variance - 1.0) + scale.residual * group.excess[k] + scale.noise
            unit = group.noise[k] * len(frame.atoms) ** 0.5  # eV
            deviation, std = np.array([-unit * error]), float(unit * expected**0.5)
            yield LabelScore(frame, "energy", None, deviation, std, abs(float(deviation[0])) / std)


def _scores(
    model: MultiFidelityGP, smoother: Smoother, part: LabelledRows, unseen: Collection[Place]
) -> Iterator[tuple[int, LabelScore]]:
    """Unscaled scores of the forces or the stress of a frame, with the species they belong to (0 for stresses)."""
    if part.kind == "virial":
        scale = Scale() if model.calibration is None else model.calibration.virial[part.level]
        told = part.telling | (part.residual.abs().cpu().numpy() >= 1.0)  # the others are zero by symmetry
        score = _left_out(smoother, part, None, told, scale, "stress" not in unseen) if told.any() else None
        if score is not None:
            yield 0, _as_stress(score, told, model.columns.shear)
    if part.kind == "forces":
        for k, atom in enumerate(np.flatnonzero(part.frame.force_mask).tolist()):
            species = int(part.frame.atoms.numbers[atom])
            scale = Scale() if model.calibration is None else model.calibration.forces[part.level][species]
            own = slice(3 * k, 3 * k + 3)
            silent = not part.telling[own].any() and float(part.residual[own].abs().max()) < 1.0  # zero by symmetry
            score = None if silent else _left_out(smoother, part, atom, own, scale, atom not in unseen)
            if score is not None:
                yield species, score


def _left_out(
    smoother: Smoother, part: LabelledRows, atom: int | None, rows: slice | NDArray[np.bool_], scale: Scale, seen: bool
) -> LabelScore | None:
    """Left-out deviation of some rows, its standard deviation and its length in these; None where nothing else says.

    seen: whether they are training data, or are left out of these already.
    """
    block = part.block(rows)
    hat = block.turned @ block.turned.T
    one = torch.eye(len(hat)).to(hat)
    inverse = hat_inverse(hat, smoother.smallest([block])) if seen else one + hat
    if inverse is None:
        return None
    error = -(inverse @ block.residual if seen else block.residual)
    variance = scale.weights * (inverse - one) + scale.residual * torch.diag(block.excess) + scale.noise * one
    score = max(float(error @ torch.linalg.solve(variance, error)) / len(error), 0.0) ** 0.5
    unit = part.noise * (1.0 if part.kind == "forces" else len(part.frame.atoms) ** 0.5)  # of forces eV/Å, else eV
    std = unit * float(variance.diagonal().mean()) ** 0.5
    return LabelScore(part.frame, part.kind, atom, (unit * error).cpu().numpy(), std, score)


def _as_stress(score: LabelScore, told: NDArray[np.bool_], shear: float) -> LabelScore:
    """The score of the components `told` [6] of a virial (eV), with rows of shear times `shear`, as that of a stress."""
    volume, deviation = score.frame.atoms.get_volume(), np.zeros(6)
    deviation[told] = -score.deviation / volume / components(shear).numpy()[told]
    return replace(score, kind="stress", deviation=deviation, std=score.std / volume)


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
    components = np.array([s.axes.sum() for s in alike])
    usual = bulk(np.array([s.score for s in alike]), components) or 1.0
    for s in alike:
        yield replace(s, score=s.score / usual)
