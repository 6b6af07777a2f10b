"""What a calculation would teach: the reduction of the target's variance, in closed form.

The weights that the levels see have the covariance C [T, T, M', M']. A calculation at level u
adds rows A [r, M'] (divided by the standard deviation of their noise); with I + A C_uu A^T = L L^T, Q_s = L^-1 A C_us,

    C_st  ->  C_st - Q_s^T Q_t                                   (Sherman-Morrison-Woodbury)

so the variance of the target functionals R [b, M'] of level t, sum of diag(R C_tt R^T), falls by

    gain = | Q_t R^T |^2 = | L^-1 A X_u |^2,        X_u = C_ut R^T

No label enters: at fixed hyperparameters the variance depends on where one calculates, not on what comes out. This is the
A-optimal (trace) criterion of Bayesian experimental design (Chaloner & Verdinelli, Statist. Sci. 10, 273 (1995)) for the
functionals of interest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfgp.gp.centring import uncentred_covariance
from mfgp.gp.levels import Posterior


def cross_level_covariance(posterior: Posterior, centre: Tensor) -> Tensor:
    """C [T, T, M', M'] between the weights w and e0 that two levels see (eV^2); centre [S, M] of the fit (centring)."""
    return uncentred_covariance(posterior.all_covariances(), centre)


def information_factor(covariance: Tensor, rows: Tensor, level: int) -> Tensor:
    """L of I + A C_uu A^T, [r, r]. covariance [T, T, M', M'], rows A [r, M'] in units of their noise."""
    hat = rows @ covariance[level, level] @ rows.T
    return torch.linalg.cholesky(torch.eye(len(rows), dtype=rows.dtype, device=rows.device) + 0.5 * (hat + hat.T))


def gain(covariance: Tensor, rows: Tensor, level: int, projected: Tensor) -> float:
    """| L^-1 A X_u |^2, the fall of the target's summed variance. projected X_u [M', b]."""
    factor = information_factor(covariance, rows, level)
    return float((torch.linalg.solve_triangular(factor, rows @ projected, upper=False) ** 2).sum())


def condition(covariance: Tensor, rows: Tensor, level: int) -> Tensor:
    """Take a calculation as done: C is updated in place. Returns Q [T, r, M']."""
    factor = information_factor(covariance, rows, level)
    n_levels = len(covariance)
    q = torch.stack(
        [torch.linalg.solve_triangular(factor, rows @ covariance[level, s], upper=False) for s in range(n_levels)]
    )
    for s in range(n_levels):
        for t in range(n_levels):
            covariance[s, t].addmm_(q[s].T, q[t], alpha=-1.0)
    return q
