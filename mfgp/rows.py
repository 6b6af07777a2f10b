"""Rows k(functional, Z) of a structure, without the Jacobian of the features.

With q = p / |p| and z an inducing point,

    dk(z, q) = zeta (z . q)^(zeta-1) z . dq,          z . dq = (z . dp - (z . q) d|p|) / |p|

An atom of species s moves only the n_max coefficients a of s (slopes.py), under a contraction c' = U^T c too. With the
products F_ab = sum_m dc_a c'_b, a in s, b among all K_l (contracted) channels of degree l, and the slopes w' of
power_spectrum.py (dp/dc'_a = sum_b w'_ab c'_b for the entry of a and b),

    z . dp = sum_l sum_{a in s, b} F_ab Z_ab,        Z_ab = sum_a' U_aa' w'_a'b z_a'b        (U = 1 without a contraction)

The forms Z, one matrix for each species of centre and of neighbour, depend on the inducing points alone: `inducing_forms`
gathers them once. F has sum_l n_max K_l entries against the D = sum_l K_l (K_l + 1) / 2 of q; for a single species, where
that is more, it is folded into F_ab + F_ba, a <= b, which are D again. All is done for a few centres at a time, while it is
in cache: slopes, F, the product with Z, the factors, the sum over centres. An atom's own slope is minus the sum of the
others'; d|p| is small, and enters through one product for all centres of a species.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors import SOAP, Neighborhoods
from descriptors.density import degrees
from descriptors.slopes import (
    STRAIN,
    CentreExpansion,
    CoefficientSlopes,
    coefficient_slopes,
    expand_with_slopes,
    expansion_bytes,
)
from descriptors.soap import blocks_within
from mfgp.inducing import InducingBasis
from mfgp.kernels import kernel_slope, n_functionals

BLOCK_BYTES = 256e6  # of expansions held at a time
WORKSPACE = {"cpu": 2**19, "cuda": 2**26}  # entries of F and z . dp held at a time; on a CPU they stay in cache


@dataclass(frozen=True)
class InducingForms:
    """The forms Z of a basis."""

    forms: tuple[tuple[Tensor, ...], ...]  # [species of the basis][species of the descriptor] of [entry of all l, M_s]
    fold: Tensor | None  # [a b, entry of one l] from F to (F_ab + F_ba) / 2, a <= b; None where F is not folded


def inducing_forms(basis: InducingBasis, soap: SOAP) -> InducingForms:
    """Gather the forms of a basis: S n_max sum_l K_l M numbers, D M for one species."""
    fold = None
    if len(soap.species) == 1 and soap.contraction is None:
        fold = _fold(soap.config.n_max).to(basis.points[0])
    return InducingForms(tuple(_forms(z, soap, fold) for z in basis.points), fold)


def form_entries(soap: SOAP) -> int:
    """Entries of a form: what a (centre, atom) pair takes of products with each inducing point, for each component."""
    if len(soap.species) == 1 and soap.contraction is None:
        return soap.n_features
    return soap.config.n_max * sum(soap.layout.widths)


def _fold(n: int) -> Tensor:
    a, b = torch.triu_indices(n, n)
    entry = torch.arange(len(a))
    fold = torch.zeros(n * n, len(a))
    fold[a * n + b, entry] += 0.5
    fold[b * n + a, entry] += 0.5
    return fold


def _forms(points: Tensor, soap: SOAP, fold: Tensor | None) -> tuple[Tensor, ...]:
    """Z for neighbours of each species, [entry of all l, M_s]."""
    layout, n_max = soap.layout.to(points.device, points.dtype), soap.config.n_max
    parts: list[list[Tensor]] = [[] for _ in soap.species]
    of_degree = layout.full.split([k * k for k in layout.widths])
    slopes = layout.slope.split([k * k for k in layout.widths])
    for l, k in enumerate(layout.widths):  # noqa: E741
        z = (points.T[of_degree[l]] * slopes[l][:, None]).view(k, k, -1)  # [a', b, M_s]
        if soap.contraction is not None:
            z = torch.tensordot(soap.contraction.matrices[l].to(z), z, 1)  # [a, b, M_s]
        for s, form in enumerate(z.split(n_max)):
            part = form.flatten(0, 1)
            parts[s].append(part if fold is None else (fold > 0).to(z).T @ part)
    return tuple(torch.cat(p) for p in parts)


def raw_rows(
    basis: InducingBasis, forms: InducingForms, soap: SOAP, nb: Neighborhoods, max_bytes: float = BLOCK_BYTES
) -> Tensor:
    """k(functional, Z) of one structure, [1+3N+6, M]: energy, forces and virial, not yet whitened.

    Centres are taken in blocks whose expansions fill at most max_bytes, or one by one.
    """
    n = len(nb.numbers)
    out = nb.vectors.new_zeros(n_functionals(n), basis.size)
    targets = out[1:].view(n + STRAIN, 3, -1)  # [target, 3, M]
    n_pairs = torch.bincount(nb.centre, minlength=n)
    order = nb.numbers * (n_pairs.max() + 1) + n_pairs  # by species, then padded to similar widths
    for block in blocks_within(expansion_bytes(soap, nb), max_bytes):
        centres = block[torch.argsort(order[block], stable=True)]
        expansion = expand_with_slopes(soap, nb, centres)
        for index, columns in basis.blocks():
            chosen = torch.nonzero(nb.numbers[centres] == basis.species[index]).squeeze(1).tolist()
            if chosen:
                group = range(chosen[0], chosen[-1] + 1)  # centres are sorted by species
                dot = expansion.expansion.features[group.start : group.stop] @ basis.points[index].T  # [i, M_s]
                out[0, columns] += (dot**basis.zeta).sum(0)
                slope = kernel_slope(dot, basis.zeta)
                _add_slopes(targets[:, :, columns], expansion, group, forms, index, dot, slope)
    return out


def _add_slopes(
    targets: Tensor,
    expansion: CentreExpansion,
    group: range,
    forms: InducingForms,
    index: int,
    dot: Tensor,
    slope: Tensor,
) -> None:
    """Subtract slope * z . dq of a group of centres i, all of one species, from the targets [target, 3, M_s].

    dot [i, M_s] = z . q, slope [i, M_s] = dk/d(z . q).
    """
    factor = slope / expansion.expansion.norm[group.start : group.stop, None]
    d_norm = dot.new_zeros(len(group), *targets.shape[:2])  # [i, target, 3] d|p|
    for s, form in enumerate(forms.forms[index]):
        for chunk in _chunks(expansion, group, s, form):
            part = coefficient_slopes(expansion, chunk.start, chunk.stop, s)
            here = slice(chunk.start - group.start, chunk.stop - group.start)
            centres = expansion.centres[chunk.start : chunk.stop]
            c = [x[chunk.start : chunk.stop] for x in expansion.expansion.coefficients]
            t = (_products(part, c, forms.fold) @ form).view(*part.target.shape, 3, -1)  # [i, w, 3, M_s] z . dp
            t *= factor[here, None, None]
            targets.index_add_(0, part.target.flatten(), t.flatten(0, 1), alpha=-1)
            targets.index_add_(0, centres, t[:, STRAIN:].sum(1))
            d_norm[here].scatter_add_(1, part.target[:, :, None].expand(-1, -1, 3), part.norm)
            own = -part.norm[:, STRAIN:].sum(1, keepdim=True)
            d_norm[here].scatter_add_(1, centres[:, None, None].expand(-1, 1, 3), own)
    targets += (d_norm.flatten(1).T @ (dot * factor)).view(targets.shape)


def _chunks(expansion: CentreExpansion, group: range, s: int, form: Tensor) -> list[range]:
    """The group in parts whose F and z . dp fill about a workspace, as their neighbours of species s are many."""
    pairs = expansion.offsets[s][group.stop] - expansion.offsets[s][group.start]
    width = STRAIN + pairs / len(group)
    step = max(1, int(WORKSPACE[form.device.type] / (3 * width * sum(form.shape))))
    return [group[start : start + step] for start in range(0, len(group), step)]


def _products(part: CoefficientSlopes, coefficients: list[Tensor], fold: Tensor | None) -> Tensor:
    """F [i w 3, entry], folded where there is a fold; coefficients for each l [i, b, 2l+1]."""
    slopes = part.coefficients.flatten(1, 3)  # [i, w 3 n, lm]
    n_max, n_rows = part.coefficients.shape[3], 3 * part.target.numel()
    out = []
    for columns, c in zip(degrees(len(coefficients) - 1), coefficients, strict=True):
        f = (slopes[:, :, columns] @ c.transpose(1, 2)).view(n_rows, n_max * c.shape[1])  # [i w 3, a b]
        out.append(f if fold is None else f @ fold)
    return torch.cat(out, dim=1)
