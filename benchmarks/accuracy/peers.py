"""One level: our model beside what a user would reach for instead, on the same structures with the same labels.

    python benchmarks/accuracy/peers.py acac --data PATH_TO_acac --mace mace/bin --sgdml sgdml/bin/python
    python benchmarks/accuracy/peers.py mlearn_si --data PATH_TO_mlearn_si --mace mace/bin
    python benchmarks/accuracy/peers.py acac --data PATH_TO_acac --folds --gap n_sparse=1000     # to choose settings by

acac: 500 PBE molecules at 300 K train; 650 at 300 K and 650 at 600 K are held out. mlearn_si: the training set and the test
set of silicon. --folds holds out every fifth training structure instead. gap_fit comes with '.[bench]'; MACE and sGDML live
in environments of their own (mace_rival.py, sgdml_rival.py). A result is written as soon as it is there, and a method that
has one is not run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))  # common

from common import RESULTS, data_option, machine, write_result
from mace_rival import FromScratch, with_averages
from peer_methods import GP, GapFit
from sgdml_rival import SGDML
from task import Method, Predicted, Task, scores

from mfgp import FitConfig, FrameSet, read_frames
from mfgp.frames import Frame

EVERY = 5  # with --folds, each so-manieth training structure is held out
Sets = dict[str, list[Frame]]


@dataclass(frozen=True)
class Case:
    """Files of the training structures and of the held-out sets, and the settings of each method."""

    training: tuple[str, ...]
    held_out: Mapping[str, str]
    ours: Mapping[str, FitConfig]
    gap: Mapping[str, str]
    mace: Mapping[str, str]
    molecule: bool = False


SILICON = {"preset": "solid", "descriptor": {"sigma": 0.6, "radial_scaling": {"r0": 3.0, "m": 2}}}
CASES = {
    "acac": Case(
        ("isolated_atoms_pbe.extxyz", "train_300K_pbe.extxyz"),
        {"300 K": "test_300K_pbe.extxyz", "600 K": "test_600K_pbe.extxyz"},
        {
            "GP, M = 4000": FitConfig(preset="molecule", model={"n_inducing": 4000}, device="cpu"),
            "GP over GFN1-xTB, M = 4000": FitConfig(
                preset="molecule", model={"n_inducing": 4000}, baselines=[{"name": "tblite"}], device="cpu"
            ),
        },
        {
            "n_max": "8",
            "l_max": "4",
            "atom_sigma": "0.5",
            "zeta": "4",
            "cutoff": "5.0",
            "delta": "0.5",
            "n_sparse": "1333",
            "sigma_energy": "0.0003",
            "sigma_force": "0.01",
            "pairs": "20",
            "pair_delta": "2.0",
        },
        with_averages(200, E0s="IsolatedAtom", valid_fraction="0.05", batch_size="5", valid_batch_size="25"),
        molecule=True,
    ),
    "mlearn_si": Case(
        ("training.extxyz",),
        {"test": "test.extxyz"},
        {
            f"GP, M = {m}": FitConfig(
                **SILICON, model={"n_inducing": m}, training={"max_energy_ratio": 0.02}, device="cpu"
            )
            for m in (1000, 2000)
        },
        {
            "n_max": "8",
            "l_max": "6",
            "atom_sigma": "0.6",
            "zeta": "4",
            "cutoff": "5.0",
            "delta": "1.0",
            "n_sparse": "1000",
            "sigma_energy": "0.004",
            "sigma_force": "0.1",
        },
        with_averages(120, valid_fraction="0.05", batch_size="2"),
    ),
}


def main(
    case: Annotated[str, typer.Argument(help=f"{' or '.join(CASES)}.")],
    data: Annotated[Path, data_option("the structures")],
    methods: Annotated[list[str] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    mace: Annotated[Path | None, typer.Option(help="Folder with mace_run_train; no MACE without.")] = None,
    sgdml: Annotated[Path | None, typer.Option(help="Interpreter that has sgdml; no sGDML without.")] = None,
    gap: Annotated[list[str] | None, typer.Option(help="Override a setting of gap_fit, e.g. zeta=2.")] = None,
    folds: Annotated[bool, typer.Option("--folds", help="Score training structures; writes no result.")] = False,
) -> None:
    """Run every method that has no result yet, then print all."""
    torch.set_num_threads(1)
    chosen, console = CASES[case], Console()
    chosen = replace(chosen, gap={**chosen.gap, **dict(s.split("=") for s in gap or [])})
    training, sets = read(chosen, data, folds)
    name = f"peers_{case}"
    runs = {} if folds else existing(name)
    every = available(chosen, mace, sgdml)
    for method in methods or list(every):
        if method not in every:
            raise typer.BadParameter(f"no method {method}; known are {'; '.join(every)}.")
        if method in runs:
            continue
        runs[method] = run(every[method], training, sets)
        if not folds:
            sizes = {key: len(frames) for key, frames in sets.items()}
            write_result(name, {"machine": machine(), "data": training.summary(), "held_out": sizes, "runs": runs})
        console.print(table({method: runs[method]}, sets))
    console.print(table(runs, sets))


def read(case: Case, data: Path, folds: bool) -> tuple[FrameSet, Sets]:
    """Training frames of the one level, and the held-out sets by name."""
    training = read_frames({"pbe": [data / name for name in case.training]})
    if not folds:
        sets = {key: read_frames({"pbe": data / name}).of("pbe") for key, name in case.held_out.items()}
        return training, sets
    alone = [f for f in training if f.isolated_atom]
    rest = [f for f in training if not f.isolated_atom]
    keep = [f for i, f in enumerate(rest) if i % EVERY != EVERY - 1]
    return FrameSet(training.levels, (*alone, *keep)), {"fold": rest[EVERY - 1 :: EVERY]}


def available(case: Case, mace: Path | None, sgdml: Path | None) -> dict[str, Method]:
    """Every method by its name."""
    return {
        **{name: GP(config) for name, config in case.ours.items()},
        "gap_fit": GapFit(case.gap),
        **({"sGDML": SGDML(sgdml)} if sgdml is not None and case.molecule else {}),
        **({"MACE, from scratch": FromScratch(mace, case.mace)} if mace is not None else {}),
    }


def run(method: Method, training: FrameSet, sets: Sets) -> dict[str, Any]:
    """Train once, and score every set."""
    everything = [f for frames in sets.values() for f in frames]
    task = Task(training, everything, len(training.of(training.levels[-1])), 0)
    found = method(task)
    out, start = {}, 0
    for key, frames in sets.items():
        stop = start + len(frames)
        coverage = method.covered(replace(task, held_out=frames)) if isinstance(method, GP) else None
        own = Predicted(found.energies[start:stop], found.forces[start:stop], None, found.cpu_seconds, coverage)
        out[key] = scores(own, frames)
        start = stop
    return {"cpu_seconds": found.cpu_seconds, "settings": found.note, "sets": out}


def existing(name: str) -> dict[str, Any]:
    """Runs of an earlier call."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}


def table(runs: Mapping[str, Any], sets: Sets) -> Table:
    """Errors of every method on every set."""
    out = Table(title=", ".join(f"{key}: {len(frames)} structures" for key, frames in sets.items()))
    for column in ("method", "set", "E MAE, RMSE meV/atom", "F MAE, RMSE meV/Å", "95 % E, F", "training CPU s"):
        out.add_column(column, justify="left" if column in ("method", "set") else "right")
    for method, r in runs.items():
        for key, s in r["sets"].items():
            energy, force = (f"{1e3 * s[f'{x}_mae']:.2f}, {1e3 * s[f'{x}_rmse']:.2f}" for x in ("energy", "force"))
            coverage = s["coverage95"]
            covered = f"{100 * coverage['energy']:.1f}, {100 * coverage['forces']:.1f}" if coverage else ""
            out.add_row(method, key, energy, force, covered, f"{r['cpu_seconds']:.0f}")
    return out


if __name__ == "__main__":
    typer.run(main)
