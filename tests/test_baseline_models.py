"""Models over baselines: what calculators of other kinds ask of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from conftest import alloy

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.config import BaselineConfig

STEP = 1e-4  # Å


class Network(Calculator):
    """Pairs that repel each other, with forces by automatic differentiation, as networks take them."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        positions = torch.tensor(self.atoms.positions, requires_grad=True)
        i, j, shift = neighbor_list("ijS", self.atoms, 4.0)
        across = torch.from_numpy(shift @ self.atoms.cell.array)
        distance = torch.linalg.vector_norm(positions[j] + across - positions[i], dim=1)
        energy = 0.05 * (4.0 - distance).square().sum()
        energy.backward()
        self.results = {"energy": float(energy.detach()), "forces": -positions.grad.numpy()}


class Shifted(EMT):
    """Energies as codes give them that count the core electrons."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        for name in ("energy", "free_energy"):
            self.results[name] -= 3e4 * len(self.atoms)


def over(name: str, calculator: Calculator, frames: FrameSet, config: FitConfig) -> MultiFidelityGP:
    """A model over a baseline, with its first hyperparameters."""
    plain = config.training.model_copy(update={"optimise": False})
    settings = config.model_copy(update={"baselines": (BaselineConfig(name=name),), "training": plain})
    without_stress = FrameSet(frames.levels, tuple(replace(f, stress=None) for f in frames))
    return MultiFidelityGP.fit(without_stress, settings, baselines={name: calculator}, progress=False)


def test_a_baseline_may_take_its_forces_from_autograd(two_levels: FrameSet, config: FitConfig) -> None:
    with torch.no_grad():  # nor does it matter what the caller has switched off
        fitted = over("network", Network(), two_levels, config)
        for uncertainty in ("none", "energies", "sampled", "full"):
            atoms = alloy(120)
            atoms.calc = fitted.calculator("high", uncertainty=uncertainty)
            forces = atoms.get_forces()
            assert np.abs(forces).max() > 0.1  # eV/Å
            moved = atoms.copy()
            moved.positions[0, 0] += STEP
            energies = [fitted.predict(a, "high", uncertainty="none").energy for a in (moved, atoms)]
            assert energies[0] - energies[1] == pytest.approx(-STEP * forces[0, 0], abs=1e-6)


def test_large_energies_of_a_baseline_cost_no_digits_of_a_standard_deviation(
    two_levels: FrameSet, config: FitConfig
) -> None:
    fitted = over("shifted", Shifted(), two_levels, config)
    for atoms in (alloy(121), alloy(121, repeat=2)):
        full, energies = (fitted.predict(atoms, "high", uncertainty=u) for u in ("full", "energies"))
        assert full.energy_std > 1e-3
        assert energies.energy_std == pytest.approx(full.energy_std, rel=1e-4)
