"""Data of the campaign example, out of examples/lmfp: a few labels to start with, and a pool without labels.

python prepare.py        # writes gfn1.extxyz, mag.extxyz and pool.extxyz beside this file
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase.io import write

from mfgp.data.labels import LabelKeys, without_labels
from mfgp.datasets import load_lmfp

HERE = Path(__file__).parent


def main(
    out: Annotated[Path, typer.Option(help="Where the files go.")] = HERE,
    n_gfn1: Annotated[int, typer.Option(help="GFN1-xTB labels to start with.")] = 10,
    n_mag: Annotated[int, typer.Option(help="PBE+U labels, which the campaign does not add to.")] = 10,
    n_pool: Annotated[int, typer.Option(help="Structures to choose from.")] = 120,
) -> None:
    """Draw the structures, seeded; the validation structures of `mag` come along, held out."""
    gfn1 = load_lmfp("gfn1")
    order = np.random.default_rng(0).permutation(len(gfn1))
    start, pool = [gfn1[i] for i in order[:n_gfn1]], [gfn1[i] for i in order[n_gfn1 : n_gfn1 + n_pool]]
    mag = load_lmfp("mag")
    few = [mag[i] for i in np.random.default_rng(1).permutation(len(mag))[:n_mag]]
    write(out / "gfn1.extxyz", start)
    write(out / "mag.extxyz", [*few, *load_lmfp("mag", "validation")])
    write(out / "pool.extxyz", [without_labels(atoms, LabelKeys()) for atoms in pool])
    typer.echo(f"{len(start)} gfn1 and {len(few)} mag labels, {len(pool)} structures in the pool, in {out}")


if __name__ == "__main__":
    typer.run(main)
