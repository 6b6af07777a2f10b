"""Density coefficients and their reverse pass, a few slots at a time.

With the primitives P_{ln'} = w(r) exp(-gamma_ln' r^2) of the radial functions, H_nl = sum_n' M^l_n'n P_ln' (radial.py),

    c_{nlm} = sum_n' M^l_n'n C_{ln',lm},       C_{ln',lm} = sum_j P_ln'(r_ij) S_lm(r_ij)
    dE/dr_ij = sum_lm (sum_n' P_ln' B_{ln',lm}) grad S_lm + rhat sum_ln' dP_ln'/dR (sum_m B_{ln',lm} S_lm),
    B_{ln',lm} = sum_n M^l_n'n A_nlm,          A = dE/dc

so that M meets each segment once and not each pair. C and B are kept for all (l n', l' m), with zeros where l' != l: one
matrix product for all degrees costs more operations than one for each, and much less time. What belongs to a pair (500
numbers) is never kept for all pairs: the slots are taken in parts that fit a processor's cache, and the reverse pass
computes again what it needs, which is faster than to fetch it from memory. All sums are in float64, whatever the dtype of
the vectors: M cancels up to four digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sphericart.torch import SolidHarmonics
from torch import Tensor

from descriptors.config import SOAPConfig
from descriptors.density import Y00, Block, Slots, degrees
from descriptors.radial import RadialBasis, neighbor_weight

CACHED_SLOTS = {"cpu": 256, "cuda": 2**20}  # slots at a time


@dataclass(frozen=True)
class Primitives:
    """The constants of the sums over primitives, float64."""

    gamma: Tensor  # [l n'] 1/Å^2
    matrix: Tensor  # [l n', n] M
    own: Tensor  # [n] what a centre adds to its own density at l = 0
    same: Tensor  # [l n', l m] 1 where both degrees are the same, else 0

    @staticmethod
    def of(basis: RadialBasis) -> Primitives:
        """Of a radial basis."""
        n_degrees, n_primitives, _ = basis.matrix.shape
        same = basis.matrix.new_zeros(n_degrees, n_primitives, n_degrees**2)
        for l, columns in enumerate(degrees(n_degrees - 1)):  # noqa: E741
            same[l, :, columns] = 1
        own = Y00 * basis.matrix[0].sum(0)  # all primitives are 1 at r = 0
        return Primitives(basis.gamma.flatten(), basis.matrix.flatten(0, 1), own, same.flatten(0, 1))

    def to(self, device: torch.device) -> Primitives:
        """The same on a device."""
        return Primitives(*(x.to(device) for x in (self.gamma, self.matrix, self.own, self.same)))


@dataclass(frozen=True)
class WeightedSlots:
    """Slots with what depends on the distance alone, float64."""

    slots: Slots
    vectors: Tensor  # [slot, xyz] Å
    distance: Tensor  # [slot] R, Å
    weight: Tensor  # [slot] w; 0 where the slot is empty or out of range
    slope: Tensor  # [slot] dw/dR, 1/Å


def weighted(slots: Slots, config: SOAPConfig) -> WeightedSlots:
    """Distances and weights. Slots beyond the cutoff are allowed, and count nothing."""
    vectors = slots.vectors.double()
    r = torch.linalg.vector_norm(vectors, dim=1)  # [slot] Å
    used = slots.filled if config.cutoff_width > 0 else slots.filled * (r <= config.neighbor_cutoff)
    weight, slope = neighbor_weight(r, config)
    return WeightedSlots(slots, vectors, r, weight * used, slope * used)


def streamed_coefficients(given: WeightedSlots, species: Tensor, n_species: int, p: Primitives) -> list[Tensor]:
    """c for each l: [centre, channel, 2l+1] as density_coefficients gives them. species [centre] index of each centre's."""
    l_max, n_max = _degree(p), p.matrix.shape[1]
    n_centres, harmonics = len(species), SolidHarmonics(l_max)
    out = given.weight.new_zeros(n_centres * n_species, n_max, (l_max + 1) ** 2)  # [segment, n, lm]
    for part in parts(given.slots):
        rows, shape = slice(part.start, part.stop), (len(part.segments), part.width, -1)
        values = torch.outer(given.distance[rows].square(), p.gamma).neg_().exp_().mul_(given.weight[rows, None])
        s = harmonics.compute(given.vectors[rows])
        products = torch.bmm(values.view(shape).mT, s.view(shape)).mul_(p.same)  # [segment, l n', lm]
        out.index_copy_(0, part.segments, p.matrix.T @ products)
    centres = torch.arange(n_centres, device=species.device)
    out[:, :, 0].index_add_(0, centres * n_species + species, p.own.expand(n_centres, -1))
    c = out.to(given.slots.vectors.dtype).view(n_centres, n_species * n_max, -1)
    return [c[:, :, columns] for columns in degrees(l_max)]


def streamed_pullback(given: WeightedSlots, gradient: list[Tensor], p: Primitives) -> Tensor:
    """dE/dr of each slot, [slot, xyz], from dE/dc: for each l [centre, channel, 2l+1]."""
    l_max, n_max = _degree(p), p.matrix.shape[1]
    harmonics = SolidHarmonics(l_max)
    a = torch.cat(gradient, dim=2).double().view(-1, n_max, (l_max + 1) ** 2)  # [segment, n, lm]
    out = torch.empty_like(given.vectors)
    for part in parts(given.slots):
        rows, shape = slice(part.start, part.stop), (len(part.segments), part.width, -1)
        r, weight, vectors = given.distance[rows], given.weight[rows], given.vectors[rows]
        b = (p.matrix @ a.index_select(0, part.segments)).mul_(p.same)  # [segment, l n', lm]
        gaussians = torch.outer(r.square(), p.gamma).neg_().exp_()  # [slot, l n']
        slopes = torch.addr(given.slope[rows, None], r * weight, p.gamma, alpha=-2.0).mul_(gaussians)
        s, gradients = harmonics.compute_with_gradients(vectors)  # [slot, lm], [slot, xyz, lm]
        by_harmonic = torch.bmm(gaussians.mul_(weight[:, None]).view(shape), b)  # [segment, width, lm]
        by_radial = torch.bmm(s.view(shape), b.mT).view_as(slopes)  # [slot, l n']
        along = torch.bmm(by_radial[:, None], slopes[:, :, None])[:, 0]  # [slot, 1]
        along /= r.clamp(min=torch.finfo(r.dtype).tiny)[:, None]
        torch.baddbmm((along * vectors)[:, :, None], gradients, by_harmonic.view(len(s), -1, 1), out=out[rows, :, None])
    return out.to(given.slots.vectors.dtype)


def parts(slots: Slots) -> list[Block]:
    """The blocks, cut to at most CACHED_SLOTS slots (one segment at least)."""
    limit = CACHED_SLOTS[slots.vectors.device.type]
    out = []
    for block in slots.blocks:
        step = max(1, limit // max(1, block.width))
        for first in range(0, len(block.segments), step):
            out.append(Block(block.segments[first : first + step], block.start + first * block.width, block.width))
    return out


def _degree(p: Primitives) -> int:
    return round(p.same.shape[1] ** 0.5) - 1
