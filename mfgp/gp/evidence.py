"""The evidence by recursion over the levels: T M'^3 in the place of (T M')^3.

f_t = rho_{t-1} f_{t-1} + delta_t is a Markov chain, one for each feature: given the level below, a level knows nothing of
those below that. In units of their prior standard deviations p_t the weights of two neighbouring levels have a correlation
c_t, and delta_t has a share r_t of the variance of f_t, so that the precision of all weights,

    A_t = diag(1 / r_t + c_{t+1}^2 / r_{t+1}) + p_t (sum_kind sigma^-2 G) p_t       on the diagonal, [M', M'] each,
    b_t = -c_t / r_t                           between t - 1 and t, diagonal matrices, and zero elsewhere

is block tridiagonal, with diagonal matrices beside the diagonal, and elimination keeps blocks of [M', M'] (the filter and
the smoother of Rauch, Tung, Striebel, AIAA J. 3, 1445 (1965), in terms of precisions). From the lowest level up,

    S_0 = A_0,    S_t = A_t - b_t S_{t-1}^-1 b_t
    h_0 = p_0 sum_kind sigma^-2 b,    h_t = p_t sum_kind sigma^-2 b - b_t S_{t-1}^-1 h_{t-1}
    log p(y) = -1/2 [ sum (sigma^-2 c + n log 2 pi sigma^2) + sum_t (log|S_t| + sum log r_t - h_t^T S_t^-1 h_t) ]

and from the top down R_t = A_t - b_{t+1} R_{t+1}^-1 b_{t+1}. The gradient needs the blocks of the covariance at the same
level and the diagonals of those between neighbours,

    C_tt = (S_t + R_t - A_t)^-1,      diag C_{t-1,t} = -diag(S_{t-1}^-1 b_t C_tt),

3 T - 2 factorisations and inverses of [M', M'] in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfgp.gp.autoregressive import factorise
from mfgp.gp.statistics import Key, Moments, Statistics

LOG_2PI = math.log(2.0 * math.pi)
LEAST_SHARE = 1e-10  # of r_t: with nothing of delta_t in f_t, 1 / r_t would leave nothing of the rest in float64
_ROWS = 64  # of a block of products element by element


def evidence(statistics: Statistics, d: Tensor, inverse_noise: dict[Key, Tensor]) -> Tensor:
    """log p(y) (nats), differentiable in d [T, T, M'] of `block_scales` and in the inverse noises sigma^-2.

    Raises NumericalError when a level cannot be factorised.
    """
    keys, chain = statistics.observed(), Chain.of(d)
    precisions = torch.stack([inverse_noise[key] for key in keys])
    value = _Evidence.apply(chain.std, chain.diagonal, chain.beside, precisions, statistics, keys)
    return value - 0.5 * chain.log_shares


def level_products(n_levels: int) -> int:
    """How many times M'^3 flops an evaluation with its gradient takes, 3 T - 2."""
    return 3 * n_levels - 2


@dataclass(frozen=True)
class Chain:
    """The prior of the levels in units of their prior standard deviations: a Markov chain for each feature or column."""

    std: Tensor  # p [T, M']
    diagonal: Tensor  # of the prior's precision, [T, M']
    beside: Tensor  # b_1 ... b_{T-1}, [T-1, M']
    log_shares: Tensor  # sum log r

    @staticmethod
    def of(d: Tensor) -> Chain:
        """From d [T, T, M']. What has no prior variance at a level has a weight of its own there, which nothing tells of."""
        variance, own = (d**2).sum(1), torch.diagonal(d).T ** 2
        some = variance > 0.0
        safe = torch.where(some, variance, 1.0)
        share = torch.where(some, own / safe, 1.0)[1:].clamp(min=LEAST_SHARE)
        correlation = (d[1:] * d[:-1]).sum(1) / (safe[1:] * safe[:-1]).sqrt()
        diagonal = torch.ones_like(safe)
        diagonal[1:] = 1.0 / share
        diagonal[:-1] = diagonal[:-1] + correlation**2 / share
        return Chain(torch.where(some, safe.sqrt(), 0.0), diagonal, -correlation / share, share.log().sum())


class _Evidence(torch.autograd.Function):
    """log p(y) without the sum of log r, as a function of the chain and of sigma^-2, with its gradient in closed form.

    m the mean of the weights, E_tu = C_tu + m_t m_u^T, `o` element by element:

        dL/d p_t             = m_t o sum_kind sigma^-2 b - (E_tt o sum_kind sigma^-2 G) p_t
        dL/d sigma^-2        = p_t . (b o m_t) - 1/2 p_t^T (E_tt o G) p_t - c / 2 + n sigma^2 / 2
        dL/d diagonal_t      = -1/2 diag E_tt,        dL/d b_t = -diag E_{t-1,t}
    """

    @staticmethod
    def forward(
        ctx: Any,
        std: Tensor,
        diagonal: Tensor,
        beside: Tensor,
        precisions: Tensor,
        statistics: Statistics,
        keys: list[Key],
    ) -> Tensor:
        levels = _Levels(statistics, keys, precisions, std, diagonal, beside)
        value = levels.eliminate()
        for key, precision in zip(keys, precisions, strict=True):
            m = statistics.moments[key]
            value = value + precision * m.square + m.count * (LOG_2PI - precision.log())
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*levels.gradient())
        return -0.5 * value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(grads[0] * g for g in ctx.saved_tensors), None, None


