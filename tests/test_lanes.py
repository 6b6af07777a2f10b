"""The vector type of compiled code: each operation on eight numbers against numpy, at any offset, in both precisions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from descriptors.lanes import LANES, add, compiled, load, multiply, multiply_add, store, total, without_first, zeros


@compiled
def every_operation(out: np.ndarray, a: np.ndarray, b: np.ndarray, at: int, scale: float) -> None:
    """Results of LANES numbers each, one operation after the other."""
    x, y = load(a, at), load(b, at + 1)
    store(out, 0, add(x, y))
    store(out, LANES, multiply(x, y))
    store(out, 2 * LANES, multiply(scale, x))
    store(out, 3 * LANES, multiply_add(x, y, y))
    store(out, 4 * LANES, multiply_add(x, scale, y))
    store(out, 5 * LANES, without_first(x))
    store(out, 6 * LANES, zeros(out))
    out[7 * LANES] = total(x)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("at", [0, 3])
def test_every_operation(at: int, dtype: type) -> None:
    """Small whole numbers: sums and products are exact, in any order."""
    rng = np.random.default_rng(at)
    a, b = (rng.integers(-9, 10, size=3 * LANES).astype(dtype) for _ in range(2))
    out = np.full(8 * LANES, 77, dtype=dtype)
    scale = dtype(3)
    every_operation(out, a, b, at, scale)
    x, y = a[at : at + LANES], b[at + 1 : at + 1 + LANES]
    rest = np.concatenate([[0], x[1:]])
    expected = [x + y, x * y, scale * x, x + y * y, x + scale * y, rest, 0 * x, [x.sum(), *[77] * (LANES - 1)]]
    assert_array_equal(out, np.concatenate(expected))
    assert len(set(x.tolist())) > 2
