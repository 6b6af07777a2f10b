"""The rivals as methods: CHGNet in five ways, and gap_fit at the magnetic level."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import chgnet_rivals as chgnet
import numpy as np
from ase import Atoms
from ase.io import write
from chgnet_rivals import Training
from common import run_measured
from gap_command import gap_command
from task import Predicted, Task

FINE_TUNING = Training(epochs=50, learning_rate=1e-3)  # 15 leave 6 meV/Å more on validation structures, n = 10
LOW_LEVEL = Training(epochs=2, learning_rate=1e-3)  # the first training, on nm
GAP = {
    "atom_sigma": "0.6",
    "zeta": "2",
    "delta": "0.5",
    "sigma_energy": "0.003",
    "sigma_force": "0.05",
    "n_sparse": "300",
}


def zero_shot(task: Task) -> Predicted:
    """CHGNet as it comes; energies shifted by a reference for each element, fitted to the n magnetic frames."""
    model, top = chgnet.load(), task.training.of(task.top)
    start = time.process_time()
    shift = chgnet.composition_shift(top, chgnet.predict(model, [f.atoms for f in top])[0])
    return _predicted(model, shift, task, time.process_time() - start)


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


def gap_fit(task: Task) -> Predicted:
    """`gap_fit` (quippy-ase) on the n magnetic frames; energies less a reference for each element."""
    from quippy.potential import Potential

    top = task.training.of(task.top)
    shift = chgnet.composition_shift(top, np.zeros(len(top)))
    with tempfile.TemporaryDirectory() as name:
        work, frames = Path(name), []
        for f in top:
            atoms = _plain(f.atoms)
            atoms.info["REF_energy"] = float(f.energy) - chgnet.shift_of(f.atoms, shift)
            atoms.arrays["REF_forces"] = f.forces
            frames.append(atoms)
        write(work / "train.extxyz", frames)
        species = sorted({int(z) for f in top for z in f.atoms.numbers})
        usage = run_measured(_gap(species), work, threads=1)
        potential = Potential(param_filename=str(work / "gap.xml"))
        energies, forces = [], []
        for f in task.held_out:
            potential.calculate(_plain(f.atoms), properties=["energy", "forces"])
            energies.append(potential.results["energy"] + chgnet.shift_of(f.atoms, shift))
            forces.append(potential.results["forces"].copy())
    return Predicted(np.array(energies), forces, None, usage.cpu, note=dict(GAP))


def _plain(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def _gap(species: list[int]) -> list[str | Path]:
    """SOAP with n_max 6, l_max 5 and a cutoff of 5 Å, one for each central element."""
    numbers = " ".join(str(z) for z in species)
    soaps = [
        f"soap l_max=5 n_max=6 atom_sigma={GAP['atom_sigma']} zeta={GAP['zeta']} cutoff=5.0 cutoff_transition_width=1.0 "
        f"delta={GAP['delta']} n_sparse={GAP['n_sparse']} sparse_method=cur_points covariance_type=dot_product "
        f"add_species=F n_species={len(species)} species_Z={{{{{numbers}}}}} Z={z}"
        for z in species
    ]
    e0 = "e0={" + ":".join(f"{z}:0.0" for z in species) + "}"
    return gap_command(soaps, e0, GAP["sigma_energy"], GAP["sigma_force"])
