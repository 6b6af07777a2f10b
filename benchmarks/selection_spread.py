"""How much the choice of magnetic structures can matter on LMFP: the spread of random choices for the same hours.

    python benchmarks/selection_spread.py [--split validation] [--hours 0.28] [--draws 40]

From one start (benchmarks/selection.py) random magnetic structures are bought for the same hours, many times; the standard
deviation of the error over the draws, and the best of them, indicate what a strategy can gain by choosing among these
structures. The rank correlation of the error with the forecast standard deviation (of `predict`, over the pool) says how
much of that the model's own variance sees.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer
from common import machine, write_result
from rich.console import Console
from scipy.stats import spearmanr
from selection import Campaign, build, random_mix, start

from mfgp.base.progress import bars
from mfgp.selection.targets import build_target


def main(
    hours: Annotated[float, typer.Option(help="Hours of every draw.")] = 0.28,
    draws: Annotated[int, typer.Option(help="Random choices.")] = 40,
    n_inducing: Annotated[int, typer.Option()] = 300,
    split: Annotated[str, typer.Option(help="test or validation.")] = "validation",
    seed: Annotated[int, typer.Option(help="Of the start.")] = 0,
) -> None:
    """Draw, fit, score."""
    problem = build(n_inducing, split)
    first = start(problem, seed)
    model = problem.fit(first)
    aim = build_target(model, 1, list(problem.structures.values()), {"forces": 1.0})
    mae, std, n_mag = [], [], []
    with bars() as report:
        for k in range(draws):
            campaign = Campaign(problem, list(first), model, np.random.default_rng(5000 + k))
            random_mix(1.0)(campaign, hours)
            found = problem.fit(campaign.labelled)
            mae.append(float(np.abs(problem.errors(found)).mean()))
            std.append(float(((aim.rows @ found.covariances[1]) * aim.rows).sum()) ** 0.5)
            n_mag.append(sum(p[1] == "mag" for p in campaign.labelled))
            report("draws", k + 1, draws, "")
    values = np.array(mae)
    result = {
        "machine": machine(),
        "split": split,
        "n_test": len(problem.test),
        "hours": hours,
        "draws": draws,
        "n_mag": float(np.mean(n_mag)),
        "force_mae": {"mean": values.mean(), "sd": values.std(ddof=1), "best": values.min(), "worst": values.max()},
        "spearman_with_posterior_std": float(spearmanr(mae, std)[0]),
        "spearman_with_n_mag": float(spearmanr(mae, n_mag)[0]),
    }
    Console().print({k: v for k, v in result.items() if k != "machine"})
    write_result("selection_spread", result)


if __name__ == "__main__":
    typer.run(main)
