"""GAP's own standard deviation as a rival: the variance of local energies that quippy gives (`local_gap_variance`).

It is the part of the prior variance that the sparse points do not carry, delta^2 - k(x, Z) K_ZZ^-1 k(Z, x); the labels do
not enter. What users make of it, for lack of more: the square root of the sum of the local variances for a total energy, and
the standard deviation of the atom's own local energy, times a length, for each component of the force on it (quippy has no
variance of forces). Both get one factor, by property and species, that brings 95 % of the errors on a fifth of the training
structures inside the 95 % interval, for a potential fitted to the other four; the potential that is scored has all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from common import run_measured
from mlearn_si import GAP, gap_command
from rivals import ENERGY, Labels, scaled, trimmed_scale

from mfgp import FrameSet
from mfgp.evaluation import Comparison
from mfgp.fitting import in_folds
from mfgp.frames import Frame


def gap_labels(training: FrameSet, tests: Mapping[str, Sequence[Frame]]) -> tuple[dict[str, Labels], dict[str, Any]]:
    """Scaled predictions for each test set; CPU seconds of both fits and the factors."""
    held_out, *rest = in_folds(training, 5, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        part, cpu_part = gap_fit(Path(folder), "part", [f for fold in rest for f in fold])
        factors = left_out_factors(predict(part, list(held_out)))
        potential, cpu = gap_fit(Path(folder), "all", list(training))
        found = {test: scaled(predict(potential, frames), factors) for test, frames in tests.items()}
    return found, {"fit": cpu, "fit_for_factors": cpu_part, "factors": factors, "n_factors": len(held_out)}


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
    usage = run_measured(gap_command(GAP), work, threads=1)
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
    squares = (found.forces.error / found.forces.std) ** 2
    out = {int(z): trimmed_scale(squares[found.species == z]) for z in np.unique(found.species)}
    return {ENERGY: trimmed_scale((found.energy.error / found.energy.std) ** 2), **out}
