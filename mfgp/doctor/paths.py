"""Check of forces against energies, where frames are steps of a trajectory.

From one frame to the next of a run (trajectories.runs) in the same cell the energy changes by the work of the forces,

    E_b - E_a = -1/2 (F_a + F_b) . (r_b - r_a) + O(|r_b - r_a|^3)

so that the slope of the left side over the right one is 1, or -1 for forces of the other sign, or the unit of the energies
over that of the forces. The slope is the weighted median of the ratios (weights: the work), which a few wrong labels or
jumps between electronic states do not move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from ase.geometry import find_mic

from mfgp.base.units import FORCE_UNITS
from mfgp.data.trajectories import runs
from mfgp.doctor.report import Array, Finding, about, examples
from mfgp.frames import Frame

_STEP = 0.15  # Å, of the atom that moves most: farther, the cubic term is no smaller than the rest
_STILL = 1e-5  # Å
_STEPS = 10  # that say something
_AGREE = 0.8  # share of the work whose energies have the sign of the slope


def path_checks(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Sign and unit of the forces by the energies of frames that follow closely upon each other; nothing without them."""
    found = list(_steps([f for f in frames if not f.isolated_atom]))
    if len(found) < _STEPS:
        return []
    work, change = (np.array([step[k] for step in found]) for k in (0, 1))  # [step] eV
    slope = _slope(work, change)
    if np.abs(work[change * work * slope > 0]).sum() < _AGREE * np.abs(work).sum():
        return []
    if 0.75 < slope < 1.33:
        message = f"fidelity {level!r}: the forces agree with the energies of {len(found)} steps of trajectories "
        return [about("info", "force sign", message + f"(slope {slope:.2f}).")]
    out = list({id(f): f for step in found for f in step[2:]}.values())
    message = (
        f"fidelity {level!r}: over {len(found)} steps of trajectories the energy changes by {slope:.3g} times the work "
    )
    message += f"of the forces, {examples(out)}"
    unit = next((f"; they look like {name}" for size, name in FORCE_UNITS.items() if 0.9 < abs(slope) / size < 1.1), "")
    sign = "; their sign is that of the gradient: negate them" if slope < 0 else ""
    if not (unit or sign):
        message += "; the forces are not the derivative of these energies (another level or unit?)"
    return [about("error", "force sign", f"{message}{unit}{sign}. Forces are -dE/dr in eV/Å, energies in eV.", out)]


def _steps(frames: Sequence[Frame]) -> Iterator[tuple[float, float, Frame, Frame]]:
    """Work and change of the energy, eV, of steps with complete labels, and their frames."""
    for run in runs(frames):
        for a, b in pairwise(run):
            if a.energy is None or b.energy is None or not (a.force_mask.all() and b.force_mask.all()):
                continue
            if (a.atoms.pbc != b.atoms.pbc).any() or np.abs(a.atoms.cell.array - b.atoms.cell.array).max() > 1e-6:
                continue
            moved, _ = find_mic(b.atoms.positions - a.atoms.positions, a.atoms.cell, a.atoms.pbc)
            if _STILL < np.linalg.norm(moved, axis=1).max() < _STEP:
                assert a.forces is not None
                assert b.forces is not None
                yield -0.5 * float(((a.forces + b.forces) * moved).sum()), b.energy - a.energy, a, b


def _slope(work: Array, change: Array) -> float:
    """Weighted median of change over work; weights |work|."""
    told = np.abs(work) > 1e-9
    ratio, weight = change[told] / work[told], np.abs(work[told])
    order = np.argsort(ratio)
    middle = np.searchsorted(np.cumsum(weight[order]), 0.5 * weight.sum())
    return float(ratio[order][min(int(middle), len(order) - 1)]) if len(order) else 1.0
