"""sGDML (Chmiela et al., Nat. Commun. 9, 3887 (2018)), by its package: one molecule, its atoms in one order.

A kernel method for forces alone, on inverse distances of all pairs of atoms, made symmetric under the permutations that it
finds in the data; no periodic cells of several sizes, no variance. It lives in an environment of its own (python -m venv
sgdml; sgdml/bin/pip install sgdml), whose interpreter is given.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from common import run_measured
from task import Predicted, Task

SIGMAS = (5, 10, 15, 20, 30, 40)  # the length scale, without a unit in its package
EVERY = 5  # each so-manieth training molecule judges the length scales


class SGDML:
    """Energies and forces of a force field of the molecules of the highest level."""

    def __init__(self, python: Path) -> None:
        self.python = python

    def __call__(self, task: Task) -> Predicted:
        """Choose the length scale on training molecules, train on all, predict the held-out ones."""
        training = [f for f in task.training.of(task.top) if not f.isolated_atom]
        numbers = training[0].atoms.numbers
        if any(not np.array_equal(f.atoms.numbers, numbers) for f in (*training, *task.held_out)):
            raise ValueError("sGDML takes one molecule, its atoms in one order")
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            np.savez(
                work / "in.npz",
                z=numbers,
                r=np.array([f.atoms.positions for f in training]),
                e=np.array([f.energy for f in training]),
                f=np.array([f.forces for f in training]),
                asked=np.array([f.atoms.positions for f in task.held_out]),
                sigmas=np.array(SIGMAS),
                valid=np.arange(0, len(training), EVERY),
            )
            script = Path(__file__).with_name("sgdml_run.py")
            usage = run_measured([self.python, script, "in.npz", "out.npz"], work, threads=1)
            with np.load(work / "out.npz") as found:
                note = {
                    "sigma": int(found["sigma"]),
                    "left_out_force_rmse": dict(zip(map(str, SIGMAS), found["errors"].tolist(), strict=True)),
                    "permutations": int(found["permutations"]),
                }
                return Predicted(found["energies"], list(found["forces"]), None, usage.cpu, note=note)
