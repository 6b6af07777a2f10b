"""Leave-one-structure-out predictions in closed form, one pass over the data.

The labels of one structure, at all levels that have it, are rows A_S (divided by their noise) with residuals
r_S = y_S - A_S w. With the weights of all levels w | y ~ N(mean, Q^-1) and the hat matrix of the structure

    H_SS = V V^T,    V = A_S L^-T,    Q = L L^T      (rows of level t are zero at all others; L by levels: gp/levels.py)

the model without it predicts its labels with

    r_loo = (I - H_SS)^-1 r_S,        Cov[function] = (I - H_SS)^-1 - I,        Cov[label] = (I - H_SS)^-1

(the Sherman-Morrison-Woodbury identity; for rows of a linear smoother see Hastie, Tibshirani & Friedman, The Elements of
Statistical Learning, 2nd ed., eq. 7.52). H_SS is symmetric with eigenvalues in [0, 1). V and not Q^-1, whose product with
A_S loses twice the digits: where labels are nearly exact nothing would be left. What a structure alone determines (the
reference energy of an element that no other holds) has eigenvalues so near to 1 that rounding, or the prior, decides what
is left of 1 - H: such structures are passed over. The part of the prior variance that the inducing points do not carry,
S_t (prior - |Phi|^2), is added as in any prediction. Hyperparameters, inducing points and the centre of e0's prior are
those of the fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfgp.base.progress import Report, silent
from mfgp.data.same_structure import groups
from mfgp.data.single_point import structure_hash
from mfgp.frames import Frame, FrameSet
from mfgp.gp.centring import centred
from mfgp.gp.functionals import Functionals
from mfgp.gp.levels import Posterior
from mfgp.gp.observations import labelled_rows, telling
from mfgp.gp.site_moments import SitePosterior, with_constant
from mfgp.gp.statistics import Key
from mfgp.predict.residual import residual_variance

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
ROUNDING = 7.0  # times epsilon times prior over noise variance: 1 - 100 times the error of H_SS on nearly exact labels
ALONE = 1e-5  # what is left of 1 - H where one structure alone says what the prior does not


@dataclass(frozen=True)
class LeftOut:
    """Labels of one kind of one frame, and what the model without its structure says of them, each [row].

    kind: energy (eV per sqrt(atom)), forces (eV/Å) or virial (eV per sqrt(atom), shear times sqrt(2) as in labelled_rows),
    with a sigma of their own or without.
    error: predicted - label; weight_variance, residual_variance, noise_variance: of the posterior weights, of what the
    inducing points do not carry, and of the label, in the unit squared; species: atomic number of the atom that a force
    acts on, component: three times its place among the atoms plus 0, 1, 2 for x, y, z; both 0 of other kinds. Forces and
    virials that symmetry makes zero are not among them (observations.telling).
    """

    frame: Frame
    kind: str
    error: Array
    weight_variance: Array
    residual_variance: Array
    noise_variance: Array
    species: NDArray[np.int64]
    component: NDArray[np.int64]


def leave_one_out(
    model: MultiFidelityGP, frames: FrameSet | Sequence[Frame], report: Report = silent
) -> Iterator[LeftOut]:
    """Closed-form leave-one-structure-out predictions of the labels of training frames of `model`.

    Frames of the same structure in whatever description (same_structure) are left out together, so `frames` should hold
    all of them that the model was trained on. Isolated atoms, and structures whose left-out prediction rounding would
    decide, are passed over.
    """
    smoother = Smoother.of(model)
    chosen = [frame for frame in frames if not frame.isolated_atom]
    same: dict[int, list[Frame]] = {}
    for frame, number in zip(chosen, groups([f.atoms for f in chosen]), strict=True):
        same.setdefault(number, []).append(frame)
    for i, parts in enumerate(structure_parts(model, smoother, list(same.values()))):
        yield from left_out(smoother, parts)
        report("leave one out", i + 1, len(same), "")


def hat_inverse(hat: Tensor, smallest: float) -> Tensor | None:
    """(I - H)^-1 of a symmetric hat matrix H [row, row]; None where an eigenvalue of I - H is below `smallest`."""
    values, vectors = torch.linalg.eigh(0.5 * (hat + hat.T))
    if float(values.max()) > 1.0 - smallest:
        return None
    return (vectors / (1.0 - values.clamp(min=0.0))) @ vectors.T


@dataclass(frozen=True)
class Smoother:
    """What turns labelled rows into hat matrices and residuals, from the posterior of the weights of all levels."""

    posterior: Posterior
    mean: Tensor  # [T, M'] of the weights that each level sees
    prior: Tensor  # [T, M'] their variances before any data
    noise: Mapping[Key, float]  # standard deviation of the labels of each (level, kind)

    @staticmethod
    def of(model: MultiFidelityGP) -> Smoother:
        posterior = model.posterior()
        return Smoother(posterior, posterior.level_means(), posterior.std**2, model.noises())

    def turned(self, rows: Tensor, level: int) -> Tensor:
        """V [row, T M'] of rows [row, M'] of a level."""
        return self.posterior.turned(rows, level)

    def smallest(self, parts: Sequence[LabelledRows]) -> float:
        """What must be left of 1 - H to be trusted."""
        return max(ALONE, self.rounding(parts))

    def rounding(self, parts: Sequence[LabelledRows]) -> float:
        """What rounding makes of 1 - H."""
        largest = max(float((p.rows**2 @ self.prior[p.level]).max()) for p in parts)
        return ROUNDING * float(torch.finfo(self.mean.dtype).eps) * largest


@dataclass(frozen=True)
class LabelledRows:
    """Labelled rows of one kind of one frame, divided by the standard deviation of their noise; some tell something.

    noise is in the unit of LeftOut.
    """

    frame: Frame
    level: int
    kind: str
    rows: Tensor  # [row, M']
    turned: Tensor  # [row, T M'] V
    residual: Tensor  # [row] y - A w
    excess: Tensor  # [row] S_t (prior - |Phi|^2), divided by the noise variance
    noise: float
    species: NDArray[np.int64]  # [row]
    component: NDArray[np.int64]  # [row] 3 atom + axis of forces
    telling: NDArray[np.bool_]  # [row]

    def block(self, rows: slice | NDArray[np.bool_]) -> LabelledRows:
        """Some of the rows."""
        return replace(
            self,
            rows=self.rows[rows],
            turned=self.turned[rows],
            residual=self.residual[rows],
            excess=self.excess[rows],
            species=self.species[rows],
            component=self.component[rows],
            telling=self.telling[rows],
        )


def left_out_moments(posterior: SitePosterior, phi: Tensor, moments: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation [n] of magnetic moments [n] that were trained on, all of them left out, in Bohr magnetons.

    posterior: of their element and level; phi [n, M_s]: features of the atoms. None where nothing else says what they are.
    As above, with the covariance itself, which is enough here: moments are never nearly exact.
    """
    rows = with_constant(phi)
    inverse = hat_inverse(rows @ posterior.covariance @ rows.T / posterior.noise**2, ALONE)
    if inverse is None:
        return None
    mean = moments - inverse @ (moments - rows @ posterior.weights)
    return mean, (posterior.noise**2 * inverse.diagonal() + posterior.residual(phi)).sqrt()


