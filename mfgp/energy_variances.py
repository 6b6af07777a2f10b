"""Variances of total and local energies from descriptors, without the rows of forces.

    Var[a] = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2)

for a = the sum of the features phi(x_i) with the composition's columns (the total energy), and a_i = phi(x_i) - mean_m
phi(z_m) (a local energy against the mean over the inducing environments of its species: total energies and forces fix
local energies only up to a constant for each species, which e0 shares). With C = R R^T all quadratic forms are one product
|a^T R|^2, of which the triangle alone is multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mfgp.inducing import InducingBasis
from mfgp.kernels import power
from mfgp.observations import whiten

STRIPS = 4  # of columns, into which the triangle is cut


@dataclass(frozen=True)
class CovarianceRoot:
    """C = R R^T in strips of columns: rows `first` on of R [M', M'], of which those above are zero."""

    strips: tuple[tuple[int, Tensor], ...]  # (first, [M' - first, width])

    @staticmethod
    def of(covariance: Tensor) -> CovarianceRoot:
        """Cholesky's factor; the symmetric root where rounding has made an eigenvalue negative."""
        factor, info = torch.linalg.cholesky_ex(covariance)
        if int(info) != 0:
            values, vectors = torch.linalg.eigh(covariance)
            return CovarianceRoot(((0, vectors * values.clamp(min=0.0).sqrt()),))
        size = len(factor)
        edges = [round(k * size / STRIPS) for k in range(STRIPS + 1)]
        return CovarianceRoot(tuple((a, factor[a:, a:b].contiguous()) for a, b in pairwise(edges) if b > a))

    def quadratic(self, rows: Tensor) -> Tensor:
        """a^T C a of each row, [row, M'] -> [row], never negative."""
        out = rows.new_zeros(len(rows))
        for first, strip in self.strips:
            out += (rows[:, first:] @ strip).square_().sum(1)
        return out


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
    basis: InducingBasis, root: CovarianceRoot, reference: Tensor, q: Tensor, members: tuple[Tensor, ...], extra: Tensor
) -> EnergyVariances:
    """From descriptors q [N, D] of one structure.

    reference [S, M] mean features of the inducing environments of each species, members [S] the atoms of each species,
    extra [1, column] composition and baselines of the energy.
    """
    n = len(q)
    rows = q.new_zeros(n + 1, basis.size + extra.shape[1])  # [local energies, then the total; M']
    rows[n:, basis.size :] = extra
    prior, explained = q.new_zeros(1, len(members)), q.new_zeros(1, len(members))
    local_explained = q.new_zeros(n)
    for index, columns in basis.blocks():
        own = members[index]
        if len(own) == 0:
            continue
        of_species = q if len(own) == n else q.index_select(0, own)
        phi = whiten(basis, index, power(of_species @ basis.points[index].T, basis.zeta))  # [centre, M_s]
        total = phi.sum(0)
        prior[0, index] = power(of_species @ of_species.T, basis.zeta).sum()
        explained[0, index] = total @ total
        local_explained[own] = phi.square().sum(1)
        rows[n, columns] = total
        rows[own, columns] = phi - reference[index, columns]
    quadratic = root.quadratic(rows)
    return EnergyVariances(quadratic[n:], prior, explained, quadratic[:n], local_explained)
