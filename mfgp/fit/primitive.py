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
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor, from_numpy

TOLERANCE = 1e-7  # Å along the longest axis of the cell, between an atom that was moved and the one it falls on
NEIGHBOURS = 20  # by which atoms are told apart: a shell of a close packing and part of the next
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
    basis, images = _shortest_translations(atoms, 3)
    edges = coo_array((np.ones(images.size), (np.tile(whole.copy_of, len(images)), images.ravel())), [len(atoms)] * 2)
    n_orbits, orbit = connected_components(edges, directed=False)
    n = len(atoms) // n_orbits
    if n == 1 or len(basis) < 3 or abs(n * abs(np.linalg.det(basis)) / atoms.cell.volume - 1.0) > 1e-6:
        return whole
    first = np.unique(orbit, return_index=True)[1]
    kept, copy_of = np.unique(first[orbit], return_inverse=True)
    return Primitive(Atoms(atoms.numbers[kept], atoms.positions[kept], cell=basis, pbc=True), copy_of, n)


def shortest_translation(atoms: Atoms, longest: float) -> float:
    """Of those up to `longest` (Å) that map a structure, periodic in three directions, onto itself; infinite without one."""
    vectors, _ = _shortest_translations(atoms, 1, longest)
    return float(np.linalg.norm(vectors[0])) if len(vectors) else np.inf


def _shortest_translations(atoms: Atoms, count: int, longest: float = np.inf) -> tuple[Array, NDArray[np.int64]]:
    """The shortest `count` independent ones up to `longest` (Å): vectors [count, 3] in Å, the atom each falls on [count, N].

    Each maps the first atom of the rarest kind onto another of its kind; these are tried from the shortest on. The first
    atom that one of them moves to a place without such an atom is what the others have to move well, too: without that an
    atom which is displaced in a crystal would let all others be tried with all vectors.
    """
    sites = _Sites(atoms)
    rarest = sites.rarest()
    steps = sites.s[rarest] - sites.s[rarest[0]]  # [step, 3]
    places = _images(steps, sites.cell).reshape(-1, 3)  # [(step, 27), 3] Å
    lengths, possible = np.linalg.norm(places, axis=1), np.ones(len(steps), dtype=bool)
    vectors, images = np.zeros((0, 3)), np.zeros((0, len(atoms)), dtype=np.int64)
    for k in np.argsort(lengths, kind="stable"):
        if len(vectors) == count or lengths[k] > longest:
            break
        longer, step = np.vstack([vectors, places[k]]), k // 27
        if not possible[step] or np.linalg.matrix_rank(longer, tol=1e-3) == len(vectors):
            continue
        image = sites.moved(sites.everyone, steps[step])
        wrong = image == len(atoms)
        if wrong.any():
            possible &= sites.moved(wrong.argmax(), steps) < len(atoms)
        else:
            vectors, images = longer, np.vstack([images, image])
    return vectors, images


class _Sites:
    """Fractional coordinates s [N, 3] of a structure in the shortest cell of its lattice, and their tree."""

    def __init__(self, atoms: Atoms) -> None:
        self.numbers, self.everyone = atoms.numbers, np.arange(len(atoms))
        self.cell = np.asarray(minkowski_reduce(atoms.cell.array)[0])  # _images has the shortest vectors of such a cell
        self.s = _wrapped(atoms.positions @ np.linalg.inv(self.cell))
        self.tree, self.tolerance = cKDTree(self.s, boxsize=1.0), TOLERANCE / float(np.linalg.norm(self.cell, 2))

    def moved(self, atom: NDArray[np.int64] | np.intp, steps: Array) -> NDArray[np.int64]:
        """The atom of its element that each atom, or one by each of the steps, falls on, N where there is none; [k]."""
        found = self.tree.query(_wrapped(self.s[atom] + steps), distance_upper_bound=self.tolerance)[1]
        same = np.append(self.numbers, -1)[found] == self.numbers[atom]
        return np.where(same, found, len(self.s))

    def rarest(self) -> NDArray[np.int64]:
        """The fewest atoms of one element whose distances to NEIGHBOURS nearest ones have one sum (fractional), in order.

        Atoms that fall on each other to `tolerance` differ by twice that in each distance: where sums leave a wider gap
        there are no such atoms on both sides of it.
        """
        k = min(NEIGHBOURS, len(self.s))
        sums = self.tree.query(self.s, k=k)[0].reshape(len(self.s), -1).sum(axis=1)
        order = np.lexsort((sums, self.numbers))
        apart = (np.diff(sums[order]) > 2 * k * self.tolerance) | (np.diff(self.numbers[order]) != 0)
        kinds = [np.sort(kind) for kind in np.split(order, np.flatnonzero(apart) + 1)]
        return min(kinds, key=lambda kind: (len(kind), kind[0]))


def _images(vectors: Array, cell: Array) -> Array:
    """Fractional vectors [k, 3] in Å, in the neighbouring cells too: [k, 27, 3]."""
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    return ((vectors - np.round(vectors))[:, None] + shifts) @ cell


def _wrapped(s: Array) -> Array:
    """Fractional coordinates in [0, 1)."""
    out = s - np.floor(s)
    out[out >= 1.0] = 0.0
    return out
