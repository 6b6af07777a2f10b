"""LMFP from two levels of DFT: fit, compare, plot, and run molecular dynamics with an error bar.

    python examples/lmfp/demo.py --out out/lmfp

Prints force and energy errors and 95 % coverage on held-out magnetic structures for the joint model, the magnetic level
alone and Delta-learning at several numbers of magnetic training structures; with `pip install -e '.[chgnet]'` also for the
joint model above CHGNet, and for CHGNet alone.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import units
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from rich.table import Table

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.base.console import data_table, estimate_line, stdout
from mfgp.base.progress import bars
from mfgp.baselines import Baseline, make_baselines
from mfgp.config import BaselineConfig, load_config
from mfgp.datasets import load_lmfp
from mfgp.estimate import estimate
from mfgp.fit.features import Features
from mfgp.learning_curve import Point, delta_learning, first_of_top, joint, learning_curve, top_level_only
from mfgp.report import learning_curve as learning_curve_plot
from mfgp.report import write_figure, write_plots

HERE = Path(__file__).parent
MODELS = {"joint": joint, "magnetic only": top_level_only, "delta-learning": delta_learning}
console = stdout()


@dataclass(frozen=True)
class Row:
    """One line of the table: energies in eV/atom, forces in eV/Å, coverages as shares; None where there is none."""

    n_mag: int
    model: str
    energy_mae: float
    force_mae: float
    energy_coverage: float | None = None
    force_coverage: float | None = None
    rho: float | None = None
    cpu_seconds: float | None = None


def main(
    out: Annotated[Path, typer.Option(help="Where plots and the model go.")] = Path("out/lmfp"),
    sizes: Annotated[
        str, typer.Option(help="Magnetic training structures, comma-separated; `all` is all.")
    ] = "5,20,all",
    n_inducing: Annotated[
        int, typer.Option(help="Inducing points; config.yaml has more, and nine fits with them take ten minutes.")
    ] = 1000,
    n_nm: Annotated[int | None, typer.Option(help="Use only the first so many non-magnetic structures.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of 1 fs of the NVE run.")] = 200,
) -> None:
    """Fit the LMFP set at growing numbers of magnetic structures, then run a short NVE."""
    start = time.perf_counter()
    config = load_config(HERE / "config.yaml", [f"model.n_inducing={n_inducing}"])
    frames = read_frames(
        {f.name: [*load_lmfp(f.name, "train"), *load_lmfp(f.name, "validation")] for f in config.fidelities}
    )
    training, held_out = frames.training(), frames.held_out()
    low, high = frames.levels
    training = FrameSet(frames.levels, (*training.of(low)[:n_nm], *training.of(high)))
    available = len(training.of(high))
    wanted = sorted({available if s == "all" else min(int(s), available) for s in sizes.split(",")})
    console.print(data_table(frames.summary(), frames.levels))
    console.print("one fit with all data, " + estimate_line(estimate(training, config)))

    with bars() as report:
        points = learning_curve(training, held_out, config, wanted, MODELS, report=report)
    rows = [row_of(p) for p in points]
    if importlib.util.find_spec("chgnet"):
        (chgnet,) = make_baselines((BaselineConfig(name="chgnet"),))
        above = above_chgnet(training, held_out, config, wanted, chgnet, points[0].model.features)
        rows += [row_of(p) for p in above] + chgnet_alone(training, held_out, wanted, chgnet)
        points += above
    console.print(table(rows, len(held_out.of(high))))

    best = [p for p in points if p.variant == "joint"][-1]
    plots = write_results(best, points, out)
    molecular_dynamics(best.model, held_out, steps)
    console.print(f"model {out / 'lmfp.mfgp'}; plots {', '.join(p.name for p in plots)} in {out}")
    console.print(f"done in {time.perf_counter() - start:.0f} s")


def write_results(best: Point, points: list[Point], out: Path) -> list[Path]:
    """Write the best model, the plots of its evaluation and the learning curves of all; returns the plots."""
    out.mkdir(parents=True, exist_ok=True)
    best.model.save(out / "lmfp.mfgp")
    names = dict.fromkeys(p.variant for p in points)
    maes = {name: {p.n_top: p.evaluation.forces.scores.mae for p in points if p.variant == name} for name in names}
    curves = {name: (list(mae), list(mae.values())) for name, mae in maes.items()}
    figure = learning_curve_plot(curves, "magnetic training structures")
    return [*write_plots(best.evaluation, out), write_figure(figure, out / "learning_curve.png")]


def above_chgnet(
    training: FrameSet, held_out: FrameSet, config: FitConfig, sizes: list[int], chgnet: Baseline, features: Features
) -> list[Point]:
    """The joint model, and the magnetic level alone, with CHGNet as a baseline."""
    with_baseline = config.model_copy(update={"baselines": (BaselineConfig(name="chgnet"),)})
    models = {"joint above CHGNet": joint, "magnetic above CHGNet": top_level_only}
    given, seen = {"chgnet": chgnet}, first_of_top(training, max(sizes), seed=0).frames
    with bars() as report:
        for i, f in enumerate(seen):
            chgnet.labels(f.atoms)
            report("CHGNet", i + 1, len(seen), "")
        return learning_curve(
            training, held_out, with_baseline, sizes, models, features=features, baselines=given, report=report
        )


def chgnet_alone(training: FrameSet, held_out: FrameSet, sizes: list[int], chgnet: Baseline) -> list[Row]:
    """CHGNet as it comes, its energies shifted by one reference per element fitted to the magnetic training structures."""
    rows, top = [], training.levels[-1]
    test = held_out.of(top)
    errors = np.concatenate([(chgnet.labels(f.atoms).forces - f.forces).ravel() for f in test if f.forces is not None])
    for n in sizes:
        few = first_of_top(training, n, seed=0).of(top)
        species = np.unique(np.concatenate([f.atoms.numbers for f in [*few, *test]]))
        counts = {id(f): np.array([(f.atoms.numbers == z).sum() for z in species]) for f in [*few, *test]}
        gap = [f.energy - chgnet.labels(f.atoms).energy for f in few if f.energy is not None]
        shift = np.linalg.lstsq(np.array([counts[id(f)] for f in few], dtype=float), np.array(gap), rcond=1e-6)[0]
        off = [
            (chgnet.labels(f.atoms).energy + counts[id(f)] @ shift - f.energy) / len(f.atoms)
            for f in test
            if f.energy is not None
        ]
        rows.append(Row(n, "CHGNet alone", float(np.abs(off).mean()), float(np.abs(errors).mean())))
    return rows


def row_of(p: Point) -> Row:
    """What the table shows of a fit."""
    energy, forces, rho = p.evaluation.energy.scores, p.evaluation.forces.scores, p.model.prior.rho
    mean_rho = float(rho.mean()) if rho.numel() else None
    return Row(
        p.n_top, p.variant, energy.mae, forces.mae, energy.coverage95, forces.coverage95, mean_rho, p.cpu_seconds
    )


def table(rows: list[Row], n_test: int) -> Table:
    """Errors and coverage of every model at every size."""
    out = Table(title=f"held-out magnetic structures (n = {n_test})")
    for name in (
        "mag structures",
        "model",
        "energy MAE",
        "force MAE",
        "energy in 95 %",
        "forces in 95 %",
        "rho",
        "fit CPU",
    ):
        out.add_column(name, justify="left" if name == "model" else "right")
    ordered = sorted(rows, key=lambda r: r.n_mag)
    for r, following in zip(ordered, [*ordered[1:], None], strict=True):
        out.add_row(
            str(r.n_mag),
            r.model,
            f"{1e3 * r.energy_mae:.2f} meV/atom",
            f"{1e3 * r.force_mae:.0f} meV/Å",
            "" if r.energy_coverage is None else f"{100 * r.energy_coverage:.0f} %",
            "" if r.force_coverage is None else f"{100 * r.force_coverage:.1f} %",
            "" if r.rho is None else f"{r.rho:.2f}",
            "" if r.cpu_seconds is None else f"{r.cpu_seconds:.1f} s",
            end_section=following is not None and following.n_mag != r.n_mag,
        )
    return out


def molecular_dynamics(model: MultiFidelityGP, held_out: FrameSet, steps: int) -> None:
    """NVE at 300 K from a held-out structure: energy drift, and the largest standard deviation of a local energy."""
    atoms = held_out.of(model.levels[-1])[0].atoms.copy()
    atoms.calc = model.calculator(uncertainty="energies")
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    Stationary(atoms)
    dynamics = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    energies, stds = [], []

    def record() -> None:
        energies.append(atoms.get_total_energy())
        stds.append(atoms.calc.results["energies_std"].max())

    dynamics.attach(record)
    atoms.get_forces()  # the first compiles its loops
    start = time.perf_counter()
    with bars() as report:
        dynamics.attach(lambda: report("NVE", len(energies), steps + 1, ""))
        dynamics.run(steps)
    seconds = time.perf_counter() - start
    ps = np.arange(len(energies)) * 1e-3
    drift = np.polyfit(ps, energies, 1)[0] / len(atoms)
    console.print(
        f"NVE, {steps} steps of 1 fs ({1e3 * seconds / steps / len(atoms):.2f} ms/atom/step): "
        f"drift {1e3 * drift:+.3f} meV/atom/ps, total energy within {1e3 * np.ptp(energies) / len(atoms):.3f} meV/atom; "
        f"largest std of a local energy against the mean of its element: {max(stds):.2f} eV, {stds[0]:.2f} at first "
        "(its rise says that the structure gets new, not its size)"
    )


if __name__ == "__main__":
    typer.run(main)
