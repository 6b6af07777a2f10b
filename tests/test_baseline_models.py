"""Pretrained networks as baselines, and models over calculators of other kinds."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from conftest import alloy
from numpy.testing import assert_allclose

from mfgp import ConfigError, DataError, FitConfig, FrameSet, MultiFidelityGP
from mfgp.baselines.columns import make_baselines
from mfgp.config import BaselineConfig

STEP = 1e-4  # Å
NETWORKS = (("chgnet", "chgnet-0.2.0", "chgnet-r2scan"), ("sevennet", "sevennet-l3i5", "sevennet-mf-0"))


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


class Unrelated(EMT):
    """Forces that have nothing to do with the structure, the same for the same one."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        seed = zlib.crc32(self.atoms.positions.tobytes())
        self.results["forces"] = np.random.default_rng(seed).normal(0, 2.0, self.results["forces"].shape)


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


def test_baselines_that_the_data_switch_off_are_told(two_levels: FrameSet, config: FitConfig, tmp_path: Path) -> None:
    fitted = over("unrelated", Unrelated(), two_levels, config)
    told = [note for note in fitted.notes() if "switched this baseline off" in note]
    values = fitted.hyperparameters()["baselines"]
    assert [note.split(" +- ")[0] for note in told] == [
        f"warning: the coefficient of unrelated is {values[level]['unrelated']:.2f}" for level in ("low", "high")
    ]
    fitted.save(tmp_path / "model.mfgp")
    again = MultiFidelityGP.load(tmp_path / "model.mfgp", baselines={"unrelated": Unrelated()})
    assert again.notes() == fitted.notes()
    plain = config.training.model_copy(update={"optimise": False})
    above = config.model_copy(
        update={"baselines": (BaselineConfig(name="unrelated", from_level="high"),), "training": plain}
    )
    without_stress = FrameSet(two_levels.levels, tuple(replace(f, stress=None) for f in two_levels))
    one = MultiFidelityGP.fit(without_stress, above, baselines={"unrelated": Unrelated()}, progress=False)
    assert sum("switched this baseline off" in note for note in one.notes()) == 1
    assert not any("switched" in note for note in over("emt", EMT(), two_levels, config).notes())


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "names"), [("chgnet", NETWORKS[0]), ("sevenn", NETWORKS[1])])
def test_pretrained_networks_are_different_potentials_that_agree_on_the_sign_of_a_force(
    package: str, names: tuple[str, ...]
) -> None:
    pytest.importorskip(package)
    crystal = bulk("LiF", "rocksalt", a=4.03, cubic=True)
    crystal.positions[0, 0] += 0.2
    forces = [b.labels(crystal).forces[0, 0] for b in make_baselines([BaselineConfig(name=name) for name in names])]
    assert max(forces) < -0.1  # eV/Å: back to its site
    assert min(abs(forces[i] - forces[i - 1]) for i in range(3)) > 1e-3


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "name"), [("chgnet", "chgnet"), ("sevenn", "sevennet")])
def test_energies_of_networks_are_per_cell_and_their_stress_is_ases(package: str, name: str) -> None:
    pytest.importorskip(package)
    (baseline,) = make_baselines([BaselineConfig(name=name)])
    crystal = bulk("LiF", "rocksalt", a=3.9)
    labels = baseline.labels(crystal)
    double = baseline.labels(crystal.repeat((2, 1, 1)))
    assert double.energy == pytest.approx(2 * labels.energy, abs=1e-3)
    energies = []
    for strain in (0.005, -0.005):
        strained = crystal.copy()
        strained.set_cell(crystal.cell.array * (1 + strain), scale_atoms=True)
        energies.append(baseline.labels(strained).energy)
    assert labels.stress is not None
    expected = (energies[0] - energies[1]) / 0.01 / crystal.get_volume() / 3  # eV/Å^3
    assert abs(expected) > 1 * units.GPa
    assert labels.stress[:3].mean() == pytest.approx(expected, rel=0.05)
    torch.set_default_dtype(torch.float64)  # as MACE's calculators do
    try:
        with pytest.raises((ConfigError, DataError), match=r"call torch.set_default_dtype\(torch.float32\) first"):
            make_baselines([BaselineConfig(name=name)])[0].labels(crystal)
    finally:
        torch.set_default_dtype(torch.float32)
    left_handed = crystal.copy()
    left_handed.set_cell(crystal.cell.array[[1, 0, 2]])
    assert np.linalg.det(left_handed.cell.array) * np.linalg.det(crystal.cell.array) < 0
    assert_allclose(baseline.labels(left_handed).stress, labels.stress, rtol=0, atol=1e-5)  # eV/Å^3
    assert np.isfinite(baseline.labels(Atoms("Li")).energy)
