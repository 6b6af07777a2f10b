"""A pair potential with learned coefficients, as columns beside the inducing points.

    E_pair(S) = sum_{i<j} sum_k c_{ab,k} B_k(r_ij),        a, b the elements of i and j, in either order
    B_k(r) = exp(-(r - r_k)^2 / (2 w^2)) f_c(r),           r_k = k w, w = r_cut / n, k = 0 .. n - 1

with f_c the quintic cutoff of the descriptor (radial.py) over the last fifth of r_cut, and a prior c ~ N(0, std^2) for each
coefficient at the lowest level and for its change from one level to the next. A column holds what one B_k of one pair of
elements gives for every functional, so the coefficients are learned in closed form with the inducing points' weights, and
their uncertainty reaches every prediction. Where no pair of the data has been, coefficients stay at zero: this is no
repulsion at short range (the baseline `zbl` is).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ase import Atoms
from torch import Tensor

from descriptors import Neighborhoods, neighborhoods
from descriptors.radial import smooth_cutoff
from descriptors.slopes import voigt_products
from descriptors.soap import species_index
from mfgp.config import PairConfig
from mfgp.gp.kernels import n_functionals

SWITCH = 0.2  # of r_cut, over which the functions go to zero


@dataclass(frozen=True)
class PairTerm:
    """The columns of a set of elements (ascending atomic numbers): by pair of elements a <= b, then by function k."""

    config: PairConfig
    species: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.config.n * len(self.species) * (len(self.species) + 1) // 2

    def prior_stds(self, n_levels: int) -> Tensor:
        """Of each coefficient at the lowest level, and of its change from each level to the next, [T, column] eV."""
        return torch.full((n_levels, self.size), self.config.std, dtype=torch.float64)

    def neighborhoods(self, atoms: Atoms) -> Neighborhoods:
        """Pairs within the term's cutoff."""
        return neighborhoods([atoms], self.config.r_cut)

    def functions(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """B_k and dB_k/dr (1/Å), [pair, n] each. r [pair] Å."""
        width = self.config.r_cut / self.config.n
        x = r[:, None] / width - torch.arange(self.config.n, dtype=r.dtype, device=r.device)
        gauss = torch.exp(-0.5 * x**2)
        f, slope = (y[:, None] for y in smooth_cutoff(r, self.config.r_cut, SWITCH * self.config.r_cut))
        return gauss * f, gauss * (slope - x / width * f)

    def columns(self, nb: Neighborhoods) -> Tensor:
        """Column of each function of each pair, [pair, n]."""
        index, n = species_index(nb.numbers, self.species), len(self.species)
        a, b = index[nb.centre], index[nb.neighbor]
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        kind = low * n - torch.div(low * (low - 1), 2, rounding_mode="floor") + high - low  # row by row, a <= b
        return kind[:, None] * self.config.n + torch.arange(self.config.n, device=kind.device)

    def rows(self, atoms: Atoms) -> Tensor:
        """What every function gives for energy, forces and virial of a structure, [1+3N+6, column] float64."""
        nb = self.neighborhoods(atoms)
        n, columns = len(nb.numbers), self.columns(nb)
        r = torch.linalg.vector_norm(nb.vectors, dim=1)
        value, slope = self.functions(r)
        out = value.new_zeros(n_functionals(n), self.size)
        out[0].index_add_(0, columns.flatten(), 0.5 * value.flatten())  # each pair comes twice
        per_vector = 0.5 * (slope / r[:, None])[:, None, :] * nb.vectors[:, :, None]  # [pair, 3, n] dB/d r_ij, halved
        xyz = torch.arange(3, device=columns.device)
        forces = out[1:-6].view(-1)
        for atom, sign in ((nb.centre, 1.0), (nb.neighbor, -1.0)):
            place = (3 * atom[:, None] + xyz)[:, :, None] * self.size + columns[:, None, :]
            forces.index_add_(0, place.flatten(), sign * per_vector.flatten())
        strained = (voigt_products(nb.vectors) @ per_vector).flatten()  # [pair, 6, n]
        place = torch.arange(6, device=columns.device)[:, None] * self.size + columns[:, None, :]
        out[-6:].view(-1).index_add_(0, place.flatten(), -strained)
        return out

    def energies(self, atoms: Atoms, coefficients: Tensor) -> Tensor:
        """Energy of each atom, half of each of its pairs, [N] eV, for coefficients [column] eV."""
        nb = self.neighborhoods(atoms)
        value, _ = self.functions(torch.linalg.vector_norm(nb.vectors, dim=1))
        per_pair = 0.5 * (value * coefficients.cpu()[self.columns(nb)]).sum(1)
        return value.new_zeros(len(nb.numbers)).index_add_(0, nb.centre, per_pair)


def pair_term(config: PairConfig | None, species: tuple[int, ...]) -> PairTerm | None:
    """The pair term of a configuration, None where it has none."""
    return None if config is None else PairTerm(config, tuple(sorted(species)))
