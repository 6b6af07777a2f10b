"""Data drawn from the model's own prior: its standard deviations are right, without any calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import alloy, label

from mfgp import FitConfig, FrameSet, MultiFidelityGP, fitting, read_frames
from mfgp.autoregressive import block_scales
from mfgp.evaluation import evaluate
from mfgp.features import Features
from mfgp.frames import Frame
from mfgp.hyperparameters import AutoregressiveGP, LevelNoise
from mfgp.scores import coverage

DRAWS = 120
SIGMAS = (0.02, 0.1, 0.05)  # eV per sqrt(atom), eV/Å, eV per sqrt(atom)


@pytest.mark.slow
def test_coverage_of_draws_from_the_prior() -> None:
    """95 +- 1.5 % for energies, forces and stress at both levels, with a complete inducing set (zeta = 1, M >= D)."""
    config = FitConfig(
        descriptor={"r_cut": 4.0, "n_max": 2, "l_max": 1, "sigma": 0.5},
        model={"zeta": 1, "n_inducing": 100},
        training={"noise_energy": SIGMAS[0], "noise_force": SIGMAS[1], "noise_virial": SIGMAS[2], "calibrate": False},
    )
    frames = read_frames(
        {"low": [label(alloy(i), "low") for i in range(12)], "high": [label(alloy(i), "high") for i in range(14)]}
    )
    features = Features.build(frames, config, keep_rows=True)
    training = FrameSet(frames.levels, (*frames.of("low")[:6], *frames.of("high")[:3]))
    test = FrameSet(frames.levels, (*frames.of("low")[6:], *frames.of("high")[6:]))
    columns, std = fitting.build_columns(training, features.basis.species, config, [])
    prior = AutoregressiveGP(2, features.basis.species, 1, [0.8])
    prior.set_scale(torch.tensor([2.0, 1.0], dtype=torch.float64))
    noise = LevelNoise(2, SIGMAS)
    d = block_scales(prior.rho, prior.scale, features.basis.species_index(), std).detach()  # [t, u, M']
    rng = np.random.default_rng(0)

    def draw(frame: Frame, weights: torch.Tensor) -> Frame:
        """The frame with labels of those weights [T, M'] and their noise."""
        level, n, volume = frames.levels.index(frame.fidelity), len(frame.atoms), frame.atoms.get_volume()
        extra = columns.rows(frame.atoms.numbers, [], volume)
        f = torch.cat([features.rows(frame.atoms), extra], dim=1) @ weights[level] + columns.mean(extra, level)
        sigma = np.r_[SIGMAS[0] * n**0.5, np.full(3 * n, SIGMAS[1]), np.full(6, SIGMAS[2] * n**0.5)]
        y = f.numpy() + sigma * rng.standard_normal(len(sigma))
        return replace(frame, energy=float(y[0]), forces=y[1:-6].reshape(-1, 3), stress=-y[-6:] / volume)

    z: dict[tuple[str, str], list[np.ndarray]] = {}
    for _ in range(DRAWS):
        theta = torch.from_numpy(rng.standard_normal((2, d.shape[2])))
        weights = (d * theta[None]).sum(1)
        drawn = FrameSet(frames.levels, tuple(draw(f, weights) for f in training))
        statistics = fitting.accumulate(drawn, features, columns, [], SIGMAS[:2])
        model = MultiFidelityGP(
            config, frames.levels, features, columns, std, prior, noise, statistics, [], {}, frozenset()
        )
        model.refresh()
        for level in frames.levels:
            for name, _, compared in evaluate(model, [draw(f, weights) for f in test.of(level)], level).kinds():
                z.setdefault((level, name), []).append(compared.error / compared.std)
    found = {key: coverage(np.concatenate(values), 0.95) for key, values in z.items()}
    assert len(found) == 6
    assert all(abs(c - 0.95) < 0.015 for c in found.values()), found
    widths = [np.concatenate(values).std() for values in z.values()]
    assert all(abs(w - 1.0) < 0.05 for w in widths), widths