def structure_parts(
    model: MultiFidelityGP, smoother: Smoother, structures: Sequence[Sequence[Frame]]
) -> Iterator[list[LabelledRows]]:
    """The rows of all frames of each structure that tell something, in order; `structures` are the frames of each."""
    keyed = [[(structure_hash(frame.atoms), frame) for frame in group] for group in structures]
    copies = [{key: frame.atoms for key, frame in group} for group in keyed]  # may differ in the last digits
    virial = any(frame.stress is not None for group in structures for frame in group)
    made = model.features.functionals_of_many([a for of_group in copies for a in of_group.values()], virial)
    for group, of_group in zip(keyed, copies, strict=True):
        found = {key: next(made) for key in of_group}
        every = [part for key, frame in group for part in labelled_parts(model, smoother, frame, found[key])]
        yield [part if part.telling.all() else part.block(part.telling) for part in every if part.telling.any()]


def left_out(smoother: Smoother, parts: Sequence[LabelledRows], rest: Iterable[LabelledRows] = ()) -> list[LeftOut]:
    """What the model without the labels `parts` and `rest` says of `parts`; nothing where rounding would decide."""
    if not parts:
        return []
    turned, residual = torch.cat([p.turned for p in parts]), torch.cat([p.residual for p in parts])
    hat, residual = without(smoother, turned, residual, rest)
    inverse = None if hat is None else hat_inverse(hat, smoother.smallest(parts))
    if inverse is None:
        return []
    error = -inverse @ residual
    variance = (inverse.diagonal() - 1.0).clamp(min=0.0)
    out, start = [], 0
    for p in parts:
        here = slice(start, start + len(p.rows))
        start = here.stop
        values = (error[here] * p.noise, variance[here] * p.noise**2, p.excess * p.noise**2)
        e, weights, excess = (v.cpu().numpy() for v in values)
        noise = np.full(len(p.rows), p.noise**2)
        out.append(LeftOut(p.frame, p.kind, e, weights, excess, noise, p.species, p.component))
    return out


