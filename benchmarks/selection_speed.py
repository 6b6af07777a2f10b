"""Time of a selection, 50 calculations out of 5000 structures at three levels with M = 2000, and of an update with a label.

    python benchmarks/selection_speed.py [--pool 5000] [--n 50] [--n-inducing 2000] [--threads 2]

The pool is made of LMFP training structures with random displacements (0.1 Å); the model has gfn1, nm and mag labels at
fixed hyperparameters, which do not change the time. Floor: the products of the descriptors with the inducing points, and of
the rows with the covariances, at the machine's own rate; of the update: the posterior, (4 T - 3) M'^3.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer
from ase import Atoms
from common import gemm_rate, machine, timed, write_result
from lmfp import CONFIG
from rich.console import Console

from mfgp import MultiFidelityGP, read_frames
from mfgp.base.progress import bars
from mfgp.config import load_config
from mfgp.data.costs import CostModel
from mfgp.datasets import load_lmfp
from mfgp.gp.evidence import level_products
from mfgp.selection.greedy import DIRECTIONS, ROWS, select
from mfgp.selection.targets import SAMPLE

LEVELS = {"gfn1": 0.0004, "nm": 0.01, "mag": 0.03}  # hours
TRAINING = {"gfn1": 75, "nm": 30, "mag": 15}


def main(
    pool: Annotated[int, typer.Option(help="Structures.")] = 5000,
    n: Annotated[int, typer.Option(help="Calculations to choose.")] = 50,
    n_inducing: Annotated[int, typer.Option()] = 2000,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Fit once, select once."""
    torch.set_num_threads(threads)
    settings = [f"model.n_inducing={n_inducing}", "training.optimise=false", "training.calibrate=false"]
    config = load_config(CONFIG, settings)
    data = {level: load_lmfp(level, "train") for level in LEVELS}
    frames = read_frames({level: data[level][:: max(1, len(data[level]) // k)][:k] for level, k in TRAINING.items()})
    with bars() as report:
        model = MultiFidelityGP.fit(frames, config)
        structures = displaced(data["gfn1"], pool)
        with timed() as time:
            chosen = select(model, structures, "mag", CostModel.fixed(LEVELS), n=n, report=report)
        with timed() as update:
            model.update({"mag": [data["mag"][1]]})
    k, sizes, width = int(np.clip(ROWS // pool, *DIRECTIONS)), model.basis.size, model.soap.n_features
    atoms = sum(len(a) for a in structures)
    shares = [len(points) / sizes for points in model.basis.points]
    of_species = [sum(int((a.numbers == z).sum()) for a in structures) / atoms for z in model.basis.species]
    products = 2.0 * (1 + k) * atoms * width * sizes * sum(a * b for a, b in zip(shares, of_species, strict=True))
    covariances = 2.0 * len(LEVELS) * (1 + k) * pool * sizes * (sizes + SAMPLE)
    rate = gemm_rate()
    update_floor = level_products(len(LEVELS)) * model.weights.shape[1] ** 3 / rate
    Console().print(
        f"{len(chosen.choices)} of {pool} structures x {len(LEVELS)} levels, M = {sizes}: {time.wall:.0f} s ({threads} "
        f"threads), {time.cpu:.0f} CPU-seconds; floor of its products {(products + covariances) / rate:.0f} CPU-seconds\n"
        f"update with a magnetic structure: {update.wall:.1f} s, {update.cpu:.1f} CPU-seconds; floor {update_floor:.1f}"
    )
    write_result(
        "selection_speed",
        {
            "machine": machine(),
            "pool": pool,
            "levels": list(LEVELS),
            "n": n,
            "n_inducing": sizes,
            "threads": threads,
            "wall_seconds": time.wall,
            "cpu_seconds": time.cpu,
            "floor_cpu_seconds": (products + covariances) / rate,
            "update_wall_seconds": update.wall,
            "update_cpu_seconds": update.cpu,
            "update_floor_cpu_seconds": update_floor,
            "chosen": {level: sum(c.level == level for c in chosen.choices) for level in LEVELS},
        },
    )


def displaced(structures: list[Atoms], n: int) -> list[Atoms]:
    """n structures with displacements of 0.1 Å."""
    rng = np.random.default_rng(0)
    out = []
    for i in range(n):
        atoms = structures[i % len(structures)].copy()
        atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
        out.append(atoms)
    return out


if __name__ == "__main__":
    typer.run(main)
