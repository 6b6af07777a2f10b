"""MACE, small, from scratch on the frames of the highest level, by the commands of its package.

mace-torch pins another e3nn than SevenNet needs, so it lives in an environment of its own (python -m venv mace;
mace/bin/pip install mace-torch), whose bin folder is given. 64 scalar channels, no equivariant messages, cutoff 5 Å, its
default loss, frames of its own for validation, a number of epochs fixed beforehand. LMFP: E0 from the training energies, the
default schedule. The single levels of peers.py: averaged weights and a second stage with more weight on energies, as its
documentation recommends; E0 from isolated atoms where there are some.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from common import run_measured
from task import Predicted, Task

EPOCHS = 200
SETTINGS = {
    "model": "MACE",
    "num_channels": "64",
    "max_L": "0",
    "r_max": "5.0",
    "E0s": "average",
    "valid_fraction": "0.1",
    "batch_size": "2",
    "valid_batch_size": "2",
    "max_num_epochs": str(EPOCHS),
    "default_dtype": "float32",
    "device": "cpu",
    "energy_key": "REF_energy",
    "forces_key": "REF_forces",
}


def with_averages(epochs: int, **others: str) -> dict[str, str]:
    """SETTINGS with moving averages of the weights and a second stage in the last quarter of the epochs."""
    second = {"swa": "", "start_swa": str(3 * epochs // 4), "ema": "", "ema_decay": "0.99", "amsgrad": ""}
    return {**SETTINGS, "max_num_epochs": str(epochs), **second, **others}


class FromScratch:
    """Energies and forces of a MACE that has seen the frames of the highest level alone."""

    def __init__(self, folder: Path, settings: Mapping[str, str] = SETTINGS) -> None:
        self.folder = folder  # with mace_run_train and mace_eval_configs
        self.settings = dict(settings)

    def __call__(self, task: Task) -> Predicted:
        """Train, then evaluate the held-out frames."""
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            frames = []
            for f in task.training.of(task.top):
                atoms = _plain(f.atoms)
                atoms.info["REF_energy"] = float(f.energy)  # type: ignore[arg-type]
                atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3)) if f.forces is None else f.forces
                if f.isolated_atom:
                    atoms.info["config_type"] = "IsolatedAtom"
                frames.append(atoms)
            write(work / "train.extxyz", frames)
            write(work / "held_out.extxyz", [_plain(f.atoms) for f in task.held_out])
            options = [f"--{key}={value}" if value else f"--{key}" for key, value in self.settings.items()]
            train = [self.folder / "mace_run_train", "--name=mace", "--train_file=train.extxyz", f"--seed={task.order}"]
            usage = run_measured([*train, *options], work, threads=1)
            files = [
                "--configs=held_out.extxyz",
                f"--model={'mace_stagetwo.model' if 'swa' in self.settings else 'mace.model'}",
                "--output=found.extxyz",
                "--default_dtype=float32",
            ]
            run_measured([self.folder / "mace_eval_configs", *files, "--batch_size=4"], work, threads=1)
            found = read(work / "found.extxyz", ":")
        energies = np.array([a.info["MACE_energy"] for a in found])
        return Predicted(energies, [a.arrays["MACE_forces"] for a in found], None, usage.cpu, note=self.settings)


def _plain(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
