"""Which structure to calculate next, at which level: a greedy batch of largest gain per hour.

Every (structure, level) is a candidate. Its gain is the fall of the target's variance (gains.py, targets.py) by the labels
that its level gives: energy, forces, and virial where that level has them. The batch is chosen one by one, each given those
before it, so it is diverse by itself, and a structure may be chosen at two levels. Gains of all candidates are estimated
(candidates.py), the best EXACT of each level by that are compared exactly. Memory is bounded: of a pool of any size the
KEEP structures of largest estimated gain per hour stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mfgp.base.progress import Report, silent
from mfgp.base.threads import ordered_map
from mfgp.data.costs import CostModel
from mfgp.data.same_structure import groups
from mfgp.data.training_frames import calculation_key
from mfgp.errors import ConfigError, DataError
from mfgp.gp.kernels import n_functionals
from mfgp.gp.observations import cell_volume, components
from mfgp.model import MultiFidelityGP
from mfgp.predict.predictor import Predictor
from mfgp.selection.candidates import Candidates, offered_noises
from mfgp.selection.directional import batched_rows
from mfgp.selection.gains import condition, cross_level_covariance, gain
from mfgp.selection.targets import Target, build_target

ROWS = 12000  # random directions in all: as many for each structure as that allows, within DIRECTIONS
DIRECTIONS = (2, 8)
TOGETHER = 16  # batches of structures whose rows are multiplied by the covariances together
KEEP = 6000  # structures that are followed
EXACT = 4  # candidates of each level whose exact gain is computed at each choice
CACHE_BYTES = 5e8  # of rows that are kept


@dataclass(frozen=True)
class Choice:
    """One calculation of a batch.

    index: of the pool; gain: fall of the target's mean variance (eV^2/Å^2 for forces) when it is done after those
    before it; std_after: the target's standard deviation then (eV/Å; eV/atom where energies alone are the target), as
    `predict` would give it, root mean square; hours: what it costs, NaN where no cost is known.
    """

    index: int
    level: str
    rank: int
    gain: float
    std_after: float
    hours: float


@dataclass(frozen=True)
class Selection:
    """A batch, in the order of choice, and the target's standard deviation before it.

    same: how many structures of the pool were passed over, at one level or more, as another description (same_structure) of
    one that was chosen there, or that is taken or known. cheapest: hours of the cheapest calculation that could be chosen
    (1 of any where they are chosen by gain alone); infinite where there was none.
    """

    choices: tuple[Choice, ...]
    std_before: float
    target: str
    same: int = 0
    cheapest: float = np.inf

    @property
    def hours(self) -> float:
        """What the batch costs; NaN where no cost is known."""
        return sum(choice.hours for choice in self.choices)


def select(
    model: MultiFidelityGP,
    pool: Sequence[Atoms],
    target: str | None = None,
    costs: CostModel | None = None,
    *,
    budget_hours: float | None = None,
    n: int | None = None,
    levels: Sequence[str] | None = None,
    targets: Sequence[Atoms] | None = None,
    weights: Mapping[str, float] | None = None,
    taken: Collection[tuple[int, str]] = (),
    seed: int = 0,
    report: Report = silent,
) -> Selection:
    """Choose calculations until `budget_hours` are spent, or `n` are chosen; no labels are needed.

    pool: structures that may be calculated. target: level to become certain at (the highest by default). costs: hours by
    level and structure (by default what the model learned from its training frames), of levels at which anything is left to
    choose; where none of these has any and `n` is the only limit, the gain alone decides, with a UserWarning. levels: that
    may be calculated (all by default). targets: structures to become certain about (the pool by default). weights: of mean
    variances, {"forces": 1} by default, also `energy` (per atom). taken: (index, level) not to choose, beside those that the
    model was trained on (`known_calculations`); a structure that the pool holds more than once is offered once, and at each
    level one of those that are the same in other descriptions (same_structure: atoms in another order, other cells, rounded
    files). Raises DataError for an empty pool or elements that the model has not seen, ConfigError for unknown levels,
    missing costs or no limit.
    """
    if budget_hours is None and n is None:
        raise ConfigError("no limit: give budget_hours (--budget-hours) or n (-n).")
    if budget_hours is not None and not 0 <= budget_hours < np.inf:
        raise ConfigError(f"budget_hours is {budget_hours}; give a number of hours.")
    predictor, costs = model.predictor(target), costs or model.costs
    names = tuple(dict.fromkeys(levels or model.levels))
    check(predictor, pool, names)
    for number, atoms in enumerate(targets or ()):
        predictor.check_elements(atoms, f"structure {number} of the targets")
    same = SameStructures.of(pool, _done(model, pool, names, taken))
    offered = [name for name, closed in zip(names, same.closed.T, strict=True) if not closed.all()]
    free = bool(offered) and budget_hours is None and costs.missing(offered) == offered
    if free:
        warnings.warn(_by_gain_alone(offered), stacklevel=2)
        costs = CostModel.fixed(dict.fromkeys(offered, 1.0))
    hours = _hours(costs, pool, names, offered)
    hours[same.closed] = np.inf
    aim = build_target(model, predictor.level, targets or pool, weights or {"forces": 1.0}, seed, report)
    search = Search(predictor, pool, names, aim, hours, seed, report)
    limit = same.offered() if n is None else n
    std_before, cheapest = search.deviation(), float(hours.min())
    choices = _chosen(search, same, limit, budget_hours, report)
    if free:
        choices = [replace(choice, hours=np.nan) for choice in choices]
    return Selection(tuple(choices), std_before, predictor.fidelity, int(same.passed.sum()), cheapest)


def _chosen(
    search: Search, same: SameStructures, limit: int, budget_hours: float | None, report: Report
) -> list[Choice]:
    """The best calculation, then the best beside it, until `limit` are chosen or nothing fits into what is left."""
    choices: list[Choice] = []
    left = np.inf if budget_hours is None else budget_hours
    while len(choices) < limit and (best := search.best(left)) is not None:
        choices.append(search.take(*best, rank=len(choices) + 1))
        search.close(same.take(choices[-1].index, best[1]), best[1])
        left -= choices[-1].hours
        done = (len(choices), limit) if not budget_hours else (round(100 * (1 - left / budget_hours)), 100)
        report(
            "calculations chosen" if not budget_hours else "budget spent, %", *done, f"std {choices[-1].std_after:.4g}"
        )
    return choices


def _hours(costs: CostModel, pool: Sequence[Atoms], names: Sequence[str], offered: Sequence[str]) -> np.ndarray:
    """Of each calculation, [structure, level], infinite at levels that offer none. ConfigError where no cost is known."""
    if missing := costs.missing(offered):
        options = " ".join(f"--cost {name}=HOURS" for name in missing)
        raise ConfigError(
            f"no cost known for {', '.join(missing)}: no training frame there says `cpu_seconds` or `wall_seconds` in its "
            f"info; give {options}."
        )
    none = np.full(len(pool), np.inf)
    return np.column_stack([costs.hours(name, pool) if name in offered else none for name in names])


def _by_gain_alone(names: Sequence[str]) -> str:
    """What a choice without costs favours."""
    what = (
        "the dearer level and the larger structure usually win" if len(names) > 1 else "larger structures usually win"
    )
    options = " ".join(f"--cost {name}=HOURS" for name in names)
    return f"no cost known for {', '.join(names)}: chosen by gain alone, so {what}; {options} changes that"


def _done(
    model: MultiFidelityGP, pool: Sequence[Atoms], names: Sequence[str], taken: Collection[tuple[int, str]]
) -> np.ndarray:
    """Calculations that are taken or known, and their copies, [structure, level]."""
    keys = [[calculation_key(name, atoms) for name in names] for atoms in pool]
    closed = {*model.calculated, *(keys[i][names.index(name)] for i, name in taken if name in names)}
    return np.array([[key in closed for key in row] for row in keys])


@dataclass
class SameStructures:
    """Which calculations of a pool are not offered, as choices are made."""

    number: np.ndarray  # [structure] of same_structure.groups
    closed: np.ndarray  # [structure, level] not to be chosen
    passed: np.ndarray  # [structure] whether it is for another description of it

    @staticmethod
    def of(pool: Sequence[Atoms], done: np.ndarray) -> SameStructures:
        """done [structure, level]: taken or known. Of copies only the first is offered."""
        seen, again = set[str](), np.zeros(len(pool), dtype=bool)
        for i, atoms in enumerate(pool):
            again[i] = (key := calculation_key("", atoms)) in seen
            seen.add(key)
        number = np.array(groups(pool)) if len(pool) > 1 else np.zeros(1, dtype=int)
        found = SameStructures(number, done | again[:, None], np.zeros(len(pool), dtype=bool))
        for place in range(done.shape[1]):
            found._close(np.isin(number, number[done[:, place]]), place)
        return found

    def take(self, index: int, place: int) -> list[int]:
        """Choose a calculation; the structures that are not to be chosen at its level from now on."""
        self.closed[index, place] = True
        return self._close(self.number == self.number[index], place)

    def _close(self, alike: np.ndarray, place: int) -> list[int]:
        others = alike & ~self.closed[:, place]
        self.closed[others, place] = True
        self.passed |= others
        return np.flatnonzero(others).tolist()

    def offered(self) -> int:
        """How many calculations can be chosen."""
        return sum(len(np.unique(self.number[~column])) for column in self.closed.T)


def known_calculations(model: MultiFidelityGP, pool: Sequence[Atoms], levels: Sequence[str]) -> list[tuple[int, str]]:
    """(index, level) of the structures of the pool that the model was trained on at that level."""
    every = [(i, level) for i in range(len(pool)) for level in levels] if model.calculated else []
    return [(i, level) for i, level in every if calculation_key(level, pool[i]) in model.calculated]


def check(predictor: Predictor, pool: Sequence[Atoms], names: Sequence[str]) -> None:
    """Raise for what cannot be selected from; see select."""
    if not pool:
        raise DataError("the pool holds no structure.")
    if unknown := [name for name in names if name not in predictor.model.levels]:
        raise ConfigError(f"unknown level {', '.join(unknown)}; this model has {', '.join(predictor.model.levels)}.")
    for number, atoms in enumerate(pool):
        predictor.check_elements(atoms, f"structure {number} of the pool")


class Search:
    """State of a greedy search: covariance of the weights, the target's rows, all candidates."""

    def __init__(
        self,
        predictor: Predictor,
        pool: Sequence[Atoms],
        names: Sequence[str],
        target: Target,
        hours: np.ndarray,
        seed: int,
        report: Report = silent,
    ) -> None:
        """Expand the pool, a few structures at a time. hours [structure, level], infinite for what is not to be chosen."""
        model = predictor.model
        self.predictor, self.pool, self.target = predictor, pool, target
        self.levels = [model.levels.index(name) for name in names]
        self.covariance = cross_level_covariance(model.posterior(), model.features.centre)  # [T, T, M', M']
        self.projected = self.covariance[:, target.level] @ target.rows.T  # [T, M', b] X_u = C_ut R^T
        self.variances = (target.rows * self.projected[target.level].T).sum(1)  # [b] of the target's rows
        self.noise = offered_noises(model)  # [T, kind], infinite for labels that a level does not give
        self.rows: dict[int, Tensor] = {}  # design [1+3N+6, M'] of structures whose gain was compared exactly
        k, rng = int(np.clip(ROWS // len(pool), *DIRECTIONS)), np.random.default_rng(seed)
        parts: list[Candidates] = []
        state, batches = (self.covariance, self.projected), batched_rows(model.features, pool, k, rng)
        while some := list(islice(batches, TOGETHER)):
            parts.append(Candidates.of(predictor, pool, some, hours, self.levels, state))
            if sum(len(p.index) for p in parts) > 2 * KEEP:
                parts = [self._best_of(Candidates.joined(parts))]
            report("structures of the pool", some[-1][0].stop, len(pool), "")
        self.candidates = self._best_of(Candidates.joined(parts))

    def _rates(self, candidates: Candidates) -> Tensor:
        """Estimated gain per hour, [P, L]."""
        return candidates.estimated_gains(self.noise[self.levels]) / candidates.hours

    def _best_of(self, candidates: Candidates) -> Candidates:
        best = self._rates(candidates).max(1).values.argsort(descending=True, stable=True)[:KEEP]
        return candidates.subset(best.sort().values)

    def deviation(self) -> float:
        """The target's standard deviation now: of forces (eV/Å), or of energies per atom where there is no other target."""
        found = self.target.deviations(self.variances)
        return found.get("forces", found.get("energy", 0.0))

    def best(self, budget_hours: float) -> tuple[int, int, float] | None:
        """(place among the candidates, place of the level, gain) of the largest gain per hour that the budget allows."""
        hours = self.candidates.hours
        rates = torch.where(hours <= budget_hours * (1 + 1e-9), self._rates(self.candidates), 0.0)  # rounding of sums
        order = rates.argsort(dim=0, descending=True, stable=True)[:EXACT]  # [EXACT, L]
        likely = [
            (p, place) for place in range(len(self.levels)) for p in order[:, place].tolist() if rates[p, place] > 0
        ]
        if not likely:
            return None
        self._expand(list(dict.fromkeys(int(self.candidates.index[p]) for p, _ in likely)))
        found = []
        for p, place in likely:
            level = self.levels[place]
            value = gain(
                self.covariance, self.labelled(int(self.candidates.index[p]), level), level, self.projected[level]
            )
            found.append((value / float(hours[p, place]), p, place, value))
        _, p, place, value = max(found, key=lambda f: f[0])
        return p, place, value

    def take(self, p: int, place: int, value: float, rank: int) -> Choice:
        """Take a candidate as calculated: everything else is known better from now on."""
        index, level, cost = int(self.candidates.index[p]), self.levels[place], float(self.candidates.hours[p, place])
        q = condition(self.covariance, self.labelled(index, level), level)
        target = q[self.target.level] @ self.target.rows.T  # [r, b]
        self.projected -= q.mT @ target
        self.variances = (self.variances - (target**2).sum(0)).clamp(min=0.0)
        self.candidates.condition(q, target, self.levels)
        self.candidates.hours[p, place] = torch.inf
        return Choice(index, self.predictor.model.levels[level], rank, value, self.deviation(), cost)

    def close(self, structures: Sequence[int], place: int) -> None:
        """Structures (of the pool) that are not to be chosen at a level any more."""
        index = self.candidates.index
        self.candidates.hours[torch.isin(index, index.new_tensor(structures)), place] = torch.inf

    def _expand(self, chosen: Sequence[int]) -> None:
        """Make the design rows of structures, as many as may be kept; those of earlier ones are forgotten for them."""
        features, m = self.predictor.model.features, self.predictor.model.weights.shape[1]
        wanted, room = list[int](), CACHE_BYTES
        for index in chosen:
            room -= 8.0 * n_functionals(len(self.pool[index])) * m
            if wanted and room < 0:
                break
            wanted.append(index)
        others = [index for index in self.rows if index not in wanted]
        while others and sum(8.0 * self.rows[index].numel() for index in others) > room:
            del self.rows[others.pop(0)]
        new = [index for index in wanted if index not in self.rows]
        rows = ordered_map(lambda index: features.rows(self.pool[index]), new, features.device)
        for index, phi in zip(new, rows, strict=True):
            self.rows[index] = torch.cat([phi, self.predictor.columns_of(self.pool[index])], dim=1)

    def labelled(self, index: int, level: int) -> Tensor:
        """Rows A [r, M'] of the labels that a calculation gives, in units of their noise."""
        if index not in self.rows:
            self._expand([index])
        design, n = self.rows[index], len(self.pool[index])
        energy, force, virial = self.noise[level].tolist()
        parts = [design[:1] / (energy * n**0.5), design[1:-6] / force]
        given = [np.isfinite(energy), np.isfinite(force)]
        if np.isfinite(virial) and cell_volume(self.pool[index]) > 0 and bool(design[-6:].isfinite().all()):
            factor = components(self.predictor.model.columns.shear).to(design)
            parts.append(design[-6:] * factor[:, None] / (virial * n**0.5))
            given.append(True)
        return torch.cat([part for part, there in zip(parts, given, strict=True) if there])
