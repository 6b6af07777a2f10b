"""Variances of total and local energies from descriptors, without the rows of forces.

    Var[a] = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2)

for a = the sum of the features phi(x_i) with the composition's columns (the total energy), and a_i = phi(x_i) - mean_m
phi(z_m) (a local energy against the mean over the inducing environments of its species: total energies and forces fix
local energies only up to a constant for each species, which e0 shares). With a species' block C_ss = V diag(lambda) V^T

    psi = V^T L^-1 k(Z, x):     |phi|^2 = |psi|^2,      a_i^T C a_i = sum_k lambda_k (psi_k - mean_m psi_k(z_m))^2

so that one product gives both. For the total, C itself is turned by V: one species leaves it diagonal but for
the columns beside Phi; for several C = R R^T and a^T C a = |a^T R|^2, of which the triangle alone is multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mfgp.inducing import InducingBasis
from mfgp.kernels import power
from mfgp.means import chosen

STRIPS = 4  # of columns, into which the triangle is cut
SMALL_PIVOT = 1e-3  # of L, whose first is 1: with its inverse |phi|^2 is off by 1e-12 there, and more below


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
class SpeciesForm:
    """What turns k(Z, x) of a species into psi.

    Where a pivot of L is below `SMALL_PIVOT` its inverse would cost too many digits: then phi comes from L itself.
    """

    factor: Tensor | None  # [M_s, M_s] L where its inverse is not in the transform
    transform: Tensor  # [M_s, M_s] L^-T V, or V
    values: Tensor  # [M_s] lambda, eV^2
    reference: Tensor  # [M_s] mean of psi over the inducing environments

    @staticmethod
    def of(factor: Tensor, values: Tensor, vectors: Tensor) -> SpeciesForm:
        """From L, lambda and V."""
        reference = factor.mean(0) @ vectors  # phi(z_m) is row m of L
        values = values.clamp(min=0.0)
        if float(factor.diagonal().min()) < SMALL_PIVOT:
            return SpeciesForm(factor, vectors.contiguous(), values, reference)
        transform = torch.linalg.solve_triangular(factor.T, vectors, upper=True).contiguous()
        return SpeciesForm(None, transform, values, reference)

    def psi(self, k: Tensor) -> Tensor:
        """[atom, M_s] from k(x, Z) [atom, M_s]."""
        phi = k if self.factor is None else torch.linalg.solve_triangular(self.factor, k.T, upper=False).T
        return phi @ self.transform


@dataclass(frozen=True)
class EnergyForms:
    """The quadratic forms of energies at one level."""

    species: tuple[SpeciesForm, ...]
    turned: Tensor  # [M', column] the last columns of C turned by V
    root: CovarianceRoot | None  # of C turned by V, where there are several species

    @staticmethod
    def of(basis: InducingBasis, covariance: Tensor, dtype: torch.dtype = torch.float64) -> EnergyForms:
        """From C [M', M'] eV^2: the M features, then the columns beside them. dtype: that of the root."""
        forms, turned = [], covariance.clone()
        for index, own in basis.blocks():
            values, vectors = torch.linalg.eigh(covariance[own, own])
            forms.append(SpeciesForm.of(basis.factors[index], values, vectors))
            turned[:, own] = turned[:, own] @ vectors
            turned[own] = vectors.T @ turned[own]
        root = CovarianceRoot.of(0.5 * (turned + turned.T), dtype) if len(forms) > 1 else None
        return EnergyForms(tuple(forms), turned[:, basis.size :].clone(), root)

    def total(self, row: Tensor) -> Tensor:
        """a^T C a of the total energy from its turned row [1, M'], [1]."""
        if self.root is not None:
            return self.root.quadratic(row)
        psi, beside = row.split([len(self.turned) - self.turned.shape[1], self.turned.shape[1]], dim=1)
        cross, corner = self.turned.split([psi.shape[1], beside.shape[1]])
        mixed = 2.0 * (psi @ cross) + beside @ corner  # [1, column]
        return (psi.square() @ self.species[0].values + (mixed * beside).sum(1)).clamp_(min=0.0)


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
    forms: EnergyForms,
    q: Tensor,
    members: tuple[Tensor, ...],
    products: list[Tensor],
    extra: Tensor,
) -> EnergyVariances:
    """From descriptors q [N, D] of one structure and their inner products with the inducing points (means).

    members [S]: the atoms of each species; extra [1, column]: composition and baselines of the energy.
    """
    totals, priors, local_weights, local_explained = [], [], [], []
    for index, columns in basis.blocks():
        own, form = members[index], forms.species[index]
        if len(own) == 0:
            totals.append(q.new_zeros(columns.stop - columns.start))
            priors.append(q.new_zeros(()))
            local_weights.append(q.new_zeros(0))
            local_explained.append(q.new_zeros(0))
            continue
        of_species = chosen(q, own)
        psi = form.psi(power(products[index].T, basis.zeta))  # [atom, M_s]
        totals.append(psi.sum(0))
        priors.append(power(of_species @ of_species.T, basis.zeta).sum())
        local_explained.append(torch.linalg.vector_norm(psi, dim=1).square_())
        local_weights.append(psi.sub_(form.reference).square_() @ form.values)
    weights = forms.total(torch.cat([*totals, extra[0]])[None])  # from the row [1, M'], turned
    explained = torch.stack([t.square().sum() for t in totals])[None]
    local = (in_order(parts, members, len(q)) for parts in (local_weights, local_explained))
    return EnergyVariances(weights, torch.stack(priors)[None], explained, *local)


def in_order(parts: list[Tensor], members: tuple[Tensor, ...], n: int) -> Tensor:
    """Values of the atoms of each species, [atom of it] each, as those of all n atoms, [N]."""
    out = None
    for part, own in zip(parts, members, strict=True):
        if len(own) == n:
            return part
        out = part.new_zeros(n) if out is None else out
        out.index_copy_(0, own, part)
    assert out is not None
    return out
