"""The database of a campaign: SQLite with a write-ahead log, synced at every commit, so that a killed process loses nothing.

Every change of state is one transaction; what belongs together (a calculation's end and its label, a model version and the
labels that it learned) is in the same one. All SQL that writes is here, in `schema` and in `failures`;
reading for people is in `status`.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ase import Atoms

from mfgp.campaign.database import Connection, connect, connect_to_read
from mfgp.campaign.labelling import Outcome
from mfgp.campaign.records import LabelRow, Planned, Task, label_record, labelled_atoms
from mfgp.campaign.schema import HOURS, SCHEMA, TABLES, upgrade
from mfgp.data.single_point import structure_hash
from mfgp.data.structure_json import structure_of, structure_record
from mfgp.errors import DataError
from mfgp.frames import FrameSet

LOCK = "lock"
MAX_INTERRUPTIONS = 3  # of one task: it may be what takes the machine down


def now() -> str:
    """UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Hold the campaign's lock; the system gives it back when the process ends, however it ends. DataError if it is held."""
    with open(directory / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise DataError(
                f"{directory}: process {file.read().strip() or 'unknown'} works on this campaign; wait for it or end it."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class Store:
    """The open database. `Store.create` makes it, `Store(path)` opens it; both raise DataError for what is not one, or
    cannot be opened, as does what is asked of it later. read_only: what it holds is not changed, and to write need not be
    possible; where it is, SQLite may leave its files (-shm, -wal) beside it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if not path.is_file():
            raise DataError(
                f"{path.parent} is no campaign: there is no {path.name} in it; make one with `campaign init`."
            )
        self.path = path
        self.db = connect_to_read(path) if read_only else connect(path)
        try:
            self._check()
            if not read_only and self.meta("schema") != str(SCHEMA):
                with self.transaction() as db:
                    upgrade(db)
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        path = self.path
        schema = self.meta("schema")
        if schema is None or self.meta("ready") is None:
            raise DataError(f"{path.parent}: `campaign init` was interrupted; run it again.")
        if int(schema) > SCHEMA:
            raise DataError(f"{path} has schema {schema}, this mfgp reads up to {SCHEMA}; upgrade mfgp.")

    @classmethod
    def create(cls, path: Path) -> Store:
        """An empty database. What an interrupted `init` left is used again; a complete one is a DataError."""
        self = cls.__new__(cls)
        self.path, self.db = path, connect(path)
        tables = {row[0] for row in self.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            self.db.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
        elif "meta" not in tables or self.meta("ready") is not None:
            self.close()
            raise DataError(f"{path.parent} holds a campaign already; go on with `campaign run`, or name another.")
        else:  # an older version may have made it
            with self.transaction() as db:
                upgrade(db)
        return self

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All or nothing."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:  # on a full disk SQLite may have rolled back by itself
                self.db.execute("ROLLBACK")
            raise

    def meta(self, key: str) -> str | None:
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def set_meta(self, key: str, value: str) -> None:
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def event(self, kind: str, text: str) -> None:
        self.db.execute("INSERT INTO events (time, kind, text) VALUES (?, ?, ?)", (now(), kind, text))

    def levels(self) -> tuple[str, ...]:
        """All levels of the model, cheapest first."""
        return tuple(name for (name,) in self.db.execute("SELECT name FROM levels ORDER BY position"))

    # structures and labels

    def add_structure(self, atoms: Atoms, source: str) -> int:
        """Row of a geometry, a new one or the one that there is."""
        key = structure_hash(atoms)
        found = self.db.execute("SELECT id FROM structures WHERE hash = ?", (key,)).fetchone()
        if found is not None:
            return found[0]
        values = (key, structure_record(atoms), source)
        return _new(self.db.execute("INSERT INTO structures (hash, atoms, source) VALUES (?, ?, ?)", values))

    def number_structures(self, column: str, ids: Sequence[int], first: int = 0) -> None:
        """Order of the pool (`pool_index`) or of the targets (`target_index`), from `first` on."""
        assert column in ("pool_index", "target_index")
        for i, structure in enumerate(ids, first):
            self.db.execute(f"UPDATE structures SET {column} = ? WHERE id = ?", (i, structure))

    def structures(self, column: str) -> list[tuple[int, Atoms]]:
        """(row, Atoms) of the pool or of the targets, in order."""
        assert column in ("pool_index", "target_index")
        query = f"SELECT id, atoms FROM structures WHERE {column} IS NOT NULL ORDER BY {column}"
        return [(i, structure_of(text)) for i, text in self.db.execute(query)]

    def structure(self, row: int) -> Atoms:
        return structure_of(self.db.execute("SELECT atoms FROM structures WHERE id = ?", (row,)).fetchone()[0])

    def source(self, row: int) -> str:
        """Where a structure came from."""
        return self.db.execute("SELECT source FROM structures WHERE id = ?", (row,)).fetchone()[0]

    def add_labels(
        self, frames: FrameSet, origin: str, *, learned_in: int | None = None, accepted: bool = True, why: str = "",
        attempt: int | None = None, structure: int | None = None,
    ) -> list[int]:  # fmt: skip
        """Rows of the labels that are new; a label that is there already (level, structure and values) is left alone, but
        accepted where it was not and is `added`.

        structure: the row that they belong to, where it is known (a calculation's); by default found by its geometry.
        """
        rows = []
        for frame, key in zip(frames, frames.frame_hashes(), strict=True):
            place = structure if structure is not None else self.add_structure(frame.atoms, frame.source)
            what = (place, frame.fidelity, origin, attempt, key, label_record(frame))
            values = (*what, accepted, why, now(), learned_in)
            columns = "structure, level, origin, attempt, hash, label, accepted, why, created, learned_in"
            query = f"INSERT OR IGNORE INTO labels ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            cursor = self.db.execute(query, values)
            if cursor.rowcount:
                rows.append(_new(cursor))
                if origin == "added":  # nothing is left to compute
                    state = "UPDATE tasks SET state = 'done', why = 'label added from outside' WHERE structure = ?"
                    self.db.execute(
                        f"{state} AND level = ? AND state IN ('planned', 'failed')", (place, frame.fidelity)
                    )
            elif origin == "added":  # it was rejected or replaced, and is wanted now
                found = self.db.execute("SELECT id FROM labels WHERE hash = ? AND accepted = 0", (key,)).fetchall()
                self.db.execute("UPDATE labels SET accepted = 1, why = ? WHERE hash = ? AND accepted = 0", (why, key))
                rows += [row for (row,) in found]
        return rows

    def replace_labels(self, frame: FrameSet, old: Sequence[LabelRow]) -> list[int]:
        """An added label (one frame) in place of others of its structure and level, which stay, with the reason.

        One that a model has learned keeps `learned_in` until a refit: so long it is to be forgotten.
        """
        rows = self.add_labels(frame, "added", why="computed outside", structure=old[0].structure)
        new = self.db.execute("SELECT id FROM labels WHERE hash = ?", frame.frame_hashes()).fetchone()[0]
        for row in old:
            learned = "" if row.learned_in is None else f"; it was learned in model {row.learned_in}"
            query = "UPDATE labels SET accepted = 0, why = ? WHERE id = ? AND id != ?"
            self.db.execute(query, (f"replaced by label {new}{learned}", row.id, new))
        return rows

    def labels(self, where: str = "accepted = 1", parameters: Sequence[Any] = ()) -> list[LabelRow]:
        """Labels that fulfil an SQL condition, oldest first."""
        query = (
            "SELECT l.id, structure, level, origin, accepted, why, learned_in, created, s.atoms, label, before "
            f"FROM labels l JOIN structures s ON s.id = structure WHERE {where} ORDER BY l.id"
        )
        return [
            LabelRow(
                r[0], r[1], r[2], r[3], bool(r[4]), r[5], r[6], r[7], labelled_atoms(r[8], r[9]),
                None if r[10] is None else json.loads(r[10]),
            )
            for r in self.db.execute(query, parameters)
        ]  # fmt: skip

    def count_labels(self, where: str = "accepted = 1") -> int:
        """How many labels fulfil an SQL condition."""
        return self.db.execute(f"SELECT count(*) FROM labels WHERE {where}").fetchone()[0]

    # steps and tasks

    def open_step(self, model: int, std_before: float, planned: Sequence[Planned]) -> int:
        """Write a step with its decisions and tasks, all or nothing."""
        with self.transaction() as db:
            step = db.execute("SELECT coalesce(max(step), 0) + 1 FROM steps").fetchone()[0]
            values = (step, model, now(), std_before, planned[-1].std_after, sum(p.hours for p in planned))
            query = "INSERT INTO steps (step, model, opened, std_before, std_expected, hours) VALUES (?, ?, ?, ?, ?, ?)"
            db.execute(query, values)
            for rank, p in enumerate(planned):
                row = (self._plan(p, step), step, rank, p.gain, p.std_before, p.std_after, p.hours, p.why)
                db.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return step

    def _plan(self, p: Planned, step: int) -> int:
        """The row of a new task, or of one that had failed and may be chosen again."""
        query = (
            "INSERT INTO tasks (structure, level, step, state) VALUES (?, ?, ?, 'planned') ON CONFLICT (structure, level) "
            "DO UPDATE SET step = excluded.step, state = 'planned', attempt = 1, interruptions = 0, why = '' "
            "WHERE state = 'failed' AND attempt = 0"
        )
        changed = self.db.execute(query, (p.structure, p.level, step)).rowcount
        assert changed == 1, f"structure {p.structure} is taken at {p.level}"
        return self.tasks("structure = ? AND level = ?", (p.structure, p.level))[0].id

    def task(self, row: int) -> Task:
        return self.tasks("id = ?", (row,))[0]

    def taken(self) -> list[tuple[int, str]]:
        """(structure, level) that need no choosing: tasks, but for failed ones that may be tried again, and labels."""
        query = "SELECT structure, level FROM tasks WHERE state != 'failed' OR attempt > 0"
        query += " UNION SELECT structure, level FROM labels"
        return self.db.execute(query).fetchall()

    def count_steps(self) -> int:
        return self.db.execute("SELECT count(*) FROM steps").fetchone()[0]

    def unfinished_step(self) -> int | None:
        row = self.db.execute("SELECT step FROM steps WHERE closed IS NULL").fetchone()
        return None if row is None else row[0]

    def tasks(self, where: str = "1", parameters: Sequence[Any] = ()) -> list[Task]:
        query = f"SELECT id, structure, level, state, attempt, interruptions, why FROM tasks WHERE {where} ORDER BY id"
        return [Task(*row) for row in self.db.execute(query, parameters)]

    def start(self, task: Task, settings: dict[str, Any]) -> int:
        """planned -> running; the row of the attempt."""
        with self.transaction() as db:
            self._move(task.id, "planned", "running")
            query = "INSERT INTO attempts (task, attempt, settings, started) VALUES (?, ?, ?, ?)"
            return _new(db.execute(query, (task.id, task.attempt, json.dumps(settings), now())))

    def finish(self, task: Task, attempt: int, found: Outcome, label: FrameSet | None, last: bool) -> None:
        """running -> done, failed or rejected, with its label; a failure that is not the `last` attempt -> planned."""
        with self.transaction() as db:
            again = found.outcome == "failed" and not last
            self._move(task.id, "running", "planned" if again else found.outcome)
            query = "UPDATE tasks SET why = ?, attempt = attempt + ? WHERE id = ?"
            db.execute(query, (found.why, int(again), task.id))
            query = (
                "UPDATE attempts SET finished = ?, outcome = ?, why = ?, wall_seconds = ?, cpu_seconds = ?, worker = ?"
            )
            seconds = (found.wall_seconds, found.cpu_seconds)
            db.execute(f"{query} WHERE id = ?", (now(), found.outcome, found.why, *seconds, found.worker, attempt))
            if label is not None:
                good, place = found.outcome == "done", task.structure
                self.add_labels(label, "computed", accepted=good, why=found.why, attempt=attempt, structure=place)

    def interrupt(self, task: Task, attempt: int, why: str) -> None:
        """running -> planned: its process is gone; -> failed when that has happened MAX_INTERRUPTIONS times."""
        with self.transaction() as db:
            gone = task.interruptions + 1 >= MAX_INTERRUPTIONS
            self._move(task.id, "running", "failed" if gone else "planned")
            text = f"{why} ({task.interruptions + 1} times)" if gone else why
            db.execute("UPDATE tasks SET interruptions = interruptions + 1, why = ? WHERE id = ?", (text, task.id))
            query = "UPDATE attempts SET finished = ?, outcome = 'interrupted', why = ? WHERE id = ?"
            db.execute(query, (now(), why, attempt))

    def running_attempt(self, task: Task) -> int:
        query = "SELECT max(id) FROM attempts WHERE task = ? AND finished IS NULL"
        return self.db.execute(query, (task.id,)).fetchone()[0]

    def seconds_running(self, attempt: int) -> float:
        """Wall time since an attempt was started."""
        (started,) = self.db.execute("SELECT started FROM attempts WHERE id = ?", (attempt,)).fetchone()
        return (datetime.now(timezone.utc) - datetime.fromisoformat(started)).total_seconds()

    def _move(self, task: int, before: str, after: str) -> None:
        query = "UPDATE tasks SET state = ? WHERE id = ? AND state = ?"
        changed = self.db.execute(query, (after, task, before)).rowcount
        assert changed == 1, f"task {task} is not {before}"

    # models

    def record_model(
        self, version: int, file: str, kind: str, why: str, seconds: float, learned: Sequence[int],
        before: dict[int, dict[str, Any]], step: int | None,
    ) -> None:  # fmt: skip
        """A new version, the labels that it learned, and the end of its step, at once."""
        with self.transaction() as db:
            if kind == "refit":  # it holds the accepted labels, and no others
                db.execute("UPDATE labels SET learned_in = NULL WHERE accepted = 0")
            n = db.execute("SELECT count(*) FROM labels WHERE learned_in IS NOT NULL").fetchone()[0] + len(learned)
            values = (version, file, kind, why, now(), seconds, n, self.hours_spent(), None)
            db.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            for row in learned:
                text = json.dumps(before[row]) if row in before else None
                db.execute("UPDATE labels SET learned_in = ?, before = ? WHERE id = ?", (version, text, row))
            self._close_step(step, version)

    def close_step(self, step: int) -> None:
        """End a step that brought nothing to learn."""
        with self.transaction():
            self._close_step(step, None)

    def _close_step(self, step: int | None, version: int | None) -> None:
        query = "UPDATE steps SET closed = ?, model_after = ? WHERE step = ?"
        self.db.execute(query, (now(), version, step))

    def latest_model(self) -> tuple[int, str]:
        """Version and file."""
        return self.db.execute("SELECT version, file FROM models ORDER BY version DESC LIMIT 1").fetchone()

    def set_target_std(self, version: int, std: float) -> None:
        self.db.execute("UPDATE models SET target_std = ? WHERE version = ?", (std, version))

    def hours_spent(self) -> float:
        """Of all attempts, failed ones included."""
        return float(self.db.execute(f"SELECT coalesce(sum({HOURS}), 0) FROM attempts").fetchone()[0])


def _new(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid
