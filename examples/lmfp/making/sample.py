"""Snapshots of the olivine cells, before anything is labelled.

    python sample.py train -o structures.extxyz --rounds 2

Langevin dynamics with the pretrained CHGNet (or, for thousands of snapshots, a model of this project), one trajectory for
each (variant, temperature) of the set. Before every snapshot
the cell gets a fresh strain against the relaxed cell of its variant, and the dynamics runs on at that strain. A round is
one snapshot of every trajectory; a longer list is the same list with more at its end, for the same seed and software.

Needs ase, and chgnet or mfgp. The output is appended to, one frame a write; a killed run goes on where it stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from cells import DELITHIATED, LITHIATED, UNSEEN_LITHIUM, UNSEEN_RATIO, cell
from rich.progress import track

SEED = 20261123
TEMPERATURES = (300, 600, 1000)  # K
TIMESTEP = 2.0  # fs
EQUILIBRATION = 120  # steps before the first snapshot of a trajectory


@dataclass(frozen=True)
class Trajectory:
    """What is run: `linear_strain` None draws a volume within 4 % and a shape, a number strains all three axes by it."""

    variant: str
    temperature: int  # K
    linear_strain: float | None = None

    def key(self) -> str:
        strain = "" if self.linear_strain is None else f"_{self.linear_strain:+.2f}"
        return f"{self.variant}_{self.temperature}{strain}"


@dataclass(frozen=True)
class Set:
    """Trajectories of a set, the ids of its structures, its split, and the steps between two snapshots of one trajectory."""

    trajectories: tuple[Trajectory, ...]
    prefix: str
    first_id: int
    split: str
    steps: int = 40


def everywhere(variants: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[Trajectory, ...]:
    return tuple(Trajectory(v, t) for t in TEMPERATURES for v in variants)


def one_temperature_each(variants: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[Trajectory, ...]:
    return tuple(Trajectory(v, TEMPERATURES[k % 3]) for k, v in enumerate(variants))


SETS = {
    # lmfp0000 - lmfp0381 came from an earlier version (other seed, four delithiated variants)
    "train": Set(everywhere({**DELITHIATED, **LITHIATED}), "lmfp", 400, "train"),
    "gfn1": Set(everywhere({**LITHIATED, **DELITHIATED}), "gfn", 0, "train", steps=20),
    "test": Set(one_temperature_each(DELITHIATED) + everywhere(LITHIATED), "test", 100, "test"),
    # the recipe of test again, other trajectories
    "test_second": Set(one_temperature_each(DELITHIATED) + everywhere(LITHIATED), "test", 200, "test_second"),
    "test_ood": Set(
        (
            *(Trajectory(v, 1000, e) for v in ("LFP", "LMP", "LM50F50P-b") for e in (-0.04, 0.04)),
            *(Trajectory(v, 600) for v in UNSEEN_LITHIUM),
            *(Trajectory(v, t) for v in UNSEEN_RATIO for t in (600, 1000)),
        ),
        "ood",
        0,
        "test_ood",
    ),
}


def main(
    name: Annotated[str, typer.Argument(help=f"Which set: {', '.join(SETS)}.", metavar="SET")],
    output: Annotated[Path, typer.Option("--output", "-o", help="extxyz to append to.")],
    rounds: Annotated[int, typer.Option(help="Snapshots of every trajectory.")] = 1,
    potential: Annotated[str, typer.Option(help="chgnet, or the path of a model file of mfgp.")] = "chgnet",
    only: Annotated[str, typer.Option(help="Only these variants, comma-separated; the ids stay as they are.")] = "",
) -> None:
    """Append the snapshots of a set that are not in the output yet."""
    if name not in SETS:
        raise typer.BadParameter(f"no set {name!r}; there are {', '.join(SETS)}.")
    state = output.with_suffix(".state") / name
    state.mkdir(parents=True, exist_ok=True)
    done = {a.info["structure_id"] for a in read(output, ":")} if output.exists() else set()
    chosen = {v for v in only.split(",") if v}
    todo = [row for row in plan(SETS[name], rounds) if row[0] not in done and (not chosen or row[1].variant in chosen)]
    if not todo:
        return
    calculator = chgnet() if potential == "chgnet" else gaussian_process(potential)
    for structure_id, trajectory, r in track(todo, description=name):
        atoms = snapshot(trajectory, r, name, SETS[name].steps, state, calculator)
        found = round(float(atoms.get_temperature()), 1)
        momenta = atoms.arrays.pop("momenta")
        atoms.info.update(structure_id=structure_id, split=SETS[name].split, md_temperature=found)
        with output.open("a") as file:  # the snapshot first, then the state that the next one starts from
            write(file, bare(atoms), format="extxyz")
        atoms.arrays["momenta"] = momenta
        save(atoms, state / f"{trajectory.key()}.extxyz")


def plan(chosen: Set, rounds: int) -> Iterator[tuple[str, Trajectory, int]]:
    """(structure_id, trajectory, round) in order."""
    n = chosen.first_id
    for r in range(rounds):
        for trajectory in chosen.trajectories:
            yield f"{chosen.prefix}{n:04d}", trajectory, r
            n += 1


def chgnet() -> Calculator:
    import torch
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    torch.set_num_threads(1)
    return CHGNetCalculator(CHGNet.load(verbose=False), use_device="cpu")


def gaussian_process(path: str) -> Calculator:
    from mfgp import MultiFidelityGP

    return MultiFidelityGP.load(path).calculator(uncertainty="none")


def snapshot(trajectory: Trajectory, r: int, name: str, steps: int, state: Path, calculator: Calculator) -> Atoms:
    """The trajectory, run on at a fresh strain; momenta in eV^0.5 u^0.5."""
    rng = np.random.default_rng([SEED, zlib.crc32(f"{name} {trajectory.key()}".encode()), r])
    reference = relaxed(trajectory.variant, state.parent, calculator)
    file = state / f"{trajectory.key()}.extxyz"
    fresh = not file.exists()
    atoms = reference.copy() if fresh else read(file)
    atoms.calc = calculator
    if fresh:
        thermalize_momenta(atoms, temperature_K=2 * trajectory.temperature, rng=rng)
    deformation = random_strain(rng) if trajectory.linear_strain is None else (1 + trajectory.linear_strain) * np.eye(3)
    atoms.set_cell(reference.cell.array @ deformation.T, scale_atoms=True)
    dynamics = Langevin(
        atoms,
        TIMESTEP * units.fs,
        temperature_K=trajectory.temperature,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(EQUILIBRATION if fresh else steps)
    atoms.calc = None
    atoms.info = {
        "variant": trajectory.variant,
        "composition": atoms.get_chemical_formula(mode="hill"),
        "temperature": trajectory.temperature,
        "strain": round(float(np.linalg.det(deformation) - 1), 5),
    }
    return atoms


def random_strain(rng: np.random.Generator) -> np.ndarray:
    """A deformation [3, 3]: volume within 4 %, shape strains of 0.6 % standard deviation."""
    volume = rng.uniform(-0.04, 0.04)
    shape = rng.normal(0, 0.006, (3, 3))
    shape = (shape + shape.T) / 2
    deformation = np.eye(3) + shape - np.eye(3) * np.trace(shape) / 3
    return deformation * ((1 + volume) / np.linalg.det(deformation)) ** (1 / 3)


def relaxed(variant: str, state: Path, calculator: Calculator) -> Atoms:
    """The variant's cell and positions, relaxed by the potential to 0.08 eV/Å."""
    file = state / f"relaxed_{variant}.extxyz"
    if not file.exists():
        atoms = cell(variant)
        atoms.calc = calculator
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.08, steps=120)
        save(bare(atoms), file)
    return read(file)


def bare(atoms: Atoms) -> Atoms:
    out = atoms.copy()
    out.calc = None
    return out


def save(atoms: Atoms, file: Path) -> None:
    part = file.with_suffix(".part")
    write(part, atoms, format="extxyz")
    part.replace(file)


if __name__ == "__main__":
    typer.run(main)
