"""Compilation of loops over numbers by numba, once for a machine.

`compiled` is numba.njit with the machine code kept on disk, beside this file or, where that folder cannot be written, in the
user's cache folder (or in NUMBA_CACHE_DIR); where neither can be, every process compiles anew. Products and sums may be
contracted to fused ones; nothing else is relaxed, so not-a-numbers stay what they are, and results do not depend on the
run. Python's lock is released meanwhile, so that threads run beside each other.

numba looks at the file of a kernel alone to see whether its code on disk is the newest: who edits a function that kernels
of another file call, empties `__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, compiled when it is first called with arguments of a type."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(**OPTIONS)(function)
