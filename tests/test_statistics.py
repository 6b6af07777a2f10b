"""Sufficient statistics: any order, any split, additions and removals give the same sums."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose

from mfgp.gp import statistics
from mfgp.gp.statistics import Statistics, merge

SIZE = 6
Rows = list[tuple[int, dict[str, tuple[torch.Tensor, torch.Tensor]]]]


def structures(n: int = 9) -> Rows:
    generator = torch.Generator().manual_seed(3)

    def rows(k: int) -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.randn(k, SIZE, dtype=torch.float64, generator=generator)
        return a, torch.randn(k, dtype=torch.float64, generator=generator)

    return [(i % 2, {"energy": rows(1), "forces": rows(6)}) for i in range(n)]


def collected(data: Rows) -> Statistics:
    out = Statistics(SIZE)
    for level, rows in data:
        out.add(level, rows)
    return out


def assert_same(one: Statistics, two: Statistics) -> None:
    assert one.observed() == two.observed()
    for key in one.observed():
        a, b = one.moments[key], two.moments[key]
        assert a.count == b.count
        assert_allclose(a.gram.numpy(), b.gram.numpy(), rtol=0, atol=1e-12)
        assert_allclose(a.projection.numpy(), b.projection.numpy(), rtol=0, atol=1e-12)
        assert_allclose(a.square, b.square, rtol=0, atol=1e-12)


@pytest.mark.parametrize("widths", [[6], [1, 5], [2, 3, 1], [1] * 6])
@pytest.mark.parametrize("at_a_time", [2, 128])
def test_columns_in_any_blocks(widths: list[int], at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """G is that of a plain product, symmetric, however its columns are given and taken."""
    monkeypatch.setattr(statistics, "GRAM_ROWS", at_a_time)
    rows = [given["forces"] for _, given in structures()]
    a, y = torch.cat([a for a, _ in rows]), torch.cat([y for _, y in rows])
    found = Statistics(SIZE)
    for part, targets in zip(a.split(7), y.split(7), strict=True):
        found.add_blocks((0, "forces"), list(part.split(widths, dim=1)), targets)
    moments = found.moments[0, "forces"]
    assert_allclose(moments.gram, a.T @ a, rtol=0, atol=1e-12)
    assert_allclose(moments.projection, a.T @ y, rtol=0, atol=1e-12)
    assert moments.count == len(y)
    assert torch.equal(moments.gram, moments.gram.T)


def test_merged_in_any_order_on_any_number_of_workers() -> None:
    data = structures()
    whole = collected(data)
    assert float(whole.moments[0, "forces"].gram.abs().max()) > 1
    assert_same(whole, collected(data[::-1]))
    assert_same(whole, merge([collected(data[4:]), collected(data[:1]), collected(data[1:4])]))


def test_removal_undoes_addition() -> None:
    data = structures()
    whole = collected(data)
    assert_same(collected(data[:-2]), merge([whole, collected(data[-2:])], [1, -1]))
    level, rows = data[-1]
    whole.add(level, rows, sign=-1)
    assert_same(collected(data[:-1]), whole)


def test_merge_leaves_its_parts_alone() -> None:
    data = structures()
    parts = [collected(data[:4]), collected(data[4:])]
    merge(parts)
    assert_same(parts[0], collected(data[:4]))


def test_subset_is_the_smaller_model() -> None:
    data = structures()
    index = torch.tensor([0, 3, 5])
    small = Statistics(3)
    for level, rows in data:
        small.add(level, {kind: (a[:, index], y) for kind, (a, y) in rows.items()})
    assert_same(small, collected(data).subset(index))


def test_statistics_of_different_models_do_not_mix() -> None:
    with pytest.raises(ValueError, match="different models"):
        merge([Statistics(3), Statistics(4)])
