"""Whose standard deviations can be trusted: calibrated and raw, against a committee and a constant, in and out of range.

    python benchmarks/uncertainty.py lmfp
    python benchmarks/uncertainty.py lmfp_folds                # each fifth of the training structures held out in turn
    python benchmarks/uncertainty.py lmfp_gfn1                 # stress too, which the other levels have no labels of
    python benchmarks/uncertainty.py lmfp --baseline sevennet-l3i5     # the same over a pretrained network
    python benchmarks/uncertainty.py acac --data PATH
    python benchmarks/uncertainty.py mlearn_si --data PATH     # gap_variance.py scores GAP's own on the same structures
    python benchmarks/uncertainty.py mlearn_si_coordination --data PATH    # atoms with neighbours of a number never seen

Every method sees the same training structures, descriptor and inducing points. The rivals (rivals.py) are given the same
help as the model: factors from structures that were left out. Errors are those of each method's own prediction. `sampled`
takes the standard deviations of forces and stress from eight draws of the weights, as molecular dynamics would, on at most
SAMPLED structures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase.neighborlist import neighbor_list
from common import machine, timed, write_result
from rich.console import Console
from rich.table import Table
from rivals import (
    Labels,
    Member,
    committee,
    committee_factors,
    committee_labels,
    constant,
    labels,
    pooled,
    residuals,
    sampled,
    scaled,
)

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.base.progress import bars
from mfgp.baselines.columns import make_baselines
from mfgp.config import BaselineConfig, load_config
from mfgp.datasets import LMFP, load_lmfp
from mfgp.fit.features import Features
from mfgp.frames import Frame

DRAWS, SAMPLED = 8, 100
FOLDS = 5
BOND = 2.85  # Å, between first and second neighbours of silicon
LMFP_TESTS = ("test", "test_second", "test_ood")
LABELS = Path.home() / ".cache" / "mfgp" / "uncertainty"  # of baselines, by a hash of the structure
COLUMNS = ("coverage95", "z_std", "nll", "crps", "spearman", "worst5_in_top10")


class Data(str, Enum):
    lmfp = "lmfp"
    lmfp_folds = "lmfp_folds"
    lmfp_gfn1 = "lmfp_gfn1"
    acac = "acac"
    mlearn_si = "mlearn_si"
    mlearn_si_coordination = "mlearn_si_coordination"


@dataclass(frozen=True)
class Case:
    """Training frames, test frames by name of the set, and settings."""

    training: FrameSet
    tests: dict[str, FrameSet]
    config: FitConfig


def main(
    name: Annotated[Data, typer.Argument()],
    data: Annotated[Path | None, typer.Option(help="Folder of acac or mlearn_si.")] = None,
    n_inducing: Annotated[int, typer.Option()] = 1000,
    n_top: Annotated[int, typer.Option(help="Structures of the highest level to train on; 0 is all.")] = 0,
    baseline: Annotated[
        str, typer.Option(help="A baseline below all levels, of all methods: a name known to mfgp.")
    ] = "",
    set_name: Annotated[str, typer.Option("--name", help="Name of the JSON file; uncertainty_<data> by default.")] = "",
) -> None:
    """Fit every method once (on every fold once) and score it on every test set and level."""
    every = cases()[name.value](data, n_inducing, n_top)
    if baseline:
        added = {"baselines": (BaselineConfig(name=baseline),)}
        every = [replace(case, config=case.config.model_copy(update=added)) for case in every]
    found: dict[tuple[str, str], list[dict[str, Labels]]] = {}
    calibrations, seconds = [], []
    for case in every:
        predicted, calibration, cpu = predictions(case)
        for key, by_method in predicted.items():
            found.setdefault(key, []).append(by_method)
        calibrations.append(calibration)
        seconds.append(cpu)
    rows = [
        row(level, test, method, pooled([one[method] for one in parts]))
        for (level, test), parts in found.items()
        for method in parts[0]
    ]
    Console(width=150).print(table(rows))
    case = every[0]
    write_result(
        set_name or f"uncertainty_{name.value}" + (f"_{baseline}" if baseline else ""),
        {
            "machine": machine(),
            "config": case.config.model_dump(mode="json", exclude={"fidelities"}),
            "fits": len(every),
            "training": {level: len(case.training.of(level)) for level in case.training.levels},
            "top_level": case.training.levels[-1],
            "rows": rows,
            "calibration": calibrations[0] if len(every) == 1 else calibrations,
            "cpu_seconds": {part: sum(cpu[part] for cpu in seconds) for part in seconds[0]},
        },
    )


def predictions(case: Case) -> tuple[dict[tuple[str, str], dict[str, Labels]], dict[str, Any], dict[str, float]]:
    """What every method says by level and test set; the model's calibration; CPU seconds."""
    baselines = {b.name: b for b in make_baselines(case.config.baselines, cache_dir=LABELS)}
    with bars() as report, timed() as building:
        features = Features.build(case.training, case.config, report, keep_rows=True)
    with timed() as fitting:
        model = MultiFidelityGP.fit(case.training, case.config, features=features, baselines=baselines)
    with timed() as committee_time:
        members = committee(case.training, replace_training(case.config, calibrate=False), features, baselines)
    found = {
        (level, test): methods(model, members, case.training, frames, level)
        for level in case.training.levels
        for test, frames in case.tests.items()
        if frames.of(level)
    }
    assert model.calibration is not None
    cpu = {"features": building.cpu, "fit": fitting.cpu, "committee": committee_time.cpu}
    return found, model.calibration.to_json(), cpu


