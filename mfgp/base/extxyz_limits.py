"""What extxyz does not carry: entries of a structure that ASE writes so that the file cannot be read again.

A comment line of key=value pairs has no place for line breaks, nor for values that ASE's reader takes for other pairs (an
empty text, an array without numbers, a backslash before the closing quote); columns have none for words that are empty or
have spaces in them, for numbers of three indices, complex ones, or names with spaces. A stress or virial is a matrix of
3x3. ASE writes most of these without an error.
"""

from __future__ import annotations

import re
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

_OF_THE_FORMAT = ("Lattice", "Properties")
_MATRICES = {"stress": ((3, 3), (6,)), "virial": ((3, 3),)}  # shapes that ASE reads of these keys
_END = "end_of_line"


def writable(atoms: Atoms) -> tuple[Atoms, list[str]]:
    """The structure, or a copy with its calculator and without what extxyz cannot carry; the names of that."""
    info = [key for key, value in atoms.info.items() if not _fits_comment(key, value)]
    arrays = [name for name, values in atoms.arrays.items() if not _fits_columns(name, values)]
    if not info and not arrays:
        return atoms, []
    out = atoms.copy()
    out.calc = atoms.calc
    for key in info:
        del out.info[key]
    for name in arrays:
        del out.arrays[name]
    return out, [str(key) for key in (*info, *arrays)]


def _fits_comment(key: Any, value: Any) -> bool:
    """Whether ASE reads the pair back as one, with something behind it."""
    if not isinstance(key, str) or not key or key in _OF_THE_FORMAT:
        return False
    array = isinstance(value, np.ndarray) and value.size and value.dtype.kind in "biuf"
    known = _MATRICES.get(key)
    if key.isidentifier() and (isinstance(value, Real) or array) and (known is None or np.shape(value) in known):
        return True
    from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

    try:
        text = key_val_dict_to_str({key: value})
        if not text:
            return True  # ASE warns that it leaves the value out
        return not re.search(r"[\n\r]", text) and set(key_val_str_to_dict(f"{text} {_END}=1")) == {key, _END}
    except (TypeError, ValueError, IndexError):
        return False


def _fits_columns(name: str, values: np.ndarray) -> bool:
    """Whether an array is columns of numbers, of truth values or of words; `symbols` are read as elements."""
    if re.search(r"[\s:=\"']", name) or name in ("", "symbols") or values.ndim > 2 or 0 in values.shape[1:]:
        return False
    if values.dtype.kind in "SUO":
        return all(str(word).split() == [str(word)] for word in values.flat)
    return values.dtype.kind in "bif"
