"""franken as a rival: random features of a pretrained network's latent atom features, and a linear model on them.

Novelli et al., "Fast and Fourier features for transfer learning of interatomic potentials", arXiv:2505.05652. Features of
SevenNet-0 after its second interaction (franken's default), cosines of several length scales, energies less a reference for
each element, which franken fits itself. Penalty and weight of the forces: those of GRID with the smallest force error on
the validation structures, so its errors on these are those of the chosen. Length scales and interaction were chosen on the
same, n = 10 (docs/accuracy_lmfp.md). franken 0.7 is the last that takes SevenNet; it lives in a folder of its own (pip
install --no-deps --target FOLDER franken==0.7.0 omegaconf antlr4-python3-runtime==4.9.3 docstring-parser), beside sevenn.
"""

from __future__ import annotations

import importlib.resources
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from task import Predicted, Task

from mfgp.datasets import load_lmfp

RANDOM_FEATURES = 4096
SCALES = {"length_scale_low": 16.0, "length_scale_high": 128.0, "length_scale_num": 5}
GRID = {"l2_penalty": [10.0**-k for k in range(4, 13)], "force_weight": [0.5, 0.9, 0.99]}
CHECKPOINT = "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth"


class Franken:
    """franken on SevenNet-0."""

    def __init__(self, folder: Path) -> None:
        sys.path.append(str(folder))  # that franken was installed to

    def __call__(self, task: Task) -> Predicted:
        """Fitted to the n magnetic frames."""
        from franken.config import MultiscaleGaussianRFConfig, SevennBackboneConfig
        from franken.data import FrankenAtomsDataset
        from franken.rf.model import FrankenPotential
        from franken.trainers import RandomFeaturesTrainer

        file = importlib.resources.files("sevenn.pretrained_potentials") / CHECKPOINT
        backbone = SevennBackboneConfig(path_or_id=str(file))
        top = [labelled(f.atoms, float(f.energy), f.forces) for f in task.training.of(task.top)]  # type: ignore[arg-type]
        start = time.process_time()
        with tempfile.TemporaryDirectory() as name:
            write(Path(name) / "train.extxyz", top)
            data = FrankenAtomsDataset(Path(name) / "train.extxyz", "train", backbone)
        features = MultiscaleGaussianRFConfig(num_random_features=RANDOM_FEATURES, rng_seed=task.order, **SCALES)
        model = FrankenPotential(backbone, features, num_species=data.num_species, jac_chunk_size=12)
        trainer = RandomFeaturesTrainer(data.get_dataloader(False), device="cpu", dtype="float64", save_fmaps=False)
        logs, weights = trainer.fit(model, GRID)
        validation = load_lmfp(task.top, "validation")
        errors = [
            np.abs(forces - a.get_forces()[None]).mean(axis=(1, 2))  # [model]
            for a, (_, forces) in zip(validation, predict(model, weights, backbone, validation), strict=True)
        ]
        best = int(np.argmin(np.mean(errors, axis=0)))
        seconds = time.process_time() - start
        found = predict(model, weights[best : best + 1], backbone, [f.atoms for f in task.held_out])
        solver = next(g for g in logs[best].hyperparameters if g.group_name == "solver")
        note = {"random_features": RANDOM_FEATURES, **SCALES}
        note |= {h.name: h.value for h in solver.hyperparameters if h.name in GRID}
        return Predicted(np.array([e[0] for e, _ in found]), [f[0] for _, f in found], None, seconds, note=note)


def labelled(atoms: Atoms, energy: float, forces: np.ndarray) -> Atoms:
    """A copy with nothing but these labels."""
    out = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    out.calc = SinglePointCalculator(out, energy=energy, forces=forces)
    return out


def predict(
    model: Any, weights: torch.Tensor, backbone: Any, structures: Sequence[Atoms]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Energies [model] (eV a cell) and forces [model, atom, 3] (eV/Å) of each structure, by each row of weights."""
    from franken.data import FrankenAtomsDataset

    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "some.extxyz", [labelled(a, 0.0, np.zeros((len(a), 3))) for a in structures])
        data = FrankenAtomsDataset(Path(name) / "some.extxyz", "test", backbone)
    model.gnn.franken_val()
    out = []
    for configuration, _ in data.get_dataloader(False):
        energy, forces = model.energy_and_forces(configuration, weights=weights, forces_mode="torch.autograd")
        out.append(
            (energy.detach().numpy().reshape(len(weights)), forces.detach().numpy().reshape(len(weights), -1, 3))
        )
    return out
