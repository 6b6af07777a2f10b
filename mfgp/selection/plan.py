"""What a budget would buy, before anything is calculated: the target's standard deviation against hours.

The forecast is a greedy selection (greedy.py) carried on until the hours are spent, for all levels together and for each
level alone. The variance of a Gaussian process does not depend on the labels to come, so the curve is exact as far as the
model's hyperparameters and inducing points are right; what the inducing points do not carry, and the labels' noise, stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from mfgp.base.progress import Report, silent
from mfgp.data.costs import CostModel
from mfgp.model import MultiFidelityGP
from mfgp.selection.greedy import Selection, select

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the budget, in the table


@dataclass(frozen=True)
class Plan:
    """Selections for a budget: with all levels (`joint`), and with each level alone."""

    budget_hours: float
    joint: Selection
    alone: Mapping[str, Selection]

    def rows(self) -> list[dict[str, Any]]:
        """At fractions of the budget: hours and calculations by level, std of the joint choice and of each level alone."""
        out = []
        for fraction in FRACTIONS:
            hours = fraction * self.budget_hours
            done = within(self.joint, hours)
            split = {
                level: {
                    "n": sum(c.level == level for c in done),
                    "hours": sum(c.hours for c in done if c.level == level),
                }
                for level in self.alone
            }
            alone = {level: std_at(selection, hours) for level, selection in self.alone.items()}
            out.append({"hours": hours, "std": std_at(self.joint, hours), "levels": split, "std_alone": alone})
        return out

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Hours and std of every selection, from nothing calculated on."""
        named = {"all levels": self.joint, **{f"{level} alone": s for level, s in self.alone.items()}}
        return {
            name: (
                [0.0, *np.cumsum([c.hours for c in s.choices]).tolist()],
                [s.std_before, *[c.std_after for c in s.choices]],
            )
            for name, s in named.items()
        }


def plan(
    model: MultiFidelityGP,
    pool: Sequence[Atoms],
    target: str | None,
    costs: CostModel | None,
    budget_hours: float,
    *,
    levels: Sequence[str] | None = None,
    targets: Sequence[Atoms] | None = None,
    weights: Mapping[str, float] | None = None,
    taken: Collection[tuple[int, str]] = (),
    seed: int = 0,
    report: Report = silent,
) -> Plan:
    """Forecast for a pool and a budget; arguments and errors as `mfgp.selection.greedy.select`."""
    names = tuple(levels or model.levels)

    def chosen(some: Sequence[str], what: str) -> Selection:
        return select(
            model,
            pool,
            target,
            costs,
            budget_hours=budget_hours,
            levels=some,
            targets=targets,
            weights=weights,
            taken=taken,
            seed=seed,
            report=lambda stage, *rest: report(f"{what}: {stage}", *rest),
        )

    joint = chosen(names, "all levels" if len(names) > 1 else names[0])
    alone = {name: chosen([name], f"{name} alone") if len(names) > 1 else joint for name in names}
    return Plan(budget_hours, joint, alone)


def within(selection: Selection, hours: float) -> list[Any]:
    """The choices that a part of the budget pays for."""
    spent = np.cumsum([c.hours for c in selection.choices])
    return [c for c, total in zip(selection.choices, spent, strict=True) if total <= hours * (1 + 1e-9)]


def std_at(selection: Selection, hours: float) -> float:
    """The target's standard deviation when those hours are spent."""
    done = within(selection, hours)
    return done[-1].std_after if done else selection.std_before
