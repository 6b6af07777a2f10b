"""Derivatives of the density coefficients, in the channels that move.

For a pair (i, j) with H_nl = w G_nl and R = |r_ij|, in the radial channels n of j's species,

    dc_{n lm}/dr_ij = H_nl grad S_lm + dH_nl/dR rhat S_lm,

while the channels of all other species stay. The derivative with respect to an atom a != i sums the pairs (i, a), all
images; that with respect to the strain, r -> (1 + strain) r, sums 1/2 (dc/dr_x r_y + dc/dr_y r_x) over all pairs, images
of i itself included. What is moved is a target of three components: an atom, or one half of the strain (xx yy zz, then
yz xz xy), which counts as atoms N and N + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors.contraction import expand_channels
from descriptors.density import PADDING, Environments, degrees, segment_products
from descriptors.neighbors import Neighborhoods
from descriptors.power_spectrum import power_spectrum_pullback
from descriptors.soap import SOAP, Expansion, environments, expand_environments

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy
STRAIN = 2  # targets that the strain counts as


@dataclass(frozen=True)
class CentreExpansion:
    """The expansion of some centres, with what the derivatives of their coefficients are made from."""

    expansion: Expansion
    centres: Tensor  # [c] atoms of the batch, in the order of the expansion
    neighbor: Tensor  # [pair] atom of the batch
    n_atoms: int  # N, of the batch
    ascent: Tensor  # [c, s, n lm] d|p|/dc of the uncontracted channels
    strain: Tensor  # [c, s, 2, 3, n, lm] dc/d(strain)
    pairs: Tensor  # [moving pair] by species of the neighbour, then by centre; without images of the centre itself
    offsets: tuple[tuple[int, ...], ...]  # [s][c + 1] where the pairs of each centre start among `pairs`


@dataclass(frozen=True)
class CoefficientSlopes:
    """Derivatives of the coefficients of some centres i in the channels of one species; zero in places not taken."""

    target: Tensor  # [i, w] strain (N, N + 1), then each atom of the species in range; N where the place is not taken
    coefficients: Tensor  # [i, w, 3, n, lm] dc/d(target), 1/Å or 1
    norm: Tensor  # [i, w, 3] what they change |p| by


def expand_centres(soap: SOAP, nb: Neighborhoods, centres: Tensor) -> tuple[Expansion, Tensor]:
    """Expansion of some centres (atoms of the batch, in any order), and the neighbour (such an atom) of each of its pairs.

    Raises ValueError as SOAP.values.
    """
    env = environments(soap, nb)
    place = torch.full((len(nb.numbers),), -1, dtype=torch.long, device=centres.device)
    place[centres] = torch.arange(len(centres), device=centres.device)
    kept = torch.nonzero(place[nb.centre] >= 0).squeeze(1)  # [pair]
    kept = kept[torch.argsort(place[nb.centre[kept]], stable=True)]
    chosen = Environments(env.species[centres], place[nb.centre[kept]], env.pair_species[kept], nb.vectors[kept])
    return expand_environments(soap, chosen), nb.neighbor[kept]


def expand_with_slopes(soap: SOAP, nb: Neighborhoods, centres: Tensor) -> CentreExpansion:
    """What `coefficient_slopes` needs, for centres in any order. Raises ValueError as SOAP.values."""
    ex, neighbor = expand_centres(soap, nb, centres)
    env = ex.environments
    key = env.pair_species * len(centres) + env.centre
    pairs = torch.nonzero(neighbor != centres[env.centre]).squeeze(1)
    pairs = pairs[torch.argsort(key[pairs], stable=True)]
    counts = torch.bincount(key[pairs], minlength=len(soap.species) * len(centres))
    stops = [0, *counts.cumsum(0).tolist()]
    starts = range(0, len(stops) - 1, max(1, len(centres)))
    offsets = tuple(tuple(stops[k : k + len(centres) + 1]) for k in starts)
    ascent, strain = norm_gradient(soap, ex), _strain_slopes(soap, ex)
    flat = torch.cat(ascent, dim=2).view(len(centres), len(soap.species), -1)
    return CentreExpansion(ex, centres, neighbor, len(nb.numbers), flat, strain, pairs, offsets)


def expansion_bytes(soap: SOAP, nb: Neighborhoods) -> Tensor:
    """Memory of each centre's share of a CentreExpansion and of what it is made from, [centre] bytes: an estimate."""
    pairs = torch.bincount(nb.centre, minlength=len(nb.numbers)).to(torch.float64)  # [centre]
    n_max, n_degrees = soap.config.n_max, soap.config.l_max + 1
    per_slot = 20 * n_degrees**2 + 8 * n_max * n_degrees + 30  # harmonics and radial functions, with slopes and strains
    per_centre = 16 * len(soap.species) * n_max * n_degrees**2 + 4 * soap.n_features
    return nb.vectors.element_size() * (PADDING * per_slot * pairs + per_centre)


