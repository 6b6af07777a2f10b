"""Costs of calculations: learned exponents, sums that add, and what a user gives."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import alloy, label
from numpy.testing import assert_allclose

from mfgp import ConfigError, FrameSet, MultiFidelityGP, read_frames
from mfgp.data.costs import CostModel


def hours(costs: CostModel, level: str, atoms: Atoms) -> float:
    return float(costs.hours(level, [atoms])[0])


def cell(repeat: int) -> Atoms:
    return bulk("Cu", "fcc", a=3.6, cubic=True) * (repeat, 1, 1)


def frames(seconds_of: dict[str, list[tuple[int, float]]], key: str = "wall_seconds") -> FrameSet:
    """Frames {level: [(repeat, seconds)]} of 4 repeat atoms."""
    out = {}
    for level, costs in seconds_of.items():
        out[level] = []
        for repeat, seconds in costs:
            atoms = cell(repeat)
            atoms.info.update({"REF_energy": -3.0 * len(atoms), key: seconds})
            out[level].append(atoms)
    return read_frames(out)


def cubic(prefactor: float, repeats: tuple[int, ...] = (1, 2, 3, 4, 6, 8)) -> list[tuple[int, float]]:
    return [(r, prefactor * (4.0 * r) ** 3) for r in repeats for _ in range(20)]


def test_the_exponent_is_learned_across_levels() -> None:
    costs = CostModel.learn(frames({"low": cubic(0.01), "high": [(2, 30.0)]}))
    assert_allclose(costs.exponent(), 3.0, atol=0.05)
    assert_allclose(hours(costs, "low", cell(5)) * 3600, 0.01 * 20.0**3, rtol=0.03)
    assert_allclose(hours(costs, "high", cell(4)) / hours(costs, "high", cell(2)), 8.0, rtol=0.05)  # never seen there


def test_one_size_says_nothing_of_the_exponent() -> None:
    costs = CostModel.learn(frames({"low": [(2, 10.0)] * 9}))
    assert_allclose(costs.exponent(), 2.0, atol=1e-12)
    assert_allclose(hours(costs, "low", cell(2)) * 3600, 10.0, rtol=0.03)  # some spread is expected of few labels


def test_the_expected_cost_is_the_mean_of_a_log_normal() -> None:
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.normal(3.0, 0.6, 800))
    costs = CostModel.learn(frames({"low": [(2, float(s)) for s in seconds]}))
    assert_allclose(hours(costs, "low", cell(2)) * 3600, seconds.mean(), rtol=0.05)


def test_cpu_seconds_go_before_wall_seconds() -> None:
    atoms = cell(1)
    atoms.info.update(REF_energy=-3.0 * len(atoms), wall_seconds=100.0, cpu_seconds=7.2)
    assert_allclose(hours(CostModel.learn(read_frames({"low": [atoms]})), "low", atoms), 0.002, rtol=0.05)


def test_sums_of_two_sets_are_those_of_both() -> None:
    data = cubic(0.02)
    both = CostModel.learn(frames({"low": data}))
    parts = CostModel.learn(frames({"low": data[:7]})).added(CostModel.learn(frames({"low": data[7:]})))
    assert_allclose(hours(parts, "low", cell(3)), hours(both, "low", cell(3)), rtol=1e-9)
    again = CostModel.from_json(both.to_json())
    assert hours(again, "low", cell(3)) == hours(both, "low", cell(3))


def test_the_composition_is_learned() -> None:
    """Nickel takes three times as long as copper: learned from many labels, and hardly from two."""
    data = []
    for k in range(60):
        atoms = cell(2)
        atoms.symbols[: k % 9] = "Ni"
        share = (k % 9) / 8
        atoms.info.update(REF_energy=-3.0 * len(atoms), wall_seconds=20.0 * 3.0**share * (1.1 if k % 2 else 1 / 1.1))
        data.append(atoms)
    nickel = cell(2)
    nickel.symbols[:] = "Ni"
    costs = CostModel.learn(read_frames({"low": data}))
    assert_allclose(hours(costs, "low", nickel) / hours(costs, "low", cell(2)), 3.0, rtol=0.1)
    few = CostModel.learn(read_frames({"low": data[3:5]}))
    assert hours(few, "low", nickel) / hours(few, "low", cell(2)) < 2.0
    parts = CostModel.learn(read_frames({"low": data[:1]})).added(CostModel.learn(read_frames({"low": data[1:]})))
    assert_allclose(hours(parts, "low", nickel), hours(costs, "low", nickel), rtol=1e-9)  # the first has no nickel


def test_a_users_cost_replaces_what_was_learned() -> None:
    costs = CostModel.learn(frames({"low": cubic(0.02)})).with_given({"low": 0.5})
    assert hours(costs, "low", cell(1)) == hours(costs, "low", cell(8)) == 0.5


def test_whole_numbers_of_hours_are_floats() -> None:
    for costs in (CostModel.fixed({"low": 2}), CostModel(given={"low": 2})):
        assert costs.hours("low", [Atoms("H")]).dtype == np.float64


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_wrong_costs(hours: float) -> None:
    with pytest.raises(ConfigError, match="give a positive number"):
        CostModel.fixed({"low": hours})


def test_a_level_without_costs() -> None:
    costs = CostModel.fixed({"low": 1.0})
    assert costs.missing(["low", "high"]) == ["high"]
    with pytest.raises(ConfigError, match="--cost high=HOURS"):
        hours(costs, "high", cell(1))


def test_one_odd_label_does_not_make_a_level_dear() -> None:
    costs = CostModel.learn(frames({"low": [(2, 3600.0)] * 10 + [(2, 0.5)]}))
    assert 0.3 < hours(costs, "low", cell(2)) < 1.5
    costs = CostModel.learn(frames({"low": [(2, 3600.0), (2, float("inf"))]}))
    assert 0.8 < hours(costs, "low", cell(2)) < 1.2


def test_a_model_keeps_its_costs(two_levels: FrameSet, model: MultiFidelityGP, tmp_path: Path) -> None:
    assert model.costs.missing(model.levels) == list(model.levels)  # its frames say none
    other = copy.copy(model)
    atoms = label(alloy(3, rattle=0.05), "high")
    atoms.info["wall_seconds"] = 36.0
    other.update({"high": [atoms]})
    other.save(tmp_path / "m.mfgp")
    again = MultiFidelityGP.load(tmp_path / "m.mfgp")
    assert again.costs == other.costs
    assert again.costs.missing(again.levels) == ["low"]
    assert 0.01 <= hours(again.costs, "high", atoms) < 0.0105
