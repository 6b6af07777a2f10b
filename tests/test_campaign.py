"""Campaigns with EMT: to the stop, through failures, and on again after being killed."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.io import read, write
from campaign_systems import lines, traced
from conftest import alloy, label
from distributed import Client, LocalCluster

import mfgp.campaign.loop as campaign_module
from mfgp import ConfigError, DataError, MultiFidelityGP
from mfgp.campaign import Campaign
from mfgp.campaign.store import Store
from mfgp.frames import to_atoms

ROOT = Path(__file__).parent.parent
N_POOL = 5


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker, in a thread of this process: starting processes is what costs time."""
    thread = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0")
    with thread as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def in_process(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def workers(config: Any) -> Iterator[Client]:
        yield client

    monkeypatch.setattr(campaign_module, "workers", workers)


@pytest.fixture
def folder(tmp_path: Path, model: MultiFidelityGP) -> Path:
    """model.mfgp, pool.extxyz and campaign.yaml: level low by EMT with a trace, target high."""
    model.save(tmp_path / "model.mfgp")
    write(tmp_path / "pool.extxyz", [alloy(200 + i, rattle=0.2) for i in range(N_POOL)])
    settings = {"trace": str(tmp_path / "trace")}
    config(tmp_path, levels={"low": {"settings": settings, "hours": 0.01}})
    return tmp_path


def config(folder: Path, **changes: Any) -> None:
    path = folder / "campaign.yaml"
    values = yaml.safe_load(path.read_text()) if path.exists() else {
        "target": "high",
        "model": "model.mfgp",
        "pool": "pool.extxyz",
        "stop": {"steps": 2},
        "batch": {"n": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump({**values, **changes}))


def start(folder: Path) -> Path:
    Campaign.init(folder / "campaign.yaml", folder / "run", {"low": traced}, progress=False)
    return folder / "run"


def run(folder: Path, **kwargs: Any) -> str:
    with Campaign.open(folder / "run", {"low": traced}) as campaign:
        return campaign.run(progress=False, **kwargs)


def states(folder: Path) -> Counter[str]:
    store = Store(folder / "run" / "campaign.sqlite")
    found = Counter(task.state for task in store.tasks())
    store.close()
    return found


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    store = Store(folder / "run" / "campaign.sqlite")
    found = store.db.execute(query).fetchall()
    store.close()
    return found


@pytest.mark.usefixtures("in_process")
def test_a_campaign_runs_to_its_stop(folder: Path) -> None:
    start(folder)
    assert run(folder) == "2 steps done, as asked for"
    assert states(folder) == {"done": 4}
    assert Counter(line.split()[0] for line in lines(folder / "trace")) == {"begin": 4, "end": 4}
    models = rows(folder, "SELECT version, kind, target_std, n_labels FROM models ORDER BY version")
    assert [m[:2] for m in models] == [(0, "initial"), (1, "update"), (2, "update")]
    stds = [m[2] for m in models]
    assert stds[0] > stds[1] > stds[2] > 0
    assert [m[3] for m in models] == [0, 2, 4]
    latest = MultiFidelityGP.load(folder / "run" / "models" / "model_0002.mfgp")
    assert len(latest.seen) == len(MultiFidelityGP.load(folder / "model.mfgp").seen) + 4
    before = [json.loads(text) for (text,) in rows(folder, "SELECT before FROM labels ORDER BY id")]
    assert [b["model"] for b in before] == [0, 0, 1, 1]
    assert all(b["force_mae"] > 0 and b["force_std"] > 0 for b in before)
    decided = rows(folder, "SELECT step, rank, std_before, std_after, hours, why FROM decisions ORDER BY step, rank")
    assert [d[:2] for d in decided] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(d[2] > d[3] > 0 and d[4] > 0 and "high std" in d[5] for d in decided)
    assert run(folder) == "2 steps done, as asked for"  # nothing more happens
    assert len(lines(folder / "trace")) == 8
    assert not any((folder / "run" / "calculations").iterdir())


def test_the_workers_of_a_scheduler_do_the_calculations(folder: Path) -> None:
    """Given by its address, as on a cluster: the calculations are theirs, what is learned is the campaign's."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        config(folder, workers={"scheduler": cluster.scheduler_address}, stop={"steps": 1})
        start(folder)
        assert run(folder) == "1 step done, as asked for"
        assert cluster.workers  # they belong to somebody else, and go on
    assert states(folder) == {"done": 2}
    assert len(lines(folder / "trace")) == 4
    config(folder / "run", stop={"steps": 2})
    with pytest.raises(ConfigError, match="does not answer"):
        run(folder)


@pytest.mark.usefixtures("in_process")
def test_it_stops_at_the_target_std_at_the_budget_and_when_nothing_is_left(folder: Path) -> None:
    run_folder = start(folder)
    with Campaign.open(run_folder, {"low": traced}) as campaign:
        std = campaign.propose().std
    config(run_folder, stop={"std": 2 * std})
    assert run(folder).startswith("target reached")
    config(run_folder, stop={"hours": 1e-3})  # one calculation is taken for 0.01 h
    assert run(folder).startswith("nothing left to choose that fits the budget: the cheapest calculation takes 0.01 h")
    config(run_folder, stop={"hours": 0.025})
    assert run(folder, max_steps=1) == "1 step done"
    assert states(folder) == {"done": 2}
    config(run_folder, stop={"hours": 100})
    assert run(folder) == "nothing left to choose in the pool: all is calculated or known at low, or failed"
    assert states(folder) == {"done": N_POOL}


@pytest.mark.usefixtures("in_process")
def test_what_fails_is_recorded_and_blocks_nothing(folder: Path) -> None:
    trace, why = str(folder / "trace"), "CalculationFailed: SCF did not converge"
    level: dict[str, Any] = {"settings": {"trace": trace}, "hours": 0.01}
    config(folder, stop={"steps": 2}, batch={"n": 1}, levels={"low": level})
    run_folder = start(folder)
    run(folder, max_steps=1)  # one that succeeds: else the first three failures would end the run
    level["settings"]["mode"] = "raise"
    config(run_folder, batch={"n": N_POOL}, levels={"low": level})
    run(folder)
    bad = states(folder)["failed"]
    assert 0 < bad < N_POOL
    assert states(folder)["done"] == N_POOL - bad
    assert all(why in text for (text,) in rows(folder, "SELECT why FROM tasks WHERE state = 'failed'"))
    assert rows(folder, "SELECT count(*) FROM labels") == [(N_POOL - bad,)]


@pytest.mark.usefixtures("in_process")
def test_a_second_attempt_has_other_settings(folder: Path) -> None:
    trace = str(folder / "trace")
    level: dict[str, Any] = {
        "settings": {"trace": trace, "mode": "raise"},
        "retry": {"settings": {"mode": "fine"}},
        "hours": 0.01,
    }
    config(folder, stop={"steps": 2}, batch={"n": N_POOL - 1}, levels={"low": level})
    run_folder = start(folder)
    run(folder, max_steps=1)
    assert states(folder) == {"done": N_POOL - 1}
    attempts = rows(folder, "SELECT attempt, outcome, settings FROM attempts")
    bad = [a for a in attempts if a[1] == "failed"]
    assert 0 < len(bad) < N_POOL
    assert all(a[0] == 1 and '"raise"' in a[2] for a in bad)
    assert sum(a[0] == 2 and a[1] == "done" and '"fine"' in a[2] for a in attempts) == len(bad)
    level["settings"]["mode"] = level["retry"]["settings"]["mode"] = "raise all"
    config(run_folder, levels={"low": level})
    run(folder)
    assert states(folder) == {"done": N_POOL - 1, "failed": 1}  # a second failure is the last
    assert rows(folder, "SELECT model_after FROM steps WHERE closed IS NOT NULL") == [(1,), (None,)]


@pytest.mark.usefixtures("in_process")
def test_another_spin_state_is_kept_apart(folder: Path) -> None:
    trace = str(folder / "trace")
    spin = {"moments": {"Cu": 4}, "tolerance": 0.5}
    levels = {"low": {"settings": {"trace": trace, "mode": "spin_low all"}, "spin": spin, "hours": 0.01}}
    config(folder, stop={"steps": 1}, batch={"n": N_POOL}, levels=levels)
    start(folder)
    run(folder)
    assert states(folder) == {"rejected": N_POOL}
    kept = rows(folder, "SELECT accepted, learned_in, why FROM labels")
    assert len(kept) == N_POOL
    assert all(k[:2] == (0, None) and "another spin state: Cu" in k[2] and "-0.10" in k[2] for k in kept)
    assert rows(folder, "SELECT count(*) FROM models") == [(1,)]


@pytest.mark.usefixtures("in_process")
def test_moments_that_are_never_given_end_the_run_at_the_first_calculation(folder: Path) -> None:
    level: dict[str, Any] = {"settings": {"trace": str(folder / "trace"), "mode": "spin_zero all"}, "hours": 0.01}
    level["spin"] = {"moments": {"Cu": 4}}
    config(folder, stop={"steps": 1}, batch={"n": N_POOL}, levels={"low": level})
    run_folder = start(folder)
    with pytest.raises(ConfigError, match=r"levels\.low: the calculator gives no magnetic moments.*lorbit: 11"):
        run(folder)
    assert len(lines(folder / "trace")) == 2
    assert states(folder)["rejected"] == 1
    assert rows(folder, "SELECT accepted, label LIKE '%magmoms%' FROM labels") == [(0, 0)]
    level["settings"]["mode"] = "spin all"
    config(run_folder, levels={"low": level})
    run(folder)
    assert states(folder) == {"rejected": 1, "done": N_POOL - 1}


@pytest.mark.usefixtures("in_process")
def test_labels_from_outside_are_learned_once(folder: Path) -> None:
    config(folder, stop={"steps": 1})
    run_folder = start(folder)
    pool = [alloy(200 + i, rattle=0.2) for i in range(2)]
    outside = [label(a, "high") for a in pool] + [label(alloy(300), "low")]
    held_out = label(alloy(301), "high")
    held_out.info["split"] = "test"
    write(folder / "labels.extxyz", [*outside, held_out])
    with Campaign.open(run_folder, {"low": traced}) as campaign:
        for n in (3, 0):
            with pytest.warns(UserWarning, match="1 of 4 frames are held out"):
                assert campaign.add(folder / "labels.extxyz") == n
        with pytest.raises(DataError, match="unknown fidelity 'best'"):
            campaign.add([label_as(alloy(302), "best")])
    run(folder)
    versions = rows(folder, "SELECT origin, learned_in, count(*) FROM labels GROUP BY origin, learned_in")
    assert sorted(versions) == [("added", 1, 3), ("computed", 2, 2)]
    learned = MultiFidelityGP.load(run_folder / "models" / "model_0001.mfgp")
    reference = MultiFidelityGP.load(folder / "model.mfgp").update(read(folder / "labels.extxyz", ":3"))
    assert learned.seen == reference.seen
    np.testing.assert_allclose(learned.weights, reference.weights, rtol=0, atol=1e-9)


def label_as(atoms: Any, level: str) -> Any:
    out = label(atoms, "low")
    out.info["fidelity"] = level
    return out


def with_a_fit(folder: Path, frames: Any, config: Any, **changes: Any) -> None:
    """campaign.yaml with a fit and its data in place of a model."""
    for level in frames.levels:
        write(folder / f"{level}.extxyz", [to_atoms(f) for f in frames.training().of(level)])
    fit = config.model_dump(mode="json", include={"descriptor", "model", "training"})
    fit["fidelities"] = [{"name": level, "train": f"{level}.extxyz"} for level in frames.levels]
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit))
    values = yaml.safe_load((folder / "campaign.yaml").read_text())
    del values["model"]
    (folder / "campaign.yaml").write_text(yaml.safe_dump({**values, "fit": "fit.yaml", **changes}))


def test_only_one_process_works_on_a_campaign(folder: Path) -> None:
    start(folder)
    with Campaign.open(folder / "run", {"low": traced}), pytest.raises(DataError, match="works on this campaign"):
        run(folder)
    with pytest.raises(DataError, match="holds a campaign already"):
        start(folder)


def test_mistakes_are_told(folder: Path) -> None:
    def refused(**changes: Any) -> str:
        text = (folder / "campaign.yaml").read_text()
        config(folder, **changes)
        with pytest.raises((ConfigError, DataError)) as caught:
            start(folder)
        (folder / "campaign.yaml").write_text(text)
        return str(caught.value)

    assert "target: 'best' is no level of the model; it has low, high" in refused(target="best")
    assert "give either model" in refused(fit="fit.yaml")
    assert "no file 'none.xyz'" in refused(pool="none.xyz")
    assert "stop" in refused(stop={})
    assert "did you mean stop.hours" in refused(stop={"hour": 1})
    assert "no calculator named 'os.system'" in refused(levels={"low": {"calculator": "os.system"}})
    assert "needs a package that is not installed" in refused(levels={"low": {"calculator": "hotbit", "hours": 1}})
    assert "levels.low.hours" in refused(levels={"low": {"calculator": "emt"}})
    assert "no chemical element Fee" in refused(levels={"low": {"spin": {"moments": {"Fee": 4}}}})
    write(folder / "other.extxyz", alloy(1, rattle=0.0)[[0]])
    assert "refit_every needs fit" in refused(refit_every=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(folder)
    config(folder / "run", target="low")
    with pytest.raises(ConfigError, match="target cannot change"):
        run(folder)
    (folder / "run" / "campaign.sqlite").write_text("not a database, " * 100)
    with pytest.raises(DataError, match="is not a campaign's database"), Store(folder / "run" / "campaign.sqlite"):
        pass


def test_the_documented_configuration_is_complete(tmp_path: Path) -> None:
    from mfgp.campaign import config as c

    text = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "campaign.md").read_text(), flags=re.DOTALL).group(1)  # type: ignore[union-attr]
    for name in ("fit.yaml", "pool.extxyz", "production.extxyz"):
        (tmp_path / name).touch()
    (tmp_path / "campaign.yaml").write_text(text)
    found = c.load_campaign_config(tmp_path / "campaign.yaml")
    assert found.levels["mag"].spin.moments == {"Fe": (4.0,), "Mn": (4.0, 5.0)}  # type: ignore[union-attr]
    for section in (c.CampaignConfig, c.LevelConfig, c.StopConfig, c.BatchConfig, c.WorkersConfig, c.SpinConfig):
        missing = [name for name in section.model_fields if not re.search(rf"\b{name}\b", text)]
        assert not missing, section
    again = tmp_path / "again.yaml"
    again.write_text(found.to_yaml())
    assert c.load_campaign_config(again) == found
