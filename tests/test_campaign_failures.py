"""Campaigns where something outside is wrong: calculators, disks, files that were changed."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ase.io import write
from campaign_systems import lines, traced
from conftest import alloy
from distributed import Client
from test_campaign import client, config, folder, in_process, rows, run, start, states, with_a_fit  # noqa: F401

from mfgp import ConfigError, DataError
from mfgp.campaign import Campaign
from mfgp.campaign.database import connect, connect_to_read
from mfgp.campaign.labelling import Outcome
from mfgp.campaign.status import exported, read_status, status_lines
from mfgp.campaign.store import Store


def level(folder: Path, mode: str) -> dict[str, Any]:  # noqa: F811
    return {"low": {"settings": {"trace": str(folder / "trace"), "mode": mode}, "hours": 0.01}}


@pytest.mark.usefixtures("in_process")
def test_a_level_that_never_worked_ends_the_run_and_is_tried_again(folder: Path) -> None:  # noqa: F811
    config(folder, stop={"steps": 3}, batch={"n": 4}, levels=level(folder, "raise all"))
    run_folder = start(folder)
    with pytest.raises(
        ConfigError, match=r"levels\.low: 3 calculations failed.* SCF did not converge .* campaign retry -d "
    ):
        run(folder)
    assert len(lines(folder / "trace")) == 3  # it is said at once, not when the pool is used up
    assert states(folder)["failed"] == 3
    told = "\n".join(status_lines(read_status(run_folder)))
    assert "stopped: levels.low: 3 calculations failed, and none has gone through yet" in told
    assert "3 calculations failed; once the cause is mended, `mfgp campaign retry" in told
    config(run_folder, levels=level(folder, ""))
    with Campaign.open(run_folder, {"low": traced}) as campaign:
        with pytest.raises(ConfigError, match="it has low, high"):
            campaign.retry("best")
        assert [campaign.retry("high"), campaign.retry("low"), campaign.retry()] == [0, 3, 0]
    assert "3 of the failed calculations may be chosen again" in status_lines(read_status(run_folder))
    run(folder)
    assert states(folder) == {"done": 5}
    assert rows(folder, "SELECT outcome, count(*) FROM attempts GROUP BY outcome") == [("done", 5), ("failed", 3)]
    assert rows(folder, "SELECT step, count(*) FROM decisions GROUP BY step") == [(1, 4), (2, 4)]
    assert len(status_lines(read_status(run_folder))) == 3  # where it stands, and why it stopped


@pytest.mark.usefixtures("in_process")
def test_what_is_left_out_of_a_pool_is_said(folder: Path) -> None:  # noqa: F811
    config(folder, stop={"steps": 9}, batch={"n": 1}, levels=level(folder, ""))
    run_folder = start(folder)
    run(folder, max_steps=1)  # it has worked
    config(run_folder, batch={"n": 5}, levels=level(folder, "raise all"))
    why = run(folder)
    assert states(folder) == {"done": 1, "failed": 4}
    assert why.startswith("nothing left to choose in the pool: all is calculated or known at low, or failed; 4 calcul")
    with Campaign.open(run_folder, {"low": traced}) as campaign:
        campaign.retry()
    config(run_folder, batch={"hours": 1e-9})
    fits = r"that fits the budget: the cheapest calculation takes 0\.01 h, allowed are 1e-09 h by batch\.hours"
    assert re.fullmatch(f"nothing left to choose {fits}", run(folder))


@pytest.mark.usefixtures("in_process")
def test_results_of_another_campaign_on_the_same_scheduler_stay_there(folder: Path, client: Client) -> None:  # noqa: F811
    start(folder)
    other = Outcome("failed", "of another campaign")
    held = [client.submit(lambda: other, key=f"calculation-{i}-{i}", pure=False) for i in range(1, 5)]
    run(folder)
    assert states(folder) == {"done": 4}
    assert held[0].result() == other


@pytest.mark.usefixtures("in_process")
def test_a_full_disk_is_said_and_the_run_goes_on_from_there(folder: Path) -> None:  # noqa: F811
    run_folder = start(folder)
    with Campaign.open(run_folder, {"low": traced}) as campaign:
        check = campaign.tasks._check_moments
        store = campaign.store

        def filled(task: Any) -> None:  # after the first calculation
            check(task)
            (pages,) = store.db.execute("PRAGMA page_count").fetchone()
            store.db.execute(f"PRAGMA max_page_count = {pages}")
            store.event("note", 200000 * "x")

        campaign.tasks._check_moments = filled  # type: ignore[method-assign]
        with pytest.raises(DataError, match="disk is full; make room"):
            campaign.run(progress=False)
    with pytest.raises(DataError, match=r"campaign\.sqlite: database or disk is full; make room; .* goes on"):
        full_at_once(run_folder)
    assert run(folder) == "2 steps done, as asked for"
    assert states(folder) == {"done": 4}


def full_at_once(run_folder: Path) -> None:
    with Campaign.open(run_folder, {"low": traced}) as campaign:
        (pages,) = campaign.store.db.execute("PRAGMA page_count").fetchone()
        campaign.store.db.execute(f"PRAGMA max_page_count = {pages}")
        campaign.store.event("note", 200000 * "x")


def change(store: Store, size: int) -> None:
    with store.transaction():
        store.set_meta("ready", f"{size}")
        store.event("note", size * "x")


def step_of_no_model(store: Store) -> None:
    with store.transaction() as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute("INSERT INTO steps VALUES (1, 99, '', 0, 0, 0, NULL, NULL)")


def test_a_transaction_that_cannot_be_written_is_undone(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path / "campaign.sqlite")) as store:
        change(store, 1)
        (pages,) = store.db.execute("PRAGMA page_count").fetchone()
        store.db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DataError, match="full"):
            change(store, 200000)
        assert store.meta("ready") == "1"
        change(store, 2)
        assert store.meta("ready") == "2"
        with pytest.raises(sqlite3.IntegrityError):  # by the commit itself
            step_of_no_model(store)
        change(store, 3)
        assert store.meta("ready") == "3"


@contextmanager
def read_only(source: Path) -> Iterator[Path]:
    """A copy of a directory that this process cannot write to, also as root."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(shutil.copytree(source, Path(name) / "run"))
        for path in copy.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        copy.chmod(0o555)
        Path(name).chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(OSError, match="denied"):
                (copy / "new").touch()
            yield copy
        finally:
            os.seteuid(user)
            copy.chmod(0o755)


