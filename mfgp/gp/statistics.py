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

GRAM_ROWS = 128  # of a block of A^T A


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
        self.add_blocks([a], y, sign)

    def add_blocks(self, blocks: list[Tensor], y: Tensor, sign: int = 1) -> None:
        """The same for rows whose columns are given in blocks [row, M'_k], each in memory of its own."""
        start = 0
        for k, a in enumerate(blocks):
            _add_gram(self.gram, start, a, blocks[k + 1 :], sign)
            self.projection[start : start + a.shape[1]].addmv_(a.T, y, alpha=sign)
            start += a.shape[1]
        self.square += sign * float(y @ y)
        self.count += sign * len(y)

    def plus(self, other: Moments) -> Moments:
        """Those of both sets of data."""
        projection, square = self.projection + other.projection, self.square + other.square
        return Moments(self.gram + other.gram, projection, square, self.count + other.count)

    def subset(self, index: Tensor) -> Moments:
        """The statistics of the model with only the parameters `index`."""
        return Moments(self.gram[index][:, index], self.projection[index], self.square, self.count)


def _add_gram(gram: Tensor, start: int, a: Tensor, later: list[Tensor], sign: int) -> None:
    """Add sign a^T [a, later] at row and column `start`, and its mirror image."""
    stop = start + a.shape[1]
    for first in range(start, stop, GRAM_ROWS):  # what is above the diagonal
        rows = slice(first, min(stop, first + GRAM_ROWS))
        part = a[:, first - start : rows.stop - start]
        gram[rows, first:stop].addmm_(part.T, a[:, first - start :], alpha=sign)
        gram[rows.stop : stop, rows] = gram[rows, rows.stop : stop].T
    below = stop
    for b in later:
        rows = slice(below, below + b.shape[1])
        gram[rows, start:stop].addmm_(b.T, a, alpha=sign)
        gram[start:stop, rows] = gram[rows, start:stop].T
        below = rows.stop


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

    def add_blocks(self, key: Key, blocks: list[Tensor], y: Tensor) -> None:
        """Add labelled rows whose columns are given in blocks, y [row]."""
        if key not in self.moments:
            self.moments[key] = Moments.zeros(self.size, y.device)
        self.moments[key].add_blocks(blocks, y)

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
