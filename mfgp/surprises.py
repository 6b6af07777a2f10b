"""Labels that a model is about to learn and that look like a slip: another unit, another reference, another code."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from mfgp.frames import Frame, FrameSet

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

DEVIATIONS, LEAST = 8.0, 0.5  # standard deviations and eV/atom, both of which an energy has to be off by


def warn_of_surprises(model: MultiFidelityGP, frames: FrameSet) -> None:
    """Warn of energies that `model` would not have thought possible, before it learns them."""
    labelled = [f for f in frames if f.energy is not None and not f.isolated_atom]
    predictors = {level: model.predictor(level) for level in {f.fidelity for f in labelled}}
    found = []
    for frame in labelled:
        predictor, n = predictors[frame.fidelity], len(frame.atoms)
        off = abs(predictor(frame.atoms, "none").energy - _energy(frame))
        if off <= LEAST * n:
            continue
        std = float(np.hypot(predictor(frame.atoms, "energies").energy_std or 0.0, frame.energy_sigma or 0.0))
        if off > DEVIATIONS * std:
            found.append((off / n, std / n, frame))
    if found:
        off, std, frame = max(found, key=lambda x: x[0])
        warnings.warn(
            f"{len(found)} of {len(labelled)} new energies are far from what the model expects, most {frame.source} "
            f"({frame.atoms.symbols}, {frame.fidelity}): {_energy(frame) / len(frame.atoms):.3f} eV/atom, {off:.2f} off "
            f"where {std:.3f} was expected. Is it a total energy in eV, of the reference and settings of the others? It is "
            "learned nevertheless; the model from before is in its file",
            stacklevel=3,
        )


def _energy(frame: Frame) -> float:
    assert frame.energy is not None
    return frame.energy
