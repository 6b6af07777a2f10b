"""Strained copies of labelled structures, for the stress at a level whose labels have none.

    python strain.py ../lmfp_mag_test.extxyz test0100 test0107 test0108 -o strains.extxyz
    python3 label.py mag strains.extxyz -o strains_mag.extxyz

With the deformation 1 + e (fractional coordinates fixed) the stress is the derivative of the energy by e over the volume,
in ASE's sign. Eleven calculations a structure:

- at the labels' cutoff: e = 0, +-0.005 on all three axes, +-0.005 on x. The energies that a model learns from cells of
  different volumes are of this kind; their plane waves come and go with the cell, which makes them rough.
- with the plane waves of the unstrained cell held (planewaves.py): the same strains. Smooth, and what GPAW's analytic
  stress belongs to, but too low by the Pulay stress.
- at cutoffs 25 eV lower and higher: dE/dE_cut, for the Pulay stress -(2/3) (E_cut / V) dE/dE_cut > 0 on the diagonal
  (Francis & Payne, J. Phys.: Condens. Matter 2, 4395 (1990)), from one basis to the other:

      stress at constant cutoff = stress with held plane waves + (2/3) (E_cut / V) dE/dE_cut

`info`: `of`, `axis` (0 - 2 a Cartesian axis, -1 all three), `step` (e), `cutoff` (eV), and `basis_cell` (Å) where the
plane waves are held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from displace import copy_of, write_copies

STRAIN = 0.005
AXES = {"volume": (-1, np.eye(3)), "xx": (0, np.diag([1.0, 0.0, 0.0]))}
CUTOFF, CUTOFF_STEP = 500.0, 25.0  # eV; the first as in levels.py


def main(
    labelled: Annotated[Path, typer.Argument(help="Where the structures are.")],
    ids: Annotated[list[str], typer.Argument(help="Which of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="extxyz to write.")],
) -> None:
    """Write the copies."""
    write_copies(labelled, ids, output, strained)


def strained(atoms: Atoms) -> list[Atoms]:
    still = [unstrained(atoms, CUTOFF + d) for d in (0.0, -CUTOFF_STEP, CUTOFF_STEP)]
    return still + [copy for held in (False, True) for copy in deformed(atoms, held)]


def unstrained(atoms: Atoms, cutoff: float) -> Atoms:
    copy = copy_of(atoms, f"cutoff{cutoff:.0f}")
    copy.info.update(axis=-1, step=0.0, cutoff=cutoff)
    return copy


def deformed(atoms: Atoms, held: bool) -> list[Atoms]:
    out = []
    for name, (axis, direction) in AXES.items():
        for sign in (1, -1):
            suffix = f"{name}{'plus' if sign > 0 else 'minus'}{'_held' if held else ''}"
            copy = copy_of(atoms, suffix)
            copy.set_cell(atoms.cell.array @ (np.eye(3) + sign * STRAIN * direction), scale_atoms=True)
            copy.info.update(axis=axis, step=sign * STRAIN, cutoff=CUTOFF)
            if held:
                copy.info["basis_cell"] = atoms.cell.array.copy()
            out.append(copy)
    return out


if __name__ == "__main__":
    typer.run(main)
