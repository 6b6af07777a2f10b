"""LMFP: joint model, magnetic level only and Delta-learning, averaged over orders of the magnetic training structures.

    python benchmarks/lmfp.py                              # nm below mag
    python benchmarks/lmfp.py --levels gfn1,nm,mag         # three levels
    python benchmarks/lmfp.py --split validation           # to choose settings by; writes no result

Uses the data of the project (examples/lmfp). At every size and for every seed all models see the same magnetic structures,
and share descriptor and inducing points. Errors and coverage are those of the magnetic structures of the split.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import machine, write_result
from rich.console import Console
from rich.table import Table

from mfgp import FrameSet, read_frames
from mfgp.base.progress import bars
from mfgp.config import load_config
from mfgp.datasets import load_lmfp
from mfgp.fit.features import Features
from mfgp.learning_curve import Point, delta_learning, joint, learning_curve, top_level_only

CONFIG = Path(__file__).parent.parent / "examples" / "lmfp" / "config.yaml"
MODELS = {"joint": joint, "magnetic only": top_level_only, "delta-learning": delta_learning}


def main(
    sizes: Annotated[str, typer.Option(help="Magnetic training structures; `all` is all.")] = "5,10,20,all",
    seeds: Annotated[int, typer.Option(help="Orders of the magnetic structures to average over.")] = 5,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the configuration.")
    ] = None,
    levels: Annotated[str, typer.Option(help="Levels, cheapest first; the last is the one that is scored.")] = "nm,mag",
    split: Annotated[str, typer.Option(help="test, test_ood or validation.")] = "test",
    n_low: Annotated[int, typer.Option(help="Structures of the lowest level; 0 is all.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "lmfp",
) -> None:
    """Fit every model at every size and seed."""
    config = load_config(CONFIG, overrides or [])
    names = levels.split(",")
    data = {level: load_lmfp(level, "train") for level in names}
    if n_low:
        data[names[0]] = data[names[0]][:: max(1, len(data[names[0]]) // n_low)][:n_low]
    training, top = read_frames(data), names[-1]
    held_out = FrameSet(tuple(names), tuple(read_frames({top: load_lmfp(top, split)})))
    available = len(training.of(top))
    wanted = sorted({available if s == "all" else min(int(s), available) for s in sizes.split(",")})
    start, cpu = time.perf_counter(), time.process_time()
    points: dict[tuple[str, int], list[Point]] = {}
    with bars() as report:
        features = Features.build(training, config, report, keep_rows=True)
        for seed in range(seeds):
            chosen = (
                wanted if seed == 0 else [n for n in wanted if n < available]
            )  # all structures: one order is enough
            for p in learning_curve(
                training, held_out, config, chosen, MODELS, features=features, seed=seed, report=report
            ):
                points.setdefault((p.variant, p.n_top), []).append(p)
    rows = [
        summary(variant, n, found) for (variant, n), found in sorted(points.items(), key=lambda x: (x[0][1], x[0][0]))
    ]
    Console().print(table(rows, len(held_out.of(top))))
    if split == "validation":
        return
    write_result(
        name,
        {
            "machine": machine(),
            "config": config.model_dump(mode="json", exclude={"fidelities"}),
            "data": training.summary(),
            "split": split,
            "n_test": len(held_out.of(top)),
            "points": rows,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
        },
    )


def summary(variant: str, n: int, points: list[Point]) -> dict[str, Any]:
    """Mean over seeds, and the standard error of the mean force error."""
    energy, forces = ([getattr(p.evaluation, kind).scores for p in points] for kind in ("energy", "forces"))
    mae = np.array([f.mae for f in forces])
    rho = [float(p.model.prior.rho.mean()) for p in points if p.model.prior.rho.numel()]
    return {
        "model": variant,
        "n_mag": n,
        "n_seeds": len(points),
        "energy_mae": float(np.mean([e.mae for e in energy])),
        "energy_coverage95": float(np.mean([e.coverage95 for e in energy])),
        "force_mae": float(mae.mean()),
        "force_mae_sem": float(mae.std(ddof=1) / len(mae) ** 0.5) if len(mae) > 1 else None,
        "force_rmse": float(np.mean([f.rmse for f in forces])),
        "force_coverage95": float(np.mean([f.coverage95 for f in forces])),
        "force_z_std": float(np.mean([f.z_std for f in forces])),
        "force_nll": float(np.mean([f.nll for f in forces])),
        "force_mae_by_seed": mae.tolist(),
        "magmom": magmoms(points),
        "rho": float(np.mean(rho)) if rho else None,
        "fit_cpu_seconds": float(np.mean([p.cpu_seconds for p in points])),
    }


def magmoms(points: list[Point]) -> dict[str, dict[str, float]]:
    """Mean absolute error (Bohr magnetons) and coverage of the moments of iron and manganese, means over seeds."""
    found = [p.evaluation.magmoms_by_species() for p in points]
    return {
        symbol: {
            "mae": float(np.mean([f[symbol].mae for f in found])),
            "coverage95": float(np.mean([f[symbol].coverage95 for f in found])),
            "n": found[0][symbol].n,
        }
        for symbol in ("Fe", "Mn")
        if all(symbol in f for f in found)
    }


def table(rows: list[dict[str, Any]], n_test: int) -> Table:
    """Means over seeds."""
    out = Table(title=f"held-out magnetic structures (n = {n_test})")
    for column in (
        "mag",
        "model",
        "seeds",
        "energy MAE meV/atom",
        "force MAE meV/Å",
        "± sem",
        "95 % E",
        "95 % F",
        "rho",
        "moments of Fe, Mn: MAE µB",
    ):
        out.add_column(column, justify="left" if column == "model" else "right")
    for r in rows:
        sem = r["force_mae_sem"]
        out.add_row(
            str(r["n_mag"]),
            r["model"],
            str(r["n_seeds"]),
            f"{1e3 * r['energy_mae']:.2f}",
            f"{1e3 * r['force_mae']:.1f}",
            "" if sem is None else f"{1e3 * sem:.1f}",
            f"{100 * r['energy_coverage95']:.0f}",
            f"{100 * r['force_coverage95']:.1f}",
            "" if r["rho"] is None else f"{r['rho']:.2f}",
            ", ".join(f"{m['mae']:.3f}" for m in r["magmom"].values()),
        )
    return out


if __name__ == "__main__":
    typer.run(main)
