"""Data-driven contraction of the (species x radial) channels, one for each l.

    c'_{k lm} = sum_a U^l_{ak} c_{a lm},     U^l = leading eigenvectors of  C^l_ab = sum_{i, m} c_{i,a lm} c_{i,b lm}

The second moment is not centred: the power spectrum is a product of c itself. The retained variance is the share of
the trace of C^l that the kept eigenvalues hold (Goscinski et al., J. Chem. Phys. 155, 104106 (2021)).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from descriptors.neighbors import Neighborhoods

if TYPE_CHECKING:
    from descriptors.soap import SOAP


@dataclass(frozen=True)
class Contraction:
    """Orthonormal columns U^l, in float64 on the CPU, and the share of the variance that they retain."""

    matrices: tuple[Tensor, ...]  # [l] of [channel, K_l]
    retained: tuple[float, ...]  # [l] in (0, 1]


def contract(coefficients: list[Tensor], contraction: Contraction) -> list[Tensor]:
    """c' for each l, [centre, K_l, 2l+1], from c [centre, channel, 2l+1]."""
    return [u.T.to(c) @ c for u, c in zip(contraction.matrices, coefficients, strict=True)]


def expand_channels(gradients: list[Tensor], contraction: Contraction) -> list[Tensor]:
    """dE/dc from dE/dc': the transpose of `contract`."""
    return [u.to(g) @ g for u, g in zip(contraction.matrices, gradients, strict=True)]


def fit_contraction(soap: SOAP, batches: Iterable[Neighborhoods], retained_variance: float) -> Contraction:
    """The fewest channels of each l that retain a share `retained_variance` in (0, 1] of the variance in the batches.

    `soap` must be uncontracted. Each column's largest entry is made positive, so that the result does not depend on
    the eigensolver's signs. Raises ValueError for a contracted `soap`, a share out of range, or batches with no atoms.
    """
    if soap.contraction is not None:
        raise ValueError("a contraction is fitted on the uncontracted descriptor; build SOAP(config, species) for it.")
    if not 0 < retained_variance <= 1:
        raise ValueError(f"retained_variance = {retained_variance} is outside (0, 1].")
    moments: list[Tensor] = []  # [l] of [channel, channel]
    for nb in batches:
        flat = [c.double().transpose(0, 1).flatten(1) for c in soap.coefficients(nb)]  # [l] of [channel, centre*m]
        new = [(c @ c.T).cpu() for c in flat]
        moments = [a + b for a, b in zip(moments, new, strict=True)] if moments else new
    if not moments or not bool(moments[0].any()):
        raise ValueError("no atoms to fit a contraction on; give at least one structure.")
    matrices, retained = zip(*(_leading(c, retained_variance) for c in moments), strict=True)
    return Contraction(matrices, retained)


def _leading(moment: Tensor, retained_variance: float) -> tuple[Tensor, float]:
    """Leading eigenvectors [channel, K] of a second moment [channel, channel], and the share they hold."""
    values, vectors = torch.linalg.eigh(moment)  # ascending
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    if total == 0:  # no neighbours anywhere: nothing of this l to keep, one channel keeps the layout regular
        return vectors[:, :1], 1.0
    share = values.cumsum(0) / total
    k = len(values) if retained_variance == 1 else int((share < retained_variance).sum()) + 1
    u = vectors[:, : min(k, len(values))]
    largest = u.abs().argmax(dim=0)
    signs = torch.sign(u[largest, torch.arange(u.shape[1])])
    return u * signs, min(float(share[u.shape[1] - 1]), 1.0)
