"""Run a campaign in a process of its own that kills itself (kill -9) at a named point; for test_campaign_killed.

python campaign_killed.py DIRECTORY POINT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from campaign_systems import traced
from distributed import Client, LocalCluster

import mfgp.campaign.loop
import mfgp.model_file
from mfgp.campaign import Campaign
from mfgp.campaign import tasks as campaign_tasks
from mfgp.campaign.store import Store

POINTS = (
    "the label's transaction",
    "before the label",
    "the model file",
    "before the model's row",
    "the model's transaction",
)


def die(*args: Any, **kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Make the process kill itself where `point` says."""
    if point == "the label's transaction":  # the task has moved, the label is not written
        Store.add_labels = die  # type: ignore[method-assign]
    elif point == "before the label":  # the calculation is over, nothing of it is in the database
        campaign_tasks.Tasks._record = die  # type: ignore[method-assign]
    elif point == "the model file":  # half of it is on disk
        whole = mfgp.model_file.save_file

        def half(tensors: Any, path: Path, metadata: Any) -> None:
            whole(tensors, path, metadata)
            os.truncate(path, path.stat().st_size // 2)
            die()

        mfgp.model_file.save_file = half
    elif point == "before the model's row":  # a whole file that no row names
        Store.record_model = die  # type: ignore[method-assign]
    elif point == "the model's transaction":  # labels marked, the step not closed
        Store._close_step = die  # type: ignore[method-assign]
    else:
        assert point == "nowhere", point


@contextmanager
def one_thread(config: Any) -> Iterator[Client]:
    thread = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0")
    with thread as cluster, Client(cluster) as client:
        yield client


if __name__ == "__main__":
    directory, point = sys.argv[1:]
    if point != "processes":
        arm(point)
        mfgp.campaign.loop.workers = one_thread
    with Campaign.open(directory, {"low": traced}) as campaign:
        print(campaign.run(progress=False))
