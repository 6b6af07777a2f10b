"""Real solid harmonics S_lm = R^l Y_lm of eight vectors at a time and their gradients, for compiled loops.

    S_lm = q_lm c_m,   S_l-m = q_lm s_m    (m >= 0, columns in the order m = -l .. l),      c_m + i s_m = (x + i y)^m
    q_lm = a_lm z q_(l-1)m + b_lm R^2 q_(l-2)m,       q_mm constant

with q_lm the Legendre part with its normalisation F_lm = (-1)^m sqrt((2l+1)/(2 pi) (l-m)!/(l+m)!) (1/sqrt(2) of it for
m = 0), and derivatives that are again such products:

    dq_lm/dz = f_lm q_(l-1)m,     dq_lm/dx = g_lm x q_(l-1)(m+1),     dc_m/dx = m c_(m-1), ds_m/dx = m s_(m-1), ...

Bigi, Fraux, Browning & Ceriotti, J. Chem. Phys. 159, 064802 (2023) (sphericart, whose values these are).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from descriptors.compiled import compiled
from descriptors.lanes import WIDTH, load, spread, store

assert WIDTH == 8  # written out below

Array = NDArray[np.float64]


def recursion(l_max: int) -> Array:
    """a, b, f and g of every (l, m), [l, m, 4]; where l = m, a is q_mm itself."""
    norm = np.zeros((l_max + 2, l_max + 2))  # [l, m] |F_lm|
    for l in range(l_max + 1):  # noqa: E741
        for m in range(l + 1):
            norm[l, m] = math.sqrt((2 * l + 1) / (2 * math.pi) * math.factorial(l - m) / math.factorial(l + m))
    norm[:, 0] *= math.sqrt(0.5)
    out = np.zeros((l_max + 1, l_max + 1, 4))
    for m in range(l_max + 1):
        out[m, m, 0] = norm[m, m] * math.prod(range(1, 2 * m, 2))  # (-1)^m of F and of (-1)^m (2m-1)!! cancel
        for l in range(m + 1, l_max + 1):  # noqa: E741
            fallen = norm[l, m] / norm[l - 1, m]
            out[l, m, 0] = (2 * l - 1) / (l - m) * fallen
            if l - 2 >= m:
                out[l, m, 1] = -(l + m - 1) / (l - m) * norm[l, m] / norm[l - 2, m]
            out[l, m, 2] = (l + m) * fallen
            if m + 1 <= l - 1:
                out[l, m, 3] = -norm[l, m] / norm[l - 1, m + 1]  # F changes its sign with m
    return out


@compiled
def solid_harmonics(position, table, q, circle, out):  # type: ignore[no-untyped-def]
    """S of eight vectors: position [xyz, 8] Å, table from `recursion`, out [lm, 8]; all arrays flat.

    q [l, m, 8] and circle [m, 2, 8] keep q, c and s for `gradients`.
    """
    x, y, z = load(position, 0), load(position, 8), load(position, 16)
    size = len(table)
    r2 = x * x + y * y + z * z
    c, s = spread(table.dtype.type(1)), spread(table.dtype.type(0))
    for m in range(size):
        store(circle, 16 * m, c)
        store(circle, 16 * m + 8, s)
        below = spread(table[m, m, 0])
        before = spread(table.dtype.type(0))
        for l in range(m, size):  # noqa: E741
            if l > m:
                below, before = table[l, m, 0] * z * below + table[l, m, 1] * r2 * before, below
            store(q, 8 * (l * size + m), below)
            store(out, 8 * (l * l + l + m), below * c)
            if m > 0:
                store(out, 8 * (l * l + l - m), below * s)
        c, s = x * c - y * s, x * s + y * c


@compiled
def gradients(position, table, q, circle, out):  # type: ignore[no-untyped-def]
    """grad S of the eight vectors after `solid_harmonics`, out [xyz, lm, 8], 1/Å."""
    x, y = load(position, 0), load(position, 8)
    size = len(table)
    to_y, to_z = 8 * size * size, 16 * size * size
    zero = spread(table.dtype.type(0))
    for m in range(size):
        c, s = load(circle, 16 * m), load(circle, 16 * m + 8)
        dc, ds = zero, zero
        if m > 0:
            factor = table.dtype.type(m)
            dc, ds = factor * load(circle, 16 * m - 16), factor * load(circle, 16 * m - 8)
        for l in range(m, size):  # noqa: E741
            inward, along = zero, zero
            if l > m + 1:
                inward = table[l, m, 3] * load(q, 8 * ((l - 1) * size + m + 1))
            if l > m:
                along = table[l, m, 2] * load(q, 8 * ((l - 1) * size + m))
            here = load(q, 8 * (l * size + m))
            up, down = 8 * (l * l + l + m), 8 * (l * l + l - m)
            store(out, up, x * inward * c + here * dc)
            store(out, to_y + up, y * inward * c - here * ds)
            store(out, to_z + up, along * c)
            if m > 0:
                store(out, down, x * inward * s + here * ds)
                store(out, to_y + down, y * inward * s + here * dc)
                store(out, to_z + down, along * s)
