"""The passes of the descriptor in tensors, for any device: density coefficients and their reverse, a few slots at a time.

With the primitives P_{ln'} = w(r) exp(-gamma_ln' r^2) of the radial functions, H_nl = sum_n' M^l_n'n P_ln' (radial.py),

    c_{nlm} = sum_n' M^l_n'n C_{ln',lm},       C_{ln',lm} = sum_j P_ln'(r_ij) S_lm(r_ij)
    dE/dr_ij = sum_lm (sum_n' P_ln' B_{ln',lm}) grad S_lm + rhat sum_ln' dP_ln'/dR (sum_m B_{ln',lm} S_lm),
    B_{ln',lm} = sum_n M^l_n'n A_nlm,          A = dE/dc

so that M meets each segment once and not each pair. C and B are kept for all (l n', l' m), with zeros where l' != l: one
matrix product for all degrees costs more operations than one for each, and less time. What belongs to a pair (500 numbers)
is never kept for all pairs: the slots are taken in parts that fit a processor's cache, and the reverse pass computes again
what it needs. Sums over primitives are in float64, whatever the dtype of the vectors, for M cancels up to four digits; in
float32 H comes from a table (table.py), and M is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from descriptors.config import SOAPConfig
from descriptors.contraction import Contraction, contract, expand_channels
from descriptors.density import Y00, Block, Slots, degrees
from descriptors.power_spectrum import (
    SpectrumLayout,
    normalised,
    normalised_pullback,
    power_spectrum,
    power_spectrum_pullback,
)
from descriptors.radial import RadialBasis, neighbor_weight
from descriptors.sphericart_harmonics import solid_harmonics, solid_harmonics_with_gradients

CACHED_SLOTS = {"cpu": 256, "cuda": 2**20}  # slots at a time


@dataclass(frozen=True)
class Folding:
    """How radial factors [slot, l n'] enter the coefficients."""

    matrix: Tensor  # [l n', n] M
    own: Tensor  # [n] what a centre adds to its own density at l = 0
    same: Tensor  # [l n', l m] 1 where both degrees are the same, else 0

    @property
    def l_max(self) -> int:
        """The highest degree."""
        return math.isqrt(self.same.shape[1]) - 1


@dataclass(frozen=True)
class Primitives:
    """The constants of the sums over primitives, float64."""

    gamma: Tensor  # [l n'] 1/Å^2
    folding: Folding

    @staticmethod
    def of(basis: RadialBasis) -> Primitives:
        """Of a radial basis."""
        n_degrees, n_primitives, _ = basis.matrix.shape
        same = basis.matrix.new_zeros(n_degrees, n_primitives, n_degrees**2)
        for l, columns in enumerate(degrees(n_degrees - 1)):  # noqa: E741
            same[l, :, columns] = 1
        own = Y00 * basis.matrix[0].sum(0)  # all primitives are 1 at r = 0
        return Primitives(basis.gamma.flatten(), Folding(basis.matrix.flatten(0, 1), own, same.flatten(0, 1)))

    def to(self, device: torch.device) -> Primitives:
        """The same on a device."""
        f = self.folding
        return Primitives(self.gamma.to(device), Folding(f.matrix.to(device), f.own.to(device), f.same.to(device)))


class RadialSlots(Protocol):
    """Slots with their radial factors, computed for a part of them at a time."""

    @property
    def slots(self) -> Slots:
        """The layout, with vectors."""

    @property
    def vectors(self) -> Tensor:
        """[slot, xyz] Å, in the dtype of the factors."""

    @property
    def distance(self) -> Tensor:
        """[slot] R, Å."""

    @property
    def folding(self) -> Folding:
        """How the factors enter the coefficients."""

    def values(self, rows: slice) -> Tensor:
        """The factors of some slots, [slot, l n'], 0 where a slot is empty or out of range."""

    def values_and_slopes(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The factors and their derivatives by R (1/Å), [slot, l n'] each."""


@dataclass(frozen=True)
class PrimitiveSlots:
    """Slots with their primitives, float64."""

    slots: Slots
    primitives: Primitives
    vectors: Tensor  # [slot, xyz] Å
    distance: Tensor  # [slot] R, Å
    weight: Tensor  # [slot] w; 0 where the slot is empty or out of range
    slope: Tensor  # [slot] dw/dR, 1/Å

    @property
    def folding(self) -> Folding:
        """How the primitives enter the coefficients."""
        return self.primitives.folding

    def values(self, rows: slice) -> Tensor:
        """P of some slots, [slot, l n']."""
        return self._gaussians(rows).mul_(self.weight[rows, None])

    def values_and_slopes(self, rows: slice) -> tuple[Tensor, Tensor]:
        """P and dP/dR = (dw/dR - 2 gamma R w) exp(-gamma R^2), 1/Å, of some slots, [slot, l n'] each."""
        weight, gaussians = self.weight[rows], self._gaussians(rows)
        slopes = torch.addr(
            self.slope[rows, None], self.distance[rows] * weight, self.primitives.gamma, alpha=-2.0
        ).mul_(gaussians)
        return gaussians.mul_(weight[:, None]), slopes

    def _gaussians(self, rows: slice) -> Tensor:
        return torch.outer(self.distance[rows].square(), self.primitives.gamma).neg_().exp_()


def with_primitives(slots: Slots, config: SOAPConfig, primitives: Primitives) -> PrimitiveSlots:
    """Distances and weights. Slots beyond the cutoff are allowed, and count nothing."""
    vectors = slots.vectors.double()
    r = torch.linalg.vector_norm(vectors, dim=1)  # [slot] Å
    used = slots.filled if config.cutoff_width > 0 else slots.filled * (r <= config.neighbor_cutoff)
    weight, slope = neighbor_weight(r, config)
    return PrimitiveSlots(slots, primitives, vectors, r, weight * used, slope * used)


def streamed_coefficients(given: RadialSlots, species: Tensor, n_species: int) -> list[Tensor]:
    """c for each l: [centre, channel, 2l+1] as density_coefficients gives them. species [centre] index of each centre's."""
    f, n_centres = given.folding, len(species)
    n_max = f.matrix.shape[1]
    out = given.vectors.new_zeros(n_centres * n_species, n_max, (f.l_max + 1) ** 2)  # [segment, n, lm]
    for part in parts(given.slots):
        rows, shape = slice(part.start, part.stop), (len(part.segments), part.width, -1)
        values, s = given.values(rows), solid_harmonics(given.vectors[rows], f.l_max)
        products = torch.bmm(values.view(shape).mT, s.view(shape)).mul_(f.same)  # [segment, l n', lm]
        out.index_copy_(0, part.segments, f.matrix.T @ products)
    centres = torch.arange(n_centres, device=species.device)
    out[:, :, 0].index_add_(0, centres * n_species + species, f.own.expand(n_centres, -1))
    c = out.to(given.slots.vectors.dtype).view(n_centres, n_species * n_max, -1)
    return [c[:, :, columns] for columns in degrees(f.l_max)]


def streamed_pullback(given: RadialSlots, gradient: list[Tensor]) -> Tensor:
    """dE/dr of each slot, [slot, xyz], from dE/dc: for each l [centre, channel, 2l+1]."""
    f = given.folding
    dtype, tiny = given.vectors.dtype, torch.finfo(given.vectors.dtype).tiny
    a = torch.cat(gradient, dim=2).to(dtype).view(-1, f.matrix.shape[1], (f.l_max + 1) ** 2)  # [segment, n, lm]
    inverse = given.distance.clamp(min=tiny).reciprocal_()[:, None]  # [slot, 1] 1/Å
    out = torch.empty_like(given.vectors)
    for part in parts(given.slots):
        rows, shape = slice(part.start, part.stop), (len(part.segments), part.width, -1)
        b = (f.matrix @ a.index_select(0, part.segments)).mul_(f.same)  # [segment, l n', lm]
        values, slopes = given.values_and_slopes(rows)  # [slot, l n']
        s, gradients = solid_harmonics_with_gradients(given.vectors[rows], f.l_max)  # [slot, lm], [slot, xyz, lm]
        by_harmonic = torch.bmm(values.reshape(shape), b)  # [segment, width, lm]
        by_radial = torch.bmm(s.view(shape), b.mT).flatten(0, 1)  # [slot, l n']
        along = by_radial.mul_(slopes).sum(1, keepdim=True).mul_(inverse[rows])  # [slot, 1]
        radial = (along * given.vectors[rows])[:, :, None]
        torch.baddbmm(radial, gradients, by_harmonic.view(len(s), -1, 1), out=out[rows, :, None])
    return out.to(given.slots.vectors.dtype)


@dataclass(frozen=True)
class StreamedPass:
    """What the reverse pass needs of the forward pass, and its results."""

    pairs: RadialSlots
    layout: SpectrumLayout
    contraction: Contraction | None
    coefficients: list[Tensor]  # [l] of [centre, K_l, 2l+1], after the contraction
    norm: Tensor  # [centre] |p|
    features: Tensor  # [centre, D] q

    @property
    def slots(self) -> Slots:
        """Where the pairs are."""
        return self.pairs.slots

    @property
    def shortest(self) -> float:
        """The shortest distance in Å; infinite without pairs, NaN where one is not a number."""
        empty = self.pairs.slots.filled == 0
        return float(self.pairs.distance.masked_fill(empty, torch.inf).min()) if len(empty) else math.inf

    def pullback(self, gradient: Tensor) -> Tensor:
        """dE/dr of each slot, [slot, xyz], from dE/dq [centre, D]."""
        dp = normalised_pullback(self.features, self.norm, gradient)
        dc = power_spectrum_pullback(self.coefficients, self.layout, dp)
        if self.contraction is not None:
            dc = expand_channels(dc, self.contraction)
        return streamed_pullback(self.pairs, dc)


def streamed_pass(
    pairs: RadialSlots, species: Tensor, n_species: int, layout: SpectrumLayout, contraction: Contraction | None
) -> StreamedPass:
    """q of centres [centre] of the given species, on any device. Raises ValueError where p vanishes."""
    c = streamed_coefficients(pairs, species, n_species)
    if contraction is not None:
        c = contract(c, contraction)
    layout = layout.to(c[0].device, c[0].dtype)
    q, norm = normalised(power_spectrum(c, layout))
    return StreamedPass(pairs, layout, contraction, c, norm, q)


def parts(slots: Slots) -> list[Block]:
    """The blocks, cut to at most CACHED_SLOTS slots (one segment at least)."""
    limit = CACHED_SLOTS[slots.vectors.device.type]
    out = []
    for block in slots.blocks:
        step = max(1, limit // max(1, block.width))
        for first in range(0, len(block.segments), step):
            out.append(Block(block.segments[first : first + step], block.start + first * block.width, block.width))
    return out
