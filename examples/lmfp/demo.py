"""LMFP from two levels of DFT: fit, compare, plot, and run molecular dynamics with an error bar.

    python examples/lmfp/demo.py --out out/lmfp

Prints force and energy errors and 95 % coverage on held-out magnetic structures for the joint model, the magnetic level
alone and Delta-learning at several numbers of magnetic training structures; with `pip install -e '.[chgnet]'` also for the
joint model above CHGNet, and for CHGNet alone.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import units
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from rich.table import Table

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.config import BaselineConfig, load_config
from mfgp.console import data_table, estimate_line, stdout
from mfgp.estimate import estimate
from mfgp.learning_curve import Point, delta_learning, joint, learning_curve, top_level_only
from mfgp.progress import bars
from mfgp.report import learning_curve as learning_curve_plot
from mfgp.report import write_figure, write_plots

HERE = Path(__file__).parent
MODELS = {"joint": joint, "magnetic only": top_level_only, "delta-learning": delta_learning}
console = stdout()


def main(
    out: Annotated[Path, typer.Option(help="Where plots and the model go.")] = Path("out/lmfp"),
    sizes: Annotated[
        str, typer.Option(help="Magnetic training structures, comma-separated; `all` is all.")
    ] = "5,10,20,all",
    n_inducing: Annotated[
        int | None, typer.Option(help="Override the configuration's number of inducing points.")
    ] = None,
    n_nm: Annotated[int | None, typer.Option(help="Use only the first so many non-magnetic structures.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of 1 fs of the NVE run.")] = 200,
) -> None:
    """Fit the LMFP set at growing numbers of magnetic structures, then run a short NVE."""
    start = time.perf_counter()
    overrides = () if n_inducing is None else (f"model.n_inducing={n_inducing}",)
    config = load_config(HERE / "config.yaml", overrides)
    frames = read_frames({f.name: list(f.train) for f in config.fidelities}, keys=config.keys)
    training, held_out = frames.training(), frames.held_out()
    low, high = frames.levels
    training = FrameSet(frames.levels, (*training.of(low)[:n_nm], *training.of(high)))
    available = len(training.of(high))
    wanted = sorted({available if s == "all" else min(int(s), available) for s in sizes.split(",")})
    console.print(data_table(frames.summary(), frames.levels))
    console.print("one fit with all data: " + estimate_line(estimate(training, config)))

    with bars() as report:
        points = learning_curve(training, held_out, config, wanted, MODELS, report=report)
    if importlib.util.find_spec("chgnet"):
        points += above_chgnet(training, held_out, config, wanted)
    console.print(table(points, len(held_out.of(frames.levels[-1]))))

    out.mkdir(parents=True, exist_ok=True)
    best = [p for p in points if p.variant == "joint"][-1]
    best.model.save(out / "lmfp.mfgp")
    plots = write_plots(best.evaluation, out)
    names = dict.fromkeys(p.variant for p in points)
    maes = {name: {p.n_top: p.evaluation.forces.scores.mae for p in points if p.variant == name} for name in names}
    curves = {name: (list(mae), list(mae.values())) for name, mae in maes.items()}
    plots.append(write_figure(learning_curve_plot(curves, "magnetic training structures"), out / "learning_curve.png"))
    molecular_dynamics(best.model, held_out, steps)
    console.print(f"model {out / 'lmfp.mfgp'}; plots {', '.join(p.name for p in plots)} in {out}")
    console.print(f"done in {time.perf_counter() - start:.0f} s")


def above_chgnet(training: FrameSet, held_out: FrameSet, config: FitConfig, sizes: list[int]) -> list[Point]:
    """The joint model with CHGNet as a baseline under its lowest level."""
    with_baseline = config.model_copy(update={"baselines": (BaselineConfig(name="chgnet"),)})
    with bars() as report:
        return learning_curve(training, held_out, with_baseline, sizes, {"joint above CHGNet": joint}, report=report)


def table(points: list[Point], n_test: int) -> Table:
    """Errors and coverage of every fit."""
    out = Table(title=f"held-out magnetic structures (n = {n_test})")
    for name in (
        "mag structures",
        "model",
        "energy MAE",
        "force MAE",
        "energy in 95 %",
        "forces in 95 %",
        "rho",
        "fit",
    ):
        out.add_column(name, justify="left" if name == "model" else "right")
    for p in points:
        energy, forces = p.evaluation.energy.scores, p.evaluation.forces.scores
        rho = p.model.prior.rho
        out.add_row(
            str(p.n_top),
            p.variant,
            f"{1e3 * energy.mae:.2f} meV/atom",
            f"{1e3 * forces.mae:.0f} meV/Å",
            f"{100 * energy.coverage95:.0f} %",
            f"{100 * forces.coverage95:.1f} %",
            f"{float(rho.mean()):.2f}" if rho.numel() else "",
            f"{p.cpu_seconds:.1f} s",
            end_section=p.variant == list(MODELS)[-1],
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
        f"largest std of a local energy {1e3 * max(stds):.1f} meV (first step {1e3 * stds[0]:.1f})"
    )


if __name__ == "__main__":
    typer.run(main)
