"""What a method is given and gives back, and the errors that are reported of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mfgp import FrameSet
from mfgp.frames import Frame

# Bohr magnetons: middle of the gap between the two charge states among the training labels
# (Fe2+ 3.70 - 3.80, Fe3+ 4.35 - 4.45; Mn3+ 3.80 - 4.00, Mn2+ 4.55 - 4.65)
THRESHOLDS = {"Fe": 4.1, "Mn": 4.3}


@dataclass(frozen=True)
class Task:
    """Training frames of all levels, of the highest the first n of an order; held-out frames; the order's seed."""

    training: FrameSet
    held_out: Sequence[Frame]
    n: int
    order: int

    @property
    def top(self) -> str:
        """Name of the highest level."""
        return self.training.levels[-1]


@dataclass(frozen=True)
class Predicted:
    """Energies (eV a cell), forces (eV/Å) and moments (Bohr magnetons) of the held-out frames; what the training took.

    cpu_seconds: everything from the labels to a model that predicts. coverage: shares of energies and force components
    inside the 95 % interval, of methods that have one. note: settings and what was learned.
    """

    energies: np.ndarray
    forces: Sequence[np.ndarray]
    magmoms: Sequence[np.ndarray] | None
    cpu_seconds: float
    coverage: dict[str, float] | None = None
    note: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Task], Predicted]


def scores(found: Predicted, held_out: Sequence[Frame]) -> dict[str, Any]:
    """Mean absolute errors in eV/atom, eV/Å and Bohr magnetons, forces and moments by element too."""
    sizes = np.array([len(f.atoms) for f in held_out])
    energy = np.abs(found.energies - [f.energy for f in held_out]) / sizes
    force = np.abs(np.concatenate([a - f.forces for a, f in zip(found.forces, held_out, strict=True)]))  # [atom, 3]
    numbers = np.concatenate([f.atoms.numbers for f in held_out])
    out: dict[str, Any] = {
        "energy_mae": float(energy.mean()),
        "energy_rmse": float(np.sqrt((energy**2).mean())),
        "force_mae": float(force.mean()),
        "force_rmse": float(np.sqrt((force**2).mean())),
        "force_mae_by_element": {chemical_symbols[z]: float(force[numbers == z].mean()) for z in np.unique(numbers)},
        "cpu_seconds": found.cpu_seconds,
        "coverage95": found.coverage,
        "note": found.note,
    }
    if found.magmoms is not None:
        out["moments"] = moment_scores(found.magmoms, held_out)
    return out


def moment_scores(magmoms: Sequence[np.ndarray], held_out: Sequence[Frame]) -> dict[str, Any]:
    """Error of the moments, overall and of the metals; share of the metals whose charge state is read right, among cells
    that have lost lithium (`right`) with the number of sites, and of the rarer state of the element there."""
    pairs = [(m, f) for m, f in zip(magmoms, held_out, strict=True) if f.magmoms is not None]
    found, label = np.concatenate([m for m, _ in pairs]), np.concatenate([f.magmoms for _, f in pairs])
    numbers = np.concatenate([f.atoms.numbers for _, f in pairs])
    full = np.concatenate([np.full(len(f.atoms), _lithiated(f)) for _, f in pairs])
    known = np.isfinite(found)
    out: dict[str, Any] = {"mae": float(np.abs(found - label)[known].mean()), "n": int(known.sum())}
    for symbol, threshold in THRESHOLDS.items():
        own = known & (numbers == chemical_symbols.index(symbol))
        sites = own & ~full
        right = (found > threshold) == (label > threshold)
        lower = sites & (label < threshold)
        out[symbol] = {
            "mae": float(np.abs(found - label)[own].mean()),
            "n": int(own.sum()),
            "delithiated": {"right": int(right[sites].sum()), "sites": int(sites.sum())},
            "low_moment": {"right": int(right[lower].sum()), "sites": int(lower.sum())},
        }
    return out


def _lithiated(frame: Frame) -> bool:
    """Whether every metal has its lithium."""
    numbers = frame.atoms.numbers
    return int((numbers == 3).sum()) == int(np.isin(numbers, (25, 26)).sum())
