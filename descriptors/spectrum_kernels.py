"""The normalised power spectrum and its reverse pass as compiled loops, a centre at a time (power_spectrum.py).

    p_ab = v_ab sum_m c_am c_bm (a <= b),   q = p / |p|
    M_ab = v_ab (g_ab - q_ab (q . g)) / |p|,  doubled on the diagonal;   dE/dc_am = sum_b M_ab c_bm,   g = dE/dq

A centre's coefficients lie one after the other: degree l, m, channel, with K_l channels for degree l. Eight channels b are
taken at a time (lanes.py), from copies that are padded to a multiple of eight.
"""

from __future__ import annotations

import math

from descriptors.compiled import compiled
from descriptors.lanes import WIDTH, load, spread, spread_from, store, workspace

assert WIDTH == 8  # written out below


@compiled
def spectrum(c, widths, weight, q, norm):  # type: ignore[no-untyped-def]
    """q [centre, D] and |p| [centre] from c [centre, l m channel], K_l [l] and v [D]; |p| = 0 leaves q at 0."""
    widest = (widths.max() + 7) // 8 * 8
    rows, sums = workspace(widest * (2 * len(widths) - 1), c), workspace(widest, c)  # [m, channel], [channel b]
    for centre in range(len(c)):
        out = q[centre]
        start, entry, square = 0, 0, 0.0
        for l in range(len(widths)):  # noqa: E741
            width, n_m = widths[l], 2 * l + 1
            for m in range(n_m):
                for a in range(width):
                    rows[m * widest + a] = c[centre, start + m * width + a]
            for a in range(width):
                for b in range(a // 8 * 8, width, 8):
                    x = spread(0.0)
                    for m in range(n_m):
                        x = x + spread_from(rows, m * widest + a) * load(rows, m * widest + b)
                    store(sums, b, x)
                for b in range(a, width):
                    out[entry] = sums[b] * weight[entry]
                    square += out[entry] * out[entry]
                    entry += 1
            start += n_m * width
        norm[centre] = math.sqrt(square)
        if square > 0:
            for k in range(entry):
                out[k] /= norm[centre]


@compiled
def spectrum_pullback(c, widths, weight, q, norm, gradient, out):  # type: ignore[no-untyped-def]
    """dE/dc into out [centre, l m channel] from dE/dq [centre, D]."""
    widest = (widths.max() + 7) // 8 * 8
    matrix, sums = workspace(widest * widest, c), workspace(widest, c)  # M of one degree [a, b], [channel b]
    for centre in range(len(c)):
        along, row = 0.0, c[centre]
        for k in range(len(weight)):
            along += q[centre, k] * gradient[centre, k]
        start, entry = 0, 0
        for l in range(len(widths)):  # noqa: E741
            width = widths[l]
            for a in range(width):
                for b in range(a, width):
                    x = (gradient[centre, entry] - q[centre, entry] * along) * weight[entry] / norm[centre]
                    matrix[a * widest + b] = matrix[b * widest + a] = x if b > a else 2 * x
                    entry += 1
            for _ in range(2 * l + 1):
                for b in range(0, width, 8):
                    y = spread(0.0)
                    for a in range(width):
                        y = y + spread_from(row, start + a) * load(matrix, a * widest + b)
                    store(sums, b, y)
                for b in range(width):
                    out[centre, start + b] = sums[b]
                start += width
