"""Labels that a model is about to learn and that look like a slip: another unit, another reference, another code."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from mfgp.frames import FrameSet

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

DEVIATIONS, LEAST = 8.0, 0.5  # standard deviations and eV/atom, both of which an energy has to be off by


def warn_of_surprises(model: MultiFidelityGP, frames: FrameSet) -> None:
    """Warn of energies that `model` would not have thought possible, before it learns them."""
    predictors = {level: model.predictor(level) for level in model.levels}
    found = []
    for frame in frames:
        if frame.energy is None or frame.isolated_atom:
            continue
        p = predictors[frame.fidelity](frame.atoms, "energies")
        assert p.energy_std is not None
        off = abs(p.energy - frame.energy)
        if off > max(DEVIATIONS * p.energy_std, LEAST * len(frame.atoms)):
            found.append((off / len(frame.atoms), p.energy_std / len(frame.atoms), frame))
    if found:
        off, std, frame = max(found, key=lambda x: x[0])
        assert frame.energy is not None
        warnings.warn(
            f"{len(found)} of {len(frames)} new energies are far from what the model expects, most {frame.source} "
            f"({frame.atoms.symbols}, {frame.fidelity}): {frame.energy / len(frame.atoms):.3f} eV/atom, {off:.2f} off where "
            f"{std:.3f} was expected. Is it in eV, of the same reference and settings as the others? It is learned "
            "nevertheless; the model from before is in its file",
            stacklevel=3,
        )
