"""Lengths in another unit, transposed cells: nearest neighbours against covalent radii.

With d_i the distance from atom i to its nearest neighbour j, and r the covalent radii (Cordero et al., Dalton Trans. 2008,
2832), d_i / (r_i + r_j) is near 1 in molecules, ionic crystals and metals. Lengths that were left in Bohr make it 1.9,
those in Å that were converted once too often 0.53. Noble gases have no bonds and are left out.

Of cells that were given transposed `mfgp.data.transposed_cells` says what it goes by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from mfgp.data.transposed_cells import WAY_OUT, transposed
from mfgp.doctor.report import Array, Finding, about, examples
from mfgp.frames import Frame

_CUTOFF = 6.0  # Å; of the search
_FRAMES = 20  # of a level are looked at
_SHORT, _LONG = 0.65, 1.55
_NOBLE = (2, 10, 18, 36, 54, 86)


def length_checks(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Whether nearest neighbours are as far from each other as bonds are."""
    several = [f for f in frames if len(f.atoms) > 1]
    chosen = several[:: max(1, len(several) // _FRAMES)]
    found = [(f, float(np.median(ratios))) for f in chosen if len(ratios := bond_ratios(f.atoms))]
    if not found:
        return []
    ratio = float(np.median([r for _, r in found]))
    if _SHORT < ratio < _LONG:
        return []
    factor = f"multiply positions and cells by {units.Bohr:.6f}" if ratio > 1 else f"divide them by {units.Bohr:.6f}"
    message = (
        f"fidelity {level!r}: nearest neighbours are {ratio:.2f} times as far from each other as covalent radii say "
    )
    message += (
        f"({len(found)} frames looked at, {examples([f for f, _ in found])}): are the lengths in Å? If they were "
    )
    message += f"left in Bohr, or converted twice, {factor}."
    return [about("warning", "units", message, [f for f, _ in found])]


def cell_checks(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Whether atoms come too close to each other in the given cells, and would not in the transposed ones."""
    found = [frames[i] for i in transposed([f.atoms for f in frames])]
    if not found:
        return []
    message = (
        f"fidelity {level!r}: atoms of {len(found)} of {len(frames)} frames are closer to each other than bonds are "
        f"in the given cell and would not be in the transposed one, {examples(found, 3)}; {WAY_OUT}, with the same "
        "positions. Other frames of the same origin may be wrong, too: small cells do not tell."
    )
    return [about("error", "cells", message, found)]


def bond_ratios(atoms: Atoms) -> Array:
    """d / (r_i + r_j) of every atom with its nearest neighbour within 6 Å, [atom]; without noble gases."""
    i, j, d = neighbor_list("ijd", atoms, _CUTOFF)
    used = ~np.isin(atoms.numbers, _NOBLE)
    nearest = np.full(len(atoms), np.inf)
    np.minimum.at(nearest, i, d / (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]]))
    return nearest[used & np.isfinite(nearest)]
