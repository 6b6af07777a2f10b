"""How strange a structure is to a model, and what that does to the standard deviations of its forces, virial and energy.

Left-out errors of forces grow faster from structure to structure than the variances say, by a power of the weights' part of
them. With v_a the mean over x, y, z (those that symmetry does not make zero) of that part for the force on atom a, m_z its
mean over the left-out structures for species z,

    u_a = mean over b = a and its neighbours within r_cut of v_b / m_{z_b},        g_a = u_a^c,   1/10 <= u_a <= 10

multiplies what the model says of the variance of the force on a (the parts of the weights and of the residual, not that of
the labels' noise) before calibration's factors do. One c in [0, 2] for each level maximises

    sum over left-out structures of the mean log density of its forces - c^2 / 2

u is a mean over surroundings because that tells more than the atom's own variance (docs/theory.md#novelty). The virial of
N atoms has

    g = max(sum_a u_a / N, u')^(1/2),        u' = (v' / N^2) / m',   1/10 <= u' <= 10

at levels with left-out virials, with v' the mean of the weights' part over its own components (shear times sqrt(2), so that
it does not depend on how the cell lies) and m' that of left-out ones.
A mean over atoms is the same for a cell and for its supercell, and does not fall with N where errors are independent from
atom to atom; u' tells of strained crystals, whose forces are zero or small by symmetry, and of levels without forces. An
exponent fitted to left-out virials is no better on others (docs/theory.md#novelty). The energy of N atoms with the weights'
part v has

    u = (v / N^2) / m,        m its median over the left-out structures of the level,        g = u^(1/2),   1 <= u <= 10

at levels with three left-out energies or more: a variance per atom, so that a supercell is as novel as its cell. It only
widens: errors that are independent from atom to atom make v / N^2 fall with N, which is no reason to trust a large cell
more. A structure has one energy, and those of a few dozen do not fix an exponent: fitted ones were anything from 0 to 2
(docs/theory.md#larger-cells). Where labels are nearly exact v differs by factors of 1000 from structure to structure: its
mean would be that of the strangest one, and u = 1 for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # centre and neighbour of every pair
RANGE = (0.1, 10.0)  # of u
ZERO = 1e-9  # of m: less is rounding
ENERGY_RANGE = (1.0, 10.0)
MAX_EXPONENT = 2.0
VIRIAL_EXPONENT = ENERGY_EXPONENT = 0.5


@dataclass(frozen=True)
class Novelty:
    """c of the forces of a level and m_z by atomic number, (eV/Å)^2; exponent of the virials and their m, (eV/atom)^2."""

    exponent: float = 0.0
    reference: Mapping[int, float] = field(default_factory=dict)
    virial_exponent: float = 0.0
    virial_reference: float = 0.0

    def factors(self, variances: Array, numbers: NDArray[np.int64], pairs: Pairs, virial: Array) -> tuple[Array, float]:
        """g of the forces [N] and of the virial, from the weights' part of the variances of all forces [3N], (eV/Å)^2, and
        of the virial [6], eV^2, shear as in labelled rows.
        """
        if self.exponent == self.virial_exponent == 0.0:
            return np.ones(len(numbers)), 1.0
        u = self.ratios(variances, numbers, pairs)
        told = bool((self._relative(variances, numbers) > ZERO).any())
        of_virial = self.virial_ratio(float(u.mean()) if told else None, virial, len(numbers))
        return u**self.exponent, of_virial**self.virial_exponent

    def virial_ratio(self, of_forces: float | None, variances: Array, atoms: int) -> float:
        """The larger of the forces' mean u (None: they say nothing) and u', from the weights' part of the variances of a
        virial [component], eV^2; zeros say nothing, and 1 where neither does."""
        known = [] if of_forces is None else [of_forces]
        if self.virial_reference > 0:
            relative = variances / atoms**2 / self.virial_reference
            known += [float(np.clip(relative[relative > ZERO].mean(), *RANGE))] if (relative > ZERO).any() else []
        return max(known, default=1.0)

    def _relative(self, variances: Array, numbers: NDArray[np.int64]) -> Array:
        """v over m_z of the forces, [N, 3]; 0 for species without a reference."""
        usual = np.array([self.reference.get(int(z), np.inf) for z in numbers])
        return variances.reshape(-1, 3) / usual[:, None]

    def ratios(self, variances: Array, numbers: NDArray[np.int64], pairs: Pairs) -> Array:
        """u [N] from the variances [3N] of the forces; those that are zero, by symmetry or without a label, say nothing."""
        relative = self._relative(variances, numbers)
        counted = relative > ZERO
        own = (relative * counted).sum(1) / np.maximum(counted.sum(1), 1)
        present = counted.any(1).astype(float)
        centre, neighbor = pairs
        total, count = own.copy(), present.copy()
        np.add.at(total, centre, own[neighbor])
        np.add.at(count, centre, present[neighbor])
        mean = np.divide(total, count, out=np.ones(len(numbers)), where=count > 0)
        return np.clip(mean, *RANGE)


@dataclass(frozen=True)
class EnergyNovelty:
    """Exponent of the energies, and m of a level, (eV/atom)^2; a reference of 0 knows nothing."""

    exponent: float = 0.0
    reference: float = 0.0

    def factor(self, variance: float, atoms: int) -> float:
        """g from the weights' part of the variance of a total energy, eV^2."""
        return self.ratio(variance, atoms) ** self.exponent

    def ratio(self, variance: float, atoms: int) -> float:
        """u, from the same."""
        return float(np.clip(variance / atoms**2 / self.reference, *ENERGY_RANGE)) if self.reference > 0 else 1.0

    def times_usual(self, variance: float, atoms: int) -> float | None:
        """u^(1/2) without its limits, from the same; None at levels whose energies have no factor."""
        known = self.exponent > 0 and self.reference > 0
        return float(variance / atoms**2 / self.reference) ** 0.5 if known else None


@dataclass(frozen=True)
class Surprise:
    """Left-out energies or forces of a structure: errors, calibrated variances of the model and the noise, log u; [row]."""

    error: Array
    model: Array
    noise: Array
    log_ratio: Array

    def log_density(self, exponent: float) -> float:
        """Mean over the rows, up to a constant."""
        variance = self.model * np.exp(exponent * self.log_ratio) + self.noise
        return -0.5 * float((self.error**2 / variance + np.log(variance)).mean())


def fit_exponent(structures: Sequence[Surprise]) -> float:
    """c of left-out structures."""

    def negative(c: float) -> float:
        return 0.5 * c * c - sum(s.log_density(c) for s in structures)

    return float(minimize_scalar(negative, bounds=(0.0, MAX_EXPONENT), method="bounded").x)


Neighbours = Callable[[Atoms], Pairs]
