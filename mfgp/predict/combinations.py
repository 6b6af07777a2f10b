"""Linear combinations of total energies: differences, reaction and formation energies, averages over a trajectory.

    E_c = sum_i c_i E_i,        Var[E_c] = c^T K c

Predicted energies share their errors: those of two frames of a trajectory nearly cancel in a difference and do not average
out in a mean, so K is no diagonal matrix. With the row a_i of the energy of structure i, features and columns, the
covariance C of the weights, and for each central species z the part that the inducing points do not carry,

    K_ij = sqrt(p_i p_j) a_i^T C a_j + sqrt(q_i q_j) sum_z S[z] (prior_z,ij - Phi_z,i . Phi_z,j) + [i = j] b_i v_i

    prior_z,ij = sum over atoms k of i, l of j, both of species z, of (q_k . q_l)^zeta

p_i = g_i a, q_i = g_i r and b_i are calibration's factors of structure i, novelty and composition included, and v_i the
variance of its label's noise; 1, 1 and 0 without a calibration. Factors that differ leave correlations as they are, and K is
positive semi-definite as its parts are. Its diagonal holds the variances of `predict`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mfgp.errors import DataError
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import power
from mfgp.gp.observations import whiten_all
from mfgp.gp.rows import energy_rows
from mfgp.predict.batched import BATCH_ATOMS, batches, checked_structures
from mfgp.predict.predictor import Predictor
from mfgp.predict.residual import nystrom_residual

Array = NDArray[np.float64]
BLOCK_ATOMS = 3000  # whose kernel with as many others is held at a time


@dataclass(frozen=True)
class EnergyCombination:
    """sum_i c_i E_i of the total energies of n structures at one level.

    covariance: of the errors of the energies; its diagonal is energy_std^2. label_noise: that of a new calculation of each
    structure is in it. calibrated: scaled to left-out errors; otherwise the posterior's own, which has no label noise.
    """

    fidelity: str
    coefficients: Array  # [n]
    energies: Array  # [n] eV
    covariance: Array  # [n, n] eV^2
    label_noise: bool
    calibrated: bool

    @property
    def value(self) -> float:
        """sum_i c_i E_i, eV."""
        return float(self.coefficients @ self.energies)

    @property
    def std(self) -> float:
        """Standard deviation of `value`, eV."""
        return math.sqrt(max(float(self.coefficients @ self.covariance @ self.coefficients), 0.0))  # below 0: rounding

    def with_coefficients(self, coefficients: ArrayLike) -> EnergyCombination:
        """Another combination of the same energies, at no cost. Raises DataError as `energy_combination`."""
        return replace(self, coefficients=checked_coefficients(coefficients, len(self.energies)))


def energy_combination(
    predictor: Predictor, structures: Sequence[Atoms], coefficients: ArrayLike, label_noise: bool = True
) -> EnergyCombination:
    """See MultiFidelityGP.energy_combination.

    Memory: K, the rows [n, M'] and the kernel of two blocks of BLOCK_ATOMS atoms (or of two structures, where larger).
    """
    checked_structures(predictor, structures, "energy_combination takes a list of ase.Atoms")
    if not len(structures):
        raise DataError("energy_combination: no structures; give one or more, and a coefficient for each.")
    c = checked_coefficients(coefficients, len(structures))
    for atoms in structures:
        predictor.check(atoms)
    with torch.inference_mode():
        phi = energy_features(predictor, structures)
        offsets = [predictor.offsets(atoms) for atoms in structures]
        rows = torch.cat([phi, torch.stack([o.rows[0] for o in offsets])], dim=1)  # [n, M']
        energies = (phi @ predictor.weights[: phi.shape[1]]).cpu().numpy() + [o.functionals[0] for o in offsets]
        weights = rows @ predictor.covariance @ rows.T
        weights.diagonal().clamp_(min=0.0)
        residual = residual_covariance(predictor, structures, phi)
        p, q, noise = calibration_factors(predictor, structures, weights.diagonal())
        k = torch.outer(p.sqrt(), p.sqrt()) * weights + torch.outer(q.sqrt(), q.sqrt()) * residual
        if label_noise:
            k.diagonal().add_(noise)
        covariance = (0.5 * (k + k.T)).cpu().numpy()
    return EnergyCombination(
        predictor.fidelity, c, energies, covariance, label_noise, predictor.calibration is not None
    )


def checked_coefficients(coefficients: ArrayLike, n: int) -> Array:
    """Those of n structures as numbers [n]. DataError for another number of them, or for what is not finite."""
    try:
        c = np.array(coefficients, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"coefficients must be numbers, one for each structure, not {coefficients!r}.") from None
    if c.shape != (n,):
        found = str(len(c)) if c.ndim == 1 else f"an array of shape {c.shape}"
        raise DataError(f"coefficients: {found} for {n} structures; give one number for each, in their order.")
    bad = np.flatnonzero(~np.isfinite(c))
    if len(bad):
        raise DataError(f"coefficient {bad[0]} is {c[bad[0]]}; give finite numbers.")
    return c


def energy_features(predictor: Predictor, structures: Sequence[Atoms]) -> Tensor:
    """Phi of the energies, [n, M]."""
    model, parts = predictor.model, []
    for places in batches(structures, BATCH_ATOMS):
        nb = model.soap.neighborhoods([structures[i] for i in places], device=predictor.weights.device)
        parts.append(energy_rows(model.basis, model.soap, nb))
    return whiten_all(model.basis, torch.cat(parts))


def calibration_factors(
    predictor: Predictor, structures: Sequence[Atoms], weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """p, q and the variances of the labels' noise (eV^2), [n] each; weights [n] eV^2: a_i^T C a_i."""
    calibration, level = predictor.calibration, predictor.level
    if calibration is None:
        return torch.ones_like(weights), torch.ones_like(weights), torch.zeros_like(weights)
    out = []
    for atoms, variance in zip(structures, weights.tolist(), strict=True):
        scale = calibration.energy_scale(level, atoms.numbers)
        g = calibration.energy_novelty_factor(level, variance, len(atoms))
        noise = calibration.noise_variances(level, atoms.numbers, predictor.label_noise, size=1)
        out.append((g * scale.weights, g * scale.residual, float(noise[0])))
    p, q, v = weights.new_tensor(out).T
    return p, q, v


@dataclass(frozen=True)
class Environments:
    """Of a block of n structures, by species of the basis."""

    n: int
    q: tuple[Tensor, ...]  # [atom, D] of each species
    structure: tuple[Tensor, ...]  # [atom] in the block, of the same


def environments(predictor: Predictor, structures: Sequence[Atoms]) -> Environments:
    """Descriptors of a block, expanded a batch at a time."""
    model, found = predictor.model, []
    for places in batches(structures, BATCH_ATOMS):
        nb = model.soap.neighborhoods([structures[i] for i in places], device=predictor.weights.device)
        found.append((model.soap.values(nb), nb.numbers, nb.structure + places.start))
    q, numbers, structure = (torch.cat(parts) for parts in zip(*found, strict=True))
    members = [torch.nonzero(numbers == z).squeeze(1) for z in model.basis.species]
    return Environments(len(structures), tuple(q[m] for m in members), tuple(structure[m] for m in members))


def kernel_sums(a: Environments, b: Environments, index: int, zeta: int) -> Tensor:
    """prior_z,ij of one species, [a.n, b.n] at unit amplitude."""
    k = power(a.q[index] @ b.q[index].T, zeta)  # [atom of a, atom of b]
    half = k.new_zeros(a.n, k.shape[1]).index_add_(0, a.structure[index], k)
    return k.new_zeros(a.n, b.n).index_add_(1, b.structure[index], half)


def residual_covariance(predictor: Predictor, structures: Sequence[Atoms], phi: Tensor) -> Tensor:
    """sum_z S[z] (prior_z - Phi_z Phi_z^T), [n, n] eV^2; its diagonal at least zero. phi [n, M]."""
    basis, out = predictor.model.basis, phi.new_zeros(len(phi), len(phi))
    blocks = [slice(places.start, places.stop) for places in batches(structures, BLOCK_ATOMS)]
    for i, own in enumerate(blocks):
        first = environments(predictor, structures[own])
        for other in blocks[i:]:
            second = first if other is own else environments(predictor, structures[other])
            part = _residual_block(basis, predictor.variances, (first, phi[own]), (second, phi[other]))
            out[own, other] = part
            out[other, own] = part.T
    return out


def _residual_block(
    basis: InducingBasis, variances: Tensor, a: tuple[Environments, Tensor], b: tuple[Environments, Tensor]
) -> Tensor:
    """That of two blocks, each with the features of its energies."""
    out = a[1].new_zeros(a[0].n, b[0].n)
    for index, columns in basis.blocks():
        prior, explained = kernel_sums(a[0], b[0], index, basis.zeta), a[1][:, columns] @ b[1][:, columns].T
        part = prior - explained
        if a[0] is b[0]:
            part.diagonal().copy_(nystrom_residual(prior.diagonal(), explained.diagonal()))
        out += variances[index] * part
    return out
