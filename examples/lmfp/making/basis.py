"""The number of plane waves is a whole number: what that does to the energy, and its correction.

At one cutoff E_cut a cell of volume V holds N plane waves, on average over cells

    N_smooth = V k^3 / (6 pi^2),    k = sqrt(2 E_cut)  (Hartree, Bohr),

but a given cell has some tenths of a percent more or fewer, and at 500 eV the energy falls by 0.36 eV a cell with a percent
more: noise between cells of different shape that no force knows of (the forces are those at a fixed N). To first order
(Francis & Payne, J. Phys.: Condens. Matter 2, 4395 (1990))

    E_corrected = E - dE/dlnN ln(N / N_smooth),    dE/dlnN = (2/3) E_cut dE/dE_cut

dE/dE_cut comes from calculations at 475 and 525 eV (strain.py). It is the oxygens', alike
for FePO4 and LiMnPO4.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.units import Bohr, Ha

CUTOFF = 500.0  # eV
SLOPE = {"nm": -0.0063, "mag": -0.0066}  # dE/dE_cut for each oxygen, eV/eV; strained.extxyz holds what it is from
KPOINT = {"nm": (0.0, 0.0, 0.0), "mag": (0.0, 0.25, 0.25)}  # of the cell of 28 atoms


def plane_waves(atoms: Atoms, level: str, cutoff: float = CUTOFF) -> tuple[int, float]:
    """How many plane waves the cell holds at a level's k-point, and how many it would hold on average."""
    cells = round(atoms.cell.lengths()[2] / 4.75)
    k_point = np.array(KPOINT[level]) * (1, 1, cells)
    reciprocal = 2 * np.pi * np.linalg.inv(atoms.cell.array / Bohr).T  # rows, 1/Bohr
    k = np.sqrt(2 * cutoff / Ha)
    most = np.ceil(k * np.linalg.norm(atoms.cell.array / Bohr, axis=1) / (2 * np.pi)).astype(int) + 1
    n = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 3)
    squares = (((n + k_point) @ reciprocal) ** 2).sum(1)
    return int((squares <= k**2).sum()), atoms.get_volume() / Bohr**3 * k**3 / (6 * np.pi**2)


def correction(atoms: Atoms, level: str) -> float:
    """What is added to an energy at the labels' cutoff, eV a cell."""
    found, smooth = plane_waves(atoms, level)
    slope = SLOPE[level] * atoms.get_chemical_symbols().count("O")
    return float(-2 / 3 * CUTOFF * slope * np.log(found / smooth))
