"""Acetylacetone: GFN1-xTB below PBE-D3, learning curve in the number of PBE molecules.

    python benchmarks/acac.py --data PATH_TO_acac
    python benchmarks/acac.py --data PATH_TO_acac --sizes 500 --models "top level only" --n-inducing 4000 --name acac_pbe
    python benchmarks/acac.py --data PATH_TO_acac --models "top level only" --baseline tblite --name acac_tblite

500 molecules at GFN1-xTB and n at PBE (300 K) train; errors and coverage are those of held-out PBE molecules at 300 K, and
at 600 K for the first model with the most data. All models of a run share descriptor and inducing points.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from common import data_option, machine, write_result
from rich.console import Console
from rich.table import Table

from mfgp import FitConfig, FrameSet, read_frames
from mfgp.base.progress import bars
from mfgp.baselines.columns import make_baselines
from mfgp.config import BaselineConfig
from mfgp.evaluation import evaluate
from mfgp.fit.features import Features
from mfgp.learning_curve import VARIANTS, Point, learning_curve

LEVELS = ("gfn1", "pbe")


def main(
    data: Annotated[Path, data_option("train_300K_gfn1.extxyz and its neighbours")],
    sizes: Annotated[str, typer.Option()] = "10,25,50,100,200,500",
    n_inducing: Annotated[int, typer.Option()] = 1500,
    n_test: Annotated[int, typer.Option(help="Held-out molecules at 300 K; 0 is all.")] = 0,
    folds: Annotated[
        bool, typer.Option(help="Score on every fifth training molecule instead of the test set.")
    ] = False,
    models: Annotated[str, typer.Option(help="Which of the models.")] = ",".join(VARIANTS),
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "acac",
    baseline: Annotated[str, typer.Option(help="A baseline below all models: a name known to mfgp.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="r0=1.0, m=2, zeta=2, sigma=0.6, rho=scalar ...")
    ] = None,
) -> None:
    """Fit the joint, PBE-only and Delta-learning models at every size."""
    chosen = dict(s.split("=") for s in settings or [])
    config = configuration(n_inducing, chosen)
    if baseline:
        config = config.model_copy(update={"baselines": (BaselineConfig(name=baseline),)})
    calculators = {b.name: b for b in make_baselines(config.baselines)}
    training, held_out = split(read_training(data)) if folds else (read_training(data), read_test(data, n_test))
    start, cpu = time.perf_counter(), time.process_time()
    with bars() as report:
        features = Features.build(training, config, report, keep_rows=True)
        numbers = [int(s) for s in sizes.split(",")]
        variants = {model: VARIANTS[model] for model in models.split(",")}
        points = learning_curve(
            training, held_out, config, numbers, variants, features=features, baselines=calculators, report=report
        )
    rows = [row(p) for p in points]
    hot: dict[str, Any] | None = None
    if not folds:
        best = [p for p in points if p.variant == points[0].variant][-1]
        hot = evaluate(best.model, read_frames({"pbe": data / "test_600K_pbe.extxyz"}), "pbe").to_json()
    Console().print(table(rows, len(held_out)))
    result = {
        "machine": machine(),
        "config": config.model_dump(mode="json"),
        "n_gfn1": len(training.of("gfn1")),
        "points": rows,
        "at_600K": hot,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }
    if not folds:
        write_result(name, result)


def configuration(n_inducing: int, chosen: dict[str, str]) -> FitConfig:
    """Settings of the benchmark; the defaults were chosen on folds of the training molecules."""
    rho = chosen.get("rho", "scalar")
    return FitConfig(
        descriptor={
            "r_cut": float(chosen.get("r_cut", 5.0)),
            "n_max": int(chosen.get("n_max", 6)),
            "l_max": int(chosen.get("l_max", 3)),
            "sigma": float(chosen.get("sigma", 0.6)),
            "radial_scaling": {"r0": float(chosen.get("r0", 1.0)), "m": float(chosen.get("m", 2.0))},
        },
        model={"zeta": int(chosen.get("zeta", 2)), "n_inducing": n_inducing, "rho": rho},
        training={
            "n_optimise": int(chosen.get("n_optimise", 500)),
            "max_energy_ratio": float(chosen.get("ratio", 0.1)),
        },
    )


def read_training(data: Path) -> FrameSet:
    """500 molecules and the isolated atoms at both levels."""
    return read_frames(
        {level: [data / f"isolated_atoms_{level}.extxyz", data / f"train_300K_{level}.extxyz"] for level in LEVELS}
    )


def read_test(data: Path, n: int) -> FrameSet:
    """The first n held-out PBE molecules at 300 K, or all for 0."""
    held_out = read_frames({level: data / f"test_300K_{level}.extxyz" for level in LEVELS})
    return FrameSet(LEVELS, tuple(held_out.of("pbe")[: n or None]))


def row(point: Point) -> dict[str, Any]:
    """One fit in the result file."""
    return {
        "n_pbe": point.n_top,
        "model": point.variant,
        **point.evaluation.to_json(),
        "fit_cpu_seconds": point.cpu_seconds,
        "hyperparameters": point.model.hyperparameters(),
    }


def split(training: FrameSet) -> tuple[FrameSet, FrameSet]:
    """Every fifth PBE molecule held out, and left out at GFN1 too."""
    keep, out = [], []
    for level in LEVELS:
        for i, f in enumerate(f for f in training.of(level) if not f.isolated_atom):
            (out if i % 5 == 4 else keep).append(f)
    atoms = [f for f in training if f.isolated_atom]
    return FrameSet(LEVELS, (*atoms, *keep)), FrameSet(LEVELS, tuple(f for f in out if f.fidelity == "pbe"))


def table(rows: list[dict[str, Any]], n_test: int) -> Table:
    """Errors at 300 K."""
    out = Table(title=f"acetylacetone, held-out PBE at 300 K (n = {n_test} molecules)")
    for column in (
        "PBE molecules",
        "model",
        "energy RMSE meV",
        "force RMSE meV/Å",
        "95 % energy",
        "95 % forces",
        "fit CPU s",
    ):
        out.add_column(column, justify="left" if column == "model" else "right")
    for r in rows:
        energy, forces = r["energy"], r["forces"]
        out.add_row(
            str(r["n_pbe"]),
            r["model"],
            f"{15e3 * energy['rmse']:.1f}",
            f"{1e3 * forces['rmse']:.1f}",
            f"{energy['coverage95']:.3f}",
            f"{forces['coverage95']:.3f}",
            f"{r['fit_cpu_seconds']:.1f}",
        )
    return out


if __name__ == "__main__":
    typer.run(main)
