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
    """A line when a stage has taken EVERY seconds, and again, and once when it ends, if it took longer than SHORT."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stages: dict[
            str, tuple[float, float, int]
        ] = {}  # when it started and was last written of, what was done then

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        start, said, before = self.stages.get(stage, (now, now, 0))
        if done < before:  # once more
            start = said = now
        if now - said > (SHORT if done >= total else EVERY) and before < total:
            said = now
            self.console.print(f"{stage}: {done} of {total}, {now - start:.0f} s", highlight=False)
        self.stages[stage] = (start, said, done)


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
