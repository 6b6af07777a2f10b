"""Derivatives of products of density coefficients, as factors of each pair.

For a pair (i, j) with H_n = w G_nl in the radial channels of j's species, R = |r_ij|,

    dc_{n lm}/dr_ij = H_n grad S_lm + dH_n/dR rhat S_lm                      (all other species' channels do not move)
    F_nb = sum_m (dc_n/dr_ij) c_b = H_n U_b + dH_n/dR rhat V_b,      U_b = sum_m grad S_lm c_b,   V_b = sum_m S_lm c_b

so that no dc is ever formed: F is a sum of outer products, one batched product over the pairs that move together. The
power spectrum's derivative is dp_ab = pi sqrt(8/(2l+1)) (F_ab + F_ba), times sqrt(2) for a < b (power_spectrum.py); b
runs over contracted channels where there is a contraction, n over those of the radial basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors.contraction import expand_channels
from descriptors.density import Environments, degrees, density_pullback
from descriptors.neighbors import Neighborhoods
from descriptors.power_spectrum import power_spectrum_pullback
from descriptors.soap import SOAP, Expansion, environments, expand_environments

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy


@dataclass(frozen=True)
class PairFactors:
    """The expansion of some centres with the factors of F for each of their pairs."""

    centres: Tensor  # [c] atoms of the batch, in the order of the expansion
    neighbor: Tensor  # [pair] atom of the batch
    expansion: Expansion
    radial: list[Tensor]  # [l] of [pair, 2, n]: H, dH/dR (1/Å) in the channels of the neighbour's species
    angular: list[Tensor]  # [l] of [pair, 2, xyz, K_l]: U (1/Å), rhat V
    norm: Tensor  # [pair, xyz] d|p|/dr, 1/Å


def pair_factors(soap: SOAP, nb: Neighborhoods, centres: Tensor) -> PairFactors:
    """Factors for `centres` (atoms of the batch, ascending). Raises ValueError as SOAP.values."""
    env, neighbor = _restricted(soap, nb, centres)
    ex = expand_environments(soap, env)
    return PairFactors(centres, neighbor, ex, _radial_factors(ex), _angular_factors(ex), _norm_slopes(soap, ex))


def _restricted(soap: SOAP, nb: Neighborhoods, centres: Tensor) -> tuple[Environments, Tensor]:
    """Environments of some centres, and the neighbour (an atom of the batch) of each of their pairs."""
    env = environments(soap, nb)
    place = torch.full((len(nb.numbers),), -1, dtype=torch.long, device=centres.device)
    place[centres] = torch.arange(len(centres), device=centres.device)
    kept = torch.nonzero(place[nb.centre] >= 0).squeeze(1)  # [pair]
    chosen = Environments(env.species[centres], place[nb.centre[kept]], env.pair_species[kept], nb.vectors[kept])
    return chosen, nb.neighbor[kept]


def _radial_factors(ex: Expansion) -> list[Tensor]:
    slot = ex.slots.of_pair
    return [torch.stack([h[slot], dh[slot]], dim=1) for h, dh in zip(ex.terms.radial, ex.slopes.radial, strict=True)]


def _angular_factors(ex: Expansion) -> list[Tensor]:
    slot, centre = ex.slots.of_pair, ex.environments.centre
    both = torch.cat([ex.slopes.harmonics[slot], ex.terms.harmonics[slot][:, None]], dim=1)  # [pair, xyz and value, lm]
    direction = ex.slopes.direction[slot][:, :, None]  # [pair, 3, 1]
    out = []
    for columns, c in zip(degrees(len(ex.coefficients) - 1), ex.coefficients, strict=True):
        products = both[:, :, columns] @ c.transpose(1, 2).index_select(0, centre)  # [pair, 4, K]
        out.append(torch.stack([products[:, :3], direction * products[:, 3:]], dim=1))
    return out


def _norm_slopes(soap: SOAP, ex: Expansion) -> Tensor:
    """q . dp/dr = d|p|/dr of each pair's vector, [pair, 3]."""
    layout = soap.layout.to(ex.norm.device, ex.norm.dtype)
    ascent = power_spectrum_pullback(ex.coefficients, layout, ex.features)
    if soap.contraction is not None:
        ascent = expand_channels(ascent, soap.contraction)
    return density_pullback(ex.slots, ex.terms, ex.slopes, ascent)


def in_all_channels(soap: SOAP, factors: PairFactors) -> list[Tensor]:
    """H and dH/dR in all (contracted) channels, for each l [pair, 2, K_l]."""
    species = factors.expansion.environments.pair_species
    n_species, n_max = len(soap.species), soap.config.n_max
    out = []
    for l, h in enumerate(factors.radial):  # noqa: E741
        if soap.contraction is not None:
            h = h @ soap.contraction.matrices[l].to(h).unflatten(0, (n_species, n_max))[species]
        elif n_species > 1:
            wide = h.new_zeros(len(h), n_species, 2, n_max)
            wide[torch.arange(len(h), device=h.device), species] = h
            h = wide.transpose(1, 2).flatten(2)
        out.append(h)
    return out


def product_sums(n_rows: int, pair: Tensor, weight: Tensor, radial: Tensor, angular: Tensor) -> Tensor:
    """Weighted sums of F of one l over the pairs of each row: [row, x, b, a].

    pair and weight [slot] are n_rows equal segments (weight 0 in empty slots), radial [pair, 2, a], angular
    [pair, 2, x, b].
    """
    n_x, n_channels = angular.shape[2:]
    left = (radial.index_select(0, pair) * weight[:, None, None]).view(n_rows, -1, radial.shape[2])  # [row, 2 width, a]
    right = angular.index_select(0, pair).view(n_rows, -1, n_x * n_channels)  # [row, 2 width, x b]
    return (right.transpose(1, 2) @ left).unflatten(1, (n_x, n_channels))


def voigt_products(vectors: Tensor) -> Tensor:
    """P [pair, 6, 3] Å such that P @ g are the components 1/2 (g_x r_y + g_y r_x) of g [pair, 3]."""
    out = vectors.new_zeros(len(vectors), 6, 3)
    for v, (x, y) in enumerate(VOIGT):
        out[:, v, x] += 0.5 * vectors[:, y]
        out[:, v, y] += 0.5 * vectors[:, x]
    return out
