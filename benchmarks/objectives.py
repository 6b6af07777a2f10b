"""What to choose hyperparameters by: evidence, variational bound or cross-validation, on held-out training structures.

    python benchmarks/objectives.py lmfp
    python benchmarks/objectives.py acac --data PATH
    python benchmarks/objectives.py mlearn_si --data PATH

One fifth of the training structures is held out (no test set is looked at); all objectives share descriptor and inducing
points. Scores of the highest level, with the posterior's own standard deviations and with the calibrated ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from common import machine, timed, write_result
from rich.console import Console
from rich.table import Table
from uncertainty import Data, cases, labels, replace_training

from mfgp import FrameSet, MultiFidelityGP
from mfgp.features import Features
from mfgp.fitting import in_folds
from mfgp.progress import bars

OBJECTIVES = ("evidence", "vfe", "cv")
COLUMNS = ("rmse", "nll", "coverage95", "z_std", "spearman")


def main(
    name: Annotated[Data, typer.Argument()],
    data: Annotated[Path | None, typer.Option(help="Folder of acac or mlearn_si.")] = None,
    n_inducing: Annotated[int, typer.Option()] = 600,
    n_top: Annotated[int, typer.Option(help="Structures of the highest level; 0 is the default of the data.")] = 0,
) -> None:
    """Fit with every objective and score the held-out fifth."""
    case = cases()[name.value](data, n_inducing, n_top)
    config = replace_training(case.config, n_optimise=None)
    held_out, *rest = in_folds(FrameSet(case.training.levels, tuple(case.training)), 5, seed=0)
    atoms = tuple(f for f in held_out if f.isolated_atom)
    training = FrameSet(case.training.levels, tuple(f for part in rest for f in part) + atoms)
    held_out = FrameSet(held_out.levels, tuple(f for f in held_out if not f.isolated_atom))
    top = training.levels[-1]
    with bars() as report:
        features = Features.build(training, config, report, keep_rows=True)
        for i, frame in enumerate(case.training):  # once for all objectives
            features.functionals(frame.atoms)
            features.rows(frame.atoms)
            report("rows", i + 1, len(case.training), "")
    rows: list[dict[str, Any]] = []
    for objective in OBJECTIVES:
        with timed() as timing:
            model = MultiFidelityGP.fit(training, replace_training(config, objective=objective), features=features)
        for calibrated in (False, True):
            found = labels(model, held_out, top, calibrated)
            rows.append(
                {
                    "objective": objective,
                    "calibrated": calibrated,
                    "energy": found.energy.scores.to_json(),
                    "forces": found.forces.scores.to_json(),
                    "noise": model.hyperparameters()["noise"][top],
                    "fit_cpu_seconds": timing.cpu,
                }
            )
    Console(width=140).print(table(rows, top))
    write_result(
        f"objectives_{name.value}",
        {
            "machine": machine(),
            "config": config.model_dump(mode="json", exclude={"fidelities"}),
            "training": {level: len(training.of(level)) for level in training.levels},
            "held_out": len(held_out.of(top)),
            "rows": rows,
        },
    )


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
