"""What the derivatives of the power spectrum of some centres are made from, pair by pair, laid out for long vectors.

For a pair (i, j) with H_a = w G_nl in the channels a of j's species and R = |r_ij|, and c' the (contracted) coefficients,

    F_ab = sum_m (dc_a/dr_ij) c'_b = H_a U_b + dH_a/dR rhat V_b,      U_b = sum_m grad S_lm c'_b,   V_b = sum_m S_lm c'_b

and dp/dr_ij follows from F. The derivative with respect to an atom a != i sums the pairs (i, a), all images: those are a
row. Rows of one species of neighbour are contiguous, by centre. The derivative with respect to the strain,
r -> (1 + strain) r, sums 1/2 (F_x r_y + F_y r_x) over all pairs, images of i itself included.

Degrees with equally many channels K_l are handled together, as a run: all of them without a contraction. There the
channels b are taken in an order that starts with those of j's species, so that the products where both a and b belong to it
stand side by side (`rows.py` adds F_ab and F_ba up).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from descriptors.contraction import expand_channels
from descriptors.density import PADDING, Environments, blockwise, degrees, density_pullback, segment_products
from descriptors.neighbors import Neighborhoods
from descriptors.power_spectrum import power_spectrum_pullback
from descriptors.soap import SOAP, Expansion, environments, expand_environments

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy


@dataclass(frozen=True)
class CentreExpansion:
    """The expansion of some centres, with what the derivatives of their power spectra are made from."""

    expansion: Expansion
    centres: Tensor  # [c] atoms of the batch, in the order of the expansion
    neighbor: Tensor  # [pair] atom of the batch
    runs: tuple[slice, ...]  # degrees l with equally many channels
    pairs: Tensor  # [moving pair] by species of the neighbour, centre, neighbour; without images of the centre itself
    first: Tensor  # [row] place of a row's first image among `pairs`
    images: Tensor  # [row] number of images
    row_centre: Tensor  # [row] position in `centres`
    row_atom: Tensor  # [row] atom of the batch
    offsets: tuple[tuple[int, ...], ...]  # [s][c + 1] where the rows of each centre start


@dataclass(frozen=True)
class PairFactors:
    """The factors of F that have directions, of every pair at once, and the slope of the norm."""

    angular: tuple[
        Tensor, ...
    ]  # of each run [slot, U and rhat V, l, K_l, xyz], channels in the order of the slot's species
    norm: Tensor  # [pair, 3] d|p|/dr_ij


@dataclass(frozen=True)
class RowFactors:
    """F of some rows as a sum over their images, most images first: sum_k H_k U_k; the k-th holds the first r_k rows."""

    centre: Tensor  # [R] position in `centres`
    atom: Tensor  # [R]
    terms: tuple[tuple[tuple[Tensor, Tensor], ...], ...]  # [run][k]: H or dH [l, n, r xyz], U or rhat V [l, K, r xyz]


def channel_runs(soap: SOAP) -> tuple[slice, ...]:
    """Degrees with equally many channels."""
    starts = [0]
    for _, group in groupby(soap.layout.widths):
        starts.append(starts[-1] + len(list(group)))
    return tuple(slice(a, b) for a, b in pairwise(starts))


def channel_order(soap: SOAP, l: int) -> Tensor:  # noqa: E741
    """Order of the channels b for neighbours of each species, [S, K_l]: their own first; as they are under a contraction."""
    n_species, k = len(soap.species), soap.layout.widths[l]
    every = torch.arange(k)
    if soap.contraction is not None:
        return every.expand(n_species, k)
    of = torch.div(every, soap.config.n_max, rounding_mode="floor")
    return torch.stack([torch.cat([every[of == s], every[of != s]]) for s in range(n_species)])


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
    """The expansion for centres in any order. Raises ValueError as SOAP.values."""
    ex, neighbor = expand_centres(soap, nb, centres)
    env, n_atoms = ex.environments, len(nb.numbers)
    n_keys = len(soap.species) * len(centres)
    moving = torch.nonzero(neighbor != centres[env.centre]).squeeze(1)
    key = (env.pair_species * len(centres) + env.centre)[moving] * n_atoms + neighbor[moving]
    key, order = torch.sort(key, stable=True)
    rows, images = torch.unique_consecutive(key, return_counts=True)
    segment = torch.div(rows, n_atoms, rounding_mode="floor")  # [row] species, centre
    stops = [0, *torch.bincount(segment, minlength=n_keys).cumsum(0).tolist()]
    starts = range(0, n_keys, max(1, len(centres)))
    return CentreExpansion(
        expansion=ex,
        centres=centres,
        neighbor=neighbor,
        runs=channel_runs(soap),
        pairs=moving[order],
        first=images.cumsum(0) - images,
        images=images,
        row_centre=segment % len(centres),
        row_atom=rows % n_atoms,
        offsets=tuple(tuple(stops[k : k + len(centres) + 1]) for k in starts),
    )


def pair_factors(soap: SOAP, expansion: CentreExpansion) -> PairFactors:
    """Angular factors and slopes of the norm."""
    ex = expansion.expansion
    norm = density_pullback(ex.slots, ex.terms, ex.slopes, norm_gradient(soap, ex))
    return PairFactors(_angular_products(soap, ex), norm)


def expansion_bytes(soap: SOAP, nb: Neighborhoods) -> Tensor:
    """Memory of each centre's share of a CentreExpansion and of what it is made from, [centre] bytes: an estimate."""
    pairs = torch.bincount(nb.centre, minlength=len(nb.numbers)).to(torch.float64)  # [centre]
    n_max, n_degrees = soap.config.n_max, soap.config.l_max + 1
    per_slot = 16 * n_degrees**2 + 8 * n_max * n_degrees + 8 * sum(soap.layout.widths) + 30
    per_centre = 8 * len(soap.species) * n_max * n_degrees**2 + 4 * soap.n_features
    return nb.vectors.element_size() * (PADDING * per_slot * pairs + per_centre)


