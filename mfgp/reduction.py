"""Fewer terms for the same mean: kernels of degree one and two are forms whose rank is at most D.

    zeta = 1:  sum_m alpha_m (z_m . q)   = u . q,           u = Z^T alpha                              one term
    zeta = 2:  sum_m alpha_m (z_m . q)^2 = q^T A q,         A = Z^T diag(alpha) Z = sum_k lambda_k v_k v_k^T

so that sum_k lambda_k (v_k . q)^2 has the form of the sum over inducing points, with at most D terms however many of those
there are. As |q| = 1, terms that are dropped change a local energy by at most the sum of their |lambda_k|: the smallest go
while that sum stays below `TOLERANCE`. Kernels of higher degree, and species with no more than D inducing points, stay as
they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mfgp.inducing import InducingBasis

TOLERANCE = 1e-6  # eV, largest change of a local energy


def reduced(basis: InducingBasis, alpha: list[Tensor]) -> tuple[InducingBasis, list[Tensor]]:
    """A basis and dual weights [term] eV of the same mean sum_m alpha_m (z_m . q)^zeta, with no more terms.

    `basis` itself where there are none to save. The points of a new basis are directions in the space of q; its factors and
    ranks are those of the old.
    """
    pairs = [_terms(points, a, basis.zeta) for points, a in zip(basis.points, alpha, strict=True)]
    if all(points is old for (points, _), old in zip(pairs, basis.points, strict=True)):
        return basis, alpha
    return replace(basis, points=tuple(points for points, _ in pairs)), [a for _, a in pairs]


def _terms(points: Tensor, alpha: Tensor, zeta: int) -> tuple[Tensor, Tensor]:
    """Of one species: points [m, D], alpha [m] -> [k, D], [k], k <= m."""
    if zeta == 1:
        return (alpha @ points)[None], alpha.new_ones(1)
    if zeta > 2 or len(points) <= points.shape[1]:
        return points, alpha
    values, vectors = torch.linalg.eigh((points.T * alpha) @ points)  # [D], [D, D]
    order = torch.argsort(values.abs())
    kept = order[values.abs()[order].cumsum(0) > TOLERANCE]
    kept = kept if len(kept) else order[-1:]
    return vectors.T[kept].contiguous(), values[kept]
