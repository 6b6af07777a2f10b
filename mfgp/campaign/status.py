"""What a campaign has done, read from its database: counts, decisions, failures, models. Changes nothing, needs no lock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from rich.table import Table

from mfgp.base import console
from mfgp.campaign.config import CampaignConfig, load_campaign_config
from mfgp.campaign.failures import how_to_retry
from mfgp.campaign.records import Planned
from mfgp.campaign.schema import CONFIG, DATABASE, HOURS, STATES
from mfgp.campaign.store import Store


@dataclass(frozen=True)
class Status:
    """Rows of a campaign's database. Standard deviations in eV/Å, hours as in schema."""

    directory: Path
    config: CampaignConfig
    levels: tuple[str, ...]
    pool: int
    hours: float
    models: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    tasks: list[dict[str, Any]]  # with their label; step: the last that chose it
    decisions: list[dict[str, Any]]  # one for each step that chose a task: how it ended there, and what that cost
    attempts: list[dict[str, Any]]  # with the step that they were started in
    labels: list[dict[str, Any]]  # counts by level and origin
    events: list[dict[str, Any]]

    @property
    def std(self) -> float | None:
        """The target's, as last computed."""
        return next((m["target_std"] for m in reversed(self.models) if m["target_std"] is not None), None)

    def tasks_of(self, level: str, state: str) -> int:
        return sum(t["level"] == level and t["state"] == state for t in self.tasks)


def read_status(directory: Path) -> Status:
    """Raises DataError for a directory that holds no campaign."""
    with _reading(directory) as store:
        return Status(
            directory,
            load_campaign_config(directory / CONFIG, sources=False),
            store.levels(),
            store.db.execute("SELECT count(*) FROM structures WHERE pool_index IS NOT NULL").fetchone()[0],
            store.hours_spent(),
            _rows(store, "SELECT * FROM models ORDER BY version"),
            _rows(store, "SELECT * FROM steps ORDER BY step"),
            _rows(store, _TASKS),
            _rows(store, _DECISIONS),
            _rows(store, _ATTEMPTS),
            _rows(store, "SELECT level, origin, accepted, count(*) n FROM labels GROUP BY level, origin, accepted"),
            _rows(store, "SELECT time, kind, text FROM events ORDER BY id"),
        )


@contextmanager
def _reading(directory: Path) -> Iterator[Store]:
    """The database, also where nothing can be written."""
    with closing(Store(directory / DATABASE, read_only=True)) as store:
        yield store


_TASKS = """
SELECT t.id, t.structure, t.level, t.step, t.state, t.attempt, t.why AS outcome, s.source, l.before, l.learned_in
FROM tasks t JOIN structures s ON s.id = t.structure LEFT JOIN decisions d ON d.task = t.id AND d.step = t.step
LEFT JOIN labels l ON l.structure = t.structure AND l.level = t.level AND l.origin = 'computed'
ORDER BY t.step, d.rank
"""
_ATTEMPTS = f"""
SELECT a.id, a.task, t.level, t.structure, a.attempt, a.settings, a.started, a.finished, a.outcome, a.why, {HOURS} AS hours,
  a.worker, coalesce((SELECT max(step) FROM steps WHERE opened <= a.started), t.step) AS step
FROM attempts a JOIN tasks t ON t.id = a.task ORDER BY a.id
"""
# A task that another step chose again had failed before. Of that schema 1 kept no decision: its attempts tell the step.
_DECISIONS = f"""
WITH spent AS (SELECT task, step, sum(hours) AS hours FROM ({_ATTEMPTS}) GROUP BY task, step),
  chosen AS (SELECT task, step FROM decisions UNION SELECT task, step FROM spent)
SELECT c.task, c.step, t.level, CASE WHEN c.step = t.step THEN t.state ELSE 'failed' END AS state, d.rank,
  coalesce(d.why, '') AS why, s.source, s.atoms, CASE WHEN c.step = t.step THEN l.before END AS before,
  coalesce(p.hours, 0) AS hours
FROM chosen c JOIN tasks t ON t.id = c.task JOIN structures s ON s.id = t.structure
LEFT JOIN decisions d ON d.task = c.task AND d.step = c.step LEFT JOIN spent p ON p.task = c.task AND p.step = c.step
LEFT JOIN labels l ON l.structure = t.structure AND l.level = t.level AND l.origin = 'computed'
ORDER BY c.step, d.rank
"""


