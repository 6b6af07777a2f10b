"""The variance that the inducing points do not carry, the Nystrom residual of the projected process.

    S_t[z] (prior_z - |Phi_z|^2),        S_t[z] = sum_u W[t, u][z]^2 s_u^2

prior_z: exact prior variance of a functional at unit amplitude from environments of species z (the full derivative kernel).
Quinonero-Candela & Rasmussen, J. Mach. Learn. Res. 6, 1939 (2005).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mfgp.gp.inducing import InducingBasis

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

RESIDUAL_TOLERANCE = 1e-7  # relative: rounding may push a residual this far below zero, anything more is reported


def residual_variance(model: MultiFidelityGP, level: int, phi: Tensor, prior: Tensor) -> Tensor:
    """S_t (prior - |Phi|^2) of every functional, [row] eV^2: the variance that the inducing points do not carry.

    phi [row, M], prior [row, S] at unit amplitude.
    """
    return unexplained(model.basis, phi, prior) @ model.prior.local_variances()[level].detach()


def unexplained(basis: InducingBasis, phi: Tensor, prior: Tensor) -> Tensor:
    """prior [row, S] at unit amplitude less |Phi|^2 by central species, phi [row, M]: [row, S], at least zero."""
    explained = torch.stack([(phi[:, columns] ** 2).sum(1) for _, columns in basis.blocks()], dim=1)
    return nystrom_residual(prior, explained)


def nystrom_residual(prior: Tensor, explained: Tensor, tolerance: float = RESIDUAL_TOLERANCE) -> Tensor:
    """prior - explained, at least zero. Warns when it is below zero by more than rounding (relative to prior) explains."""
    residual = prior - explained
    worst = float((residual + tolerance * prior.abs()).min()) if residual.numel() else 0.0
    if worst < -tolerance:
        warnings.warn(f"inducing points explain more variance than there is (by {-worst:.1e})", stacklevel=2)
    return residual.clamp(min=0.0)