def methods(
    model: MultiFidelityGP, members: Sequence[Member], training: FrameSet, frames: FrameSet, level: str
) -> dict[str, Labels]:
    """What every method that shares the descriptor says of a test set at a level."""
    good, plain = (labels(model, frames, level, calibrated) for calibrated in (True, False))
    return {
        "calibrated": good,
        "posterior": plain,
        "constant (left-out error)": constant(good, residuals(model, training, level)),
        "committee": scaled(committee_labels(members, frames, level), committee_factors(members, training.of(level))),
        f"sampled, {DRAWS} draws": sampled(model, frames.of(level)[:SAMPLED], level, DRAWS),
    }


def cases() -> dict[str, Callable[[Path | None, int, int], list[Case]]]:
    every = (lmfp, lmfp_folds, lmfp_gfn1, acac, mlearn_si, mlearn_si_coordination)
    return {case.__name__: case for case in every}


def lmfp_folds(_: Path | None, n_inducing: int, n_top: int) -> list[Case]:
    """nm below mag, a fifth of the training structures held out at both levels, in turn."""
    config = load_config(LMFP / "config.yaml", [f"model.n_inducing={n_inducing}"])
    frames = {level: load_lmfp(level, "train") for level in ("nm", "mag")}
    frames["mag"] = frames["mag"][: n_top or None]
    names = sorted({a.info["structure_id"] for found in frames.values() for a in found})
    fold = {name: k % FOLDS for k, name in enumerate(np.random.default_rng(0).permutation(names).tolist())}

    def part(k: int, held: bool) -> FrameSet:
        return read_frames(
            {
                level: [a for a in found if (fold[a.info["structure_id"]] == k) == held]
                for level, found in frames.items()
            }
        )

    return [Case(part(k, held=False), {"held out": part(k, held=True)}, config) for k in range(FOLDS)]


def lmfp(_: Path | None, n_inducing: int, n_top: int) -> list[Case]:
    """nm below mag, in range and apart."""
    config = load_config(LMFP / "config.yaml", [f"model.n_inducing={n_inducing}"])
    levels = ("nm", "mag")
    training = {level: load_lmfp(level, "train") for level in levels}
    training["mag"] = training["mag"][: n_top or None]
    tests = {split: read_frames({level: load_lmfp(level, split) for level in levels}) for split in LMFP_TESTS}
    return [Case(read_frames(training), tests, config)]


