"""Density coefficients and their reverse pass as compiled loops over the neighbours of each centre.

    c_lm,n = sum_j H_ln(r_ij) S_lm(r_ij)
    dE/dr_ij = sum_lm X_lm grad S_lm + rhat sum_lm Y_lm S_lm,     X_lm = sum_n H_ln A_lm,n,  Y_lm = sum_n dH_ln/dR A_lm,n

with A = dE/dc; summed as sum_ln H_ln (sum_m A_lm,n grad S_lm) and sum_ln dH_ln/dR (sum_m A_lm,n S_lm), so that all sums run
over channels n, eight at a time (lanes.py). H comes from the table of G (table.py) and the weight w, S from its recursion
(solid_harmonics.py), for eight pairs of a segment at a time: they fit a processor's first cache, and nothing of a pair is
kept, for the reverse pass computes it again. Sums over neighbours are in the dtype of the table, distances and what is
given and returned in float64. Channels of a degree are padded to a multiple of eight.
"""

from __future__ import annotations

import math

import numpy as np

from descriptors.compiled import compiled
from descriptors.lanes import WIDTH, load, spread, spread_from, store, total, workspace
from descriptors.solid_harmonics import gradients, solid_harmonics
from descriptors.table import quintic

assert WIDTH == 8  # written out below

_quintic = compiled(quintic)


@compiled
def weight_at(r, radial):  # type: ignore[no-untyped-def]
    """w(r) and dw/dr (1/Å) as `radial.neighbor_weight`; radial: see `Constants`."""
    r_cut, width, r0, m = radial[2], radial[3], radial[4], radial[5]
    w, slope = 1.0, 0.0
    if width > 0:
        t = min(max((r - (r_cut - width)) / width, 0.0), 1.0)
        w, slope = 1 - t * t * t * (10 - 15 * t + 6 * t * t), -30 * (t * (1 - t)) ** 2 / width
    if r0 > 0:
        power = r / r0
        if m == int(m):  # several times faster than a power
            for _ in range(int(m) - 1):
                power *= r / r0
        else:
            power = power**m
        u = 1 / (1 + power)
        du = -m * power / r * u * u if r > 0 else 0.0
        w, slope = w * u, slope * u + w * du
    return w, slope


@compiled
def place(r, radial, p):  # type: ignore[no-untyped-def]
    """The interval of r in the table; p [12] becomes the weights of its ends in H, then in dH/dR (table.quintic)."""
    x = r / radial[0]
    interval = int(x)
    t = x - interval
    w, dw = weight_at(r, radial)
    values, slopes = _quintic(t)
    for k in range(6):
        p[k] = w * values[k]
        p[6 + k] = dw * values[k] + w / radial[0] * slopes[k]
    return interval


@compiled
def shortest_distance(vectors, first, count):  # type: ignore[no-untyped-def]
    """Of all pairs, Å; infinite without any, not a number where one is not."""
    square = math.inf
    for segment in range(len(first)):
        for slot in range(first[segment], first[segment] + count[segment]):
            x, y, z = vectors[slot, 0], vectors[slot, 1], vectors[slot, 2]
            r2 = x * x + y * y + z * z
            if math.isnan(r2):
                return r2
            square = min(square, r2)
    return math.sqrt(square)


@compiled
def gather(vectors, slot, stop, radial, lane_slot, distance, position):  # type: ignore[no-untyped-def]
    """The next eight slots in range, from `slot` on: how many there are, and where to go on."""
    present = 0
    while slot < stop and present < 8:
        x, y, z = vectors[slot, 0], vectors[slot, 1], vectors[slot, 2]
        r = math.sqrt(x * x + y * y + z * z)
        if r <= radial[1]:
            lane_slot[present], distance[present] = slot, r
            position[present], position[8 + present], position[16 + present] = x, y, z
            present += 1
        slot += 1
    return present, slot


@compiled
def mix(p, at, interval, knots, h, row):  # type: ignore[no-untyped-def]
    """sum_k p_k T_k of the six rows of an interval, with p from `at` on, into row `row` of h [pair, l n]."""
    size = knots.shape[1] // 3
    flat = knots.reshape(-1)
    a, b, c = spread_from(p, at), spread_from(p, at + 1), spread_from(p, at + 2)
    d, e, f = spread_from(p, at + 3), spread_from(p, at + 4), spread_from(p, at + 5)
    for k in range(3 * size * interval, 3 * size * interval + size, 8):
        low = a * load(flat, k) + b * load(flat, k + size) + c * load(flat, k + 2 * size)
        high = d * load(flat, k + 3 * size) + e * load(flat, k + 4 * size) + f * load(flat, k + 5 * size)
        store(h, row * size + k - 3 * size * interval, low + high)


