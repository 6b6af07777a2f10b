"""Energies whose errors follow the cell, as those of too few k-points do, or of a basis set that changes with the volume.

Such an error is no function of environments, so the model takes it for noise, and a wrong label has to stand out of it. But
it is much the same in cells that are much the same. So what is left of the energies of a composition, once all other labels
have been heard, is taken as noise and a smooth function of the cell,

    K_ij = s^2 sqrt(N_i N_j) (1 + x) exp(-x),    x = sqrt(3) d_ij / l,    d_ij = |u_i - u_j|,    u = ln(Q G Q) / 2

with u the Hencky strain of a cell from the mean of its composition, G = h h^T (rows of h: lattice vectors), Q the inverse
root of the mean of G; 0 between compositions and of structures that are not periodic (Matern's kernel of order 3/2, not
smooth enough to be sure of cells beyond all others). With the hat matrix H and the residuals r of these energies
(leave_one_out.py; in units of the noise, as K is then) and B = I - H = F F^T, the energies alone have the precision, the
left-out errors and their variances

    P = (B^-1 + K)^-1 = F A^-1 F^T,    A = I + F^T K F,        e_i = [r - F A^-1 F^T K r]_i / P_ii,        1 / P_ii

which without K are r_i / (1 - H_ii) and 1 / (1 - H_ii). s and l, one of each for a level, maximise the density of the n
left-out energies with the covariance c P^-1, whatever c > 0 (a fit's noise that is too small is no error of the cell),

    ln p = - n ln(c) / 2 - sum over compositions of ln |A| / 2 + const,        n c = sum of |A^-1/2 F^-1 r|^2

Energies that are doubtful without K say nothing of s, l and of others. For left-out errors of a Gaussian process: Rasmussen
& Williams, Gaussian Processes for Machine Learning (2006), section 5.4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from mfgp.calibration.leave_one_out import ALONE, LabelledRows, Smoother
from mfgp.calibration.scores import MIN_LABELS, bulk
from mfgp.frames import Frame

Array = NDArray[np.float64]
TOGETHER = 256  # energies of a composition that are compared with each other
GAIN = 3.0  # nats; less is chance
STRAINS = (0.02, 0.5)  # bounds of l
STARTS = (0.03, 0.1)  # of l
ALIKE = 1e-3  # strain; cells that differ by less are one
SMALLEST, LARGEST = 1e-3, 1e3  # of s, in units of the noise
DOUBT = 2.7  # standard deviations of the bulk, without K


@dataclass(frozen=True)
class CellErrors:
    """s (eV per sqrt(atom)) and l (strain, dimensionless) of a level."""

    std: float
    strain: float


@dataclass(frozen=True)
class Energies:
    """Energies of frames of one level and composition, [frame], in units of their noise.

    hat [frame, frame]; residual: label - prediction; excess: variance that the inducing points do not carry; noise: eV per
    sqrt(atom); smallest: what must be left of 1 - H to be trusted; seen: whether the model was trained on it; strain
    [frame, frame]: d, infinite where cells do not count.
    """

    frames: tuple[Frame, ...]
    hat: Array
    residual: Array
    excess: Array
    noise: Array
    smallest: Array
    seen: NDArray[np.bool_]
    strain: Array

    @staticmethod
    def of(smoother: Smoother, parts: Sequence[LabelledRows], seen: Sequence[bool]) -> Energies:
        """From the rows of the energy of each frame."""
        turned = np.concatenate([p.turned.cpu().numpy() for p in parts])
        residual, excess = (
            np.concatenate([x.cpu().numpy() for x in of_parts])
            for of_parts in ([p.residual for p in parts], [p.excess for p in parts])
        )
        frames = tuple(p.frame for p in parts)
        return Energies(
            frames,
            turned @ turned.T,
            residual,
            excess,
            np.array([p.noise for p in parts]),
            np.array([smoother.smallest([p]) for p in parts]),
            np.array(seen),
            _strains(frames),
        )

    def left_out(self, errors: CellErrors | None) -> tuple[Array, Array]:
        """Errors (label - prediction without it) and their variances, of function and label; NaN where nothing else says.

        Those that were not seen say nothing of others; each is learned before it is left out.
        """
        error, variance = np.full(len(self.frames), np.nan), np.full(len(self.frames), np.nan)
        known = np.flatnonzero(self.seen)
        std, strain = (0.0, 1.0) if errors is None else (errors.std, errors.strain)
        covariance = _covariance(std / self.noise, self.strain / strain)
        here = np.ix_(known, known)
        error[known], variance[known] = _left_out(
            self.hat[here], self.residual[known], covariance[here], self.smallest[known]
        )
        for one in np.flatnonzero(~self.seen):
            rows = np.append(known, one)
            hat, residual = self.hat[np.ix_(rows, rows)], self.residual[rows]
            share = hat[-1] / (1.0 + hat[-1, -1])
            hat, residual = hat - np.outer(share, hat[-1]), residual - share * residual[-1]
            found = _left_out(hat, residual, covariance[np.ix_(rows, rows)], np.zeros(len(rows)))
            error[one], variance[one] = found[0][-1], found[1][-1]
        return error, variance

    def without(self, out: NDArray[np.bool_]) -> Energies:
        """What a model would have that was not trained on some of those seen; as it is where these alone tell something."""
        rest = np.eye(int(out.sum())) - self.hat[np.ix_(out, out)]
        if not out.any() or np.linalg.eigvalsh(rest).min() < self.smallest.max():
            return self
        share = np.linalg.solve(rest, self.hat[out]).T  # [frame, out]
        hat, residual = self.hat + share @ self.hat[out], self.residual + share @ self.residual[out]
        return replace(self, hat=hat, residual=residual, seen=self.seen & ~out)


def without_doubtful(groups: Sequence[Energies]) -> list[Energies]:
    """The energies of a level, by what those of them say that are not too far from what all others say."""
    scores = [abs(error) / variance**0.5 for error, variance in (group.left_out(None) for group in groups)]
    told = np.concatenate(scores)[np.concatenate([np.isfinite(s) for s in scores])]
    limit = DOUBT * bulk(told) if len(told) >= MIN_LABELS else np.inf
    return [group.without(group.seen & (own > limit)) for group, own in zip(groups, scores, strict=True)]


def cell_errors(groups: Sequence[Energies]) -> CellErrors | None:
    """What the energies of a level say of errors that follow the cell; None where they say no more than chance would."""
    known = [(g, np.flatnonzero(g.seen)) for g in groups]
    chosen = [
        _Left.of(g.hat[np.ix_(k, k)], g.residual[k], g.noise[k], g.strain[np.ix_(k, k)])
        for g, k in known
        if np.isfinite(off := g.strain[np.ix_(k, k)][~np.eye(len(k), dtype=bool)]).any()
        and off[np.isfinite(off)].max() > ALIKE
    ]
    if not chosen:
        return None
    unit = float(np.median(np.concatenate([left.noise for left in chosen])))
    n = sum(len(left.told) for left in chosen)

    def loss(p: Array) -> float:
        terms = [left.terms(unit * float(np.exp(p[0])), float(np.exp(p[1]))) for left in chosen]
        return float(0.5 * n * np.log(sum(square for square, _ in terms) / n) + sum(half for _, half in terms))

    bounds = [(np.log(SMALLEST), np.log(LARGEST)), tuple(np.log(STRAINS))]
    found = min((minimize(loss, [0.0, np.log(start)], bounds=bounds) for start in STARTS), key=lambda f: float(f.fun))
    if 0.5 * n * np.log(sum(float(left.told @ left.told) for left in chosen) / n) - float(found.fun) < GAIN:
        return None
    std, strain = np.exp(found.x)
    return CellErrors(unit * float(std), float(strain))


def rms(groups: Sequence[Energies], errors: CellErrors | None) -> float:
    """Root mean square of left-out errors of the energies that were seen, eV per sqrt(atom)."""
    squares = [(g.noise * g.left_out(errors)[0])[g.seen] ** 2 for g in groups]
    return float(np.nanmean(np.concatenate(squares)) ** 0.5)


@dataclass(frozen=True)
class _Left:
    """Energies of a composition without each other: F [frame, n], F^-1 r [n], noise [frame], d [frame, frame].

    n: directions of which others tell.
    """

    factor: Array
    told: Array
    noise: Array
    strain: Array

    @staticmethod
    def of(hat: Array, residual: Array, noise: Array, strain: Array) -> _Left:
        values, vectors = _eigen(hat)
        root, vectors = np.sqrt(values[values > ALONE]), vectors[:, values > ALONE]
        return _Left(vectors * root, vectors.T @ residual / root, noise, strain)

    def terms(self, std: float, strain: float) -> tuple[float, float]:
        """|A^-1/2 F^-1 r|^2 and ln |A| / 2."""
        root = _root(self.factor, _covariance(std / self.noise, self.strain / strain))
        rest = solve_triangular(root, self.told, lower=True)
        return float(rest @ rest), float(np.log(root.diagonal()).sum())


def _strains(frames: Sequence[Frame]) -> Array:
    """d_ij of the cells of frames, infinite of structures that are not periodic in three directions."""
    periodic = np.array([bool(f.atoms.pbc.all()) for f in frames])
    out = np.full((len(frames), len(frames)), np.inf)
    if periodic.any():
        cells = np.array([f.atoms.cell.array for f, here in zip(frames, periodic, strict=True) if here])
        metric = cells @ cells.transpose(0, 2, 1)
        values, vectors = np.linalg.eigh(metric.mean(0))
        root = (vectors * values**-0.5) @ vectors.T
        values, vectors = np.linalg.eigh(root @ metric @ root)
        strain = 0.5 * (vectors * np.log(values)[:, None, :]) @ vectors.transpose(0, 2, 1)  # [frame, 3, 3]
        out[np.ix_(periodic, periodic)] = np.linalg.norm(strain[:, None] - strain[None], axis=(-1, -2))
    return out


def _covariance(scale: Array, distance: Array) -> Array:
    """K [frame, frame] from s and d over l, in units of the noise."""
    x = np.sqrt(3.0) * np.where(np.isfinite(distance), distance, 1e3)  # exp(-1000) is 0
    return np.outer(scale, scale) * (1.0 + x) * np.exp(-x)


def _eigen(hat: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors of B = I - H; H has eigenvalues in [0, 1) but for rounding."""
    values, vectors = np.linalg.eigh(np.eye(len(hat)) - 0.5 * (hat + hat.T))
    return values.clip(min=0.0), vectors


def _root(factor: Array, covariance: Array) -> Array:
    """Lower Cholesky factor of A."""
    return np.asarray(cholesky(np.eye(factor.shape[1]) + factor.T @ covariance @ factor, lower=True))


def _left_out(hat: Array, residual: Array, covariance: Array, smallest: Array) -> tuple[Array, Array]:
    """Left-out errors and variances of energies that were all seen."""
    values, vectors = _eigen(hat)
    factor = vectors * np.sqrt(values)
    half = solve_triangular(_root(factor, covariance), factor.T, lower=True)
    precision = (half**2).sum(0)  # P_ii
    error = residual - half.T @ (half @ (covariance @ residual))
    told = (1.0 - hat.diagonal() > smallest) & (precision > 0.0)
    safe = np.where(told, precision, 1.0)
    return np.where(told, error / safe, np.nan), np.where(told, 1.0 / safe, np.nan)
