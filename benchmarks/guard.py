"""A guard against slower fits: rows, whitening and Gram matrices over their floor, by ratio, so that any machine will do.

    python benchmarks/guard.py            # fails with exit status 1 where the median of five passes is above a bound

Silicon-like and oxide structures are made up, so that no data are needed. The bounds are in BOUNDS, with a margin over what
was found on a busy machine: the ratio is of CPU time to flops at the matrix-product rate of the same run.
"""

from __future__ import annotations

from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from ase.build import bulk
from common import machine, write_result
from rich.console import Console
from stages import over_floor

from mfgp import FitConfig, FrameSet, read_frames
from mfgp.fit.features import Features

BOUNDS = {"one species": 2.0, "five species": 1.4}  # time over floor of rows, whitening and Gram together
OXIDE = {"r_cut": 5.0, "n_max": 6, "l_max": 5, "sigma": 0.4, "radial_scaling": {"r0": 2.0, "m": 4}}
SILICON = {"r_cut": 5.0, "n_max": 8, "l_max": 6, "sigma": 0.6}


def main(
    n_inducing: Annotated[int, typer.Option()] = 1000,
    n_structures: Annotated[int, typer.Option(help="Of each kind.")] = 40,
    passes: Annotated[int, typer.Option(help="Over the data; the median counts.")] = 5,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "guard",
) -> None:
    """Measure both kinds of structures and compare with the bounds."""
    torch.set_num_threads(1)
    found = ratios(n_inducing, n_structures, passes)
    write_result(name, {"machine": machine(), "n_inducing": n_inducing, "bounds": BOUNDS, "over_floor": found})
    slow = False
    for kind, bound in BOUNDS.items():
        value = found[kind]["all"]
        slow |= value > bound
        Console().print(f"{kind}: {value:.2f} of the floor, {'ABOVE' if value > bound else 'within'} {bound}")
    raise typer.Exit(int(slow))


def ratios(n_inducing: int, n_structures: int, passes: int) -> dict[str, dict[str, float]]:
    """Median time over floor by kind of structure and stage."""
    out: dict[str, dict[str, float]] = {}
    for kind, (frames, config) in {
        "one species": (silicon(n_structures), settings(n_inducing, descriptor=SILICON)),
        "five species": (olivines(n_structures), settings(n_inducing, descriptor=OXIDE)),
    }.items():
        features = Features.build(frames, config)
        runs = [over_floor(frames, features, config) for _ in range(passes)]
        out[kind] = {stage: median(r[stage] for r in runs) for stage in runs[0]}
    return out


def settings(n_inducing: int, **given: Any) -> FitConfig:
    """A configuration on the CPU."""
    return FitConfig(**given, model={"zeta": 4, "n_inducing": n_inducing}, device="cpu")


def silicon(n: int) -> FrameSet:
    """Rattled cells of 64 atoms, with random energies and forces: labels do not change the time."""
    return labelled([bulk("Si", cubic=True) * (2, 2, 2) for _ in range(n)])


def olivines(n: int) -> FrameSet:
    """28 atoms of five elements in a cell of the size of LiMPO4's, about as dense."""
    symbols = "Li4Mn2Fe2P4O16"
    rng = np.random.default_rng(0)
    cell, places = [10.4, 6.1, 4.75], np.stack(np.meshgrid(*(np.arange(k) / k for k in (4, 3, 3)), indexing="ij"), -1)
    out = []
    for _ in range(n):
        scaled = rng.permutation(places.reshape(-1, 3))[:28]
        out.append(Atoms(symbols, scaled_positions=scaled, cell=cell, pbc=True))
    return labelled(out)


def labelled(structures: list[Atoms]) -> FrameSet:
    """Displaced structures with labels; seeded."""
    for seed, atoms in enumerate(structures):
        rng = np.random.default_rng(seed)
        atoms.positions += rng.normal(scale=0.15, size=atoms.positions.shape)
        atoms.info["REF_energy"] = float(rng.normal())
        atoms.arrays["REF_forces"] = rng.normal(size=atoms.positions.shape)
    return read_frames({"made up": structures})


if __name__ == "__main__":
    typer.run(main)
