"""Progress on standard error: bars where someone looks at them, a line now and then in the log of a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY, SHORT = 30.0, 2.0  # seconds
Report = Callable[[str, int, int, str], None]  # (stage, done, total, note)


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


class _Lines:
    """A line when a stage has taken EVERY seconds, and again, and when it ends, if it took longer than SHORT."""

    def __init__(self, console: Console) -> None:
        self.console, self.started, self.said = console, dict[str, float](), dict[str, float]()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        start = self.started.setdefault(stage, now)
        if now - self.said.get(stage, start) > (SHORT if done >= total else EVERY):
            self.said[stage] = now
            self.console.print(f"{stage}: {done} of {total}, {now - start:.0f} s", highlight=False)


@contextmanager
def bars(enabled: bool = True, console: Console | None = None) -> Iterator[Report]:
    """A Report that draws one bar per stage, or writes lines where the output is no terminal; nothing when disabled."""
    if not enabled:
        yield silent
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note=note)
            progress.update(tasks[stage], completed=done, total=total, note=note)

        yield report
