"""The radial functions from a table, in float32: for dynamics, where a force need not be known to ten digits.

    H_nl(r) = w(r) G_nl(r) ~ sum_k c_k t^k,  k = 0 .. 3,      t = r / h - floor(r / h)

the cubic that has the values and slopes of H at both ends of its interval (Hermite): an error of h^4 / 384 times the fourth
derivative. The slope is that of the cubic, so that forces stay the gradient of an energy. Tables are made from float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors.config import SOAPConfig
from descriptors.density import Slots
from descriptors.radial import RadialBasis, neighbor_weight, radial_functions_with_slopes
from descriptors.streamed import Folding, Primitives

STEP = 0.01  # Å, at most; rounding in float32 is larger than the error of the cubic


@dataclass(frozen=True)
class RadialTable:
    """Coefficients of H on equal intervals from 0 to the cutoff, and a last row of zeros for what lies beyond."""

    coefficients: Tensor  # [interval + 1, k l n] float32
    step: float  # Å
    folding: Folding  # float32

    @staticmethod
    def of(basis: RadialBasis, config: SOAPConfig, device: torch.device | str = "cpu") -> RadialTable:
        """Tabulate the radial functions of a descriptor."""
        cutoff = config.neighbor_cutoff
        n = math.ceil(cutoff / STEP)
        knots = torch.linspace(0.0, cutoff, n + 1, dtype=torch.float64)  # [knot] Å
        weight, slope = neighbor_weight(knots, config)
        g, dg = radial_functions_with_slopes(basis, knots)  # [l, knot, n]
        h = (g * weight[:, None]).transpose(0, 1).flatten(1)  # [knot, l n]
        dh = (dg * weight[:, None] + g * slope[:, None]).transpose(0, 1).flatten(1) * (cutoff / n)  # per interval
        rise = h[1:] - h[:-1]
        cubic = torch.stack([h[:-1], dh[:-1], 3 * rise - 2 * dh[:-1] - dh[1:], dh[:-1] + dh[1:] - 2 * rise], dim=1)
        rows = torch.cat([cubic, torch.zeros_like(cubic[:1])]).flatten(1)
        return RadialTable(rows.to(device, torch.float32), cutoff / n, _folding(basis, device))


def _folding(basis: RadialBasis, device: torch.device | str) -> Folding:
    """For H itself instead of primitives: M is a 1 for each n."""
    p = Primitives.of(basis).folding
    n_degrees, _, n_max = basis.matrix.shape
    identity = torch.eye(n_max, dtype=torch.float32).repeat(n_degrees, 1)
    return Folding(identity.to(device), p.own.to(device, torch.float32), p.same.to(device, torch.float32))


@dataclass(frozen=True)
class TabulatedSlots:
    """Slots with their places in the table; what it gives is float32."""

    slots: Slots
    table: RadialTable
    vectors: Tensor  # [slot, xyz] Å, float32
    distance: Tensor  # [slot] Å
    interval: Tensor  # [slot] row of the table
    powers: Tensor  # [slot, 2, k] t^k and its derivative by r

    @property
    def folding(self) -> Folding:
        """How the radial functions enter the coefficients."""
        return self.table.folding

    def values(self, rows: slice) -> Tensor:
        """H of some slots, [slot, l n]."""
        return torch.bmm(self.powers[rows, :1], self._cubics(rows))[:, 0]

    def values_and_slopes(self, rows: slice) -> tuple[Tensor, Tensor]:
        """H and dH/dR (1/Å) of some slots, [slot, l n] each."""
        both = torch.bmm(self.powers[rows], self._cubics(rows))
        return both[:, 0], both[:, 1]

    def _cubics(self, rows: slice) -> Tensor:
        return self.table.coefficients.index_select(0, self.interval[rows]).unflatten(1, (4, -1))


def tabulated(slots: Slots, table: RadialTable) -> TabulatedSlots:
    """Place the slots in a table. Empty ones and those beyond the cutoff count nothing."""
    vectors = slots.vectors.to(torch.float32)
    r = torch.linalg.vector_norm(vectors, dim=1)  # [slot] Å
    last = len(table.coefficients) - 1
    x = torch.where(slots.filled > 0, r / table.step, float(last)).clamp_(max=last)
    interval = x.long()
    t = x - interval
    one, t2 = torch.ones_like(t), t * t
    powers = [one, t, t2, t2 * t, torch.zeros_like(t), one / table.step, t * (2 / table.step), t2 * (3 / table.step)]
    return TabulatedSlots(slots, table, vectors, r, interval, torch.stack(powers, dim=1).view(-1, 2, 4))
