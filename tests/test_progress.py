"""Progress where nobody looks at a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mfgp.base import progress
from mfgp.base.progress import bars


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
    with bars(False, Console(file=out)) as report:
        report("labels", 1, 1)
    assert not out.getvalue()
