"""Short distances, where there are no data: compressed pairs and hot dynamics, without and with the ZBL repulsion.

    python benchmarks/accuracy/short_range.py

The LMFP example (M = 300) is fitted twice, the second time with the baseline `zbl`, which is zero above 1.4 Å.
Pairs: in a crystal, an atom is pushed along the line to its nearest neighbour of each element, down to 0.5 Å; what counts
is that the energy never falls again by more than HOLE on the way in. Dynamics: Langevin at 3000 K.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Annotated

import numpy as np
import typer
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from rich.console import Console
from rich.table import Table

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.datasets import load_lmfp
from mfgp.errors import DataError

ZBL = [{"name": "zbl", "coefficient": {"mean": 1.0, "std": 0.01}, "settings": {"r_inner": 0.7, "r_outer": 1.4}}]
HOLE = 0.05  # eV
CLOSEST, STEP = 0.5, 0.02  # Å


def main(
    n_inducing: Annotated[int, typer.Option()] = 300,
    steps: Annotated[int, typer.Option(help="Steps of 0.5 fs at 3000 K.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Runs at 3000 K.")] = 2,
) -> None:
    """Fit both models and compare."""
    frames = read_frames({level: load_lmfp(level, "train") for level in ("nm", "mag")}).training()
    start = frames.of("mag")[0].atoms
    out = Table(title=f"compressed pairs to {CLOSEST} Å, and {seeds} runs of {steps / 2000:g} ps at 3000 K")
    for name in (
        "",
        "pairs with a hole",
        "deepest eV",
        "shortest pair at 3000 K, Å",
        "largest force eV/Å",
        "T at the end, K",
    ):
        out.add_column(name, justify="right" if name else "left")
    for name, baselines in (("no repulsion", []), ("zbl", ZBL)):
        model = fit(frames, baselines, n_inducing)
        calculator = model.calculator("mag", uncertainty="none")
        depths = holes(start, calculator)
        runs = [hot_run(start, calculator, steps, seed) for seed in range(seeds)]
        found = [f"{min(r[0] for r in runs):.2f}", f"{max(r[1] for r in runs):.0f}", f"{max(r[2] for r in runs):.0f}"]
        bad = {pair: depth for pair, depth in depths.items() if depth > HOLE}
        out.add_row(name, f"{len(bad)} of {len(depths)}", f"{max(depths.values()):.2f}", *found)
    Console().print(out)


def fit(frames: FrameSet, baselines: list[dict[str, object]], n_inducing: int) -> MultiFidelityGP:
    """The example's model, not calibrated."""
    config = FitConfig(
        preset="oxide",
        model={"n_inducing": n_inducing},
        baselines=baselines,
        training={"calibrate": False},
        device="cpu",
    )
    return MultiFidelityGP.fit(frames, config)


def holes(start: Atoms, calculator: Calculator) -> dict[str, float]:
    """By pair of elements: by how much the energy falls again (eV) while the pair is pushed together."""
    out = {}
    for a, b in combinations_with_replacement(sorted(set(start.get_chemical_symbols())), 2):
        i = start.get_chemical_symbols().index(a)
        others = [j for j, s in enumerate(start.get_chemical_symbols()) if s == b and j != i]
        if not others:
            continue
        j = others[int(np.argmin(start.get_distances(i, others, mic=True)))]
        vector = start.get_distance(i, j, mic=True, vector=True)
        distance = float(np.linalg.norm(vector))
        energies = []
        for r in np.arange(distance, CLOSEST, -STEP):
            atoms = start.copy()
            atoms.positions[j] = start.positions[i] + vector * r / distance
            atoms.calc = calculator
            energies.append(atoms.get_potential_energy())
        climbed = np.maximum.accumulate(energies)
        after = int(np.argmin(energies[: max(1, len(energies) // 2)]))  # first down to the nearest minimum, then up
        out[f"{a}-{b}"] = float((climbed - energies)[after:].max())
    return out


def hot_run(start: Atoms, calculator: Calculator, steps: int, seed: int) -> tuple[float, float, float]:
    """Shortest distance (Å), largest force component (eV/Å) and last temperature (K) of a run at 3000 K.

    The run ends where two atoms fall into each other.
    """
    atoms = start.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=3000, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=3000, friction=0.02 / units.fs, fixcm=False, rng=rng)
    shortest, largest = np.inf, 0.0
    try:
        for _ in dynamics.irun(steps):
            largest = max(largest, float(np.abs(atoms.get_forces()).max()))
            shortest = min(shortest, closest(atoms))
    except DataError:  # two atoms on top of each other: the calculator refuses
        shortest = min(shortest, closest(atoms))
    return shortest, largest, float(atoms.get_temperature())


def closest(atoms: Atoms) -> float:
    """Shortest distance, Å."""
    distances = atoms.get_all_distances(mic=True)
    return float(distances[~np.eye(len(atoms), dtype=bool)].min())


if __name__ == "__main__":
    typer.run(main)
