"""The smallest cell that a periodic structure repeats.

Rows of a structure that n lattice translations map onto itself are those of one copy: the energy's are n times those of
the smaller cell, an atom's forces those of the atom that it repeats, the virial's n times. Perfect crystals, strained or
not, are usual among training structures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, from_numpy

TOLERANCE = 1e-7  # Å along the longest axis of the cell, between an atom that was moved and the one it falls on
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Primitive:
    """n copies of `cell` are a structure; atom i of it repeats atom copy_of[i] [N] of the cell."""

    cell: Atoms
    copy_of: NDArray[np.int64]
    n: int

    def rows_of_all(self, rows: Tensor) -> Tensor:
        """Rows [1+3N+6, M] of the structure from those of the cell [1+3n'+6, M]."""
        if self.n == 1:
            return rows
        atoms = (1 + 3 * self.copy_of[:, None] + np.arange(3)).ravel()
        virial = len(rows) - 6 + np.arange(6)
        out = rows[from_numpy(np.concatenate([[0], atoms, virial])).to(rows.device)]
        out[0] *= self.n
        out[-6:] *= self.n
        return out


def primitive(atoms: Atoms) -> Primitive:
    """The smallest cell; the structure itself where it repeats none, or is not periodic in three directions."""
    whole = Primitive(atoms, np.arange(len(atoms)), 1)
    if len(atoms) == 1 or not atoms.pbc.all():
        return whole
    images, vectors = _translations(atoms)
    n = len(images)
    basis = _basis(vectors, atoms.cell.array, n) if n > 1 else None
    if basis is None:
        return whole
    kept, copy_of = np.unique(images.min(axis=0), return_inverse=True)
    return Primitive(Atoms(atoms.numbers[kept], atoms.positions[kept], cell=basis, pbc=True), copy_of, n)


def shortest_translation(atoms: Atoms, longest: float) -> float:
    """Of those up to `longest` (Å) that map a structure, periodic in three directions, onto itself; infinite without one."""
    _, vectors = _translations(atoms, longest)
    lengths = np.linalg.norm(_images(vectors, atoms.cell.array), axis=2)
    return float(lengths[(lengths > TOLERANCE) & (lengths <= longest)].min(initial=np.inf))


def _translations(atoms: Atoms, longest: float = np.inf) -> tuple[NDArray[np.int64], Array]:
    """Those that map the structure onto itself: the atom that each atom falls on [n, N]; fractional vectors [n, 3].

    longest: Å, of those that are looked for; N^2 places are tried without a limit.
    """
    numbers, cell = atoms.numbers, atoms.cell.array
    s = _wrapped(atoms.get_scaled_positions(wrap=False))
    tree, tolerance = cKDTree(s, boxsize=1.0), TOLERANCE / np.linalg.norm(cell, 2)

    def falls_on(moved: Array) -> NDArray[np.int64]:
        """The atom at each place [k, 3], or the number of atoms where there is none."""
        return tree.query(_wrapped(moved), distance_upper_bound=tolerance)[1]

    elements, counts = np.unique(numbers, return_counts=True)
    rarest = np.flatnonzero(numbers == elements[counts.argmin()])
    vectors, known = s[rarest] - s[rarest[0]], np.append(numbers, -1)
    vectors = vectors[np.linalg.norm(_images(vectors, cell), axis=2).min(axis=1) <= longest]
    last = len(atoms) - 1 if rarest[0] == 0 else 0  # another atom, which few of the vectors move onto an atom
    vectors = vectors[known[falls_on(s[last] + vectors)] == numbers[last]]
    images = falls_on((s + vectors[:, None]).reshape(-1, 3)).reshape(len(vectors), -1)
    whole = (known[images] == numbers).all(axis=1)
    return images[whole], vectors[whole]


def _images(vectors: Array, cell: Array) -> Array:
    """Fractional vectors [k, 3] in Å, in the neighbouring cells too: [k, 27, 3]."""
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    return ((vectors - np.round(vectors))[:, None] + shifts) @ cell


def _wrapped(s: Array) -> Array:
    """Fractional coordinates in [0, 1)."""
    out = s - np.floor(s)
    out[out >= 1.0] = 0.0
    return out


def _basis(vectors: Array, cell: Array, n: int) -> Array | None:
    """The shortest basis [3, 3] in Å of the lattice of translations; None where the shortest vectors are none."""
    every = _images(vectors, cell).reshape(-1, 3)
    length = np.linalg.norm(every, axis=1)
    volume = abs(np.linalg.det(cell)) / n
    chosen: list[Array] = []
    for v in every[np.argsort(length, kind="stable")]:
        if np.linalg.matrix_rank(np.array([*chosen, v]), tol=1e-3) > len(chosen):
            chosen.append(v)
        if len(chosen) == 3:
            basis = np.array(chosen)
            return basis if abs(abs(np.linalg.det(basis)) / volume - 1.0) < 1e-6 else None
    return None
