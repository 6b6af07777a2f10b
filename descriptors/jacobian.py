"""Derivatives of the features: dq/dr per (centre, atom) and dq/d(strain).

For a pair (i, j) with H_a = w G_nl in the channels of j's species (contracted, if there is a contraction), R = |r_ij|,

    dc_{a lm}/dr_ij = H_a grad S_lm + dH_a/dR rhat S_lm
    F_ab = sum_m (dc_a/dr_ij) c_b = H_a U_b + dH_a/dR rhat V_b,      U_b = sum_m grad S_lm c_b,   V_b = sum_m S_lm c_b

so that no dc is ever formed: F is a sum of outer products, one batched product over the pairs that move with an atom,

    dp_ab = pi sqrt(8/(2l+1)) (F_ab + F_ba)   (times sqrt(2) for a < b),      dq = (dp - q (q . dp)) / |p|
    dq_i/dr_a       sums over the pairs (i, a), all images;          dq_i/dr_i = - the sum over all pairs with a != i
    dq_i/d(strain)  sums 1/2 (dq/dr_x r_y + dq/dr_y r_x) over all pairs,       r -> (1 + strain) r

(images of i itself move with i: they appear in the strain only).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors.density import degrees, density_pullback, pad
from descriptors.neighbors import Neighborhoods
from descriptors.power_spectrum import SpectrumLayout
from descriptors.slopes import expand_centres, norm_gradient, voigt_products
from descriptors.soap import SOAP, Expansion

WORKSPACE = {"cpu": 2**17, "cuda": 2**26}  # entries of F held at a time; on a CPU they stay in cache


@dataclass(frozen=True)
class Jacobian:
    """First derivatives of the features of some centres; `centre` and `atom` number the atoms of the whole batch."""

    centres: Tensor  # [c] the centres, in the order of `features` and `d_strain`
    features: Tensor  # [c, D] q
    centre: Tensor  # [ca] ascending
    atom: Tensor  # [ca] each atom in range of `centre` once, itself included
    d_positions: Tensor  # [ca, 3, D] dq_centre/dr_atom, 1/Å
    d_strain: (
        Tensor  # [c, 6, D] dq/d(strain), components symmetrised, Voigt order xx yy zz yz xz xy; [0, 6, D]: unknown
    )


@dataclass(frozen=True)
class _Terms:
    """Rows of a derivative as sums over pairs."""

    row: Tensor  # [term]
    pair: Tensor  # [term]
    centre: Tensor  # [row] centre that the row belongs to


@dataclass(frozen=True)
class _Factors:
    """What the derivatives of the features of some centres are made from."""

    soap: SOAP
    expansion: Expansion
    neighbor: Tensor  # [pair]
    radial: list[Tensor]  # H and dH/dR, [l] of [pair, 2, K_l]
    angular: list[Tensor]  # U (1/Å) and rhat V, [l] of [pair, 2, 3, K_l]
    along: Tensor  # [pair, 3] d|p|/dr

    @staticmethod
    def of(soap: SOAP, nb: Neighborhoods, centres: Tensor) -> _Factors:
        ex, neighbor = expand_centres(soap, nb, centres)
        return _Factors(soap, ex, neighbor, _radial_factors(soap, ex), _angular_factors(ex), _norm_slopes(soap, ex))

    def by_positions(self, terms: _Terms) -> Tensor:
        """Sums of the derivatives with respect to pairs' vectors, [row, 3, D]."""
        return _feature_slopes(self.soap, self.expansion, terms, self.radial, self.angular, self.along)

    def by_strain(self) -> Tensor:
        """dq/d(strain) of every centre, [c, 6, D]."""
        env = self.expansion.environments
        pairs, centres = (
            torch.arange(n, device=env.centre.device) for n in (len(env.centre), len(self.expansion.norm))
        )
        voigt = voigt_products(env.vectors)
        strained = [voigt[:, None] @ m for m in self.angular]  # [l] of [pair, 2, 6, K_l]
        along = (voigt @ self.along[:, :, None])[:, :, 0]
        terms = _Terms(env.centre, pairs, centres)
        return _feature_slopes(self.soap, self.expansion, terms, self.radial, strained, along)


def jacobian(soap: SOAP, nb: Neighborhoods, centres: Tensor | None = None, strain: bool = True) -> Jacobian:
    """Features and their derivatives for `centres` (ascending atom indices; all atoms when None), by strain if wanted.

    SOAP.centre_blocks splits the centres so that this stays within a memory. Raises ValueError as SOAP.values.
    """
    if centres is None:
        centres = torch.arange(len(nb.numbers), device=nb.numbers.device)
    factors = _Factors.of(soap, nb, centres)
    atom, own, terms = _position_terms(factors, centres, len(nb.numbers))
    d_positions = factors.by_positions(terms)
    total = d_positions.new_zeros(len(centres), *d_positions.shape[1:]).index_add_(0, terms.centre, d_positions)
    d_positions.index_copy_(0, own, total.neg_())
    del total
    features = factors.expansion.features
    d_strain = factors.by_strain() if strain else _no_strain(features)
    return Jacobian(centres, features, centres[terms.centre], atom, d_positions, d_strain)


def jacobian_of_atoms(soap: SOAP, nb: Neighborhoods, atoms: Tensor) -> Jacobian:
    """dq/dr of `atoms` alone, for every centre that sees one of them; without d_strain.

    What `jacobian` has of these atoms, but for rows that are zero, in memory for the pairs that move with them.
    """
    n = len(nb.numbers)
    wanted = torch.zeros(n, dtype=torch.bool, device=atoms.device)
    wanted[atoms] = True
    centres = torch.unique(torch.cat([atoms, nb.centre[wanted[nb.neighbor]]]))
    factors = _Factors.of(soap, nb, centres)
    of_pair = factors.expansion.environments.centre
    centre, neighbor = centres[of_pair], factors.neighbor
    moves = neighbor != centre
    pairs = torch.nonzero(moves & wanted[neighbor]).squeeze(1)
    of_own = torch.nonzero(moves & wanted[centre]).squeeze(1)  # a centre among the atoms moves against all others
    keys = torch.cat([of_pair[pairs] * n + neighbor[pairs], of_pair[of_own] * n + centre[of_own]])
    rows, place = torch.unique(keys, return_inverse=True)
    terms = _Terms(place, torch.cat([pairs, of_own]), torch.div(rows, n, rounding_mode="floor"))
    atom, d_positions = rows % n, factors.by_positions(terms)
    d_positions[atom == centres[terms.centre]] *= -1
    features = factors.expansion.features
    return Jacobian(centres, features, centres[terms.centre], atom, d_positions, _no_strain(features))


def _no_strain(features: Tensor) -> Tensor:
    return features.new_zeros(0, 6, features.shape[1])


