"""What a fit leaves of its labels, from the sufficient statistics, against predictions of the same frames."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mfgp import FrameSet, MultiFidelityGP
from mfgp.notes.training_residuals import training_residuals


def test_training_residuals_are_those_of_the_predictions(model: MultiFidelityGP, two_levels: FrameSet):
    rows = {(r.level, r.kind): r for r in training_residuals(model)}
    for level in two_levels.levels:
        frames = two_levels.training().of(level)
        predictions = [model.predict(f.atoms, level, uncertainty="none") for f in frames]
        forces = np.concatenate([(p.forces - f.forces).ravel() for p, f in zip(predictions, frames, strict=True)])
        energy = np.array(
            [(p.energy - f.energy) / len(f.atoms) ** 0.5 for p, f in zip(predictions, frames, strict=True)]
        )
        assert rows[level, "forces"].count == forces.size
        assert np.sqrt((forces**2).mean()) > 1e-3  # eV/Å
        assert_allclose(rows[level, "forces"].residual, np.sqrt((forces**2).mean()), rtol=0, atol=1e-7)
        assert_allclose(rows[level, "energy"].residual, np.sqrt((energy**2).mean()), rtol=0, atol=1e-6)
        assert rows[level, "forces"].residual < rows[level, "forces"].labels
