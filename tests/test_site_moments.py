"""Magnetic moments: the closed form against a dense Gaussian process, and draws from the prior."""

from __future__ import annotations

import numpy as np
import torch
from conftest import alloy
from magnetic_frames import features, moments_of
from numpy.testing import assert_allclose

from mfgp import MultiFidelityGP
from mfgp.calibration.calibration import Calibration
from mfgp.calibration.leave_one_out import left_out_moments
from mfgp.calibration.moments import LeftOutMoments, with_moments
from mfgp.gp.observations import local_features
from mfgp.gp.site_moments import (
    C_STD,
    SiteStatistics,
    _learned,
    fit_sites,
    predict_sites,
    site_evidence,
    site_posterior,
    with_constant,
)
from mfgp.gp.statistics import Moments


def test_the_posterior_is_that_of_a_dense_gaussian_process(model: MultiFidelityGP) -> None:
    """All environments of two structures against K + sigma^2 of the projected process plus a constant."""
    statistics, s, sigma, values = SiteStatistics(), 0.7, 0.05, []
    rows = []
    for seed in (1, 2):
        atoms = alloy(seed)
        numbers, q = features(model, atoms)
        y = torch.from_numpy(moments_of(atoms))
        statistics.add(model.basis, 0, numbers, q, y)
        rows.append(local_features(model.basis, q, numbers)[numbers == 29])
        values.append(y[numbers == 29])
    m, phi, y = statistics.moments[0, 29], torch.cat(rows), torch.cat(values)
    gram = s**2 * phi @ phi.T + C_STD**2 + sigma**2 * torch.eye(len(y))
    expected = -0.5 * (y @ torch.linalg.solve(gram, y) + torch.logdet(gram) + len(y) * np.log(2 * np.pi))
    assert_allclose(site_evidence(m, s, sigma), float(expected), rtol=0, atol=1e-6)  # nats
    numbers, q = features(model, alloy(3))
    mean, std = predict_sites(
        model.basis, {(0, 29): site_posterior(m, s, sigma)}, 0, numbers, local_features(model.basis, q, numbers)
    )
    new = local_features(model.basis, q, numbers)[numbers == 29]
    cross = s**2 * new @ phi.T + C_STD**2
    assert_allclose(mean[numbers == 29], cross @ torch.linalg.solve(gram, y), rtol=0, atol=1e-7)
    prior = s**2 + C_STD**2 + sigma**2  # k(x, x) = 1
    variance = prior - (cross * torch.linalg.solve(gram, cross.T).T).sum(1)
    assert_allclose(std[numbers == 29] ** 2, variance, rtol=0, atol=1e-7)
    assert torch.isnan(mean[numbers == 79]).all()  # no labels of Au at that level among these


def test_left_out_moments_are_those_of_a_posterior_without_them(model: MultiFidelityGP) -> None:
    s, sigma, every, without = 0.7, 0.05, SiteStatistics(), SiteStatistics()
    for seed in range(1, 6):
        numbers, q = features(model, alloy(seed))
        y = torch.from_numpy(moments_of(alloy(seed)))
        every.add(model.basis, 0, numbers, q, y)
        if seed != 3:
            without.add(model.basis, 0, numbers, q, y)
    numbers, q = features(model, alloy(3))
    phi, columns = local_features(model.basis, q, numbers)[numbers == 29], dict(model.basis.blocks())
    phi = phi[:, columns[list(model.basis.species).index(29)]]
    moments = torch.from_numpy(moments_of(alloy(3)))[numbers == 29]
    left = left_out_moments(site_posterior(every.moments[0, 29], s, sigma), phi, moments)
    assert left is not None
    expected = site_posterior(without.moments[0, 29], s, sigma).predict(phi)
    assert float((left[0] - moments).abs().max()) > 0.02  # Bohr magnetons: something to get wrong
    for found, wanted in zip(left, expected, strict=True):
        assert_allclose(found, wanted, rtol=0, atol=1e-7)  # Bohr magnetons


def test_a_steep_function_with_little_noise_is_not_taken_for_noise(model: MultiFidelityGP) -> None:
    """Two maxima of the evidence: the higher one is found, whatever the amplitude."""
    (columns,) = (c for i, c in model.basis.blocks() if model.basis.species[i] == 29)
    found_features = [features(model, alloy(i, rattle=0.2)) for i in range(12)]
    phi = torch.cat([local_features(model.basis, q, z)[z == 29][:, columns] for z, q in found_features])
    for amplitude, seed in ((0.03, 0), (0.3, 0), (8.0, 0), (8.0, 11)):
        rng = np.random.default_rng(seed)
        weights, noise = (torch.from_numpy(rng.standard_normal(n)) for n in (phi.shape[1], len(phi)))
        m = Moments.zeros(phi.shape[1] + 1)
        m.add(with_constant(phi), amplitude * phi @ weights + 1e-3 * noise)
        found = site_evidence(m, *_learned(m))
        grid = [site_evidence(m, s, n) for s in np.geomspace(0.01, 10, 12) for n in np.geomspace(1e-3, 10, 12)]
        assert found > max(grid) - 0.1


def test_coverage_on_draws_from_the_prior(model: MultiFidelityGP) -> None:
    """Moments drawn from the model itself, hyperparameters learned from 30 structures: 95 % intervals hold."""
    rng, s, sigma = np.random.default_rng(0), 0.6, 0.05
    structures = [alloy(500 + i) for i in range(60)]
    found = [features(model, a) for a in structures]
    phi = [local_features(model.basis, q, numbers) for numbers, q in found]
    inside, count = 0, 0
    for _ in range(20):
        weights = torch.from_numpy(rng.standard_normal(model.basis.size))
        truth = []
        for p in phi:
            residual = (1.0 - (p**2).sum(1)).clamp(min=0.0).sqrt() * torch.from_numpy(rng.standard_normal(len(p)))
            truth.append(2.0 + s * (p @ weights + residual) + sigma * torch.from_numpy(rng.standard_normal(len(p))))
        statistics = SiteStatistics()
        for (numbers, q), y in list(zip(found, truth, strict=True))[:30]:
            statistics.add(model.basis, 0, numbers, q, y)
        sites = fit_sites(statistics)
        for (numbers, _), p, y in list(zip(found, phi, truth, strict=True))[30:]:
            mean, std = predict_sites(model.basis, sites, 0, numbers, p)
            inside += int(((mean - y).abs() < 1.96 * std).sum())
            count += len(y)
    assert count == 20 * 30 * 4
    assert abs(inside / count - 0.95) < 0.015


def test_factors_are_those_of_left_out_errors() -> None:
    """Errors of twice their standard deviation: a factor of four; two structures are too few."""
    rng, nothing = np.random.default_rng(0), Calibration((), (), ())

    def parts(species: int, n: int) -> list[LeftOutMoments]:
        std = 0.1 * np.ones((n, 6))
        return [LeftOutMoments("high", species, 2.0 * s * rng.standard_normal(6), s) for s in std]

    found = with_moments(nothing, [*parts(29, 200), *parts(79, 2)], ("low", "high"))
    assert_allclose(found.moment_factors(1, np.array([29, 79])), [4.0, 1.0], rtol=0.15)
    assert_allclose(found.moment_factors(0, np.array([29])), [1.0], rtol=0)
    (row,) = found.fitted
    assert (row.level, row.kind, row.species, row.structures, row.labels) == ("high", "moments", "Cu", 200, 1200)
    assert row.coverage_before < 0.75
    assert abs(row.coverage_after - 0.95) < 0.02
    assert_allclose(nothing.moment_factors(1, np.array([29])), [1.0], rtol=0)
