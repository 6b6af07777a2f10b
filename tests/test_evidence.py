"""The evidence by recursion over the levels: against the joint precision of all levels, and where levels say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.gp.autoregressive import block_scales, level_mixing
from mfgp.gp.evidence import LOG_2PI, evidence
from mfgp.gp.hyperparameters import AutoregressiveGP, Evidence, LevelNoise
from mfgp.gp.levels import Chain, Posterior
from mfgp.gp.statistics import Key, Statistics
from mfgp.gp.training import initialise, maximise_evidence, newton_units
from mfgp.predict.level_shares import term_covariances

M, COLUMNS = 12, 3
SPECIES_INDEX = torch.tensor([0] * 5 + [1] * 7)
KINDS = (("energy", 6), ("forces", 40), ("virial", 9))


def draw(n_levels: int, seed: int = 0, silent: tuple[int, ...] = ()) -> tuple[Statistics, dict[Key, Tensor]]:
    """Rows and labels of all levels but the `silent` ones."""
    generator, statistics = torch.Generator().manual_seed(seed), Statistics(M + COLUMNS)
    for t in set(range(n_levels)) - set(silent):
        for kind, n in KINDS:
            a = torch.randn(n, M + COLUMNS, dtype=torch.float64, generator=generator)
            statistics.add(t, {kind: (a, torch.randn(n, dtype=torch.float64, generator=generator))})
    noise = torch.rand(3 * n_levels, dtype=torch.float64, generator=generator) + 0.1
    return statistics, dict(zip(statistics.observed(), noise**-2, strict=False))


def scales(n_levels: int, rho: float = 0.8, discrepancy: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """rho [T-1, S], s [T], column_std [T, column]."""
    return (
        torch.tensor([[rho, -0.5 * rho]], dtype=torch.float64).repeat(n_levels - 1, 1),
        torch.tensor([1.5] + [discrepancy] * (n_levels - 1), dtype=torch.float64),
        torch.rand(n_levels, COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5,
    )


def joint_precision(statistics: Statistics, d: Tensor, inverse_noise: dict[Key, Tensor]) -> tuple[Tensor, Tensor]:
    """P [T M', T M'] and h [T M'] of all weights theta, as autoregressive.py has them."""
    n_levels, size = len(d), d.shape[2]
    p, h = torch.eye(n_levels * size, dtype=torch.float64), torch.zeros(n_levels * size, dtype=torch.float64)
    for (t, kind), m in statistics.moments.items():
        seen = torch.cat([torch.diag(d[t, u]) for u in range(n_levels)], dim=1)  # D_t [M', T M']
        p = p + inverse_noise[t, kind] * seen.T @ m.gram @ seen
        h = h + inverse_noise[t, kind] * seen.T @ m.projection
    return p, h


def of_joint_precision(statistics: Statistics, d: Tensor, inverse_noise: dict[Key, Tensor]) -> float:
    """log p(y) through one precision of all levels."""
    p, h = joint_precision(statistics, d, inverse_noise)
    value = torch.logdet(p) - h @ torch.linalg.solve(p, h)
    for key, q in inverse_noise.items():
        m = statistics.moments[key]
        value = value + q * m.square + m.count * (LOG_2PI - q.log())
    return -0.5 * float(value)


@pytest.mark.parametrize(
    ("n_levels", "silent"), [(1, ()), (2, ()), (2, (0,)), (2, (1,)), (3, ()), (3, (1,)), (5, ()), (5, (0, 3))]
)
def test_it_is_that_of_the_joint_precision(n_levels: int, silent: tuple[int, ...]) -> None:
    statistics, inverse_noise = draw(n_levels, silent=silent)
    d = block_scales(*scales(n_levels)[:2], SPECIES_INDEX, scales(n_levels)[2])
    expected = of_joint_precision(statistics, d, inverse_noise)
    assert_allclose(float(evidence(statistics, d, inverse_noise)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("n_levels", [1, 2, 3, 4])
def test_gradient_by_everything_it_depends_on(n_levels: int) -> None:
    statistics, inverse_noise = draw(n_levels)
    keys = statistics.observed()

    def value(rho: Tensor, scale: Tensor, column_std: Tensor, precision: Tensor) -> Tensor:
        d = block_scales(rho, scale, SPECIES_INDEX, column_std)
        return evidence(statistics, d, dict(zip(keys, precision, strict=True)))

    inputs = [*scales(n_levels), torch.stack([inverse_noise[key] for key in keys])]
    assert torch.autograd.gradcheck(value, [x.requires_grad_() for x in inputs], atol=1e-6)


def test_columns_that_a_level_does_not_have() -> None:
    """A baseline from the second level on, one that no level may scale, one that does not change from level to level."""
    statistics, inverse_noise = draw(3)
    rho, scale, column_std = scales(3)
    column_std[0, 0], column_std[:, 1], column_std[1:, 2] = 0.0, 0.0, 0.0
    d = block_scales(rho, scale, SPECIES_INDEX, column_std)
    expected = of_joint_precision(statistics, d, inverse_noise)
    assert_allclose(float(evidence(statistics, d, inverse_noise)), expected, rtol=1e-8, atol=0)
    chain = Chain.of(d)
    assert chain.std[0, M].item() == chain.std[1, M + 1].item() == 0.0
    assert bool(torch.isfinite(chain.diagonal).all())


@pytest.mark.parametrize("discrepancy", [1e-2, 1e-4, 1e-7, 0.0])
def test_a_level_that_only_repeats_the_one_below(discrepancy: float) -> None:
    """Nothing of delta_t is left in f_t: 1 / r_t is bounded, and value and gradient stay what they are."""
    statistics, inverse_noise = draw(2)
    rho, scale, column_std = scales(2, discrepancy=discrepancy)
    d = block_scales(rho, scale.requires_grad_(), SPECIES_INDEX, column_std)
    value = evidence(statistics, d, inverse_noise)
    value.backward()
    expected = of_joint_precision(statistics, d.detach(), inverse_noise)
    assert_allclose(value.item(), expected, rtol=0, atol=1e-5)  # nats
    assert bool(torch.isfinite(scale.grad).all())


def test_levels_that_share_nothing() -> None:
    statistics, inverse_noise = draw(2)
    _, scale, column_std = scales(2)
    column_std[0] = 0.0
    d = block_scales(torch.zeros(1, 2, dtype=torch.float64), scale, SPECIES_INDEX, column_std)
    alone = 0.0
    for t in range(2):
        own = {key: m for key, m in statistics.moments.items() if key[0] == t}
        one = Statistics(statistics.size, {(0, kind): m for (_, kind), m in own.items()})
        alone += float(evidence(one, d[t : t + 1, t : t + 1], {(0, key[1]): inverse_noise[key] for key in own}))
    assert_allclose(float(evidence(statistics, d, inverse_noise)), alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n_levels", "silent"), [(1, ()), (2, ()), (2, (1,)), (3, ()), (4, (0,)), (5, ())])
def test_posterior_is_that_of_the_joint_precision(n_levels: int, silent: tuple[int, ...]) -> None:
    """Means, covariances between any two levels, those of the terms of a level, and what rows of two levels share."""
    statistics, inverse_noise = draw(n_levels, silent=silent)
    rho, scale, column_std = scales(n_levels)
    d = block_scales(rho, scale, SPECIES_INDEX, column_std)
    p, h = joint_precision(statistics, d, inverse_noise)
    inverse = torch.linalg.inv(p)
    seen = [torch.cat([torch.diag(d[t, u]) for u in range(n_levels)], dim=1) for t in range(n_levels)]  # D_t
    found = Posterior(statistics, Chain.of(d), inverse_noise)
    every, rows = found.all_covariances(), torch.randn(4, M + COLUMNS, dtype=torch.float64)
    own = found.level_covariances()
    mixing = level_mixing(rho, SPECIES_INDEX, COLUMNS)
    for t in range(n_levels):
        assert_allclose(found.level_means()[t], seen[t] @ inverse @ h, rtol=0, atol=1e-11)
        assert_allclose(own[t], every[t, t], rtol=0, atol=1e-13)
        for s in range(n_levels):
            expected = seen[t] @ inverse @ seen[s].T
            assert_allclose(every[t, s], expected, rtol=0, atol=1e-11)
            turned = found.turned(rows, t) @ found.turned(rows, s).T
            assert_allclose(turned, rows @ expected @ rows.T, rtol=0, atol=1e-10)
        for u, term in enumerate(term_covariances(every, mixing, t)):
            block = slice(u * (M + COLUMNS), (u + 1) * (M + COLUMNS))
            assert_allclose(term, d[t, u][:, None] * inverse[block] @ seen[t].T, rtol=0, atol=1e-11)


def drawn_from_the_prior(seed: int) -> tuple[Statistics, Tensor]:
    """2 levels of 1500 and 300 forces and some energies, weights from the prior, noises of 0.05 and 0.1."""
    rng, statistics = np.random.default_rng(seed), Statistics(40 + 1)
    weights = rng.normal(size=(2, 41)) * [[2.0], [0.5]]
    weights[1] += 0.7 * weights[0]
    for t, n in enumerate((1500, 300)):
        for kind, rows, noise in (("energy", n // 10, 0.01 * (t + 1)), ("forces", n, 0.05 * (t + 1))):
            a = rng.normal(size=(rows, 41)) / 41**0.5
            y = a @ weights[t] + noise * rng.normal(size=rows)
            statistics.add(t, {kind: (torch.from_numpy(a), torch.from_numpy(y))})
    return statistics, torch.zeros(40, dtype=torch.long)


@pytest.mark.parametrize("seed", range(3))
def test_units_of_the_curvature_take_fewer_evaluations(seed: int) -> None:
    """From hyperparameters that are somewhat off, as those of a prefix of the inducing points are."""
    statistics, species = drawn_from_the_prior(seed)
    column_std = torch.ones(2, 1, dtype=torch.float64)

    def start() -> Evidence:
        prior, noise = AutoregressiveGP(2, (29,), 2, "scalar"), LevelNoise(2, (0.01, 0.1, 0.1), 1.0)
        initialise(prior, noise, statistics, 40)
        noise.set_noise(torch.tensor([[0.008, 0.08, 0.1], [0.03, 0.2, 0.1]], dtype=torch.float64))
        return Evidence(noise, prior)

    alike = start()
    plain = maximise_evidence(alike, statistics, species, column_std, 60)
    other = start()
    before = [p.detach().clone() for p in other.parameters()]
    units = newton_units(other, statistics, species, column_std)
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True))  # looked at, not moved
    scaled = maximise_evidence(other, statistics, species, column_std, 60, units=units)
    assert scaled.evidence > plain.evidence - 0.05  # nats
    assert scaled.evaluations < 0.7 * plain.evaluations


def test_units_where_factorisations_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter whose displaced point cannot be evaluated counts as stiff; without any point all are alike."""
    statistics, species = drawn_from_the_prior(0)
    column_std = torch.ones(2, 1, dtype=torch.float64)
    prior, noise = AutoregressiveGP(2, (29,), 2, "scalar"), LevelNoise(2, (0.01, 0.1, 0.1), 1.0)
    initialise(prior, noise, statistics, 40)
    objective = Evidence(noise, prior)
    usual = newton_units(objective, statistics, species, column_std)
    whole, calls = Evidence.forward, []

    def failing(self: Evidence, *arguments: Any) -> Tensor:
        calls.append(len(calls))
        if calls[-1] in fails:
            raise NumericalError("made up")
        return whole(self, *arguments)

    monkeypatch.setattr(Evidence, "forward", failing)
    fails = {3}  # the third parameter
    found = newton_units(objective, statistics, species, column_std)
    assert found[2] == found.min()
    others = np.delete(np.arange(len(usual)), 2)
    assert_allclose(found[others], usual[others], rtol=1e-9)
    calls.clear()
    fails = {0}
    assert (newton_units(objective, statistics, species, column_std) == 1.0).all()
