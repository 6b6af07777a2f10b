"""How much energies and forces of like compositions are off: a factor of their variance.

What no structure says, its composition may: with as much Fe2+ as Fe3+ in a cell, which ion carries the charge is decided by
the calculation's history, and labels of one geometry scatter by more than those of cells where all are alike. With x the
fractions of the elements among the atoms, k the distinct compositions of the left-out structures of a level, n_k of them,
and q_k the mean over these of error^2 / variance (of forces: of its mean over the components of a structure),

    s(x) = (n_0 + sum_k n_k K(x, x_k) q_k) / (n_0 + sum_k n_k K(x, x_k)),   g = max(s, s_0)^c

with K = exp(-|x - x_k|^2 / 2 h^2) multiplies the calibrated variance of an energy, or of all forces of a structure, noise
included. One c in [0, 1] for each level and property maximises

    sum over left-out structures of the mean log N(error; 0, g variance), g from the other structures,  - c^2 / 2

so that a level whose errors do not depend on the composition keeps c near 0, and a data set of one composition c = 0.
s_0 is 1 for energies, which it only widens: a few that happen to be well predicted are no reason to trust the next. It is
1/4 for forces, of which a structure has dozens (docs/theory.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]
Fractions = tuple[tuple[int, float], ...]  # atomic number and fraction of the atoms, ascending
WIDTH = 0.03  # h: compositions are alike that differ by one atom in thirty
PRIOR_COUNT = 3.0  # n_0
MIN_STRUCTURES = 10  # with fewer a level has no such factor
ENERGIES, FORCES = 1.0, 0.25  # s_0
MOST, NOTICED = 6, 1.2  # compositions that are told, and the factor (or its inverse) from which on they are


@dataclass(frozen=True)
class Composition:
    """Left-out structures of one composition: their number and q, the mean of error^2 / variance."""

    fractions: Fractions
    structures: int
    ratio: float


@dataclass(frozen=True)
class CompositionScatter:
    """c, the compositions of a level, and s_0."""

    exponent: float = 0.0
    compositions: tuple[Composition, ...] = ()
    least: float = ENERGIES

    @cached_property
    def arrays(self) -> tuple[list[int], Array, Array, Array]:
        """Elements [z], fractions [k, z], n_k and q_k [k] of the compositions."""
        elements = sorted({z for c in self.compositions for z, _ in c.fractions})
        table = np.array([[dict(c.fractions).get(z, 0.0) for z in elements] for c in self.compositions])
        counts = np.array([float(c.structures) for c in self.compositions])
        return elements, table, counts, np.array([c.ratio for c in self.compositions])

    def factor(self, numbers: NDArray[np.int64]) -> float:
        """g of a structure with these atomic numbers [N]."""
        return self.factor_of(fractions(numbers)) if self.exponent else 1.0

    def factor_of(self, composition: Fractions) -> float:
        """g of a composition."""
        elements, table, structures, ratios = self.arrays
        known = dict(composition)
        x = np.array([known.pop(z, 0.0) for z in elements])
        square = ((table - x) ** 2).sum(1) + sum(f * f for f in known.values())
        weights = structures * np.exp(-0.5 * square / WIDTH**2)
        s = float((PRIOR_COUNT + weights @ ratios) / (PRIOR_COUNT + weights.sum()))
        return max(s, self.least) ** self.exponent

    def told(self) -> dict[str, float]:
        """g of the compositions that are told to a user, by formula, largest first: the MOST furthest from 1, if NOTICED."""
        found = [(self.factor_of(c.fractions), c.fractions) for c in self.compositions]
        furthest = sorted(found, key=lambda pair: -abs(np.log(pair[0])))[:MOST]
        return {formula(x): g for g, x in sorted(furthest, reverse=True) if abs(np.log(g)) > np.log(NOTICED)}


def formula(composition: Fractions) -> str:
    """With the smallest whole numbers of atoms: LiFeO4P for 1/7, 1/7, 4/7 and 1/7."""
    atoms = next(n for n in range(1, 100_000) if all(abs(x * n - round(x * n)) < 1e-6 for _, x in composition))
    counts = {chemical_symbols[z]: round(x * atoms) for z, x in composition}
    return "".join(symbol + (str(n) if n > 1 else "") for symbol, n in sorted(counts.items()))


def fractions(numbers: NDArray[np.int64]) -> Fractions:
    """Of each element among atoms of these atomic numbers [N]."""
    found, counts = np.unique(numbers, return_counts=True)
    return tuple(zip(found.tolist(), (counts / len(numbers)).tolist(), strict=True))


def fit_scatter(structures: Sequence[tuple[Fractions, float]], least: float) -> CompositionScatter:
    """c and compositions from left-out structures of a level: fractions and (mean) error^2 / variance of each; s_0."""
    names = list(dict.fromkeys(x for x, _ in structures))
    if len(structures) < MIN_STRUCTURES or len(names) < 2:
        return CompositionScatter(least=least)
    index = np.array([names.index(x) for x, _ in structures])
    ratio = np.array([q for _, q in structures])
    counts, sums = np.bincount(index), np.bincount(index, weights=ratio)
    table = CompositionScatter(1.0, tuple(Composition(x, 1, 1.0) for x in names)).arrays[1]
    alike = np.exp(-0.5 * ((table[:, None] - table) ** 2).sum(2) / WIDTH**2)  # K
    others = alike @ counts - 1.0  # without the structure itself
    s = ((PRIOR_COUNT + (alike @ sums)[index] - ratio) / (PRIOR_COUNT + others[index])).clip(min=least)

    def negative(c: float) -> float:
        return 0.5 * c * c + 0.5 * float((ratio / s**c + c * np.log(s)).sum())

    exponent = float(minimize_scalar(negative, bounds=(0.0, 1.0), method="bounded").x)
    rows = zip(names, counts.tolist(), (sums / counts).tolist(), strict=True)
    return CompositionScatter(exponent, tuple(Composition(*row) for row in rows), least)


def to_json(scatter: CompositionScatter) -> dict[str, Any]:
    """Plain numbers, elements by symbol."""
    rows = [
        {"fractions": {chemical_symbols[z]: x for z, x in c.fractions}, "structures": c.structures, "ratio": c.ratio}
        for c in scatter.compositions
    ]
    return {"exponent": scatter.exponent, "compositions": rows, "least": scatter.least}


def from_json(data: Mapping[str, Any]) -> CompositionScatter:
    """What `to_json` gave."""
    rows = [
        Composition(
            tuple(sorted((atomic_numbers[s], x) for s, x in r["fractions"].items())), r["structures"], r["ratio"]
        )
        for r in data["compositions"]
    ]
    return CompositionScatter(data["exponent"], tuple(rows), data["least"])