class _Levels:
    """Elimination from the lowest level up, and the gradient from the top down."""

    def __init__(
        self,
        statistics: Statistics,
        keys: list[Key],
        precisions: Tensor,
        std: Tensor,
        diagonal: Tensor,
        beside: Tensor,
    ) -> None:
        self.statistics, self.keys, self.precisions = statistics, keys, precisions
        self.std, self.diagonal, self.beside = std, diagonal, beside
        self.inverses: list[Tensor] = []  # S_t^-1
        self.means: list[Tensor] = []  # S_t^-1 h_t

    def eliminate(self) -> Tensor:
        """sum_t log|S_t| - h_t^T S_t^-1 h_t."""
        value = self.std.new_zeros(())
        for t in range(len(self.std)):
            h = torch.zeros_like(self.std[t])
            for i, m in self._observed(t):
                h += self.precisions[i] * self.std[t] * m.projection
            s = self._precision(t)
            if t:
                h -= self.beside[t - 1] * self.means[-1]
                _subtract(s, self.beside[t - 1], self.inverses[-1])
            factor = factorise(s)
            self.means.append(torch.cholesky_solve(h[:, None], factor).squeeze(1))
            self.inverses.append(torch.cholesky_inverse(factor))
            value = value + 2.0 * factor.diagonal().log().sum() - h @ self.means[-1]
        return value

    def gradient(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """By p, the diagonal, b and sigma^-2; once, after the elimination."""
        by_std, by_diagonal = torch.zeros_like(self.std), torch.zeros_like(self.diagonal)
        by_beside, by_precision = torch.zeros_like(self.beside), torch.zeros_like(self.precisions)
        covariance, mean = self.inverses.pop(), self.means.pop()
        from_above: Tensor | None = None  # R_{t+1}^-1
        for t in range(len(self.std) - 1, -1, -1):
            by_diagonal[t] = -0.5 * (covariance.diagonal() + mean**2)
            for i, m in self._observed(t):
                slope = m.projection * mean
                quadratic = _hadamard(covariance, m.gram, self.std[t]) + mean * (m.gram @ (self.std[t] * mean))
                by_std[t] += self.precisions[i] * (slope - quadratic)
                by_precision[i] = self.std[t] @ (slope - 0.5 * quadratic) - 0.5 * m.square
                by_precision[i] += 0.5 * m.count / self.precisions[i]
            if t == 0:
                break
            b, inverse = self.beside[t - 1], self.inverses.pop()  # S_{t-1}^-1
            below = self.means.pop() - inverse @ (b * mean)
            by_beside[t - 1] = _hadamard(inverse, covariance, b) - below * mean
            r = self._precision(t)
            if from_above is not None:
                _subtract(r, self.beside[t], from_above)
            from_above = torch.cholesky_inverse(factorise(r))
            p = self._precision(t - 1)
            _subtract(p, b, from_above)
            if t > 1:
                _subtract(p, self.beside[t - 2], self.inverses[-1])
            covariance, mean = torch.cholesky_inverse(factorise(p)), below
        return by_std, by_diagonal, by_beside, by_precision

    def _observed(self, t: int) -> Iterator[tuple[int, Moments]]:
        """What level t observes, with its place among the keys."""
        for i, key in enumerate(self.keys):
            if key[0] == t:
                yield i, self.statistics.moments[key]

    def _precision(self, t: int) -> Tensor:
        """A_t, [M', M']."""
        out = torch.zeros(self.statistics.size, self.statistics.size, dtype=self.std.dtype, device=self.std.device)
        for i, m in self._observed(t):
            out.add_(m.gram, alpha=float(self.precisions[i]))
        out.mul_(self.std[t][:, None]).mul_(self.std[t])
        out.diagonal().add_(self.diagonal[t])
        return out


def _subtract(precision: Tensor, b: Tensor, inverse: Tensor) -> None:
    """precision -= b inverse b, in place. b [M'], the others [M', M']."""
    for rows in _blocks(len(b)):
        precision[rows] -= (inverse[rows] * b).mul_(b[rows, None])


def _hadamard(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """(left o right) x, without another [M', M']."""
    return torch.cat([(left[rows] * right[rows]) @ x for rows in _blocks(len(x))])


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, size, _ROWS)]
