"""SevenNet as a rival: as it comes, and fine-tuned on the magnetic frames.

Energies are shifted to its scale as CHGNet's are (chgnet_rivals.py). Training: Huber loss of energies per atom and forces
(delta 0.01, weights 1 and 1, as in the fine-tuning preset of its package), Adam by a cosine to a hundredth of the first
rate, batches of two structures, a number of epochs fixed beforehand. Needs sevenn (pip install -e '.[sevennet]').
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from chgnet_rivals import BATCH, Training, composition_shift, shift_of
from task import Predicted, Task

from mfgp.baselines.registry import make_calculator
from mfgp.frames import Frame

MODEL = "sevennet-l3i5"
FINE_TUNING = Training(epochs=15, learning_rate=1e-3)  # an epoch costs ten times that of CHGNet
DELTA = 0.01  # of the Huber loss, eV per atom and eV/Å


class SevenNetwork:
    """SevenNet-l3i5 and the references (eV) that its energies lack (see networks.py)."""

    def __init__(self) -> None:
        self.calculator = make_calculator(MODEL)
        self.module = self.calculator.model  # type: ignore[attr-defined]
        self.shift: dict[int, float] = {}

    def refer(self, frames: Sequence[Frame]) -> None:
        """References for each element, fitted to the frames."""
        self.shift = composition_shift(frames, predict(self.calculator, [f.atoms for f in frames])[0])

    def train(self, frames: Sequence[Frame], training: Training, seed: int) -> None:
        """In place."""
        self.refer(frames)
        fine_tune(self.calculator, frames, self.shift, training, seed)
        self.calculator.reset()  # ASE keeps the results of the last structure

    def predict(self, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray], None]:
        """Energies (eV a cell) and forces (eV/Å); no moments."""
        energies, forces = predict(self.calculator, structures)
        return energies + [shift_of(a, self.shift) for a in structures], forces, None


def zero_shot(task: Task) -> Predicted:
    """As it comes; energies shifted by a reference for each element, fitted to the n magnetic frames."""
    network = SevenNetwork()
    start = time.process_time()
    network.refer(task.training.of(task.top))
    seconds = time.process_time() - start
    return Predicted(*network.predict([f.atoms for f in task.held_out]), seconds)


def predict(calculator: Any, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies (eV a cell) and forces (eV/Å)."""
    energies, forces = [], []
    for atoms in structures:
        bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True, calculator=calculator)
        energies.append(bare.get_potential_energy())
        forces.append(bare.get_forces())
    return np.array(energies), forces


def fine_tune(calculator: Any, frames: Sequence[Frame], shift: dict[int, float], training: Training, seed: int) -> None:
    """Train the calculator's model in place."""
    from torch_geometric.loader import DataLoader

    model, rng = calculator.model, np.random.default_rng(seed)
    graphs = [_graph(calculator, f, float(f.energy) - shift_of(f.atoms, shift)) for f in frames]  # type: ignore[arg-type]
    free = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(free, lr=training.learning_rate)
    steps = training.epochs * -(-len(graphs) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0.01 * training.learning_rate)
    loss_of = torch.nn.HuberLoss(delta=DELTA)
    model.train()
    model.set_is_batch_data(True)
    for _ in range(training.epochs):
        for batch in DataLoader([graphs[i] for i in rng.permutation(len(graphs))], batch_size=BATCH):
            found = model(batch)
            per_atom = found["inferred_total_energy"] / batch["num_atoms"]
            loss = loss_of(per_atom, batch["label"]) + loss_of(found["inferred_force"], batch["force_of_atoms"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.set_is_batch_data(False)
    model.eval()


def _graph(calculator: Any, frame: Frame, energy: float) -> Any:
    """A graph with its labels: energy per atom and forces."""
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    graph = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(frame.atoms, calculator.cutoff))
    graph["label"] = torch.tensor(energy / len(frame.atoms), dtype=torch.get_default_dtype())
    graph["force_of_atoms"] = torch.tensor(frame.forces, dtype=torch.get_default_dtype())
    return graph
