"""Amplitudes of levels without forces: a prior where energies say little, and no more than that."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import DESCRIPTOR, alloy, label

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.gp.hyperparameters import (
    DISCREPANCY,
    SCALE_SPREAD,
    UNTOLD_SCALE,
    AutoregressiveGP,
    Evidence,
    LevelNoise,
    explaining_scale,
)
from mfgp.gp.statistics import Statistics
from mfgp.gp.training import initialise, maximise_evidence

CONFIG = FitConfig(
    descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 60}, training={"max_iterations": 60, "calibrate": False}
)
FEATURES = 20


def energies(n: int, level: str, first: int = 0) -> list[Atoms]:
    """Structures with nothing but their energy."""
    out = [label(alloy(first + i), level) for i in range(n)]
    for atoms in out:
        del atoms.arrays["REF_forces"], atoms.info["REF_stress"]
    return out


def random_statistics(scale: float, n: int) -> Statistics:
    """n energies with the noise of the tests (5 meV), of weights of standard deviation `scale` (eV), and next to no e0."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(n, FEATURES + 1, dtype=torch.float64, generator=generator)
    a[:, FEATURES:] = 1e-6
    w = scale * torch.randn(FEATURES + 1, dtype=torch.float64, generator=generator)
    statistics = Statistics(FEATURES + 1)
    statistics.add(0, {"energy": (a, a @ w + 0.005 * torch.randn(n, dtype=torch.float64, generator=generator))})
    return statistics


def test_an_energy_does_not_make_forces_certain() -> None:
    """e0 explains it: the amplitude was 0.002 eV, and forces known to 0.0003 eV/Å."""
    model = MultiFidelityGP.fit(read_frames({"low": energies(1, "low", 10)}), CONFIG, progress=False)
    assert model.prior.scale.item() == pytest.approx(UNTOLD_SCALE, rel=0.01)
    test = label(alloy(300), "low")
    p = model.predict(test)
    assert p.forces_std is not None
    assert p.forces_std.mean() > 0.5 * np.abs(test.arrays["REF_forces"]).mean()


def test_an_energy_does_not_say_that_the_low_level_is_the_high_one() -> None:
    low = [label(alloy(i), "low") for i in range(12)]
    frames = read_frames({"low": low, "high": energies(1, "high", 50)})
    model = MultiFidelityGP.fit(frames, CONFIG, progress=False)
    forces = explaining_scale(model.statistics, (0, "forces"), model.basis.size)
    assert forces is not None
    assert model.prior.expected_scale[1].item() == pytest.approx(DISCREPANCY * forces)
    assert model.prior.without_forces.tolist() == [0.0, 1.0]
    assert model.prior.scale[1].item() > 0.5 * DISCREPANCY * forces


def test_forces_above_say_what_is_expected_below() -> None:
    high = [label(alloy(50 + i), "high") for i in range(6)]
    model = MultiFidelityGP.fit(read_frames({"low": energies(4, "low"), "high": high}), CONFIG, progress=False)
    forces = explaining_scale(model.statistics, (1, "forces"), model.basis.size)
    assert model.prior.expected_scale[0].item() == pytest.approx(forces)
    assert model.prior.without_forces.tolist() == [1.0, 0.0]


def test_the_prior_is_that_of_log_s_and_forces_do_not_feel_it() -> None:
    prior, noise = AutoregressiveGP(2, (6,), 2, "scalar"), LevelNoise(2, (0.005, 0.05, 0.05))
    prior.without_forces[1], prior.expected_scale[1] = 1.0, 2.0
    prior.set_scale(torch.tensor([30.0, 2.0 * math.exp(1.5)]))
    objective = Evidence(noise, prior)
    found = objective.log_prior()
    found.backward()
    at_the_centre = found.item() + 0.5 * (1.5 / SCALE_SPREAD) ** 2
    gradients = [kernel.raw_outputscale.grad.item() for kernel in prior.kernels]
    assert gradients == pytest.approx([0.0, -0.5 * 1.5 / SCALE_SPREAD**2])  # by log s^2
    prior.set_scale(torch.tensor([0.1, 2.0]))
    assert objective.log_prior().item() == pytest.approx(at_the_centre)


@pytest.mark.parametrize("scale", [0.1, 50.0])
def test_dozens_of_energies_say_what_the_amplitude_is(scale: float) -> None:
    """Fifty times less or ten times more than is expected."""
    statistics, found = random_statistics(scale, 40), []
    for told in (0.0, 1.0):
        prior, noise = AutoregressiveGP(1, (6,), 2, "scalar"), LevelNoise(1, (0.005, 0.05, 0.05), 0.1)
        initialise(prior, noise, statistics, FEATURES)
        assert prior.without_forces.tolist() == [1.0]
        prior.without_forces[0] = told
        std, species = torch.ones(1, 1, dtype=torch.float64), torch.zeros(FEATURES, dtype=torch.long)
        maximise_evidence(Evidence(noise, prior), statistics, species, std, 200)
        found.append(prior.scale.item())
    assert found[0] == pytest.approx(scale, rel=0.4)  # of one draw of the weights
    assert found[1] == pytest.approx(found[0], rel=0.15)
    assert found[1] != found[0]


def test_a_model_that_is_loaded_has_the_prior(tmp_path: Path) -> None:
    frames: FrameSet = read_frames({"low": energies(6, "low")})
    model = MultiFidelityGP.fit(frames, CONFIG, progress=False)
    model.save(tmp_path / "m.mfgp")
    loaded = MultiFidelityGP.load(tmp_path / "m.mfgp")
    values = [Evidence(m.noise, m.prior).log_prior().item() for m in (model, loaded)]
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    assert loaded.prior.without_forces.tolist() == [1.0]