def norm_gradient(soap: SOAP, ex: Expansion) -> list[Tensor]:
    """d|p|/dc in the uncontracted channels, for each l [c, channel, 2l+1]."""
    layout = soap.layout.to(ex.norm.device, ex.norm.dtype)
    ascent = power_spectrum_pullback(ex.coefficients, layout, ex.features)
    return ascent if soap.contraction is None else expand_channels(ascent, soap.contraction)


def row_factors(expansion: CentreExpansion, factors: PairFactors, start: int, stop: int, s: int) -> RowFactors:
    """Factors of F for the rows of centres start .. stop - 1 of the expansion and neighbours of species s."""
    rows = slice(expansion.offsets[s][start], expansion.offsets[s][stop])
    centre, atom = expansion.row_centre[rows], expansion.row_atom[rows]
    first, images = expansion.first[rows], expansion.images[rows]
    most = int(images.max()) if len(images) else 0
    counts = [len(first)]
    if most > 1:
        images, order = torch.sort(images, descending=True, stable=True)
        centre, atom, first = centre[order], atom[order], first[order]
        counts += [int((images > k).sum()) for k in range(1, most)]
    terms: list[list[tuple[Tensor, Tensor]]] = [[] for _ in expansion.runs]
    for k, r in enumerate(counts):
        slots = expansion.expansion.slots.of_pair[expansion.pairs[first[:r] + k]]
        for run, of_run in enumerate(_image_terms(expansion, factors, slots)):
            terms[run] += of_run
    return RowFactors(centre, atom, tuple(tuple(t) for t in terms))


