"""Structure files -> ase.Atoms, with errors that say which frame, and checks of the geometry.

ASE reads extxyz lazily: it stops without a word at the first blank line, and a truncated frame surfaces as one of
several exceptions that name no frame. So an (ext)xyz file is scanned first, and the count is compared with what
ASE returns.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import IO

import numpy as np
import vesin
from ase import Atoms
from ase.data import chemical_symbols
from ase.db import connect
from ase.io import iread
from ase.io.formats import UnknownFileTypeError, filetype, open_with_compression

from descriptors import without_gaps
from mfgp.data.structure_warnings import disorder
from mfgp.data.transposed_cells import FEW, WAY_OUT, columns_warning, fits_transposed, transposed
from mfgp.errors import DataError

MIN_DISTANCE = 0.3  # Å; closer atoms are a mistake in the file, not physics
_SEARCH_CUTOFF = 1.5  # Å; of the pair search, which slows down when its cells are much smaller than an atom
_THINNEST_CELL = 1e-3  # Å; smallest singular value of the periodic lattice vectors
_COMPRESSED = (".gz", ".bz2", ".xz")
_SHOWN = 5


def read_structures(path: str | os.PathLike[str]) -> list[Atoms]:
    """All frames of a file that ASE can read, geometry checked, labels or none.

    Raises DataError, naming the file and the frame: missing, unreadable, empty or truncated file, blank lines between
    frames, unusable geometry. Warns of cells whose vectors may have been written as columns.
    """
    path = Path(path)
    frames = load(path)
    problems = [
        f"{path} frame {i} ({atoms.symbols}): {problem}"
        for i, atoms in enumerate(frames)
        for problem in geometry_problems(atoms)
    ]
    raise_problems(problems)
    if found := transposed(frames, min(FEW, len(frames))):
        warnings.warn(columns_warning(len(found), f"{path} frame {found[0]}"), stacklevel=2)
    return frames


def raise_problems(problems: list[str]) -> None:
    """DataError with the first few of `problems`; nothing when there are none."""
    if not problems:
        return
    if len(problems) == 1:
        raise DataError(f"{problems[0].rstrip('.')}.")
    lines = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    rest = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise DataError(f"{len(problems)} problems:{lines}{rest}")


def load(path: Path) -> list[Atoms]:
    """All frames of a file, unchecked geometry. Raises DataError as read_structures does."""
    if path.is_dir():
        raise DataError(f"{path} is a directory; name a structure file in it.")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file (a device or a pipe); name a file, which is read more than once.")
    if not path.exists():
        whole = path.with_name(path.name.partition("@")[0] or path.name)
        slices = " No frames are chosen by @: name the whole file." if "@" in path.name and whole.exists() else ""
        raise DataError(f"{path}: no such file; looked in {path.resolve().parent}.{slices}")
    try:
        if path.stat().st_size == 0 or _is_blank(path):
            raise DataError(f"{path} is empty; write at least one frame into it.")
        expected = scan_xyz(path) if _is_xyz(path) else None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); check the file and its permissions.") from error
    frames = _read_with_ase(path)
    if expected is not None and len(frames) != expected:
        raise DataError(f"{path}: {expected} frames in the file, but ASE read {len(frames)}; check its layout.")
    return frames


def _read_with_ase(path: Path) -> list[Atoms]:
    frames: list[Atoms] = []
    try:
        for atoms in _iread(path):
            frames.append(atoms)
    except UnknownFileTypeError as error:
        raise DataError(
            f"{path} is not a structure file that ASE knows ({_reason(error)}); extxyz is usual here, plain or compressed "
            f"({', '.join(_COMPRESSED)})."
        ) from error
    except Exception as error:  # ASE's readers raise anything from AssertionError to KeyError on damaged files
        way_out = "the frame is truncated or damaged: rewrite or remove it, or check that ASE knows the format"
        if isinstance(error, KeyError) and _is_xyz(path):
            way_out = "if that stands for an element, write its symbol alone (Fe for Fe1, Fe_pv or 26; H for D)"
        raise DataError(f"{path} frame {len(frames)} cannot be read ({_reason(error)}); {way_out}.") from error
    if not frames:
        raise DataError(f"{path} holds no frames; write at least one into it.")
    return frames


def _iread(path: Path) -> Iterator[Atoms]:
    """ASE's reader. It jumps back and forth in an xyz file, and a compressed one would be decompressed at every jump.

    By itself it takes a file with CONTCAR or OUTCAR anywhere in its name for VASP's, whatever its ending.
    """
    kind = "extxyz" if _is_xyz(path) else filetype(str(path))
    if kind in ("db", "json"):
        yield from _database(path, kind)
    elif kind == "extxyz" and path.suffix in _COMPRESSED:
        with open_with_compression(str(path), "rt") as file:
            text = StringIO(file.read())
        yield from iread(text, index=":", format="extxyz")
    else:
        for atoms in iread(path, index=":", format=kind, do_not_split_by_at_sign=True):
            if kind == "cif" and (said := disorder(atoms)):
                warnings.warn(f"{path} ({atoms.symbols}): {said}", stacklevel=2)
            yield atoms


def _database(path: Path, kind: str) -> Iterator[Atoms]:
    """Rows of an ASE database; info holds their key-value pairs and data, which ASE's own reader leaves behind."""
    kind = "aselmdb" if path.suffix == ".aselmdb" else kind
    opened = open_with_compression(str(path)) if kind == "json" else nullcontext(str(path))
    with opened as source, connect(source, type=kind, serial=True) as rows:
        for row in rows.select():
            atoms = row.toatoms()
            atoms.info = {**row.data, **row.key_value_pairs, **atoms.info}
            yield atoms


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_xyz(path: Path) -> bool:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
    return bool(suffixes) and suffixes[-1].lower() in (".xyz", ".extxyz")