def test_a_campaign_that_cannot_be_written_to_can_be_read(folder: Path) -> None:  # noqa: F811
    run_folder = start(folder)
    exported(run_folder)
    read_status(run_folder)  # all is imported
    with read_only(run_folder) as copy:
        assert read_status(copy).pool == 5
        assert exported(copy) == []
        with pytest.raises(DataError, match=r"readonly database; make it .*status.* only read it"):
            Store(copy / "campaign.sqlite").event("note", "")
    with closing(connect(run_folder / "campaign.sqlite")) as db:  # what is in the log alone is read, too
        db.execute("INSERT INTO events (time, kind, text) VALUES ('', '', 'the last')")
        shutil.copytree(run_folder, folder / "killed", ignore=shutil.ignore_patterns("*-shm"))
    with read_only(folder / "killed") as copy:
        assert read_status(copy).events[-1]["text"] == "the last"
    (folder / "killed" / "campaign.sqlite").write_text("not a database, " * 100)
    with pytest.raises(DataError, match="is not a campaign's database"):
        connect_to_read(folder / "killed" / "campaign.sqlite")


def test_other_files_than_those_it_was_made_of_are_refused(folder: Path, two_levels: Any, config: Any) -> None:  # noqa: F811
    import test_campaign

    with_a_fit(folder, two_levels, config)
    run_folder = start(folder)
    for name, value in {"pool": ["pool.extxyz", "more.extxyz"], "targets": ["t.extxyz"], "fit": "other.yaml"}.items():
        text = (run_folder / "campaign.yaml").read_text()
        test_campaign.config(run_folder, **{name: value})
        with pytest.raises(ConfigError, match=rf"{name} cannot change within a campaign.* now it is .*campaign add"):
            run(folder, max_steps=0)
        (run_folder / "campaign.yaml").write_text(text)
    test_campaign.config(run_folder, pool="../pool.extxyz")  # the same
    run(folder, max_steps=0)
    pool = (folder / "pool.extxyz").read_text()
    (folder / "pool.extxyz").write_text(pool.replace("1", "2", 1))  # of the same size
    with pytest.warns(
        UserWarning,
        match=r"pool: pool\.extxyz changed since the campaign read it; to use the new ones, add structures with",
    ):
        run(folder, max_steps=0)
    (folder / "pool.extxyz").unlink()
    run(folder, max_steps=0)
    (folder / "fit.yaml").write_text((folder / "fit.yaml").read_text().replace("n_inducing: ", "n_inducing: 1"))
    with pytest.warns(UserWarning, match=r"fit\.yaml changed since the campaign was made"):
        run(folder, max_steps=0)


