"""Whose standard deviations can be trusted: calibrated and raw, against a committee and a constant, in and out of range.

    python benchmarks/uncertainty.py lmfp
    python benchmarks/uncertainty.py acac --data PATH
    python benchmarks/uncertainty.py mlearn_si --data PATH

Every method sees the same training structures, descriptor and inducing points. The committee (eight models, each fitted to
half of the structures, the prediction their mean) and the constants are given the same help as the model: one factor by
property and species from structures that were left out (the committee's out-of-bag members; leave-one-out errors for the
constant). Errors are those of each method's own prediction. `sampled` takes the forces' standard deviations from eight draws
of the weights, as molecular dynamics would, on at most SAMPLED structures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import machine, timed, write_result
from rich.console import Console
from rich.table import Table

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.config import load_config
from mfgp.datasets import LMFP, load_lmfp
from mfgp.evaluation import Comparison, evaluate
from mfgp.features import Features, structure_key
from mfgp.frames import Frame
from mfgp.progress import bars

MEMBERS = 8
DRAWS, SAMPLED = 8, 100
COLUMNS = ("coverage95", "z_std", "nll", "crps", "spearman", "worst5_in_top10")


class Data(str, Enum):
    lmfp = "lmfp"
    acac = "acac"
    mlearn_si = "mlearn_si"


@dataclass(frozen=True)
class Case:
    """Training frames, test frames by name of the set, and settings."""

    training: FrameSet
    tests: dict[str, FrameSet]
    config: FitConfig


@dataclass(frozen=True)
class Labels:
    """Predictions beside labels of a test set: energies per atom and force components, with the species of these."""

    energy: Comparison
    forces: Comparison
    species: np.ndarray
    sizes: np.ndarray  # [n] atoms of each structure with an energy


def main(
    name: Annotated[Data, typer.Argument()],
    data: Annotated[Path | None, typer.Option(help="Folder of acac or mlearn_si.")] = None,
    n_inducing: Annotated[int, typer.Option()] = 1000,
    n_top: Annotated[int, typer.Option(help="Structures of the highest level to train on; 0 is all.")] = 0,
    set_name: Annotated[str, typer.Option("--name", help="Name of the JSON file; uncertainty_<data> by default.")] = "",
) -> None:
    """Fit every method once and score it on every test set and level."""
    case = cases()[name.value](data, n_inducing, n_top)
    top = case.training.levels[-1]
    with bars() as report, timed() as building:
        features = Features.build(case.training, case.config, report, keep_rows=True)
    with timed() as fitting:
        model = MultiFidelityGP.fit(case.training, case.config, features=features)
    raw = replace_training(case.config, calibrate=False)
    with timed() as committee_time:
        members = committee(case.training, raw, features)
    rows: list[dict[str, Any]] = []
    for level in case.training.levels:
        left_out = residuals(model, case.training, level)
        factors = committee_factors(members, case.training.of(level))
        for test, frames in case.tests.items():
            if not frames.of(level):
                continue
            good, plain = (labels(model, frames, level, calibrated) for calibrated in (True, False))
            methods = {
                "calibrated": good,
                "posterior": plain,
                "constant (left-out error)": constant(good, left_out),
                "committee": scaled(committee_labels(members, frames, level), factors),
                f"sampled, {DRAWS} draws": sampled(model, frames.of(level)[:SAMPLED], level),
            }
            for method, found in methods.items():
                rows.append(row(level, test, method, found))
    Console(width=150).print(table(rows))
    assert model.calibration is not None
    write_result(
        set_name or f"uncertainty_{name.value}",
        {
            "machine": machine(),
            "config": case.config.model_dump(mode="json", exclude={"fidelities"}),
            "training": {level: len(case.training.of(level)) for level in case.training.levels},
            "top_level": top,
            "rows": rows,
            "calibration": model.calibration.to_json(),
            "cpu_seconds": {"features": building.cpu, "fit": fitting.cpu, "committee": committee_time.cpu},
        },
    )


def cases() -> dict[str, Callable[[Path | None, int, int], Case]]:
    return {"lmfp": lmfp, "acac": acac, "mlearn_si": mlearn_si}


def lmfp(_: Path | None, n_inducing: int, n_top: int) -> Case:
    """nm below mag, in range and apart."""
    config = load_config(LMFP / "config.yaml", [f"model.n_inducing={n_inducing}"])
    levels = ("nm", "mag")
    training = {level: load_lmfp(level, "train") for level in levels}
    training["mag"] = training["mag"][: n_top or None]
    tests = {split: read_frames({level: load_lmfp(level, split) for level in levels}) for split in ("test", "test_ood")}
    return Case(read_frames(training), tests, config)


def acac(data: Path | None, n_inducing: int, n_top: int) -> Case:
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
    return Case(training, tests, configuration(n_inducing, {}))


def mlearn_si(data: Path | None, n_inducing: int, _: int) -> Case:
    from mlearn_si import SETTINGS

    folder = needed(data)
    config = FitConfig.model_validate(SETTINGS)
    config = config.model_copy(update={"model": config.model.model_copy(update={"n_inducing": n_inducing})})
    return Case(
        read_frames({"pbe": folder / "training.extxyz"}),
        {"test": read_frames({"pbe": folder / "test.extxyz"})},
        replace_training(config, calibrate=True),
    )


def needed(data: Path | None) -> Path:
    if data is None:
        raise typer.BadParameter("--data PATH is needed for these data.")
    return data


def replace_training(config: FitConfig, **values: Any) -> FitConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=values)})


def labels(model: MultiFidelityGP, frames: FrameSet, level: str, calibrated: bool) -> Labels:
    found = evaluate(model, frames, level, calibrated=calibrated)
    sizes = np.array([len(f.atoms) for f in frames.of(level) if f.energy is not None])
    return Labels(found.energy, found.forces, found.force_species, sizes)


def sampled(model: MultiFidelityGP, frames: Sequence[Frame], level: str) -> Labels:
    """Calibrated standard deviations of forces from draws of the weights (those of energies are exact)."""
    predictor = model.predictor(level, draws=DRAWS)
    found = [(f, predictor(f.atoms, "sampled")) for f in frames if f.energy is not None and f.forces is not None]
    n = np.array([len(f.atoms) for f, _ in found])
    energy = np.array([(f.energy, p.energy, p.energy_std) for f, p in found]).T / n
    forces = np.concatenate([np.stack([f.forces, p.forces, p.forces_std]).reshape(3, -1) for f, p in found], axis=1)
    species = np.concatenate([np.repeat(f.atoms.numbers, 3) for f, _ in found])
    return Labels(Comparison(*energy), Comparison(*forces), species, n)


@dataclass(frozen=True)
class Member:
    """A model of the committee and the structures that it was fitted to."""

    model: MultiFidelityGP
    seen: frozenset[bytes]


def committee(training: FrameSet, config: FitConfig, features: Features) -> list[Member]:
    """Eight models, each fitted to a random half of the structures (isolated atoms always)."""
    keys = list(dict.fromkeys(structure_key(f.atoms) for f in training if not f.isolated_atom))
    members = []
    with bars() as report:
        for k in range(MEMBERS):
            half = np.random.default_rng([0, k]).permutation(len(keys))[: len(keys) // 2]
            chosen = frozenset(keys[i] for i in half)
            part = tuple(f for f in training if f.isolated_atom or structure_key(f.atoms) in chosen)
            subset = FrameSet(training.levels, part)
            members.append(Member(MultiFidelityGP.fit(subset, config, features=features, progress=False), chosen))
            report("committee", k + 1, MEMBERS, "")
    return members


def committee_labels(members: Sequence[Member], frames: FrameSet, level: str) -> Labels:
    """Mean of the members and their standard deviation."""
    found = [labels(m.model, frames, level, calibrated=False) for m in members]

    def mean(kind: str) -> Comparison:
        each = np.stack([getattr(f, kind).predicted for f in found])
        return Comparison(getattr(found[0], kind).label, each.mean(0), each.std(0, ddof=1))

    return replace(found[0], energy=mean("energy"), forces=mean("forces"))


def committee_factors(members: Sequence[Member], frames: Sequence[Frame]) -> dict[int, float]:
    """Ratio of error to spread over the members that have not seen a structure: 0 energies, else species of forces."""
    error: dict[int, list[float]] = {}
    for frame in frames:
        unseen = [m for m in members if structure_key(frame.atoms) not in m.seen]
        if len(unseen) < 3 or frame.isolated_atom or frame.energy is None or frame.forces is None:
            continue
        found = [m.model.predict(frame.atoms, frame.fidelity, calibrated=False, uncertainty="none") for m in unseen]
        energies, forces = np.array([p.energy for p in found]), np.stack([p.forces for p in found])
        error.setdefault(0, []).append((energies.mean() - frame.energy) ** 2 / energies.var(ddof=1))
        ratio = (forces.mean(0) - frame.forces) ** 2 / forces.var(0, ddof=1)
        for z in np.unique(frame.atoms.numbers).tolist():
            error.setdefault(z, []).extend(ratio[frame.atoms.numbers == z].ravel().tolist())
    return {z: trimmed_scale(np.array(values)) for z, values in error.items()}


def trimmed_scale(squares: np.ndarray) -> float:
    """Factor that brings 95 % of the standardised errors inside the 95 % interval."""
    return float(np.quantile(np.sqrt(squares), 0.95)) / 1.959964


def scaled(found: Labels, factors: dict[int, float]) -> Labels:
    """Standard deviations times the factor of the energies, or of the species that a force acts on."""
    by_species = np.array([factors.get(int(z), 1.0) for z in found.species])
    return replace(
        found,
        energy=replace(found.energy, std=found.energy.std * factors.get(0, 1.0)),
        forces=replace(found.forces, std=found.forces.std * by_species),
    )


def residuals(model: MultiFidelityGP, training: FrameSet, level: str) -> dict[int, float]:
    """Root mean square of the left-out errors: 0 energies (eV per sqrt(atom)), else forces on a species (eV/Å)."""
    from mfgp.model import CALIBRATION_STRUCTURES, spread

    sample = spread(training, CALIBRATION_STRUCTURES, model.config.seed)
    parts = [p for p in model.leave_one_out(sample) if p.frame.fidelity == level]
    out = {0: float(np.sqrt(np.concatenate([p.error**2 for p in parts if p.kind == "energy"]).mean()))}
    for z in model.basis.species:
        squares = [p.error[p.species == z] ** 2 for p in parts if p.kind == "forces"]
        out[z] = float(np.sqrt(np.concatenate(squares).mean())) if squares else 1.0
    return out


def constant(found: Labels, rms: dict[int, float]) -> Labels:
    """The same predictions with one standard deviation for all energies, and one for the forces on each species."""
    energy = rms[0] / np.sqrt(found.sizes)
    forces = np.array([rms[int(z)] for z in found.species])
    return replace(found, energy=replace(found.energy, std=energy), forces=replace(found.forces, std=forces))


def row(level: str, test: str, method: str, found: Labels) -> dict[str, Any]:
    return {
        "level": level,
        "test": test,
        "method": method,
        "energy": found.energy.scores.to_json(),
        "forces": found.forces.scores.to_json(),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="energy per atom (meV) | force components (meV/Å)")
    for column in ("level", "test", "method", "property", "n", "RMSE", *COLUMNS):
        out.add_column(column, justify="left" if column in ("level", "test", "method", "property") else "right")
    for r in rows:
        for kind in ("energy", "forces"):
            s = r[kind]
            cells = ["–" if s[c] is None else f"{s[c]:.3g}" for c in COLUMNS]
            out.add_row(r["level"], r["test"], r["method"], kind, str(s["n"]), f"{1e3 * s['rmse']:.3g}", *cells)
    return out


if __name__ == "__main__":
    typer.run(main)
