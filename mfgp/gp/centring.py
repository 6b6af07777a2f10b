"""Energies against the mean environment of each element: what keeps e0 and the kernel apart.

Where environments are much alike, their features phi(x_i) are all near one vector c_z. The features of an energy are then
near sum_z n_z c_z, parallel to the columns n_z of e0, and P = I + D G D / noise^2 has an eigenvalue of s^2 N^2 / noise^2
beside which float64 keeps little of the rest: only the priors tell e0_z from c_z . w. So a fit has other parameters,

    e0'_z = e0_z + c_z . w,        E = [ sum_i phi(x_i) - sum_z n_z c_z ] . w + sum_z n_z e0'_z,

with c_z the mean of phi over the inducing environments of z, and e0's prior on e0', the energy of an atom in the mean
environment. Rows of energies, statistics, P and leave-one-out are in these parameters (`centred`); weights and covariances
of predictions are those of w and e0 (`uncentred`). Derivatives have no composition, and stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfgp.gp.inducing import InducingBasis
from mfgp.gp.statistics import Moments, Statistics


def mean_features(basis: InducingBasis) -> Tensor:
    """c: mean of phi over the inducing environments of each species, [S, M]; phi(z_m) is row m of L."""
    out = basis.factors[0].new_zeros(len(basis.species), basis.size)
    for index, columns in basis.blocks():
        out[index, columns] = basis.factors[index].mean(0)
    return out


def mean_kernels(basis: InducingBasis) -> Tensor:
    """The same before whitening, L c: mean of k(Z, z_m), [S, M]."""
    out = mean_features(basis)
    for index, columns in basis.blocks():
        out[index, columns] = basis.factors[index] @ out[index, columns]
    return out


def centred(design: Tensor, centre: Tensor) -> Tensor:
    """design [row, M + column] of which the first row is an energy's: in terms of w and e0', changed in place.

    centre [S, M]: mean_features, or mean_kernels where the features are not whitened; the first S columns count atoms.
    """
    n_species, m = centre.shape
    design[0, :m] -= design[0, m : m + n_species] @ centre
    return design


def uncentred(weights: Tensor, centre: Tensor) -> Tensor:
    """Weights [..., M'] of w and e0' as those of w and e0; others along the dimensions before the last."""
    n_species, m = centre.shape
    out = weights.clone()
    out[..., m : m + n_species] -= weights[..., :m] @ centre.T
    return out


def uncentred_covariance(covariance: Tensor, centre: Tensor) -> Tensor:
    """Covariances [..., M', M'] between weights of w and e0' as those of w and e0."""
    half = uncentred(covariance, centre)
    return uncentred(half.transpose(-1, -2), centre).transpose(-1, -2)


def recentred(weights: Tensor, centre: Tensor) -> Tensor:
    """Weights [..., M'] of w and e0 as those of w and e0'."""
    return uncentred(weights, -centre)


def centred_statistics(statistics: Statistics, centre: Tensor) -> Statistics:
    """Statistics of rows in terms of w and e0 as those in terms of w and e0': G' = B^T G B, b' = B^T b, A' = A B."""
    n_species, m = centre.shape
    out = {}
    for key, old in statistics.moments.items():
        gram, projection = old.gram.clone(), old.projection.clone()
        gram[:m] -= centre.T @ gram[m : m + n_species]
        gram[:, :m] -= gram[:, m : m + n_species] @ centre
        projection[:m] -= projection[m : m + n_species] @ centre
        out[key] = Moments(0.5 * (gram + gram.T), projection, old.square, old.count)
    return Statistics(statistics.size, out)


def centred_prior(prior: Tensor, phi: Tensor, centred_phi: Tensor, basis: InducingBasis) -> Tensor:
    """Prior variances [row, S] of functionals with features phi [row, M] as those with centred ones: the mean is of the
    inducing points' span, so that prior - |phi|^2 stays."""
    change = [(centred_phi[:, c] ** 2 - phi[:, c] ** 2).sum(1) for _, c in basis.blocks()]
    return prior + torch.stack(change, dim=1)
