"""Means of energies, forces and virials by the reverse pass of the descriptor.

    e_i = sum_m alpha_m (Z_m . q_i)^zeta = g_i . q_i / zeta,    g_i = de_i/dq_i = zeta sum_m alpha_m (Z_m . q_i)^(zeta-1) Z_m

with dual weights alpha = L^-T w; then g goes back through SOAP to the vectors of the pairs:

    F_a = sum_{i a} dE/dr_ia (as centre) - (as neighbour),      virial = - dE/d(strain) = - sum_ij dE/dr_ij r_ij

so that a step of dynamics costs two products with Z, and no rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from descriptors import SOAP, ForwardPass, SlotPairs
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import power


@dataclass(frozen=True)
class Mean:
    """The Gaussian process's part of a prediction."""

    energies: Tensor  # [N] eV
    forces: Tensor  # [N, 3] eV/Å
    virial: Tensor  # [6] eV, xx yy zz yz xz xy

    def stacked(self) -> Tensor:
        """Energy, forces and virial, [1+3N+6]."""
        return torch.cat([self.energies.sum()[None], self.forces.flatten(), self.virial])


def dual_weights(basis: InducingBasis, weights: Tensor) -> list[Tensor]:
    """alpha = L^-T w of each species, [M_s]."""
    return [
        torch.linalg.solve_triangular(basis.factors[i].T, weights[columns, None], upper=True).squeeze(1)
        for i, columns in basis.blocks()
    ]


def members_of(basis: InducingBasis, pairs: SlotPairs, soap: SOAP) -> tuple[Tensor, ...]:
    """The atoms of each species of the basis."""
    return tuple(pairs.members[soap.species.index(z)] for z in basis.species)


def inner_products(basis: InducingBasis, q: Tensor, members: tuple[Tensor, ...]) -> list[Tensor]:
    """Z_m . q_i of each species, [atom of it, M_s], from descriptors q [N, D]."""
    return [inner_product(points, q, own) for points, own in zip(basis.points, members, strict=True)]


def inner_product(points: Tensor, q: Tensor, own: Tensor) -> Tensor:
    """Z_m . q_i [atom, M_s] of the atoms `own` of q: the points are read along their rows, once."""
    return chosen(q, own) @ points.T


def chosen(q: Tensor, own: Tensor) -> Tensor:
    """The rows `own` (ascending) of q."""
    return q if len(own) == len(q) else q.index_select(0, own)


def local_gradient(
    basis: InducingBasis,
    alpha: list[Tensor],
    q: Tensor,
    members: tuple[Tensor, ...],
    known: list[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """g [N, D] from descriptors q [N, D], and the inner products on the way, which may be known already.

    One species after the other, because its inducing points are then still in the cache when they are read again.
    members: the atoms of each species of the basis.
    """
    out, products = torch.empty_like(q), []
    for index, (points, a, own) in enumerate(zip(basis.points, alpha, members, strict=True)):
        product = inner_product(points, q, own) if known is None else known[index]
        products.append(product)
        slope = power(product, basis.zeta - 1).mul_(basis.zeta * a)  # [atom, M_s]
        if len(own) == len(q):
            out = slope @ points
        else:
            out.index_copy_(0, own, slope @ points)
    return out, products


def mean(zeta: int, gradient: Tensor, pairs: SlotPairs, forward: ForwardPass) -> Mean:
    """The mean of the structure of `pairs` from its forward pass and g; see `local_gradient`."""
    energies = (gradient * forward.features).sum(1).div_(zeta)
    slopes = forward.pullback(gradient)  # [slot, 3] dE/d r_ij
    tensor = slopes.T @ pairs.slots.vectors  # [3, 3] dE/d(strain)
    return Mean(energies, pairs.forces(slopes), voigt(tensor + tensor.T).mul_(-0.5))


def voigt(tensor: Tensor) -> Tensor:
    """Symmetric [3, 3] -> [6]: xx yy zz yz xz xy."""
    return tensor.flatten()[[0, 4, 8, 5, 2, 1]]