def lmfp_gfn1(_: Path | None, n_inducing: int, n_top: int) -> list[Case]:
    """The tight-binding level by itself, the one that has labels of the stress."""
    config = load_config(LMFP / "config.yaml", [f"model.n_inducing={n_inducing}"])
    training = read_frames({"gfn1": load_lmfp("gfn1", "train")[: n_top or None]})
    tests = {split: read_frames({"gfn1": load_lmfp("gfn1", split)}) for split in LMFP_TESTS}
    return [Case(training, tests, config)]


def acac(data: Path | None, n_inducing: int, n_top: int) -> list[Case]:
    """GFN1 below n_top (25 by default) PBE molecules at 300 K; tests at 300 and 600 K."""
    from acac import configuration

    folder = needed(data)
    levels = ("gfn1", "pbe")
    files = {
        level: [folder / f"isolated_atoms_{level}.extxyz", folder / f"train_300K_{level}.extxyz"] for level in levels
    }
    everything = read_frames(files)
    atoms = [f for f in everything.of("pbe") if f.isolated_atom]
    chosen = [f for f in everything.of("pbe") if not f.isolated_atom][: n_top or 25]
    training = FrameSet(levels, (*everything.of("gfn1"), *atoms, *chosen))
    tests = {
        "300 K": read_frames({level: folder / f"test_300K_{level}.extxyz" for level in levels}),
        "600 K": FrameSet(levels, tuple(read_frames({"pbe": folder / "test_600K_pbe.extxyz"}))),
    }
    return [Case(training, tests, configuration(n_inducing, {}))]


def mlearn_si(data: Path | None, n_inducing: int, _: int) -> list[Case]:
    folder = needed(data)
    training, test = (read_frames({"pbe": folder / f"{split}.extxyz"}) for split in ("training", "test"))
    return [Case(training, {"test": test}, silicon_config(n_inducing))]


def mlearn_si_coordination(data: Path | None, n_inducing: int, _: int) -> list[Case]:
    """The crystals of the training set whose atoms all have four neighbours; apart, the structures with other atoms.

    Those are crystals near melting (64 atoms), with a vacancy (63), and surfaces.
    """
    frames = read_frames({"pbe": needed(data) / "training.extxyz"})
    kinds = {64: "near melting", 63: "vacancies"}
    tests: dict[str, list[Frame]] = {}
    training = []
    for f in frames:
        bonds = np.bincount(neighbor_list("i", f.atoms, BOND), minlength=len(f.atoms))
        crystal = len(f.atoms) == 64 and (bonds == 4).all()
        (training if crystal else tests.setdefault(kinds.get(len(f.atoms), "surfaces"), [])).append(f)
    apart = {name: FrameSet(frames.levels, tuple(found)) for name, found in tests.items()}
    return [Case(FrameSet(frames.levels, tuple(training)), apart, silicon_config(n_inducing))]


def silicon_config(n_inducing: int) -> FitConfig:
    """Settings of mlearn_si.py, calibrated."""
    from mlearn_si import SETTINGS

    config = FitConfig.model_validate(SETTINGS)
    config = config.model_copy(update={"model": config.model.model_copy(update={"n_inducing": n_inducing})})
    return replace_training(config, calibrate=True)


def needed(data: Path | None) -> Path:
    if data is None:
        raise typer.BadParameter("--data PATH is needed for these data.")
    return data


def replace_training(config: FitConfig, **values: Any) -> FitConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=values)})


def row(level: str, test: str, method: str, found: Labels) -> dict[str, Any]:
    scores = {kind: compared.scores.to_json() for kind, compared in found.kinds().items()}
    return {"level": level, "test": test, "method": method, **scores}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="energy per atom (meV) | force components (meV/Å) | stress components (meV/Å^3)")
    for column in ("level", "test", "method", "property", "n", "RMSE", *COLUMNS):
        out.add_column(column, justify="left" if column in ("level", "test", "method", "property") else "right")
    for r in rows:
        for kind in ("energy", "forces", "stress"):
            if kind not in r:
                continue
            s = r[kind]
            cells = ["–" if s[c] is None else f"{s[c]:.3g}" for c in COLUMNS]
            out.add_row(r["level"], r["test"], r["method"], kind, str(s["n"]), f"{1e3 * s['rmse']:.3g}", *cells)
    return out


if __name__ == "__main__":
    typer.run(main)
