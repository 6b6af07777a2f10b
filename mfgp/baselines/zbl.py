"""Universal screened nuclear repulsion of Ziegler, Biersack and Littmark, as an ASE calculator.

    V(r) = S(r) (e^2 / 4 pi eps0) Z_i Z_j / r  phi(r / a),      a = 0.8854 a0 / (Z_i^0.23 + Z_j^0.23)
    phi(x) = 0.18175 exp(-3.19980 x) + 0.50986 exp(-0.94229 x) + 0.28022 exp(-0.40290 x) + 0.02817 exp(-0.20162 x)
    S(r) = 1 below r_inner, 0 above r_outer, and 1 - 10 u^3 + 15 u^4 - 6 u^5, u = (r - r_inner) / (r_outer - r_inner),
           between: energies, forces and their derivatives are continuous
    E = sum_pairs V,    F = -dE/dr,    stress = (1 / volume) sum_pairs V'(r) r r^T / |r|

Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Matter, vol. 1, Pergamon (1985).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import vesin
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from descriptors import without_gaps

Array = NDArray[np.float64]

_COULOMB = units.Hartree * units.Bohr  # e^2 / 4 pi eps0, eV Å
_WEIGHTS = np.array([0.18175, 0.50986, 0.28022, 0.02817])
_DECAYS = np.array([3.19980, 0.94229, 0.40290, 0.20162])


def screening(x: Array) -> tuple[Array, Array]:
    """phi and dphi/dx. x [pair] (dimensionless) -> [pair], [pair]."""
    terms = _WEIGHTS * np.exp(-_DECAYS * x[:, None])  # [pair, term]
    return terms.sum(axis=1), -(terms * _DECAYS).sum(axis=1)


def switch(r: Array, r_inner: float, r_outer: float) -> tuple[Array, Array]:
    """S and dS/dr. r [pair] Å -> [pair], [pair] 1/Å."""
    u = np.clip((r - r_inner) / (r_outer - r_inner), 0.0, 1.0)
    value = 1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2)
    slope = -30.0 * u**2 * (1.0 - u) ** 2 / (r_outer - r_inner)
    return value, slope


def pair_repulsion(r: Array, zi: Array, zj: Array, r_inner: float, r_outer: float) -> tuple[Array, Array]:
    """V and dV/dr. r [pair] Å; zi, zj [pair] atomic numbers -> [pair] eV, [pair] eV/Å."""
    a = 0.8854 * units.Bohr / (zi**0.23 + zj**0.23)  # [pair] Å
    phi, dphi = screening(r / a)
    s, ds = switch(r, r_inner, r_outer)
    coulomb = _COULOMB * zi * zj / r  # [pair] eV
    return coulomb * phi * s, coulomb * (s * (dphi / a - phi / r) + phi * ds)


class ZBLCalculator(Calculator):
    """ASE calculator of the ZBL repulsion; molecules, slabs and crystals.

    r_inner, r_outer: Å, where the switch to zero begins and ends. Raises ValueError unless 0 <= r_inner < r_outer.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 (ASE's own form)

    def __init__(self, r_inner: float = 1.0, r_outer: float = 2.5, **kwargs: Any) -> None:
        if not 0 <= r_inner < r_outer:
            raise ValueError(f"ZBL needs 0 <= r_inner < r_outer, got {r_inner} and {r_outer} Å")
        super().__init__(**kwargs)
        self.r_inner = float(r_inner)
        self.r_outer = float(r_outer)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        search = vesin.NeighborList(cutoff=self.r_outer, full_list=False, n_threads=1)
        i, j, r, d = search.compute(*without_gaps(atoms, self.r_outer), atoms.pbc, "ijdD")  # d = x_j - x_i, [pair, 3] Å
        z = atoms.numbers.astype(np.float64)
        energy, slope = pair_repulsion(r, z[i], z[j], self.r_inner, self.r_outer)
        pull = (slope / r)[:, None] * d  # force on i, [pair, 3] eV/Å
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        energies = np.zeros(len(atoms))
        np.add.at(energies, i, 0.5 * energy)
        np.add.at(energies, j, 0.5 * energy)
        total = float(energy.sum())
        self.results = {"energy": total, "free_energy": total, "energies": energies, "forces": forces}
        if atoms.cell.rank == 3:
            self.results["stress"] = full_3x3_to_voigt_6_stress(pull.T @ d) / atoms.get_volume()
