"""Which calculation comes next, at which level, and what a budget would buy."""

from mfgp.selection.greedy import Selection, select

__all__ = ["Selection", "select"]
