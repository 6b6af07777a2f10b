"""Which calculation comes next, at which level, and what a budget would buy."""

from mfgp.selection.greedy import Selection, select
from mfgp.selection.plan import plan

__all__ = ["Selection", "plan", "select"]
