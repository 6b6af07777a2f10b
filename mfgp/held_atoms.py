"""Atoms whose forces a constraint has set to zero: no labels.

`atoms.get_forces()` applies FixAtoms and its like, and so do programs that write structures of a relaxation: forces on the
fixed atoms of a slab are exactly zero then, whatever acts on them. A force is zero by symmetry only where the surroundings
have no direction, that is where for every element

    d_i = sum_j w(r_ij) r_ij / |r_ij|  =  0,        w = (1 - (r / r_0)^2)^2,  r_0 = twice the sum of both covalent radii

(sums over neighbours j of that element within r_0). An atom is taken as held where its force is exactly zero in x, y and z
and d_i is not, or where the constraints of the structure fix components that are exactly zero and whose d_i is not.
"""

from __future__ import annotations

import numpy as np
import vesin
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from ase.data import covalent_radii
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FIXING = (FixAtoms, FixCartesian, FixScaled, FixedPlane, FixedLine)
REACH = 2.0  # r_0 over the sum of the covalent radii
LOPSIDED = (
    1e-3  # |d_i| over the sum of its weights, from which on surroundings have a direction: displacements of 0.005 Å
)


def held_atoms(atoms: Atoms, forces: Array) -> Mask:
    """Whether the force [N, 3] on each atom is one that a constraint has set to zero, [N]."""
    zero = forces == 0.0
    candidates = zero & (zero.all(axis=1)[:, None] | _fixed(atoms))  # [N, 3]
    if not candidates.any():
        return np.zeros(len(atoms), dtype=bool)
    return (candidates & (np.abs(directions(atoms)) > LOPSIDED)).any(axis=1)


def _fixed(atoms: Atoms) -> Mask:
    """Components of forces that the constraints of a structure set to zero, [N, 3]."""
    trial = np.linspace(1.0, 2.0, 3 * len(atoms)).reshape(-1, 3)
    for constraint in atoms.constraints:
        if isinstance(constraint, FIXING):
            constraint.adjust_forces(atoms, trial)
    return np.abs(trial) < 1e-9


def directions(atoms: Atoms) -> Array:
    """d_i over the sum of w, [N, 3], of the element that makes it longest; zero for atoms without neighbours."""
    radii = covalent_radii[atoms.numbers]
    cell = atoms.cell.complete().array if atoms.pbc.any() else np.eye(3)
    search = vesin.NeighborList(cutoff=REACH * 2.0 * float(radii.max()), full_list=True, n_threads=1)
    i, j, r, vectors = search.compute(atoms.positions.astype(np.float64), cell, atoms.pbc, "ijdD")
    usual = radii[i] + radii[j]  # [pair] Å
    weight = (1.0 - np.minimum(r / (REACH * usual), 1.0) ** 2) ** 2
    total = np.maximum(np.bincount(i, weight, minlength=len(atoms)), 1e-12)
    longest = np.zeros((len(atoms), 3))
    for number in np.unique(atoms.numbers):
        own = atoms.numbers[j] == number
        sums = np.zeros((len(atoms), 3))
        np.add.at(sums, i[own], (weight[own] / r[own])[:, None] * vectors[own])
        sums = sums / total[:, None]
        longer = np.linalg.norm(sums, axis=1) > np.linalg.norm(longest, axis=1)
        longest[longer] = sums[longer]
    return longest
