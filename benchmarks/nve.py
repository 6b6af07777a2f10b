"""Conservation of energy in molecular dynamics, and the time of a step.

    python benchmarks/nve.py [--model MODEL]

NVE (velocity Verlet) of a cell of the LMFP example from one state at two time steps, over the same physical time. Forces
that are the gradient of a smooth energy leave no drift, and an error of the total energy that falls as dt^2: fourfold when
dt halves. The start is the training structure of the highest level with the smallest forces, relaxed in its cell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from common import best_of, gemm_rate, machine, timed, write_result
from rich.console import Console
from rich.table import Table

from mfgp import MultiFidelityGP, read_frames
from mfgp.base.progress import bars
from mfgp.config import load_config
from mfgp.frames import FrameSet
from mfgp.predict.prediction import UNCERTAINTIES

EXAMPLE = Path(__file__).parent.parent / "examples" / "lmfp" / "config.yaml"
MAX_DRIFT = 0.1  # meV/atom/ps, the target
RELAXED = 0.05  # eV/Å


@dataclass(frozen=True)
class Run:
    """Total energy of one NVE run, per atom: drift meV/ps, and what is left about the drift line, meV."""

    dt_fs: float
    steps: int
    uncertainty: str
    drift: float
    rms_error: float
    max_error: float
    mean_temperature: float
    max_displacement: float  # Å
    cpu_ms_per_atom_step: float


def main(
    model: Annotated[Path | None, typer.Option(help="Model file; by default the LMFP example is fitted.")] = None,
    n_inducing: Annotated[int, typer.Option(help="Inducing points of that fit.")] = 1000,
    steps: Annotated[int, typer.Option(help="Steps at the longer time step.")] = 2000,
    dt: Annotated[float, typer.Option(help="The longer time step, fs; the other is half of it.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="After equipartition, K.")] = 300.0,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "nve",
) -> None:
    """Run NVE at dt and dt / 2, and time a step with and without uncertainties."""
    torch.set_num_threads(threads)
    config = load_config(EXAMPLE, (f"model.n_inducing={n_inducing}",))
    training = read_frames({f.name: list(f.train) for f in config.fidelities}, keys=config.keys).training()
    fitted = MultiFidelityGP.load(model) if model else MultiFidelityGP.fit(training, config)
    start = initial_state(fitted, training, temperature, seed)
    with bars() as report:
        runs = [nve(fitted, start, dt, steps, "none", report), nve(fitted, start, 0.5 * dt, 2 * steps, "none", report)]
    ratio = runs[0].rms_error / runs[1].rms_error
    times = step_times(fitted, start)
    console = Console()
    console.print(energy_table(runs, len(start)), time_table(times))
    console.print(f"error of the energy at {dt:g} fs over that at {0.5 * dt:g} fs: {ratio:.2f} (4 for a smooth energy)")
    worst = max(abs(r.drift) for r in runs)
    console.print(f"largest drift {worst:.4f} meV/atom/ps: {'within' if worst < MAX_DRIFT else 'ABOVE'} {MAX_DRIFT}")
    result = {
        "machine": machine(),
        "structure": str(start.symbols),
        "volume": start.get_volume(),
        "training_volumes": [f(x.atoms.get_volume() for x in training) for f in (min, max)],
        "n_atoms": len(start),
        "levels": fitted.levels,
        "n_inducing": fitted.basis.size,
        "n_features": fitted.soap.n_features,
        "runs": [asdict(r) for r in runs],
        "error_ratio": ratio,
        "step": times,
    }
    write_result(name, result)


def initial_state(model: MultiFidelityGP, training: FrameSet, temperature: float, seed: int) -> Atoms:
    """The calmest training structure of the highest level, relaxed in its cell, with seeded velocities of twice the
    temperature: half of their energy goes into the vibrations.
    """
    frames = [f for f in training.of(training.levels[-1]) if f.forces is not None]
    atoms = min(frames, key=lambda f: float(np.square(f.forces).mean())).atoms.copy()
    atoms.calc = model.calculator(uncertainty="none")
    BFGS(atoms, logfile=None).run(fmax=RELAXED, steps=200)
    atoms.calc = None
    widths = np.sqrt(units.kB * 2.0 * temperature * atoms.get_masses())[:, None]  # of a Maxwell-Boltzmann distribution
    atoms.set_momenta(np.random.default_rng(seed).normal(size=(len(atoms), 3)) * widths)
    Stationary(atoms)
    return atoms


def nve(model: MultiFidelityGP, start: Atoms, dt: float, steps: int, uncertainty: str, report: Any) -> Run:
    """Velocity Verlet with a time step of dt fs from a copy of `start`."""
    atoms = start.copy()
    atoms.calc = model.calculator(uncertainty=uncertainty)
    dynamics = VelocityVerlet(atoms, timestep=dt * units.fs)
    energies, temperatures = [], []

    def record() -> None:
        energies.append(1e3 * atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())
        report(f"NVE, {dt:g} fs", len(energies), steps + 1, "")

    dynamics.attach(record)
    with timed() as timing:
        dynamics.run(steps)
    ps = 1e-3 * dt * np.arange(len(energies))
    slope, intercept = np.polyfit(ps, energies, 1)
    left = np.array(energies) - (slope * ps + intercept)  # [step] meV/atom
    moved = np.linalg.norm(atoms.positions - start.positions, axis=1).max()
    return Run(
        dt_fs=dt,
        steps=steps,
        uncertainty=uncertainty,
        drift=float(slope),
        rms_error=float(np.sqrt(np.square(left).mean())),
        max_error=float(np.abs(left).max()),
        mean_temperature=float(np.mean(temperatures)),
        max_displacement=float(moved),
        cpu_ms_per_atom_step=1e3 * timing.cpu / (steps * len(atoms)),
    )


def step_times(model: MultiFidelityGP, atoms: Atoms) -> dict[str, dict[str, float]]:
    """CPU milliseconds per atom of energy, forces and stress with each kind of uncertainty, over the products with Z."""
    predictor, rate = model.predictor(draws=8), gemm_rate()
    floor = 4.0 * model.soap.n_features * products(model, atoms) / rate  # two products with Z, forward and reverse
    out = {}
    for uncertainty in reversed(UNCERTAINTIES):
        seconds = best_of(lambda kind=uncertainty: predictor(atoms, kind), 20 if uncertainty != "full" else 3)
        out[uncertainty] = {"cpu_ms_per_atom": 1e3 * seconds / len(atoms), "over_mean_floor": seconds / floor}
    return out


def products(model: MultiFidelityGP, atoms: Atoms) -> int:
    """Pairs of an atom and an inducing point of its element."""
    points = {z: len(p) for z, p in zip(model.basis.species, model.basis.points, strict=True)}
    return sum(points[z] for z in atoms.numbers.tolist())


def energy_table(runs: list[Run], n_atoms: int) -> Table:
    """Conservation of energy."""
    out = Table(title=f"NVE of {n_atoms} atoms, total energy per atom")
    for column in ("dt fs", "steps", "T K", "drift meV/ps", "rms error meV", "max error meV", "ms/atom/step (CPU)"):
        out.add_column(column, justify="right")
    for r in runs:
        values = (f"{r.mean_temperature:.0f}", f"{r.drift:+.4f}", f"{r.rms_error:.4f}", f"{r.max_error:.4f}")
        out.add_row(f"{r.dt_fs:g}", str(r.steps), *values, f"{r.cpu_ms_per_atom_step:.3f}")
    return out


def time_table(times: dict[str, dict[str, float]]) -> Table:
    """Time of a step by what is asked for."""
    out = Table(title="energy, forces and stress of one structure")
    for column in ("uncertainty", "ms/atom (CPU)", "over the GEMM floor of the mean"):
        out.add_column(column, justify="left" if column == "uncertainty" else "right")
    for kind, t in times.items():
        out.add_row(kind, f"{t['cpu_ms_per_atom']:.3f}", f"{t['over_mean_floor']:.1f}")
    return out


if __name__ == "__main__":
    typer.run(main)
