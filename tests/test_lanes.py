"""The vector type of compiled code: each operation on eight numbers against numpy, at any offset, in both precisions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from descriptors.compiled import lean
from descriptors.lanes import WIDTH, load, spread, spread_from, store, total, without_first, zeros


@lean
def every_operation(out: np.ndarray, a: np.ndarray, b: np.ndarray, at: int, scale: float) -> None:
    """Results of WIDTH numbers each, one operation after the other."""
    x, y = load(a, at), load(b, at + 1)
    store(out, 0, x + y)
    store(out, WIDTH, x * y)
    store(out, 2 * WIDTH, scale * x)
    store(out, 3 * WIDTH, x + y * y)
    store(out, 4 * WIDTH, x + scale * y)
    store(out, 5 * WIDTH, without_first(x))
    store(out, 6 * WIDTH, zeros(out))
    store(out, 7 * WIDTH, spread(scale) - x)
    store(out, 8 * WIDTH, spread_from(a, at))
    out[9 * WIDTH] = total(x)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("at", [0, 3])
def test_every_operation(at: int, dtype: type) -> None:
    """Small whole numbers: sums and products are exact, in any order."""
    rng = np.random.default_rng(at)
    a, b = (rng.integers(-9, 10, size=3 * WIDTH).astype(dtype) for _ in range(2))
    out = np.full(10 * WIDTH, 77, dtype=dtype)
    scale = dtype(3)
    every_operation(out, a, b, at, scale)
    x, y = a[at : at + WIDTH], b[at + 1 : at + 1 + WIDTH]
    rest = np.concatenate([[0], x[1:]])
    expected = [x + y, x * y, scale * x, x + y * y, x + scale * y, rest, 0 * x, scale - x, 0 * x + x[0]]
    expected.append([x.sum(), *[77] * (WIDTH - 1)])
    assert_array_equal(out, np.concatenate(expected))
    assert len(set(x.tolist())) > 2
