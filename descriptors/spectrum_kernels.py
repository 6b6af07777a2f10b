"""The normalised power spectrum and its reverse pass as compiled loops, a centre at a time (power_spectrum.py).

    p_ab = v_ab sum_m c_am c_bm (a <= b),   q = p / |p|
    M_ab = v_ab (g_ab - q_ab (q . g)) / |p|,  doubled on the diagonal;   dE/dc_am = sum_b M_ab c_bm,   g = dE/dq

A centre's coefficients lie one after the other: degree l, m, channel, with K_l channels for degree l.
"""

from __future__ import annotations

import math

import numpy as np

from descriptors.compiled import compiled


@compiled
def spectrum(c, widths, weight, q, norm):  # type: ignore[no-untyped-def]
    """q [centre, D] and |p| [centre] from c [centre, l m channel], K_l [l] and v [D]; |p| = 0 leaves q at 0."""
    for centre in range(len(c)):
        row, out = c[centre], q[centre]
        out[:] = 0
        start, entry = 0, 0
        for l in range(len(widths)):  # noqa: E741
            width = widths[l]
            for _ in range(2 * l + 1):
                here = row[start : start + width]
                there = entry
                for a in range(width):
                    own, target = here[a:], out[there : there + width - a]
                    for b in range(len(own)):
                        target[b] += here[a] * own[b]
                    there += width - a
                start += width
            entry += width * (width + 1) // 2
        square = 0.0
        for k in range(len(out)):
            out[k] *= weight[k]
            square += out[k] * out[k]
        norm[centre] = math.sqrt(square)
        if square > 0:
            for k in range(len(out)):
                out[k] /= norm[centre]


@compiled
def spectrum_pullback(c, widths, weight, q, norm, gradient, out):  # type: ignore[no-untyped-def]
    """dE/dc into out [centre, l m channel] from dE/dq [centre, D]."""
    n_features = len(weight)
    widest = widths.max()
    matrix = np.empty((widest, widest))  # M of one degree
    scaled = np.empty(n_features)
    for centre in range(len(c)):
        along = 0.0
        for k in range(n_features):
            along += q[centre, k] * gradient[centre, k]
        for k in range(n_features):
            scaled[k] = (gradient[centre, k] - q[centre, k] * along) * weight[k] / norm[centre]
        start, entry = 0, 0
        for l in range(len(widths)):  # noqa: E741
            width = widths[l]
            for a in range(width):
                matrix[a, a] = 2 * scaled[entry]
                for b in range(a + 1, width):
                    matrix[a, b] = matrix[b, a] = scaled[entry + b - a]
                entry += width - a
            for _ in range(2 * l + 1):
                here, target = c[centre, start : start + width], out[centre, start : start + width]
                target[:] = 0
                for a in range(width):
                    for b in range(width):
                        target[b] += here[a] * matrix[a, b]
                start += width
