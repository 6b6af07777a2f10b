"""Calculations that failed: when they end a run, and how their structures may be chosen again.

A task that failed is not chosen again by itself: a structure that no calculation converges for would be proposed at every
step. A level that never worked is another matter: its calculator is not set up, and would use up the pool. So the first
FIRST failures of a level end the run where nothing of it was ever computed in this campaign, as do FIRST more each time
that it is run again. `free` lets failed tasks be chosen as if they were new (attempt 0); their attempts stay on record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mfgp.base.words import sentence
from mfgp.campaign.schema import CONFIG
from mfgp.campaign.store import Store
from mfgp.errors import ConfigError

FIRST = 3

_FAILED = """
SELECT a.id, a.why FROM tasks t JOIN attempts a ON a.id = (SELECT max(id) FROM attempts WHERE task = t.id)
WHERE t.level = ? AND t.state = 'failed' AND t.attempt > 0 AND a.outcome = 'failed'
AND a.finished > (SELECT coalesce(max(time), '') FROM events WHERE kind = 'broken' AND substr(text, 1, ?) = ?)
ORDER BY a.finished
"""


def check_works(store: Store, level: str, folder: Callable[[int], Path]) -> None:
    """ConfigError for a level whose first FIRST calculations (since the last such error) failed, and none went through.

    folder: the directory of an attempt.
    """
    if store.db.execute("SELECT 1 FROM labels WHERE level = ? AND origin = 'computed'", (level,)).fetchone():
        return
    start = f"levels.{level}: "
    failed = store.db.execute(_FAILED, (level, len(start), start)).fetchall()
    if len(failed) < FIRST:
        return
    attempt, why = failed[-1]
    text = f"{start}{len(failed)} calculations failed, and none has gone through yet; the last one: {why}"
    with store.transaction():
        store.event("broken", text)
    place = store.path.parent
    wrote = f" What it wrote is in {folder(attempt)}." if folder(attempt).is_dir() else ""
    raise ConfigError(
        f"{sentence(text)}{wrote} Mend the level in {place / CONFIG}, let the failed ones be chosen again with "
        f"`mfgp campaign retry -d {place}`, and go on with `mfgp campaign run -d {place}`. (Without `retry` it goes on with "
        "other structures.)"
    )


def free(store: Store, levels: Sequence[str]) -> int:
    """Let the failed tasks of some levels be chosen again; returns how many there are."""
    changed = 0
    with store.transaction() as db:
        for level in levels:
            query = "UPDATE tasks SET attempt = 0 WHERE level = ? AND state = 'failed' AND attempt > 0"
            changed += db.execute(query, (level,)).rowcount
        if changed:
            store.event("retry", f"{changed} failed calculations may be chosen again ({', '.join(levels)})")
    return changed


def how_to_retry(failed: int, directory: Path) -> str:
    """One clause for people; '' where nothing failed."""
    if not failed:
        return ""
    s = "" if failed == 1 else "s"
    return (
        f"{failed} calculation{s} failed; once the cause is mended, `mfgp campaign retry -d {directory}` lets "
        f"{'it' if failed == 1 else 'them'} be chosen again"
    )
