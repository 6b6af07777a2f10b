"""Structures as JSON text: exact (a float64 is written so that it reads back bit by bit), readable, no pickle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from ase import Atoms


def structure_record(atoms: Atoms) -> str:
    """Geometry, initial moments and info as JSON; labels and calculators are not part of a structure."""
    record: dict[str, Any] = {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        "info": {str(k): plain(v) for k, v in atoms.info.items()},
    }
    if atoms.has("initial_magmoms"):
        record["magmoms"] = atoms.get_initial_magnetic_moments().tolist()
    return json.dumps(record)


def structure_of(text: str) -> Atoms:
    """The Atoms of `structure_record`."""
    r = json.loads(text)
    atoms = Atoms(r["numbers"], positions=r["positions"], cell=r["cell"], pbc=r["pbc"], info=r["info"])
    if "magmoms" in r:
        atoms.set_initial_magnetic_moments(r["magmoms"])
    return atoms


def plain(value: Any) -> Any:
    """A value of `info` as JSON knows it; what JSON does not know becomes its text."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
