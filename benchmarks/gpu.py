"""Fits and molecular dynamics on a GPU, beside its own rates, the processors of the same machine and MACE on the same card.

    python benchmarks/gpu.py --data PATH_TO_mlearn_si [--mace-python PYTHON]

Fits: silicon of the mlearn set (M = 1000, the settings of `mlearn_si.py`) and LMFP (its config.yaml, two levels, M = 2000),
on the GPU and on all cores; the pass over the data as a share of the GPU's own float64 matrix products (its floor is that
of `stages.py`). Dynamics: VelocityVerlet of ASE through the calculators, silicon and LMFP at 1000 K in cells of about a
thousand, ten thousand and a hundred thousand atoms; a step is all that a user waits for, with searches of pairs and ASE.
MACE: models of its usual sizes with random weights, which take the time of trained ones, in a Python of their own
(mace_step.py). Wall-clock seconds, for a GPU has no others.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import torch
import typer
import yaml
from ase import Atoms
from ase.build import bulk
from common import data_option, machine, write_result
from mace_step import dynamics_seconds
from md_step import LMFP
from mlearn_si import SETTINGS
from rich.console import Console
from rich.table import Table
from stages import timed_pass

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.config import load_config
from mfgp.fit.accumulation import accumulate
from mfgp.fit.features import Features
from mfgp.fit.fitting import build_columns

GEMM_SIZE, COPY_BYTES = 8192, 2**31
SIZES = (1_000, 10_000, 100_000)  # atoms, about
STEPS = {1_000: 100, 10_000: 50, 100_000: 30}
MODES: dict[str, dict[str, Any]] = {
    "float64": {"uncertainty": "none"},
    "float32": {"uncertainty": "none", "dtype": "float32"},
    "float64, std of local energies": {"uncertainty": "local"},
}


def main(
    data: Annotated[Path, data_option("training.extxyz of the mlearn set's silicon")],
    mace_python: Annotated[Path | None, typer.Option(help="A Python that has mace-torch; no MACE without.")] = None,
    sizes: Annotated[list[int] | None, typer.Option(help="Atoms of a cell, about.")] = None,
    fits: Annotated[bool, typer.Option(help="Time the fits too.")] = True,
    processors: Annotated[bool, typer.Option(help="Time the same fits on all cores.")] = True,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "gpu",
) -> None:
    """Time all parts; what has been found is written after each."""
    result: dict[str, Any] = {"machine": machine(), "rates": rates()}
    console = Console(width=120)
    console.print(result["machine"]["gpu"], result["rates"])
    models = fitted(data)
    if fits:
        gemm = result["rates"]["gemm_flops"]
        result["fits"] = {system: fit_times(*given, gemm, processors) for system, given in models.items()}
        console.print_json(data=result["fits"])
        write_result(name, result)
    result["dynamics"] = {}
    for system, (frames, config) in models.items():
        model = MultiFidelityGP.fit(frames, config, progress=False)
        result["dynamics"][system] = ours(model, unit_cell(system, frames), sizes or SIZES)
        write_result(name, result)
    if mace_python is not None:
        for system, (frames, _) in models.items():
            result["dynamics"][system] |= mace(mace_python, unit_cell(system, frames), sizes or SIZES)
            write_result(name, result)
    for system, found in result["dynamics"].items():
        console.print(table(system, found))


def rates() -> dict[str, float]:
    """Float64 and float32 matrix products (flop/s) and copies (bytes read and written a second) of the GPU."""
    out = {}
    for label, dtype in (("gemm_flops", torch.float64), ("gemm_flops_float32", torch.float32)):
        a = torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=dtype, device="cuda")
        out[label] = 2.0 * GEMM_SIZE**3 / wall(lambda a=a: a @ a)  # type: ignore[misc]
    source = torch.randn(COPY_BYTES // 8, dtype=torch.float64, device="cuda")
    target = torch.empty_like(source)
    out["copy_bytes"] = 2.0 * COPY_BYTES / wall(lambda: target.copy_(source))
    return out


def wall(work: Callable[[], object], repeats: int = 3) -> float:
    """Fewest seconds of a few runs; the first, which sets things up, does not count."""
    seconds = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def fitted(data: Path) -> dict[str, tuple[FrameSet, FitConfig]]:
    """Training frames and settings of both systems, for the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        ase.io.write(config.with_name("train.extxyz"), ase.io.read(data / "training.extxyz", ":"))
        config.write_text(yaml.safe_dump({"fidelities": [{"name": "pbe", "train": ["train.extxyz"]}], **SETTINGS}))
        silicon = read_frames({"pbe": config.with_name("train.extxyz")}), load_config(config, ["device=cuda"])
    lmfp = load_config(LMFP, ["device=cuda"])
    frames = read_frames({f.name: list(f.train) for f in lmfp.fidelities}, keys=lmfp.keys).training()
    return {"Si": silicon, "LMFP": (frames, lmfp)}


