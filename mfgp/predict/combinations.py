"""Linear combinations of total energies: differences, reaction and formation energies, averages over a trajectory.

    E_c = sum_i c_i E_i,        Var[E_c] = c^T K c

Predicted energies share their errors: those of two frames of a trajectory nearly cancel in a difference and do not average
out in a mean, so K is no diagonal matrix. With the row a_i of the energy of structure i, features and columns, the
covariance C of the weights, and for each central species z the part that the inducing points do not carry,

    K_ij = sqrt(p_i p_j) a_i^T C a_j + sqrt(q_i q_j) sum_z S[z] (prior_z,ij - Phi_z,i . Phi_z,j) + [i = j] b_i v_i

    prior_z,ij = sum over atoms k of i, l of j, both of species z, of (q_k . q_l)^zeta

p_i = g_i a, q_i = g_i r and b_i are calibration's factors of structure i, novelty and composition included, and v_i the
variance of its label's noise; 1, 1 and 0 without a calibration. Factors that differ leave correlations as they are, and K is
positive semi-definite as its parts are. Its diagonal holds the variances of `predict`. Both parts are made of steps between
like structures (energy_steps), which share a and r: g alone is left of the factors.
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
from mfgp.gp.observations import whiten_all
from mfgp.gp.rows import energy_rows
from mfgp.predict.batched import BATCH_ATOMS, batches, checked_structures
from mfgp.predict.energy_steps import Environments, Steps, followed, paths, steps
from mfgp.predict.predictor import Predictor
from mfgp.predict.residual import nystrom_residual

Array = NDArray[np.float64]
BLOCK_ATOMS = 3000  # whose kernel with as many others is held at a time


@dataclass(frozen=True)
class EnergyCombination:
    """sum_i c_i E_i of the total energies of n structures at one level.

    label_noise: that of a new calculation of each structure is in it. calibrated: scaled to left-out errors; otherwise the
    posterior's own, which has no label noise. paths, steps and noise: what the covariance is made of (energy_steps), and
    `std`, so that it loses nothing where energies are alike.
    """

    fidelity: str
    coefficients: Array  # [n]
    energies: Array  # [n] eV
    paths: Array  # [n, n] sqrt(g) U
    steps: Array  # [n, n] D, eV^2
    noise: Array  # [n] eV^2
    label_noise: bool
    calibrated: bool

    @property
    def value(self) -> float:
        """sum_i c_i E_i, eV."""
        return float(self.coefficients @ self.energies)

    @property
    def std(self) -> float:
        """Standard deviation of `value`, eV."""
        c = self.coefficients @ self.paths
        return math.sqrt(max(float(c @ self.steps @ c + self.coefficients**2 @ self.noise), 0.0))  # below 0: rounding

    @property
    def covariance(self) -> Array:
        """Of the errors of the energies, [n, n] eV^2: paths steps paths^T + diag(noise). Its diagonal is energy_std^2."""
        k = self.paths @ self.steps @ self.paths.T + np.diag(self.noise)
        k = 0.5 * (k + k.T)
        np.fill_diagonal(k, k.diagonal().clip(min=0.0))  # below 0: rounding
        return k

    def with_coefficients(self, coefficients: ArrayLike) -> EnergyCombination:
        """Another combination of the same energies, at no cost. Raises DataError as `energy_combination`."""
        return replace(self, coefficients=checked_coefficients(coefficients, len(self.energies)))


def energy_combination(
    predictor: Predictor, structures: Sequence[Atoms], coefficients: ArrayLike, label_noise: bool = True
) -> EnergyCombination:
    """See MultiFidelityGP.energy_combination.

    Memory: K, its parts, rows [n, M'] and the kernel of two blocks of BLOCK_ATOMS atoms (or two structures, where larger).
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
        energies = (phi @ predictor.weights[: phi.shape[1]]).cpu().numpy() + [o.functionals[0] for o in offsets]
        follows = followed(structures, phi)
        columns = steps(torch.stack([o.rows[0] for o in offsets]), follows)
        phi, residual = residual_steps(predictor, structures, follows)
        rows = torch.cat([phi, columns], dim=1)  # [n, M'] of the steps
        weights, u = rows @ predictor.covariance @ rows.T, paths(follows, phi)
        variances = (u @ weights @ u.T).diagonal().clamp(min=0.0)
        g, a, r, noise = calibration_factors(predictor, structures, variances)
        d = torch.outer(a.sqrt(), a.sqrt()) * weights + torch.outer(r.sqrt(), r.sqrt()) * residual
        step_covariance = (0.5 * (d + d.T)).cpu().numpy()
        shares = (g.sqrt()[:, None] * u).cpu().numpy()
        noises = (noise if label_noise else torch.zeros_like(noise)).cpu().numpy()
    calibrated = predictor.calibration is not None
    return EnergyCombination(predictor.fidelity, c, energies, shares, step_covariance, noises, label_noise, calibrated)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """g, a, r and the variances of the labels' noise (eV^2), [n] each; weights [n] eV^2: a_i^T C a_i."""
    calibration, level = predictor.calibration, predictor.level
    if calibration is None:
        one = torch.ones_like(weights)
        return one, one, one, torch.zeros_like(weights)
    out = []
    for atoms, variance in zip(structures, weights.tolist(), strict=True):
        scale = calibration.energy_scale(level, atoms.numbers)
        g = calibration.energy_novelty_factor(level, variance, len(atoms))
        noise = calibration.noise_variances(level, atoms.numbers, predictor.label_noise, size=1)
        out.append((g, scale.weights, scale.residual, float(noise[0])))
    g, a, r, v = weights.new_tensor(out).T
    return g, a, r, v


def residual_steps(predictor: Predictor, structures: Sequence[Atoms], follows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Phi of the steps [n, M], and sum_z S[z] (prior_z - Phi_z Phi_z^T) [n, n] eV^2; its diagonal at least zero."""
    basis, n, variances = predictor.model.basis, len(structures), predictor.variances
    phi, prior = variances.new_empty(n, basis.size), variances.new_zeros(n, n)  # prior: its lower triangle
    blocks = [slice(places.start, places.stop) for places in batches(structures, BLOCK_ATOMS)]
    for i, own in enumerate(blocks):
        taken = Steps.of(predictor, structures, own, follows)
        for index, columns in basis.blocks():
            phi[own, columns] = taken.kernel(basis.points[index], index, basis.zeta)
        for other in blocks[: i + 1]:
            second = taken.to if other is own else Environments.of(predictor, structures[other])
            for index, _ in basis.blocks():
                prior[own, other] += variances[index] * taken.prior(second, index, basis.zeta)
    phi = whiten_all(basis, phi)
    prior = steps(prior.T, follows).T.tril()  # of a step and a structure before it -> of two steps
    prior = prior + prior.tril(-1).T
    explained = (phi * variances[basis.species_index()]) @ phi.T
    residual = prior - explained
    residual.diagonal().copy_(nystrom_residual(prior.diagonal(), explained.diagonal()))
    return phi, residual