def _is_blank(path: Path) -> bool:
    """Whether a (possibly compressed) file has nothing but white space in its first 4 kB and ends there."""
    with open_with_compression(str(path), "rb") as file:
        head = file.read(4096)
    return len(head) < 4096 and not head.strip()


def scan_xyz(path: Path) -> int:
    """Number of frames of an (ext)xyz file by its atom counts; DataError at the first header that is not one."""
    n_frames = 0
    with open_with_compression(str(path), "rt") as file:
        while line := file.readline():
            if line.lstrip().startswith("VEC") and n_frames:
                continue  # cell vectors after the atoms, an older dialect
            if not line.strip():
                _only_blank_lines_left(file, path, n_frames)
                break
            _scan_frame(file, line, path, n_frames)
            n_frames += 1
    return n_frames


def _scan_frame(file: IO[str], header: str, path: Path, frame: int) -> None:
    if header.startswith("\ufeff"):
        raise DataError(f"{path} begins with a byte order mark; save it as UTF-8 without one.")
    if not header.strip().isdigit():
        raise DataError(
            f"{path} frame {frame}: expected the number of atoms, found {header.strip()[:60]!r}; frame "
            f"{max(frame - 1, 0)} or {frame} is truncated or has a wrong atom count: rewrite or remove it."
        )
    expected = int(header) + 1
    for i in range(expected):
        if not file.readline().strip() and i > 0:  # the comment line may be blank
            raise DataError(
                f"{path} frame {frame}: {int(header)} atoms announced, {i - 1} found; the frame is truncated: "
                "rewrite or remove it."
            )


def _only_blank_lines_left(file: IO[str], path: Path, n_frames: int) -> None:
    for line in file:
        if line.strip():
            raise DataError(
                f"{path}: a blank line after frame {n_frames - 1}, more frames behind it would be ignored; "
                "remove the blank line."
            )


def geometry_problems(atoms: Atoms) -> list[str]:
    """What makes a geometry unusable: no atoms, non-finite positions, flat periodic cells, overlapping atoms."""
    if len(atoms) == 0:
        return ["no atoms; remove the frame"]
    if (atoms.numbers < 1).any():
        bad = np.flatnonzero(atoms.numbers < 1)
        return [f"atoms {bad.tolist()} have no chemical element (symbol X); name their elements"]
    if not np.isfinite(atoms.positions).all():
        bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        return [f"non-finite position of atoms {bad[:10].tolist()}; correct or remove the frame"]
    periodic = atoms.cell.array[atoms.pbc]  # [periodic direction, 3] Å
    if not np.isfinite(atoms.cell.array).all():
        return ["non-finite cell; correct or remove the frame"]
    sizes = np.linalg.svd(periodic, compute_uv=False)  # [periodic direction] Å
    if len(sizes) and sizes[-1] < _THINNEST_CELL:
        shortest = np.linalg.norm(periodic, axis=1).min()
        skewed = shortest >= MIN_DISTANCE and sizes.prod() >= MIN_DISTANCE ** len(sizes)
        what, way_out = (
            ("so skewed", "write it with shorter lattice vectors (ase.geometry.minkowski_reduce)")
            if skewed
            else ("of zero volume", "set the cell, or pbc=False for a molecule")
        )
        return [f"cell {what} {atoms.cell.array.round(3).tolist()} with pbc {atoms.pbc.tolist()}; {way_out}"]
    return _overlaps(atoms)


def _overlaps(atoms: Atoms) -> list[str]:
    pairs = vesin.NeighborList(cutoff=_SEARCH_CUTOFF, full_list=False, n_threads=1)
    first, second, distance = pairs.compute(*without_gaps(atoms, _SEARCH_CUTOFF), atoms.pbc, "ijd")
    if not len(distance) or distance.min() >= MIN_DISTANCE:
        return []
    k = int(np.argmin(distance))
    i, j = sorted((int(first[k]), int(second[k])))
    names = f"{i} ({chemical_symbols[atoms.numbers[i]]}) and {j} ({chemical_symbols[atoms.numbers[j]]})"
    image = " (its periodic image)" if i == j else ""
    columns = f" ({WAY_OUT})" if fits_transposed(atoms) else ""
    return [
        f"atoms {names}{image} are {distance[k]:.3f} Å apart, below {MIN_DISTANCE} Å; "
        f"correct the positions or the cell{columns}, or remove the frame"
    ]
