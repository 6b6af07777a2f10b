"""One calculation with an ASE calculator, and the hashes by which its structure is known: bit by bit, or as files round it.

Nothing here needs torch: processes that only calculate start quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed, PropertyNotImplementedError
from ase.geometry import find_mic
from numpy.typing import NDArray

Array = NDArray[np.float64]
MOVED = 1e-4  # Å; less is the rounding of a calculator's files
GRID, OFFSET = 1e-4, 0.3137  # Å, of it


@dataclass(frozen=True)
class SinglePoint:
    """What a calculator says of a structure: energy eV, forces [N, 3] eV/Å, stress [6] eV/Å^3 or None (ASE's sign)."""

    energy: float
    forces: Array
    stress: Array | None


def compute_labels(calculator: BaseCalculator, atoms: Atoms) -> SinglePoint:
    """Labels from one calculation: the free energy where the calculator has one, so that forces belong to it.

    Raises CalculationFailed where the calculator moved the atoms or changed the cell by more than MOVED.
    """
    asked = atoms.copy()
    has_free_energy = "free_energy" in calculator.implemented_properties
    energy = float(calculator.get_property("free_energy" if has_free_energy else "energy", atoms))
    forces = np.array(calculator.get_property("forces", atoms), dtype=np.float64)
    stress = None
    if atoms.cell.rank == 3 and atoms.pbc.any() and "stress" in calculator.implemented_properties:
        with contextlib.suppress(PropertyNotImplementedError):
            found = calculator.get_property("stress", atoms)
            stress = None if found is None else _voigt(np.array(found, dtype=np.float64))
    for after in (atoms, getattr(calculator, "atoms", None)):
        if isinstance(after, Atoms) and np.array_equal(after.numbers, asked.numbers):
            _check_in_place(asked, after)
    return SinglePoint(energy, forces, stress)


def _check_in_place(asked: Atoms, after: Atoms) -> None:
    """CalculationFailed for another geometry than the one asked for; atoms may go to a periodic image."""
    strain = float(np.abs(after.cell.array - asked.cell.array)[asked.pbc].max(initial=0.0))
    moved = after.positions - asked.positions
    if strain > MOVED or np.abs(moved).max(initial=0.0) > MOVED:
        shift = float(find_mic(moved, asked.cell, asked.pbc)[1].max())
        if max(strain, shift) > MOVED:
            what = f"moved the atoms by {shift:.2g} Å" if shift >= strain else f"changed the cell by {strain:.2g} Å"
            raise CalculationFailed(
                f"the calculator {what}: a relaxation, or dynamics? A label is of the structure that was asked for; "
                "ask for a single point (VASP: nsw: 0)"
            )


def structure_hash(atoms: Atoms) -> str:
    """sha256 (hex) of numbers, positions, cell and pbc."""
    digest = hashlib.sha256()
    for array in (atoms.numbers.astype("<i8"), atoms.pbc.astype("<i8")):
        digest.update(array.tobytes())
    for array in (atoms.positions, atoms.cell.array):
        digest.update((np.asarray(array, dtype="<f8") + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
    return digest.hexdigest()


def geometry(atoms: Atoms) -> str:
    """sha256 (hex, 16 digits), the same where lengths are the same to GRID, for atoms in any periodic image, in any box.

    Files round lengths, some codes move atoms into the cell, and vectors without periodicity say nothing. Grid and borders
    of the cell lie off the round numbers that positions in crystals are.
    """
    digest = hashlib.sha256(atoms.numbers.astype("<i8").tobytes() + atoms.pbc.astype("<i8").tobytes())
    images = np.floor(atoms.cell.scaled_positions(atoms.positions) + OFFSET) * atoms.pbc
    for lengths in (atoms.positions - images @ atoms.cell.complete().array, atoms.cell.array * atoms.pbc[:, None]):
        digest.update(np.floor(lengths / GRID + OFFSET).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _voigt(stress: Array) -> Array:
    """[6] or [3, 3] -> [6] in ASE's Voigt order."""
    if stress.shape == (6,):
        return stress
    full = 0.5 * (stress.reshape(3, 3) + stress.reshape(3, 3).T)
    return full[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
