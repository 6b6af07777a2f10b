"""Variances of local energies as one signed sum of squares.

A local energy is compared with the mean over the inducing environments of its species, mu = mean_m phi(z_m) (predictor), and
each part of its variance has a factor (calibration; 1 without one):

    Var = a (phi - mu)^T C (phi - mu) + r S (1 - |phi|^2),      phi = L^-1 k(Z, x),    D = r S I - a C
        = r S + a mu^T C mu - 2 a mu^T C phi - phi^T D phi,     D = G^T diag(s) G,     s_j = +-1
        = r S + a mu^T C mu - 2 a mu^T C L^-1 k - sum_j s_j (R k)_j^2,                 R = G L^-1

G is lower triangular in blocks, and so is R: half the multiplications of a full transform. D has both signs where the
calibration trusts the residual less than the weights, so that there is no Cholesky factor. It is eliminated a block at
a time from the bottom, each block through its eigenvalues; a block ends where the smallest of them is farthest from zero.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mfgp.predict.residual import RESIDUAL_TOLERANCE

SIZES = (120, 144, 168)  # of blocks that are tried, multiples of 24 (MKL's kernels); a smaller matrix is one block
ROUNDING = 1e-15  # of an eigenvalue of a block, relative to the scale of its diagonal


@dataclass(frozen=True)
class LocalForm:
    """Var of the module docstring for one species, as a function of x: phi, or k(x, Z)."""

    rows: tuple[Tensor, ...]  # [j, m] each: blocks of G, or of R, up to their last column
    signs: tuple[Tensor, ...]  # [j] each
    linear: Tensor  # [M_s] eV^2
    constant: float  # eV^2

    @staticmethod
    def of(mean: Tensor, covariance: Tensor, weights: float, residual: float) -> LocalForm:
        """Of phi, from mu [M_s], C [M_s, M_s] eV^2, a, and r S eV^2."""
        slope = weights * (covariance @ mean)
        identity = residual * torch.eye(len(mean)).to(mean)
        rows, signs = signed_root(identity - weights * covariance, identity.diagonal())
        return LocalForm(rows, signs, -2.0 * slope, residual + float(mean @ slope))

    def of_kernel(self, factor: Tensor) -> LocalForm:
        """The same of k(x, Z), with L [M_s, M_s]."""
        rows = tuple(right_solve(factor[: g.shape[1], : g.shape[1]], g) for g in self.rows)
        return replace(self, rows=rows, linear=right_solve(factor, self.linear[None])[0])

    def variances(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[atom] eV^2 from x [atom, M_s], never negative, and the sums over the atoms of the products that they come from.

        Warns where a variance was negative, by more than rounding explains.
        """
        out, sums = x @ self.linear + self.constant, []
        for rows, signs in zip(self.rows, self.signs, strict=True):
            y = x[:, : rows.shape[1]] @ rows.T
            sums.append(y.sum(0))
            out.sub_(y.square_() @ signs)
        worst = float(out.min()) if len(out) else 0.0
        if worst < -RESIDUAL_TOLERANCE * self.constant:
            warnings.warn(f"a local energy has a negative variance ({worst:.1e} eV^2), taken as zero", stacklevel=2)
        return out.clamp_(min=0.0), sums

    def of_sum(self, sums: list[Tensor]) -> Tensor:
        """Phi^T D Phi of the sum Phi of the features of all atoms, eV^2."""
        return torch.cat(sums).square_() @ torch.cat(self.signs)


def signed_root(matrix: Tensor, scale: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """G and s of a symmetric matrix = G^T diag(s) G [m, m]: blocks of rows of G up to their last column, from the bottom.

    scale [m]: of the entries on the diagonal, what their rounding is relative to; columns of different units are brought
    to one by it, so that none is lost beside another.
    """
    unit = torch.where(scale > 0, scale, 1.0).sqrt()
    left, end = matrix / unit / unit[:, None], len(matrix)
    rows, signs = [], []
    while end:
        first, values, vectors = _last_block(left[:end, :end])
        values = torch.where(values.abs() < ROUNDING, ROUNDING, values)  # a direction that no label touches has D = 0
        root, sign = values.abs().sqrt()[:, None], values.sign()
        beside = (vectors.T @ left[first:end, :first]) / (sign[:, None] * root)  # [j, first]
        rows.append(torch.cat([beside, root * vectors.T], dim=1) * unit[:end])
        signs.append(sign)
        left[:first, :first] -= beside.T @ (sign[:, None] * beside)
        end = first
    return tuple(rows), tuple(signs)


def _last_block(matrix: Tensor) -> tuple[int, Tensor, Tensor]:
    """Where the last block on the diagonal begins, its eigenvalues and eigenvectors."""
    m = len(matrix)
    sizes = SIZES if m > SIZES[-1] else (m,)
    found = [(m - n, *torch.linalg.eigh(matrix[m - n :, m - n :])) for n in sizes]
    return max(found, key=lambda block: float(block[1].abs().min() / block[1].abs().max()))


def right_solve(factor: Tensor, rows: Tensor) -> Tensor:
    """rows L^-1, rows [j, m]."""
    return torch.linalg.solve_triangular(factor, rows, upper=False, left=False).contiguous()
