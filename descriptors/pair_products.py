"""F of the rows of some centres and one species of neighbours, compiled: what slopes.py states, pair by pair in the caches.

    F_ab = sum_images H_a U_b + dH_a/dR W_b,      U_b = sum_m grad S_lm c'_b,      W_b = rhat sum_m S_lm c'_b

for the entries of a form (mfgp/gp/rows.py): by run of degrees, a, l, b. Without a contraction ("folded") entries with both
channels in the neighbour's species are there for a <= b, as F_ab + F_ba. Beside them the slope of the norm of the power
spectrum, from A = d|p|/dc in the neighbour's n_max channels,

    d|p|/dr = sum_la H_a sum_m grad S_lm A_alm + dH_a/dR rhat sum_m S_lm A_alm.

Channels are padded with zeros to a multiple of WIDTH. A chunk of WIDTH that begins near the end of an entry's channels
writes zeros beyond it; entries are taken in ascending order, so those places are written later, or are a row's padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from descriptors.compiled import lean
from descriptors.lanes import WIDTH, load, store, total, without_first, zeros
from descriptors.slopes import CentreExpansion, norm_gradient
from descriptors.soap import SOAP

Floats = NDArray[Any]
Integers = NDArray[np.int64]


class _Pairs(NamedTuple):
    """Factors of the density and its slopes, all flat."""

    radial: Floats  # [l, slot, n] H
    radial_slope: Floats  # [l, slot, n] dH/dR
    harmonics: Floats  # [slot, lm]
    gradients: Floats  # [slot, xyz, lm]
    direction: Floats  # [slot, xyz]
    n_slots: int


class _Centres(NamedTuple):
    """Of the centres, for one species of neighbours; flat."""

    coefficients: Floats  # [c, lm, b and padding] c', the species' own channels first
    norm: Floats  # [c, lm, n and padding] d|p|/dc


class _Rows(NamedTuple):
    """Of all rows of the expansion."""

    slot: Integers  # [image] of all rows
    first: Integers  # [row] place of the first image
    images: Integers  # [row]
    centre: Integers  # [row]


class _Layout(NamedTuple):
    """Where the products go."""

    degree: Integers  # [l a] l of each (l, a), ascending in place
    channel: Integers  # [l a]
    place: Integers  # [l a] first entry
    widths: Integers  # [l] K_l
    n_max: int
    folded: bool
    stride: int  # of a row of F
    width: int  # K, padded
    narrow: int  # n_max, padded


class _Workspace(NamedTuple):
    """Of one pair; flat, with WIDTH zeros after each run of channels."""

    h: Floats  # [l, n]
    dh: Floats  # [l, n]
    u: Floats  # [l, 6, b] U and W
    a: Floats  # [l, 6, n] the same of A


@dataclass(frozen=True)
class PairProducts:
    """F of the rows of a `CentreExpansion` for one species of neighbours, to be made some rows at a time."""

    stride: int  # of a row of F: entries and padding
    arguments: tuple[_Pairs, _Centres, _Rows, _Layout, _Workspace]

    def fill(self, out: Floats, norm: Floats, start: int, stop: int) -> None:
        """F of the rows start .. stop - 1 into out [row, xyz, stride], d|p|/dr into norm [row, xyz], both flat."""
        _products(out, norm, start, stop, *self.arguments)


def pair_products(soap: SOAP, expansion: CentreExpansion) -> Iterator[PairProducts]:
    """For neighbours of each species, on the CPU."""
    ex, n_max, widths = expansion.expansion, soap.config.n_max, soap.layout.widths
    layout = _layout(soap, expansion)
    pairs = _Pairs(
        radial=_flat(ex.terms.radial),
        radial_slope=_flat(ex.slopes.radial),
        harmonics=_flat(ex.terms.harmonics),
        gradients=_flat(ex.slopes.harmonics),
        direction=_flat(ex.slopes.direction),
        n_slots=len(ex.slots.vectors),
    )
    slot = ex.slots.of_pair[expansion.pairs]
    rows = _Rows(*(x.numpy() for x in (slot, expansion.first, expansion.images, expansion.row_centre)))
    sizes = (n_max + WIDTH, n_max + WIDTH, 6 * (layout.width + WIDTH), 6 * (layout.narrow + WIDTH))
    work = _Workspace(*(_flat(ex.norm.new_zeros(len(widths) * size)) for size in sizes))
    coefficients = _by_harmonic(ex.coefficients, layout.width)
    gradients = _by_harmonic(norm_gradient(soap, ex), len(soap.species) * n_max).unflatten(2, (-1, n_max))
    of_species = gradients.new_zeros(*gradients.shape[:2], layout.narrow)
    for s in range(len(soap.species)):
        own_first = coefficients
        if layout.folded:
            start, stop = s * n_max, (s + 1) * n_max
            own_first = torch.cat(
                [coefficients[:, :, start:stop], coefficients[:, :, :start], coefficients[:, :, stop:]], dim=2
            )
        of_species[:, :, :n_max] = gradients[:, :, s]
        yield PairProducts(layout.stride, (pairs, _Centres(_flat(own_first), _flat(of_species)), rows, layout, work))


def padded_entries(n_entries: int) -> int:
    """Length of a row of F with so many entries: room for a last chunk that begins at the last entry."""
    return padded(n_entries) + WIDTH


def padded(n: int) -> int:
    """n, or the next multiple of WIDTH."""
    return -(-n // WIDTH) * WIDTH


def _by_harmonic(parts: list[Tensor], width: int) -> Tensor:
    """[c, lm, channel] with zeros up to `width` from [c, channel, m] of each l."""
    out = parts[0].new_zeros(len(parts[0]), len(parts) ** 2, width)
    for l, part in enumerate(parts):  # noqa: E741
        out[:, l * l : (l + 1) ** 2, : part.shape[1]] = part.transpose(1, 2)
    return out


def _flat(x: Tensor) -> Floats:
    return x.contiguous().view(-1).numpy()


def _layout(soap: SOAP, expansion: CentreExpansion) -> _Layout:
    """Degree l, channel a and first entry of each (a, l), in ascending order of the entries."""
    widths, n_max, folded = soap.layout.widths, soap.config.n_max, soap.contraction is None
    entries, place = [], 0
    for run in expansion.runs:
        for a in range(n_max):
            for l in range(run.start, run.stop):  # noqa: E741
                entries.append((l, a, place))
                place += widths[l] - (a if folded else 0)
    degree, channel, first = np.array(entries).T.copy()
    sizes = (padded_entries(place), padded(max(widths)), padded(n_max))
    return _Layout(degree, channel, first, np.array(widths), n_max, folded, *sizes)


@lean
def _products(
    out: Floats,
    norm: Floats,
    start: int,
    stop: int,
    pairs: _Pairs,
    centres: _Centres,
    rows: _Rows,
    layout: _Layout,
    work: _Workspace,
) -> None:
    """Fill F [row, xyz, stride] and d|p| [row, xyz], both flat."""
    radial, radial_slope, harmonics, gradients, direction, n_slots = pairs  # fields are counted references: taken once
    coefficients, norm_gradient = centres
    slots, first, images, centre = rows
    degree, channel, place, widths, n_max, folded, stride, width, narrow = layout
    h, dh, u, a = work
    n_degrees = len(widths)
    for row in range(start, stop):
        at = 3 * (row - start)
        norm[at : at + 3] = 0
        for k in range(images[row]):
            slot = slots[first[row] + k]
            _radial(h, radial, slot, n_slots, n_degrees, n_max)
            _radial(dh, radial_slope, slot, n_slots, n_degrees, n_max)
            _angular(u, coefficients, centre[row], width, harmonics, gradients, direction, slot, n_degrees)
            _angular(a, norm_gradient, centre[row], narrow, harmonics, gradients, direction, slot, n_degrees)
            _add_norm(norm, at, h, dh, a, n_max, narrow + WIDTH, n_degrees)
            _add_entries(
                out, at * stride, stride, k == 0, h, dh, u, width + WIDTH, degree, channel, place, widths, n_max, folded
            )


@lean
def _radial(out: Floats, radial: Floats, slot: int, n_slots: int, n_degrees: int, n_max: int) -> None:
    """[l, n] of a slot, with zeros after each degree."""
    for l in range(n_degrees):  # noqa: E741
        into, source = l * (n_max + WIDTH), (l * n_slots + slot) * n_max
        for n in range(n_max):
            out[into + n] = radial[source + n]


@lean
def _angular(
    out: Floats,
    c: Floats,
    centre: int,
    width: int,
    harmonics: Floats,
    gradients: Floats,
    direction: Floats,
    slot: int,
    n_degrees: int,
) -> None:
    """sum_m grad S_lm c_lm and rhat sum_m S_lm c_lm, [l, 6, channel], for a pair; c [centre, lm, channel]."""
    n_lm, step = n_degrees * n_degrees, width + WIDTH
    for l in range(n_degrees):  # noqa: E741
        for b in range(0, width, WIDTH):
            x = y = z = value = zeros(c)
            for lm in range(l * l, (l + 1) * (l + 1)):
                part = load(c, (centre * n_lm + lm) * width + b)
                x = x + gradients[3 * slot * n_lm + lm] * part
                y = y + gradients[(3 * slot + 1) * n_lm + lm] * part
                z = z + gradients[(3 * slot + 2) * n_lm + lm] * part
                value = value + harmonics[slot * n_lm + lm] * part
            into = 6 * l * step + b
            store(out, into, x)
            store(out, into + step, y)
            store(out, into + 2 * step, z)
            store(out, into + 3 * step, direction[3 * slot] * value)
            store(out, into + 4 * step, direction[3 * slot + 1] * value)
            store(out, into + 5 * step, direction[3 * slot + 2] * value)


@lean
def _add_norm(norm: Floats, at: int, h: Floats, dh: Floats, a: Floats, n_max: int, step: int, n_degrees: int) -> None:
    """Add d|p|/dr of a pair, [xyz] at `at`."""
    for xyz in range(3):
        found = zeros(norm)
        for l in range(n_degrees):  # noqa: E741
            for n in range(0, n_max, WIDTH):
                radial, angular = l * (n_max + WIDTH) + n, (6 * l + xyz) * step + n
                found = found + load(h, radial) * load(a, angular)
                found = found + load(dh, radial) * load(a, angular + 3 * step)
        norm[at + xyz] += total(found)


@lean
def _add_entries(
    out: Floats,
    start: int,
    stride: int,
    first: bool,
    h: Floats,
    dh: Floats,
    u: Floats,
    step: int,
    degree: Integers,
    channel: Integers,
    place: Integers,
    widths: Integers,
    n_max: int,
    folded: bool,
) -> None:
    """Write, or from the second image on add, the products of a pair to F [xyz, entry] at `start`."""
    for k in range(len(degree)):
        l, a = degree[k], channel[k]  # noqa: E741
        radial, begin = l * (n_max + WIDTH), a if folded else 0
        for b in range(begin, widths[l], WIDTH):
            other, other_slope = load(h, radial + min(b, n_max)), load(dh, radial + min(b, n_max))  # 0 from n_max on
            if b == a:
                other, other_slope = without_first(other), without_first(other_slope)
            for xyz in range(3):
                angular = (6 * l + xyz) * step
                found = h[radial + a] * load(u, angular + b)
                found = found + dh[radial + a] * load(u, angular + 3 * step + b)
                if folded and b < n_max:
                    found = found + u[angular + a] * other
                    found = found + u[angular + 3 * step + a] * other_slope
                into = start + xyz * stride + place[k] + b - begin
                store(out, into, found if first else found + load(out, into))
