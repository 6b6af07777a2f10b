"""Rows k(functional, Z) of a structure, without the Jacobian of the features.

With q = p / |p| and z an inducing point,

    dk(z, q) = zeta (z . q)^(zeta-1) z . dq,          z . dq = (z . dp - (z . q) d|p|) / |p|

An atom of species s moves only the n_max coefficients a of s, under a contraction c' = U^T c too. With the products
F_ab = sum_m dc_a c'_b of slopes.py, a in s, b among all K_l (contracted) channels of degree l, and the slopes w' of
power_spectrum.py (dp/dc'_a = sum_b w'_ab c'_b for the entry of a and b),

    z . dp = sum_l sum_{a in s, b} F_ab Z_ab,        Z_ab = sum_a' U_aa' w'_a'b z_a'b        (U = 1 without a contraction)

Without a contraction Z is symmetric, so that F_ab + F_ba, a < b, is all that is needed where both channels belong to s. The
forms Z, one matrix for each species of centre and of neighbour, depend on the inducing points alone: `inducing_forms`
gathers them once. F has sum_l n_max (K_l - (n_max - 1) / 2) entries against the D = sum_l K_l (K_l + 1) / 2 of q (as many
for a single species). All is done for a few centres at a time, near the caches: F, the product with Z, the factors, the sum
over centres. Structures come in batches, so that a product has many rows. An atom's own slope is minus the sum of the
others'. On a CPU compiled code does what surrounds the product (row_sums.py), forces only; elsewhere tensor operations do,
F with its rows along the contiguous axis, and d|p| enters through one product for all centres of a species in a structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors import SOAP, Neighborhoods
from descriptors.pair_products import padded_entries, pair_products
from descriptors.slopes import (
    CentreExpansion,
    PairFactors,
    RowFactors,
    channel_order,
    channel_runs,
    expand_with_slopes,
    expansion_bytes,
    pair_factors,
    row_factors,
    strain_products,
)
from descriptors.soap import blocks_within
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import kernel_slope
from mfgp.gp.row_sums import Room, add_rows

COMPILED = ("cpu",)  # devices whose forces are summed up by compiled code (row_sums.py), not by tensor operations
BLOCK_BYTES = 128e6  # of expansions held at a time
PRODUCTS = {"cpu": 2**19, "cuda": 2**26}  # entries of F held at a time; on a CPU near the caches
ROWS = {"cpu": 2**19, "cuda": 2**26}  # entries of z . dp held at a time


@dataclass(frozen=True)
class InducingForms:
    """The forms Z of a basis; entries are ordered by run of degrees, a, l, b."""

    forms: tuple[tuple[Tensor, ...], ...]  # [species of the basis][species of the descriptor] of [entry, M_s]
    folded: bool  # entries with both channels of the neighbour's species are there for a <= b only
    n_max: int

    @property
    def n_entries(self) -> int:
        """E."""
        return len(self.forms[0][0])


def inducing_forms(basis: InducingBasis, soap: SOAP) -> InducingForms:
    """Gather the forms of a basis: S E M numbers, D M for one species."""
    return InducingForms(tuple(_forms(z, soap) for z in basis.points), soap.contraction is None, soap.config.n_max)


def form_entries(soap: SOAP) -> int:
    """E, entries of a form: what a (centre, atom) pair takes of products with each inducing point, for each component."""
    n, folded = soap.config.n_max, soap.contraction is None
    return sum(n * k - (n * (n - 1) // 2 if folded else 0) for k in soap.layout.widths)


def _forms(points: Tensor, soap: SOAP) -> tuple[Tensor, ...]:
    """Z for neighbours of each species, [entry, M_s]."""
    layout, n_max = soap.layout.to(points.device, points.dtype), soap.config.n_max
    of_degree = layout.full.split([k * k for k in layout.widths])
    slopes = layout.slope.split([k * k for k in layout.widths])
    parts: list[list[Tensor]] = [[] for _ in soap.species]
    for run in channel_runs(soap):
        of_species: list[list[Tensor]] = [[] for _ in soap.species]
        for l in range(run.start, run.stop):  # noqa: E741
            k = layout.widths[l]
            z = (points.T[of_degree[l]] * slopes[l][:, None]).view(k, k, -1)  # [a', b, M_s]
            if soap.contraction is not None:
                z = torch.tensordot(soap.contraction.matrices[l].to(z), z, 1)  # [a, b, M_s]
            order = channel_order(soap, l).to(points.device)
            for s, form in enumerate(z.split(n_max)):
                of_species[s].append(form[:, order[s]])
        for s, forms in enumerate(of_species):
            every = torch.stack(forms)  # [l, a, b, M_s]
            parts[s] += [every[:, a, _first(a, soap.contraction is None) :].flatten(0, 1) for a in range(n_max)]
    return tuple(torch.cat(p) for p in parts)


def _first(a: int, folded: bool) -> int:
    """The first channel b of the entries of channel a."""
    return a if folded else 0


@dataclass(frozen=True)
class RawRows:
    """k(functional, Z) of a batch of structures, not yet whitened."""

    energy: Tensor  # [structure, M]
    forces: Tensor  # [3N, M], atoms of all structures
    virial: Tensor | None  # [structure, 6, M]; None where they are not wanted

    def of_structure(self, index: int, first: int, stop: int) -> Tensor:
        """[1+3N+6, M] of one structure with the atoms first .. stop - 1; NaN for the virial where it is unknown."""
        virial = (
            self.energy.new_full((6, self.energy.shape[1]), torch.nan) if self.virial is None else self.virial[index]
        )
        return torch.cat([self.energy[index, None], self.forces[3 * first : 3 * stop], virial])


def raw_rows(
    basis: InducingBasis,
    forms: InducingForms,
    soap: SOAP,
    nb: Neighborhoods,
    max_bytes: float = BLOCK_BYTES,
    virial: bool = True,
) -> RawRows:
    """Rows of a batch of structures. Centres are taken in blocks whose expansions fill at most max_bytes, or one by one."""
    n_structures, m = nb.n_structures, basis.size
    energy = nb.vectors.new_zeros(n_structures, m)
    forces = nb.vectors.new_zeros(3 * len(nb.numbers), m)
    virials = nb.vectors.new_zeros(n_structures, 6, m) if virial else None
    room = Room.like(forces, max(m, padded_entries(forms.n_entries))) if forces.device.type in COMPILED else None
    for block in blocks_within(expansion_bytes(soap, nb), max_bytes):
        centres = block[torch.argsort(nb.numbers[block], stable=True)]  # by species, then structure
        expansion = expand_with_slopes(soap, nb, centres)
        groups = _groups(basis, expansion, nb)
        for g in groups:
            energy[:, g.columns].index_add_(0, g.structure, g.dot**basis.zeta)
        if room is not None:
            _add_compiled(forces, soap, expansion, groups, forms, room)
        if room is None or virials is not None:
            factors = pair_factors(soap, expansion)
            if room is None:
                _add_tensors(forces, expansion, factors, groups, forms)
            if virials is not None:
                _add_strains(virials, strain_products(soap, expansion, factors), groups, forms)
    return RawRows(energy, forces, virials)


def _add_tensors(
    forces: Tensor, expansion: CentreExpansion, factors: PairFactors, groups: list[_Group], forms: InducingForms
) -> None:
    """Slopes of all groups into the forces [3N, M], on any device."""
    for g in groups:
        _add_norm_slopes(forces[:, g.columns], expansion, factors, g)
        for s, form in enumerate(forms.forms[g.index]):
            _add_slopes(forces[:, g.columns], expansion, factors, g, forms, s, form)


def _add_compiled(
    forces: Tensor, soap: SOAP, expansion: CentreExpansion, groups: list[_Group], forms: InducingForms, room: Room
) -> None:
    """Slopes of all groups into the forces [3N, M], on the CPU."""
    for s, products in enumerate(pair_products(soap, expansion)):
        for g in groups:
            within = range(expansion.offsets[s][g.start], expansion.offsets[s][g.stop])
            rows = (expansion.row_centre - g.start, expansion.row_atom, expansion.centres[g.start : g.stop])
            weights = (-g.factor, -g.factor * g.dot)
            add_rows(forces, g.columns, products, forms.forms[g.index][s], weights, rows, within, room)


@dataclass(frozen=True)
class _Group:
    """Centres of one species of the basis, contiguous in an expansion and ascending in their structures."""

    index: int  # among the species of the basis
    columns: slice  # of the rows
    start: int
    stop: int
    structure: Tensor  # [i]
    atoms: Tensor  # [structure + 1] where the atoms of each structure start
    dot: Tensor  # [i, M_s] z . q
    factor: Tensor  # [i, M_s] dk/d(z . q) / |p|


def _groups(basis: InducingBasis, expansion: CentreExpansion, nb: Neighborhoods) -> list[_Group]:
    out, numbers = [], nb.numbers[expansion.centres]
    atoms = torch.nn.functional.pad(torch.bincount(nb.structure, minlength=nb.n_structures).cumsum(0), (1, 0))
    for index, columns in basis.blocks():
        chosen = torch.nonzero(numbers == basis.species[index]).squeeze(1).tolist()
        if chosen:
            here = slice(chosen[0], chosen[-1] + 1)  # centres are sorted by species
            dot = expansion.expansion.features[here] @ basis.points[index].T
            factor = kernel_slope(dot, basis.zeta) / expansion.expansion.norm[here, None]
            structure = nb.structure[expansion.centres[here]]
            out.append(_Group(index, columns, here.start, here.stop, structure, atoms, dot, factor))
    return out


def energy_rows(basis: InducingBasis, soap: SOAP, nb: Neighborhoods) -> Tensor:
    """k(energy, Z), [structure, M]: all that structures without forces and stress take."""
    out, q = nb.vectors.new_zeros(nb.n_structures, basis.size), soap.values(nb)
    for index, columns in basis.blocks():
        chosen = torch.nonzero(nb.numbers == basis.species[index]).squeeze(1)
        k = (q[chosen] @ basis.points[index].T) ** basis.zeta
        out[:, columns].index_add_(0, nb.structure[chosen], k)
    return out


def _add_slopes(
    forces: Tensor,
    expansion: CentreExpansion,
    factors: PairFactors,
    group: _Group,
    forms: InducingForms,
    s: int,
    form: Tensor,
) -> None:
    """Subtract factor * z . dp of a group for neighbours of species s from the forces [3N, M_s]."""
    offsets, device = expansion.offsets[s], forces.device.type
    n_rows = offsets[group.stop] - offsets[group.start]
    if n_rows == 0:
        return
    per_atom = forces.view(-1, 3, forces.shape[1])  # [atom, xyz, M_s]
    half = 0.5 * group.factor  # exact; torch adds by index faster with a factor other than 1
    n_centres = group.stop - group.start
    step = max(1, int(PRODUCTS[device] * n_centres / (3 * n_rows * forms.n_entries)))
    height = max(1, ROWS[device] // (3 * form.shape[1]))
    buffer = forces.new_empty(3 * min(height, n_rows), form.shape[1])
    for start in range(group.start, group.stop, step):
        rows = row_factors(expansion, factors, start, min(group.stop, start + step), s)
        f, weight = _products(rows, forms), half.index_select(0, rows.centre - group.start)
        own = expansion.centres[rows.centre]
        for first in range(0, len(own), height):
            here = slice(first, first + height)
            left = f[:, 3 * first : 3 * (first + height)].T  # [row xyz, entry]
            t = torch.mm(left, form, out=buffer[: len(left)]).view(-1, 3, form.shape[1])  # [row, xyz, M_s] z . dp
            t *= weight[here, None]
            per_atom.index_add_(0, rows.atom[here], t, alpha=-2)
            per_atom.index_add_(0, own[here], t, alpha=2)


def _add_norm_slopes(forces: Tensor, expansion: CentreExpansion, factors: PairFactors, group: _Group) -> None:
    """Add factor * (z . q) d|p| of a group of centres i to the forces [3N, M_s]."""
    env, weight = expansion.expansion.environments, group.dot * group.factor
    structures, counts = torch.unique_consecutive(group.structure, return_counts=True)
    start = group.start
    for k, n_centres in zip(structures.tolist(), counts.tolist(), strict=True):
        atoms = range(int(group.atoms[k]), int(group.atoms[k + 1]))
        bounds = torch.tensor([start, start + n_centres], device=env.centre.device)
        first, last = torch.searchsorted(env.centre, bounds).tolist()
        centre, slopes = env.centre[first:last], factors.norm[first:last]  # [pair], [pair, 3]
        before = (centre - start) * len(atoms) - atoms.start
        d_norm = slopes.new_zeros(n_centres * len(atoms), 3)  # [i atom, xyz]
        d_norm.index_add_(0, before + expansion.neighbor[first:last], slopes)
        d_norm.index_add_(0, before + expansion.centres[centre], slopes, alpha=-1)  # its own images cancel
        here = slice(start - group.start, start - group.start + n_centres)
        forces[3 * atoms.start : 3 * atoms.stop] += d_norm.view(n_centres, -1).T @ weight[here]
        start += n_centres


def _add_strains(
    virials: Tensor, strained: tuple[list[Tensor], Tensor], groups: list[_Group], forms: InducingForms
) -> None:
    """Subtract factor * (z . dp - (z . q) d|p|) of the strain of all centres from the virials [structure, 6, M]."""
    products, norm = strained  # [c, s, 6, l, a, b] of each run, [c, 6]
    for s in range(products[0].shape[1]):
        parts: list[Tensor] = []
        for f in products:
            for a in range(forms.n_max):
                part = f[:, s, :, :, a, _first(a, forms.folded) :]
                if forms.folded:
                    part = part.clone()
                    part[..., 1 : forms.n_max - a] += f[:, s, :, :, a + 1 : forms.n_max, a]
                parts.append(part.flatten(2))
        every = torch.cat(parts, dim=2)  # [c, 6, entry]
        for g in groups:
            t = (every[g.start : g.stop] @ forms.forms[g.index][s]) * g.factor[:, None]
            virials[:, :, g.columns].index_add_(0, g.structure, t, alpha=-1)
    for g in groups:
        t = norm[g.start : g.stop, :, None] * (g.dot * g.factor)[:, None]
        virials[:, :, g.columns].index_add_(0, g.structure, t)


def _products(rows: RowFactors, forms: InducingForms) -> Tensor:
    """F [entry, row xyz], folded: F_ab + F_ba where both channels belong to the neighbour's species."""
    n, n_columns = forms.n_max, 3 * len(rows.centre)
    out = rows.terms[0][0][0].new_empty(forms.n_entries, n_columns)
    start = 0
    for terms in rows.terms:
        n_degrees, n_channels, _ = terms[0][1].shape
        for a in range(n):
            first = _first(a, forms.folded)
            width = n_channels - first
            block = out[start : start + n_degrees * width].view(n_degrees, width, n_columns)
            start += n_degrees * width
            torch.mul(terms[0][0][:, a, None], terms[0][1][:, first:], out=block)
            for k, (h, u) in enumerate(terms):
                into = block if h.shape[2] == n_columns else block[:, :, : h.shape[2]]
                if k:
                    into.addcmul_(h[:, a, None], u[:, first:])
                if forms.folded and a + 1 < n:
                    into[:, 1 : n - a].addcmul_(h[:, a + 1 :], u[:, a, None])
    return out
