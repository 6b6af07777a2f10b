"""What to choose hyperparameters by: evidence, variational bound or cross-validation, on held-out training structures.

    python benchmarks/objectives.py lmfp --folds 5
    python benchmarks/objectives.py acac --data PATH
    python benchmarks/objectives.py mlearn_si --data PATH

One fifth of the training structures is held out (no test set is looked at), or each fifth in turn, scored together; all
objectives share descriptor and inducing points. Scores of the highest level, with the posterior's own standard deviations
and with the calibrated ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import machine, timed, write_result
from rich.console import Console
from rich.table import Table
from rivals import Labels, labels
from uncertainty import Data, cases, replace_training

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.base.progress import bars
from mfgp.evaluation import Comparison
from mfgp.fit.features import Features
from mfgp.fit.fitting import in_folds

OBJECTIVES = ("evidence", "vfe", "cv")
COLUMNS = ("rmse", "nll", "coverage95", "z_std", "spearman")


def main(
    name: Annotated[Data, typer.Argument()],
    data: Annotated[Path | None, typer.Option(help="Folder of acac or mlearn_si.")] = None,
    n_inducing: Annotated[int, typer.Option()] = 600,
    n_top: Annotated[int, typer.Option(help="Structures of the highest level; 0 is the default of the data.")] = 0,
    folds: Annotated[int, typer.Option(help="How many of the five fifths are held out, one after the other.")] = 1,
) -> None:
    """Fit with every objective and score what was held out."""
    case = cases()[name.value](data, n_inducing, n_top)[0]
    config = replace_training(case.config, n_optimise=None)
    parts = in_folds(FrameSet(case.training.levels, tuple(case.training)), 5, seed=0)
    found = [one_fold(case.training, parts, k, config) for k in range(folds)]
    rows = [together([fold[i] for fold in found]) for i in range(len(found[0]))]
    Console(width=140).print(table(rows, case.training.levels[-1]))
    write_result(
        f"objectives_{name.value}",
        {
            "machine": machine(),
            "config": config.model_dump(mode="json", exclude={"fidelities"}),
            "training": {level: len(case.training.of(level)) for level in case.training.levels},
            "folds": folds,
            "held_out": rows[0]["energy"]["n"],
            "rows": rows,
        },
    )


@dataclass(frozen=True)
class Fitted:
    """What one fit says of the structures that it has not seen."""

    objective: str
    calibrated: bool
    found: Labels
    noise: dict[str, float]
    cpu_seconds: float


def one_fold(everything: FrameSet, parts: Sequence[FrameSet], k: int, config: FitConfig) -> list[Fitted]:
    """Every objective, raw and calibrated, on the structures of part k, fitted to the others and the isolated atoms."""
    held_out, top = parts[k], everything.levels[-1]
    left_out = {id(f) for f in held_out}
    training = FrameSet(everything.levels, tuple(f for f in everything if id(f) not in left_out))
    with bars() as report:
        features = Features.build(training, config, report, keep_rows=True)
        for i, frame in enumerate(everything):  # once for all objectives
            features.functionals(frame.atoms)
            features.rows(frame.atoms)
            report("rows", i + 1, len(everything), "")
    out = []
    for objective in OBJECTIVES:
        with timed() as timing:
            model = MultiFidelityGP.fit(training, replace_training(config, objective=objective), features=features)
        noise = model.hyperparameters()["noise"][top]
        for calibrated in (False, True):
            out.append(Fitted(objective, calibrated, labels(model, held_out, top, calibrated), noise, timing.cpu))
    return out


def together(folds: Sequence[Fitted]) -> dict[str, Any]:
    """Scores over the labels of all folds."""

    def joined(kind: str) -> dict[str, Any]:
        parts = [fold.found.kinds()[kind] for fold in folds]
        columns = (np.concatenate([getattr(c, name) for c in parts]) for name in ("label", "predicted", "std"))
        return Comparison(*columns).scores.to_json()

    return {
        "objective": folds[0].objective,
        "calibrated": folds[0].calibrated,
        "energy": joined("energy"),
        "forces": joined("forces"),
        "noise": [fold.noise for fold in folds],
        "fit_cpu_seconds": float(np.mean([fold.cpu_seconds for fold in folds])),
    }


def table(rows: list[dict[str, Any]], level: str) -> Table:
    out = Table(title=f"level {level}, held-out training structures; RMSE in meV/atom and meV/Å")
    for column in ("objective", "std", "property", "n", *COLUMNS, "fit CPU s"):
        out.add_column(column, justify="left" if column in ("objective", "std", "property") else "right")
    for r in rows:
        for kind in ("energy", "forces"):
            cells = [f"{1e3 * r[kind][c]:.3g}" if c == "rmse" else f"{r[kind][c]:.3g}" for c in COLUMNS]
            std = "calibrated" if r["calibrated"] else "posterior"
            out.add_row(r["objective"], std, kind, str(r[kind]["n"]), *cells, f"{r['fit_cpu_seconds']:.1f}")
    return out


if __name__ == "__main__":
    typer.run(main)