def norm_gradient(soap: SOAP, ex: Expansion) -> list[Tensor]:
    """d|p|/dc in the uncontracted channels, for each l [c, channel, 2l+1]."""
    layout = soap.layout.to(ex.norm.device, ex.norm.dtype)
    ascent = power_spectrum_pullback(ex.coefficients, layout, ex.features)
    return ascent if soap.contraction is None else expand_channels(ascent, soap.contraction)


def coefficient_slopes(expansion: CentreExpansion, start: int, stop: int, s: int) -> CoefficientSlopes:
    """Slopes of centres start .. stop - 1 of the expansion in the channels of species s."""
    first, last = expansion.offsets[s][start], expansion.offsets[s][stop]
    pairs, n_centres, n_atoms = expansion.pairs[first:last], stop - start, expansion.n_atoms
    of_pair = expansion.expansion.environments.centre[pairs] - start
    keys, row = torch.unique(of_pair * n_atoms + expansion.neighbor[pairs], return_inverse=True)
    centre = torch.div(keys, n_atoms, rounding_mode="floor")  # [row]
    counts = torch.bincount(centre, minlength=n_centres)
    width = STRAIN + int(counts.max())
    before = counts.cumsum(0) - counts  # [c] rows of the centres before
    place = centre * width + STRAIN + torch.arange(len(keys), device=keys.device) - before[centre]  # [row]
    target = keys.new_full((n_centres, width), n_atoms)
    target[:, 1] += 1
    target.view(-1)[place] = keys % n_atoms
    strain = expansion.strain[start:stop, s]
    slopes = strain.new_zeros(n_centres, width, *strain.shape[2:])
    slopes.flatten(0, 1).index_add_(0, place[row], _pair_slopes(expansion.expansion, pairs))
    slopes[:, :STRAIN] = strain
    norm = slopes.view(n_centres, width * 3, -1) @ expansion.ascent[start:stop, s, :, None]
    return CoefficientSlopes(target, slopes, norm.view(n_centres, width, 3))


def _pair_slopes(ex: Expansion, pairs: Tensor) -> Tensor:
    """dc/dr_ij, [pair, 3, n, lm]."""
    slot = ex.slots.of_pair[pairs]
    n_degrees = len(ex.terms.radial)
    repeat = ex.norm.new_zeros(n_degrees, n_degrees**2)  # [l, lm] 1 where m belongs to l
    for l, columns in enumerate(degrees(n_degrees - 1)):  # noqa: E741
        repeat[l, columns] = 1
    h = ex.terms.radial.index_select(1, slot).permute(1, 2, 0) @ repeat  # [pair, n, lm]
    dh = ex.slopes.radial.index_select(1, slot).permute(1, 2, 0) @ repeat
    dh *= ex.terms.harmonics.index_select(0, slot)[:, None]
    out = h[:, None] * ex.slopes.harmonics.index_select(0, slot)[:, :, None]
    return out.addcmul_(dh[:, None], ex.slopes.direction[slot][:, :, None, None])


def _strain_slopes(soap: SOAP, ex: Expansion) -> Tensor:
    """dc/d(strain), [c, s, 2, 3, n, lm]."""
    n_centres, n_species, n_max = len(ex.norm), len(soap.species), soap.config.n_max
    voigt = voigt_products(ex.slots.vectors)  # [slot, 6, 3]
    by_harmonic = voigt @ ex.slopes.harmonics  # [slot, 6, lm]
    by_distance = (voigt @ ex.slopes.direction[:, :, None]) * ex.terms.harmonics[:, None]
    out = voigt.new_empty(n_centres * n_species, 6, n_max, by_harmonic.shape[2])
    for l, columns in enumerate(degrees(soap.config.l_max)):  # noqa: E741
        part = segment_products(ex.slots, ex.terms.radial[l], by_harmonic[:, :, columns].flatten(1), len(out))
        part += segment_products(ex.slots, ex.slopes.radial[l], by_distance[:, :, columns].flatten(1), len(out))
        out[..., columns] = part.view(len(out), n_max, 6, 2 * l + 1).transpose(1, 2)
    return out.view(n_centres, n_species, STRAIN, 3, n_max, by_harmonic.shape[2])


def voigt_products(vectors: Tensor) -> Tensor:
    """P [pair, 6, 3] Å such that P @ g are the components 1/2 (g_x r_y + g_y r_x) of g [pair, 3]."""
    out = vectors.new_zeros(len(vectors), 6, 3)
    for v, (x, y) in enumerate(VOIGT):
        out[:, v, x] += 0.5 * vectors[:, y]
        out[:, v, y] += 0.5 * vectors[:, x]
    return out
