"""Fewer terms for the same mean: kernels of degree one and two are forms, and their small terms may go.

    zeta = 1:  sum_m alpha_m (z_m . q)   = u . q,           u = Z^T alpha                              one term
    zeta = 2:  sum_m alpha_m (z_m . q)^2 = q^T A q,         A = Z^T diag(alpha) Z = sum_k lambda_k v_k v_k^T

so that sum_k lambda_k (v_k . q)^2 has the form of the sum over inducing points, with at most D terms however many of those
there are. With Z^T = U R (QR), the lambda_k are the eigenvalues of R diag(alpha) R^T and v_k those of its vectors times U.

What terms are worth is seen at the inducing environments, the most different ones of the training data: the terms of the
smallest root mean square of lambda_k (v_k . z_m)^2 over m go, as long as what they add up to is at most `tolerance` (eV) at
every z_m. For LMFP a fifth of 2000 terms are left at 1e-6 eV, and the largest change of a force is 5e-6 eV/Å: the spectrum
falls fast, since SOAP vectors of one element are much alike. Kernels of higher degree stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mfgp.errors import ConfigError
from mfgp.gp.inducing import InducingBasis

MAX_ZETA = 2  # of the kernels whose mean is a form


def checked_tolerance(basis: InducingBasis, tolerance: float) -> float:
    """A tolerance of `reduced`. ConfigError for a negative one, and for one above 0 where the kernel has no such form."""
    if not isinstance(tolerance, int | float) or not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"compression = {tolerance} eV: give zero or more, such as 1e-5.")
    if tolerance > 0 and basis.zeta > MAX_ZETA:
        raise ConfigError(
            f"compression: the mean of a model with zeta = {basis.zeta} has no form with fewer terms; fit with zeta: 2."
        )
    return tolerance


def reduced(basis: InducingBasis, alpha: list[Tensor], tolerance: float) -> tuple[InducingBasis, list[Tensor]]:
    """A basis and dual weights [term] eV of the mean sum_m alpha_m (z_m . q)^zeta within `tolerance`, with fewer terms.

    tolerance: largest change of a local energy at an inducing environment, eV; with 0 only elements with more inducing
    points than features have fewer terms. `basis` itself where there are none to save. The points of a new basis are
    directions in the space of q; its factors and ranks are those of the old.
    """
    if basis.zeta > MAX_ZETA:
        return basis, alpha
    pairs = [_terms(points, a, basis.zeta, tolerance) for points, a in zip(basis.points, alpha, strict=True)]
    if all(points is old for (points, _), old in zip(pairs, basis.points, strict=True)):
        return basis, alpha
    return replace(basis, points=tuple(points for points, _ in pairs)), [a for _, a in pairs]


def _terms(points: Tensor, alpha: Tensor, zeta: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Of one species: points [m, D], alpha [m] -> [k, D], [k], k <= m."""
    if zeta == 1:
        return (alpha @ points)[None], alpha.new_ones(1)
    if tolerance == 0 and len(points) <= points.shape[1]:
        return points, alpha
    directions, r = torch.linalg.qr(points.T)  # [D, min(m, D)], [min(m, D), m]
    values, vectors = torch.linalg.eigh((r * alpha) @ r.T)  # lambda [k]
    found = (r.T @ vectors).square_().mul_(values)  # [m, k] lambda_k (v_k . z_m)^2
    order = found.square().mean(0).argsort()  # the smallest first
    lost = found[:, order].cumsum(1).abs().amax(0).cummax(0).values  # [k] eV, if all up to this one go
    kept = order[lost > tolerance]
    kept = kept if len(kept) else order[-1:]
    if len(kept) == len(points):
        return points, alpha
    return (directions @ vectors[:, kept]).T.contiguous(), values[kept]
