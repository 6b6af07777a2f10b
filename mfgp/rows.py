"""Rows k(functional, Z) of a structure: products of the inducing points with the features' derivatives, never whole.

With q = p / |p| and z an inducing point,

    z . dq = (z . dp - (z . q) d|p|) / |p|,          dk(z, q) = zeta (z . q)^(zeta-1)  z . dq

An atom of species s moves only the n_max radial channels a of s, so it changes only the entries (a, b) of p that
contain one of them. With the products F_ab of slopes.py (a in s, b in all channels) and the weights w of the entries,

    z . dp = sum_{a in s, b not in s} w_ab z_ab F_ab + sum_{a <= b in s} w_ab z_ab (F_ab + F_ba)

Under a contraction c' = U^T c, b runs over contracted channels and a stays a radial channel of s, so that

    z . dp = sum_{a in s, b} [ sum_a' U_aa' w'_a'b z_a'b ] F_ab,          w' = w, twice that where a' = b

In both cases the brackets, one matrix for each species of centres and of neighbours, depend on the inducing points alone:
`inducing_forms` gathers them once. F is made for a few (centre, atom) pairs at a time, multiplied, scaled and added up
while it is in cache. Against z . dq from whole derivatives, of D numbers each, this takes S (S + 1) / (2 S - 1) times
less for S species of n_max >> 1 channels each; the derivative with respect to the strain, which moves all channels, is
made whole, one for each centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors import SOAP, Neighborhoods
from descriptors.coefficient_slopes import CoefficientSlopes, coefficient_slopes, expand_centres
from descriptors.density import degrees
from descriptors.soap import Expansion, blocks_within, factor_bytes
from mfgp.inducing import InducingBasis
from mfgp.kernels import kernel_slope, n_functionals

BLOCK_BYTES = 256e6  # of pair factors held at a time
WORKSPACE = {"cpu": 2**17, "cuda": 2**26}  # entries of F and z . dq held at a time; on a CPU they stay in cache


@dataclass(frozen=True)
class InducingForms:
    """What multiplies F: the brackets of the module docstring, for neighbours of each of the descriptor's species."""

    points: tuple[tuple[Tensor, ...], ...]  # [species of centre, as in the basis][s] of [entry of all l, M_s]
    entries: tuple[tuple[Tensor, Tensor] | None, ...]


def inducing_forms(basis: InducingBasis, soap: SOAP) -> InducingForms:
    species = range(len(soap.species))
    points = tuple(tuple(_form(z, soap, s) for s in species) for z in basis.points)
    if len(soap.species) > 1 or soap.contraction is not None:
        return InducingForms(points, (None,) * len(soap.species))
    n = soap.config.n_max
    a, b = torch.triu_indices(n, n, device=basis.points[0].device)
    off = n * n * torch.arange(soap.config.l_max + 1, device=a.device)[:, None]
    layout=soap.layout
    points = ((((basis.points[0] * soap.layout.weight.to(basis.points[0])).T.contiguous()),),)
    return InducingForms(points, (((off + a * n + b).flatten(), (off + b * n + a).flatten()),))


def _form(points: Tensor, soap: SOAP, s: int) -> Tensor:
    """[l n b, M_s]"""
    layout, n_max = soap.layout.to(points.device, points.dtype), soap.config.n_max
    parts, start = [], 0
    for l, k in enumerate(layout.widths):
        products = slice(start, start + k * k)
        z = points.T[layout.full[products]].mul_(layout.slope[products, None]).view(k, k, -1)  # [a', b, M_s]
        if soap.contraction is None:
            z = z[s * n_max : (s + 1) * n_max]
        else:
            z = torch.tensordot(soap.contraction.matrices[l][s * n_max : (s + 1) * n_max].to(z), z, 1)
        parts.append(z.flatten(0, 1))
        start += k * k
    return torch.cat(parts)


def raw_rows(
    basis: InducingBasis, forms: InducingForms, soap: SOAP, nb: Neighborhoods, max_bytes: float = BLOCK_BYTES
) -> Tensor:
    """k(functional, Z) of one structure, [1+3N+6, M]: energy, forces and virial, not yet whitened.

    Centres are taken in blocks whose pair factors fill at most max_bytes, or one by one.
    """
    out = nb.vectors.new_zeros(n_functionals(len(nb.numbers)), basis.size)
    for centres in blocks_within(factor_bytes(soap, nb), max_bytes):
        _add_centres(out, basis, forms, soap, nb, centres)
    return out


def _add_centres(
    out: Tensor, basis: InducingBasis, forms: InducingForms, soap: SOAP, nb: Neighborhoods, centres: Tensor
) -> None:
    """Add what some centres give to all functionals."""
    n = len(nb.numbers)
    ex, neighbor = expand_centres(soap, nb, centres)
    slopes = coefficient_slopes(soap, ex, centres, neighbor, n)
    for index, columns in basis.blocks():
        chosen = torch.nonzero(nb.numbers[centres] == basis.species[index]).squeeze(1)
        if len(chosen) == 0:
            continue
        dot = ex.features[chosen] @ basis.points[index].T  # [i, M_s]
        out[0, columns] += (dot**basis.zeta).sum(0)
        factor = kernel_slope(dot, basis.zeta) / ex.norm[chosen, None]
        rows = out[1:].view(n + 2, 3, -1)[:, :, columns]  # [target, 3, M_s]
        for part, form, entries in zip(slopes, forms.points[index], forms.entries, strict=True):
            width = int(part.counts[chosen].max())
            step = max(1, WORKSPACE[out.device.type] // (3 * width * sum(form.shape)))
            for i in torch.arange(len(chosen), device=chosen.device).split(step):
                products = _products(ex, part, chosen[i], width, entries)  # [i, w 3, entry]
                t = (products @ form).unflatten(1, (width, 3)).mul_(factor[i, None, None])
                rows.index_add_(0, part.target[chosen[i], :width].flatten(), t.flatten(0, 1), alpha=-1)
                rows.index_add_(0, centres[chosen[i]], t[:, 2:].sum(1))
        _add_norm(rows, slopes, centres, chosen, dot * factor)


def _products(ex: Expansion, part: CoefficientSlopes, chosen: Tensor, width: int, entries: tuple[Tensor, Tensor] | None) -> Tensor:
    dc = part.slopes[chosen, :width].flatten(1, 3)  # [i, w 3 n, lm]
    parts = []
    for columns, c in zip(degrees(len(ex.coefficients) - 1), ex.coefficients, strict=True):
        f = dc[:, :, columns] @ c[chosen].transpose(1, 2)  # [i, w 3 n, b]
        parts.append(f.view(len(chosen), width * 3, -1))
    f = torch.cat(parts, dim=2)
    if entries is None:
        return f
    return f.index_select(2, entries[0]).add_(f.index_select(2, entries[1]))


def _add_norm(rows: Tensor, slopes: list[CoefficientSlopes], centres: Tensor, chosen: Tensor, factor: Tensor) -> None:
    d_norm = rows.new_zeros(len(chosen), len(rows), 3)
    for part in slopes:
        norm, target = part.norm[chosen], part.target[chosen]
        d_norm.scatter_add_(1, target[:, :, None].expand(-1, -1, 3), norm)
        d_norm[torch.arange(len(chosen)), centres[chosen]] -= norm[:, 2:].sum(1)
    rows += (d_norm.flatten(1).T @ factor).view(rows.shape)
