"""Products with the inducing points, weighted and summed over centres, compiled: the last step of `rows.py` on a CPU.

For the rows (i, a) of an expansion, t = z . dp_i/dr_a, g = d|p_i|/dr_a and u = -dk/d(z . q_i) / |p_i|,

    - dk(z, q_i)/dr_a = u (t - (z . q_i) g)

is added to the forces on a and taken from those on i, which moves all of its surroundings against itself. One pass over t,
while it is in the caches; what belongs to i waits until its rows end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from descriptors.lanes import LANES, add, load, multiply, multiply_add, store

Floats = NDArray[Any]
Integers = NDArray[np.int64]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def add_slopes(
    forces: Floats,
    t: Floats,
    norm: Floats,
    slope: Floats,
    slope_dot: Floats,
    own: Floats,
    centre: Integers,
    atom: Integers,
    centre_atom: Integers,
    column: int,
    n_columns: int,
) -> None:
    """Rows (centre, atom) of one species of centre, those of a centre together, into its columns of the forces.

    forces [atom, xyz, n_columns], from `column` on; t [row, xyz, z]; norm [row, xyz] g; slope and slope_dot [centre, z], u
    and u (z . q); own [xyz, z] room to work in; all flat. centre, atom [row]; centre_atom [centre].
    """
    m = len(own) // 3
    own[:] = 0
    for row in range(len(atom)):
        i, into = centre[row], 3 * atom[row] * n_columns + column
        for xyz in range(3):
            source, g = (3 * row + xyz) * m, norm[3 * row + xyz]
            _add(forces, into + xyz * n_columns, own, xyz * m, t, source, g, slope, slope_dot, i * m, m)
        if row + 1 == len(atom) or centre[row + 1] != i:
            into = 3 * centre_atom[i] * n_columns + column
            for xyz in range(3):
                for z in range(m):
                    forces[into + xyz * n_columns + z] -= own[xyz * m + z]
            own[:] = 0


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
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
    whole = m - m % LANES
    for z in range(0, whole, LANES):
        force = multiply(load(slope, centre + z), load(t, source + z))
        force = multiply_add(force, -g, load(slope_dot, centre + z))
        store(own, kept + z, add(load(own, kept + z), force))
        store(forces, into + z, add(load(forces, into + z), force))
    for z in range(whole, m):
        rest = slope[centre + z] * t[source + z] - slope_dot[centre + z] * g
        own[kept + z] += rest
        forces[into + z] += rest
