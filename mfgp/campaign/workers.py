"""Calculations in parallel through dask.distributed: processes on this machine, or the workers of a scheduler.

No more calculations are under way than there are worker threads. Results are handed on as they come, one by one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from mfgp.campaign.calculation_process import run
from mfgp.campaign.config import WorkersConfig
from mfgp.campaign.labelling import Job, Outcome, left_behind
from mfgp.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client, Future

POLL = 1.0  # s, between looks at the number of workers


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

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told as a failed calculation
    if config.scheduler is not None:
        try:
            client = Client(config.scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise ConfigError(f"workers.scheduler: {config.scheduler} does not answer ({error}).") from None
        with client:
            yield client
        return
    threads = {name: str(config.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.nanny.pre-spawn-environ": threads,  # inherited by the processes of the calculations
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=config.n,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # a calculation may use what the machine has
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def run_all(client: Client, tickets: Iterable[Ticket], done: Callable[[Job, Outcome], Ticket | None]) -> None:
    """Run tickets and call `done` with each outcome as it comes; a ticket that it returns is run too.

    A calculation whose worker is gone but which goes on by itself is left alone: `done` is not called for it.
    """
    waiting: deque[Ticket] = deque()
    source = iter(tickets)
    flying: dict[Future, Ticket] = {}

    def following() -> Ticket | None:
        return waiting.popleft() if waiting else next(source, None)

    while True:
        while len(flying) < max(1, sum(client.nthreads().values())) and (ticket := following()) is not None:
            key = f"calculation-{ticket.job.task}-{uuid4()}"  # of this campaign: a scheduler may serve several
            flying[client.submit(run, ticket.job, ticket.limit, key=key, pure=False, retries=0)] = ticket
        if not flying:
            return
        for future in _finished(list(flying)):
            job = flying.pop(future).job
            outcome = _outcome(future, job)
            again = None if outcome is None else done(job, outcome)
            if again is not None:
                waiting.append(again)


def _finished(futures: list[Future]) -> list[Future]:
    from distributed import wait

    try:
        return list(wait(futures, timeout=POLL, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _outcome(future: Future, job: Job) -> Outcome | None:
    """The outcome of a finished future, or of its result file where its worker is gone; None while it goes on by itself."""
    try:
        return future.result()
    except Exception as error:  # a future raises what its task raised, or that its worker died
        found = left_behind(Path(job.directory))
        if found == "running":
            return None
        why = f"the worker could not run it ({type(error).__name__}: {str(error)[:300]})"
        return found if isinstance(found, Outcome) else Outcome("failed", why)
