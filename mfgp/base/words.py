"""Counts, ends and names in sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(n: int, noun: str) -> str:
    """'1 frame', '3 frames'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def sentence(text: object) -> str:
    """With a full stop at its end, unless it ends with a mark of its own."""
    out = str(text).rstrip()
    return out if out.endswith((".", "?", "!")) else f"{out}."


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean 'zbl'?' of the known name that is nearly this one, '.' where there is none."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
