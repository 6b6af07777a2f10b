"""The tables of a campaign's database, in one place.

A task is one (structure, level): planned -> running -> done | failed | rejected, and back to planned for a second attempt or
when its process was killed. Each attempt has a row of its own. A failed task that may be chosen again (`campaign retry`)
has attempt 0 until it is; it keeps its attempts and its decision, and gets another decision in the step that it is in then.
An attempt belongs to the step that was open when it started. A step is open from its selection until the
model has learned what came of it. A label that is not accepted has `learned_in` as long as the latest model holds it: until
a refit. Times are UTC, hours those of `cost` (CPU where known, else wall), energies eV, lengths Å.
"""

from __future__ import annotations

import sqlite3

SCHEMA = 2  # 1: one decision for each task, the last
DATABASE, CONFIG = "campaign.sqlite", "campaign.yaml"
STATES = ("planned", "running", "done", "failed", "rejected")

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE structures (
  id INTEGER PRIMARY KEY,
  hash TEXT NOT NULL UNIQUE,
  atoms TEXT NOT NULL,
  source TEXT NOT NULL,
  pool_index INTEGER UNIQUE,
  target_index INTEGER UNIQUE
);
CREATE TABLE levels (name TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE, calculator TEXT);
CREATE TABLE models (
  version INTEGER PRIMARY KEY,
  file TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('initial', 'update', 'refit')),
  why TEXT NOT NULL,
  created TEXT NOT NULL,
  seconds REAL NOT NULL,
  n_labels INTEGER NOT NULL,
  hours_spent REAL NOT NULL,
  target_std REAL
);
CREATE TABLE steps (
  step INTEGER PRIMARY KEY,
  model INTEGER NOT NULL REFERENCES models(version),
  opened TEXT NOT NULL,
  std_before REAL NOT NULL,
  std_expected REAL NOT NULL,
  hours REAL NOT NULL,
  closed TEXT,
  model_after INTEGER REFERENCES models(version)
);
CREATE TABLE tasks (
  id INTEGER PRIMARY KEY,
  structure INTEGER NOT NULL REFERENCES structures(id),
  level TEXT NOT NULL REFERENCES levels(name),
  step INTEGER NOT NULL REFERENCES steps(step),
  state TEXT NOT NULL CHECK (state IN ('planned', 'running', 'done', 'failed', 'rejected')),
  attempt INTEGER NOT NULL DEFAULT 1,
  interruptions INTEGER NOT NULL DEFAULT 0,
  why TEXT NOT NULL DEFAULT '',
  UNIQUE (structure, level)
);
CREATE TABLE decisions (
  task INTEGER NOT NULL REFERENCES tasks(id),
  step INTEGER NOT NULL REFERENCES steps(step),
  rank INTEGER NOT NULL,
  gain REAL NOT NULL,
  std_before REAL NOT NULL,
  std_after REAL NOT NULL,
  hours REAL NOT NULL,
  why TEXT NOT NULL,
  PRIMARY KEY (task, step),
  UNIQUE (step, rank)
);
CREATE TABLE attempts (
  id INTEGER PRIMARY KEY,
  task INTEGER NOT NULL REFERENCES tasks(id),
  attempt INTEGER NOT NULL,
  settings TEXT NOT NULL,
  started TEXT NOT NULL,
  finished TEXT,
  outcome TEXT CHECK (outcome IN ('done', 'failed', 'rejected', 'interrupted')),
  why TEXT NOT NULL DEFAULT '',
  wall_seconds REAL NOT NULL DEFAULT 0,
  cpu_seconds REAL,
  worker TEXT NOT NULL DEFAULT ''
);
CREATE TABLE labels (
  id INTEGER PRIMARY KEY,
  structure INTEGER NOT NULL REFERENCES structures(id),
  level TEXT NOT NULL REFERENCES levels(name),
  origin TEXT NOT NULL CHECK (origin IN ('initial', 'computed', 'added')),
  attempt INTEGER UNIQUE REFERENCES attempts(id),
  hash TEXT NOT NULL UNIQUE,
  label TEXT NOT NULL,
  accepted INTEGER NOT NULL CHECK (accepted IN (0, 1)),
  why TEXT NOT NULL,
  created TEXT NOT NULL,
  learned_in INTEGER REFERENCES models(version),
  before TEXT
);
CREATE TABLE events (id INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX labels_by_place ON labels(structure, level);
CREATE INDEX attempts_by_task ON attempts(task);
"""

# cost of an attempt in hours; one that was interrupted has none on record
HOURS = "coalesce(cpu_seconds, wall_seconds) / 3600.0"


def upgrade(db: sqlite3.Connection) -> None:
    """Bring the tables of an older version to this one, within a transaction; nothing where they are."""
    keys = [row[1] for row in db.execute("PRAGMA table_info(decisions)") if row[5]]
    if keys != ["task"]:
        return
    start = TABLES.index("CREATE TABLE decisions")
    db.execute("ALTER TABLE decisions RENAME TO old_decisions")
    db.execute(TABLES[start : TABLES.index(";", start)])
    db.execute("INSERT INTO decisions SELECT * FROM old_decisions")
    db.execute("DROP TABLE old_decisions")
    db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(SCHEMA),))
