"""Derivatives of the features: dq/dr per (centre, atom) and dq/d(strain).

With F_ab and d|p| of each pair (slopes.py) in all (contracted) channels,

    dp_ab = pi sqrt(8/(2l+1)) (F_ab + F_ba)   (times sqrt(2) for a < b),      dq = (dp - q (q . dp)) / |p|
    dq_i/dr_a       sums over the pairs (i, a), all images;          dq_i/dr_i = - the sum over all pairs with a != i
    dq_i/d(strain)  sums 1/2 (dq/dr_x r_y + dq/dr_y r_x) over all pairs,       r -> (1 + strain) r

(images of i itself move with i: they appear in the strain only).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors.density import pad
from descriptors.neighbors import Neighborhoods
from descriptors.power_spectrum import SpectrumLayout
from descriptors.slopes import PairFactors, in_all_channels, pair_factors, product_sums, voigt_products
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
    d_strain: Tensor  # [c, 6, D] dq/d(strain), components symmetrised, Voigt order xx yy zz yz xz xy


@dataclass(frozen=True)
class _Terms:
    """Rows of a derivative as sums over pairs."""

    row: Tensor  # [term]
    pair: Tensor  # [term]
    centre: Tensor  # [row] centre that the row belongs to


def jacobian(soap: SOAP, nb: Neighborhoods, centres: Tensor | None = None) -> Jacobian:
    """Features and their derivatives for `centres` (ascending atom indices; all atoms when None).

    SOAP.centre_blocks splits the centres so that this stays within a memory. Raises ValueError as SOAP.values.
    """
    if centres is None:
        centres = torch.arange(len(nb.numbers), device=nb.numbers.device)
    factors = pair_factors(soap, nb, centres)
    h = in_all_channels(soap, factors)
    atom, own, positions = _position_terms(factors, len(nb.numbers))
    d_positions = _feature_slopes(soap, factors.expansion, positions, h, factors.angular, factors.norm)
    total = d_positions.new_zeros(len(centres), *d_positions.shape[1:]).index_add_(0, positions.centre, d_positions)
    d_positions.index_copy_(0, own, total.neg_())
    del total
    return Jacobian(
        centres=centres,
        features=factors.expansion.features,
        centre=centres[positions.centre],
        atom=atom,
        d_positions=d_positions,
        d_strain=_strain_slopes(soap, factors, h),
    )


def strain_slopes(soap: SOAP, factors: PairFactors) -> Tensor:
    """dq/d(strain) of the factors' centres, [c, 6, D], components symmetrised, Voigt order."""
    return _strain_slopes(soap, factors, in_all_channels(soap, factors))


def _strain_slopes(soap: SOAP, factors: PairFactors, h: list[Tensor]) -> Tensor:
    env = factors.expansion.environments
    pairs = torch.arange(len(env.centre), device=env.centre.device)
    terms = _Terms(env.centre, pairs, torch.arange(len(factors.centres), device=env.centre.device))
    voigt = voigt_products(env.vectors)
    strained = [voigt[:, None] @ m for m in factors.angular]  # [l] of [pair, 2, 6, K_l]
    return _feature_slopes(soap, factors.expansion, terms, h, strained, (voigt @ factors.norm[:, :, None])[:, :, 0])


def _position_terms(factors: PairFactors, n_atoms: int) -> tuple[Tensor, Tensor, _Terms]:
    """Atom of each row [ca], the row of each (i, i) [c], and the terms: rows (i, a), a != i, sum the pairs (i, a)."""
    centres, neighbor, centre = factors.centres, factors.neighbor, factors.expansion.environments.centre
    keys = torch.cat(
        [torch.arange(len(centres), device=centres.device) * n_atoms + centres, centre * n_atoms + neighbor]
    )
    rows, place = torch.unique(keys, return_inverse=True)
    pair = torch.nonzero(neighbor != centres[centre]).squeeze(1)
    of_centre = torch.div(rows, n_atoms, rounding_mode="floor")
    return rows % n_atoms, place[: len(centres)], _Terms(place[len(centres) :][pair], pair, of_centre)


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
        f = product_sums(n_rows, pair, weight, h[l], angular[l])  # [row, x, b, a]
        f = (f + f.transpose(2, 3)).flatten(2)  # [row, x, K^2]
        upper = (layout.upper[entries] - products).expand(n_rows, n_x, -1)
        torch.mul(f.gather(2, upper), layout.weight[entries], out=out[:, :, entries])
        products += k * k
    return out
