"""Raw labels -> numbers of a known shape and unit, or what is wrong with them.

    virial = -V * stress        eV; stress in eV/Å^3 with ASE's sign and Voigt order (xx yy zz yz xz xy)

Functions here do not raise on bad labels: they describe each problem in a list, so that a reader can report several at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mfgp.data.held_atoms import FIXING, removed

Array = NDArray[np.float64]
ROUNDED, SHARE = 2e-3, 0.05  # eV/Å, and of the rms force: the same forces, rounded or with a drift taken off


def _numbers(label: str, raw: Any, problems: list[str]) -> Array | None:
    """Raw label as float64 array; text and booleans are problems, not numbers."""
    array = np.asarray(raw)
    if array.dtype.kind in "iuf":
        return array.astype(np.float64)
    problems.append(f"{label} is {str(raw)[:40]!r} ({type(raw).__name__}), not numbers; correct the file or the key")
    return None


def scalar(label: str, raw: Any, problems: list[str]) -> float | None:
    array = None if raw is None else _numbers(label, raw, problems)
    if array is None:
        return None
    if array.size != 1:
        comma = " (a decimal comma is read as two numbers: write a point)" if array.shape == (2,) else ""
        problems.append(f"{label} has shape {array.shape}, expected one number{comma}; correct the file or the key")
        return None
    value = float(array.reshape(()))
    if not np.isfinite(value):
        problems.append(f"{_kind(array)} {label}; remove the frame or the label")
        return None
    return value


def sigma(label: str, atoms: Atoms, problems: list[str]) -> float | None:
    raw = atoms.info.get(label)
    if label in atoms.arrays or np.size(0.0 if raw is None else raw) > 1:
        problems.append(
            f"{label} is given for each atom; it is one number of a frame (info[{label!r}]). Leave single forces out with "
            "force_mask=0, or remove it"
        )
        return None
    value = scalar(label, raw, problems)
    if value is not None and value <= 0:
        problems.append(f"{label} = {value:g}, must be positive; correct or remove it")
        return None
    return value


def force_mask(atoms: Atoms, problems: list[str]) -> NDArray[np.bool_]:
    """force_mask [N]: 1 = use the force of this atom, 0 = ignore it; all ones when absent."""
    everything = np.ones(len(atoms), dtype=bool)
    raw = atoms.arrays.get("force_mask", atoms.info.get("force_mask"))
    if raw is None:
        return everything
    array = np.asarray(raw)
    if array.shape != (len(atoms),) or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        problems.append(
            f"force_mask has shape {array.shape} and type {array.dtype}, expected one 0 or 1 for each of "
            f"{len(atoms)} atoms; correct or remove it"
        )
        return everything
    return array.astype(bool)


def forces(raw: Any, mask: NDArray[np.bool_], problems: list[str]) -> Array | None:
    array = None if raw is None else _numbers("forces", raw, problems)
    if array is None:
        return None
    if array.shape != (len(mask), 3):
        problems.append(f"forces have shape {array.shape}, expected ({len(mask)}, 3); correct the file or the key")
        return None
    bad = np.flatnonzero(mask & ~np.isfinite(array).all(axis=1))
    if bad.size:
        problems.append(
            f"{_kind(array[bad])} force on atoms {_some(bad)}; remove the frame, or mask those atoms with force_mask=0"
        )
        return None
    return array


def other_forces(atoms: Atoms, raw: Any, of_calculator: Any) -> bool:
    """Whether forces differ by more than rounding from those of a calculator, as they are or under the constraints of
    `atoms`. Components that are exactly zero or masked say nothing: constraints that a file has lost had set them so.
    """
    first, second = (_numbers("forces", value, []) for value in (raw, of_calculator))
    if first is None or second is None or not first.shape == second.shape == (len(atoms), 3):
        return False
    compared = force_mask(atoms, [])[:, None] & np.isfinite(first) & (first != 0.0)
    if not compared.any():
        return False
    size = float(np.sqrt(np.mean(first[compared] ** 2)))

    def differ(of_the_calculator: Array) -> bool:
        difference = np.where(compared, first - of_the_calculator, 0.0)
        difference -= difference.sum(0) / np.maximum(compared.sum(0), 1)  # a drift
        return float(np.sqrt(np.mean(difference[compared] ** 2))) > ROUNDED + SHARE * size

    if not differ(second):
        return False
    for constraint in atoms.copy().constraints:  # a copy: they keep what they have adjusted
        if isinstance(constraint, FIXING):
            second = second - np.nan_to_num(removed(constraint, atoms, second))
    return differ(second)


def other_energy(atoms: Atoms, raw: Any, of_calculator: Any) -> bool:
    """Whether an energy differs from that of a calculator by more than rounding and conversion of units."""
    first, second = (scalar("energy", value, []) for value in (raw, of_calculator))
    if first is None or second is None:
        return False
    return abs(first - second) > 1e-4 * len(atoms) + 1e-6 * abs(first)  # eV


def magmoms(raw: Any, n: int, problems: list[str]) -> Array | None:
    """Collinear moments [N]; those of a non-collinear calculation [N, 3] are not used."""
    array = None if raw is None else _numbers("magmoms", raw, problems)
    if array is None or array.shape == (n, 3):
        return None
    if array.shape != (n,):
        problems.append(f"magmoms have shape {array.shape}, expected ({n},); correct the file or the key")
        return None
    if not np.isfinite(array).all():
        problems.append(f"{_kind(array)} magmoms; remove the frame or the label")
        return None
    return array


def stress(raw_stress: Any, raw_virial: Any, atoms: Atoms, problems: list[str]) -> Array | None:
    """Stress [6] eV/Å^3 from a stress or from a virial; both may be given when they agree; None in a box that is
    not periodic."""
    if raw_stress is None and raw_virial is None:
        return None
    volume = abs(float(np.linalg.det(atoms.cell.array)))  # Å^3
    if not volume > 0:
        problems.append("stress or virial given, but the cell has no volume; remove that label, or set the cell")
        return None
    if not atoms.pbc.any():  # a box around a molecule, which nothing in it feels
        return None
    stress = None if raw_stress is None else _voigt("stress", raw_stress, problems)
    virial = None if raw_virial is None else _voigt("virial", raw_virial, problems)
    if virial is None:
        return stress
    from_virial = -virial / volume
    if stress is not None and np.abs(stress - from_virial).max() > 1e-6 + 1e-3 * np.abs(stress).max():
        problems.append(
            f"stress and virial disagree: stress xx {stress[0]:.4g}, -virial/V xx {from_virial[0]:.4g} eV/Å^3 "
            "(virial = -V * stress); keep the one that is right"
        )
        return None
    return from_virial if stress is None else stress


def _voigt(label: str, raw: Any, problems: list[str]) -> Array | None:
    """3x3, 9 or 6 (xx yy zz yz xz xy) numbers -> [6]."""
    array = _numbers(label, raw, problems)
    if array is None:
        return None
    if array.shape not in ((6,), (9,), (3, 3)):
        problems.append(f"{label} has shape {array.shape}, expected 6, 9 or 3x3 numbers; correct the file or the key")
        return None
    if not np.isfinite(array).all():
        problems.append(f"{_kind(array)} {label}; remove the frame or the label")
        return None
    if array.shape == (6,):
        return array
    full = array.reshape(3, 3)  # symmetric, so row or column order does not matter
    if np.abs(full - full.T).max() > 1e-6 + 1e-2 * np.abs(full).max():
        problems.append(f"{label} is not symmetric: {np.array2string(full.ravel(), precision=4)}; correct the file")
        return None
    return (0.5 * (full + full.T))[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]


def _kind(array: Array) -> str:
    return "NaN" if np.isnan(array).any() else "infinite"


def _some(indices: NDArray[np.intp]) -> str:
    """First ten indices as text: '[3, 7]', '[0, 1, ..] (28 atoms)'."""
    shown = ", ".join(str(int(i)) for i in indices[:10])
    return f"[{shown}]" if len(indices) <= 10 else f"[{shown}, ..] ({len(indices)} atoms)"
