"""Density coefficients of an environment, and the reverse pass from them to the pair vectors.

    c_{i,(s n),lm} = sum_{j of species s} w(r_ij) G_nl(r_ij) S_lm(r_ij)      (+ the centre itself: r = 0, l = 0 only)

Given A = dE/dc, with H_l = w G_l and R = |r|,

    dE/dr_ij = sum_lm (sum_n H_nl A_nlm) grad S_lm  +  rhat sum_lm (sum_n dH_nl/dR A_nlm) S_lm.

Pairs are laid out in slots: all neighbours of one species around one centre form a segment, segments of similar length
are padded to the same width, and the sums over neighbours become one batched matrix product for each l.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors.config import SOAPConfig
from descriptors.radial import RadialBasis, neighbor_weight, radial_functions, radial_functions_with_slopes
from descriptors.sphericart_harmonics import solid_harmonics_with_gradients

Y00 = 0.5 / math.sqrt(math.pi)
PADDING = 1.3  # slots per pair above which segments are sorted into blocks of similar length


@dataclass(frozen=True)
class Environments:
    """What the density needs to know of some centres and their pairs; centres are numbered from 0."""

    species: Tensor  # [centre] index of the centre's species
    centre: Tensor  # [pair] ascending
    pair_species: Tensor  # [pair] index of the neighbour's species
    vectors: Tensor  # [pair, 3] Å


@dataclass(frozen=True)
class Block:
    """Segments padded to one width: slots start .. start + len(segments) * width."""

    segments: Tensor  # [segment] its key; centre * n_species + species for pairs
    start: int
    width: int

    @property
    def stop(self) -> int:
        """One past the last slot."""
        return self.start + len(self.segments) * self.width


@dataclass(frozen=True)
class Slots:
    """The padded layout."""

    of_pair: Tensor  # [pair] slot
    vectors: Tensor  # [slot, 3] Å; 0 where the slot is empty
    filled: Tensor  # [slot] 1 for a pair, 0 for padding
    blocks: tuple[Block, ...]
    first: Tensor  # [centre n_species + species] first slot of each segment
    count: Tensor  # [centre n_species + species] its pairs


@dataclass(frozen=True)
class PairTerms:
    """Factors of the density for each slot."""

    radial: Tensor  # [l, slot, n] w G
    harmonics: Tensor  # [slot, lm] R^l Y_lm


@dataclass(frozen=True)
class PairSlopes:
    """Derivatives of the factors for each slot."""

    radial: Tensor  # [l, slot, n] d(w G)/dR, 1/Å
    harmonics: Tensor  # [slot, xyz, lm] 1/Å
    direction: Tensor  # [slot, xyz] rhat; 0 where R = 0


def lay_out(env: Environments, n_species: int) -> Slots:
    """Assign a slot to every pair."""
    key = env.centre * n_species + env.pair_species
    of_pair, blocks = pad(key)
    count = torch.bincount(key, minlength=len(env.species) * n_species)
    first = torch.zeros_like(count)
    for block in blocks:
        first[block.segments] = block.start + block.width * torch.arange(len(block.segments), device=first.device)
    n_slots = blocks[-1].stop if blocks else 0
    vectors = env.vectors.new_zeros(n_slots, 3).index_copy_(0, of_pair, env.vectors)
    filled = env.vectors.new_zeros(n_slots).index_fill_(0, of_pair, 1)
    return Slots(of_pair, vectors, filled, blocks, first, count)


def pad(key: Tensor) -> tuple[Tensor, tuple[Block, ...]]:
    """Slot of each item, [item], where the items of one key form a segment; the blocks' segments are the keys."""
    order = torch.argsort(key, stable=True)
    segments, counts = torch.unique_consecutive(key[order], return_counts=True)
    first = counts.cumsum(0) - counts  # [segment] position of its first item in `order`
    starts, blocks, stop = torch.empty_like(counts), [], 0
    for chosen in _similar(counts):
        width = int(counts[chosen].max())
        starts[chosen] = stop + width * torch.arange(len(chosen), device=counts.device)
        blocks.append(Block(segments[chosen], stop, width))
        stop = blocks[-1].stop
    slot = torch.arange(len(key), device=key.device) + (starts - first).repeat_interleave(counts)
    return torch.empty_like(slot).index_copy_(0, order, slot), tuple(blocks)


def _similar(counts: Tensor) -> list[Tensor]:
    """Groups of segments to be padded alike: one group where that wastes little, else lengths within a factor of 2."""
    if len(counts) == 0:
        return []
    if len(counts) * int(counts.max()) <= PADDING * int(counts.sum()):
        return [torch.arange(len(counts), device=counts.device)]
    octave = torch.ceil(torch.log2(counts.clamp(min=4).double()))
    return [torch.nonzero(octave == o).squeeze(1) for o in torch.unique(octave)]


