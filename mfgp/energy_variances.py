"""Variances of total and local energies from descriptors, without the rows of forces.

    Var[a] = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2)

for a = the sum of the features phi(x_i) with the composition's columns: the total energy. With a species' block
C_ss = V diag(lambda) V^T

    psi = V^T L^-1 sum_i k(Z, x_i):     |Phi_z|^2 = |psi|^2,      a^T C a = sum_k lambda_k psi_k^2 + the rest

so C is turned by V: its blocks on the diagonal become lambda, and of the others those above it are enough. Local energies
are in local_variances.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfgp.inducing import InducingBasis
from mfgp.kernels import power
from mfgp.local_variances import LocalForm, right_solve
from mfgp.means import chosen

# A pivot of L, whose first is 1. With its inverse energy_std is off by 1e-4 of itself, energies_std by 1e-8 (LMFP, one-off).
SMALL_PIVOT = 5e-4


@dataclass(frozen=True)
class SpeciesForm:
    """What turns k(Z, x) of a species into the parts of variances.

    Where a pivot of L is below `SMALL_PIVOT` its inverse would cost too many digits: then phi comes from L itself.
    """

    factor: Tensor | None  # [M_s, M_s] L where its inverse is not in the transform
    transform: Tensor  # [M_s, M_s] V^T L^-1, or V^T
    values: Tensor  # [M_s] lambda, eV^2
    beside: Tensor  # [M_s, column of C after them], turned
    local: LocalForm

    def of_features(self, k: Tensor) -> Tensor:
        """What `transform` and `local` take: k(x, Z) [atom, M_s] itself, or phi."""
        if self.factor is None:
            return k
        return torch.linalg.solve_triangular(self.factor.T, k, upper=True, left=False)


@dataclass(frozen=True)
class EnergyForms:
    """The quadratic forms of energies at one level."""

    species: tuple[SpeciesForm, ...]
    corner: Tensor  # [column, column] of C: the columns beside the features

    @staticmethod
    def of(basis: InducingBasis, covariance: Tensor, weights: float, residual: Sequence[float]) -> EnergyForms:
        """From C [M', M'] eV^2: the M features, then the columns beside them; a, r S of each species (local_variances)."""
        turned, forms = covariance.clone(), []
        blocks = {index: (own, *torch.linalg.eigh(covariance[own, own])) for index, own in basis.blocks()}
        for own, _, vectors in blocks.values():
            turned[:, own] = turned[:, own] @ vectors
            turned[own] = vectors.T @ turned[own]
        for index, (own, values, vectors) in blocks.items():
            factor, transform = basis.factors[index], vectors.T.contiguous()
            mean = factor.mean(0)  # phi(z_m) is row m of L
            local = LocalForm.of(mean, covariance[own, own], weights, residual[index])
            beside = turned[own, own.stop :].clone()
            if float(factor.diagonal().min()) >= SMALL_PIVOT:
                transform, local, kept = right_solve(factor, transform), local.of_kernel(factor), None
            else:
                kept = factor
            forms.append(SpeciesForm(kept, transform, values.clamp(min=0.0), beside, local))
        return EnergyForms(tuple(forms), turned[basis.size :, basis.size :].clone())

    def total(self, psi: list[Tensor], extra: Tensor) -> Tensor:
        """a^T C a of the total energy, [1], from psi of each species and its columns [column]."""
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
    """The parts of the variance of the total energy, and the variance of each local energy; S: species of the basis."""

    weights: Tensor  # [1] eV^2 of the total energy: a^T C a
    prior: Tensor  # [1, S] at unit amplitude
    explained: Tensor  # [1, S] |Phi|^2
    local: Tensor  # [N] eV^2, both parts with the factors of the forms


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
    totals, priors, local = [], [], []
    for index, columns in basis.blocks():
        own, form = members[index], forms.species[index]
        if len(own) == 0:
            totals.append(q.new_zeros(columns.stop - columns.start))
            priors.append(q.new_zeros(()))
            local.append(q.new_zeros(0))
            continue
        of_species = chosen(q, own)
        features = form.of_features(power(products[index], basis.zeta))  # [atom, M_s]
        totals.append(form.transform @ features.sum(0))
        priors.append(power(of_species @ of_species.T, basis.zeta).sum())
        local.append(form.local.variances(features))
    weights = forms.total(totals, extra[0])
    explained = torch.stack([t.square().sum() for t in totals])[None]
    return EnergyVariances(weights, torch.stack(priors)[None], explained, in_order(local, members, len(q)))


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
