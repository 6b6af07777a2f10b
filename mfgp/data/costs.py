"""What a calculation costs: hours by level, number of atoms and composition, learned from the labelled frames.

    log hours = a_t + p (log N - <log N>_t) + sum_z g_tz (x_z - <x_z>_t) + noise of variance s_t^2

x_z is the share of the atoms that are z: a magnetic ion that takes two attempts to converge costs more than its number of
atoms says. p ~ N(2, 1) is one exponent for all levels, learned first; g_tz ~ N(0, COMPOSITION_STD^2). The expected cost is
that of a log-normal, exp(mean + s_t^2 / 2), with s_t drawn towards SPREAD as by PSEUDO labels, never above MAX_SPREAD: one
odd label must not make a level look a thousand times as dear. Frames give `cpu_seconds` where they have it, else
`wall_seconds`. Only sums are kept, so costs of new labels are added to those of old ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms

from mfgp.errors import ConfigError
from mfgp.frames import Frame

EXPONENT, EXPONENT_STD = 2.0, 1.0  # plane-wave DFT grows as N^2 to N^3, tight binding as N to N^3
MIN_SPREAD = 0.1  # of log hours: fewer labels than that say nothing surer
SPREAD, PSEUDO, MAX_SPREAD = 0.3, 4.0, 1.0  # of log hours
COMPOSITION_STD = 5.0  # of log hours: 10 % more of the atoms being another element changes the cost by a factor of 1.6


@dataclass(frozen=True)
class CostSums:
    """Sums of v v^T over the labels of a level, v = (1, log N, log hours, share of each of `elements`)."""

    elements: tuple[int, ...]
    moments: tuple[tuple[float, ...], ...]

    @property
    def count(self) -> float:
        """Number of labels."""
        return self.moments[0][0]

    @staticmethod
    def of(structures: Sequence[Atoms], seconds: Sequence[float]) -> CostSums:
        """Of labels and what each took."""
        elements = tuple(sorted({int(z) for atoms in structures for z in set(atoms.numbers)}))
        sizes, hours = [len(atoms) for atoms in structures], np.array(seconds) / 3600.0
        v = np.column_stack([np.ones(len(sizes)), np.log(sizes), np.log(hours), _shares(structures, elements)])
        return CostSums(elements, _tuples(v.T @ v))

    def over(self, elements: tuple[int, ...]) -> np.ndarray:
        """The moments with these elements (all of its own among them) in this order."""
        place = [0, 1, 2, *(3 + elements.index(z) for z in self.elements)]
        out = np.zeros((3 + len(elements), 3 + len(elements)))
        out[np.ix_(place, place)] = self.moments
        return out

    def __add__(self, other: CostSums) -> CostSums:
        elements = tuple(sorted({*self.elements, *other.elements}))
        return CostSums(elements, _tuples(self.over(elements) + other.over(elements)))

    def means(self) -> np.ndarray:
        """Means of v but for its first entry: log N, log hours, shares."""
        return np.array(self.moments)[0, 1:] / self.count

    def centred(self) -> np.ndarray:
        """Sums of products about the means, of v but for its first entry."""
        m = self.means()
        return np.array(self.moments)[1:, 1:] - self.count * np.outer(m, m)

    def composition(self, p: float) -> tuple[np.ndarray, float]:
        """(g [element], s^2) at an exponent."""
        c = self.centred()
        line = np.array([-p, 1.0])  # of log N and log hours: what the exponent leaves
        scatter, slope, spread = line @ c[:2, :2] @ line, c[2:, :2] @ line, c[2:, 2:]
        g, variance = np.zeros(len(self.elements)), self._variance(scatter)
        for _ in range(3):  # the noise that is left says how far to trust the composition
            g = np.linalg.solve(spread / variance + np.eye(len(g)) / COMPOSITION_STD**2, slope / variance)
            variance = self._variance(scatter - 2 * g @ slope + g @ spread @ g)
        return g, variance

    def _variance(self, scatter: float) -> float:
        return min((max(scatter, 0.0) + PSEUDO * SPREAD**2) / (self.count - 1.0 + PSEUDO), MAX_SPREAD**2)


@dataclass(frozen=True)
class CostModel:
    """Hours of one calculation at each level, from the sums over its labels.

    given: hours that a user sets for a level, whatever the structure; they replace what was learned.
    """

    sums: Mapping[str, CostSums] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def learn(frames: Iterable[Frame]) -> CostModel:
        """From the frames that say what they cost; isolated atoms aside."""
        timed: dict[str, tuple[list[Atoms], list[float]]] = {}
        for frame in frames:
            seconds = cost_seconds(frame)
            if seconds and math.isfinite(seconds) and not frame.isolated_atom:
                structures, times = timed.setdefault(frame.fidelity, ([], []))
                structures.append(frame.atoms)
                times.append(seconds)
        return CostModel({level: CostSums.of(*labels) for level, labels in timed.items()})

    @staticmethod
    def fixed(hours: Mapping[str, float]) -> CostModel:
        """The same hours for every structure of a level. ConfigError for hours that are not positive."""
        return CostModel().with_given(hours)

    def with_given(self, hours: Mapping[str, float]) -> CostModel:
        """With hours set by the user for some levels. ConfigError for hours that are not positive."""
        for level, value in hours.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"cost of {level}: {value} hours; give a positive number, such as {level}=0.03.")
        return replace(self, given={**self.given, **{level: float(value) for level, value in hours.items()}})

    def added(self, other: CostModel) -> CostModel:
        """Both sets of labels together."""
        sums = dict(self.sums)
        for level, own in other.sums.items():
            sums[level] = sums[level] + own if level in sums else own
        return CostModel(sums, {**self.given, **other.given})

    def missing(self, levels: Iterable[str]) -> list[str]:
        """The levels whose cost nothing tells."""
        return [level for level in levels if level not in self.sums and level not in self.given]

    def exponent(self) -> float:
        """p, of the levels together."""
        xx, xy, yy = (sum(float(s.centred()[k]) for s in self.sums.values()) for k in ((0, 0), (0, 1), (1, 1)))
        freedom = max(sum(s.count for s in self.sums.values()) - len(self.sums), 1.0)
        scatter = yy - xy**2 / xx if xx > 1e-12 else yy  # about the line of least squares
        variance = max(scatter / freedom, MIN_SPREAD**2)
        prior = 1.0 / EXPONENT_STD**2
        return (xy / variance + EXPONENT * prior) / (xx / variance + prior)

    def hours(self, level: str, structures: Sequence[Atoms]) -> np.ndarray:
        """Expected hours of the calculation of each structure. ConfigError for a level whose cost nothing tells."""
        if level in self.given:
            return np.full(len(structures), self.given[level], dtype=np.float64)
        if level not in self.sums:
            raise ConfigError(
                f"no cost known for level {level!r}: its training frames have no `cpu_seconds` or `wall_seconds`; "
                f"give --cost {level}=HOURS."
            )
        sums, p = self.sums[level], self.exponent()
        g, variance = sums.composition(p)
        x, y, *shares = sums.means()
        sizes = np.log([len(atoms) for atoms in structures])
        return np.exp(y + p * (sizes - x) + (_shares(structures, sums.elements) - shares) @ g + 0.5 * variance)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        sums = {
            t: {"elements": list(s.elements), "moments": [list(r) for r in s.moments]} for t, s in self.sums.items()
        }
        return {"sums": sums, "given": dict(self.given)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CostModel:
        """What `to_json` gave."""
        sums = {t: CostSums(tuple(s["elements"]), _tuples(np.array(s["moments"]))) for t, s in data["sums"].items()}
        return CostModel(sums, dict(data["given"]))


def cost_seconds(frame: Frame) -> float | None:
    """CPU seconds of the calculation where the frame says so, else its wall seconds."""
    cpu = frame.atoms.info.get("cpu_seconds")
    if isinstance(cpu, (int, float, np.integer, np.floating)) and not isinstance(cpu, bool) and cpu > 0:
        return float(cpu)
    return frame.wall_seconds


def _tuples(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _shares(structures: Sequence[Atoms], elements: Sequence[int]) -> np.ndarray:
    """Share of each element among the atoms, [structure, element]."""
    out = np.zeros((len(structures), len(elements)))
    for row, atoms in zip(out, structures, strict=True):
        row[:] = [np.count_nonzero(atoms.numbers == z) / len(atoms) for z in elements]
    return out
