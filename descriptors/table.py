"""The radial functions from a table, instead of sums over primitives that cancel.

    H_nl(r) = w(r) G_nl(r),     G_nl(r) ~ sum_k p_k(t) T_k,nl,     t = r / h - floor(r / h)

the quintic that has the values, slopes and curvatures of G at both ends of its interval (Hermite; T holds them in units of
h): an error of h^6 / 46080 times the sixth derivative. The weight w stays as it is (radial.py), for it may have kinks in
its third derivative. The slope is that of the quintic, so that forces stay the gradient of an energy. Intervals are halved
until the error in the middle of all is below `TOLERANCE` of the largest |G|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from descriptors.config import SOAPConfig
from descriptors.density import Slots
from descriptors.lanes import WIDTH
from descriptors.radial import RadialBasis, neighbor_weight, radial_functions, radial_functions_with_curvatures
from descriptors.solid_harmonics import recursion
from descriptors.streamed import Folding, Primitives

STEP = 0.04  # Å, at most
HALVINGS = 4  # at most
TOLERANCE = 1e-12


@dataclass(frozen=True)
class RadialTable:
    """G, h dG/dr and h^2 d2G/dr2 at 0, h, .. and one knot beyond the cutoff."""

    knots: Tensor  # [knot, 3, l n]
    step: float  # h, Å
    config: SOAPConfig
    folding: Folding  # in the dtype of the table

    @staticmethod
    def of(
        basis: RadialBasis,
        config: SOAPConfig,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> RadialTable:
        """Tabulate the radial functions of a descriptor, in float64 until the last."""
        half = torch.tensor([quintic(0.5)[0]], dtype=torch.float64)  # [1, 6]
        n = math.ceil(config.neighbor_cutoff / STEP)
        for _ in range(HALVINGS):
            step = config.neighbor_cutoff / n
            r = step * torch.arange(n + 2, dtype=torch.float64)  # [knot] Å
            knots = _knots(basis, r, step)
            exact = radial_functions(basis, r[:-1] + 0.5 * step).transpose(0, 1).flatten(1)  # [interval, l n]
            error = (half @ intervals(knots)).squeeze(1) - exact
            if float(error.abs().max()) < TOLERANCE * float(exact.abs().max()):
                break
            n *= 2
        return RadialTable(knots.to(device, dtype), step, config, _folding(basis, dtype, device))

    @cached_property
    def constants(self) -> Constants:
        """The same for compiled loops. Copies: memory of a tensor that another process is sent moves under its arrays."""
        c, n = self.config, self.folding.matrix.shape[1]
        by_degree = self.knots.view(len(self.knots), 3 * (c.l_max + 1), n)
        knots = torch.nn.functional.pad(by_degree, (0, -n % WIDTH)).flatten(1).numpy().copy()
        r0, m = (c.radial_scaling.r0, c.radial_scaling.m) if c.radial_scaling else (0.0, 0.0)
        radial = np.array([self.step, c.neighbor_cutoff, c.r_cut, c.cutoff_width, r0, m])
        return Constants(
            knots, radial, self.folding.own.double().numpy().copy(), recursion(c.l_max).astype(knots.dtype)
        )


@dataclass(frozen=True)
class Constants:
    """What compiled loops over pairs need of a descriptor (density_kernels.py)."""

    knots: NDArray[Any]  # [knot, 3 l n], n padded to a multiple of eight with zeros
    radial: NDArray[np.float64]  # [6] step of the knots, largest distance, r_cut, cutoff_width, r0 (0: no scaling), m
    own: NDArray[np.float64]  # [n] what a centre adds to its own density at l = 0
    recursion: NDArray[Any]  # [l, m, 4] of the solid harmonics


def _knots(basis: RadialBasis, r: Tensor, step: float) -> Tensor:
    """[knot, 3, l n] at r [knot] Å."""
    both = torch.stack(radial_functions_with_curvatures(basis, r))  # [k, l, knot, n]
    scale = torch.tensor([1.0, step, step**2], dtype=torch.float64)
    return (both * scale[:, None, None, None]).permute(2, 0, 1, 3).flatten(2).contiguous()


def _folding(basis: RadialBasis, dtype: torch.dtype, device: torch.device | str) -> Folding:
    """For H itself instead of primitives: M is a 1 for each n."""
    p = Primitives.of(basis).folding
    n_degrees, _, n_max = basis.matrix.shape
    identity = torch.eye(n_max, dtype=dtype).repeat(n_degrees, 1)
    return Folding(identity.to(device), p.own.to(device, dtype), p.same.to(device, dtype))


def intervals(knots: Tensor) -> Tensor:
    """What belongs to both ends of each interval, [interval, 6, l n], a view of [knot, 3, l n]."""
    n_functions = knots.shape[2]
    return knots.as_strided((len(knots) - 1, 6, n_functions), (3 * n_functions, n_functions, 1))


def quintic(t: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Weights p of value, slope and curvature at t = 0, then at t = 1, and their derivatives by t, of a number or a tensor.

    Compiled loops have it from here too (density_kernels.py).
    """
    t2, u = t * t, 1 - t
    u2 = u * u
    values = (
        u2 * u * (1 + 3 * t + 6 * t2),
        t * u2 * u * (1 + 3 * t),
        0.5 * t2 * u2 * u,
        t2 * t * (10 - 15 * t + 6 * t2),
        -t2 * t * u * (4 - 3 * t),
        0.5 * t2 * t * u2,
    )
    slopes = (
        -30 * t2 * u2,
        u2 * (1 - 3 * t) * (1 + 5 * t),
        0.5 * t * u2 * (2 - 5 * t),
        30 * t2 * u2,
        -t2 * (2 - 3 * t) * (6 - 5 * t),
        0.5 * t2 * u * (3 - 5 * t),
    )
    return values, slopes


