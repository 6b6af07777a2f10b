"""Sufficient statistics of the linear model y = A theta + noise, one set for each (level, kind of observation).

    G = sum A^T A  [M', M'],     b = sum A^T y  [M'],     c = sum y^2,     n = number of rows,     M' = M + columns

They are all that the fit needs from the data, and additive: streamed over structures in O(M'^2) memory, merged over
processes, extended by new data and reduced by removed data without a refit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GRAM_COLUMNS = 256  # of a block of A^T A


@dataclass
class Moments:
    """G, b, c, n of one (level, kind); added to in place."""

    gram: Tensor  # [M', M']
    projection: Tensor  # [M']
    square: float
    count: int

    @staticmethod
    def zeros(size: int, device: torch.device | str = "cpu") -> Moments:
        """No data yet."""
        f64 = torch.float64
        gram = torch.zeros(size, size, dtype=f64, device=device)
        return Moments(gram, torch.zeros(size, dtype=f64, device=device), 0.0, 0)

    def add(self, a: Tensor, y: Tensor, sign: int = 1) -> None:
        """Add (sign 1) or remove (sign -1) rows a [row, M'] with targets y [row]."""
        _add_gram(self.gram, a, sign)
        self.projection.addmv_(a.T, y, alpha=sign)
        self.square += sign * float(y @ y)
        self.count += sign * len(y)

    def plus(self, other: Moments) -> Moments:
        """Those of both sets of data."""
        projection, square = self.projection + other.projection, self.square + other.square
        return Moments(self.gram + other.gram, projection, square, self.count + other.count)

    def subset(self, index: Tensor) -> Moments:
        """The statistics of the model with only the parameters `index`."""
        return Moments(self.gram[index][:, index], self.projection[index], self.square, self.count)


def _add_gram(gram: Tensor, a: Tensor, sign: int) -> None:
    """Add sign a^T a, [M', M']: column blocks below the diagonal, then their mirror image."""
    for start in range(0, len(gram), GRAM_COLUMNS):
        stop = min(len(gram), start + GRAM_COLUMNS)
        gram[start:, start:stop].addmm_(a[:, start:].T, a[:, start:stop], alpha=sign)
        gram[start:stop, stop:] = gram[stop:, start:stop].T


Key = tuple[int, str]  # (level, kind)


class Statistics:
    """Moments by (level, kind) of one set of data."""

    def __init__(self, size: int, moments: Mapping[Key, Moments] | None = None) -> None:
        self.size = size
        self.moments: dict[Key, Moments] = dict(moments or {})

    def add(self, level: int, rows: Mapping[str, tuple[Tensor, Tensor]], sign: int = 1) -> None:
        """Add (or remove) the labelled rows {kind: (A, y)} of one structure."""
        for kind, (a, y) in rows.items():
            key = (level, kind)
            if key not in self.moments:
                self.moments[key] = Moments.zeros(self.size, a.device)
            self.moments[key].add(a, y, sign)

    def subset(self, index: Tensor) -> Statistics:
        """Statistics of the model with only the parameters `index` [m]."""
        return Statistics(len(index), {key: m.subset(index) for key, m in self.moments.items()})

    def to(self, device: torch.device | str) -> Statistics:
        """The same statistics on a device."""
        moved = {
            key: Moments(m.gram.to(device), m.projection.to(device), m.square, m.count)
            for key, m in self.moments.items()
        }
        return Statistics(self.size, moved)

    def observed(self) -> list[Key]:
        """(level, kind) in a fixed order."""
        return sorted(self.moments)


def merge(parts: Iterable[Statistics], signs: Iterable[int] | None = None) -> Statistics:
    """Sum of statistics; with signs of -1 the down-date by those."""
    parts = list(parts)
    if len({p.size for p in parts}) != 1:
        raise ValueError(f"statistics of different models: {sorted({p.size for p in parts})} parameters")
    total = Statistics(parts[0].size)
    for part, sign in zip(parts, signs or [1] * len(parts), strict=True):
        for key, m in part.moments.items():
            into = total.moments.setdefault(key, Moments.zeros(total.size, m.gram.device))
            into.gram.add_(m.gram, alpha=sign)
            into.projection.add_(m.projection, alpha=sign)
            into.square += sign * m.square
            into.count += sign * m.count
    return total
