"""Kennedy-O'Hagan algebra: what the levels see of the weights, pure functions.

    f_0 = delta_0,   f_t = rho_{t-1}[z] f_{t-1} + delta_t,   delta_t = phi . (s_t v_t),   v_t ~ N(0, I)
    f = W delta,     W[t, u] = prod_{u <= k < t} rho_k                      (Kennedy & O'Hagan, Biometrika 87, 1 (2000))

All weights of all levels, and the coefficients beside them (e0 and baselines, scaled by their prior standard deviations),
are one vector theta ~ N(0, I) of T blocks of M'. Level t sees block u through the diagonal matrix diag(d[t, u]):

    d[t, u] = ( W[t, u][z_m] s_u  for the M features;  std of the column's shift at level u, for u <= t )

(columns add up over the levels without rho: e0_t = e0_{t-1} + shift_t.) With statistics (G, b, c, n) of A at unit scale,

    P = I + sum_{t,kind} sigma^-2 D_t^T G D_t,      h = sum sigma^-2 D_t^T b,      theta | y ~ N(P^-1 h, P^-1)
    log p(y) = -1/2 [ sum (sigma^-2 c + n log 2 pi sigma^2) + log|P| - h^T P^-1 h ]

which is the DTC (projected process) evidence of Quinonero-Candela & Rasmussen, JMLR 6, 1939 (2005), section 5. P is never
made: levels.py has the weights f = W delta that the levels see, one level after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixing_matrix(rho: Tensor) -> Tensor:
    """W of f = W delta. rho [T-1] or [T-1, S] (dimensionless) -> [T, T] or [T, T, S], unit lower triangular."""
    n_levels = len(rho) + 1
    tail = rho.shape[1:]
    eye = torch.eye(n_levels, dtype=rho.dtype, device=rho.device).view(n_levels, n_levels, *[1] * len(tail))
    eye = eye.expand(n_levels, n_levels, *tail)
    rows = [eye[0]]  # f_0 = delta_0
    for t in range(1, n_levels):
        rows.append(rho[t - 1] * rows[-1] + eye[t])  # f_t = rho f_{t-1} + delta_t
    return torch.stack(rows)


def level_mixing(rho: Tensor, species_index: Tensor, n_columns: int) -> Tensor:
    """W [T, T, M'] of each feature and column; columns add up over the levels. rho [T-1, S], species_index [M]."""
    w = mixing_matrix(rho)[:, :, species_index]  # [t, u, M]
    below = torch.tril(torch.ones(len(w), len(w), dtype=rho.dtype, device=rho.device))
    return torch.cat([w, below[:, :, None].expand(-1, -1, n_columns)], dim=2)


def block_scales(rho: Tensor, scale: Tensor, species_index: Tensor, column_std: Tensor) -> Tensor:
    """d [T, T, M'] of the module docstring.

    rho [T-1, S], scale s [T] (eV), species_index [M] of each feature, column_std [T, column]: prior standard deviation of
    the shift of each column at each level.
    """
    own = torch.cat([scale[:, None].expand(-1, len(species_index)), column_std], dim=1)  # [u, M']
    return level_mixing(rho, species_index, column_std.shape[1]) * own


def prior_variances(rho: Tensor, scale: Tensor) -> Tensor:
    """Prior variance of a local energy f_t(x) at each level and species, sum_u W[t,u]^2 s_u^2: [T, S] (eV^2).

    rho [T-1, S], scale [T] (eV).
    """
    w = mixing_matrix(rho)
    return (w**2 * (scale**2)[None, :, None]).sum(1)
