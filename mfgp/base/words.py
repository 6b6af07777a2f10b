"""Counts in sentences."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """'1 frame', '3 frames'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
