"""Progress on standard error: bars where someone looks at them, a line now and then in the log of a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY, SHORT = 30.0, 2.0  # seconds
Report = Callable[[str, int, int, str], None]  # (stage, done, total, note)


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


class _Lines:
    """A line when a stage has taken EVERY seconds, and again, and once when it ends, if it took longer than `short`."""

    def __init__(self, console: Console, short: float = SHORT) -> None:
        self.console, self.short = console, short
        self.stages: dict[
            str, tuple[float, float, int]
        ] = {}  # when it started and was last written of, what was done then

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        start, said, before = self.stages.get(stage, (now, now, 0))
        if done < before:  # once more
            start = said = now
        if now - said > (self.short if done >= total else EVERY) and before < total:
            said = now
            self.console.print(f"{stage}: {done} of {total}, {now - start:.0f} s", highlight=False)
        self.stages[stage] = (start, said, done)


class _Bars:
    """One bar per stage."""

    def __init__(self, console: Console, transient: bool = False) -> None:
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.drawn = Progress(*columns, console=console, transient=transient)
        self.tasks = dict[str, TaskID]()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.drawn.add_task(stage, total=total, note=note)
        self.drawn.update(self.tasks[stage], completed=done, total=total, note=note)


@contextmanager
def bars(enabled: bool = True, console: Console | None = None) -> Iterator[Report]:
    """A Report that draws one bar per stage, or writes lines where the output is no terminal; nothing when disabled."""
    console = console or Console(stderr=True)
    if not enabled:
        yield silent
    elif not console.is_terminal:
        yield _Lines(console)
    else:
        report = _Bars(console)
        with report.drawn:
            yield report


@contextmanager
def late_bars(enabled: bool = True, console: Console | None = None) -> Iterator[Report]:
    """The same for calls that may be short, and one of many: bars from SHORT seconds on, which go at the end.

    Where the output is no terminal, lines of what takes longer than EVERY.
    """
    console = console or Console(stderr=True)
    if not enabled:
        yield silent
    elif not console.is_terminal:
        yield _Lines(console, EVERY)
    else:
        report = _Bars(console, transient=True)
        timer = Timer(SHORT, report.drawn.start)  # also where nothing is reported for longer
        timer.daemon = True
        timer.start()
        try:
            yield report
        finally:
            timer.cancel()
            timer.join()  # it may be about to start
            if report.drawn.live.is_started:
                report.drawn.stop()
