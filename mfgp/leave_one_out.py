"""Leave-one-structure-out predictions in closed form, one pass over the data.

The labels of one structure, at all levels that have it, are rows A_S (divided by their noise) with residuals
r_S = y_S - A_S w. With theta | y ~ N(mean, P^-1) and the hat matrix of the structure

    H_SS = A_S P^-1 A_S^T         (A_S in the space of all levels' weights: rows of level t through D_t)

the model without it predicts its labels with

    r_loo = (I - H_SS)^-1 r_S,        Cov[function] = (I - H_SS)^-1 - I,        Cov[label] = (I - H_SS)^-1

(the Sherman-Morrison-Woodbury identity; for rows of a linear smoother see Hastie, Tibshirani & Friedman, The Elements of
Statistical Learning, 2nd ed., eq. 7.52). H_SS is symmetric with eigenvalues in [0, 1); rounding may push those of
well-determined directions to 1, so they are clipped below it. The part of the prior variance that the inducing points do
not carry, S_t (prior - |Phi|^2), is added as in any prediction. Hyperparameters and inducing points are those of the fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfgp.autoregressive import Posterior
from mfgp.features import structure_key
from mfgp.frames import Frame, FrameSet
from mfgp.observations import cell_volume, labelled_rows
from mfgp.prediction import residual_variance
from mfgp.progress import Report, silent
from mfgp.statistics import Key

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
CLIP = 1e-9  # the largest eigenvalue of H_SS is 1 - CLIP


@dataclass(frozen=True)
class LeftOut:
    """Labels of one kind of one frame, and what the model without its structure says of them, each [row].

    kind: energy (eV per sqrt(atom)), forces (eV/Å), virial (eV per sqrt(atom)) or given (the labels' own sigma).
    error: predicted - label; weight_variance, residual_variance, noise_variance: of the posterior weights, of what the
    inducing points do not carry, and of the label, in the unit squared; species: atomic number of the atom that a force
    acts on, 0 otherwise.
    """

    frame: Frame
    kind: str
    error: Array
    weight_variance: Array
    residual_variance: Array
    noise_variance: Array
    species: NDArray[np.int64]

    @property
    def z(self) -> Array:
        """error / std of a label, [row]."""
        return self.error / np.sqrt(self.weight_variance + self.residual_variance + self.noise_variance)


def leave_one_out(
    model: MultiFidelityGP, frames: FrameSet | Sequence[Frame], report: Report = silent
) -> Iterator[LeftOut]:
    """Closed-form leave-one-structure-out predictions of the labels of training frames of `model`.

    Frames of one geometry are left out together, so `frames` should hold all of them that the model was trained on.
    """
    joint = CrossLevel.of(model.posterior())
    groups: dict[bytes, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(structure_key(frame.atoms), []).append(frame)
    for i, group in enumerate(groups.values()):
        yield from _structure(model, joint, group)
        report("leave one out", i + 1, len(groups), "")


def hat_inverse(hat: Tensor) -> Tensor:
    """(I - H)^-1 of a symmetric hat matrix H [row, row], its eigenvalues clipped to [0, 1 - CLIP]."""
    values, vectors = torch.linalg.eigh(0.5 * (hat + hat.T))
    return (vectors / (1.0 - values.clamp(0.0, 1.0 - CLIP))) @ vectors.T


@dataclass(frozen=True)
class CrossLevel:
    """Posterior of the weights that the levels see: mean w_t [T, M'], covariance C_ts [T, T, M', M'] between levels."""

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(posterior: Posterior) -> CrossLevel:
        n_levels, size = posterior.mean.shape
        inverse = torch.cholesky_inverse(posterior.factor).view(n_levels, size, n_levels, size)
        out = posterior.mean.new_zeros(n_levels, n_levels, size, size)
        for t in range(n_levels):
            for s in range(t + 1):
                for u in range(t + 1):
                    for v in range(s + 1):
                        out[t, s] += posterior.d[t, u][:, None] * inverse[u, :, v] * posterior.d[s, v][None, :]
                out[s, t] = out[t, s].T.clone()
        return CrossLevel(torch.stack([posterior.level_mean(t) for t in range(n_levels)]), out)


@dataclass(frozen=True)
class LabelledRows:
    """Labelled rows of one kind of one frame, divided by the standard deviation of their noise."""

    frame: Frame
    level: int
    kind: str
    rows: Tensor  # [row, M']
    residual: Tensor  # [row] y - A w
    excess: Tensor  # [row] S_t (prior - |Phi|^2), divided by the noise variance
    noise: float
    species: NDArray[np.int64]  # [row]

    def block(self, rows: slice) -> LabelledRows:
        """Some of the rows."""
        return replace(
            self,
            rows=self.rows[rows],
            residual=self.residual[rows],
            excess=self.excess[rows],
            species=self.species[rows],
        )


def _structure(model: MultiFidelityGP, joint: CrossLevel, group: Sequence[Frame]) -> Iterator[LeftOut]:
    parts = [part for frame in group for part in labelled_parts(model, joint, frame)]
    if not parts:
        return
    inverse = hat_inverse(torch.cat([torch.cat([hat(joint, a, b) for b in parts], dim=1) for a in parts]))
    error = -inverse @ torch.cat([p.residual for p in parts])
    variance = (inverse.diagonal() - 1.0).clamp(min=0.0)
    start = 0
    for p in parts:
        here = slice(start, start + len(p.rows))
        start = here.stop
        yield LeftOut(
            p.frame,
            p.kind,
            (error[here] * p.noise).cpu().numpy(),
            (variance[here] * p.noise**2).cpu().numpy(),
            (p.excess * p.noise**2).cpu().numpy(),
            np.full(len(p.rows), p.noise**2),
            p.species,
        )


def hat(joint: CrossLevel, a: LabelledRows, b: LabelledRows) -> Tensor:
    """The block of the hat matrix between two sets of rows, [row of a, row of b]."""
    return a.rows @ joint.covariance[a.level, b.level] @ b.rows.T


def labelled_parts(model: MultiFidelityGP, joint: CrossLevel, frame: Frame) -> Iterator[LabelledRows]:
    """The rows of a frame by kind, in units of their noise."""
    level = model.level(frame.fidelity)
    functionals = model.features.functionals(frame.atoms)
    labels = [b.labels(frame.atoms) for b in model.baselines]
    extra = model.columns.rows(frame.atoms.numbers, labels, cell_volume(frame.atoms)).to(functionals.phi)
    excess = residual_variance(model, level, functionals.phi, functionals.prior)
    design = torch.cat([functionals.phi, extra, excess.sqrt()[:, None]], dim=1)  # one more column: scaled like the rows
    sigmas = (model.config.training.noise_energy, model.config.training.noise_force)
    moved = np.repeat(frame.atoms.numbers[frame.force_mask], 3).astype(np.int64)
    for kind, (rows, y) in labelled_rows(frame, design, model.columns.mean(extra, level), sigmas).items():
        key: Key = (level, kind)
        noise = float(model.noise.of(key))
        a = rows[:, :-1]
        species = np.zeros(len(rows), dtype=np.int64)
        if kind == "forces" or (kind == "given" and len(rows) >= len(moved) > 0 and frame.force_sigma is not None):
            species[len(rows) - len(moved) :] = moved
        residual = (y - a @ joint.mean[level]) / noise
        yield LabelledRows(frame, level, kind, a / noise, residual, (rows[:, -1] / noise) ** 2, noise, species)
