"""One calculation with an ASE calculator, and the hash by which its structure is known.

Nothing here needs torch: processes that only calculate start quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SinglePoint:
    """What a calculator says of a structure: energy eV, forces [N, 3] eV/Å, stress [6] eV/Å^3 or None (ASE's sign)."""

    energy: float
    forces: Array
    stress: Array | None


def compute_labels(calculator: BaseCalculator, atoms: Atoms) -> SinglePoint:
    """Labels from one calculation: the free energy where the calculator has one, so that forces belong to it."""
    has_free_energy = "free_energy" in calculator.implemented_properties
    energy = float(calculator.get_property("free_energy" if has_free_energy else "energy", atoms))
    forces = np.array(calculator.get_property("forces", atoms), dtype=np.float64)
    stress = None
    if atoms.cell.rank == 3 and atoms.pbc.any() and "stress" in calculator.implemented_properties:
        with contextlib.suppress(PropertyNotImplementedError):
            stress = _voigt(np.array(calculator.get_property("stress", atoms), dtype=np.float64))
    return SinglePoint(energy, forces, stress)


def structure_hash(atoms: Atoms) -> str:
    """sha256 (hex) of numbers, positions, cell and pbc."""
    digest = hashlib.sha256()
    for array in (atoms.numbers.astype("<i8"), atoms.pbc.astype("<i8")):
        digest.update(array.tobytes())
    for array in (atoms.positions, atoms.cell.array):
        digest.update((np.asarray(array, dtype="<f8") + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
    return digest.hexdigest()


def _voigt(stress: Array) -> Array:
    """[6] or [3, 3] -> [6] in ASE's Voigt order."""
    if stress.shape == (6,):
        return stress
    full = 0.5 * (stress.reshape(3, 3) + stress.reshape(3, 3).T)
    return full[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
