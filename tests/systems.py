"""Structures that the tests share. Each call builds a new ase.Atoms; displacements are seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule


def _rattled(atoms: Atoms, stdev: float, seed: int) -> Atoms:
    """The atoms displaced by Gaussian noise, stdev in Å."""
    atoms.positions += np.random.default_rng(seed).normal(0.0, stdev, atoms.positions.shape)
    return atoms


def water() -> Atoms:
    """A bent, asymmetric H2O, no cell."""
    return Atoms("OHH", [[0.0, 0.0, 0.1], [0.78, 0.05, 0.61], [-0.74, 0.02, 0.55]])


def ethanol() -> Atoms:
    """C2H5OH, distorted, no cell."""
    return _rattled(molecule("CH3CH2OH"), 0.05, seed=1)


def rattled_silicon(repeat: int = 1) -> Atoms:
    """Cubic diamond silicon, 8 repeat^3 atoms."""
    return _rattled(bulk("Si", cubic=True) * (repeat, repeat, repeat), 0.1, seed=2)


def sodium_chloride() -> Atoms:
    """Primitive rock salt, 2 atoms, 4 Å between images: every atom sees its own images."""
    return _rattled(bulk("NaCl", "rocksalt", a=5.64), 0.08, seed=3)


def triclinic() -> Atoms:
    """Four atoms of two species in a skewed cell, some of them outside it."""
    cell = [[4.1, 0.2, -0.3], [1.6, 4.4, 0.1], [-1.1, 1.3, 4.9]]
    scaled = [[0.05, 0.1, 0.08], [0.55, 0.48, 0.52], [1.42, -0.35, 0.21], [0.1, 0.62, 2.7]]
    return _rattled(Atoms("AlNAlN", cell=cell, scaled_positions=scaled, pbc=True), 0.05, seed=4)


def left_handed() -> Atoms:
    """Four atoms in a cell of negative determinant."""
    cell = [[0.1, 4.3, 0.2], [4.0, 0.3, -0.1], [0.4, 0.1, 4.6]]
    scaled = [[0.0, 0.0, 0.0], [0.5, 0.52, 0.02], [0.49, 0.03, 0.5], [0.02, 0.5, 0.47]]
    return _rattled(Atoms("CuAuCuAu", cell=cell, scaled_positions=scaled, pbc=True), 0.05, seed=5)


def slab(third_vector: bool = True) -> Atoms:
    """Two layers of Al with an H on top, periodic in the plane only; the third cell vector zero or not."""
    atoms = fcc111("Al", (2, 1, 2), a=4.05, vacuum=4.0)
    atoms += Atoms("H", [atoms.positions[-1] + [0.1, 0.2, 1.6]])
    atoms.pbc = (True, True, False)
    if not third_vector:
        atoms.cell[2] = 0.0
    return _rattled(atoms, 0.05, seed=6)


def slab_without_third_vector() -> Atoms:
    """The slab with a zero third cell vector."""
    return slab(third_vector=False)


def isolated_atom() -> Atoms:
    """One O atom, no cell."""
    return Atoms("O", [[0.3, -0.2, 0.7]])


def phosphate() -> Atoms:
    """LiMnFePO4-like cell: 14 atoms of five species, orthorhombic, shorter than 2 r_cut in every direction."""
    cell = [6.1, 5.2, 4.8]
    scaled = {
        "Li": [[0.0, 0.0, 0.0], [0.5, 0.52, 0.5]],
        "Mn": [[0.28, 0.25, 0.97]],
        "Fe": [[0.78, 0.25, 0.53]],
        "P": [[0.1, 0.25, 0.42], [0.62, 0.74, 0.08]],
        "O": [
            [0.1, 0.24, 0.74],
            [0.45, 0.25, 0.2],
            [0.16, 0.04, 0.28],
            [0.17, 0.46, 0.29],
            [0.6, 0.75, 0.76],
            [0.9, 0.75, 0.2],
            [0.66, 0.95, 0.22],
            [0.67, 0.54, 0.21],
        ],
    }
    symbols = [s for s, places in scaled.items() for _ in places]
    places = [place for group in scaled.values() for place in group]
    return _rattled(Atoms(symbols, cell=cell, scaled_positions=places, pbc=True), 0.05, seed=7)


SYSTEMS: dict[str, Callable[[], Atoms]] = {
    f.__name__: f
    for f in (
        water,
        ethanol,
        rattled_silicon,
        sodium_chloride,
        triclinic,
        left_handed,
        slab,
        slab_without_third_vector,
        isolated_atom,
        phosphate,
    )
}
