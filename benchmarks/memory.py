"""Peak memory of a fit against the number of structures, beside gap_fit on the same files.

    python benchmarks/memory.py

The structures are rattled copper cells with energies and forces of ASE's EMT; M and the descriptor stay the same. A fit
streams over the structures, so its peak should not grow with their number. Every fit runs in a process of its own; its peak
resident memory is the kernel's figure (VmHWM). Linux only.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import typer
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from common import machine, run_measured, timed, write_result
from gap_command import gap_command
from rich.console import Console
from rich.table import Table

SHAPE = (4, 4, 3)  # primitive cells; with 3 in a direction some neighbours are images
N_MAX, L_MAX, R_CUT, ZETA = 6, 4, 5.0, 4
RATTLE, STRAIN = 0.12, 0.03  # Å, relative
MAX_GROWTH = 1.1  # of the peak from the fewest to the most structures, the target


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of structures, comma-separated.")] = "85,850",
    n_inducing: Annotated[int, typer.Option(help="Inducing points, the same at every size.")] = 300,
    rival: Annotated[bool, typer.Option(help="Run gap_fit (quippy-ase) too.")] = True,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "memory",
) -> None:
    """Measure the peak at every size."""
    numbers = [int(s) for s in sizes.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for n in numbers:
            path = Path(folder) / str(n) / "train.extxyz"
            path.parent.mkdir()
            ase.io.write(path, structures(n))
            row = {"n_structures": n, "n_atoms": n * int(np.prod(SHAPE)), **alone(path, n_inducing)}
            if rival:
                row["gap_fit"] = gap_fit(path, n_inducing)
            rows.append(row)
    growth = rows[-1]["peak_bytes"] / rows[0]["peak_bytes"]
    console = Console()
    console.print(table(rows))
    verdict = "within" if growth < MAX_GROWTH else "ABOVE"
    console.print(
        f"growth of the peak: {growth:.3f}, {verdict} {MAX_GROWTH} for {numbers[-1] / numbers[0]:g} times the data"
    )
    write_result(name, {"machine": machine(), "n_inducing": n_inducing, "sizes": rows, "growth": growth})


def structures(n: int) -> list[Atoms]:
    """Rattled and strained copper cells with EMT energies and forces as REF_energy and REF_forces; seeded."""
    out = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        atoms = bulk("Cu") * SHAPE
        atoms.set_cell(atoms.cell.array * (1 + rng.uniform(-STRAIN, STRAIN)), scale_atoms=True)
        atoms.positions += rng.normal(scale=RATTLE, size=atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
        out.append(atoms)
    return out


def alone(path: Path, n_inducing: int) -> dict[str, float]:
    """`fit_and_measure` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(fit_and_measure, path, n_inducing).result()


def fit_and_measure(path: Path, n_inducing: int) -> dict[str, float]:
    """Fit to a file; memory of this process (bytes) before reading, after reading and at its peak, and the estimate."""
    import torch

    from mfgp import FitConfig, MultiFidelityGP, read_frames
    from mfgp.estimate import estimate

    torch.set_num_threads(1)
    descriptor = {"r_cut": R_CUT, "n_max": N_MAX, "l_max": L_MAX}
    config = FitConfig(
        descriptor=descriptor,
        model={"zeta": ZETA, "n_inducing": n_inducing},
        device="cpu",
        training={"calibrate": False},
    )
    start = resident("VmRSS")
    frames = read_frames({"emt": path})
    read = resident("VmRSS")
    cost = estimate(frames, config)
    with timed() as timing:
        model = MultiFidelityGP.fit(frames, config, progress=False)
    return {
        "interpreter_bytes": start,
        "after_reading_bytes": read,
        "peak_bytes": resident("VmHWM"),
        "estimated_bytes": start + cost.memory_bytes,
        "cpu_seconds": timing.cpu,
        "wall_seconds": timing.wall,
        "estimated_seconds": cost.seconds,
        "n_inducing": model.basis.size,
    }


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def gap_fit(path: Path, n_inducing: int) -> dict[str, float]:
    """Peak memory and CPU seconds of gap_fit with the same basis."""
    soap = (
        f"soap l_max={L_MAX} n_max={N_MAX} atom_sigma=0.4 zeta={ZETA} cutoff={R_CUT} cutoff_transition_width=1.0 "
        f"n_sparse={n_inducing} sparse_method=cur_points covariance_type=dot_product delta=1.0"
    )
    command = gap_command([soap], "e0_method=average", "0.002", "0.05")
    usage = run_measured(command, path.parent, threads=1)
    return {"peak_bytes": usage.peak_bytes, "cpu_seconds": usage.cpu}


def table(rows: list[dict[str, Any]]) -> Table:
    """Memory and time by number of structures."""
    out = Table(title=f"peak memory of a fit, M = {rows[0]['n_inducing']}")
    columns = (
        "structures",
        "atoms",
        "peak MB",
        "estimated MB",
        "CPU s",
        "estimated s",
        "gap_fit peak MB",
        "gap_fit CPU s",
    )
    for column in columns:
        out.add_column(column, justify="right")
    for r in rows:
        memory = [f"{1e-6 * r[key]:.0f}" for key in ("peak_bytes", "estimated_bytes")]
        times = [f"{r[key]:.0f}" for key in ("cpu_seconds", "estimated_seconds")]
        gap = r.get("gap_fit")
        rival = [f"{1e-6 * gap['peak_bytes']:.0f}", f"{gap['cpu_seconds']:.0f}"] if gap else ["", ""]
        out.add_row(str(r["n_structures"]), str(r["n_atoms"]), *memory, *times, *rival)
    return out


if __name__ == "__main__":
    typer.run(main)
