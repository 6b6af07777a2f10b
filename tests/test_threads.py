"""Results of threads come in order, errors in their turn, and the caller's number of threads stays what it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from mfgp.base.threads import ordered_map


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items(n_threads: int) -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0.0)
        return i * i

    assert list(ordered_map(slow_first, range(20))) == [i * i for i in range(20)]


def test_operations_inside_use_one_thread_and_those_outside_all(n_threads: int) -> None:
    inside = set(ordered_map(lambda _: torch.get_num_threads(), range(10)))
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert inside == {1}
    assert torch.get_num_threads() == n_threads
    assert seen == [n_threads]


def test_several_threads_work_at_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=10.0)  # passes when two threads are there
    try:
        assert len(list(ordered_map(lambda _: meeting.wait(), range(4)))) == 4
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_in_its_turn(n_threads: int) -> None:
    def bad(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    results = ordered_map(bad, range(50))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert torch.get_num_threads() == n_threads


def test_no_more_is_computed_than_is_asked_for(n_threads: int) -> None:
    begun: list[int] = []
    results = ordered_map(lambda i: begun.append(i), range(1000))
    next(results)
    results.close()
    assert len(begun) <= n_threads + 2
