"""a^T C a: what the weights' posterior brings to the variance of a functional with the row a; many rows in little memory."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4096  # at a time


def weights_variances(phi: Tensor, extra: Tensor, covariance: Tensor) -> Tensor:
    """diag(A C A^T) [row] eV^2 of A = [phi, extra], phi [row, M], extra [row, column], covariance [M', M'] eV^2."""
    out = []
    for features, columns in zip(phi.split(ROWS), extra.split(ROWS), strict=True):
        a = torch.cat([features, columns], dim=1)
        out.append(((a @ covariance) * a).sum(1))
    return torch.cat(out)
