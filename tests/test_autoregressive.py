"""Kennedy-O'Hagan algebra against dense Gaussian-process formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.gp.autoregressive import block_scales, mixing_matrix, prior_variances
from mfgp.gp.evidence import evidence
from mfgp.gp.levels import Chain, Posterior
from mfgp.gp.statistics import Key, Statistics

M, COLUMNS, T = 7, 2, 3
SPECIES_INDEX = torch.tensor([0, 0, 0, 1, 1, 1, 1])
Rows = dict[Key, tuple[Tensor, Tensor]]


def make_rows(seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    out: Rows = {}
    for t in range(T):
        for kind, n in (("energy", 4), ("forces", 12)):
            a = torch.randn(n, M + COLUMNS, dtype=torch.float64, generator=generator)
            out[t, kind] = (a, torch.randn(n, dtype=torch.float64, generator=generator))
    return out


def collect(rows: Rows) -> Statistics:
    statistics = Statistics(M + COLUMNS)
    for (t, kind), row in rows.items():
        statistics.add(t, {kind: row})
    return statistics


def parameters(seed: int = 1) -> tuple[Tensor, Tensor, Tensor, dict[Key, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rho = torch.rand(T - 1, 2, dtype=torch.float64, generator=generator) + 0.3
    scale = torch.rand(T, dtype=torch.float64, generator=generator) + 0.5
    column_std = torch.rand(T, COLUMNS, dtype=torch.float64, generator=generator) + 1.0
    noises = torch.rand(2 * T, dtype=torch.float64, generator=generator) * 0.5 + 0.1
    return rho, scale, column_std, dict(zip(sorted(make_rows()), noises**-2, strict=True))


def posterior(statistics: Statistics, d: Tensor, inverse_noise: dict[Key, Tensor]) -> Posterior:
    return Posterior(statistics, Chain.of(d), inverse_noise)


def dense_covariance(rows: Rows, rho: Tensor, scale: Tensor, column_std: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Prior covariance of all observations by the definition f_t = rho f_{t-1} + delta_t, and the observations."""
    keys = sorted(rows)
    levels = np.concatenate([[t] * len(rows[t, kind][1]) for t, kind in keys])
    a = torch.cat([rows[key][0] for key in keys]).numpy()
    y = torch.cat([rows[key][1] for key in keys]).numpy()
    per_feature = rho.numpy()[:, SPECIES_INDEX.numpy()]  # [T-1, M]
    cov = np.zeros((len(y), len(y)))
    for u in range(T):  # each delta_u contributes by itself
        seen = np.zeros((T, M))
        seen[u] = scale[u].item()
        for t in range(u + 1, T):
            seen[t] = per_feature[t - 1] * seen[t - 1]
        phi = a[:, :M] * seen[levels]
        extra = a[:, M:] * (levels >= u)[:, None] * column_std[u].numpy()
        cov += phi @ phi.T + extra @ extra.T
    return cov, y


