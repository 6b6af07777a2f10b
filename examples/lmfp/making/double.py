"""Labelled structures twice, side by side along c: the same structure, so what differs per atom is the k-points'.

    python double.py ../lmfp_nm.extxyz lmfp0030 lmfp0045 -o doubled.extxyz     # then label.py nm, -o raw/doubled_nm.extxyz

`info` says `of` which structure; check.py compares energies per atom and forces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from ase import Atoms
from displace import copy_of, write_copies


def main(
    labelled: Annotated[Path, typer.Argument(help="Where the structures are.")],
    ids: Annotated[list[str], typer.Argument(help="Which of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="extxyz to write.")],
) -> None:
    """Write the doubled cells."""
    write_copies(labelled, ids, output, doubled)


def doubled(atoms: Atoms) -> list[Atoms]:
    """Two cells along c."""
    return [copy_of(atoms, "doubled").repeat((1, 1, 2))]


if __name__ == "__main__":
    typer.run(main)
