"""Data drawn from the model's own prior: its standard deviations are right, without any calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import alloy, label
from numpy.testing import assert_allclose
from torch import Tensor

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.scores import coverage
from mfgp.evaluation import evaluate
from mfgp.fit import fitting
from mfgp.fit.features import Features
from mfgp.frames import Frame
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.centring import mean_features
from mfgp.gp.hyperparameters import AutoregressiveGP, LevelNoise

DRAWS = 120
LOCAL_DRAWS = 1000  # local energies of one draw are far from independent
SIGMAS = (0.02, 0.1, 0.05)  # eV per sqrt(atom), eV/Å, eV per sqrt(atom)


@dataclass(frozen=True)
class Draw:
    """Weights of both levels from the prior, the model fitted to noisy labels that they give, and other noisy labels."""

    weights: Tensor  # [T, M'] eV
    model: MultiFidelityGP
    test: FrameSet


def draws(n: int, seed: int) -> Iterator[Draw]:
    """A complete inducing set (zeta = 1, M >= D), so that weights are all there is to the functions."""
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
    rng = np.random.default_rng(seed)

    def labelled(frame: Frame, weights: Tensor) -> Frame:
        """The frame with labels of those weights [T, M'] and their noise."""
        level, n, volume = frames.levels.index(frame.fidelity), len(frame.atoms), frame.atoms.get_volume()
        extra = columns.rows(frame.atoms.numbers, [], volume)
        f = torch.cat([features.rows(frame.atoms), extra], dim=1) @ weights[level] + columns.mean(extra, level)
        of_virial = SIGMAS[2] * (n / np.array([1, 1, 1, 2, 2, 2])) ** 0.5  # without a direction
        sigma = np.r_[SIGMAS[0] * n**0.5, np.full(3 * n, SIGMAS[1]), of_virial]
        y = f.numpy() + sigma * rng.standard_normal(len(sigma))
        return replace(frame, energy=float(y[0]), forces=y[1:-6].reshape(-1, 3), stress=-y[-6:] / volume)

    for _ in range(n):
        weights = (d * torch.from_numpy(rng.standard_normal((2, d.shape[2])))[None]).sum(1)
        drawn = FrameSet(frames.levels, tuple(labelled(f, weights) for f in training))
        statistics = fitting.accumulate(drawn, features, columns, [], SIGMAS[:2])
        model = MultiFidelityGP(
            config, frames.levels, features, columns, std, prior, noise, statistics, [], {}, frozenset()
        )
        model.refresh()
        yield Draw(weights, model, FrameSet(frames.levels, tuple(labelled(f, weights) for f in test)))


def check(z: dict[tuple[str, str], list[np.ndarray]]) -> None:
    found = {key: coverage(np.concatenate(values), 0.95) for key, values in z.items()}
    assert all(abs(c - 0.95) < 0.015 for c in found.values()), found
    widths = {key: np.concatenate(values).std() for key, values in z.items()}
    assert all(abs(w - 1.0) < 0.05 for w in widths.values()), widths


@pytest.mark.slow
def test_coverage_of_draws_from_the_prior() -> None:
    """95 +- 1.5 % for energies, forces and stress at both levels."""
    z: dict[tuple[str, str], list[np.ndarray]] = {}
    for draw in draws(DRAWS, seed=0):
        for level in draw.model.levels:
            for name, _, compared in evaluate(draw.model, draw.test, level).kinds():
                z.setdefault((level, name), []).append(compared.error / compared.std)
    assert len(z) == 6
    check(z)


@pytest.mark.slow
def test_coverage_of_local_energies() -> None:
    """95 +- 1.5 % for local energies against the mean over the inducing environments of their species, at both levels.

    The labels do not determine local energies themselves, only up to a constant for each species.
    """
    z: dict[tuple[str, str], list[np.ndarray]] = {}
    std: dict[tuple[str, int], np.ndarray] = {}
    for draw in draws(LOCAL_DRAWS, seed=1):
        model, basis = draw.model, draw.model.basis
        for t, level in enumerate(model.levels):
            for i, frame in enumerate(draw.test.of(level)):
                of_atom = np.searchsorted(basis.species, frame.atoms.numbers)
                rows = model.features.functionals(frame.atoms).local - mean_features(basis)[of_atom]  # [N, M]
                said, true = ((rows @ w[t, : basis.size]).numpy() for w in (model.weights, draw.weights))
                if (level, i) not in std:  # the same for all draws: the labels' values do not enter
                    p = model.predict(frame.atoms, level, uncertainty="energies")
                    std[level, i] = np.asarray(p.energies_std)
                    for species in range(len(basis.species)):  # `said` is what was predicted, up to the constants
                        assert np.ptp((p.energies - said)[of_atom == species]) < 1e-8
                z.setdefault((level, "local energies"), []).append((said - true) / std[level, i])
    assert len(z) == 2
    check(z)


def test_the_cheap_way_to_local_deviations_is_the_exact_one() -> None:
    (draw,) = draws(1, seed=2)
    for frame in draw.test:
        full, cheap = (draw.model.predict(frame.atoms, frame.fidelity, uncertainty=u) for u in ("full", "energies"))
        assert full.energies_std is not None
        assert full.energies_std.min() > 1e-3  # eV
        assert_allclose(cheap.energies_std, full.energies_std, rtol=0, atol=1e-8)
