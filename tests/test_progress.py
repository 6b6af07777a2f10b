"""Progress where nobody looks at a terminal."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import alloy
from rich.console import Console

from mfgp import MultiFidelityGP
from mfgp.base import progress
from mfgp.base.progress import bars, late_bars
from mfgp.predict import batched


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0, 64.5, 100.0, 101.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with bars(console=Console(file=out)) as report:
        for done in (1, 2, 3, 4, 5, 6):
            report("labels", done, 6)
        report("evidence", 1, 2)  # done in a second
        report("evidence", 2, 2)
    assert out.getvalue().splitlines() == ["labels: 3 of 6, 31 s", "labels: 5 of 6, 62 s", "labels: 6 of 6, 64 s"]


def test_a_stage_that_comes_again_starts_anew_and_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 100.0, 105.0, 110.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with bars(console=Console(file=out)) as report:
        for done in (1, 2, 1, 2, 2, 2):
            report("rows", done, 2)
    assert out.getvalue().splitlines() == ["rows: 2 of 2, 5 s"]


def test_nothing_where_it_is_not_wanted() -> None:
    out = io.StringIO()
    for some in (bars, late_bars):
        with some(False, Console(file=out)) as report:
            report("labels", 1, 1)
    assert not out.getvalue()


def test_short_calls_draw_nothing_and_longer_ones_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(while_it_runs: Callable[[io.StringIO], None]) -> str:
        out = io.StringIO()
        with late_bars(console=Console(file=out, force_terminal=True, width=120)) as report:
            report("prediction", 1, 5, "high")
            while_it_runs(out)
        return out.getvalue()

    def until_drawn(out: io.StringIO) -> None:
        end = time.monotonic() + 20.0
        while "prediction" not in out.getvalue() and time.monotonic() < end:  # nothing more is reported
            time.sleep(0.01)

    assert not drawn(lambda out: None)
    monkeypatch.setattr(progress, "SHORT", 0.02)
    text = drawn(until_drawn)
    assert "prediction" in text
    assert "1/5" in text
    assert text.endswith("\x1b[1A\x1b[2K")  # the line is cleared


def test_a_log_gets_lines_of_long_calls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0, 0.0, 31.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    for times in (2, 3):
        with late_bars(console=Console(file=out)) as report:
            for done in range(times):
                report("prediction", done + 1, times)
    assert out.getvalue().splitlines() == ["prediction: 2 of 3, 31 s"]


@pytest.mark.parametrize("many", [True, False])
def test_predictions_report(many: bool, model: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []

    @contextmanager
    def recorded(enabled: bool) -> Iterator[progress.Report]:
        yield lambda stage, done, total, note="": told.append((stage, done, total)) if enabled else None

    monkeypatch.setattr(batched, "late_bars", recorded)
    model.predict(alloy(1))  # quick in any case
    assert not told
    monkeypatch.setattr(batched, "QUICK_ATOMS", 0)
    for enabled in (False, True):
        model.predict([alloy(1), alloy(2)] if many else alloy(1), uncertainty="energies", progress=enabled)
    assert told == [("prediction", k, 2) for k in range(3)] if many else [("prediction", 0, 1)]
