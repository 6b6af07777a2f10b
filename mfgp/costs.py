"""What a calculation costs: hours by level and number of atoms, learned from the labelled frames.

    log hours = a_t + p (log N - <log N>_t) + noise of variance s_t^2,      p ~ N(2, 1),  one exponent for all levels

The expected cost is that of a log-normal, exp(mean + s_t^2 / 2). Frames give `cpu_seconds` where they have it, else
`wall_seconds`. Only sums are kept, so costs of new labels are added to those of old ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms

from mfgp.errors import ConfigError
from mfgp.frames import Frame

EXPONENT, EXPONENT_STD = 2.0, 1.0  # plane-wave DFT grows as N^2 to N^3, tight binding as N to N^3
MIN_SPREAD = 0.1  # of log hours: fewer labels than that say nothing surer


@dataclass(frozen=True)
class CostModel:
    """Hours of one calculation at each level. `sums`: n, sum x, sum x^2, sum y, sum xy, sum y^2; x = log N, y = log hours.

    given: hours that a user sets for a level, whatever the structure; they replace what was learned.
    """

    sums: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def learn(frames: Iterable[Frame]) -> CostModel:
        """From the frames that say what they cost; isolated atoms aside."""
        sums: dict[str, np.ndarray] = {}
        for frame in frames:
            seconds = cost_seconds(frame)
            if seconds and not frame.isolated_atom:
                x, y = math.log(len(frame.atoms)), math.log(seconds / 3600.0)
                own = sums.setdefault(frame.fidelity, np.zeros(6))
                own += (1.0, x, x * x, y, x * y, y * y)
        return CostModel({level: tuple(s.tolist()) for level, s in sums.items()})

    @staticmethod
    def fixed(hours: Mapping[str, float]) -> CostModel:
        """The same hours for every structure of a level. ConfigError for hours that are not positive."""
        return CostModel().with_given(hours)

    def with_given(self, hours: Mapping[str, float]) -> CostModel:
        """With hours set by the user for some levels. ConfigError for hours that are not positive."""
        for level, value in hours.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"cost of {level}: {value} hours; give a positive number, such as {level}=0.03.")
        return replace(self, given={**self.given, **hours})

    def added(self, other: CostModel) -> CostModel:
        """Both sets of labels together."""
        zero = (0.0,) * 6
        levels = {**self.sums, **other.sums}
        sums = {t: tuple(np.add(self.sums.get(t, zero), other.sums.get(t, zero)).tolist()) for t in levels}
        return CostModel(sums, {**self.given, **other.given})

    def missing(self, levels: Iterable[str]) -> list[str]:
        """The levels whose cost nothing tells."""
        return [level for level in levels if level not in self.sums and level not in self.given]

    def exponent(self) -> float:
        """p, of the levels together."""
        within = [_centred(s) for s in self.sums.values()]
        xx, xy, yy = (sum(w[k] for w in within) for k in range(3))
        freedom = max(sum(s[0] for s in self.sums.values()) - len(self.sums), 1.0)
        scatter = yy - xy**2 / xx if xx > 0 else yy  # about the line of least squares
        variance = max(scatter / freedom, MIN_SPREAD**2)
        prior = 1.0 / EXPONENT_STD**2
        return (xy / variance + EXPONENT * prior) / (xx / variance + prior)

    def hours(self, level: str, atoms: Atoms) -> float:
        """Expected hours of one calculation. ConfigError for a level whose cost nothing tells."""
        if level in self.given:
            return self.given[level]
        if level not in self.sums:
            raise ConfigError(
                f"no cost known for level {level!r}: its training frames have no `wall_seconds`; give --cost {level}=HOURS."
            )
        n, x, _, y = self.sums[level][:4]
        p = self.exponent()
        xx, xy, yy = _centred(self.sums[level])
        variance = max(yy - 2 * p * xy + p * p * xx, 0.0) / max(n - 1.0, 1.0)
        return math.exp(y / n + p * (math.log(len(atoms)) - x / n) + 0.5 * variance)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"sums": {level: list(s) for level, s in self.sums.items()}, "given": dict(self.given)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CostModel:
        """What `to_json` gave."""
        return CostModel({level: tuple(s) for level, s in data["sums"].items()}, dict(data["given"]))


def cost_seconds(frame: Frame) -> float | None:
    """CPU seconds of the calculation where the frame says so, else its wall seconds."""
    cpu = frame.atoms.info.get("cpu_seconds")
    if isinstance(cpu, (int, float, np.integer, np.floating)) and not isinstance(cpu, bool) and cpu > 0:
        return float(cpu)
    return frame.wall_seconds


def _centred(sums: tuple[float, ...]) -> tuple[float, float, float]:
    """Sums of squares and products about the means: xx, xy, yy."""
    n, x, xx, y, xy, yy = sums
    return max(xx - x * x / n, 0.0), xy - x * y / n, max(yy - y * y / n, 0.0)