def test_mixing_matrix_is_the_recursion() -> None:
    w = mixing_matrix(torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert_allclose(w.numpy(), [[1, 0, 0], [0.5, 1, 0], [1.0, 2.0, 1]], rtol=0, atol=1e-15)


def test_evidence_equals_the_dense_gaussian_density() -> None:
    rows, (rho, scale, column_std, inverse_noise) = make_rows(), parameters()
    cov, y = dense_covariance(rows, rho, scale, column_std)
    noise = np.concatenate([[float(inverse_noise[k]) ** -1] * len(rows[k][1]) for k in sorted(rows)])
    total = cov + np.diag(noise)
    expected = -0.5 * (y @ np.linalg.solve(total, y) + np.linalg.slogdet(total)[1] + len(y) * np.log(2 * np.pi))
    d = block_scales(rho, scale, SPECIES_INDEX, column_std)
    assert_allclose(float(evidence(collect(rows), d, inverse_noise)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("level", range(T))
def test_posterior_equals_dense_gp_at_every_level(level: int) -> None:
    rows, (rho, scale, column_std, inverse_noise) = make_rows(), parameters()
    new: Rows = {(level, "energy"): make_rows(seed=5)[level, "energy"]}
    everything = {**rows, (level, "zzz"): new[level, "energy"]}  # sorts last within the level
    keys = sorted(everything)
    is_new = np.concatenate([[k == (level, "zzz")] * len(everything[k][1]) for k in keys])
    cov, y = dense_covariance(everything, rho, scale, column_std)
    noise = np.concatenate(
        [[float(inverse_noise.get(k, torch.tensor(1.0))) ** -1] * len(everything[k][1]) for k in keys]
    )
    k_nn = cov[~is_new][:, ~is_new] + np.diag(noise[~is_new])
    k_sn, k_ss = cov[is_new][:, ~is_new], cov[is_new][:, is_new]
    mean = k_sn @ np.linalg.solve(k_nn, y[~is_new])
    variance = k_ss - k_sn @ np.linalg.solve(k_nn, k_sn.T)

    joint = posterior(collect(rows), block_scales(rho, scale, SPECIES_INDEX, column_std), inverse_noise)
    a = new[level, "energy"][0]
    assert_allclose((a @ joint.level_means()[level]).numpy(), mean, rtol=0, atol=1e-9)
    assert_allclose((a @ joint.level_covariances()[level] @ a.T).numpy(), variance, rtol=0, atol=1e-9)


def test_rho_zero_decouples_the_levels() -> None:
    rows, (_, scale, column_std, inverse_noise) = make_rows(), parameters()
    column_std = column_std * torch.tensor([1e-9, 1.0, 1.0])[:, None]  # nor do the columns tie level 0 to the others
    d = block_scales(torch.zeros(T - 1, 2, dtype=torch.float64), scale, SPECIES_INDEX, column_std)
    joint = posterior(collect(rows), d, inverse_noise)
    low = {k: v for k, v in rows.items() if k[0] == 0}
    alone = posterior(collect(low), d[:1, :1], {k: inverse_noise[k] for k in low})
    assert_allclose(joint.level_means()[0].numpy(), alone.level_means()[0].numpy(), rtol=0, atol=1e-9)
    assert_allclose(joint.level_covariances()[0].numpy(), alone.level_covariances()[0].numpy(), rtol=0, atol=1e-9)


def test_one_level_is_bayesian_linear_regression() -> None:
    a, y = make_rows()[0, "forces"]
    statistics = Statistics(M + COLUMNS)
    statistics.add(0, {"forces": (a, y)})
    _, scale, column_std, _ = parameters()
    d = block_scales(torch.zeros(0, 2, dtype=torch.float64), scale[:1], SPECIES_INDEX, column_std[:1])
    joint = posterior(statistics, d, {(0, "forces"): torch.tensor(25.0, dtype=torch.float64)})
    prior = torch.cat([scale[0].expand(M), column_std[0]]) ** 2
    precision = 25.0 * a.T @ a + torch.diag(1 / prior)
    expected = torch.linalg.solve(precision, 25.0 * a.T @ y)
    assert_allclose(joint.level_means()[0].numpy(), expected.numpy(), rtol=0, atol=1e-10)


def test_prior_variances_add_up_over_levels() -> None:
    rho, scale = torch.tensor([[0.5], [2.0]], dtype=torch.float64), torch.tensor([1.0, 3.0, 0.1], dtype=torch.float64)
    expected = [1.0, 0.25 + 9.0, 4 * 9.25 + 0.01]
    assert_allclose(prior_variances(rho, scale).squeeze(1).numpy(), expected, rtol=0, atol=1e-13)


def test_lost_definiteness_is_an_error_that_names_the_way_out() -> None:
    statistics = Statistics(2)
    a = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    statistics.add(0, {"energy": (a, a[:, 0])})
    d = torch.ones(1, 1, 2, dtype=torch.float64)
    with pytest.raises(NumericalError, match="noise_energy"):
        posterior(statistics, d, {(0, "energy"): torch.tensor(1e18, dtype=torch.float64)})