@compiled
def coefficients(vectors, first, count, species, knots, radial, own, table, out):  # type: ignore[no-untyped-def]
    """c into out [centre, lm, channel] from vectors [slot, 3] Å.

    Segment (centre, species) has the slots first .. first + count.
    """
    n_max, n_degrees, n_lm = len(own), len(table), out.shape[1]
    n_species, size = out.shape[2] // n_max, knots.shape[1] // 3
    blocks = size // n_degrees // 8
    p, position, distance = workspace(12, knots), workspace(24, knots), np.empty(8)
    lane_slot = np.empty(8, np.int64)
    q, circle, s = workspace(8 * n_lm, knots), workspace(16 * n_degrees, knots), workspace(8 * n_lm, knots)
    h, c = workspace(8 * size, knots), workspace(8 * blocks * n_lm, knots)
    for segment in range(len(first)):
        slot, stop = first[segment], first[segment] + count[segment]
        c[:] = 0
        while slot < stop:
            present, slot = gather(vectors, slot, stop, radial, lane_slot, distance, position)
            for k in range(present):
                mix(p, 0, place(distance[k], radial, p), knots, h, k)
            solid_harmonics(position, table, q, circle, s)
            for l in range(n_degrees):  # noqa: E741
                for block in range(blocks):
                    channels = 8 * (l * blocks + block)
                    for lm in range(l * l, (l + 1) * (l + 1)):
                        x = load(c, 8 * (lm * blocks + block))
                        for k in range(present):
                            x = x + spread_from(s, 8 * lm + k) * load(h, k * size + channels)
                        store(c, 8 * (lm * blocks + block), x)
        centre, channel = segment // n_species, (segment % n_species) * n_max
        for lm in range(n_lm):
            for n in range(n_max):
                out[centre, lm, channel + n] = c[8 * blocks * lm + n]
        if species[centre] == segment % n_species:
            for n in range(n_max):
                out[centre, 0, channel + n] += own[n]


@compiled
def contract(k, s, g, h, dh, a, n_degrees, blocks, out):  # type: ignore[no-untyped-def]
    """Of pairs k and k + 1 of the eight: sum H A grad S and sum dH/dR A S, into out [2, 4]."""
    size, n_lm = 8 * blocks * n_degrees, n_degrees * n_degrees
    to_y, to_z = 8 * n_lm + k, 16 * n_lm + k
    zero = spread(a.dtype.type(0))
    x, y, z, r = zero, zero, zero, zero
    x2, y2, z2, r2 = zero, zero, zero, zero
    for l in range(n_degrees):  # noqa: E741
        for block in range(blocks):
            vx, vy, vz, vr = zero, zero, zero, zero
            vx2, vy2, vz2, vr2 = zero, zero, zero, zero
            for lm in range(l * l, (l + 1) * (l + 1)):
                w = load(a, 8 * (lm * blocks + block))
                vx, vx2 = vx + spread_from(g, 8 * lm + k) * w, vx2 + spread_from(g, 8 * lm + k + 1) * w
                vy, vy2 = vy + spread_from(g, to_y + 8 * lm) * w, vy2 + spread_from(g, to_y + 8 * lm + 1) * w
                vz, vz2 = vz + spread_from(g, to_z + 8 * lm) * w, vz2 + spread_from(g, to_z + 8 * lm + 1) * w
                vr, vr2 = vr + spread_from(s, 8 * lm + k) * w, vr2 + spread_from(s, 8 * lm + k + 1) * w
            at = k * size + 8 * (l * blocks + block)
            here, slope = load(h, at), load(dh, at)
            x, y, z, r = x + vx * here, y + vy * here, z + vz * here, r + vr * slope
            here, slope = load(h, at + size), load(dh, at + size)
            x2, y2, z2, r2 = x2 + vx2 * here, y2 + vy2 * here, z2 + vz2 * here, r2 + vr2 * slope
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = total(x), total(y), total(z), total(r)
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = total(x2), total(y2), total(z2), total(r2)


@compiled
def pullback(vectors, first, count, knots, radial, n_max, table, gradient, out):  # type: ignore[no-untyped-def]
    """dE/dr into out [slot, 3] (0 where empty) from dE/dc [centre, lm, channel]."""
    n_degrees, n_lm, n_species = len(table), gradient.shape[1], gradient.shape[2] // n_max
    size = knots.shape[1] // 3
    blocks = size // n_degrees // 8
    p, position, distance = workspace(12, knots), workspace(24, knots), np.empty(8)
    lane_slot = np.empty(8, np.int64)
    q, circle, s = workspace(8 * n_lm, knots), workspace(16 * n_degrees, knots), workspace(8 * n_lm, knots)
    g, h, dh = workspace(24 * n_lm, knots), workspace(8 * size, knots), workspace(8 * size, knots)
    a, found = workspace(8 * blocks * n_lm, knots), np.empty((2, 4))
    out[:] = 0
    for segment in range(len(first)):
        centre, channel = segment // n_species, (segment % n_species) * n_max
        slot, stop = first[segment], first[segment] + count[segment]
        for lm in range(n_lm):
            for n in range(n_max):
                a[8 * blocks * lm + n] = gradient[centre, lm, channel + n]
        while slot < stop:
            present, slot = gather(vectors, slot, stop, radial, lane_slot, distance, position)
            for k in range(present):
                interval = place(distance[k], radial, p)
                mix(p, 0, interval, knots, h, k)
                mix(p, 6, interval, knots, dh, k)
            solid_harmonics(position, table, q, circle, s)
            gradients(position, table, q, circle, g)
            for k in range(present):
                if k % 2 == 0:
                    contract(k, s, g, h, dh, a, n_degrees, blocks, found)
                f = found[k % 2]
                along = f[3] / distance[k] if distance[k] > 0 else 0.0
                for axis in range(3):
                    out[lane_slot[k], axis] = f[axis] + along * vectors[lane_slot[k], axis]
