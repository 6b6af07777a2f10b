"""The weights of all levels given the data, by elimination of one level after the other: blocks of [M', M'].

f_t = rho_{t-1} f_{t-1} + delta_t is a Markov chain, one for each feature: given the level below, a level knows nothing of
those below that. In units of their prior standard deviations p_t the weights of two neighbouring levels have a correlation
c_t, and delta_t has a share r_t of the variance of f_t, so that the precision of all weights,

    A_t = diag(1 / r_t + c_{t+1}^2 / r_{t+1}) + p_t (sum_kind sigma^-2 G) p_t       on the diagonal, [M', M'] each,
    b_t = -c_t / r_t                           between t - 1 and t, diagonal matrices, and zero elsewhere

is block tridiagonal, with diagonal matrices beside the diagonal, and elimination keeps blocks of [M', M'] (the smoother of
Rauch, Tung, Striebel, AIAA J. 3, 1445 (1965), in terms of precisions). With h_t = p_t sum_kind sigma^-2 b, from the highest
level down

    R_t = A_t - b_{t+1} R_{t+1}^-1 b_{t+1},      k_t = h_t - b_{t+1} R_{t+1}^-1 k_{t+1}
    log|P| = sum_t log|R_t| + sum log r_t

and from the lowest up the means and the covariances, X_t = R_t^-1 b_t,

    m_t = R_t^-1 k_t - X_t m_{t-1},      C_{t-1,t} = -C_{t-1,t-1} X_t^T,      C_tt = R_t^-1 - X_t C_{t-1,t}

(P and theta: autoregressive.py.) A factor L L^T of the precision, levels in descending order, has the factors L_t of R_t on
its diagonal, b_{t+1} L_{t+1}^-T beside them: rows of the lowest level, of which there are most, take one solve of M'^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.gp.statistics import Key, Moments, Statistics

LEAST_SHARE = 1e-10  # of r_t: with nothing of delta_t in f_t, 1 / r_t would leave nothing of the rest in float64
_ROWS = 64  # of a block of products element by element
_BLOCK = 256  # rows of a block of a symmetric product


@dataclass(frozen=True)
class Chain:
    """The prior of the levels in units of their prior standard deviations: a Markov chain for each feature or column."""

    std: Tensor  # p [T, M']
    diagonal: Tensor  # of the prior's precision, [T, M']
    beside: Tensor  # b_1 ... b_{T-1}, [T-1, M']
    log_shares: Tensor  # sum log r

    @staticmethod
    def of(d: Tensor) -> Chain:
        """From d [T, T, M'] of `block_scales`. What has no prior variance at a level has a weight of its own there, which
        nothing tells of."""
        variance, own = (d**2).sum(1), torch.diagonal(d).T ** 2
        some = variance > 0.0
        safe = torch.where(some, variance, 1.0)
        share = torch.where(some, own / safe, 1.0)[1:].clamp(min=LEAST_SHARE)
        correlation = (d[1:] * d[:-1]).sum(1) / (safe[1:] * safe[:-1]).sqrt()
        diagonal = torch.ones_like(safe)
        diagonal[1:] = 1.0 / share
        diagonal[:-1] = diagonal[:-1] + correlation**2 / share
        return Chain(torch.where(some, safe.sqrt(), 0.0), diagonal, -correlation / share, share.log().sum())


class Posterior:
    """The weights of all levels given the data. Raises NumericalError where a level cannot be factorised."""

    def __init__(self, statistics: Statistics, chain: Chain, inverse_noise: Mapping[Key, Tensor]) -> None:
        self.std, self.beside = chain.std, chain.beside  # p [T, M'], b [T-1, M']
        self.factors: dict[int, Tensor] = {}  # L_t [M', M']
        self.inverses: dict[int, Tensor] = {}  # R_t^-1, of all but the lowest level
        levels, projections = range(len(self.std)), torch.zeros_like(self.std)  # h_t
        reduced: dict[int, Tensor] = {}  # R_t^-1 k_t
        means: list[Tensor] = []  # m_t
        for t in levels[::-1]:
            r, projections[t] = _level(statistics, chain, inverse_noise, t)
            k = projections[t]
            if t + 1 in levels:
                k = k - self.beside[t] * reduced[t + 1]
                _subtract(r, self.beside[t], self.inverses[t + 1])
            self.factors[t] = factorise(r)
            reduced[t] = torch.cholesky_solve(k[:, None], self.factors[t]).squeeze(1)
            if t:
                self.inverses[t] = torch.cholesky_inverse(self.factors[t])
        for t in levels:
            below = self.inverses[t] @ (self.beside[t - 1] * means[-1]) if t else 0.0
            means.append(reduced[t] - below)
        self.mean = torch.stack(means)  # m [T, M']
        self.quadratic = (projections * self.mean).sum()  # sum h_t . m_t

    def log_determinant(self) -> Tensor:
        """sum_t log|R_t|."""
        return 2.0 * torch.stack([factor.diagonal().log().sum() for factor in self.factors.values()]).sum()

    def covariances(self) -> Iterator[Tensor]:
        """C_tt [M', M'] of each level, from the lowest up."""
        c = torch.cholesky_inverse(self.factors[0])
        yield c
        for t in range(1, len(self.std)):
            x = self.inverses[t] * self.beside[t - 1]
            c = self.inverses[t] + _symmetric_product(x, c @ x.T)
            yield c

    def level_means(self) -> Tensor:
        """The weights of every level on the columns of A, [T, M'] (eV)."""
        return self.std * self.mean

    def level_covariances(self) -> Tensor:
        """Their covariances, [T, M', M'] (eV^2)."""
        scaled = (p[:, None] * c * p for p, c in zip(self.std, self.covariances(), strict=True))
        return torch.stack(list(scaled))

    def all_covariances(self) -> Tensor:
        """Between the weights of every two levels, [T, T, M', M'] (eV^2)."""
        n, size = self.std.shape
        out = self.std.new_empty(n, n, size, size)
        for t, c in enumerate(self.covariances()):
            out[t, t] = c
            for s in range(t + 1, n):
                out[t, s] = -(out[t, s - 1] * self.beside[s - 1]) @ self.inverses[s]
                out[s, t] = out[t, s].T
        return out.mul_(self.std[:, None, :, None]).mul_(self.std[None, :, None])

    def turned(self, rows: Tensor, level: int) -> Tensor:
        """V [row, T M'] of rows A [row, M'] of a level: V V'^T is the covariance of what two sets of rows see (eV^2)."""
        n, size = self.std.shape
        out = rows.new_zeros(len(rows), n, size)
        x = torch.linalg.solve_triangular(self.factors[level], (rows * self.std[level]).T, upper=False)
        out[:, level] = x.T
        for t in range(level - 1, -1, -1):
            x = torch.linalg.solve_triangular(self.factors[t + 1].T, x, upper=True)
            x = torch.linalg.solve_triangular(self.factors[t], -self.beside[t][:, None] * x, upper=False)
            out[:, t] = x.T
        return out.flatten(1)


def factorise(precision: Tensor) -> Tensor:
    """Lower Cholesky factor. Raises NumericalError where float64 has lost the definiteness."""
    factor, info = torch.linalg.cholesky_ex(precision)
    if int(info) != 0 or not bool(torch.isfinite(factor.diagonal()).all()):
        raise NumericalError(
            f"the precision of the weights ({len(precision)} x {len(precision)}) lost its definiteness: the noise is too "
            "small for float64 next to the amplitudes. Raise training.noise_energy or training.noise_force."
        )
    return factor


def observed(statistics: Statistics, level: int) -> Iterator[tuple[Key, Moments]]:
    """What is known of a level, in a fixed order."""
    return ((key, statistics.moments[key]) for key in statistics.observed() if key[0] == level)


def hadamard_product(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """(left o right) x, `o` element by element, without another [M', M']."""
    return torch.cat([(left[rows] * right[rows]) @ x for rows in _blocks(len(x), _ROWS)])


def _level(statistics: Statistics, chain: Chain, inverse_noise: Mapping[Key, Tensor], t: int) -> tuple[Tensor, Tensor]:
    """A_t [M', M'] and h_t [M']."""
    p = chain.std[t]
    a, h = torch.zeros(len(p), len(p), dtype=p.dtype, device=p.device), torch.zeros_like(p)
    for key, m in observed(statistics, t):
        a.add_(m.gram, alpha=float(inverse_noise[key]))
        h += inverse_noise[key] * p * m.projection
    a.mul_(p[:, None]).mul_(p)
    a.diagonal().add_(chain.diagonal[t])
    return a, h


def _subtract(precision: Tensor, b: Tensor, inverse: Tensor) -> None:
    """precision -= b inverse b, in place. b [M'], the others [M', M']."""
    for rows in _blocks(len(b), _ROWS):
        precision[rows] -= (inverse[rows] * b).mul_(b[rows, None])


def _symmetric_product(x: Tensor, y: Tensor) -> Tensor:
    """x y, known to be symmetric: half of it, and its mirror image."""
    out = torch.empty_like(x)
    for rows in _blocks(len(x), _BLOCK):
        out[rows, rows.start :] = x[rows] @ y[:, rows.start :]
        out[rows.stop :, rows] = out[rows, rows.stop :].T
    return out


def _blocks(size: int, step: int) -> list[slice]:
    return [slice(start, min(size, start + step)) for start in range(0, size, step)]
