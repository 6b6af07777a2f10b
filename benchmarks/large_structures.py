"""Peak memory and time of predictions of one large structure, by its number of atoms.

    python benchmarks/large_structures.py

Rattled copper with energies, forces and stresses of ASE's EMT: a model of 32-atom cells predicts cells of up to 11000 atoms.
`full`: all standard deviations, forces and stress included; `energies`: those of the total and of local energies; `none`:
means alone. Every prediction runs in a process of its own; its peak resident memory is the kernel's figure. Linux only.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from common import machine, timed, write_result
from memory import resident
from rich.console import Console
from rich.table import Table

N_TRAINING = 30
RATTLE = 0.1  # Å


def main(
    repeats: Annotated[str, typer.Option(help="Cubic cells along each side, comma-separated.")] = "6,10,14",
    n_inducing: Annotated[int, typer.Option(help="Inducing points.")] = 900,
) -> None:
    """Fit once, and measure a prediction of every size and kind."""
    from mfgp import FitConfig, MultiFidelityGP, read_frames

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copper.mfgp"
        config = FitConfig(preset="solid", model={"n_inducing": n_inducing}, device="cpu")
        model = MultiFidelityGP.fit(read_frames({"emt": [labelled(i) for i in range(N_TRAINING)]}), config)
        model.save(path)
        for repeat in map(int, repeats.split(",")):
            for uncertainty in ("full", "energies", "none"):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    rows.append(pool.submit(measure, path, repeat, uncertainty).result())
    Console().print(table(rows, model.basis.size))
    write_result("large_structures", {"machine": machine(), "n_inducing": model.basis.size, "predictions": rows})


def copper(repeat: int, seed: int, rattle: float = RATTLE) -> Atoms:
    """4 repeat^3 atoms."""
    atoms = bulk("Cu", cubic=True) * (repeat, repeat, repeat)
    atoms.positions += np.random.default_rng(seed).normal(scale=rattle, size=atoms.positions.shape)
    return atoms


def labelled(seed: int) -> Atoms:
    """32 atoms, displaced by 0.05 to 0.2 Å."""
    atoms = copper(2, seed, 0.05 + 0.15 * seed / N_TRAINING)
    atoms.calc = EMT()
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = None
    atoms.info |= {"REF_energy": energy, "REF_stress": stress}
    atoms.arrays["REF_forces"] = forces
    return atoms


def measure(path: Path, repeat: int, uncertainty: str) -> dict[str, Any]:
    """One prediction, in this process: CPU seconds and peak memory (bytes)."""
    import torch

    from mfgp import MultiFidelityGP

    torch.set_num_threads(1)
    model, atoms = MultiFidelityGP.load(path), copper(repeat, seed=99)
    held = resident("VmRSS")
    with timed() as timing:
        model.predict(atoms, "emt", uncertainty=uncertainty)
    found = {"n_atoms": len(atoms), "uncertainty": uncertainty, "cpu_seconds": timing.cpu}
    return {**found, "peak_bytes": resident("VmHWM"), "held_bytes": held}


def table(rows: list[dict[str, Any]], n_inducing: int) -> Table:
    """Memory and time by number of atoms."""
    out = Table(title=f"one structure, M = {n_inducing}, one core")
    for column in ("atoms", "standard deviations", "peak MB", "CPU s"):
        out.add_column(column, justify="right")
    for r in rows:
        out.add_row(str(r["n_atoms"]), r["uncertainty"], f"{1e-6 * r['peak_bytes']:.0f}", f"{r['cpu_seconds']:.1f}")
    return out


if __name__ == "__main__":
    typer.run(main)
