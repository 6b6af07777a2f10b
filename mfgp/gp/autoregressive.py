"""Kennedy-O'Hagan algebra on sufficient statistics: pure functions.

    f_0 = delta_0,   f_t = rho_{t-1}[z] f_{t-1} + delta_t,   delta_t = phi . (s_t v_t),   v_t ~ N(0, I)
    f = W delta,     W[t, u] = prod_{u <= k < t} rho_k                      (Kennedy & O'Hagan, Biometrika 87, 1 (2000))

All weights of all levels, and the coefficients beside them (e0 and baselines, scaled by their prior standard deviations),
are one vector theta ~ N(0, I) of T blocks of M'. Level t sees block u through the diagonal matrix diag(d[t, u]):

    d[t, u] = ( W[t, u][z_m] s_u  for the M features;  std of the column's shift at level u, for u <= t )

(columns add up over the levels without rho: e0_t = e0_{t-1} + shift_t.) With statistics (G, b, c, n) of A at unit scale,

    P = I + sum_{t,kind} sigma^-2 D_t^T G D_t,      h = sum sigma^-2 D_t^T b,      theta | y ~ N(P^-1 h, P^-1)
    log p(y) = -1/2 [ sum (sigma^-2 c + n log 2 pi sigma^2) + log|P| - h^T P^-1 h ]

which is the DTC (projected process) evidence of Quinonero-Candela & Rasmussen, JMLR 6, 1939 (2005), section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.gp.statistics import Key, Moments, Statistics


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


def block_scales(rho: Tensor, scale: Tensor, species_index: Tensor, column_std: Tensor) -> Tensor:
    """d [T, T, M'] of the module docstring.

    rho [T-1, S], scale s [T] (eV), species_index [M] of each feature, column_std [T, column]: prior standard deviation of
    the shift of each column at each level.
    """
    w = mixing_matrix(rho)[:, :, species_index]  # [t, u, M]
    features = w * scale[None, :, None]
    n_levels = len(scale)
    below = torch.tril(torch.ones(n_levels, n_levels, dtype=scale.dtype, device=scale.device))
    columns = below[:, :, None] * column_std[None]  # [t, u, column]
    return torch.cat([features, columns], dim=2)


def joint_precision(statistics: Statistics, d: Tensor, inverse_noise: dict[Key, Tensor]) -> tuple[Tensor, Tensor]:
    """P [T M', T M'] and h [T M'].

    d [T, T, M'] from `block_scales`; inverse_noise gives sigma^-2 by (level, kind).
    """
    n_levels, size = len(d), statistics.size
    p = torch.zeros(n_levels, size, n_levels, size, dtype=d.dtype, device=d.device)
    h = torch.zeros(n_levels, size, dtype=d.dtype, device=d.device)
    for t in range(n_levels):
        moments = {key: m for key, m in statistics.moments.items() if key[0] == t}
        if not moments:
            continue
        gram, projection = _weighted(moments, inverse_noise)
        for u in range(t + 1):
            h[u] += d[t, u] * projection
            left = d[t, u][:, None] * gram
            for v in range(u + 1):
                p[u, :, v] += left * d[t, v][None, :]
    for u in range(n_levels):
        for v in range(u):
            p[v, :, u] = p[u, :, v].T
    p = p.view(n_levels * size, n_levels * size)
    p.diagonal().add_(1.0)
    return p, h.view(-1)


def _weighted(moments: dict[Key, Moments], inverse_noise: dict[Key, Tensor]) -> tuple[Tensor, Tensor]:
    """sum sigma^-2 G and sum sigma^-2 b over the kinds of one level."""
    gram: Tensor | float = 0.0
    projection: Tensor | float = 0.0
    for key, m in moments.items():
        gram = gram + inverse_noise[key] * m.gram
        projection = projection + inverse_noise[key] * m.projection
    assert isinstance(gram, Tensor)
    assert isinstance(projection, Tensor)
    return gram, projection


def factorise(precision: Tensor) -> Tensor:
    """Lower Cholesky factor of P. Raises NumericalError where float64 has lost its definiteness."""
    factor, info = torch.linalg.cholesky_ex(precision)
    if int(info) != 0 or not bool(torch.isfinite(factor.diagonal()).all()):
        raise NumericalError(
            f"the joint precision ({len(precision)} x {len(precision)}) lost its definiteness: the noise is too small for "
            "float64 next to the amplitudes. Raise training.noise_energy or training.noise_force."
        )
    return factor


@dataclass(frozen=True)
class Posterior:
    """theta | y ~ N(mean, P^-1), and what each level sees of it."""

    mean: Tensor  # [T, M']
    factor: Tensor  # [T M', T M'] lower Cholesky factor of P
    d: Tensor  # [T, T, M']

    def level_mean(self, level: int) -> Tensor:
        """Weights of level t on the columns of A: sum_u d[t, u] o theta_u, [M'] (eV)."""
        return (self.d[level] * self.mean).sum(0)

    def level_means(self) -> Tensor:
        """The weights of every level, [T, M'] (eV)."""
        return torch.stack([self.level_mean(t) for t in range(len(self.mean))])

    def inverse(self) -> Tensor:
        """P^-1, [T, M', T, M']."""
        n_levels, size = self.mean.shape
        return torch.cholesky_inverse(self.factor).view(n_levels, size, n_levels, size)

    def term_covariance(self, inverse: Tensor, level: int, term: int, other: int) -> Tensor:
        """Cov[ D_tu theta_u, weights of level s ] = sum_v D_tu (P^-1)_uv D_sv, [M', M'] (eV^2); t level, u term, s other."""
        out = torch.zeros_like(inverse[0, :, 0])
        for v in range(other + 1):
            out += self.d[level, term][:, None] * inverse[term, :, v] * self.d[other, v][None, :]
        return out

    def covariance(self, inverse: Tensor, level: int, other: int) -> Tensor:
        """C_ts = sum_u of the term covariances: between the weights of two levels, [M', M'] (eV^2)."""
        terms = [self.term_covariance(inverse, level, u, other) for u in range(level + 1)]
        return torch.stack(terms).sum(0)

    def level_covariances(self) -> Tensor:
        """C_tt of every level, [T, M', M'] (eV^2)."""
        inverse = self.inverse()
        return torch.stack([self.covariance(inverse, t, t) for t in range(len(self.mean))])


def posterior(statistics: Statistics, d: Tensor, inverse_noise: dict[Key, Tensor]) -> Posterior:
    """The joint posterior over all levels. Raises NumericalError when P cannot be factorised."""
    precision, h = joint_precision(statistics, d, inverse_noise)
    factor = factorise(precision)
    return Posterior(torch.cholesky_solve(h[:, None], factor).view(len(d), -1), factor, d)


def prior_variances(rho: Tensor, scale: Tensor) -> Tensor:
    """Prior variance of a local energy f_t(x) at each level and species, sum_u W[t,u]^2 s_u^2: [T, S] (eV^2).

    rho [T-1, S], scale [T] (eV).
    """
    w = mixing_matrix(rho)
    return (w**2 * (scale**2)[None, :, None]).sum(1)
