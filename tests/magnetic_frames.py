"""Alloys with made-up magnetic moments."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from conftest import alloy, label

from mfgp import FrameSet, MultiFidelityGP, read_frames


def features(model: MultiFidelityGP, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    nb = model.soap.neighborhoods([atoms])
    return nb.numbers, model.soap.values(nb)


def moments_of(atoms: Atoms) -> np.ndarray:
    """Made-up moments: those of Cu grow with the number of near Au, those of Au are small."""
    d = atoms.get_all_distances(mic=True)
    near = np.exp(-((d / 3.0) ** 2)) * (atoms.numbers == 79)[None, :] * (d > 0.1)
    return np.where(atoms.numbers == 29, 1.0 + 6.0 * near.sum(1), 0.1)


def magnetic(seed: int, level: str) -> Atoms:
    atoms = label(alloy(seed), level)
    if level == "high":
        atoms.set_array("REF_magmoms", moments_of(atoms))
    return atoms


def training_frames() -> FrameSet:
    return read_frames({level: [magnetic(i, level) for i in range(n)] for level, n in (("low", 8), ("high", 14))})
