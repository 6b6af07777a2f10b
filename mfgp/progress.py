"""Progress bars for what takes longer than a moment, on standard error, and only where someone looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[str, int, int, str], None]  # (stage, done, total, note)


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


@contextmanager
def bars(enabled: bool = True, console: Console | None = None) -> Iterator[Report]:
    """A Report that draws one bar per stage; nothing is drawn when disabled or when the output is not a terminal."""
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
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note=note)
            progress.update(tasks[stage], completed=done, total=total, note=note)

        yield report
