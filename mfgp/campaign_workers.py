"""Calculations in parallel through dask.distributed: processes on this machine, or the workers of a scheduler.

No more calculations are under way than there are worker threads, so a worker that dies takes its own calculation with it and
no other. Results are handed on as they come, one by one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfgp.campaign_config import WorkersConfig
from mfgp.errors import ConfigError
from mfgp.labelling import Job, Outcome, calculate

if TYPE_CHECKING:
    from distributed import Client, Future

POLL = 1.0  # s, between looks at time limits
STARTED = "process"  # what dask calls a task that a worker has


@dataclass(frozen=True)
class Ticket:
    """A calculation to run; `limit` seconds of wall time, or None."""

    job: Job
    limit: float | None = None


@contextmanager
def workers(config: WorkersConfig) -> Iterator[Client]:
    """A dask client. Raises ConfigError for a scheduler that does not answer."""
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a dead worker is told as a failed calculation
    if config.scheduler is not None:
        try:
            client = Client(config.scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise ConfigError(f"workers.scheduler: {config.scheduler} does not answer ({error}).") from None
        with client:
            yield client
        return
    environment = {name: str(config.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.worker.memory.terminate": False,  # a calculation may use what the machine has
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
    }
    with dask.config.set(settings), LocalCluster(
        n_workers=config.n,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    ) as cluster, Client(cluster) as client:  # fmt: skip
        yield client


def run_all(client: Client, tickets: Iterable[Ticket], done: Callable[[Job, Outcome], Ticket | None]) -> None:
    """Run tickets and call `done` with each outcome as it comes; a ticket that it returns is run too."""
    waiting: deque[Ticket] = deque()
    source = iter(tickets)
    flying: dict[Future, tuple[Ticket, float]] = {}

    def following() -> Ticket | None:
        return waiting.popleft() if waiting else next(source, None)

    while True:
        while len(flying) < max(1, sum(client.nthreads().values())) and (ticket := following()) is not None:
            key = f"calculation-{ticket.job.task}-{ticket.job.attempt}"
            future = client.submit(calculate, ticket.job, key=key, pure=False, retries=0)
            flying[future] = (ticket, time.monotonic())
        if not flying:
            return
        for future in _finished(list(flying)):
            ticket, _ = flying.pop(future)
            again = done(ticket.job, _outcome(future))
            if again is not None:
                waiting.append(again)
        for future, (ticket, since) in list(flying.items()):
            if ticket.limit is not None and time.monotonic() - since > ticket.limit:
                del flying[future]
                _stop(client, future)
                why = f"stopped after {ticket.limit / 3600:g} h (max_hours)"
                again = done(ticket.job, Outcome("failed", why, wall_seconds=time.monotonic() - since))
                if again is not None:
                    waiting.append(again)


def _finished(futures: list[Future]) -> list[Future]:
    from distributed import wait

    try:
        return list(wait(futures, timeout=POLL, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _outcome(future: Future) -> Outcome:
    """The outcome of a finished future; a worker that died under it is a failed calculation."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return Outcome("failed", "the worker process died (out of memory, or a crash of the program in it)")
    except Exception as error:  # a future raises what its task raised: it could not even be sent, or read back
        return Outcome("failed", f"{type(error).__name__}: {str(error)[:400]}")


def _stop(client: Client, future: Future) -> None:
    """Take a calculation away from the worker that holds it, which only ending that process can do."""
    holders = client.processing()
    found = [address for address, keys in holders.items() if future.key in keys]
    future.cancel()
    if found:
        client.restart_workers(found, timeout=60, raise_for_error=False)
