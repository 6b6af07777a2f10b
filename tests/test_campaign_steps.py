"""What belongs to which step of a campaign, where a calculation that failed is chosen again."""

from __future__ import annotations

import re
import time
from contextlib import closing
from pathlib import Path

from test_campaign import folder, rows, start  # noqa: F401

from mfgp.campaign.database import connect
from mfgp.campaign.failures import free
from mfgp.campaign.labelling import Outcome
from mfgp.campaign.records import Planned
from mfgp.campaign.report import cost_figure, page
from mfgp.campaign.status import read_status
from mfgp.campaign.store import Store

OLD = """
ALTER TABLE decisions RENAME TO new;
CREATE TABLE decisions (task INTEGER PRIMARY KEY REFERENCES tasks(id), step INTEGER NOT NULL REFERENCES steps(step),
  rank INTEGER NOT NULL, gain REAL NOT NULL, std_before REAL NOT NULL, std_after REAL NOT NULL, hours REAL NOT NULL,
  why TEXT NOT NULL, UNIQUE (step, rank));
INSERT OR REPLACE INTO decisions SELECT * FROM new ORDER BY step;
DROP TABLE new;
UPDATE meta SET value = '1' WHERE key = 'schema';
"""


def chosen(store: Store) -> int:
    """A step that chooses the same calculation."""
    time.sleep(0.005)  # times are in ms
    structure = store.structures("pool_index")[0][0]
    return store.open_step(
        0, 1.0, [Planned(structure, "low", 0.5, 1.0, 0.5, 1.0, f"for step {store.count_steps() + 1}")]
    )


def calculated(store: Store, outcome: str, seconds: float) -> None:
    time.sleep(0.005)
    task = store.tasks()[0]
    attempt = store.start(task, {})
    store.finish(task, attempt, Outcome(outcome, "", wall_seconds=seconds), None, True)  # type: ignore[arg-type]


def steps(run: Path) -> list[list[str]]:
    """Of the report: step, what was chosen, cost, how many were lost."""
    table = page(read_status(run)).split("<h2>Steps</h2>")[1].split("<h2>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in table.splitlines() if line.startswith("<tr>")]
    return [[row[0], row[2], row[-2], row[-1]] for row in cells if row]


def decisions(run: Path) -> list[tuple[object, ...]]:
    return [(d["step"], d["rank"], d["why"], d["state"], d["hours"]) for d in read_status(run).decisions]


def test_a_step_keeps_what_failed_in_it_when_that_is_chosen_again(folder: Path) -> None:  # noqa: F811
    run = start(folder)
    with closing(Store(run / "campaign.sqlite")) as store:
        first = chosen(store)
        calculated(store, "failed", 3600.0)
        store.close_step(first)
        before = ["1", "1 low", "60 min", "1"]
        assert steps(run) == [before]
        assert free(store, ["low"]) == 1
        second = chosen(store)
        assert steps(run) == [before, ["2", "1 low", "0 s", "0"]]
        calculated(store, "done", 7200.0)
        store.close_step(second)
    assert steps(run) == [before, ["2", "1 low", "2 h", "0"]]
    assert decisions(run) == [(1, 0, "for step 1", "failed", 1.0), (2, 0, "for step 2", "done", 2.0)]
    assert [t["state"] for t in read_status(run).tasks] == ["done"]
    figure = cost_figure(read_status(run))
    assert figure is not None
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in figure.axes[0].patches]
    assert {(round(x), round(h)) for x, h in bars if h} == {(1, 1), (2, 2)}


def test_a_database_of_one_decision_for_each_task_is_read_and_goes_on(folder: Path) -> None:  # noqa: F811
    run = start(folder)
    with closing(Store(run / "campaign.sqlite")) as store:
        for _ in range(2):
            step = chosen(store)
            calculated(store, "failed", 3600.0)
            store.close_step(step)
            free(store, ["low"])
    with closing(connect(run / "campaign.sqlite")) as db:
        db.executescript(f"BEGIN; {OLD} COMMIT;")
    lost = (1, None, "", "failed", 1.0)  # the decision, not what it led to
    assert decisions(run) == [lost, (2, 0, "for step 2", "failed", 1.0)]
    assert [row[1:] for row in steps(run)] == 2 * [["1 low", "60 min", "1"]]
    with closing(connect(run / "campaign.sqlite")) as db:  # reading changes nothing
        assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("1",)
    with closing(Store(run / "campaign.sqlite")) as store:
        assert store.meta("schema") == "2"
        chosen(store)
    assert decisions(run) == [lost, (2, 0, "for step 2", "failed", 1.0), (3, 0, "for step 3", "planned", 0.0)]
    assert rows(folder, "SELECT task, step FROM decisions") == [(1, 2), (1, 3)]


def test_an_init_that_an_older_version_began_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "campaign.sqlite"
    Store.create(file).close()
    with closing(connect(file)) as db:
        db.executescript(f"BEGIN; {OLD} COMMIT;")
    with closing(Store.create(file)) as store:
        keys = [row[1] for row in store.db.execute("PRAGMA table_info(decisions)") if row[5]]
    assert keys == ["task", "step"]
