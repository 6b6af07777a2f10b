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
SEARCHED_THERE = 300  # atoms, from which on the pairs of a structure are searched on its GPU; fewer take less without
MAX_RANK = 2.0**62
MAX_GRID = 1e5  # cells of vesin's search
NO_VECTORS = torch.empty(0, 3, dtype=torch.float64)


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
    device, cpu = torch.device(device), torch.device("cpu")
    on_cpu = NeighborList(cutoff=r_cut, full_list=True)
    centre, neighbor, vectors = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)], [NO_VECTORS]
    numbers, offset = [torch.empty(0, dtype=torch.long)], 0
    for index, atoms in enumerate(structures):
        if device.type == "cuda" and len(atoms) >= SEARCHED_THERE:
            i, j, r = _pairs(atoms, NeighborList(cutoff=r_cut, full_list=True), index, device)
        else:
            i, j, r = _pairs(atoms, on_cpu, index, cpu)
        centre.append(i + offset)
        neighbor.append(j + offset)
        vectors.append(r)
        numbers.append(torch.from_numpy(atoms.numbers.astype(np.int64)))
        offset += len(atoms)
    structure = torch.arange(len(structures)).repeat_interleave(
        torch.tensor([len(a) for a in structures], dtype=torch.long)
    )
    return Neighborhoods(
        numbers=_joined(numbers, device),
        structure=structure.to(device),
        n_structures=len(structures),
        centre=_joined(centre, device),
        neighbor=_joined(neighbor, device),
        vectors=_joined(vectors, device).to(dtype),
    )


def without_gaps(atoms: Atoms, r_cut: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions [atom, 3] and cell [3, 3] Å that have the same pairs within r_cut (Å), and the same shifts, for vesin.

    Between parallel planes wider apart than r_cut, with no atom in between, there are no pairs, however wide the gap is.
    vesin's search takes time that grows with the square of such a length along a direction without periodicity (seconds for
    an atom that is 3000 Å away), and divides by zero where its grid of at most MAX_GRID cells, in the proportions of the
    cell, is thinner than one of them. So along directions without periodicity, and all of a cell that would need more,
    gaps are narrowed to 1.5 r_cut. Positions and cells without such gaps stay as they are, bit by bit.
    """
    positions = atoms.positions.astype(np.float64)  # ASE keeps an array of another type that replaces them
    cell = atoms.cell.array if atoms.pbc.all() else complete_cell(np.where(atoms.pbc[:, None], atoms.cell.array, 0.0))
    for axis in cell[~atoms.pbc]:
        along = positions @ axis  # [atom] Å
        order = np.argsort(along)
        surplus = np.maximum(np.diff(along[order]) - 1.5 * r_cut, 0.0).cumsum()
        positions[order[1:]] -= surplus[:, None] * axis
    sizes = np.sqrt((cell * cell).sum(1))  # [direction] Å
    if not atoms.pbc.all() and len(atoms):
        sizes[~atoms.pbc] = np.linalg.norm(np.ptp(positions, axis=0))
    if np.maximum(sizes / r_cut, 1.0).prod() <= MAX_GRID:
        return positions, cell
    return _narrowed(positions, cell, atoms.pbc, r_cut)


def _narrowed(
    positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray, r_cut: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and cell with gaps along the periodic directions narrowed to 1.5 r_cut.

    With s the coordinate of an atom in units of the lattice vector a, and G(s) what the gaps below s have too much, in these
    units and periodic, x - G(s) a in a cell of a (1 - G(1)) is each atom in its place, in the same image of the cell.
    """
    cell, inverse = cell.copy(), np.linalg.inv(cell)  # x = s . cell
    coordinates = positions @ inverse
    for k in np.flatnonzero(periodic):
        turn = np.floor(coordinates[:, k])
        inside = coordinates[:, k] - turn
        order = np.argsort(inside)
        gaps = np.diff(inside[order], append=inside[order[0]] + 1.0)
        surplus = np.maximum(gaps - 1.5 * r_cut * np.linalg.norm(inverse[:, k]), 0.0)
        removed = surplus.sum() * turn
        removed[order[1:]] += surplus[:-1].cumsum()
        positions = positions - removed[:, None] * cell[k]
        cell[k] *= 1.0 - surplus.sum()
    return positions, cell


def _joined(parts: list[Tensor], device: torch.device) -> Tensor:
    """One below the other, on a device."""
    if all(part.device.type == "cpu" for part in parts):
        return torch.cat(parts).to(device)  # one transfer
    return torch.cat([part.to(device) for part in parts])


def _pairs(atoms: Atoms, finder: NeighborList, index: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [pair], neighbour [pair] and vector [pair, 3] Å of one structure, searched on a device and left there."""
    cell = _search_cell(atoms, index)
    positions = atoms.positions.astype(np.float64)  # [atom, 3] Å
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1)).tolist()
        raise ValueError(f"structure {index} ({atoms.symbols}): positions of atoms {bad} are not finite numbers.")
    if len(atoms) == 0:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), NO_VECTORS
    points, box = torch.from_numpy(positions).to(device), torch.from_numpy(cell).to(device)
    near, small = (torch.from_numpy(x).to(device) for x in without_gaps(atoms, finder.cutoff))
    found = finder.compute(points=near, box=small, periodic=torch.from_numpy(atoms.pbc).to(device), quantities="ijS")
    i, j, shift = (x.long() for x in found)
    order = _order(i, j, shift, len(atoms))
    i, j, shift = i[order], j[order], shift[order]
    vectors = points[j] - points[i] + shift.double() @ box  # [pair, 3] Å
    return i, j, vectors


def _order(i: Tensor, j: Tensor, shift: Tensor, n_atoms: int) -> Tensor:
    """What sorts the pairs by centre, neighbour and shift, [pair]."""
    if len(i) == 0:
        return i
    lowest, highest = shift.amin(0), shift.amax(0)
    span = (highest - lowest + 1).tolist()  # [xyz]
    if float(n_atoms) ** 2 * float(np.prod(np.array(span, dtype=float))) > MAX_RANK:  # atoms very far outside the cell
        keys = torch.stack([i, j, *shift.T]).cpu().numpy()
        return torch.from_numpy(np.lexsort(keys[::-1])).to(i.device)
    rank = i * n_atoms + j
    for axis in range(3):
        rank = rank * span[axis] + (shift[:, axis] - lowest[axis])
    return torch.argsort(rank)


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
