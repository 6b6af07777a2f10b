"""DScribe's SOAP behind our interface: a reference for the values.

DScribe orders its entries by species pair (Z1 <= Z2), then l, n, n' (n' >= n where Z1 = Z2) and holds each off-diagonal
entry once; ours are ordered l, then the upper triangle over channels (species, n), off-diagonal entries times sqrt(2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.geometry import complete_cell
from dscribe.descriptors import SOAP as DScribe  # noqa: N811
from torch import Tensor

from descriptors.config import SOAPConfig


class DScribeSOAP:
    """Features of DScribe in our order and weighting; values only, float64, on the CPU.

    Raises ValueError for settings that DScribe does not have: a smooth cutoff, or a contraction.
    """

    def __init__(self, config: SOAPConfig, species: Sequence[int]) -> None:
        if config.cutoff_width > 0:
            raise ValueError(f"DScribe has no smooth cutoff (cutoff_width = {config.cutoff_width} Å); set it to 0.")
        if config.contraction is not None:
            raise ValueError(
                f"DScribe has no channel contraction (contraction = {config.contraction}); set it to None."
            )
        self.config = config
        self.species = tuple(sorted(int(z) for z in species))
        self._order, weight = _entry_order(len(self.species), config.n_max, config.l_max)
        self._weight = torch.from_numpy(weight)

    @property
    def n_features(self) -> int:
        """D, the length of a feature vector."""
        return len(self._order)

    def features(self, structures: Sequence[Atoms]) -> Tensor:
        """q of every atom of the structures, [centre, D] float64, |q| = 1. Raises ValueError for unknown elements."""
        parts = [torch.from_numpy(self._create(atoms)) for atoms in structures]
        p = torch.cat([part[:, self._order] for part in parts]) * self._weight
        return p / torch.linalg.vector_norm(p, dim=1, keepdim=True)

    def _create(self, atoms: Atoms) -> np.ndarray:
        config, scaling = self.config, self.config.radial_scaling
        weighting = None
        if scaling is not None:
            weighting = {"function": "pow", "c": 1, "d": 1, "r0": scaling.r0, "m": scaling.m}
        soap = DScribe(
            r_cut=config.r_cut,
            n_max=config.n_max,
            l_max=config.l_max,
            sigma=config.sigma,
            rbf="gto",
            weighting=weighting,
            species=list(self.species),
            periodic=bool(atoms.pbc.any()),
        )
        return soap.create(_inside_a_full_cell(atoms))


def _inside_a_full_cell(atoms: Atoms) -> Atoms:
    """A copy as DScribe needs it: atoms inside the cell, or it misses images, and no zero cell vectors."""
    out = atoms.copy()
    if out.pbc.any():
        out.set_cell(complete_cell(out.cell))
        out.wrap()
    return out


def _entry_order(n_species: int, n_max: int, l_max: int) -> tuple[np.ndarray, np.ndarray]:
    """DScribe's position of each of our entries, and our weight relative to DScribe's, both [D]."""
    start: dict[tuple[int, int], int] = {}
    total = 0
    for s in range(n_species):
        for t in range(s, n_species):
            start[s, t] = total
            total += (l_max + 1) * (n_max * (n_max + 1) // 2 if s == t else n_max * n_max)
    order, weight = [], []
    a, b = np.triu_indices(n_species * n_max)
    for l in range(l_max + 1):  # noqa: E741
        for (s, n), (t, m) in zip(_channel(a, n_max), _channel(b, n_max), strict=True):
            if s == t:
                place = l * n_max * (n_max + 1) // 2 + n * n_max - n * (n - 1) // 2 + m - n
            else:
                place = (l * n_max + n) * n_max + m
            order.append(start[s, t] + place)
            weight.append(1.0 if (s, n) == (t, m) else math.sqrt(2.0))
    return np.array(order), np.array(weight)


def _channel(index: np.ndarray, n_max: int) -> list[tuple[int, int]]:
    """(species, n) of each channel."""
    return [divmod(int(i), n_max) for i in index]
