"""Costs of calculations: learned exponents, sums that add, and what a user gives."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose

from mfgp import ConfigError, FrameSet, MultiFidelityGP, read_frames
from mfgp.costs import CostModel


def cell(repeat: int) -> Atoms:
    return bulk("Cu", "fcc", a=3.6, cubic=True) * (repeat, 1, 1)


def frames(seconds_of: dict[str, list[tuple[int, float]]], key: str = "wall_seconds") -> FrameSet:
    """Frames {level: [(repeat, seconds)]} of 4 repeat atoms."""
    out = {}
    for level, costs in seconds_of.items():
        out[level] = []
        for repeat, seconds in costs:
            atoms = cell(repeat)
            atoms.info.update({"REF_energy": 1.0, key: seconds})
            out[level].append(atoms)
    return read_frames(out)


def cubic(prefactor: float, repeats: tuple[int, ...] = (1, 2, 3, 4, 6, 8)) -> list[tuple[int, float]]:
    return [(r, prefactor * (4.0 * r) ** 3) for r in repeats for _ in range(20)]


def test_the_exponent_is_learned_across_levels() -> None:
    costs = CostModel.learn(frames({"low": cubic(0.01), "high": [(2, 30.0)]}))
    assert_allclose(costs.exponent(), 3.0, atol=0.05)
    assert_allclose(costs.hours("low", cell(5)) * 3600, 0.01 * 20.0**3, rtol=0.03)
    assert_allclose(costs.hours("high", cell(4)) / costs.hours("high", cell(2)), 8.0, rtol=0.05)  # never seen there


def test_one_size_says_nothing_of_the_exponent() -> None:
    costs = CostModel.learn(frames({"low": [(2, 10.0)] * 9}))
    assert_allclose(costs.exponent(), 2.0, atol=1e-12)
    assert_allclose(costs.hours("low", cell(2)) * 3600, 10.0, rtol=1e-9)


def test_the_expected_cost_is_the_mean_of_a_log_normal() -> None:
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.normal(3.0, 0.6, 800))
    costs = CostModel.learn(frames({"low": [(2, float(s)) for s in seconds]}))
    assert_allclose(costs.hours("low", cell(2)) * 3600, seconds.mean(), rtol=0.05)


def test_cpu_seconds_go_before_wall_seconds() -> None:
    atoms = cell(1)
    atoms.info.update(REF_energy=1.0, wall_seconds=100.0, cpu_seconds=7.2)
    assert_allclose(CostModel.learn(read_frames({"low": [atoms]})).hours("low", atoms), 0.002, rtol=1e-9)


def test_sums_of_two_sets_are_those_of_both() -> None:
    data = cubic(0.02)
    both = CostModel.learn(frames({"low": data}))
    parts = CostModel.learn(frames({"low": data[:7]})).added(CostModel.learn(frames({"low": data[7:]})))
    assert_allclose(parts.hours("low", cell(3)), both.hours("low", cell(3)), rtol=1e-9)
    again = CostModel.from_json(both.to_json())
    assert again.hours("low", cell(3)) == both.hours("low", cell(3))


def test_a_users_cost_replaces_what_was_learned() -> None:
    costs = CostModel.learn(frames({"low": cubic(0.02)})).with_given({"low": 0.5})
    assert costs.hours("low", cell(1)) == costs.hours("low", cell(8)) == 0.5


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_wrong_costs(hours: float) -> None:
    with pytest.raises(ConfigError, match="give a positive number"):
        CostModel.fixed({"low": hours})


def test_a_level_without_costs() -> None:
    costs = CostModel.fixed({"low": 1.0})
    assert costs.missing(["low", "high"]) == ["high"]
    with pytest.raises(ConfigError, match="--cost high=HOURS"):
        costs.hours("high", cell(1))


def test_a_model_keeps_its_costs(model: MultiFidelityGP, tmp_path: object) -> None:
    assert model.costs.missing(model.levels) == list(model.levels)  # its frames say none
