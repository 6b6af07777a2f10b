"""A campaign that is killed (kill -9) anywhere goes on with nothing lost and nothing done twice; workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from ase.io import write
from campaign_killed import POINTS
from campaign_systems import lines, traced
from conftest import alloy
from test_campaign import config, rows, run, states

from mfgp import MultiFidelityGP
from mfgp.campaign import Campaign
from mfgp.campaign.calculation_process import _Child

TESTS = Path(__file__).parent
N = 2


def campaign(tmp_path: Path, model: MultiFidelityGP, n: int = N, seconds: float = 0.0, **level: object) -> Path:
    model.save(tmp_path / "model.mfgp")
    write(tmp_path / "pool.extxyz", [alloy(200 + i, rattle=0.2) for i in range(n)])
    settings = {"trace": str(tmp_path / "trace"), "seconds": seconds, **level.pop("settings", {})}  # type: ignore[dict-item]
    levels = {"low": {"settings": settings, "hours": 0.01, **level}}
    config(tmp_path, levels=levels, batch={"n": n}, stop={"steps": 1}, workers={"n": 2})
    Campaign.init(tmp_path / "campaign.yaml", tmp_path / "run", {"low": traced}, progress=False)
    return tmp_path


def process(folder: Path, point: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / "campaign_killed.py"), str(folder / "run"), point]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip


def finished(folder: Path, n: int = N) -> None:
    """Each calculation ended once, each label is there once and learned once, no temporary file is left."""
    ends = Counter(line for line in lines(folder / "trace") if line.startswith("end"))
    assert len(ends) == n
    assert set(ends.values()) == {1}
    assert states(folder) == {"done": n}
    assert rows(folder, "SELECT count(*), count(DISTINCT structure), min(learned_in), max(learned_in) FROM labels") == [
        (n, n, 1, 1)
    ]
    assert rows(folder, "SELECT version FROM models ORDER BY version") == [(0,), (1,)]
    assert rows(folder, "SELECT count(*) FROM steps WHERE closed IS NOT NULL AND model_after = 1") == [(1,)]
    assert sorted(p.name for p in (folder / "run" / "models").iterdir()) == ["model_0000.mfgp", "model_0001.mfgp"]
    learned = MultiFidelityGP.load(folder / "run" / "models" / "model_0001.mfgp")
    assert len(learned.seen) == len(MultiFidelityGP.load(folder / "model.mfgp").seen) + n


@pytest.mark.slow
def test_killed_at_every_point_in_turn(tmp_path: Path, model: MultiFidelityGP) -> None:
    folder = campaign(tmp_path, model)
    for point in POINTS:
        killed = process(folder, point)
        _, errors = killed.communicate(timeout=240)
        assert killed.returncode == -signal.SIGKILL, (point, errors)
    assert states(folder) == {"done": N}  # the calculations were over; the model was not
    last = process(folder, "nowhere")
    out, errors = last.communicate(timeout=240)
    assert out.strip() == "1 step done, as asked for", errors
    finished(folder)


@pytest.mark.slow
def test_killed_while_workers_calculate(tmp_path: Path, model: MultiFidelityGP) -> None:
    folder = campaign(tmp_path, model, n=4, seconds=1.0)
    killed = process(folder, "processes")
    deadline = time.monotonic() + 240
    while len(lines(folder / "trace")) < 4 and time.monotonic() < deadline:  # some are over, two are under way
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=240)
    assert states(folder)["running"] > 0  # they finish by themselves, and are taken in
    last = process(folder, "processes")
    out, errors = last.communicate(timeout=240)
    assert out.strip() == "1 step done, as asked for", errors
    finished(folder, 4)


@pytest.mark.slow
def test_a_calculation_that_dies_or_hangs_takes_nothing_with_it(tmp_path: Path, model: MultiFidelityGP) -> None:
    folder = campaign(tmp_path, model, n=6)
    config(folder / "run", batch={"n": 1})
    process(folder, "nowhere").communicate(timeout=240)  # one that succeeds: else the first failures would end the run
    settings = {"trace": str(tmp_path / "trace"), "mode": "die"}
    level = {"settings": settings, "retry": {"settings": {"mode": "hang"}}, "hours": 0.01, "max_hours": 10 / 3600}
    config(folder / "run", batch={"n": 5}, stop={"steps": 2}, levels={"low": level})
    done = process(folder, "processes")
    out, errors = done.communicate(timeout=240)
    assert out.strip() == "2 steps done, as asked for", errors
    found = states(folder)
    assert found["failed"] > 0
    assert found["done"] > 1
    assert found["done"] + found["failed"] == 6
    attempts = rows(folder, "SELECT attempt, outcome, why FROM attempts WHERE outcome != 'done' ORDER BY attempt")
    assert [a[:2] for a in attempts] == [(i, "failed") for i in (1, 2) for _ in range(found["failed"])]
    assert all(("died (exit code 9" if a[0] == 1 else "max_hours") in a[2] for a in attempts)


@pytest.mark.parametrize("ends", [False, True])
def test_an_orphan_has_the_time_that_its_level_allows(tmp_path: Path, model: MultiFidelityGP, ends: bool) -> None:
    """Counted from its start."""
    seconds = 0.5 if ends else 3600.0
    limit = 60 if ends else 4  # seconds; the start of a process can take some of them
    folder = campaign(tmp_path, model, n=1, seconds=seconds, max_hours=limit / 3600)
    with Campaign.open(folder / "run", {"low": traced}) as opened:
        opened.store.open_step(0, 1.0, opened.propose().planned)
        job = opened.tasks._start(opened.store.tasks()[0]).job
    orphan = _Child()
    orphan.send(job)
    deadline = time.monotonic() + 60
    while not lines(folder / "trace") and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    run(folder)
    assert time.monotonic() - began < 30
    found = rows(folder, "SELECT outcome, why, wall_seconds FROM attempts")
    if ends:
        assert states(folder) == {"done": 1}
    else:
        assert states(folder) == {"failed": 1}
        assert found[0][:2] == ("failed", "stopped after 0.00111 h (max_hours)")
        assert found[0][2] > 4.0
        assert orphan.process.wait(timeout=10) == -signal.SIGKILL
    orphan.close()


def test_interrupted_again_and_again_is_a_failure(tmp_path: Path, model: MultiFidelityGP) -> None:
    folder = campaign(tmp_path, model, n=1)
    for i in range(3):
        with Campaign.open(folder / "run", {"low": traced}) as opened:
            if i == 0:
                opened.store.open_step(0, 1.0, opened.propose().planned)
            assert states(folder) == {"planned": 1}
            opened.tasks._start(opened.store.tasks()[0])  # and the process is gone
    with Campaign.open(folder / "run", {"low": traced}):
        assert states(folder) == {"failed": 1}
    assert "3 times" in rows(folder, "SELECT why FROM tasks")[0][0]
