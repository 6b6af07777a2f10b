"""CHGNet as a rival: as it comes, fine-tuned on the magnetic frames, after a first training on nm, with a readout per level.

Energies of a level differ from CHGNet's by a reference for each element. It is found by least squares over the training
frames (the smallest shift that explains them, as our own e0), taken off the labels before training, and put back.

Training: Adam, cosine schedule, Huber loss of energy per atom, forces and moments from CHGNet's own CombinedLoss, batches of
two structures, a number of epochs fixed beforehand (no early stopping, which would take frames away from training).
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mfgp.frames import Frame

BATCH = 2
LAST = (
    "atom_conv_layers.3",
    "site_wise",
    "readout_norm",
    "mlp.",
)  # what CHGNet's own example of fine-tuning leaves free


@dataclass(frozen=True)
class Training:
    """epochs; learning_rate at the start, falling to a hundredth by a cosine; layers: all, or those that LAST names."""

    epochs: int
    learning_rate: float
    layers: str = "all"


@dataclass(frozen=True)
class Labelled:
    """A crystal graph and its labels: energy per atom (eV, shifted), forces (eV/Å), moments (Bohr magnetons) or None."""

    graph: Any
    energy: float
    forces: np.ndarray
    magmoms: np.ndarray | None


def load() -> Any:
    """CHGNet 0.3.0 as its package brings it."""
    from chgnet.model.model import CHGNet

    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        return CHGNet.load(use_device="cpu", verbose=False)


class CHGNetwork:
    """CHGNet and the references (eV) that its energies lack (see networks.py)."""

    def __init__(self) -> None:
        self.module = load()
        self.shift: dict[int, float] = {}

    def train(self, frames: Sequence[Frame], training: Training, seed: int) -> None:
        """All losses, moments too; in place."""
        data, self.shift = labelled(self.module, frames)
        fine_tune(self.module, data, training, seed)

    def predict(self, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Energies (eV a cell), forces (eV/Å), moments (Bohr magnetons)."""
        energies, forces, magmoms = predict(self.module, structures)
        return energies + [shift_of(a, self.shift) for a in structures], forces, magmoms


def graphs(model: Any, structures: Sequence[Atoms]) -> list[Any]:
    """Crystal graphs."""
    from pymatgen.io.ase import AseAtomsAdaptor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [model.graph_converter(AseAtomsAdaptor.get_structure(_bare(atoms))) for atoms in structures]


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def predict(model: Any, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Energies (eV a cell), forces (eV/Å), moments (Bohr magnetons)."""
    energies, forces, magmoms = [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for atoms, graph in zip(structures, graphs(model, structures), strict=True):
            found = model([graph], task="efm")
            energies.append(float(found["e"][0].detach()) * len(atoms))  # detached: each keeps its graph of some 100 MB
            forces.append(found["f"][0].detach().numpy().astype(float))
            magmoms.append(found["m"][0].detach().numpy().astype(float))
    return np.array(energies), forces, magmoms


def composition_shift(frames: Sequence[Frame], energies: np.ndarray) -> dict[int, float]:
    """The smallest change of the elements' references (eV) that turns `energies` into the labels, in least squares."""
    species = sorted({int(z) for f in frames for z in f.atoms.numbers})
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in species] for f in frames], dtype=float)
    gap = np.array([f.energy for f in frames]) - energies
    size = counts.sum(1)
    shift = np.linalg.lstsq(counts / size[:, None], gap / size, rcond=1e-6)[0]
    return dict(zip(species, shift.tolist(), strict=True))


def shift_of(atoms: Atoms, shift: dict[int, float]) -> float:
    """Energy (eV) that the references of `composition_shift` add to a structure."""
    return float(sum(shift.get(int(z), 0.0) for z in atoms.numbers))


def labelled(model: Any, frames: Sequence[Frame]) -> tuple[list[Labelled], dict[int, float]]:
    """Graphs with labels whose energies are on CHGNet's scale, and the shift that was taken off them."""
    energies = predict(model, [f.atoms for f in frames])[0]
    shift = composition_shift(frames, energies)
    found = [
        Labelled(g, (float(f.energy) - shift_of(f.atoms, shift)) / len(f.atoms), np.asarray(f.forces), f.magmoms)
        for g, f in zip(graphs(model, [f.atoms for f in frames]), frames, strict=True)
        if f.energy is not None and f.forces is not None
    ]
    return found, shift


def fine_tune(model: Any, data: Sequence[Labelled], training: Training, seed: int) -> None:
    """Train in place."""
    train_heads(model, [(model.mlp, data)], training, seed)


def two_heads(model: Any, low: Sequence[Labelled], high: Sequence[Labelled], training: Training, seed: int) -> None:
    """Train one trunk on two levels, each with a readout of its own that starts as CHGNet's; `model` keeps that of `high`.

    An epoch is all of `high` and as many frames of `low`, drawn anew each time.
    """
    train_heads(model, [(copy.deepcopy(model.mlp), low), (model.mlp, high)], training, seed)


def train_heads(model: Any, heads: Sequence[tuple[Any, Sequence[Labelled]]], training: Training, seed: int) -> None:
    """Epochs over the frames of the last head, and as many of each other one; every head with its own readout."""
    from chgnet.trainer.trainer import CombinedLoss

    rng = np.random.default_rng(seed)
    size = len(heads[-1][1])
    used = [named for head, _ in heads for named in head.named_parameters()] + list(model.named_parameters())
    free = {
        id(p): p
        for name, p in used
        if not name.startswith("composition_model") and (training.layers == "all" or _is_last(name, heads, p))
    }
    optimiser = torch.optim.Adam(free.values(), lr=training.learning_rate)
    steps = training.epochs * len(heads) * -(-size // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0.01 * training.learning_rate)
    last = model.mlp
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(training.epochs):
            batches = [
                (mlp, [data[i] for i in order[k : k + BATCH]])
                for mlp, data in heads
                for order in [rng.permutation(len(data))[:size]]
                for k in range(0, len(order), BATCH)
            ]
            for i in rng.permutation(len(batches)):
                model.mlp, batch = batches[i]
                has_moments = all(b.magmoms is not None for b in batch)
                criterion = CombinedLoss(target_str="efm" if has_moments else "ef", criterion="Huber", delta=0.1)
                loss = criterion(_targets(batch), model([b.graph for b in batch], task=criterion.target_str))["loss"]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    model.mlp = last
    model.eval()


def _is_last(name: str, heads: Sequence[tuple[Any, Any]], parameter: Any) -> bool:
    return name.startswith(LAST) or any(parameter is p for head, _ in heads for p in head.parameters())


def _targets(batch: Sequence[Labelled]) -> dict[str, Any]:
    dtype = torch.get_default_dtype()
    return {
        "e": torch.tensor([b.energy for b in batch], dtype=dtype),
        "f": [torch.tensor(b.forces, dtype=dtype) for b in batch],
        "m": [None if b.magmoms is None else torch.tensor(b.magmoms, dtype=dtype) for b in batch],
    }
