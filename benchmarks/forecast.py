"""How well the forecast of `mfgp plan` comes true on LMFP.

    python benchmarks/forecast.py [--split validation]

From a few labels of each level a model is fitted, and asked what a budget would buy: the std of the forces of unseen
structures after the best calculations for it. Then these calculations are done (their labels taken from the data set),
models fitted, and the error of the same structures measured, with the std that those models give themselves.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer
from common import machine, write_result
from rich.console import Console
from rich.table import Table
from selection import LEVELS, Problem, build, start

from mfgp.base.progress import bars
from mfgp.selection.greedy import select
from mfgp.selection.plan import std_at, within
from mfgp.selection.targets import build_target

STARTS = ({"nm": 10, "mag": 4}, {"nm": 60, "mag": 12})


def main(
    seeds: Annotated[int, typer.Option(help="Starts of each size.")] = 5,
    step: Annotated[float, typer.Option(help="Hours between measurements.")] = 0.1,
    total: Annotated[float, typer.Option(help="Hours in all.")] = 0.4,
    n_inducing: Annotated[int, typer.Option()] = 300,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
) -> None:
    """Forecast, calculate, compare."""
    problem = build(n_inducing, split)
    budgets = [round(step * k, 6) for k in range(round(total / step) + 1)]
    runs: list[dict[str, Any]] = []
    with bars() as report:
        for counts in STARTS:
            for seed in range(seeds):
                runs.append({"start": counts, "seed": seed} | forecast(problem, seed, counts, budgets))
                report("forecasts", len(runs), seeds * len(STARTS), "")
    Console().print(table(runs, budgets, len(problem.test)))
    if split == "validation":
        return
    write_result(
        "forecast", {"machine": machine(), "n_test": len(problem.test), "budgets_hours": budgets, "runs": runs}
    )


def forecast(problem: Problem, seed: int, counts: dict[str, int], budgets: list[float]) -> dict[str, list[float]]:
    """Forces of the test structures: std forecast by the first model; error and std of the models that came after."""
    first, targets = start(problem, seed, counts), [f.atoms for f in problem.test]
    model = problem.fit(first)
    names = list(problem.structures)
    found = select(
        model,
        list(problem.structures.values()),
        LEVELS[-1],
        budget_hours=budgets[-1],
        taken=[
            (i, t) for i, s in enumerate(names) for t in LEVELS if (s, t) in set(first) or (s, t) not in problem.frames
        ],
        targets=targets,
    )
    out: dict[str, list[float]] = {"forecast_std": [], "std": [], "rmse": []}
    for budget in budgets:
        later = problem.fit([*first, *((names[c.index], c.level) for c in within(found, budget))])
        aim = build_target(later, len(LEVELS) - 1, targets, {"forces": 1.0})
        variances = ((aim.rows @ later.covariances[-1]) * aim.rows).sum(1)
        out["forecast_std"].append(std_at(found, budget))
        out["std"].append(aim.deviations(variances)["forces"])
        out["rmse"].append(float((problem.errors(later) ** 2).mean() ** 0.5))
    return out


def table(runs: list[dict[str, Any]], budgets: list[float], n_test: int) -> Table:
    """Means over seeds in meV/Å."""
    out = Table(title=f"forces of held-out magnetic structures (n = {n_test}), rms in meV/Å, mean over seeds")
    out.add_column("start")
    out.add_column("")
    for budget in budgets:
        out.add_column(f"{budget:g} h", justify="right")
    for counts in STARTS:
        for key, name in (("forecast_std", "std, forecast"), ("std", "std, then"), ("rmse", "error, then")):
            mean = 1e3 * np.mean([r[key] for r in runs if r["start"] == counts], axis=0)
            out.add_row(f"{counts['nm']} nm + {counts['mag']} mag", name, *(f"{v:.0f}" for v in mean))
    return out


if __name__ == "__main__":
    typer.run(main)
