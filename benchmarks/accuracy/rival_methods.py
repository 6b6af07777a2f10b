"""The rivals as methods: CHGNet in five ways, and gap_fit at the magnetic level."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import chgnet_rivals as chgnet
import numpy as np
from ase import Atoms
from ase.io import read, write
from chgnet_rivals import Training
from common import run_measured
from task import Predicted, Task

from mfgp.errors import DataError

FINE_TUNING = Training(epochs=50, learning_rate=1e-3)  # 15 leave 6 meV/Å more on validation structures, n = 10
LOW_LEVEL = Training(epochs=2, learning_rate=1e-3)  # the first training, on nm
GAP = {"delta": "0.5", "sigma_energy": "0.003", "sigma_force": "0.1", "n_sparse": "300"}


def zero_shot(task: Task) -> Predicted:
    """CHGNet as it comes; energies shifted by a reference for each element, fitted to the n magnetic frames."""
    model, top = chgnet.load(), task.training.of(task.top)
    start = time.process_time()
    shift = chgnet.composition_shift(top, chgnet.predict(model, [f.atoms for f in top])[0])
    return _predicted(model, shift, task, time.process_time() - start)


def fine_tuned(task: Task) -> Predicted:
    """Trained further on the n magnetic frames with their moments."""
    model, top = chgnet.load(), task.training.of(task.top)
    start = time.process_time()
    data, shift = chgnet.labelled(model, top)
    chgnet.fine_tune(model, data, FINE_TUNING, task.order)
    return _predicted(model, shift, task, time.process_time() - start, FINE_TUNING)


class Transferred:
    """Trained on all nm frames first, then on the n magnetic ones; the first training serves all sizes and orders."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.seconds = 0.0

    def __call__(self, task: Task) -> Predicted:
        """The nm energies are shifted to CHGNet's by references of their own."""
        model, top = chgnet.load(), task.training.of(task.top)
        if self.state is None:
            start = time.process_time()
            data, _ = chgnet.labelled(model, task.training.of("nm"))
            chgnet.fine_tune(model, data, LOW_LEVEL, 0)
            self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.seconds = time.process_time() - start
        model.load_state_dict(self.state)
        start = time.process_time()
        data, shift = chgnet.labelled(model, top)
        chgnet.fine_tune(model, data, FINE_TUNING, task.order)
        seconds = self.seconds + time.process_time() - start
        return _predicted(model, shift, task, seconds, FINE_TUNING, low=asdict(LOW_LEVEL))


def two_heads(task: Task) -> Predicted:
    """One trunk for both levels with a readout for each, trained at the same time (what its package has nearest to several
    levels; nm and magnetic energies are shifted to CHGNet's by references of their own)."""
    model, top = chgnet.load(), task.training.of(task.top)
    start = time.process_time()
    high, shift = chgnet.labelled(model, top)
    low, _ = chgnet.labelled(model, task.training.of("nm"))
    chgnet.two_heads(model, low, high, FINE_TUNING, task.order)
    return _predicted(model, shift, task, time.process_time() - start, FINE_TUNING)


def _predicted(
    model: Any, shift: dict[int, float], task: Task, seconds: float, training: Training | None = None, **note: Any
) -> Predicted:
    energies, forces, magmoms = chgnet.predict(model, [f.atoms for f in task.held_out])
    energies = energies + [chgnet.shift_of(f.atoms, shift) for f in task.held_out]
    settings = {} if training is None else asdict(training)
    return Predicted(energies, forces, magmoms, seconds, note={**settings, **note})


class GapFit:
    """`gap_fit` on the n magnetic frames; energies less a reference for each element. folder: of the programs."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def program(self, name: str) -> str:
        """Path of a program. Raises DataError where it is not there."""
        path = Path(name) if self.folder is None else self.folder / name
        if self.folder is not None and not path.exists():
            raise DataError(f"{path}: no such program; name the folder of gap_fit and quip (pip install quippy-ase).")
        return str(path)

    def __call__(self, task: Task) -> Predicted:
        """Both programs as commands, in a folder that is thrown away."""
        top = task.training.of(task.top)
        shift = chgnet.composition_shift(top, np.zeros(len(top)))
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            frames = []
            for f in top:
                atoms = _plain(f.atoms)
                atoms.info["REF_energy"] = float(f.energy) - chgnet.shift_of(f.atoms, shift)
                atoms.arrays["REF_forces"] = f.forces
                frames.append(atoms)
            write(work / "train.extxyz", frames)
            write(work / "held_out.xyz", [_plain(f.atoms) for f in task.held_out], format="extxyz")
            species = sorted({int(z) for f in top for z in f.atoms.numbers})
            usage = run_measured([self.program("gap_fit"), *_gap_arguments(species)], work, threads=1)
            energies, forces = self._evaluate(work)
        energies = energies + [chgnet.shift_of(f.atoms, shift) for f in task.held_out]
        return Predicted(energies, forces, None, usage.cpu, note=GAP)

    def _evaluate(self, work: Path) -> tuple[np.ndarray, list[np.ndarray]]:
        command = [self.program("quip"), "E=T", "F=T", "atoms_filename=held_out.xyz", "param_filename=gap.xml"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=True)
        lines = [line[3:] for line in done.stdout.splitlines() if line.startswith("AT ")]
        (work / "found.xyz").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = read(work / "found.xyz", index=":", format="extxyz")
        energies = np.array([a.get_potential_energy() if a.calc else a.info["energy"] for a in found])
        return energies, [a.arrays["force"] if "force" in a.arrays else a.get_forces() for a in found]


def _plain(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def _gap_arguments(species: list[int]) -> list[str]:
    """SOAP as ours (n_max 6, l_max 5, cutoff 5 Å, sigma 0.4 Å, zeta 4), one for each central element."""
    numbers = " ".join(str(z) for z in species)
    soaps = [
        f"soap l_max=5 n_max=6 atom_sigma=0.4 zeta=4 cutoff=5.0 cutoff_transition_width=1.0 delta={GAP['delta']} "
        f"n_sparse={GAP['n_sparse']} sparse_method=cur_points covariance_type=dot_product add_species=F "
        f"n_species={len(species)} species_Z={{{{{numbers}}}}} Z={z}"
        for z in species
    ]
    return [
        "at_file=train.extxyz",
        "energy_parameter_name=REF_energy",
        "force_parameter_name=REF_forces",
        "virial_parameter_name=none",
        "e0=" + "{" + ":".join(f"{z}:0.0" for z in species) + "}",
        f"default_sigma={{{GAP['sigma_energy']} {GAP['sigma_force']} 0 0}}",
        "do_copy_at_file=F",
        "sparse_separate_file=F",
        "gp_file=gap.xml",
        "gap={" + " : ".join(soaps) + "}",
    ]
