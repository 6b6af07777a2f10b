"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfgp.base.extxyz_limits import writable
from mfgp.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
OTHERS = (".traj", ".json", ".db", ".cif", ".vasp", ".pdb", ".h5", ".nc", ".yaml")  # names that would belie an extxyz


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    What a link points at is replaced, and the link stays. DataError for devices and pipes, which nothing can replace.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is no file (a device or a pipe); name a file to write.")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_extxyz(path: str | Path) -> None:
    """DataError for a name that belongs to another format than extxyz."""
    suffix = Path(path).suffix.lower()
    if suffix in OTHERS:
        raise DataError(f"{path}: what is written is extxyz, not {suffix}; name the file *.extxyz (or .extxyz.gz).")


def write_extxyz(path: str | Path, frames: Sequence[Atoms]) -> None:
    """Write structures as extxyz, compressed where the name ends so; a file there is replaced only by a complete one.

    Warns of what extxyz cannot carry, which is left out.
    """
    from ase.io import write

    check_extxyz(path)
    written = []
    left_out: Counter[str] = Counter()
    for atoms in frames:
        one, names = writable(atoms)
        written.append(one)
        left_out.update(names)
    if left_out:
        counts = ", ".join(f"{name!r} of {count} structures" for name, count in left_out.items())
        warnings.warn(f"{path}: extxyz cannot carry {counts}: left out", stacklevel=2)
    opener = OPENERS.get(Path(path).suffix.lower(), open)
    with replacing(path) as temporary, opener(temporary, "wt", encoding="utf-8") as file:
        write(file, written, format="extxyz")
