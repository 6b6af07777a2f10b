"""Radial part of the density expansion, in closed form.

The density of the neighbours, rho(r) = sum_j w(r_j) exp(-eta |r - r_j|^2) with eta = 1/(2 sigma^2), is expanded in
g_nl(r) Y_lm with Gaussian-type orbitals, orthonormalised after Loewdin,

    g_nl(r) = sum_n' beta^l_nn' r^l exp(-alpha_ln' r^2),   beta^l = S_l^(-1/2),
    S_l,nn' = Gamma(l + 3/2) / (2 (alpha_ln + alpha_ln')^(l + 3/2)),   alpha_ln = -ln(1e-3 / a_n^l) / a_n^2,

a_n evenly spaced from 1 Å to r_cut (Himanen et al., Comput. Phys. Commun. 247, 106949 (2020): DScribe). From

    int exp(-eta |r - R|^2) r^l exp(-alpha r^2) Y_lm(r) d3r
        = (pi / (alpha + eta))^(3/2) (eta / (alpha + eta))^l exp(-gamma R^2) R^l Y_lm(R),
    gamma = alpha eta / (alpha + eta)

the coefficients are c_nlm = sum_j w(r_j) G_nl(r_j) S_lm(r_j) with solid harmonics S_lm = r^l Y_lm and

    G_nl(r) = sum_n' beta^l_nn' (pi / (alpha + eta))^(3/2) (eta / (alpha + eta))^l exp(-gamma_ln' r^2),

smooth at r = 0, so that the centre belongs to its own density. The weight w = f_c u is a cutoff times a scaling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.special import gamma as gamma_function
from torch import Tensor

from descriptors.config import RadialScaling, SOAPConfig

ORBITAL_DECAY = 1e-3  # value of the n-th primitive orbital at its radius a_n
ORTHONORMALITY = 1e-6  # largest accepted deviation of the basis's overlap from 1


@dataclass(frozen=True)
class RadialBasis:
    """Constants of G_nl(r) = sum_n' matrix[l, n', n] exp(-gamma[l, n'] r^2), in float64."""

    gamma: Tensor  # [l_max+1, n'] 1/Å^2
    matrix: Tensor  # [l_max+1, n', n]


def gto_orbitals(r_cut: float, n_max: int, l_max: int) -> tuple[np.ndarray, np.ndarray]:
    """Exponents alpha [l, n] (1/Å^2) and Loewdin matrices beta [l, n, n'] of the GTO basis.

    Raises ValueError where n_max orbitals within r_cut are too similar to be orthonormalised in double precision.
    """
    radii = np.linspace(1.0, r_cut, n_max)  # [n] Å
    alphas, betas = np.empty((l_max + 1, n_max)), np.empty((l_max + 1, n_max, n_max))
    for l in range(l_max + 1):  # noqa: E741
        alphas[l] = -np.log(ORBITAL_DECAY / radii**l) / radii**2
        overlap = 0.5 * gamma_function(l + 1.5) * (alphas[l][:, None] + alphas[l]) ** (-l - 1.5)
        beta = _inverse_square_root(overlap)
        error = np.abs(beta @ overlap @ beta - np.eye(n_max)).max()
        if not error < ORTHONORMALITY:
            raise ValueError(
                f"the {n_max} radial functions of degree {l} within r_cut = {r_cut} Å cannot be orthonormalised in "
                f"double precision (error {error:.1e}); lower n_max or l_max."
            )
        betas[l] = beta
    return alphas, betas


def _inverse_square_root(overlap: np.ndarray) -> np.ndarray:
    """S^(-1/2). The inverse first: eigenvalues of S itself lose what its grading leaves to inversion."""
    with np.errstate(all="ignore"):
        try:
            inverse = np.linalg.inv(overlap)
            root = scipy.linalg.sqrtm(inverse)
        except np.linalg.LinAlgError:
            return np.full_like(overlap, np.nan)
    return np.full_like(overlap, np.nan) if np.iscomplexobj(root) else 0.5 * (root + root.T)


def radial_basis(config: SOAPConfig) -> RadialBasis:
    """The constants of G_nl for these settings. Raises ValueError as `gto_orbitals`."""
    alphas, betas = gto_orbitals(config.r_cut, config.n_max, config.l_max)
    eta = 0.5 / config.sigma**2  # 1/Å^2
    degree = np.arange(config.l_max + 1)[:, None]
    prefactor = (np.pi / (alphas + eta)) ** 1.5 * (eta / (alphas + eta)) ** degree  # [l, n']
    matrix = prefactor[:, :, None] * betas.transpose(0, 2, 1)  # [l, n', n]
    return RadialBasis(torch.from_numpy(alphas * eta / (alphas + eta)), torch.from_numpy(matrix))


def radial_functions(basis: RadialBasis, r: Tensor) -> Tensor:
    """G_nl(r) without the weight. r [pair] Å -> [l_max+1, pair, n] of r's dtype.

    Summed in float64 whatever the dtype: the Loewdin matrices cancel up to four digits.
    """
    exponentials, _, matrix = _primitives(basis, r)
    return (exponentials @ matrix).to(r.dtype)


def radial_functions_with_slopes(basis: RadialBasis, r: Tensor) -> tuple[Tensor, Tensor]:
    """G_nl(r) without the weight and dG_nl/dr (1/Å). r [pair] Å -> two of [l_max+1, pair, n] of r's dtype."""
    exponentials, gamma, matrix = _primitives(basis, r)
    both = exponentials @ torch.cat([matrix, -2 * gamma[:, :, None] * matrix], dim=2)  # [l, pair, 2n]
    values, slope_over_r = both.to(r.dtype).chunk(2, dim=2)
    return values, slope_over_r * r[None, :, None]


def radial_functions_with_curvatures(basis: RadialBasis, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G_nl(r) without the weight, dG_nl/dr (1/Å) and d2G_nl/dr2 (1/Å^2). r [pair] Å -> three of [l_max+1, pair, n]."""
    exponentials, gamma, matrix = _primitives(basis, r)
    steep = gamma[:, :, None] * matrix
    square = (r.double() ** 2)[None, :, None]
    slopes, curvatures = -2 * (exponentials @ steep), 4 * square * (exponentials @ (gamma[:, :, None] * steep))
    given = exponentials @ matrix, slopes * r.double()[None, :, None], slopes + curvatures
    return tuple(x.to(r.dtype) for x in given)  # type: ignore[return-value]


def _primitives(basis: RadialBasis, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(-gamma r^2) [l, pair, n'], gamma [l, n'] 1/Å^2 and the matrix [l, n', n], in float64 on r's device."""
    gamma, matrix = basis.gamma.to(r.device), basis.matrix.to(r.device)
    return torch.exp(-gamma[:, None, :] * r.double().square()[None, :, None]), gamma, matrix


def smooth_cutoff(r: Tensor, r_cut: float, width: float) -> tuple[Tensor, Tensor]:
    """f_c(r) and df_c/dr (1/Å): 1 below r_cut - width, 0 above r_cut, between them with two continuous derivatives.

    f_c = 1 - t^3 (10 - 15 t + 6 t^2), t = (r - r_cut + width) / width (the quintic smoothstep). r [pair] Å; width > 0.
    """
    t = ((r - (r_cut - width)) / width).clamp(0, 1)
    return 1 - t**3 * (10 - 15 * t + 6 * t * t), -30 * (t * (1 - t)) ** 2 / width


def radial_scaling(r: Tensor, scaling: RadialScaling) -> tuple[Tensor, Tensor]:
    """u(r) = 1 / (1 + (r/r0)^m) and du/dr (1/Å). r [pair] Å. At r = 0 the slope is set to 0 (it has no direction)."""
    x = r / scaling.r0
    u = 1 / (1 + x**scaling.m)
    powers = torch.where(x > 0, x, torch.ones_like(x)) ** (scaling.m - 1) * (x > 0)  # x^(m-1)
    return u, -(scaling.m / scaling.r0) * powers * u * u


def neighbor_weight(r: Tensor, config: SOAPConfig) -> tuple[Tensor, Tensor]:
    """w(r) = f_c(r) u(r) and dw/dr (1/Å), each [pair]. r [pair] Å."""
    w, slope = torch.ones_like(r), torch.zeros_like(r)
    if config.cutoff_width > 0:
        w, slope = smooth_cutoff(r, config.r_cut, config.cutoff_width)
    if config.radial_scaling is not None:
        u, du = radial_scaling(r, config.radial_scaling)
        w, slope = w * u, slope * u + w * du
    return w, slope
