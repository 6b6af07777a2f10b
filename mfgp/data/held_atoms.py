"""Atoms whose forces a constraint has set to zero, or projected: no labels.

`atoms.get_forces()` applies FixAtoms and its like, and so do programs that write structures of a relaxation: forces on the
fixed atoms of a slab are exactly zero then, whatever acts on them. A force is zero by symmetry only where the surroundings
have no direction, that is where for every element

    d_i = sum_j w(r_ij) r_ij / |r_ij|  =  0,        w = (1 - (r / r_0)^2)^2,  r_0 = twice the sum of both covalent radii

(sums over neighbours j of that element within r_0). An atom is taken as held where its force is exactly zero in x, y and z
and d_i is not, or where a constraint of the structure, a projection P of all forces, has left its traces: it does not
change the force on the atom, but would change d_i,

    |(P F - F)_i| = 0,        (P d - d)_i != 0

FixCom, FixSymmetry and Hookean are none of these: what they do to a force is small, right, or cannot be told.
"""

from __future__ import annotations

import numpy as np
import vesin
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian, FixConstraint, FixedLine, FixedPlane, FixScaled
from ase.data import covalent_radii
from numpy.typing import NDArray

from descriptors import without_gaps

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FIXING = (FixAtoms, FixCartesian, FixScaled, FixedPlane, FixedLine, FixBondLengths)
ROUNDING = 5e-8  # eV/Å; of forces in a file with eight digits
REACH = 2.0  # r_0 over the sum of the covalent radii
LOPSIDED = (
    1e-3  # |d_i| over the sum of its weights, from which on surroundings have a direction: displacements of 0.005 Å
)


def held_atoms(atoms: Atoms, forces: Array) -> Mask:
    """Whether the force [N, 3] on each atom is one that a constraint has set to zero or projected, [N]."""
    zero = (forces == 0.0).all(axis=1)
    fixing = [c for c in atoms.copy().constraints if isinstance(c, FIXING)]  # copies: they keep what they have adjusted
    if not zero.any() and not fixing:
        return zero
    ways = directions(atoms)
    held = zero & (np.abs(ways) > LOPSIDED).any(axis=1)
    for constraint in fixing:
        satisfied = (np.abs(removed(constraint, atoms, forces)) < ROUNDING).all(axis=1)
        held |= satisfied & (np.abs(removed(constraint, atoms, ways)) > LOPSIDED).any(axis=1)
    return held


def removed(constraint: FixConstraint, atoms: Atoms, vectors: Array) -> Array:
    """What a constraint takes out of forces or other vectors, [N, 3]; NaN where ASE cannot say."""
    left = vectors.copy()
    if isinstance(constraint, FixBondLengths):
        constraint.bondlengths = None  # those of the structure: with others its iteration need not converge
    try:
        constraint.adjust_forces(atoms, left)
    except RuntimeError:  # "Did not converge", of bonds that hold each other
        return np.full_like(vectors, np.nan)  # neither satisfied nor changed
    return vectors - left


def directions(atoms: Atoms) -> Array:
    """d_i over the sum of w (1 at least: a bond has 0.6), [N, 3], of the element that makes it longest; zero without
    neighbours."""
    radii = covalent_radii[atoms.numbers]
    reach = REACH * 2.0 * float(radii.max())
    search = vesin.NeighborList(cutoff=reach, full_list=True, n_threads=1)
    i, j, r, vectors = search.compute(*without_gaps(atoms, reach), atoms.pbc, "ijdD")
    usual = radii[i] + radii[j]  # [pair] Å
    weight = (1.0 - np.minimum(r / (REACH * usual), 1.0) ** 2) ** 2
    total = np.maximum(np.bincount(i, weight, minlength=len(atoms)), 1.0)
    longest = np.zeros((len(atoms), 3))
    for number in np.unique(atoms.numbers):
        own = atoms.numbers[j] == number
        sums = np.zeros((len(atoms), 3))
        np.add.at(sums, i[own], (weight[own] / r[own])[:, None] * vectors[own])
        sums = sums / total[:, None]
        longer = np.linalg.norm(sums, axis=1) > np.linalg.norm(longest, axis=1)
        longest[longer] = sums[longer]
    return longest
