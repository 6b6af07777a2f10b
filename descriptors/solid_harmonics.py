"""Real solid harmonics S_lm = R^l Y_lm of one vector and the reverse of their gradients, for compiled loops.

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
def solid_harmonics(x, y, z, table, q, circle, out):  # type: ignore[no-untyped-def]
    """S [lm] of the vector x, y, z (Å), with q [l, m] and c, s [m, 2] as `pull` needs them; table from `recursion`."""
    r2 = x * x + y * y + z * z
    circle[0, 0], circle[0, 1] = 1.0, 0.0
    for m in range(1, len(table)):
        c, s = circle[m - 1, 0], circle[m - 1, 1]
        circle[m, 0], circle[m, 1] = x * c - y * s, x * s + y * c
    for l in range(len(table)):  # noqa: E741
        middle = l * l + l
        q[l, l] = table[l, l, 0]
        for m in range(l):
            q[l, m] = table[l, m, 0] * z * q[l - 1, m]
            if m < l - 1:
                q[l, m] += table[l, m, 1] * r2 * q[l - 2, m]
        out[middle] = q[l, 0]
        for m in range(1, l + 1):
            out[middle + m] = q[l, m] * circle[m, 0]
            out[middle - m] = q[l, m] * circle[m, 1]


@compiled
def pull(x, y, weights, table, q, circle):  # type: ignore[no-untyped-def]
    """sum_lm weights_lm grad S_lm (x, y, z components; 1/Å), after `solid_harmonics` of the same vector."""
    zero = x * 0
    gx, gy, gz, inward = zero, zero, zero, zero
    for m in range(len(table)):
        c, s = circle[m, 0], circle[m, 1]
        even, odd = zero, zero
        for l in range(m, len(table)):  # noqa: E741
            middle = l * l + l
            up, down = weights[middle + m], weights[middle - m]
            if m == 0:
                down = zero
            both = up * c + down * s
            even += q[l, m] * up
            odd += q[l, m] * down
            if l > m:
                gz += table[l, m, 2] * q[l - 1, m] * both
            if l > m + 1:
                inward += table[l, m, 3] * q[l - 1, m + 1] * both
        if m > 0:
            c, s = m * circle[m - 1, 0], m * circle[m - 1, 1]
            gx += c * even + s * odd
            gy += c * odd - s * even
    return gx + x * inward, gy + y * inward, gz