def pair_terms_with_slopes(slots: Slots, basis: RadialBasis, config: SOAPConfig) -> tuple[PairTerms, PairSlopes]:
    """Radial functions and solid harmonics with their derivatives."""
    r = torch.linalg.vector_norm(slots.vectors, dim=1)  # [slot] Å
    weight, slope = (x * slots.filled for x in neighbor_weight(r, config))
    values, slopes = radial_functions_with_slopes(basis, r)
    radial = values * weight[None, :, None]
    radial_slope = (slopes * weight[None, :, None]).addcmul_(values, slope[None, :, None].expand_as(values))
    harmonics, gradients = solid_harmonics_with_gradients(slots.vectors, config.l_max)
    direction = slots.vectors / r.clamp(min=torch.finfo(r.dtype).tiny)[:, None]
    return PairTerms(radial, harmonics), PairSlopes(radial_slope, gradients, direction)


def degrees(l_max: int) -> list[slice]:
    """Columns of each degree l among the (l, m) of the harmonics."""
    return [slice(l * l, (l + 1) * (l + 1)) for l in range(l_max + 1)]  # noqa: E741


def blockwise(slots: Slots, per_slot: Tensor, block: Block) -> Tensor:
    """A block of a tensor [slot, x] as [segment, width, x]."""
    return per_slot[block.start : block.stop].unflatten(0, (len(block.segments), block.width))


def density_coefficients(
    env: Environments, slots: Slots, terms: PairTerms, basis: RadialBasis, n_species: int
) -> list[Tensor]:
    """c for each l: [centre, channel, 2l+1]; channels are species-major, n within a species."""
    n_centres, n_max = len(env.species), basis.matrix.shape[2]
    out = []
    for l, columns in enumerate(degrees(len(terms.radial) - 1)):  # noqa: E741
        c = segment_products(slots, terms.radial[l], terms.harmonics[:, columns], n_centres * n_species)
        out.append(c.view(n_centres, n_species * n_max, -1))
    own = radial_functions(basis, env.vectors.new_zeros(1))[0, 0] * Y00  # [n] the centre's own Gaussian
    rows = torch.arange(n_centres, device=env.species.device)
    out[0].view(n_centres, n_species, n_max)[rows, env.species] += own
    return out


def segment_products(slots: Slots, left: Tensor, right: Tensor, n_segments: int) -> Tensor:
    """Sum over the slots of each segment of left x right: [slot, a], [slot, b] -> [n_segments, a, b]."""
    if len(slots.blocks) == 1 and len(slots.blocks[0].segments) == n_segments:  # all segments, in ascending order
        return blockwise(slots, left, slots.blocks[0]).transpose(1, 2) @ blockwise(slots, right, slots.blocks[0])
    out = left.new_zeros(n_segments, left.shape[1], right.shape[1])
    for block in slots.blocks:
        product = blockwise(slots, left, block).transpose(1, 2) @ blockwise(slots, right, block)
        out.index_copy_(0, block.segments, product)
    return out


def density_pullback(slots: Slots, terms: PairTerms, slopes: PairSlopes, gradient: list[Tensor]) -> Tensor:
    """dE/dr of each pair, [pair, xyz], from dE/dc: for each l [centre, channel, 2l+1]."""
    n_max = terms.radial.shape[2]
    by_harmonic = torch.empty_like(terms.harmonics)  # [slot, lm] sum_n H A
    by_distance = torch.empty_like(terms.harmonics)  # [slot, lm] sum_n dH/dR A
    for l, columns in enumerate(degrees(len(gradient) - 1)):  # noqa: E741
        a = gradient[l].reshape(-1, n_max, 2 * l + 1)  # [segment, n, m]
        for block in slots.blocks:
            chosen = a if len(block.segments) == len(a) else a.index_select(0, block.segments)
            rows = slice(block.start, block.stop)
            by_harmonic[rows, columns] = (blockwise(slots, terms.radial[l], block) @ chosen).flatten(0, 1)
            by_distance[rows, columns] = (blockwise(slots, slopes.radial[l], block) @ chosen).flatten(0, 1)
    along = torch.bmm(by_distance[:, None], terms.harmonics[:, :, None])[:, 0]  # [slot, 1]
    out = torch.bmm(slopes.harmonics, by_harmonic[:, :, None])[:, :, 0]  # [slot, xyz]
    return out.addcmul_(along, slopes.direction).index_select(0, slots.of_pair)