def _rows(store: Store, query: str) -> list[dict[str, Any]]:
    cursor = store.db.execute(query)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def exported(directory: Path, *, rejected: bool = False, initial: bool = False) -> list[Atoms]:
    """Labels as Atoms that `read_frames` takes: REF_* keys and `fidelity`; `origin` and `model_version` in info.

    rejected: those of another spin state, or replaced, instead. initial: also the data that the campaign began with.
    """
    with _reading(directory) as store:
        rows = store.labels("accepted = ?", (0 if rejected else 1,))
    out = []
    for row in rows:
        if initial or row.origin != "initial":
            row.atoms.info["origin"] = row.origin
            if row.learned_in is not None:
                row.atoms.info["model_version"] = row.learned_in
            if rejected:
                row.atoms.info["rejected"] = row.why
            out.append(row.atoms)
    return out


def milli(value: float | None, digits: int = 4) -> str:
    """eV/Å as meV/Å."""
    return "–" if value is None else f"{1e3 * value:.{digits}g}"


def human_hours(hours: float) -> str:
    """0.001 -> '3.6 s'."""
    seconds = 3600.0 * hours
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{hours:.3g} h"


def status_tables(s: Status) -> list[Table]:
    """Calculations by level, and model versions."""
    columns: tuple[str, ...] = ("level", *STATES, "cost", "added", "initial")
    rows = []
    for level in s.levels:
        states = [str(s.tasks_of(level, state)) for state in STATES]
        cost = human_hours(sum(a["hours"] for a in s.attempts if a["level"] == level))
        own = [r for r in s.labels if r["level"] == level and r["accepted"]]
        origins = [str(sum(r["n"] for r in own if r["origin"] == o)) for o in columns[-2:]]
        rows.append((level, *states, cost, *origins))
    out = [console.table("calculations, and labels from elsewhere", columns, rows)]
    versions = [
        (str(m["version"]), m["kind"], str(m["n_labels"]), human_hours(m["hours_spent"]), milli(m["target_std"]))
        for m in s.models
    ]
    columns = ("version", "what", "labels", "cost so far", f"{s.config.target} std (meV/Å)")
    return [*out, console.table("models", columns, versions)]


def status_lines(s: Status) -> list[str]:
    """Where it stands."""
    stop = s.config.stop
    wanted = [
        f"std {milli(stop.std)} meV/Å" if stop.std is not None else "",
        f"{stop.hours:g} h" if stop.hours is not None else "",
        f"{stop.steps} steps" if stop.steps is not None else "",
    ]
    unfinished = [step["step"] for step in s.steps if step["closed"] is None]
    lines = [
        f"{s.directory}: target {s.config.target}, {s.pool} structures in the pool, {len(s.steps)} steps",
        f"std {milli(s.std)} meV/Å after {human_hours(s.hours)}; stops at {' or '.join(w for w in wanted if w)}",
    ]
    if unfinished:
        over = sum(t["step"] == unfinished[0] and t["state"] not in ("planned", "running") for t in s.tasks)
        total = sum(t["step"] == unfinished[0] for t in s.tasks)
        lines.append(
            f"step {unfinished[0]} is open: {over} of {total} calculations are over; go on with `campaign run`"
        )
    last = s.events[-1] if s.events else None
    if last is not None and last["kind"] in ("stop", "broken") and all(a["started"] < last["time"] for a in s.attempts):
        lines.append(f"stopped: {last['text']}")
    failed = [task["attempt"] for task in s.tasks if task["state"] == "failed"]
    if failed.count(0):
        lines.append(f"{failed.count(0)} of the failed calculations may be chosen again")
    if not lines[-1].endswith(told := how_to_retry(len(failed) - failed.count(0), s.directory)):
        lines.append(told)
    return lines


def failure_table(s: Status) -> Table | None:
    """Calculations that failed or were rejected, and why; the last twenty."""
    bad = [t for t in s.tasks if t["state"] in ("failed", "rejected")]
    if not bad:
        return None
    rows = [
        (f"{t['source']}", t["level"], t["state"], str(t["attempt"] or "may be chosen again"), t["outcome"])
        for t in bad[-20:]
    ]
    return console.table(f"failed or rejected ({len(bad)})", ("structure", "level", "state", "attempts", "why"), rows)


def proposal_table(planned: Sequence[Planned], sources: Sequence[str]) -> Table:
    """What a step would compute."""
    columns = ("structure", "level", "cost", "std before (meV/Å)", "after")
    rows = [
        (source, p.level, human_hours(p.hours), milli(p.std_before), milli(p.std_after))
        for p, source in zip(planned, sources, strict=True)
    ]
    total = human_hours(sum(p.hours for p in planned))
    return console.table(f"the next step: {len(planned)} calculations, {total}", columns, rows)
