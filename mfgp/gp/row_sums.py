"""Products with the inducing points, weighted and summed over centres, compiled: the last step of `rows.py` on a CPU.

For the rows (i, a) of an expansion, t = z . dp_i/dr_a, g = d|p_i|/dr_a and u = -dk/d(z . q_i) / |p_i|,

    - dk(z, q_i)/dr_a = u (t - (z . q_i) g)

is added to the forces on a and taken from those on i, which moves all of its surroundings against itself. One pass over t,
while it is in the caches; what belongs to i waits until its rows end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from descriptors.compiled import lean
from descriptors.lanes import WIDTH, load, store
from descriptors.pair_products import PairProducts

Floats = NDArray[Any]
Integers = NDArray[np.int64]


CACHE = 2**18  # entries of F, or of its products with the inducing points, held at a time


@dataclass(frozen=True)
class Room:
    """What is written over and over: memory that is touched for the first time costs more than what is done with it."""

    f: Tensor  # [entry]
    norm: Tensor  # [row xyz]
    t: Tensor  # [entry]

    @staticmethod
    def like(x: Tensor, largest_row: int) -> Room:
        """Room for CACHE entries, or one row."""
        size = max(CACHE, 3 * largest_row)  # more than `norm` takes; what is not touched costs nothing
        return Room(x.new_empty(size), x.new_empty(size), x.new_empty(size))


def add_rows(
    forces: Tensor,
    columns: slice,
    products: PairProducts,
    form: Tensor,
    weights: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor, Tensor],
    within: range,
    room: Room,
) -> None:
    """Add the slopes of the rows `within` to columns of the forces [3N, M].

    form [entry, z]; weights u and u (z . q) [centre, z]; rows are the centre and the atom of every row, and the atom of
    every centre, with centres counted as in `weights`.
    """
    (n_entries, m), out = form.shape, forces.view(-1).numpy()
    slope, slope_dot = (w.contiguous().view(-1).numpy() for w in weights)
    centre, atom, centre_atom = (r.numpy() for r in rows)
    step = max(1, CACHE // (3 * max(m, products.stride)))
    f, t = room.f[: 3 * step * products.stride].view(-1, products.stride), room.t[: 3 * step * m].view(-1, m)
    flat_f, flat_norm, flat_t, own = (x.view(-1).numpy() for x in (f, room.norm, t, forces.new_empty(3 * m)))
    for first in range(within.start, within.stop, step):
        last = min(within.stop, first + step)
        products.fill(flat_f, flat_norm, first, last)
        n = 3 * (last - first)
        torch.mm(f[:n, :n_entries], form, out=t[:n])
        _add_slopes(
            out,
            flat_t,
            flat_norm,
            slope,
            slope_dot,
            own,
            centre,
            atom,
            centre_atom,
            first,
            last,
            columns.start,
            forces.shape[1],
        )


@lean
def _add_slopes(
    forces: Floats,
    t: Floats,
    norm: Floats,
    slope: Floats,
    slope_dot: Floats,
    own: Floats,
    centre: Integers,
    atom: Integers,
    centre_atom: Integers,
    start: int,
    stop: int,
    column: int,
    n_columns: int,
) -> None:
    """Rows start .. stop - 1, those of a centre together, into columns of the forces.

    forces [atom, xyz, n_columns], from `column` on; t [row - start, xyz, z]; norm [row - start, xyz] g; slope and slope_dot
    [centre, z]; own [xyz, z] to work in; all flat. centre, atom [row]; centre_atom [centre].
    """
    m = len(own) // 3
    own[:] = 0
    for row in range(start, stop):
        i, into = centre[row], 3 * atom[row] * n_columns + column
        for xyz in range(3):
            at = 3 * (row - start) + xyz
            _add(forces, into + xyz * n_columns, own, xyz * m, t, at * m, norm[at], slope, slope_dot, i * m, m)
        if row + 1 == stop or centre[row + 1] != i:
            into = 3 * centre_atom[i] * n_columns + column
            for xyz in range(3):
                for z in range(m):
                    forces[into + xyz * n_columns + z] -= own[xyz * m + z]
            own[:] = 0


@lean
def _add(
    forces: Floats,
    into: int,
    own: Floats,
    kept: int,
    t: Floats,
    source: int,
    g: float,
    slope: Floats,
    slope_dot: Floats,
    centre: int,
    m: int,
) -> None:
    """Add u t - u (z . q) g, m numbers, to the forces and to the centre's own."""
    whole = m - m % WIDTH
    for z in range(0, whole, WIDTH):
        force = load(slope, centre + z) * load(t, source + z)
        force = force + -g * load(slope_dot, centre + z)
        store(own, kept + z, load(own, kept + z) + force)
        store(forces, into + z, load(forces, into + z) + force)
    for z in range(whole, m):
        rest = slope[centre + z] * t[source + z] - slope_dot[centre + z] * g
        own[kept + z] += rest
        forces[into + z] += rest
