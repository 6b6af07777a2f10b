"""What is predicted of a structure at one level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfgp.predict.level_shares import Share

Array = NDArray[np.float64]
UNCERTAINTIES = ("full", "sampled", "energies", "local", "none")  # of a calculator; a predictor has `by_level` too


@dataclass(frozen=True)
class Prediction:
    """Mean and standard deviations at one level. Stress is None for structures without a volume; stds where not asked for.

    energy eV; forces [N, 3] eV/Å; stress [6] eV/Å^3 (ASE sign and Voigt order); energies [N] eV; *_std alike, >= 0.
    magmoms [N] Bohr magnetons, where the training data have some at that level (NaN for an element without), the std that
    of the difference to a new calculation, scaled to left-out moments where `calibrated` and three structures have some.
    Data fix local energies up to a constant for each species: energies_std is that of a local energy against the mean
    over the inducing environments of its species. calibrated: the stds of energy, forces and stress are those of the
    difference to a new calculation at that level, and energies_std is scaled as energy_std, novelty, scatter and label
    noise left out; otherwise they are the posterior's own, label noise aside.
    std_by_level: energy_std, forces_std and stress_std of each level's discrepancy delta up to this level by name, cheapest
    first, and of the label noise as `noise` where calibrated; their squares add up to those of the stds above.
    novelty: how many times the weights' standard deviation of the energy per atom is the median of left-out training
    structures (calibration/novelty.py), where the model is calibrated on three energies or more and energy_std is asked for.
    """

    fidelity: str
    energy: float
    forces: Array
    stress: Array | None
    energies: Array
    energy_std: float | None = None
    forces_std: Array | None = None
    stress_std: Array | None = None
    energies_std: Array | None = None
    magmoms: Array | None = None
    magmoms_std: Array | None = None
    calibrated: bool = False
    std_by_level: dict[str, Share] | None = None
    novelty: float | None = None
