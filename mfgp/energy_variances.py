"""Variances of total and local energies from descriptors, without the rows of forces.

    Var[a] = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2)

for a = the sum of the features phi(x_i) with the composition's columns (the total energy), and a_i = phi(x_i) - mean_m
phi(z_m) (a local energy against the mean over the inducing environments of its species: total energies and forces fix
local energies only up to a constant for each species, which e0 shares). With C = R R^T all quadratic forms are one product
|a^T R|^2, of which the triangle alone is multiplied. The a_i of a species vanish outside its block of C, so where there are
several species each block has a root of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mfgp.inducing import InducingBasis
from mfgp.kernels import power
from mfgp.means import chosen
from mfgp.observations import whiten

STRIPS = 4  # of columns, into which the triangle is cut


@dataclass(frozen=True)
class CovarianceRoot:
    """C = R R^T in strips of columns: rows `first` on of R [M', M'], of which those above are zero."""

    strips: tuple[tuple[int, Tensor], ...]  # (first, [M' - first, width])

    @staticmethod
    def of(covariance: Tensor, dtype: torch.dtype = torch.float64) -> CovarianceRoot:
        """Cholesky's factor; the symmetric root where rounding has made an eigenvalue negative. Kept in a dtype."""
        factor, info = torch.linalg.cholesky_ex(covariance)
        if int(info) != 0:
            values, vectors = torch.linalg.eigh(covariance)
            return CovarianceRoot(((0, (vectors * values.clamp(min=0.0).sqrt()).to(dtype)),))
        size = len(factor)
        edges = [round(k * size / STRIPS) for k in range(STRIPS + 1)]
        return CovarianceRoot(tuple((a, factor[a:, a:b].to(dtype).contiguous()) for a, b in pairwise(edges) if b > a))

    def quadratic(self, rows: Tensor) -> Tensor:
        """a^T C a of each row, [row, M'] -> [row], never negative."""
        given, out = rows.to(self.strips[0][1].dtype), rows.new_zeros(len(rows))
        for first, strip in self.strips:
            out += torch.linalg.vector_norm(given[:, first:] @ strip, dim=1).square_()
        return out


@dataclass(frozen=True)
class CovarianceRoots:
    """The root of C, and those of its blocks of each species where there are several: [species]."""

    whole: CovarianceRoot
    blocks: tuple[CovarianceRoot, ...]

    @staticmethod
    def of(basis: InducingBasis, covariance: Tensor, dtype: torch.dtype = torch.float64) -> CovarianceRoots:
        """With M' rows: the M features, then the columns beside them."""
        slices = [columns for _, columns in basis.blocks()] if len(basis.species) > 1 else []
        blocks = tuple(CovarianceRoot.of(covariance[own, own], dtype) for own in slices)
        return CovarianceRoots(CovarianceRoot.of(covariance, dtype), blocks)


def mean_inducing_features(basis: InducingBasis) -> Tensor:
    """Mean of phi over the inducing environments of each species, [S, M]: phi(z_m) is row m of L."""
    out = basis.factors[0].new_zeros(len(basis.species), basis.size)
    for index, columns in basis.blocks():
        out[index, columns] = basis.factors[index].mean(0)
    return out


@dataclass(frozen=True)
class EnergyVariances:
    """The parts of the variances of the total energy and of each local energy; S: species of the basis."""

    weights: Tensor  # [1] eV^2 of the total energy: a^T C a
    prior: Tensor  # [1, S] at unit amplitude
    explained: Tensor  # [1, S] |Phi|^2
    local_weights: Tensor  # [N] eV^2
    local_explained: Tensor  # [N] |phi|^2; the prior is 1


def energy_variances(
    basis: InducingBasis,
    roots: CovarianceRoots,
    reference: Tensor,
    q: Tensor,
    members: tuple[Tensor, ...],
    products: list[Tensor],
    extra: Tensor,
) -> EnergyVariances:
    """From descriptors q [N, D] of one structure and their inner products with the inducing points (means).

    reference [S, M] mean features of the inducing environments of each species, members [S] the atoms of each species,
    extra [1, column] composition and baselines of the energy.
    """
    n, alone = len(q), len(members) == 1
    total = torch.cat([q.new_zeros(1, basis.size), extra], dim=1)  # [1, M']
    prior, explained = q.new_zeros(1, len(members)), q.new_zeros(1, len(members))
    local_weights, local_explained = q.new_zeros(n), q.new_zeros(n)
    for index, columns in basis.blocks():
        own = members[index]
        if len(own) == 0:
            continue
        of_species = chosen(q, own)
        phi = whiten(basis, index, power(products[index], basis.zeta).T)  # [atom, M_s]
        total[0, columns] = phi.sum(0)
        prior[0, index] = power(of_species @ of_species.T, basis.zeta).sum()
        explained[0, index] = total[0, columns].square().sum()
        local_explained[own] = torch.linalg.vector_norm(phi, dim=1).square_()
        if alone:  # local and total energies in one product
            rows = torch.cat([phi.new_zeros(n, total.shape[1]), total])
            torch.sub(phi, reference[index], out=rows[:n, columns])
            quadratic = roots.whole.quadratic(rows)
            return EnergyVariances(quadratic[n:], prior, explained, quadratic[:n], local_explained)
        local_weights[own] = roots.blocks[index].quadratic(phi - reference[index, columns])
    return EnergyVariances(roots.whole.quadratic(total), prior, explained, local_weights, local_explained)
