"""Which calculations a selection may choose: copies and what is known are offered once, costs and budgets are kept."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from conftest import alloy
from test_selection import CALM, COSTS, exact_variance, pool, search, updated  # noqa: F401

from mfgp import ConfigError, DataError, MultiFidelityGP
from mfgp.data.costs import CostModel
from mfgp.selection.greedy import select


def test_copies_of_a_structure_are_offered_once(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    several = [pool[7].copy() for _ in range(5)] + [pool[6], pool[5]]
    chosen = [(c.index, c.level) for c in select(model, several, "high", COSTS, n=9, targets=pool).choices]
    assert sorted(chosen) == [(i, level) for i in (0, 5, 6) for level in ("high", "low")]
    chosen = [(c.index, c.level) for c in select(model, several, "high", COSTS, n=9, taken=[(3, "high")]).choices]
    assert sorted(chosen) == [(0, "low"), *((i, level) for i in (5, 6) for level in ("high", "low"))]


def redescribed(atoms: Atoms, seed: int) -> Atoms:
    """Atoms in another order and orientation, rounded to four decimals."""
    out = atoms[np.random.default_rng(seed).permutation(len(atoms))]
    out.rotate(40.0, (1, 2, 3), rotate_cell=True)
    return Atoms(out.numbers, out.positions.round(4), cell=out.cell.array.round(4), pbc=atoms.pbc)


def test_other_descriptions_of_a_structure_are_offered_once_at_a_level(
    model: MultiFidelityGP, pool: list[Atoms]
) -> None:
    some = pool[:4]
    several = [*some, *(redescribed(a, i) for i, a in enumerate(some)), *(a * (2, 1, 1) for a in some)]
    chosen = select(model, several, "high", COSTS, n=20)
    assert sorted((c.index % 4, c.level) for c in chosen.choices) == [(i, t) for i in range(4) for t in ("high", "low")]
    assert chosen.same == 8
    assert select(model, some, "high", COSTS, n=20).same == 0
    few = select(model, several, "high", COSTS, n=1)
    assert (few.same, len(few.choices)) == (2, 1)


def test_other_descriptions_of_what_is_known_or_taken_are_not_offered(
    model: MultiFidelityGP, pool: list[Atoms]
) -> None:
    """alloy(0) was trained on at both levels; nothing but the pool says what it looked like."""
    several = [alloy(0), redescribed(alloy(0), 0), pool[0], redescribed(pool[0], 1), pool[1]]
    chosen = select(model, several, "high", COSTS, n=20, levels=["high"], taken=[(2, "high")])
    assert [c.index for c in chosen.choices] == [4]
    assert chosen.same == 2
    low = select(model, several, "high", COSTS, n=20, levels=["low"], taken=[(2, "high")])
    assert {c.index for c in low.choices} in ({2, 4}, {3, 4})


def test_costs_decide_the_level(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    cheap_low = select(model, pool, "high", CostModel.fixed({"low": 1e-5, "high": 1.0}), n=4)
    cheap_high = select(model, pool, "high", CostModel.fixed({"low": 1.0, "high": 1e-5}), n=4)
    assert {c.level for c in cheap_low.choices} == {"low"}
    assert {c.level for c in cheap_high.choices} == {"high"}


def test_a_structure_may_be_chosen_at_two_levels(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    batch = select(model, pool[:1], "high", COSTS, n=9)
    assert sorted((c.index, c.level) for c in batch.choices) == [(0, "high"), (0, "low")]


def test_whole_numbers_of_hours_are_costs(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    as_floats = select(model, pool, "high", CostModel.fixed({"low": 1.0, "high": 3.0}), n=2)
    assert select(model, pool, "high", CostModel.fixed({"low": 1, "high": 3}), n=2) == as_floats


def test_the_budget_is_kept(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    batch = select(model, pool, "high", COSTS, budget_hours=0.1)
    assert batch.hours <= 0.1 + 1e-12
    assert batch.hours > 0.1 - 0.01 - 1e-12  # a cheap one more would not have fitted
    assert not select(model, pool, "high", COSTS, budget_hours=0.001).choices


def test_what_is_taken_is_left_out(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    first = select(model, pool, "high", COSTS, n=1).choices[0]
    second = select(model, pool, "high", COSTS, n=1, taken=[(first.index, first.level)]).choices[0]
    assert (first.index, first.level) != (second.index, second.level)


def test_wrong_input(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    with pytest.raises(ConfigError, match="no limit"):
        select(model, pool, "high", COSTS)
    with pytest.raises(ConfigError, match="unknown level best"):
        select(model, pool, "high", COSTS, n=1, levels=["best"])
    with pytest.raises(ConfigError, match="--cost low=HOURS --cost high=HOURS"):
        select(model, pool, "high", budget_hours=1)
    with pytest.raises(ConfigError, match="weights stress"):
        select(model, pool, "high", COSTS, n=1, weights={"stress": 1.0})
    with pytest.raises(DataError, match="no structure"):
        select(model, [], "high", COSTS, n=1)
    with pytest.raises(DataError, match=r"structure 0 of the pool.*has not seen Al"):
        select(model, [Atoms("Al", cell=[3, 3, 3], pbc=True)], "high", COSTS, n=1)


def test_wrong_targets_budgets_and_levels(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    with pytest.raises(DataError, match=r"structure 0 of the targets.*has not seen Al"):
        select(model, pool, "high", COSTS, n=1, targets=[Atoms("Al", cell=[3, 3, 3], pbc=True)])
    with pytest.raises(ConfigError, match="give a number of hours"):
        select(model, pool, "high", COSTS, budget_hours=float("inf"))
    batch = select(model, pool[:2], "high", COSTS, n=9, levels=["high", "high"])
    assert sorted((c.index, c.level) for c in batch.choices) == [(0, "high"), (1, "high")]