def _image_terms(expansion: CentreExpansion, factors: PairFactors, slots: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """The terms of one image of each row, in these slots: for each run."""
    ex, out = expansion.expansion, []
    for degree, angular in zip(expansion.runs, factors.angular, strict=True):
        both = (
            angular.index_select(0, slots).view(len(slots), 2, angular[0, 0, ..., 0].numel(), 3).permute(1, 2, 0, 3)
        )  # [U V, l K, r, xyz]
        u, v = both.contiguous().view(2, *angular.shape[2:4], -1)
        h, dh = (x[degree].index_select(1, slots).transpose(1, 2) for x in _radial(ex))  # [l, n, r]
        out.append([(_thrice(h), u), (_thrice(dh), v)])
    return out


def _thrice(x: Tensor) -> Tensor:
    """[..., r] -> [..., r xyz]."""
    return x[..., None].expand(*x.shape, 3).flatten(-2)


def _radial(ex: Expansion) -> tuple[Tensor, Tensor]:
    return ex.terms.radial, ex.slopes.radial


def _angular_products(soap: SOAP, ex: Expansion) -> tuple[Tensor, ...]:
    """U and rhat V of every slot, for each run [slot, 2, l, K_l, xyz]."""
    n_species = len(soap.species)
    four = torch.cat([ex.slopes.harmonics, ex.terms.harmonics[:, None]], dim=1)  # [slot, xyz and value, lm]
    columns, out = degrees(soap.config.l_max), []
    direction = ex.slopes.direction[:, None]  # [slot, 1, xyz]
    for run in channel_runs(soap):
        width = soap.layout.widths[run.start]
        products = four.new_empty(len(four), 2, run.stop - run.start, width, 3)
        order = channel_order(soap, run.start).to(four.device)
        for block in ex.slots.blocks:
            s = block.segments % n_species
            centre = torch.div(block.segments, n_species, rounding_mode="floor")
            index = (centre[:, None] * width + order[s]).flatten()  # [segment K]
            here = slice(block.start, block.stop)
            for i, l in enumerate(range(run.start, run.stop)):  # noqa: E741
                c = ex.coefficients[l].flatten(0, 1).index_select(0, index).view(len(s), width, 2 * l + 1)
                left = blockwise(ex.slots, four[:, :, columns[l]], block).flatten(1, 2)  # [segment, w 4, m]
                both = torch.bmm(left, c.transpose(1, 2)).view(-1, 4, width)
                products[here, 0, i] = both[:, :3].transpose(1, 2)
                torch.mul(both[:, 3, :, None], direction[here], out=products[here, 1, i])
        out.append(products)
    return tuple(out)


def strain_products(soap: SOAP, expansion: CentreExpansion, factors: PairFactors) -> tuple[list[Tensor], Tensor]:
    """F of the strain for each run [c, s, 6, l, n, K_l], and d|p|/d(strain) [c, 6]."""
    ex, n_centres, n_max = expansion.expansion, len(expansion.centres), soap.config.n_max
    voigt = voigt_products(ex.slots.vectors)  # [slot, 6, 3]
    n_segments, out = n_centres * len(soap.species), []
    for run, angular in zip(expansion.runs, factors.angular, strict=True):
        parts = []
        for i, l in enumerate(range(run.start, run.stop)):  # noqa: E741
            u, v = ((angular[:, k, i] @ voigt.transpose(1, 2)).flatten(1) for k in range(2))  # [slot, K 6]
            f = segment_products(ex.slots, ex.terms.radial[l], u, n_segments)
            f = f + segment_products(ex.slots, ex.slopes.radial[l], v, n_segments)
            parts.append(f.view(n_centres, -1, n_max, angular.shape[3], 6).permute(0, 1, 4, 2, 3))
        out.append(torch.stack(parts, dim=3))
    env = ex.environments
    along = (voigt_products(env.vectors) @ factors.norm[:, :, None]).squeeze(2)  # [pair, 6]
    return out, along.new_zeros(n_centres, 6).index_add_(0, env.centre, along)


def voigt_products(vectors: Tensor) -> Tensor:
    """P [pair, 6, 3] Å such that P @ g are the components 1/2 (g_x r_y + g_y r_x) of g [pair, 3]."""
    out = vectors.new_zeros(len(vectors), 6, 3)
    for v, (x, y) in enumerate(VOIGT):
        out[:, v, x] += 0.5 * vectors[:, y]
        out[:, v, y] += 0.5 * vectors[:, x]
    return out
