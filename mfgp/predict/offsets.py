"""What composition and baselines add to the Gaussian process's part of a prediction at one level.

With the columns c of a functional (observations.Columns: numbers of atoms, baselines, pair and vacuum terms) and the
weights w_c that the level sees of them,

    functional = Phi w + c w_c + mean,     local energy of atom i = e_i + e0[z_i] + baselines / N + half of its pairs + c h_i
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from mfgp.gp.vacuum_term import Together

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Offsets:
    """Those of one structure of N atoms."""

    rows: Tensor  # [1+3N+6, column]
    functionals: Array  # [1+3N+6] eV, eV/Å, eV
    local: Array  # [N] eV
    has_stress: bool  # False for a baseline without


class LevelOffsets:
    """The offsets of structures at one level of a model."""

    def __init__(self, model: MultiFidelityGP, level: int) -> None:
        self.columns, self.baselines, self.level = model.columns, model.baselines, level
        self.weights = model.weights[level][model.basis.size :]  # [column]
        self._last: tuple[bytes, Offsets] | None = None  # those of the last composition
        self._together: Together | None = None  # of the last structure without atoms that are alone

    def rows_of(self, atoms: Atoms) -> Tensor:
        """Composition and baselines of every functional, [1+3N+6, column]."""
        return self.columns.rows_of(atoms, self.columns.labels(self.baselines, atoms, self.level)).to(self.weights)

    def __call__(self, atoms: Atoms) -> Offsets:
        """Of a structure; those of the last composition are kept where nothing in them depends on positions."""
        numbers = atoms.numbers.tobytes()
        fixed = self._fixed(atoms)
        last = self._last  # once: other threads may use this predictor, too
        if fixed and last is not None and last[0] == numbers:
            return last[1]
        rows = self.rows_of(atoms)
        added = rows @ self.weights + self.columns.mean(rows, self.level)
        local = self._local(atoms, rows)
        found = Offsets(rows, added.cpu().numpy(), local.cpu().numpy(), bool(torch.isfinite(rows).all()))
        if fixed:
            self._last = (numbers, found)
        return found

    def _fixed(self, atoms: Atoms) -> bool:
        """Whether no column depends on where the atoms are."""
        if self.baselines or self.columns.pair is not None:
            return False
        known = self._together
        if self.columns.vacuum is None or (known is not None and known.still(atoms)):
            return True
        slack = self.columns.vacuum.slack(atoms)
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        self._together = Together(bare, slack) if slack > 0.0 else None
        return slack > 0.0

    def _local(self, atoms: Atoms, rows: Tensor) -> Tensor:
        """e0 of each atom, an equal share of the baselines' energy, and half the energy of its pairs, [N] eV."""
        columns = self.columns
        e0 = columns.reference[self.level] + self.weights[: len(columns.species)]  # [S]
        index = torch.searchsorted(torch.tensor(columns.species), torch.from_numpy(atoms.numbers.astype(np.int64)))
        out = e0[index.to(e0.device)]
        if columns.baselines:
            own = columns.of_baselines
            coefficients = self.weights[own] + columns.coefficients[self.level]  # type: ignore[index]
            out = out + (rows[0, own] @ coefficients) / len(atoms)
        start = columns.of_baselines.stop
        for term in columns.terms:
            out = out + term.energies(atoms, self.weights[start : start + term.size]).to(out)
            start += term.size
        return out
