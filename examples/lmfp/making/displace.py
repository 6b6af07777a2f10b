"""Displaced and strained copies of labelled structures, for finite differences of the energy.

    python displace.py ../lmfp_mag.extxyz lmfp0003 lmfp0006 lmfp0114 -o differences.extxyz

Two displacements of one atom (a metal along x, an oxygen along y) by +-0.01 Å, and two strains (xx and yy) by +-0.5 %, for
each structure. `info` says `of` which structure, `atom` (-1: a strain), `axis` (Cartesian, or Voigt for a strain), `step`.
Grid and cutoff of the levels do not change with the cell: the differences are those of the energies that a model learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.io import read, write

DISPLACEMENT = 0.01  # Å
STRAIN = 0.005


def main(
    labelled: Annotated[Path, typer.Argument(help="Where the structures are.")],
    ids: Annotated[list[str], typer.Argument(help="Which of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="extxyz to write.")],
) -> None:
    """Write the copies."""
    frames = {a.info["structure_id"]: a for a in read(labelled, ":")}
    copies = [copy for name in ids for copy in copies_of(frames[name])]
    write(output, copies, format="extxyz")
    print(f"{len(copies)} copies of {len(ids)} structures")


def copies_of(atoms: Atoms) -> list[Atoms]:
    metal = next(i for i, s in enumerate(atoms.symbols) if s in ("Fe", "Mn"))
    oxygen = next(i for i, s in enumerate(atoms.symbols) if s == "O")
    out = []
    for sign, name in ((1, "plus"), (-1, "minus")):
        for atom, axis in ((metal, 0), (oxygen, 1)):
            copy = bare(atoms)
            copy.positions[atom, axis] += sign * DISPLACEMENT
            out.append(tagged(copy, atoms, f"{'xyz'[axis]}{atom}{name}", atom, axis, sign * DISPLACEMENT))
        for axis in (0, 1):
            copy, deformation = bare(atoms), np.eye(3)
            deformation[axis, axis] += sign * STRAIN
            copy.set_cell(atoms.cell.array @ deformation.T, scale_atoms=True)
            out.append(tagged(copy, atoms, f"{'xyz'[axis] * 2}{name}", -1, axis, sign * STRAIN))
    return out


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.symbols, atoms.positions, cell=atoms.cell.array, pbc=True)


def tagged(copy: Atoms, atoms: Atoms, suffix: str, atom: int, axis: int, step: float) -> Atoms:
    about = {k: atoms.info[k] for k in ("variant", "composition", "temperature", "strain", "split")}
    name = atoms.info["structure_id"]
    copy.info = {**about, "structure_id": f"{name}_{suffix}", "of": name, "atom": atom, "axis": axis, "step": step}
    return copy


if __name__ == "__main__":
    typer.run(main)