def fit_times(frames: FrameSet, config: FitConfig, gemm: float, processors: bool) -> dict[str, Any]:
    """Seconds of a whole fit on the GPU and on all cores, and of the pass over the data on the GPU beside its floor."""
    out: dict[str, Any] = {"fit_seconds_cuda": wall(lambda: MultiFidelityGP.fit(frames, config, progress=False), 1)}
    if processors:
        here = config.model_copy(update={"device": "cpu"})
        few = replace(frames, frames=tuple(f for level in frames.levels for f in frames.of(level)[:4]))
        MultiFidelityGP.fit(few, here, progress=False)  # compiles
        start = time.perf_counter()
        MultiFidelityGP.fit(frames, here, progress=False)
        out["fit_seconds_cpu"] = time.perf_counter() - start
    features = Features.build(frames, config)
    columns, _ = build_columns(frames, features.basis.species, config, [])
    columns = columns.to(features.device)
    seconds = wall(lambda: accumulate(frames, features, columns, [], config.training.noise_energy))
    on_cpu = features.to(torch.device("cpu"))
    flops = sum(timed_pass(frames, on_cpu, config)[2].values())
    out |= {"pass_seconds": seconds, "pass_flops": flops, "pass_share_of_gemm": flops / gemm / seconds}
    out |= {
        "n_inducing": features.basis.size,
        "n_features": features.soap.n_features,
        "threads": torch.get_num_threads(),
    }
    out["features_seconds"] = wall(lambda: Features.build(frames, config), 1)
    return out


def unit_cell(system: str, frames: FrameSet) -> Atoms:
    """What is repeated: diamond silicon, or the first magnetic training structure of LMFP."""
    return bulk("Si", cubic=True) if system == "Si" else frames.of("mag")[0].atoms.copy()


def repeated(cell: Atoms, size: int) -> Atoms:
    """About `size` atoms."""
    k = max(1, round((size / len(cell)) ** (1 / 3)))
    return Atoms(cell.numbers, cell.positions, cell=cell.cell, pbc=True) * (k, k, k)


def ours(model: MultiFidelityGP, cell: Atoms, sizes: list[int] | tuple[int, ...]) -> dict[str, Any]:
    """Seconds of a step in all modes and sizes, searches of pairs among them, and the largest memory."""
    out: dict[str, Any] = {mode: [] for mode in MODES}
    for size in sizes:
        atoms = repeated(cell, size)
        for mode, options in MODES.items():
            torch.cuda.reset_peak_memory_stats()
            calculator = model.calculator(**options)
            try:
                found = dynamics_seconds(atoms, calculator, STEPS.get(size, 30))
            except torch.OutOfMemoryError as error:
                found = {"atoms": len(atoms), "error": str(error)[:200]}
            found |= {"searches": calculator.predictor.pairs.searches}
            out[mode].append(found | {"peak_bytes": torch.cuda.max_memory_allocated()})
        if all("seconds" in out[mode][-1] for mode in MODES):
            out.setdefault("float32_force_error", []).append(precision(model, atoms))
    return out


def precision(model: MultiFidelityGP, atoms: Atoms) -> float:
    """Largest difference of a force component between float32 and float64 after random moves, eV/Å."""
    moved = atoms.copy()
    moved.rattle(0.05, seed=0)
    double, single = (model.predictor(dtype=dtype)(moved, "none").forces for dtype in ("float64", "float32"))
    return float(np.abs(double - single).max())


def mace(python: Path, cell: Atoms, sizes: list[int] | tuple[int, ...]) -> dict[str, Any]:
    """The same of MACE, from mace_step.py."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for size in sizes:
            paths.append(Path(folder) / f"{size}.extxyz")
            ase.io.write(paths[-1], repeated(cell, size))
        command = [str(python), str(Path(__file__).with_name("mace_step.py")), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        Console().print(f"MACE failed:\n{done.stderr[-3000:]}")
    out: dict[str, Any] = {}
    for line in lines:
        found = json.loads(line)
        out.setdefault(found.pop("model"), []).append(found)
    return out


def table(system: str, found: dict[str, Any]) -> Table:
    """Milliseconds of a step and atoms x steps a second."""
    out = Table(title=f"{system}: ms a step, in brackets a million atoms x steps a second")
    out.add_column("")
    for r in found["float64"]:
        out.add_column(f"{r['atoms']} atoms", justify="right")
    for mode, results in found.items():
        if isinstance(results[0], dict):
            cells = [
                f"{1e3 * r['seconds']:.1f} ({1e-6 * r['atoms'] / r['seconds']:.2f})"
                if "seconds" in r
                else r["error"][:30]
                for r in results
            ]
            out.add_row(mode, *cells)
    return out


if __name__ == "__main__":
    typer.run(main)
