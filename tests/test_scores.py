"""Scores against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import binom, norm, spearmanr

from mfgp.calibration.scores import Scores, coverage, expected_inside, rank_correlation, scores, worst_found

CONTRACT = {"mae", "rmse", "coverage95", "z_std", "nll", "spearman", "n"}


def test_scores_of_a_few_numbers():
    error, std = np.array([1.0, -1.0, 3.0, 0.0]), np.array([0.4, 1.0, 2.0, 0.5])
    s = scores(error, std)
    z = np.array([2.5, -1.0, 1.5, 0.0])
    assert s.n == 4
    assert_allclose(s.mae, 1.25, rtol=0, atol=1e-14)
    assert_allclose(s.rmse, math.sqrt(11 / 4), rtol=0, atol=1e-14)
    assert s.coverage95 == 0.75
    assert_allclose(s.z_std, math.sqrt((z**2).mean() - z.mean() ** 2), rtol=0, atol=1e-14)
    nll = (
        -sum(
            math.log(math.exp(-0.5 * (e / v) ** 2) / (v * math.sqrt(2 * math.pi)))
            for e, v in zip(error, std, strict=True)
        )
        / 4
    )
    assert_allclose(s.nll, nll, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("scale", "coverage", "z_std"), [(1.0, 0.95, 1.0), (2.0, 0.99991, 0.5), (0.5, 0.67291, 2.0)])
def test_scores_of_draws_from_the_stated_distribution(scale: float, coverage: float, z_std: float):
    rng = np.random.default_rng(0)
    std = rng.uniform(0.5, 2.0, 40000)
    s = scores(std * rng.standard_normal(40000), scale * std)
    assert abs(s.coverage95 - coverage) < 0.007
    assert abs(s.z_std - z_std) < 0.01 * z_std
    entropy = np.log(std).mean() + 0.5 * math.log(2 * math.pi)
    assert abs(s.nll - (entropy + math.log(scale) + 0.5 / scale**2)) < 0.03 / scale**2
    assert 0.2 < s.spearman < 0.5  # perfect stds rank the errors, which are draws, only so far


def test_rank_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(1)
    x = rng.integers(0, 6, 50).astype(float)
    y = x + rng.integers(0, 6, 50)
    assert_allclose(rank_correlation(x, y), spearmanr(x, y).statistic, rtol=0, atol=1e-12)
    assert_allclose(rank_correlation(x, -y), -spearmanr(x, y).statistic, rtol=0, atol=1e-12)
    assert math.isnan(rank_correlation(x, np.ones(50)))


def test_undefined_scores_are_null_in_json():
    empty = scores(np.zeros(0), np.zeros(0)).to_json()
    assert empty == {**dict.fromkeys({f.name for f in fields(Scores)} - {"n"}), "n": 0}
    assert set(empty) >= CONTRACT
    one = scores(np.array([0.1]), np.array([0.2])).to_json()
    assert one["z_std"] is None
    assert one["spearman"] is None
    assert one["mae"] == pytest.approx(0.1, abs=1e-15)
    json.dumps([empty, one], allow_nan=False)


def test_a_std_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive"):
        scores(np.ones(2), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="2 errors"):
        scores(np.ones(2), np.ones(3))


def test_crps_is_the_integral_of_the_squared_distance_of_the_distributions():
    for error, std in ((0.3, 0.5), (-2.0, 0.7)):  # observation 0, prediction N(error, std^2)
        below = quad(lambda x, e=error, s=std: norm.cdf(x, e, s) ** 2, -12, 0)[0]
        above = quad(lambda x, e=error, s=std: (1 - norm.cdf(x, e, s)) ** 2, 0, 12)[0]
        assert_allclose(scores(np.array([error]), np.array([std])).crps, below + above, rtol=0, atol=1e-7)


def test_crps_and_nll_prefer_the_stated_distribution():
    rng = np.random.default_rng(2)
    error = rng.standard_normal(20000)
    found = {scale: scores(error, np.full(20000, scale)) for scale in (0.5, 1.0, 2.0)}
    assert min(found, key=lambda s: found[s].crps) == min(found, key=lambda s: found[s].nll) == 1.0
    assert found[2.0].sharpness == 2.0


def test_coverage_of_other_intervals():
    z = np.array([0.1, -0.6, 1.2, -1.5, 2.2])
    assert coverage(z, 0.5) == 0.4  # 0.674
    assert coverage(z, 0.8) == 0.6  # 1.282
    assert coverage(z, 0.95) == 0.8  # 1.960


@pytest.mark.parametrize("n", [2, 27, 500])
def test_how_many_labels_an_honest_interval_holds(n: int):
    low, high = expected_inside(n)
    assert (low, high) == tuple(int(k) for k in binom.interval(0.95, n, 0.95))


def test_worst_errors_among_the_largest_stds():
    error, std = np.arange(1.0, 41.0), np.arange(1.0, 41.0)
    assert worst_found(error, std) == 1.0
    assert worst_found(error, -std + 50.0) == 0.0
    assert math.isnan(worst_found(error, np.ones(40)))
