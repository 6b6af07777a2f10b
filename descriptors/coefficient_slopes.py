"""Derivatives of the density coefficients, in the channels that move.

For a pair (i, j) with H_nl = w G_nl, R = |r_ij|, in the radial channels n of j's species

    dc_{n lm}/dr_ij = H_nl grad S_lm + dH_nl/dR rhat S_lm,

and all other species' channels stay. The derivative with respect to an atom a != i sums the pairs (i, a), all images; that
with respect to the strain, r -> (1 + strain) r, sums 1/2 (dc/dr_x r_y + dc/dr_y r_x) over all pairs, images of i itself
included. Atoms and strain are the targets of a derivative: three components each, strain as two of them (xx yy zz, yz xz xy).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors.contraction import expand_channels
from descriptors.density import Environments, degrees, segment_products
from descriptors.neighbors import Neighborhoods
from descriptors.power_spectrum import power_spectrum_pullback
from descriptors.soap import SOAP, Expansion, environments, expand_environments

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy


@dataclass(frozen=True)
class CoefficientSlopes:
    """Derivatives in the channels of one species s, for the centres of an expansion; places that are not filled are zero."""

    counts: Tensor  # [c] places that are filled
    target: Tensor  # [c, w]: N and N + 1 (the strain), then each atom of species s in range but the centre; N where empty
    slopes: Tensor  # [c, w, 3, n, lm] dc/d(target), 1/Å or 1
    norm: Tensor  # [c, w, 3] d|p|/d(target) of these channels


def expand_centres(soap: SOAP, nb: Neighborhoods, centres: Tensor) -> tuple[Expansion, Tensor]:
    """Expansion of some centres (atoms of the batch, ascending), and the neighbour [pair], an atom of the batch.

    Raises ValueError as SOAP.values.
    """
    env = environments(soap, nb)
    place = torch.full((len(nb.numbers),), -1, dtype=torch.long, device=centres.device)
    place[centres] = torch.arange(len(centres), device=centres.device)
    kept = torch.nonzero(place[nb.centre] >= 0).squeeze(1)  # [pair]
    chosen = Environments(env.species[centres], place[nb.centre[kept]], env.pair_species[kept], nb.vectors[kept])
    return expand_environments(soap, chosen), nb.neighbor[kept]


def coefficient_slopes(
    soap: SOAP, ex: Expansion, centres: Tensor, neighbor: Tensor, n_atoms: int
) -> list[CoefficientSlopes]:
    """For each species of the descriptor; `centres` and `neighbor` as in `expand_centres`, n_atoms of the batch (N)."""
    env = ex.environments
    ascent = _norm_gradient(soap, ex)  # [c, s, n lm]
    strain = _strain_slopes(soap, ex)  # [c, s, 2, 3, n, lm]
    moved = neighbor != centres[env.centre]  # images of the centre move with it
    out = []
    for s in range(len(soap.species)):
        pairs = torch.nonzero((env.pair_species == s) & moved).squeeze(1)
        keys, row = torch.unique(env.centre[pairs] * n_atoms + neighbor[pairs], return_inverse=True)
        centre = torch.div(keys, n_atoms, rounding_mode="floor")  # [row]
        counts = torch.bincount(centre, minlength=len(centres))
        width = 2 + int(counts.max())
        first = counts.cumsum(0) - counts  # [c] first row
        place = centre * width + 2 + torch.arange(len(keys), device=keys.device) - first[centre]  # [row]
        target = keys.new_full((len(centres), width), n_atoms)
        target[:, 1] += 1
        target.view(-1)[place] = keys % n_atoms
        slopes = strain.new_zeros(len(centres), width, *strain.shape[3:])
        slopes.flatten(0, 1).index_add_(0, place[row], _pair_slopes(ex, pairs))
        slopes[:, :2] = strain[:, s]
        norm = (slopes.flatten(3).flatten(1, 2) @ ascent[:, s, :, None]).view(len(centres), width, 3)
        out.append(CoefficientSlopes(counts + 2, target, slopes, norm))
    return out


def _pair_slopes(ex: Expansion, pairs: Tensor) -> Tensor:
    """dc/dr_ij, [pair, 3, n, lm]."""
    slot = ex.slots.of_pair[pairs]
    n_degrees = len(ex.terms.radial)
    repeat = torch.zeros(n_degrees, n_degrees**2, dtype=ex.norm.dtype, device=slot.device)  # [l, lm] 1 where of degree l
    for l, columns in enumerate(degrees(n_degrees - 1)):  # noqa: E741
        repeat[l, columns] = 1
    h = ex.terms.radial[:, slot].permute(1, 2, 0) @ repeat  # [pair, n, lm]
    dh = (ex.slopes.radial[:, slot].permute(1, 2, 0) @ repeat).mul_(ex.terms.harmonics[slot][:, None])
    out = h[:, None] * ex.slopes.harmonics[slot][:, :, None]
    return out.addcmul_(dh[:, None], ex.slopes.direction[slot][:, :, None, None])


def _strain_slopes(soap: SOAP, ex: Expansion) -> Tensor:
    """dc/d(strain), [c, s, 2, 3, n, lm]."""
    n_centres, n_species, n_max = len(ex.norm), len(soap.species), soap.config.n_max
    voigt = voigt_products(ex.slots.vectors)  # [slot, 6, 3]
    by_harmonic = voigt @ ex.slopes.harmonics  # [slot, 6, lm]
    by_distance = (voigt @ ex.slopes.direction[:, :, None]) * ex.terms.harmonics[:, None]
    n_degrees = soap.config.l_max + 1
    out = voigt.new_empty(n_centres * n_species, 6, n_max, n_degrees**2)
    for l, columns in enumerate(degrees(n_degrees - 1)):  # noqa: E741
        part = segment_products(ex.slots, ex.terms.radial[l], by_harmonic[:, :, columns].flatten(1), len(out))
        part += segment_products(ex.slots, ex.slopes.radial[l], by_distance[:, :, columns].flatten(1), len(out))
        out[..., columns] = part.unflatten(2, (6, -1)).transpose(1, 2)
    return out.view(n_centres, n_species, 2, 3, n_max, -1)


def _norm_gradient(soap: SOAP, ex: Expansion) -> Tensor:
    """d|p|/dc, [c, s, n lm] in the uncontracted channels."""
    layout = soap.layout.to(ex.norm.device, ex.norm.dtype)
    ascent = power_spectrum_pullback(ex.coefficients, layout, ex.features)
    if soap.contraction is not None:
        ascent = expand_channels(ascent, soap.contraction)
    return torch.cat(ascent, dim=2).view(len(ex.norm), len(soap.species), -1)


def voigt_products(vectors: Tensor) -> Tensor:
    """P [pair, 6, 3] Å such that P @ g are the components 1/2 (g_x r_y + g_y r_x) of g [pair, 3]."""
    out = vectors.new_zeros(len(vectors), 6, 3)
    for v, (x, y) in enumerate(VOIGT):
        out[:, v, x] += 0.5 * vectors[:, y]
        out[:, v, y] += 0.5 * vectors[:, x]
    return out
