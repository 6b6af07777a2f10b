"""Density coefficients and their reverse pass as compiled loops over the neighbours of each centre.

    c_lm,n = sum_j H_ln(r_ij) S_lm(r_ij)
    dE/dr_ij = sum_lm X_lm grad S_lm + rhat sum_lm Y_lm S_lm,     X_lm = sum_n H_ln A_lm,n,  Y_lm = sum_n dH_ln/dR A_lm,n

with A = dE/dc. H comes from the table of G (table.py) and the weight w, S from its recursion (solid_harmonics.py); for one
pair both fit a processor's first cache, and nothing of a pair is kept: the reverse pass computes it again. Sums over
neighbours are in the dtype of the table, distances and what is given and returned in float64.
"""

from __future__ import annotations

import math

import numpy as np

from descriptors.compiled import compiled
from descriptors.solid_harmonics import pull, solid_harmonics


@compiled
def weight_at(r, radial):  # type: ignore[no-untyped-def]
    """w(r) and dw/dr (1/Å) as `radial.neighbor_weight`; radial: see `Constants`."""
    r_cut, width, r0, m = radial[2], radial[3], radial[4], radial[5]
    w, slope = 1.0, 0.0
    if width > 0:
        t = min(max((r - (r_cut - width)) / width, 0.0), 1.0)
        w, slope = 1 - t * t * t * (10 - 15 * t + 6 * t * t), -30 * (t * (1 - t)) ** 2 / width
    if r0 > 0:
        power = (r / r0) ** m
        u = 1 / (1 + power)
        du = -m * power / r * u * u if r > 0 else 0.0
        w, slope = w * u, slope * u + w * du
    return w, slope


@compiled
def place(r, radial, p):  # type: ignore[no-untyped-def]
    """The interval of r in the table; p [2, 6] becomes the weights of its ends in H and in dH/dR (table.quintic)."""
    x = r / radial[0]
    interval = int(x)
    t = x - interval
    w, dw = weight_at(r, radial)
    t2, u = t * t, 1 - t
    u2 = u * u
    values = (
        u2 * u * (1 + 3 * t + 6 * t2),
        t * u2 * u * (1 + 3 * t),
        0.5 * t2 * u2 * u,
        t2 * t * (10 - 15 * t + 6 * t2),
        -t2 * t * u * (4 - 3 * t),
        0.5 * t2 * t * u2,
    )
    slopes = (
        -30 * t2 * u2,
        u2 * (1 - 3 * t) * (1 + 5 * t),
        0.5 * t * u2 * (2 - 5 * t),
        30 * t2 * u2,
        -t2 * (2 - 3 * t) * (6 - 5 * t),
        0.5 * t2 * u * (3 - 5 * t),
    )
    for k in range(6):
        p[0, k] = w * values[k]
        p[1, k] = dw * values[k] + w / radial[0] * slopes[k]
    return interval


@compiled
def mix(p, interval, knots, out):  # type: ignore[no-untyped-def]
    """sum_k p_k T_k of the six rows of an interval, out [l n]."""
    low, high = knots[interval], knots[interval + 1]
    for k in range(len(out)):
        out[k] = (p[0] * low[0, k] + p[1] * low[1, k] + p[2] * low[2, k]) + (
            p[3] * high[0, k] + p[4] * high[1, k] + p[5] * high[2, k]
        )


@compiled
def coefficients(vectors, first, count, species, knots, radial, own, table, out):  # type: ignore[no-untyped-def]
    """c into out [centre, lm, channel] from vectors [slot, 3] Å, and the shortest distance in Å.

    Segment (centre, species) has the slots first .. first + count. The distance is not a number where one is not.
    """
    n_max, l_max = len(own), len(table) - 1
    n_species = out.shape[2] // n_max
    kind = knots.dtype.type
    p, h = np.empty((2, 6), knots.dtype), np.empty(knots.shape[2], knots.dtype)
    s, q, circle = (
        np.empty(out.shape[1], knots.dtype),
        np.zeros((l_max + 1, l_max + 1), knots.dtype),
        np.empty((l_max + 1, 2), knots.dtype),
    )
    c = np.empty((out.shape[1], n_max), knots.dtype)
    shortest, strange = math.inf, False
    for segment in range(len(first)):
        c[:] = 0
        for slot in range(first[segment], first[segment] + count[segment]):
            x, y, z = vectors[slot, 0], vectors[slot, 1], vectors[slot, 2]
            r = math.sqrt(x * x + y * y + z * z)
            strange = strange or math.isnan(r)
            shortest = min(shortest, r)
            if not r <= radial[1]:
                continue
            mix(p[0], place(r, radial, p), knots, h)
            solid_harmonics(kind(x), kind(y), kind(z), table, q, circle, s)
            for l in range(l_max + 1):  # noqa: E741
                for lm in range(l * l, (l + 1) * (l + 1)):
                    for n in range(n_max):
                        c[lm, n] += s[lm] * h[l * n_max + n]
        centre, channel = segment // n_species, (segment % n_species) * n_max
        for lm in range(len(c)):
            for n in range(n_max):
                out[centre, lm, channel + n] = c[lm, n]
        if species[centre] == segment % n_species:
            for n in range(n_max):
                out[centre, 0, channel + n] += own[n]
    return math.nan if strange else shortest


@compiled
def pullback(vectors, first, count, knots, radial, n_max, table, gradient, out):  # type: ignore[no-untyped-def]
    """dE/dr into out [slot, 3] (0 where empty) from dE/dc [centre, lm, channel]."""
    n_lm, l_max = gradient.shape[1], len(table) - 1
    n_species = gradient.shape[2] // n_max
    kind = knots.dtype.type
    p, h, dh = (
        np.empty((2, 6), knots.dtype),
        np.empty(knots.shape[2], knots.dtype),
        np.empty(knots.shape[2], knots.dtype),
    )
    s, q, circle = (
        np.empty(n_lm, knots.dtype),
        np.zeros((l_max + 1, l_max + 1), knots.dtype),
        np.empty((l_max + 1, 2), knots.dtype),
    )
    a, by_harmonic = np.empty((n_lm, n_max), knots.dtype), np.empty(n_lm, knots.dtype)
    out[:] = 0
    for segment in range(len(first)):
        centre, channel = segment // n_species, (segment % n_species) * n_max
        for lm in range(n_lm):
            for n in range(n_max):
                a[lm, n] = gradient[centre, lm, channel + n]
        for slot in range(first[segment], first[segment] + count[segment]):
            x, y, z = vectors[slot, 0], vectors[slot, 1], vectors[slot, 2]
            r = math.sqrt(x * x + y * y + z * z)
            if not r <= radial[1]:
                continue
            interval = place(r, radial, p)
            mix(p[0], interval, knots, h)
            mix(p[1], interval, knots, dh)
            solid_harmonics(kind(x), kind(y), kind(z), table, q, circle, s)
            along = kind(0)
            for l in range(l_max + 1):  # noqa: E741
                for lm in range(l * l, (l + 1) * (l + 1)):
                    value, slope = kind(0), kind(0)
                    for n in range(n_max):
                        value += h[l * n_max + n] * a[lm, n]
                        slope += dh[l * n_max + n] * a[lm, n]
                    by_harmonic[lm] = value
                    along += slope * s[lm]
            gx, gy, gz = pull(kind(x), kind(y), by_harmonic, table, q, circle)
            along = along / r if r > 0 else 0.0
            out[slot, 0], out[slot, 1], out[slot, 2] = gx + along * x, gy + along * y, gz + along * z
