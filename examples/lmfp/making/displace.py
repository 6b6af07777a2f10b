"""Displaced copies of labelled structures, for finite differences of the energy.

    python displace.py ../lmfp_mag.extxyz lmfp0012 lmfp0036 lmfp0042 -o differences.extxyz

Two displacements (the first metal along x, the first oxygen along y) by +-0.02 Å for each structure: the noise of the energy
over 0.04 Å is a force. `info` says `of` which structure, which `atom`, Cartesian `axis` and `step` (Å). strain.py does the
same for the cell.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from ase import Atoms
from ase.io import read, write

DISPLACEMENT = 0.02  # Å


def main(
    labelled: Annotated[Path, typer.Argument(help="Where the structures are.")],
    ids: Annotated[list[str], typer.Argument(help="Which of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="extxyz to write.")],
) -> None:
    """Write the copies."""
    write_copies(labelled, ids, output, displaced)


def displaced(atoms: Atoms) -> list[Atoms]:
    metal = next(i for i, s in enumerate(atoms.symbols) if s in ("Fe", "Mn"))
    oxygen = next(i for i, s in enumerate(atoms.symbols) if s == "O")
    out = []
    for atom, axis in ((metal, 0), (oxygen, 1)):
        for sign, name in ((1, "plus"), (-1, "minus")):
            copy = copy_of(atoms, f"{'xyz'[axis]}{atom}{name}")
            copy.positions[atom, axis] += sign * DISPLACEMENT
            copy.info.update(atom=atom, axis=axis, step=sign * DISPLACEMENT)
            out.append(copy)
    return out


def write_copies(labelled: Path, ids: list[str], output: Path, of: Callable[[Atoms], list[Atoms]]) -> None:
    """Write the copies of some labelled structures that `of` makes. BadParameter names ids that are not there."""
    frames = {a.info["structure_id"]: a for a in read(labelled, ":")}
    if unknown := [name for name in ids if name not in frames]:
        raise typer.BadParameter(f"{labelled} has no {', '.join(unknown)}.")
    copies = [copy for name in ids for copy in of(frames[name])]
    write(output, copies, format="extxyz")
    print(f"{len(copies)} copies of {len(ids)} structures")


def copy_of(atoms: Atoms, suffix: str) -> Atoms:
    """The bare structure, and where it is from; its labels and their cost stay behind."""
    about = {k: atoms.info[k] for k in ("variant", "composition", "temperature", "strain", "split")}
    name = atoms.info["structure_id"]
    info = {**about, "structure_id": f"{name}_{suffix}", "of": name}
    return Atoms(atoms.symbols, atoms.positions, cell=atoms.cell.array, pbc=True, info=info)


if __name__ == "__main__":
    typer.run(main)
