"""Compilation of loops over numbers by numba, once for a machine.

`compiled` is numba.njit with the machine code kept on disk, beside the file or, where that folder cannot be written, in the
user's cache folder (or in NUMBA_CACHE_DIR); where neither can be, every process compiles anew. Products and sums may be
contracted to fused ones; nothing else is relaxed, so not-a-numbers stay what they are, and results do not depend on the
run. Python's lock is released meanwhile, so that threads run beside each other.

numba looks at the file of a function alone to see whether its code on disk is the newest, not at those of the functions that
it calls. So the mark that it compares holds the content of this whole package too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

njit: Any = numba.njit  # its declared types leave some options out
SOURCES = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, compiled when it is first called with arguments of a type."""
    return _kept(function)


def lean(function: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled` for a function that makes no array: it counts no references, which costs time in short loops."""
    return _kept(function, _nrt=False)


def _kept(function: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    try:
        out = njit(cache=True, **OPTIONS, **more)(function)
    except RuntimeError:  # no folder for the cache
        return njit(**OPTIONS, **more)(function)
    index: Any = getattr(getattr(out, "_cache", None), "_cache_file", None)
    if not hasattr(index, "_source_stamp"):  # another numba than is known here: rather slow than stale
        return njit(**OPTIONS, **more)(function)
    index._source_stamp = (*index._source_stamp, SOURCES)
    return out
