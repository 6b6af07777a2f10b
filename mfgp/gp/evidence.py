"""The evidence and its gradient, level by level (levels.py): (4 T - 3) M'^3 flops in the place of (T M')^3.

log p(y) = -1/2 [ sum (sigma^-2 c + n log 2 pi sigma^2) + sum_t (log|R_t| + sum log r_t - h_t . m_t) ]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfgp.gp.levels import Chain, Posterior, hadamard_product, observed
from mfgp.gp.statistics import Key, Statistics

LOG_2PI = math.log(2.0 * math.pi)


def evidence(statistics: Statistics, d: Tensor, inverse_noise: dict[Key, Tensor]) -> Tensor:
    """log p(y) (nats), differentiable in d [T, T, M'] of `block_scales` and in the inverse noises sigma^-2.

    Raises NumericalError when a level cannot be factorised.
    """
    keys, chain = statistics.observed(), Chain.of(d)
    precisions = torch.stack([inverse_noise[key] for key in keys])
    value = _Evidence.apply(chain.std, chain.diagonal, chain.beside, precisions, statistics, keys)
    return value - 0.5 * chain.log_shares


def level_products(n_levels: int) -> int:
    """How many times M'^3 flops an evaluation with its gradient takes, 4 T - 3."""
    return 4 * n_levels - 3


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
        inverse_noise = dict(zip(keys, precisions, strict=True))
        joint = Posterior(statistics, Chain(std, diagonal, beside, std.new_zeros(())), inverse_noise)
        value = joint.log_determinant() - joint.quadratic
        for key, precision in inverse_noise.items():
            m = statistics.moments[key]
            value = value + precision * m.square + m.count * (LOG_2PI - precision.log())
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*_gradient(joint, statistics, inverse_noise))
        return -0.5 * value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(grads[0] * g for g in ctx.saved_tensors), None, None


def _gradient(
    joint: Posterior, statistics: Statistics, inverse_noise: dict[Key, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By p, the diagonal, b and sigma^-2."""
    by_std, by_diagonal, by_beside = (torch.zeros_like(x) for x in (joint.std, joint.std, joint.beside))
    by_precision = dict.fromkeys(inverse_noise, joint.std.new_zeros(()))
    for t, covariance in enumerate(joint.covariances()):
        p, mean = joint.std[t], joint.mean[t]
        by_diagonal[t] = -0.5 * (covariance.diagonal() + mean**2)
        if t + 1 < len(joint.std):  # diag C_{t,t+1} = -diag(C_tt b R^-1)
            cross = hadamard_product(covariance, joint.inverses[t + 1], joint.beside[t])
            by_beside[t] = cross - mean * joint.mean[t + 1]
        for key, m in observed(statistics, t):
            slope = m.projection * mean
            quadratic = hadamard_product(covariance, m.gram, p) + mean * (m.gram @ (p * mean))  # (E o G) p
            by_std[t] += inverse_noise[key] * (slope - quadratic)
            own = p @ (slope - 0.5 * quadratic) - 0.5 * m.square
            by_precision[key] = own + 0.5 * m.count / inverse_noise[key]
    return by_std, by_diagonal, by_beside, torch.stack(list(by_precision.values()))
