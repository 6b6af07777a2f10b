"""Variances of total and local energies from descriptors, without the rows of forces.

    Var[a] = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2)

for a = the sum of the features phi(x_i) with the composition's columns (the total energy), and a_i = phi(x_i) - mean_m
phi(z_m) (a local energy against the mean over the inducing environments of its species: total energies and forces fix
local energies only up to a constant for each species, which e0 shares). With a species' block C_ss = V diag(lambda) V^T

    psi = V^T L^-1 k(Z, x):     |phi|^2 = |psi|^2,      a_i^T C a_i = sum_k lambda_k (psi_k - mean_m psi_k(z_m))^2

so that one product gives both. For the total, C itself is turned by V: its blocks on the diagonal become lambda,
and of the others those above it are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfgp.inducing import InducingBasis
from mfgp.kernels import power
from mfgp.means import chosen

# A pivot of L, whose first is 1. With its inverse energy_std is off by 1e-4 of itself, energies_std by 1e-8 (LMFP, one-off).
SMALL_PIVOT = 5e-4


@dataclass(frozen=True)
class SpeciesForm:
    """What turns k(Z, x) of a species into psi.

    Where a pivot of L is below `SMALL_PIVOT` its inverse would cost too many digits: then phi comes from L itself.
    """

    factor: Tensor | None  # [M_s, M_s] L where its inverse is not in the transform
    transform: Tensor  # [M_s, M_s] V^T L^-1, or V^T
    values: Tensor  # [M_s] lambda, eV^2
    reference: Tensor  # [M_s] mean of psi over the inducing environments
    beside: Tensor  # [M_s, column of C after them], turned

    @staticmethod
    def of(factor: Tensor, values: Tensor, vectors: Tensor, beside: Tensor) -> SpeciesForm:
        """From L, lambda, V and what lies beside them in C."""
        reference = factor.mean(0) @ vectors  # phi(z_m) is row m of L
        values = values.clamp(min=0.0)
        if float(factor.diagonal().min()) < SMALL_PIVOT:
            return SpeciesForm(factor, vectors.T.contiguous(), values, reference, beside)
        transform = torch.linalg.solve_triangular(factor.T, vectors, upper=True).T.contiguous()
        return SpeciesForm(None, transform, values, reference, beside)

    def psi(self, k: Tensor) -> Tensor:
        """[M_s, atom] from k(Z, x) [M_s, atom]."""
        phi = k if self.factor is None else torch.linalg.solve_triangular(self.factor, k, upper=False)
        return self.transform @ phi


@dataclass(frozen=True)
class EnergyForms:
    """The quadratic forms of energies at one level."""

    species: tuple[SpeciesForm, ...]
    corner: Tensor  # [column, column] of C: the columns beside the features

    @staticmethod
    def of(basis: InducingBasis, covariance: Tensor) -> EnergyForms:
        """From C [M', M'] eV^2: the M features, then the columns beside them."""
        blocks, turned = [], covariance.clone()
        for _, own in basis.blocks():
            values, vectors = torch.linalg.eigh(covariance[own, own])
            blocks.append((values, vectors))
            turned[:, own] = turned[:, own] @ vectors
            turned[own] = vectors.T @ turned[own]
        forms = tuple(
            SpeciesForm.of(basis.factors[index], *blocks[index], turned[own, own.stop :].clone())
            for index, own in basis.blocks()
        )
        return EnergyForms(forms, turned[basis.size :, basis.size :].clone())

    def total(self, psi: list[Tensor], extra: Tensor) -> Tensor:
        """a^T C a of the total energy, [1], from psi summed over the atoms of each species and its columns [column]."""
        row, first = torch.cat([*psi, extra]), 0
        out = extra @ (self.corner @ extra)
        for own, form in zip(psi, self.species, strict=True):
            first += len(own)
            out = out + own @ (own * form.values + 2.0 * (form.beside @ row[first:]))
        return out.clamp_(min=0.0)[None]


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
        psi = form.psi(power(products[index], basis.zeta))  # [M_s, atom]
        totals.append(psi.sum(1))
        priors.append(power(of_species @ of_species.T, basis.zeta).sum())
        local_explained.append(torch.linalg.vector_norm(psi, dim=0).square_())
        local_weights.append(form.values @ psi.sub_(form.reference[:, None]).square_())
    weights = forms.total(totals, extra[0])
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
