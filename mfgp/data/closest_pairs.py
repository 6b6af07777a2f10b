"""Atoms that are closer to each other than any of their elements in the training data.

A kernel knows no repulsion where there are no data: a relaxation or dynamics that brings atoms nearer than they have been
may find forces that draw them further in, and nothing but a standard deviation would tell. So the shortest distance of each
pair of elements in the training structures is kept, and pairs below CLOSER times it are told; elements that have not been
within REACH of each other count as if they had been there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import vesin
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from descriptors import without_gaps

REACH = 3.0  # Å
CLOSER = 0.85
SHORT_RANGE = "docs/accuracy.md#short-distances"

Closest = Mapping[tuple[int, int], float]  # Å by atomic numbers, the lower first


def closest_pairs(structures: Iterable[Atoms]) -> dict[tuple[int, int], float]:
    """The shortest distance of each pair of elements that come within REACH of each other, Å."""
    out: dict[tuple[int, int], float] = {}
    for atoms in structures:
        pairs, distance = _pairs(atoms, REACH)
        order = np.argsort(-distance)  # of equal keys a dictionary keeps the last
        shortest = dict(zip(map(tuple, pairs[order].tolist()), distance[order].tolist(), strict=True))
        out = merged(out, shortest)
    return out


def merged(one: Closest, other: Closest) -> dict[tuple[int, int], float]:
    """Of the data of both."""
    return {key: min(one.get(key, REACH), other.get(key, REACH)) for key in {*one, *other}}


def too_close(atoms: Atoms, closest: Closest) -> str | None:
    """'Cu and Cu are 1.48 Å apart, in the training data at least 2.31 Å', of the pair that is closest for its kind.

    None where none is too close, or nothing is known of the training data.
    """
    if not closest or len(atoms) == 0:
        return None
    elements = np.unique(atoms.numbers)
    known = np.array([[closest.get((min(a, b), max(a, b)), REACH) for b in elements] for a in elements])  # Å
    pairs, distance = _pairs(atoms, CLOSER * float(known.max()))
    usual = known[np.searchsorted(elements, pairs[:, 0]), np.searchsorted(elements, pairs[:, 1])]
    ratio = distance / usual
    if not (ratio < CLOSER).any():
        return None
    worst = int(ratio.argmin())
    one, other = (chemical_symbols[z] for z in pairs[worst])
    never = " (never nearer there)" if usual[worst] == REACH else ""
    return f"{one} and {other} are {distance[worst]:.2f} Å apart, in the training data at least {usual[worst]:.2f} Å{never}"


def warn_of_close_pairs(structures: Sequence[Atoms], closest: Closest, stacklevel: int) -> bool:
    """Warn of the first structure with atoms that are too close; whether there is one. stacklevel as in the caller."""
    for i, atoms in enumerate(structures):
        if (found := too_close(atoms, closest)) is not None:
            where = f"structure {i} of the list" if len(structures) > 1 else "the structure"
            warnings.warn(
                f"{where} ({atoms.symbols}): {found}. A model knows no repulsion where there are no data: forces can draw "
                f"them further in. Train on compressed structures too, or put the baseline zbl below ({SHORT_RANGE}).",
                stacklevel=stacklevel + 1,
            )
            return True
    return False


def _pairs(atoms: Atoms, reach: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Atomic numbers, the lower first, [pair, 2] and distances [pair] (Å) of the pairs within reach."""
    search = vesin.NeighborList(cutoff=reach, full_list=False, n_threads=1)
    i, j, distance = search.compute(*without_gaps(atoms, reach), atoms.pbc, "ijd")
    return np.sort(np.stack([atoms.numbers[i], atoms.numbers[j]], axis=1), axis=1), distance
