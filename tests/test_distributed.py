"""Statistics on several workers: those of one process, whatever happens to the workers."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase.io
import pytest
import torch
import yaml
from distributed import Client, KilledWorker, LocalCluster, get_worker
from numpy.testing import assert_allclose
from pretended_device import known_here
from typer.testing import CliRunner

from mfgp import ConfigError, FitConfig, FrameSet, MultiFidelityGP, distributed
from mfgp.cli import app
from mfgp.distributed import DistributedPass, _part, chunks, client_of, device_index
from mfgp.errors import WorkersError
from mfgp.fit import fitting
from mfgp.frames import to_atoms
from mfgp.gp.statistics import Statistics


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as found,
    ):
        yield found


def one_process(model: MultiFidelityGP, frames: FrameSet) -> Statistics:
    return fitting.accumulate(frames, model.features, model.columns, [], 0.005)


def agree(found: Statistics, expected: Statistics) -> None:
    assert found.observed() == expected.observed()
    for key, m in expected.moments.items():
        scale = float(m.gram.abs().max())
        assert scale > 0
        assert float((found.moments[key].gram - m.gram).abs().max()) < 1e-12 * scale
        # rows are whitened in blocks, and parts have other blocks: rounding times the condition number of L
        assert_allclose(
            found.moments[key].projection, m.projection, rtol=0, atol=1e-10 * float(m.projection.abs().max())
        )
        assert_allclose(found.moments[key].square, m.square, rtol=1e-12)
        assert found.moments[key].count == m.count


def test_workers_give_the_statistics_of_one_process(
    client: Client, model: MultiFidelityGP, two_levels: FrameSet
) -> None:
    found = DistributedPass(client)(two_levels.training(), model.features, model.columns, [], 0.005)
    agree(found, one_process(model, two_levels.training()))


def test_the_same_data_give_the_same_bits(client: Client, model: MultiFidelityGP, two_levels: FrameSet) -> None:
    a, b = (DistributedPass(client)(two_levels, model.features, model.columns, [], 0.005) for _ in range(2))
    assert all(torch.equal(a.moments[key].gram, b.moments[key].gram) for key in a.moments)


def test_a_lost_worker_costs_only_time(
    client: Client, model: MultiFidelityGP, two_levels: FrameSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed as soon as the first part is done."""
    killed: list[int] = []

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        if not killed:
            pid = next(iter(client.run(os.getpid).values()))
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    monkeypatch.setattr(distributed, "TASKS_PER_WORKER", 4)
    found = DistributedPass(client)(two_levels, model.features, model.columns, [], 0.005, report)
    assert killed
    agree(found, one_process(model, two_levels))


def test_chunks_hold_every_frame_once(two_levels: FrameSet) -> None:
    for n in (1, 3, 100):
        parts = chunks(two_levels, n)
        assert [f for p in parts for f in p] == list(two_levels)
        assert all(len(p) for p in parts)


def test_no_scheduler() -> None:
    with pytest.raises(ConfigError, match="no dask scheduler answers"), client_of(scheduler="tcp://127.0.0.1:1"):
        pass


def test_workers_that_end_again_and_again_are_one_line(
    model: MultiFidelityGP, two_levels: FrameSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        raise KilledWorker("part-1", None, 3)  # what dask raises after three workers

    future = SimpleNamespace(result=killed)
    ended = SimpleNamespace(submit=lambda *task, **options: future, scheduler_info=lambda: {"workers": {}})
    monkeypatch.setattr("distributed.as_completed", lambda futures: iter(()))
    with pytest.raises(WorkersError, match="ended again and again"):
        DistributedPass(ended)(two_levels, model.features, model.columns, [], 0.005)  # type: ignore[arg-type]


def test_workers_that_do_not_start_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**options: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("distributed.LocalCluster", fails)
    message = r"2 worker processes could not be started \(Nanny failed to start\.\)"
    with pytest.raises(WorkersError, match=message), client_of(workers=2):
        pass


def test_a_fit_on_workers_is_that_of_one_process(
    client: Client, model: MultiFidelityGP, two_levels: FrameSet, config: FitConfig
) -> None:
    """The same predictions, learned hyperparameters included; the optimiser magnifies the rounding of the sums."""
    found = MultiFidelityGP.fit(
        two_levels, config, features=model.features, data_pass=DistributedPass(client), progress=False
    )
    for frame in list(two_levels)[:3]:
        ours, theirs = found.predict(frame.atoms), model.predict(frame.atoms)
        assert abs(ours.energy - theirs.energy) < 1e-3 * theirs.energy_std
        assert abs(ours.energy_std - theirs.energy_std) < 1e-3 * theirs.energy_std
        assert_allclose(ours.forces, theirs.forces, rtol=0, atol=1e-5)  # eV/Å


def test_each_worker_takes_a_gpu_of_its_own() -> None:
    assert [device_index(name, 4) for name in range(6)] == [0, 1, 2, 3, 0, 1]
    assert device_index("tcp://10.0.0.1:4000", 1) == 0
    with pytest.raises(ConfigError, match="one worker for each GPU"):
        device_index(0, 0)


used: set[object] = set()  # names of workers


def part_where_the_device_is_known(*arguments: Any) -> Statistics:
    used.add(get_worker().name)
    with nullcontext() if torch.cuda.is_initialized() else known_here():
        return _part(*arguments)


@pytest.mark.gpu
def test_workers_with_a_gpu(
    cuda: torch.device, model: MultiFidelityGP, two_levels: FrameSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are threads here: a pretended device is of one process, and each thread has to be told of it."""
    used.clear()
    frames = two_levels.training()
    features, columns = model.features.to(cuda), model.columns.to(cuda)
    monkeypatch.setattr(distributed, "_part", part_where_the_device_is_known)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        found = DistributedPass(client)(frames, features, columns, [], 0.005)
    assert used == {0, 1}
    assert all(m.gram.device.type == "cuda" for m in found.moments.values())
    expected = one_process(model, frames)
    for key, m in found.to("cpu").moments.items():
        assert_allclose(m.gram, expected.moments[key].gram, rtol=0, atol=1e-9 * float(m.gram.abs().max()))


def test_predictions_from_the_statistics_of_workers(
    client: Client, model: MultiFidelityGP, two_levels: FrameSet
) -> None:
    """At given hyperparameters: energies to 1e-10 of their scale, forces to 1e-9 eV/Å (1.6e-10 found: rounding times
    the condition number of the precision)."""
    frames = two_levels.training()
    ours, theirs = copy.copy(model), copy.copy(model)
    ours.statistics = DistributedPass(client)(frames, model.features, model.columns, [], 0.005)
    theirs.statistics = one_process(model, frames)
    ours.refresh()
    theirs.refresh()
    scale = max(abs(f.energy) for f in frames)  # eV
    for frame in list(frames)[:5]:
        found, expected = ours.predict(frame.atoms), theirs.predict(frame.atoms)
        assert abs(found.energy - expected.energy) < 1e-10 * scale
        assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-9)


def test_the_command_takes_a_scheduler(client: Client, two_levels: FrameSet, config: FitConfig, tmp_path: Path) -> None:
    for level in two_levels.levels:
        ase.io.write(tmp_path / f"{level}.extxyz", [to_atoms(f) for f in two_levels.of(level)])
    settings = config.model_dump(mode="json", include={"descriptor", "model", "training"})
    settings["fidelities"] = [{"name": level, "train": f"{level}.extxyz"} for level in two_levels.levels]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["fit", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "m.mfgp")]
    result = CliRunner().invoke(app, [*arguments, "--scheduler", client.scheduler.address])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.mfgp").exists()
