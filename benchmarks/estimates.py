"""What `mfgp fit --dry-run` says a fit will take, and what it took: CPU time on one thread by part, memory.

    python benchmarks/estimates.py [--silicon PATH] [--acac PATH]     # LMFP comes with the project

Each fit runs in a process of its own; the estimate is made in that process, just before. The target is 20 %.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from acac import configuration, read_training
from common import machine, timed, write_result
from memory import resident
from mlearn_si import SETTINGS
from rich.console import Console
from rich.table import Table

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.config import load_config
from mfgp.data.training_frames import distinct, trainable
from mfgp.estimate import estimate
from mfgp.fit.accumulation import accumulate
from mfgp.fit.features import Features
from mfgp.gp.statistics import Statistics

LMFP = Path(__file__).parent.parent / "examples" / "lmfp"
FEATURES, PASS = ("descriptors", "inducing points"), ("rows", "statistics")  # parts of the estimate


def main(
    silicon: Annotated[Path | None, typer.Option(help="Folder with training.extxyz.")] = None,
    acac: Annotated[Path | None, typer.Option(help="Folder with train_300K_gfn1.extxyz and its neighbours.")] = None,
    repeats: Annotated[int, typer.Option(help="Fits of each set.")] = 1,
    n_inducing: Annotated[int | None, typer.Option(help="Inducing points, in place of each set's own.")] = None,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "estimates",
) -> None:
    """Compare for each set that there is."""
    sets = {"lmfp": LMFP, "silicon": silicon, "acac": acac}
    rows: list[dict[str, Any]] = []
    for kind, folder in sets.items():
        for _ in range(repeats if folder is not None else 0):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows.append({"set": kind, **pool.submit(compare, kind, folder, n_inducing).result()})
            write_result(name, {"machine": machine(), "fits": rows})
    Console().print(table(rows))


def load(kind: str, folder: Path, n_inducing: int | None) -> tuple[FrameSet, FitConfig]:
    """Data and settings of a set."""
    if kind == "silicon":
        frames, config = read_frames({"pbe": folder / "training.extxyz"}), FitConfig(**SETTINGS)
    elif kind == "acac":
        frames, config = read_training(folder), configuration(1500, {})
    else:
        config = load_config(folder / "config.yaml", [])
        levels = {level: folder / f"lmfp_{level}.extxyz" for level in ("nm", "mag")}
        frames = read_frames(levels, keys=config.keys)
    model = config.model.model_copy(update={"n_inducing": n_inducing or config.model.n_inducing})
    return frames, config.model_copy(update={"device": "cpu", "model": model})


def compare(kind: str, folder: Path, n_inducing: int | None) -> dict[str, Any]:
    """Estimated and found seconds and bytes, in this process."""
    torch.set_num_threads(1)
    frames, config = load(kind, folder, n_inducing)
    before = resident("VmRSS")
    with timed() as guessing:
        guess = estimate(frames, config)
    found: dict[str, float] = {}

    def data_pass(*arguments: Any) -> Statistics:
        with timed() as timing:
            out = accumulate(*arguments)
        found["pass"] = timing.cpu
        return out

    with timed() as whole:
        with timed() as choosing:
            features = Features.build(distinct(trainable(frames)), config)
        model = MultiFidelityGP.fit(frames, config, features=features, data_pass=data_pass, progress=False)
    found |= {"features": choosing.cpu, "rest": whole.cpu - choosing.cpu - found["pass"], "all": whole.cpu}
    p = guess.parts
    guessed = {"features": sum(p[k] for k in FEATURES), "pass": sum(p[k] for k in PASS), "all": guess.seconds}
    guessed["rest"] = guessed["all"] - guessed["features"] - guessed["pass"]
    return {
        "estimated_cpu_seconds": guessed,
        "cpu_seconds": found,
        "estimated_parts": p,
        "estimate_took": guessing.cpu,
        "estimated_bytes": guess.memory_bytes,
        "bytes": resident("VmHWM") - before,
        "n_inducing": model.basis.size,
        "evaluations": model.training.evaluations if model.training else 0,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Estimate and fact side by side."""
    out = Table(title="estimated / found (CPU seconds, one thread; MB beyond the interpreter)")
    parts = ("features", "pass", "rest", "all")
    for column in ("set", *parts, "ratio", "MB", "ratio", "estimate took, s"):
        out.add_column(column, justify="left" if column == "set" else "right")
    for r in rows:
        guess, found = r["estimated_cpu_seconds"], r["cpu_seconds"]
        times = [f"{guess[k]:.1f} / {found[k]:.1f}" for k in parts]
        memory = f"{1e-6 * r['estimated_bytes']:.0f} / {1e-6 * r['bytes']:.0f}"
        ratios = f"{guess['all'] / found['all']:.2f}", f"{r['estimated_bytes'] / r['bytes']:.2f}"
        out.add_row(r["set"], *times, ratios[0], memory, ratios[1], f"{r['estimate_took']:.1f}")
    return out


if __name__ == "__main__":
    typer.run(main)