@dataclass(frozen=True)
class TabulatedSlots:
    """Slots with their places in the table; what it gives has the table's dtype."""

    slots: Slots
    table: RadialTable
    vectors: Tensor  # [slot, xyz] Å, in the table's dtype
    distance: Tensor  # [slot] Å
    interval: Tensor  # [slot]
    weights: Tensor  # [slot, 2, 6] of both ends of the interval in H and dH/dR

    @property
    def folding(self) -> Folding:
        """How the radial functions enter the coefficients."""
        return self.table.folding

    def values(self, rows: slice) -> Tensor:
        """H of some slots, [slot, l n]."""
        return torch.bmm(self.weights[rows, :1], self._ends(rows))[:, 0]

    def values_and_slopes(self, rows: slice) -> tuple[Tensor, Tensor]:
        """H and dH/dR (1/Å) of some slots, [slot, l n] each."""
        both = torch.bmm(self.weights[rows], self._ends(rows))
        return both[:, 0], both[:, 1]

    def _ends(self, rows: slice) -> Tensor:
        return intervals(self.table.knots).index_select(0, self.interval[rows])


def tabulated(slots: Slots, table: RadialTable) -> TabulatedSlots:
    """Place the slots in a table. Empty ones and those beyond the cutoff count nothing."""
    r = torch.linalg.vector_norm(slots.vectors.double(), dim=1)  # [slot] Å
    cutoff, dtype = table.config.neighbor_cutoff, table.knots.dtype
    used = slots.filled * (r <= cutoff)
    x = torch.where(used > 0, r / table.step, 0.0)
    interval = x.long()
    p, dp = (torch.stack(y, dim=1) for y in quintic(x - interval))  # [slot, 6]
    w, dw = (y * used for y in neighbor_weight(r, table.config))
    weights = torch.stack([w[:, None] * p, dw[:, None] * p + (w / table.step)[:, None] * dp], dim=1)
    return TabulatedSlots(slots, table, slots.vectors.to(dtype), r.to(dtype), interval, weights.to(dtype))
