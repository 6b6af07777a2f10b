"""The power spectrum and its reverse pass.

    p_{ab l} = pi sqrt(8 / (2l + 1)) sum_m c_{a lm} c_{b lm},    q = p / |p|

Only a <= b is kept, off-diagonal entries times sqrt(2), so that the dot product of two q is the sum over all (a, b):
the SOAP kernel (Bartok, Kondor & Csanyi, PRB 87, 184115 (2013)). Entries are ordered l, then the upper triangle (a, b).

With M_ab = dE/dp_ab (symmetric; times sqrt(2) off the diagonal, 2 on it) the reverse pass is dE/dc_a = sum_b M_ab c_b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SpectrumLayout:
    """Where each entry of the power spectrum comes from, for K_l channels of degree l; weights in float64."""

    widths: tuple[int, ...]  # [l] K_l
    upper: Tensor  # [D] position of entry (a, b), a <= b, among the concatenated K_l x K_l products
    full: Tensor  # [sum_l K_l^2] entry that holds (a, b) or (b, a)
    weight: Tensor  # [D] pi sqrt(8/(2l+1)), times sqrt(2) where a != b
    slope: Tensor  # [sum_l K_l^2] weight of the entry, times 2 where a = b

    @property
    def n_features(self) -> int:
        """D."""
        return len(self.upper)

    def entries(self) -> list[slice]:
        """Entries of each l."""
        stops = [0]
        for k in self.widths:
            stops.append(stops[-1] + k * (k + 1) // 2)
        return [slice(a, b) for a, b in pairwise(stops)]

    @cached_property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """K_l [l] and the weights [D], for compiled loops."""
        return np.array(self.widths), self.weight.double().cpu().numpy().copy()  # as RadialTable.constants

    def to(self, device: torch.device | str, dtype: torch.dtype) -> SpectrumLayout:
        """The same layout on a device, weights in a dtype."""
        return SpectrumLayout(
            self.widths,
            self.upper.to(device),
            self.full.to(device),
            self.weight.to(device=device, dtype=dtype),
            self.slope.to(device=device, dtype=dtype),
        )


def spectrum_layout(widths: list[int]) -> SpectrumLayout:
    """Layout for K_l = widths[l] channels."""
    upper, full, weight, slope = [], [], [], []
    n_entries = n_products = 0
    for l, k in enumerate(widths):  # noqa: E741
        a, b = torch.triu_indices(k, k)  # [entry of l]
        entry = torch.empty(k, k, dtype=torch.long)
        entry[a, b] = entry[b, a] = n_entries + torch.arange(len(a))
        factor = math.pi * math.sqrt(8 / (2 * l + 1))
        w = torch.full((len(a),), factor * math.sqrt(2.0), dtype=torch.float64).masked_fill_(
            a == b, factor
        )  # [entry of l]
        upper.append(n_products + a * k + b)
        full.append(entry.flatten())
        weight.append(w)
        slope.append((w[entry - n_entries] * (1 + torch.eye(k, dtype=torch.float64))).flatten())
        n_entries += len(a)
        n_products += k * k
    return SpectrumLayout(tuple(widths), torch.cat(upper), torch.cat(full), torch.cat(weight), torch.cat(slope))


def power_spectrum(coefficients: list[Tensor], layout: SpectrumLayout) -> Tensor:
    """p [centre, D] from c, for each l [centre, K_l, 2l+1]."""
    products = torch.cat([(c @ c.transpose(1, 2)).flatten(1) for c in coefficients], dim=1)  # [centre, sum_l K_l^2]
    return products.index_select(1, layout.upper).mul_(layout.weight)


def power_spectrum_pullback(coefficients: list[Tensor], layout: SpectrumLayout, gradient: Tensor) -> list[Tensor]:
    """dE/dc, for each l [centre, K_l, 2l+1], from dE/dp [centre, D]."""
    symmetric = gradient.index_select(1, layout.full).mul_(layout.slope)  # [centre, sum_l K_l^2]
    parts = symmetric.split([k * k for k in layout.widths], dim=1)
    pairs = zip(parts, coefficients, layout.widths, strict=True)
    return [part.unflatten(1, (k, k)) @ c for part, c, k in pairs]


def normalised(p: Tensor) -> tuple[Tensor, Tensor]:
    """q = p / |p| and |p|. p [centre, D] -> [centre, D], [centre].

    Raises ValueError where p vanishes: a contraction was fitted without anything like these environments.
    """
    norm = torch.linalg.vector_norm(p, dim=1)
    require_direction(norm)
    return p / norm[:, None], norm


def require_direction(norm: Tensor) -> None:
    """ValueError where |p| [centre] is zero or not a number."""
    if not bool((norm > 0).all()):
        bad = torch.nonzero(~(norm > 0)).squeeze(1).tolist()
        raise ValueError(
            f"the power spectrum of centres {bad} is zero or not a number, so it has no direction; check their "
            "positions, or fit the contraction on structures that contain such environments."
        )


def normalised_pullback(q: Tensor, norm: Tensor, gradient: Tensor) -> Tensor:
    """dE/dp = (g - q (q . g)) / |p| from g = dE/dq. All [centre, D]; norm [centre]."""
    along = torch.linalg.vecdot(q, gradient)[:, None]
    return (gradient - q * along) / norm[:, None]
