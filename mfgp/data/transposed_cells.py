"""Cells whose lattice vectors were written as columns, beside positions that are right.

With d_ij the distance of two atoms, or of an atom and an image, and r their covalent radii (Cordero et al., Dalton Trans.
2008, 2832), the closest pair of a structure under a cell C, its lattice vectors the rows, is

    q(C) = min_ij  d_ij(C) / (r_i + r_j)

C and C^T have the same volume, so what one of them leaves empty the other fills twice: of right positions under a wrong cell
the atoms near one face come upon those near another, as close as they happen to. No bond is shorter than 0.6 (Cr2 has 0.60,
UO2 2+ 0.68, N2 and CO 0.77 - 0.79), and most strained or rattled crystals have 0.7 and more, so that

    q(C) < 0.6 and q(C^T) >= 0.7

speaks for the transposed cell. Orthogonal cells, molecules in boxes and small cells with angles near 90 degrees say nothing.
Where structures have short distances of their own (atoms at random, pairs pressed together) few of them are gone in the
transposed cell: of two to eight random atoms, 0 - 21 %. So those of a level are told where there are three or more, and
at least half of the structures with q(C) < 0.6; of one or two structures to be predicted all must. Cells of one atom are
left out: any flat one would do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import vesin
from ase import Atoms
from ase.data import covalent_radii

from descriptors import without_gaps

SHORT, USUAL = 0.6, 0.7
FEW = 3
WAY_OUT = "if the lattice vectors were written as columns, call atoms.set_cell(atoms.cell.array.T)"
_THINNEST = 1e-3  # of a cell's periodic vectors, smallest over largest singular value


def transposed(structures: Sequence[Atoms], few: int = FEW) -> list[int]:
    """Which structures speak for the transposed cell, where `few` of them or more do so, and half of the short ones."""
    periodic = [i for i, atoms in enumerate(structures) if len(atoms) > 1 and atoms.pbc.any()]
    short = [i for i in periodic if closest_pair(structures[i]) < SHORT]
    found = [i for i in short if fits_transposed(structures[i])]
    return found if len(found) >= max(few, len(short) / 2) else []


def columns_warning(count: int, first: str) -> str:
    """What a user is told of `count` such structures, the first of which comes from `first`."""
    which = first if count == 1 else f"{count} structures ({first} first)"
    return (
        f"atoms of {which} are closer to each other than bonds are, but would not be in the transposed cell; {WAY_OUT}, "
        "with the same positions"
    )


def fits_transposed(atoms: Atoms) -> bool:
    """Whether the closest pair is no bond, and that under the transposed cell is as usual."""
    return bool(atoms.pbc.any() and closest_pair(atoms) < SHORT and closest_pair(with_transposed_cell(atoms)) >= USUAL)


def with_transposed_cell(atoms: Atoms) -> Atoms:
    """The same atoms at the same places, in a cell whose rows are columns."""
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell.array.T, pbc=atoms.pbc)


def closest_pair(atoms: Atoms) -> float:
    """q of the structure, infinite where no pair is closer than USUAL; 0 in a flat cell."""
    sizes = np.linalg.svd(atoms.cell.array[atoms.pbc], compute_uv=False)
    if len(sizes) and sizes[-1] <= _THINNEST * sizes[0]:
        return 0.0
    radii = covalent_radii[atoms.numbers]  # [atom] Å
    reach = 2.0 * USUAL * float(radii.max())
    search = vesin.NeighborList(cutoff=reach, full_list=False, n_threads=1)
    i, j, d = search.compute(*without_gaps(atoms, reach), atoms.pbc, "ijd")
    near = d < USUAL * (radii[i] + radii[j])
    return float((d / (radii[i] + radii[j]))[near].min(initial=np.inf))