def test_files_of_one_name_in_several_folders_need_not_stay(folder: Path) -> None:  # noqa: F811
    import test_campaign

    names = ["a/pool.extxyz", "b/pool.extxyz"]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir()
        write(folder / name, alloy(400 + i))
    config(folder, pool=[*names, names[0]])  # one is named twice
    run_folder = start(folder)
    run(folder, max_steps=0)
    (folder / names[0]).unlink()
    run(folder, max_steps=0)
    (folder / names[1]).unlink()
    run(folder, max_steps=0)
    test_campaign.config(run_folder, pool=names)  # of a copy of the configuration, relative to another directory
    run(folder, max_steps=0)
    test_campaign.config(run_folder, pool=[*names, "c/pool.extxyz"])
    with pytest.raises(ConfigError, match="pool cannot change"):
        run(folder, max_steps=0)
    test_campaign.config(run_folder, pool=names[:1])
    with pytest.raises(ConfigError, match="pool cannot change"):
        run(folder, max_steps=0)


def test_errors_of_other_databases_are_not_the_campaigns(folder: Path) -> None:  # noqa: F811
    run_folder = start(folder)
    for query in ("SELECT * FROM mine", "SELECT mine FROM sqlite_master"):
        with (
            pytest.raises(sqlite3.OperationalError, match="no such"),
            Campaign.open(run_folder, {"low": traced}),
            closing(sqlite3.connect(":memory:")) as own,
        ):
            own.execute(query)
    with pytest.raises(sqlite3.DatabaseError, match="of mine"), Campaign.open(run_folder, {"low": traced}):
        raise sqlite3.DatabaseError("of mine")
    with closing(Store(run_folder / "campaign.sqlite")) as store:
        with pytest.raises(sqlite3.OperationalError, match="no such table: mine"):  # a mistake of ours
            store.db.execute("SELECT * FROM mine")
        assert [key for (key,) in store.db.execute("SELECT key FROM meta WHERE key = 'schema'")] == ["schema"]


def test_what_is_no_database_or_a_damaged_one_is_said(tmp_path: Path) -> None:
    file = tmp_path / "campaign.sqlite"
    with pytest.raises(DataError, match="unable to open database file; make it and its directory"):
        connect(tmp_path / "none" / "campaign.sqlite")
    with closing(sqlite3.connect(file)) as own:
        own.execute("CREATE TABLE mine (x)")
    for read_only in (False, True):
        with pytest.raises(DataError, match=r"is not a campaign's database \(no such table: meta"):
            Store(file, read_only=read_only)
    file.unlink()
    with closing(Store.create(file)) as store:
        store.set_meta("ready", "x")
        store.set_meta("schema", "2")
        for _ in range(200):
            store.event("note", 2000 * "x")
    data = bytearray(file.read_bytes())
    data[8 * 4096 :] = (len(data) - 8 * 4096) * b"x"
    file.write_bytes(data)
    with closing(Store(file, read_only=True)) as store, pytest.raises(DataError, match=r"is damaged .* from a copy"):
        list(store.db.execute("SELECT text FROM events, labels LEFT JOIN attempts UNION ALL SELECT text FROM events"))
