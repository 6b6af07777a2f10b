"""GAP's own standard deviation as a rival: the variance of local energies that quippy gives (`local_gap_variance`).

    python benchmarks/gap_variance.py --data PATH_TO_mlearn_si [--refit]

It is the part of the prior variance that the sparse points do not carry, delta^2 - k(x, Z) K_ZZ^-1 k(Z, x); the labels do
not enter. What users make of it, for lack of more: the square root of the sum of the local variances for a total energy, and
the standard deviation of the atom's own local energy, times a length, for each component of the force on it (quippy has no
variance of forces). Both get one factor, by property and species, that brings 95 % of the errors on a fifth of the training
structures inside the 95 % interval, for a potential fitted to the other four fifths. That potential is scored on the test
structures of uncertainty.py; with --refit one that is fitted to all, which takes more than twice the time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import typer
from common import data_option, machine, run_measured, write_result
from mlearn_si import GAP, gap_of
from rich.console import Console
from rivals import ENERGY, Labels, scaled, trimmed_scale
from uncertainty import row, table

from mfgp import read_frames
from mfgp.evaluation import Comparison
from mfgp.fit.fitting import in_folds
from mfgp.frames import Frame


def main(
    data: Annotated[Path, data_option("training.extxyz and test.extxyz")],
    refit: Annotated[
        bool, typer.Option("--refit", help="Score a potential fitted to all training structures.")
    ] = False,
) -> None:
    """Fit, find the factors on structures that were left out, and score the test set."""
    training = read_frames({"pbe": data / "training.extxyz"})
    test = list(read_frames({"pbe": data / "test.extxyz"}))
    held_out, *rest = in_folds(training, 5, seed=0)
    fitted_to = [f for fold in rest for f in fold]
    with tempfile.TemporaryDirectory() as folder:
        potential, cpu = gap_fit(Path(folder), "part", fitted_to)
        factors = left_out_factors(predict(potential, list(held_out)))
        if refit:
            fitted_to = list(training)
            potential, cpu = gap_fit(Path(folder), "all", fitted_to)
        rows = [row("pbe", "test", "GAP local variance", scaled(predict(potential, test), factors))]
    Console(width=150).print(table(rows))
    write_result(
        "gap_variance",
        {
            "machine": machine(),
            "settings": GAP,
            "fitted_to": len(fitted_to),
            "factors": factors,
            "structures_for_factors": len(held_out),
            "fit_cpu_seconds": cpu,
            "rows": rows,
        },
    )


def gap_fit(folder: Path, name: str, frames: Sequence[Frame]) -> tuple[Any, float]:
    """A potential fitted with the settings of mlearn_si.py, and its CPU seconds."""
    from quippy.potential import Potential

    work = folder / name
    work.mkdir()
    structures = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = frame.energy, frame.forces
        structures.append(atoms)
    ase.io.write(work / "train.extxyz", structures)
    usage = run_measured(gap_of(GAP), work, threads=1)
    return Potential(param_filename=str(work / "gap.xml")), usage.cpu


def predict(potential: Any, frames: Sequence[Frame]) -> Labels:
    """Energies with the root of the summed local variances, forces with the root of the atom's own."""
    energy, forces, species = [], [], []
    for frame in frames:
        atoms, n = frame.atoms.copy(), len(frame.atoms)
        potential.calculate(atoms, properties=["energy", "forces"], calc_args="local_gap_variance")
        variance = np.array(potential.extra_results["atoms"]["local_gap_variance"])  # [N] eV^2
        if not (variance > 0).all():
            raise ValueError(f"{frame.source}: quippy gives a local variance of {variance.min():.1e} eV^2")
        energy.append(np.array([frame.energy, potential.results["energy"], np.sqrt(variance.sum())]) / n)
        std = np.repeat(np.sqrt(variance), 3)
        forces.append(np.stack([frame.forces.ravel(), potential.results["forces"].ravel(), std]))
        species.append(np.repeat(atoms.numbers, 3))
    sizes = np.array([len(f.atoms) for f in frames])
    return Labels(
        Comparison(*np.array(energy).T), Comparison(*np.concatenate(forces, axis=1)), np.concatenate(species), sizes
    )


def left_out_factors(found: Labels) -> dict[int, float]:
    """Factors of the standard deviations of energies and of the forces on each species."""
    squares, told = (found.forces.error / found.forces.std) ** 2, found.forces.tells
    out = {int(z): trimmed_scale(squares[told & (found.species == z)]) for z in np.unique(found.species)}
    return {ENERGY: trimmed_scale((found.energy.error / found.energy.std) ** 2), **out}


if __name__ == "__main__":
    typer.run(main)
