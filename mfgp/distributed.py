"""The pass over the data on many workers: statistics mapped over frames, reduced by a tree.

Sufficient statistics are additive (statistics.py), so every worker sums those of its frames, and sums are merged where they
lie until one is left: what travels is O(M'^2) for each worker, whatever the number of structures. The result is that of one
process but for the order of the additions. A task whose worker is lost is computed again elsewhere by dask, from the frames
and the features that the scheduler holds.

Where the fit is on a GPU each worker takes one: start as many workers as there are GPUs. Sums travel through the CPU.

Workers and scheduler exchange Python objects by pickle, as dask does: use a scheduler of your own, in a network you trust.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mfgp.base.progress import Report, silent
from mfgp.baselines.columns import Baseline
from mfgp.errors import ConfigError, WorkersError
from mfgp.fit.accumulation import accumulate
from mfgp.fit.features import Features
from mfgp.frames import FrameSet
from mfgp.gp.observations import Columns
from mfgp.gp.statistics import Statistics, merge

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

TASKS_PER_WORKER = 8  # so that a slow or lost worker costs little
FANOUT = 4  # statistics merged at a time
NO_BASELINES = "a fit on several workers takes no baselines; leave out --workers and --scheduler, or the baselines."
ONE_OF_BOTH = "--workers starts processes here, --scheduler takes those of a running one; give one of them."


@contextmanager
def client_of(workers: int | None = None, scheduler: str | None = None) -> Iterator[Client]:
    """A dask client: of `workers` processes on this machine, one thread each, or of a running scheduler at an address.

    Raises ConfigError where no scheduler answers at that address, or both are given, WorkersError where processes do not
    start.
    """
    if workers is not None and scheduler is not None:
        raise ConfigError(ONE_OF_BOTH)
    from distributed import Client

    if scheduler is None:
        with _cluster(workers or 1) as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`."
        ) from None
    with client:
        yield client


def _cluster(workers: int) -> LocalCluster:
    from distributed import LocalCluster

    try:
        return LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0")
    except RuntimeError as error:  # "Nanny failed to start."
        raise WorkersError(
            f"{workers} worker processes could not be started ({error}); was one ended, or is memory short? Try again, with "
            "fewer of them."
        ) from None


class DistributedPass:
    """`accumulation.accumulate` on the workers of a client: the same arguments, the same result to rounding.

    WorkersError where workers end again and again over the same labels.
    """

    def __init__(self, client: Client) -> None:
        self.client = client

    def __call__(
        self,
        frames: FrameSet,
        features: Features,
        columns: Columns,
        baselines: list[Baseline],
        default_sigma: float,
        report: Report = silent,
    ) -> Statistics:
        if baselines:
            raise ConfigError(NO_BASELINES)
        from distributed import KilledWorker, as_completed

        client, size = self.client, features.basis.size + columns.size
        # a task, not scattered data: what a lost worker held is made again
        cpu = torch.device("cpu")
        shared = client.submit(_held, (features.to(cpu), columns.to(cpu)), pure=False)
        workers = max(1, len(client.scheduler_info()["workers"]))
        parts = chunks(frames, TASKS_PER_WORKER * workers)
        kind = features.device.type
        futures = [client.submit(_part, part, shared, default_sigma, size, kind, pure=False) for part in parts]
        root = _tree(client, futures)
        done = 0
        for future in as_completed(futures):
            done += len(parts[futures.index(future)])
            report("structures with labels", done, len(frames), f"{workers} workers")
        try:
            return root.result().to(features.device)
        except KilledWorker:
            raise WorkersError(
                "workers ended again and again while they summed up labels, likely for want of memory; use fewer of them, "
                "or lower model.n_inducing."
            ) from None


def chunks(frames: FrameSet, n: int) -> list[FrameSet]:
    """About n parts of the frames, in order; at least one, none empty but of an empty set."""
    size = max(1, -(-len(frames) // n))
    starts = range(0, max(1, len(frames)), size)
    return [FrameSet(frames.levels, frames.frames[i : i + size]) for i in starts]


def _held(shared: tuple[Features, Columns]) -> tuple[Features, Columns]:
    return shared


def _part(frames: FrameSet, shared: tuple[Features, Columns], default_sigma: float, size: int, kind: str) -> Statistics:
    """Statistics of some frames, on the CPU, computed on the worker's device of this kind."""
    if not len(frames):
        return Statistics(size)
    features, columns = shared
    if kind == "cuda":
        from distributed import get_worker

        device = torch.device("cuda", device_index(get_worker().name, torch.cuda.device_count()))
        features, columns = features.to(device), columns.to(device)
    return accumulate(frames, features, columns, [], default_sigma).to("cpu")


def device_index(name: object, n_devices: int) -> int:
    """The GPU of a worker: by its number, where workers are numbered as in a local cluster; else the first it sees.

    Workers that a job script starts see one GPU each (CUDA_VISIBLE_DEVICES, as dask-cuda sets it). Raises ConfigError where
    there is none.
    """
    if n_devices < 1:
        raise ConfigError("device: cuda, but a worker finds no CUDA device; start one worker for each GPU.")
    return int(name) % n_devices if isinstance(name, int) else 0


def _merged(*parts: Statistics) -> Statistics:
    return merge(parts)


def _tree(client: Client, futures: Sequence[Any]) -> Any:
    """One future for the sum: FANOUT at a time, in a fixed order, so that the same data give the same sum."""
    while len(futures) > 1:
        groups = [futures[i : i + FANOUT] for i in range(0, len(futures), FANOUT)]
        futures = [client.submit(_merged, *g, pure=False) if len(g) > 1 else g[0] for g in groups]
    return futures[0]
