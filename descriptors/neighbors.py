"""Pairs of atoms over periodic images, for batches of structures.

    r_ij = r_j + shift . cell - r_i,   |r_ij| <= r_cut

Atoms of a batch are numbered through: structure 0 first, then structure 1, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.geometry import complete_cell
from torch import Tensor
from vesin import NeighborList

DEGENERATE = 1e-6  # smallest volume spanned by unit vectors along the periodic cell vectors


@dataclass(frozen=True)
class Neighborhoods:
    """Ordered pairs of a batch of structures, sorted by centre, then neighbour."""

    numbers: Tensor  # [atom] atomic numbers
    structure: Tensor  # [atom] index of the structure an atom belongs to
    n_structures: int
    centre: Tensor  # [pair] atom
    neighbor: Tensor  # [pair] atom; the centre itself where the neighbour is one of its images
    vectors: Tensor  # [pair, 3] Å, from centre to neighbour


def neighborhoods(
    structures: Sequence[Atoms],
    r_cut: float,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Neighborhoods:
    """All pairs within r_cut (Å) of each other, each in both orders, with images in the periodic directions.

    Raises ValueError, naming the structure's index, for positions or cells that are not finite, and for periodic
    directions whose cell vectors are zero or linearly dependent.
    """
    finder = NeighborList(cutoff=r_cut, full_list=True)
    centre, neighbor, vectors = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty((0, 3))]
    numbers, structure, offset = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for index, atoms in enumerate(structures):
        i, j, r = _pairs(atoms, finder, index)
        centre.append(i + offset)
        neighbor.append(j + offset)
        vectors.append(r)
        numbers.append(atoms.numbers.astype(np.int64))
        structure.append(np.full(len(atoms), index))
        offset += len(atoms)

    def integers(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    return Neighborhoods(
        numbers=integers(numbers),
        structure=integers(structure),
        n_structures=len(structures),
        centre=integers(centre),
        neighbor=integers(neighbor),
        vectors=torch.from_numpy(np.concatenate(vectors)).to(dtype=dtype, device=device),
    )


def _pairs(atoms: Atoms, finder: NeighborList, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre [pair], neighbour [pair] and vector [pair, 3] Å of one structure."""
    cell = _search_cell(atoms, index)
    positions = atoms.positions.astype(np.float64)  # [atom, 3] Å
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1)).tolist()
        raise ValueError(f"structure {index} ({atoms.symbols}): positions of atoms {bad} are not finite numbers.")
    if len(atoms) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3))
    i, j, shift = finder.compute(points=positions, box=cell, periodic=atoms.pbc, quantities="ijS")
    i, j = i.astype(np.int64), j.astype(np.int64)
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
    i, j, shift = i[order], j[order], shift[order]
    vectors = positions[j] - positions[i] + shift.astype(np.float64) @ cell  # [pair, 3] Å
    return i, j, vectors


def _search_cell(atoms: Atoms, index: int) -> np.ndarray:
    """Cell with the vectors of non-periodic directions replaced by ones that span space, [3, 3] Å."""
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    if not np.isfinite(cell).all():
        raise ValueError(f"structure {index} ({atoms.symbols}): the cell holds values that are not finite numbers.")
    lengths = np.linalg.norm(cell, axis=1)
    zero = atoms.pbc & (lengths == 0)
    periodic = cell[atoms.pbc & ~zero] / lengths[atoms.pbc & ~zero, None]
    spanned = np.sqrt(max(np.linalg.det(periodic @ periodic.T), 0.0)) if len(periodic) else 1.0
    if zero.any() or spanned < DEGENERATE:
        raise ValueError(
            f"structure {index} ({atoms.symbols}): periodic along {atoms.pbc.tolist()}, but the cell vectors "
            f"{cell.tolist()} Å are zero or linearly dependent there; set the cell, or pbc=False along them."
        )
    return complete_cell(cell)
