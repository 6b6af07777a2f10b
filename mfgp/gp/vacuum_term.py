"""What an atom without neighbours has beside its reference energy, as columns beside the inducing points.

    E_vacuum(S) = sum_i [ c_{z_i} h_i + sum_k b_{z_i,k} sin(k pi h_i) / k ],        k = 1, 2
    h_i = prod_j [1 - f_c(r_ij)] over the neighbours j of i

with f_c the quintic cutoff of the descriptor (radial.py): h is 1 for an isolated atom, exactly 0 with the first neighbour
nearer than r_cut - width, and smooth between. Elements that have an isolated atom among the training frames have a column,
with a broad prior for c at the lowest level, and one of 3 eV for its change from one level to the next: c is what an atom's
energy has beside a cohesive energy, of which levels differ by a few eV, and a level without isolated atoms has only that.

How an energy goes from h = 0 to h = 1 is not known from its ends: h is a choice. The b_k, N(0, (0.3 eV)^2) at the lowest
level and their changes likewise, are the first terms of a Brownian bridge in h, zero at both ends: without data of atoms
about to leave they move no mean, and are what standard deviations have there; data tell them like other columns.

Such a frame is two labels (observations.isolated_rows): e0 alone is its energy, and so is e0 + f(x) + c. Without c the
second would ask of the Gaussian process that its local energies go from 0 at the isolated atom to the cohesive energy of a
solid, along a kernel for which the two are much alike: a large amplitude, and several times the error of forces in metals
(docs/theory.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from descriptors import Neighborhoods, SOAPConfig, neighborhoods
from descriptors.radial import smooth_cutoff
from descriptors.slopes import voigt_products
from mfgp.gp.kernels import n_functionals

HARD_CUTOFF_WIDTH = 1.0  # Å, where the descriptor's cutoff is a step
NEAR = 3.0  # Å; where every atom has a neighbour as near as that, h is zero and no longer list is made
SHORTEST = 0.5  # Å; no atoms are nearer
SHAPES = 2  # one alone says nothing of the force where its slope in h is zero


@dataclass(frozen=True)
class VacuumTerm:
    """The columns of the elements `species` (atomic numbers): those of c in that order, then those of b_1, b_2 likewise."""

    species: tuple[int, ...]
    r_cut: float  # Å
    width: float  # Å
    std: float = 100.0  # eV, prior of each c at the lowest level: nothing but isolated atoms tells it
    shift_std: float = 3.0  # eV, of its change from one level to the next, as that of e0
    shapes: int = SHAPES  # number of b_k of each element; 0 in models of schema 11 and earlier
    shape_std: float = 0.3  # eV, prior of each b_k and of its changes

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.species) * (1 + self.shapes)

    def prior_stds(self, n_levels: int) -> Tensor:
        """Of each coefficient at the lowest level, and of its change from each level to the next, [T, column] eV."""
        out = torch.full((n_levels, self.size), self.shift_std, dtype=torch.float64)
        out[0] = self.std
        out[:, len(self.species) :] = self.shape_std
        return out

    def acts_on(self, atoms: Atoms) -> bool:
        """Whether an atom of the structure may have no near neighbour."""
        return self.slack(atoms) == 0.0

    def slack(self, atoms: Atoms) -> float:
        """How much farther (Å) every nearest neighbour may be before the term may act; 0 where it may already."""
        near = min(NEAR, self.r_cut - self.width)
        if near < SHORTEST:
            return 0.0
        nb = neighborhoods([atoms], near)
        nearest = torch.full((len(atoms),), near, dtype=torch.float64)
        nearest.scatter_reduce_(0, nb.centre, torch.linalg.vector_norm(nb.vectors, dim=1), "amin")
        return near - float(nearest.max())

    def rows(self, atoms: Atoms) -> Tensor:
        """What every column gives for energy, forces and virial of a structure, [1+3N+6, column] float64."""
        out = torch.zeros(n_functionals(len(atoms)), self.size, dtype=torch.float64)
        if not self.acts_on(atoms):
            return out
        nb, column = neighborhoods([atoms], self.r_cut), self._column(atoms)
        r = torch.linalg.vector_norm(nb.vectors, dim=1)
        f, slope = smooth_cutoff(r, self.r_cut, self.width)
        h = self._lonely(nb, f)
        mine = column >= 0
        pair = torch.nonzero(mine[nb.centre] & (h[nb.centre] > 0)).squeeze(1)  # elsewhere the slope of h is zero, too
        vectors, ends = nb.vectors[pair], (nb.centre[pair], nb.neighbor[pair])
        dh = -slope[pair] * h[ends[0]] / (1.0 - f[pair])  # dh_i / dr_ij, 1/Å
        forces, xyz = out[1:-6].view(len(atoms), 3, self.size), torch.arange(3)
        for k, (value, change) in enumerate(self._functions(h)):
            of_k = column + k * len(self.species)
            out[0].index_add_(0, of_k[mine], value[mine])
            target = of_k[ends[0]]
            per_vector = (change[ends[0]] * dh / r[pair])[:, None] * vectors  # [pair, 3]
            for atom, sign in zip(ends, (1.0, -1.0), strict=True):
                forces.index_put_((atom[:, None], xyz, target[:, None]), sign * per_vector, accumulate=True)
            strained = (voigt_products(vectors) @ per_vector[:, :, None]).squeeze(2)  # [pair, 6]
            out[-6:].index_put_((torch.arange(6), target[:, None]), -strained, accumulate=True)
        return out

    def energies(self, atoms: Atoms, coefficients: Tensor) -> Tensor:
        """Energy of each atom, [N] eV, for coefficients [column] eV."""
        out = torch.zeros(len(atoms), dtype=torch.float64)
        if not self.acts_on(atoms):
            return out
        nb, column = neighborhoods([atoms], self.r_cut), self._column(atoms)
        f, _ = smooth_cutoff(torch.linalg.vector_norm(nb.vectors, dim=1), self.r_cut, self.width)
        of_function = coefficients.cpu().reshape(-1, len(self.species))
        for own, (value, _) in zip(of_function, self._functions(self._lonely(nb, f)), strict=True):
            out += torch.where(column >= 0, own[column.clamp(min=0)], 0.0) * value
        return out

    def _functions(self, h: Tensor) -> list[tuple[Tensor, Tensor]]:
        """h and sin(k pi h) / k, each with its slope in h, [N] each."""
        bridge = [
            (torch.sin(k * math.pi * h) / k, math.pi * torch.cos(k * math.pi * h)) for k in range(1, self.shapes + 1)
        ]
        return [(h, torch.ones_like(h)), *bridge]

    def _column(self, atoms: Atoms) -> Tensor:
        """Column of each atom, [N]; -1 of elements without one."""
        place = {z: k for k, z in enumerate(self.species)}
        return torch.tensor([place.get(z, -1) for z in atoms.numbers.tolist()], dtype=torch.long)

    @staticmethod
    def _lonely(nb: Neighborhoods, f: Tensor) -> Tensor:
        """h [N] from f_c of every pair."""
        return torch.ones(len(nb.numbers), dtype=f.dtype).scatter_reduce(0, nb.centre, 1.0 - f, "prod")


@dataclass(frozen=True)
class Together:
    """That no atom of a structure is alone: true until atoms have moved by half of the slack."""

    atoms: Atoms
    slack: float  # Å

    def still(self, atoms: Atoms) -> bool:
        """Whether it is true of these atoms, without another list of neighbours."""
        old = self.atoms
        if not np.array_equal(old.numbers, atoms.numbers) or not np.array_equal(old.pbc, atoms.pbc):
            return False
        moved = np.linalg.norm(atoms.positions - old.positions, axis=1).max(initial=0.0)
        return bool(np.array_equal(old.cell.array, atoms.cell.array) and moved < 0.5 * self.slack)


def vacuum_term(species: tuple[int, ...], config: SOAPConfig, shapes: int = SHAPES) -> VacuumTerm | None:
    """The term of these elements with the cutoff of a descriptor, None without elements."""
    width = config.cutoff_width or HARD_CUTOFF_WIDTH
    return VacuumTerm(species, config.r_cut, width, shapes=shapes) if species else None