def without(
    smoother: Smoother, turned: Tensor, residual: Tensor, rest: Iterable[LabelledRows]
) -> tuple[Tensor | None, Tensor]:
    """Hat matrix and residuals of rows V [row, T M'], r [row] once the labels `rest` (V_r, r_r) are left out.

        H' = V (I - V_r^T V_r)^-1 V^T,        r' = r + V (I - V_r^T V_r)^-1 V_r^T r_r

    through a factor of I - V_r V_r^T, or, when there are more rows than weights, of I - V_r^T V_r, summed up as they come.
    No matrix where rounding would decide.
    """
    gram, vector = turned.new_zeros(0, 0), turned.new_zeros(0)
    pending: list[LabelledRows] = []
    smallest, columns = 0.0, turned.shape[1]
    for part in rest:
        pending.append(part)
        smallest = max(smallest, smoother.rounding([part]))
        if sum(len(p.rows) for p in pending) > columns:
            gram, vector = _summed(gram, vector, pending)
            pending = []
    if pending and len(gram):
        gram, vector = _summed(gram, vector, pending)
    if len(gram):
        factor = _factor_of_rest(gram, smallest)
        left, right = turned.T, vector  # [T M', row], [T M']
        base = turned.new_zeros(len(turned), len(turned))
    elif pending:
        others = torch.cat([p.turned for p in pending])
        factor = _factor_of_rest(others @ others.T, smallest)
        left, right = others @ turned.T, torch.cat([p.residual for p in pending])  # [row of rest, row], [row of rest]
        base = turned @ turned.T
    else:
        return turned @ turned.T, residual
    if factor is None:
        return None, residual
    half = torch.linalg.solve_triangular(factor, left, upper=False)
    known = torch.linalg.solve_triangular(factor, right[:, None], upper=False)
    return base + half.T @ half, residual + (half.T @ known).squeeze(1)


def _summed(gram: Tensor, vector: Tensor, parts: Sequence[LabelledRows]) -> tuple[Tensor, Tensor]:
    """V_r^T V_r and V_r^T r_r with those of more rows."""
    v, r = torch.cat([p.turned for p in parts]), torch.cat([p.residual for p in parts])
    return (v.T @ v, v.T @ r) if not len(gram) else (gram + v.T @ v, vector + v.T @ r)


def _factor_of_rest(gram: Tensor, smallest: float) -> Tensor | None:
    """Lower Cholesky factor of I - gram; None where less than `smallest` is left of a direction."""
    factor, info = torch.linalg.cholesky_ex(torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - gram)
    return None if int(info) or float(factor.diagonal().min()) ** 2 < smallest else factor


def labelled_parts(
    model: MultiFidelityGP, smoother: Smoother, frame: Frame, functionals: Functionals
) -> Iterator[LabelledRows]:
    """The rows of a frame by kind, in units of their noise; `functionals` of its structure."""
    level = model.level(frame.fidelity)
    labels = model.columns.labels(model.baselines, frame.atoms, level)
    extra = model.columns.rows_of(frame.atoms, labels).to(functionals.phi)
    residual_std = residual_variance(model, level, functionals.phi, functionals.prior).sqrt()
    design = torch.cat([functionals.phi, extra, residual_std[:, None]], dim=1)  # one more column: scaled like the rows
    design = centred(design, model.features.centre)
    axes = np.flatnonzero(np.repeat(frame.force_mask, 3))  # 3 atom + axis of the labelled forces
    mean, shear = model.columns.mean(extra, level), model.columns.shear
    for found, (every, targets) in labelled_rows(frame, design, mean, shear).items():
        for kind, here, unit in of_kinds(frame, found, len(targets)):
            rows, y = every[here], targets[here]
            noise = smoother.noise.get((level, found), 1.0)  # own sigmas that the fit had none of count as they are
            a = rows[:, :-1] / noise
            component = axes if kind == "forces" else np.zeros(len(rows), dtype=np.int64)
            species = frame.atoms.numbers[component // 3] * int(kind == "forces")
            told = telling(rows[:, :-1]).cpu().numpy()  # as the statistics have it, whatever the amplitude
            turned, residual = smoother.turned(a, level), y / noise - a @ smoother.mean[level]
            excess = (rows[:, -1] / noise) ** 2
            yield LabelledRows(frame, level, kind, a, turned, residual, excess, unit * noise, species, component, told)


def of_kinds(frame: Frame, found: str, n: int) -> Iterator[tuple[str, slice, float]]:
    """What the n rows of a kind are, which of them, and their unit: of `given` ones the own sigmas, energy before forces."""
    if found != "given":
        yield found, slice(0, n), 1.0
        return
    start = 0
    if frame.energy is not None and frame.energy_sigma is not None:
        yield "energy", slice(0, 1), frame.energy_sigma / len(frame.atoms) ** 0.5
        start = 1
    if start < n:
        assert frame.force_sigma is not None
        yield "forces", slice(start, n), frame.force_sigma
