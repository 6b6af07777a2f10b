"""Variances of total and local energies from descriptors, without the rows of forces.

    Var[a] = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2)

for the row a of the total energy, the sum of the features phi(x_i) with the composition's columns. Covariances have roots
that are lower triangular in blocks (local_variances), so that half of the multiplications, and of the memory, are enough:
with C = G^T diag(s) G, and D_z = r S[z] I - c C_zz of the local energies (factors c and r of the calibration), whose
products with each atom are summed up,

    a^T C a = sum_j s_j (G a)_j^2,      |Phi_z|^2 = (Phi_z^T D_z Phi_z + c Phi_z^T C_zz Phi_z) / (r S[z])

and Phi_z^T C_zz Phi_z comes from what the columns of z add to G a. L^-1 is multiplied into the roots: G a is a product
with the sums of k(Z, x_i).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import energy_variance, power
from mfgp.predict.local_variances import LocalForm, right_solve, signed_root
from mfgp.predict.means import chosen

# A pivot of L, whose first is 1. With its inverse energy_std is off by 1e-4 of itself, energies_std by 1e-8 (LMFP, one-off).
SMALL_PIVOT = 5e-4


@dataclass(frozen=True)
class Panel:
    """Columns of G, from the first row that is not zero: consecutive rows, each up to its block's last column."""

    first: int
    rows: tuple[Tensor, ...]  # [j, column] each

    @staticmethod
    def of(root: Sequence[Tensor], start: int, stop: int) -> Panel:
        """The columns [start, stop) of the blocks of G, from the top."""
        blocks = [rows for rows in root if rows.shape[1] > start]
        parts = [rows[:, start:stop].contiguous() for rows in blocks]
        whole = [part for part in parts if part.shape[1] == stop - start]
        cut = parts[: len(parts) - len(whole)]
        return Panel(sum(map(len, root)) - sum(map(len, blocks)), (*cut, torch.cat(whole)))

    def of_kernel(self, factor: Tensor) -> Panel:
        """The same times L^-1, from L [M_s, M_s]."""
        rows = tuple(right_solve(factor[: g.shape[1], : g.shape[1]], g) for g in self.rows)
        return Panel(self.first, rows)

    def times(self, x: Tensor) -> Tensor:
        """Its product with x [column], from row `first` on."""
        return torch.cat([rows @ x[: rows.shape[1]] for rows in self.rows])


@dataclass(frozen=True)
class SpeciesForm:
    """What turns k(Z, x) of a species into the parts of variances.

    Where a pivot of L is below `SMALL_PIVOT` its inverse would cost too many digits: then phi comes from L itself.
    """

    factor: Tensor | None  # [M_s, M_s] L where its inverse is not in panel and local form
    panel: Panel
    local: LocalForm
    weights: float  # c
    residual: float  # r S, eV^2

    def of_features(self, k: Tensor) -> Tensor:
        """What `panel` and `local` take: k(x, Z) [atom, M_s] itself, or phi."""
        if self.factor is None:
            return k
        return torch.linalg.solve_triangular(self.factor.T, k, upper=True, left=False)

    def explained(self, difference: Tensor, variance: Tensor) -> Tensor:
        """|Phi|^2 from Phi^T D Phi and Phi^T C Phi, eV^2."""
        return (difference + self.weights * variance) / self.residual


@dataclass(frozen=True)
class EnergyForms:
    """The quadratic forms of energies at one level."""

    species: tuple[SpeciesForm, ...]
    beside: Panel  # the columns beside the features
    signs: Tensor  # [M']

    @staticmethod
    def of(basis: InducingBasis, covariance: Tensor, weights: float, residual: Sequence[float]) -> EnergyForms:
        """From C [M', M'] eV^2: the M features, then the columns beside them; c, and r S of each species."""
        rows, signs = (parts[::-1] for parts in signed_root(covariance, covariance.diagonal()))
        forms = []
        for index, own in basis.blocks():
            factor, panel = basis.factors[index], Panel.of(rows, own.start, own.stop)
            mean = factor.mean(0)  # phi(z_m) is row m of L
            local = LocalForm.of(mean, covariance[own, own], weights, residual[index])
            if float(factor.diagonal().min()) >= SMALL_PIVOT:
                panel, local, kept = panel.of_kernel(factor), local.of_kernel(factor), None
            else:
                kept = factor
            forms.append(SpeciesForm(kept, panel, local, weights, residual[index]))
        return EnergyForms(tuple(forms), Panel.of(rows, basis.size, len(covariance)), torch.cat(signs))

    def squares(self, panel: Panel, products: Tensor) -> Tensor:
        """sum_j s_j y_j^2 of products y with a panel."""
        return products.square() @ self.signs[panel.first :]


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
    explained, priors, local = [], [], []
    total = torch.zeros_like(forms.signs)  # G a
    total[forms.beside.first :] = forms.beside.times(extra[0])
    for index, _ in basis.blocks():
        own, form = members[index], forms.species[index]
        if len(own) == 0:
            explained.append(q.new_zeros(()))
            priors.append(q.new_zeros(()))
            local.append(q.new_zeros(0))
            continue
        of_species = chosen(q, own)
        features = form.of_features(power(products[index], basis.zeta))  # [atom, M_s]
        variances, sums = form.local.variances(features)
        added = form.panel.times(features.sum(0))
        total[form.panel.first :] += added
        explained.append(form.explained(form.local.of_sum(sums), forms.squares(form.panel, added)))
        priors.append(energy_variance(of_species, basis.zeta))
        local.append(variances)
    weights = (total.square() @ forms.signs).clamp_(min=0.0)[None]
    return EnergyVariances(
        weights, torch.stack(priors)[None], torch.stack(explained)[None], in_order(local, members, len(q))
    )


def local_variances(
    basis: InducingBasis, forms: EnergyForms, members: tuple[Tensor, ...], products: list[Tensor], n: int
) -> Tensor:
    """Those of the local energies alone, [n] eV^2; see `energy_variances`."""
    parts = [
        form.local.variances(form.of_features(power(product, basis.zeta)))[0]
        for form, product in zip(forms.species, products, strict=True)
    ]
    return in_order(parts, members, n)


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