def strain_jacobian(soap: SOAP, nb: Neighborhoods, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Features [c, D] and dq/d(strain) [c, 6, D] of `centres`, without derivatives by positions."""
    factors = _Factors.of(soap, nb, centres)
    return factors.expansion.features, factors.by_strain()


def _position_terms(factors: _Factors, centres: Tensor, n_atoms: int) -> tuple[Tensor, Tensor, _Terms]:
    """Atom of each row [ca], the row of each (i, i) [c], and the terms: rows (i, a), a != i, sum the pairs (i, a)."""
    of_pair, neighbor = factors.expansion.environments.centre, factors.neighbor
    own = torch.arange(len(centres), device=centres.device) * n_atoms + centres
    rows, place = torch.unique(torch.cat([own, of_pair * n_atoms + neighbor]), return_inverse=True)
    pair = torch.nonzero(neighbor != centres[of_pair]).squeeze(1)
    of_centre = torch.div(rows, n_atoms, rounding_mode="floor")
    return rows % n_atoms, place[: len(centres)], _Terms(place[len(centres) :][pair], pair, of_centre)


def _radial_factors(soap: SOAP, ex: Expansion) -> list[Tensor]:
    """H and dH/dR in all (contracted) channels, for each l [pair, 2, K_l]."""
    slot, species = ex.slots.of_pair, ex.environments.pair_species
    n_species, n_max = len(soap.species), soap.config.n_max
    out = []
    for l in range(soap.config.l_max + 1):  # noqa: E741
        h = torch.stack([ex.terms.radial[l][slot], ex.slopes.radial[l][slot]], dim=1)  # [pair, 2, n]
        if soap.contraction is not None:
            h = h @ soap.contraction.matrices[l].to(h).unflatten(0, (n_species, n_max))[species]
        elif n_species > 1:
            wide = h.new_zeros(len(h), n_species, 2, n_max)
            wide[torch.arange(len(h), device=h.device), species] = h
            h = wide.transpose(1, 2).flatten(2)
        out.append(h)
    return out


def _angular_factors(ex: Expansion) -> list[Tensor]:
    """U (1/Å) and rhat V, for each l [pair, 2, 3, K_l]."""
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
    return density_pullback(ex.slots, ex.terms, ex.slopes, norm_gradient(soap, ex))


def _feature_slopes(
    soap: SOAP, ex: Expansion, terms: _Terms, h: list[Tensor], angular: list[Tensor], along: Tensor
) -> Tensor:
    """dq [row, x, D] from the pairs' H [pair, 2, K_l], [U, rhat V] [pair, 2, x, K_l] for each l, and d|p| [pair, x].

    Rows without terms are zero.
    """
    layout = soap.layout.to(ex.norm.device, ex.norm.dtype)
    n_rows, n_x = len(terms.centre), along.shape[1]
    scale = 1 / ex.norm[terms.centre]  # [row]
    s = along.new_zeros(n_rows, n_x).index_add_(0, terms.row, along[terms.pair]) * scale[:, None]  # [row, x]
    slot, blocks = pad(terms.row)
    n_slots = blocks[-1].stop if blocks else 0
    pair = slot.new_zeros(n_slots).index_copy_(0, slot, terms.pair)  # [slot]
    weight = along.new_zeros(n_slots).index_copy_(0, slot, scale[terms.row])  # [slot] 0 where empty
    out = along.new_empty(n_rows, n_x, layout.n_features)
    out[torch.bincount(terms.row, minlength=n_rows) == 0] = 0
    for block in blocks:
        step = _rows_at_a_time(out.device, n_x, max(layout.widths), block.width)
        for start in range(0, len(block.segments), step):
            rows = block.segments[start : start + step]
            slots = slice(block.start + start * block.width, block.start + (start + len(rows)) * block.width)
            part = _symmetrised_sums(len(rows), pair[slots], weight[slots], h, angular, layout)
            q = ex.features[terms.centre[rows]][:, None]
            out.index_copy_(0, rows, part.addcmul_(s[rows][:, :, None], q, value=-1))
    return out


def _rows_at_a_time(device: torch.device, n_x: int, n_channels: int, width: int) -> int:
    return max(1, WORKSPACE[device.type] // (n_x * n_channels * (n_channels + 2 * width)))


def _symmetrised_sums(
    n_rows: int, pair: Tensor, weight: Tensor, h: list[Tensor], angular: list[Tensor], layout: SpectrumLayout
) -> Tensor:
    """dp / |p| [row, x, D]: pair and weight (1/|p|) of the slots, n_rows equal segments of [slot]."""
    n_x = angular[0].shape[2]
    out = weight.new_empty(n_rows, n_x, layout.n_features)
    products = 0  # K x K products of lower l
    for l, entries in enumerate(layout.entries()):  # noqa: E741
        k = layout.widths[l]
        left = (h[l].index_select(0, pair) * weight[:, None, None]).view(n_rows, -1, k)  # [row, 2 width, a]
        right = angular[l].index_select(0, pair).view(n_rows, -1, n_x * k)  # [row, 2 width, x b]
        f = (right.transpose(1, 2) @ left).unflatten(1, (n_x, k))  # [row, x, b, a]
        f = (f + f.transpose(2, 3)).flatten(2)  # [row, x, K^2]
        upper = (layout.upper[entries] - products).expand(n_rows, n_x, -1)
        torch.mul(f.gather(2, upper), layout.weight[entries], out=out[:, :, entries])
        products += k * k
    return out
