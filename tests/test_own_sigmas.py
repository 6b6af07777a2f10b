"""Labels that claim to be exact: float64 carries what is asked of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.evaluation import evaluate
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.centring import uncentred
from mfgp.gp.hyperparameters import LARGEST_GIVEN, Evidence
from mfgp.gp.observations import frame_rows

CONFIG = FitConfig(
    descriptor={"r_cut": 4.0, "n_max": 4, "l_max": 3, "sigma": 0.5},
    model={"zeta": 2, "n_inducing": 40},
    training={"calibrate": False},
)


def frames(sigma: float) -> FrameSet:
    out = {"low": [label(alloy(i), "low") for i in range(12)], "high": [label(alloy(i), "high") for i in range(4)]}
    for level, of in out.items():
        for atoms in of[:2]:
            atoms.info["energy_sigma"] = sigma
        for symbol in ("Cu", "Au"):
            of.append(Atoms(symbol, info={"REF_energy": 3.0 + (level == "high"), "fidelity": level}))
    return read_frames(out)


@pytest.mark.parametrize("growth", [0.0, 7.0, 14.0])
def test_no_amplitude_asks_too_much(growth: float) -> None:
    """At the bounds of the amplitudes rounding decided whether P could be factorised, and fits ended there."""
    model = MultiFidelityGP.fit(frames(1e-6), CONFIG, progress=False)
    model.prior.set_scale(model.prior.scale * np.exp(growth / 2))
    scale, rho = model.prior.scale, model.prior.rho
    d = block_scales(rho, scale, model.basis.species_index(), model.column_std)
    inverse = Evidence(model.noise, model.prior).inverse_noise(model.statistics, d)
    for t in (0, 1):
        signal = float(((d[t] ** 2).sum(0) * model.statistics.moments[t, "given"].gram.diagonal()).sum())
        assert signal > 10 * LARGEST_GIVEN
        assert signal * float(inverse[t, "given"]) < LARGEST_GIVEN
    value = Evidence(model.noise, model.prior)(model.statistics, model.basis.species_index(), model.column_std)
    assert bool(torch.isfinite(value))


@pytest.mark.parametrize("sigma", [1e-3, 1e-6, 1e-8])
def test_the_posterior_is_that_of_the_rows(sigma: float) -> None:
    """Against least squares of all rows, which no normal equations have rounded."""
    data = frames(sigma)
    model = MultiFidelityGP.fit(data, CONFIG, progress=False)
    noises = model.noises()
    d = block_scales(model.prior.rho, model.prior.scale, model.basis.species_index(), model.column_std)
    rows, targets = [], []
    for frame in data:
        t = data.levels.index(frame.fidelity)
        extra = model.columns.rows_of(frame.atoms, [])
        phi, sigma, centre = model.features.rows(frame.atoms), CONFIG.training.noise_energy, model.features.centre
        for kind, (a, y) in frame_rows(frame, phi, model.columns, extra, t, sigma, centre).items():
            rows.append((a[:, None] * d[t]).flatten(1) / noises[t, kind])
            targets.append(y / noises[t, kind])
    a, y = torch.cat(rows).numpy(), torch.cat(targets).numpy()
    a, y = np.vstack([a, np.eye(a.shape[1])]), np.concatenate([y, np.zeros(a.shape[1])])
    theta = torch.from_numpy(np.linalg.lstsq(a, y, rcond=None)[0]).view(2, -1)
    for t, level in enumerate(model.levels):
        weights = uncentred((d[t] * theta).sum(0), model.features.centre)
        for atoms in (alloy(900), alloy(901)):
            design = torch.cat([model.features.rows(atoms), model.columns.rows_of(atoms, [])], dim=1)
            expected = design @ weights + model.columns.mean(design[:, model.basis.size :], t)
            found = model.predict(atoms, level)
            assert_allclose(found.forces.flatten(), expected[1:-6], rtol=0, atol=2e-3)  # eV/Å
            assert found.energy == pytest.approx(float(expected[0]), abs=1e-3)


def noisy(seed: int, sigma: float | None) -> Atoms:
    """An alloy whose forces have noise of 0.1 eV/Å, said or not."""
    atoms = label(alloy(seed, rattle=0.08), "high")
    atoms.arrays["REF_forces"] += np.random.default_rng(seed).normal(0.0, 0.1, atoms.positions.shape)
    if sigma is not None:
        atoms.info["force_sigma"] = sigma
    return atoms


def test_labels_with_a_sigma_of_their_own_are_calibrated_on() -> None:
    """As others are: intervals hold new labels, with that sigma in them, whatever the sigma says."""
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"calibrate": True})})
    new = read_frames({"high": [noisy(i, None) for i in range(500, 540)]})
    for sigma in (0.1, 0.05, 0.2):
        model = MultiFidelityGP.fit(read_frames({"high": [noisy(i, sigma) for i in range(30)]}), config, progress=False)
        assert model.calibration is not None
        assert {f.kind for f in model.calibration.fitted} >= {"energy", "forces"}
        assert model.label_noise(0)[1] == pytest.approx(sigma)
        z = evaluate(model, new, "high").forces.scores.z_std
        assert 0.85 < z < 1.2


def test_isolated_atoms_do_not_take_from_own_sigmas() -> None:
    """Their rows hold the mean environment over a hundredth of the noise; what float64 asks for that is theirs alone."""
    model = MultiFidelityGP.fit(frames(0.01), CONFIG, progress=False)
    model.prior.set_scale(torch.tensor([100.0, 100.0], dtype=torch.float64))
    noises = model.noises()
    assert 1.0 <= noises[0, "given"] < 1.01
    assert noises[0, "isolated"] > 1.5
