"""A million force labels through a fit on one core: time against the number of structures, and peak memory.

    python benchmarks/scale.py --data PATH_TO_acac

The structures are acetylacetone molecules (15 atoms, 45 force labels) at 300 K with random displacements of 0.02 Å, labelled
by a small model fitted to GFN1-xTB molecules: what is measured is the fit. Descriptor and M stay the same. Every size is
fitted in a process of its own; its peak resident memory is the kernel's figure (Linux only). The pass over the data records
its progress in the result file as it goes, so a run that is cut off still says how far it came and at what rate.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import torch
import typer
from acac import configuration
from ase import Atoms
from common import data_option, machine, timed, write_result
from memory import resident
from rich.console import Console
from rich.table import Table

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.fit.accumulation import accumulate
from mfgp.gp.statistics import Statistics

RATTLE = 0.02  # Å
TEACHER_STRUCTURES, TEACHER_POINTS = 100, 200
MAX_PEAK = 4 * 2**30  # bytes, the target
CHECKPOINTS = 200  # at most, of a pass


def main(
    data: Annotated[Path, data_option("train_300K_gfn1.extxyz")],
    labels: Annotated[str, typer.Option(help="Numbers of force labels, comma-separated.")] = "10000,100000,1000000",
    n_inducing: Annotated[int, typer.Option(help="Inducing points, the same at every size.")] = 2000,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "scale",
) -> None:
    """Fit at every size; write what there is after each."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "n_inducing": n_inducing, "max_peak_bytes": MAX_PEAK, "sizes": []}
    for n in (int(s) for s in labels.split(",")):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(fit_and_measure, data, n, n_inducing, name, result).result()
        result["sizes"].append(row)
        result["exponent"] = exponent(result["sizes"])
        write_result(name, result)
    console = Console()
    console.print(table(result["sizes"]))
    if result["exponent"] is not None:
        console.print(f"the pass over the data grows like n^{result['exponent']:.3f}")


def fit_and_measure(data: Path, n_labels: int, n_inducing: int, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """One fit in this process: CPU seconds of its parts, peak memory (bytes), progress of the pass."""
    torch.set_num_threads(1)
    config = settings(n_inducing)
    frames = displaced(data, n_labels)
    row: dict[str, Any] = {"n_structures": len(frames), "n_force_labels": sum(3 * len(f.atoms) for f in frames)}
    row |= {"after_labelling_bytes": resident("VmRSS"), "progress": []}
    every = max(1, len(frames) // CHECKPOINTS)

    def data_pass(*arguments: Any) -> Statistics:
        *given, report = arguments
        start = cpu_seconds()
        last = 0

        def checkpoint(stage: str, done: int, total: int, note: str = "") -> None:
            nonlocal last
            report(stage, done, total, note)
            if done - last >= every or done == total:
                last = done
                row["progress"].append([done, cpu_seconds() - start, resident("VmHWM")])
                write_result(name, {**result, "running": row})

        out = accumulate(*given, checkpoint)
        row["pass_cpu_seconds"] = cpu_seconds() - start
        return out

    with timed() as whole:
        model = MultiFidelityGP.fit(frames, config, data_pass=data_pass, progress=False)
    peak = resident("VmHWM")
    row |= {"fit_cpu_seconds": whole.cpu, "fit_wall_seconds": whole.wall, "peak_bytes": peak}
    return row | {"n_inducing": model.basis.size, "within_target": peak < MAX_PEAK}


def settings(n_inducing: int) -> FitConfig:
    """Those of benchmarks/acac.py, without calibration (its cost does not depend on the number of structures)."""
    config = configuration(n_inducing, {})
    training = config.training.model_copy(update={"calibrate": False})
    return config.model_copy(update={"training": training, "device": "cpu"})


def displaced(data: Path, n_labels: int) -> FrameSet:
    """Molecules with at least n_labels force components, labelled by a small model; seeded."""
    molecules = ase.io.read(data / "train_300K_gfn1.extxyz", ":")
    first = read_frames({"gfn1": molecules[:TEACHER_STRUCTURES]})
    label = labeller(MultiFidelityGP.fit(first, settings(TEACHER_POINTS), progress=False))
    out: list[Atoms] = []
    for seed in range(-(-n_labels // (3 * len(molecules[0])))):
        atoms = molecules[seed % len(molecules)].copy()
        noise = np.random.default_rng(seed).normal(scale=RATTLE, size=atoms.positions.shape)
        out.append(label(Atoms(atoms.numbers, atoms.positions + noise)))
    return read_frames({"model": out})


def labeller(model: MultiFidelityGP) -> Callable[[Atoms], Atoms]:
    """Energy and forces of a model as labels."""
    predict = model.predictor()

    def label(atoms: Atoms) -> Atoms:
        prediction = predict(atoms, "none")
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = prediction.energy, prediction.forces
        return atoms

    return label


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def exponent(rows: list[dict[str, Any]]) -> float | None:
    """Slope of log time of the pass against log number of structures; None of a single size."""
    if len(rows) < 2:
        return None
    n, seconds = (np.log([r[key] for r in rows]) for key in ("n_structures", "pass_cpu_seconds"))
    return float(np.polyfit(n, seconds, 1)[0])


def table(rows: list[dict[str, Any]]) -> Table:
    """Time and memory by number of labels."""
    out = Table(title=f"fits at M = {rows[0]['n_inducing']}, one core")
    for column in ("force labels", "structures", "pass CPU s", "ms per structure", "fit CPU s", "peak GB"):
        out.add_column(column, justify="right")
    for r in rows:
        per = 1e3 * r["pass_cpu_seconds"] / r["n_structures"]
        figures = (f"{r['pass_cpu_seconds']:.0f}", f"{per:.1f}", f"{r['fit_cpu_seconds']:.0f}")
        out.add_row(str(r["n_force_labels"]), str(r["n_structures"]), *figures, f"{1e-9 * r['peak_bytes']:.2f}")
    return out


if __name__ == "__main__":
    typer.run(main)
