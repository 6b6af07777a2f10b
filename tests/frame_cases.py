"""Structures with labels that tests of reading change, and what they ask of an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from mfgp.errors import DataError
from mfgp.frames import read_frames

LMFP = Path(__file__).parent.parent / "examples" / "lmfp"
FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]  # eV/Å


def dimer(distance: float = 1.0, **info: object) -> Atoms:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, distance]])
    atoms.info.update({"REF_energy": -10.0 - distance, **info})
    atoms.set_array("REF_forces", np.array(FORCES))
    return atoms


def crystal(**info: object) -> Atoms:
    atoms = Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0.1]], cell=[3.6, 3.7, 3.8], pbc=True)
    atoms.info.update({"REF_energy": -7.0, **info})
    return atoms


def altered(change: Callable[[Atoms], object], atoms: Atoms | None = None) -> Atoms:
    atoms = dimer() if atoms is None else atoms
    change(atoms)
    return atoms


def error_of(sources: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_frames(sources, **options)  # type: ignore[arg-type]
    return str(caught.value)


def contains(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"
