"""Work that is independent, on all threads of torch at once.

Descriptors and rows are hundreds of small tensor operations, which two threads inside each operation hardly speed up. So
each thread takes an item of its own and computes it with operations of one thread. Results come in the order of the items,
and are the same bits whatever the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device | str = "cpu"
) -> Iterator[Result]:
    """function(item) of each item, in order, with as many threads as torch has; on a GPU one after the other.

    No more than one result for each thread, and one more, is waiting to be taken, so memory is bounded. An error of the
    function is raised in its turn. torch.set_num_threads holds for the thread that calls it and for those that start later:
    the caller's number stays, other threads that start before the last result is taken have one.
    """
    n = torch.get_num_threads()
    if n == 1 or torch.device(device).type != "cpu":
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(n, "mfgp", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > n:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(n)  # once no thread is left that could still say 1
