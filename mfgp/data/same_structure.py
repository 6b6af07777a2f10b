"""Structures that are the same for a prediction, whatever describes them: to be left out together, and in one fold.

The order of the atoms, the orientation, the origin, the choice of the cell (supercells too), mirror images, a periodic box
around a molecule and what a file rounds change no environment, so no prediction; a copy in another description that stays in
when a structure is left out gives it away. For every atom i, over its neighbours j up to REACH,

    a_ik = sum_j c_k(z_j) g_k(r_ij) f_c(r_ij),        g_k = exp(-(r - R_k)^2 / 2 WIDTH^2),        k = 1 .. 5

and of a structure the mean, the smallest and the largest a_ik of each element, in DIRECTIONS sums with fixed coefficients.
None of it depends on the description. Two structures are the same where their compositions agree up to a factor and all of
these sums do: they are counted in cells of width CELL, and one that is nearer than NEAR to a border counts for both sides.
Lengths that differ by 1e-4 Å change the sums by 2e-4 at most, as rounding to four decimals does.

What is called the same may be a near relative instead: in a disordered cell of hundreds of atoms of which one has moved, in
a molecule with one coordinate moved by a few thousandths of Å, with fragments farther apart than REACH. Leaving those out
together is no harm; labels are never taken for one another by it (training_frames.calculation_key).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from descriptors import neighborhoods
from descriptors.radial import smooth_cutoff

Array = NDArray[np.float64]
REACH, SOFT = 6.0, 1.5  # Å, of the neighbours, and where they fade out
CENTRES, WIDTH = (1.0, 2.0, 3.0, 4.0, 5.0), 0.8  # R_k, Å
DIRECTIONS = 6
CELL, NEAR = 2e-3, 5e-4  # of the sums
BATCH_ATOMS = 1024


def groups(structures: Sequence[Atoms]) -> list[int]:
    """A number for each structure, the same of those that are the same."""
    home: dict[str, int] = {}
    out = []
    for own, near in keys(structures):
        number = next((home[key] for key in (own, *near) if key in home), len(home))
        home.setdefault(own, number)
        out.append(number)
    return out


def keys(structures: Sequence[Atoms]) -> Iterator[tuple[str, list[str]]]:
    """The key of each structure's own cell (of sums), and those of cells that it is near to. Two are the same where a key of
    one is the own one of the other."""
    for atoms, sums in zip(structures, invariants(structures), strict=True):
        numbers, counts = np.unique(atoms.numbers, return_counts=True)
        composition = np.stack([numbers, counts // math.gcd(*counts.tolist())]).astype("<i8").tobytes()
        cell, rest = np.floor(sums / CELL), np.mod(sums, CELL)
        steps = [[0, *([-1] if r < NEAR else []), *([1] if r > CELL - NEAR else [])] for r in rest.tolist()]
        found = [_key(composition, cell + step) for step in itertools.product(*steps)]
        yield found[0], found[1:]


def _key(composition: bytes, cell: Array) -> str:
    return hashlib.sha256(composition + cell.astype("<i8").tobytes()).hexdigest()[:16]


def invariants(structures: Sequence[Atoms]) -> Iterator[Array]:
    """The sums of the module docstring, [DIRECTIONS] of each structure."""
    batch: list[Atoms] = []
    for k, atoms in enumerate(structures):
        batch.append(atoms)
        if sum(map(len, batch)) >= BATCH_ATOMS or k + 1 == len(structures):
            yield from _of_batch(batch)
            batch = []


def _of_batch(structures: Sequence[Atoms]) -> Iterator[Array]:
    nb = neighborhoods(structures, REACH)
    r = torch.linalg.vector_norm(nb.vectors, dim=1)
    fade, _ = smooth_cutoff(r, REACH, SOFT)
    k = torch.arange(1, len(CENTRES) + 1, dtype=r.dtype)
    c = 0.5 + torch.remainder(0.6180339887 * nb.numbers[:, None].to(r) * k, 1.0)  # c_k(z_j), [atom, k]
    g = torch.exp(-0.5 * ((r[:, None] - torch.tensor(CENTRES, dtype=r.dtype)) / WIDTH) ** 2)  # [pair, k]
    g *= fade[:, None] * c[nb.neighbor]
    a, start = torch.zeros_like(c).index_add_(0, nb.centre, g).numpy(), 0  # [atom, k]
    of_element = {int(z): _coefficients(int(z)) for z in nb.numbers.unique()}
    for atoms in structures:
        own = a[start : start + len(atoms)]
        start += len(atoms)
        yield _sums(own, atoms.numbers, of_element)


def _coefficients(z: int) -> Array:
    """Of the mean, the smallest and the largest a_ik of an element, [3, k, DIRECTIONS]."""
    which, k, d = np.meshgrid(np.arange(3), np.arange(len(CENTRES)), np.arange(DIRECTIONS), indexing="ij")
    return np.cos(12.9898 * z + 78.233 * which + 37.719 * k + 4.1414 * d * (1 + k + 5 * which))


def _sums(a: Array, numbers: NDArray[np.int64], of_element: Mapping[int, Array]) -> Array:
    """[DIRECTIONS] from a [atom, k]."""
    total, species = np.zeros(DIRECTIONS), np.unique(numbers).tolist()
    for z in species:
        own = a[numbers == z]
        statistics = np.concatenate([own.mean(0), own.min(0), own.max(0)])  # [statistic k]
        total += statistics @ of_element[z].reshape(-1, DIRECTIONS)
    return total / math.sqrt(3 * len(CENTRES) * len(species))
