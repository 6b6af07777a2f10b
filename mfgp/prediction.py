"""Predictions at one level: means through the reverse pass of the descriptor, standard deviations through its rows.

Means:       e_i = k(q_i, Z) alpha_z + e0[z_i],   alpha = L^-T w;   dE/dq_i = zeta sum_m alpha_m (Z_m.q_i)^(zeta-1) Z_m,
             then back through SOAP to the pair vectors: an MD step costs two products with Z, no rows.
Deviations:  Var = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2), never negative.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_linear_operator
from numpy.typing import NDArray
from torch import Tensor

from descriptors import Neighborhoods, jacobian
from mfgp.errors import DataError
from mfgp.inducing import InducingBasis
from mfgp.kernels import functional_covariance, functional_variances, kernel_slope
from mfgp.observations import local_features, rows_of_jacobian
from mfgp.reading import geometry_problems

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
UNCERTAINTIES = ("full", "energies", "none")
RESIDUAL_TOLERANCE = 1e-7  # relative: rounding may push a residual this far below zero, anything more is reported


@dataclass(frozen=True)
class Prediction:
    """Mean and standard deviations at one level. Stress is None for structures without a volume; stds where not asked for.

    energy eV; forces [N, 3] eV/Å; stress [6] eV/Å^3 (ASE sign and Voigt order); energies [N] eV; *_std alike, >= 0.
    """

    fidelity: str
    energy: float
    forces: Array
    stress: Array | None
    energies: Array
    energy_std: float | None = None
    forces_std: Array | None = None
    stress_std: Array | None = None
    energies_std: Array | None = None


class Predictor:
    """One level of a model, with what repeated predictions share."""

    def __init__(self, model: MultiFidelityGP, level: int) -> None:
        self.model, self.level = model, level
        self.fidelity = model.levels[level]
        self.weights = model.weights[level]  # [M'] eV
        self.covariance = model.covariances[level]  # [M', M'] eV^2
        self.variances = model.prior.local_variances()[level].detach()  # [S] eV^2
        self.alpha = dual_weights(model.basis, self.weights)

    def __call__(self, atoms: Atoms, uncertainty: str = "full") -> Prediction:
        """Predict one structure; see MultiFidelityGP.predict."""
        if uncertainty not in UNCERTAINTIES:
            raise ValueError(f"uncertainty must be one of {', '.join(UNCERTAINTIES)}, not {uncertainty!r}")
        self.check(atoms)
        soap, columns = self.model.soap, self.model.columns
        nb = soap.neighborhoods([atoms], device=self.weights.device)
        labels = [b.labels(atoms) for b in self.model.baselines]
        volume = cell_volume(atoms)
        extra = columns.rows(atoms.numbers, labels, volume).to(self.weights)  # [1+3N+6, column]
        energies, forces, virial = self._gp_mean(nb)
        offset = extra @ self.weights[self.model.basis.size :] + columns.mean(extra, self.level)
        shares = self._local_offsets(atoms, extra)
        result = {
            "energy": float(energies.sum() + offset[0]),
            "forces": _numpy(forces + offset[1:-6].view(-1, 3)),
            "stress": None if volume == 0 else _numpy(-(virial + offset[-6:]) / volume),
            "energies": _numpy(energies + shares),
        }
        if uncertainty == "energies":
            result |= self._energy_deviations(nb, extra)
        elif uncertainty == "full":
            result |= self._deviations(nb, extra, volume)
        return Prediction(self.fidelity, **result)  # type: ignore[arg-type]

    def distribution(self, atoms: Atoms) -> MultivariateNormal:
        """Posterior of energy, 3N forces and 6 virial components with their covariance."""
        self.check(atoms)
        model = self.model
        nb = model.soap.neighborhoods([atoms], device=self.weights.device)
        labels = [b.labels(atoms) for b in model.baselines]
        extra = model.columns.rows(atoms.numbers, labels, cell_volume(atoms)).to(self.weights)
        jac = jacobian(model.soap, nb)
        phi = rows_of_jacobian(model.basis, jac, nb.numbers)
        a = torch.cat([phi, extra], dim=1)
        mean = a @ self.weights + model.columns.mean(extra, self.level)
        variance = dict(zip(model.basis.species, self.variances.tolist(), strict=True))
        full = functional_covariance(jac, nb.numbers, jac, nb.numbers, variance, model.basis.zeta)
        scaled = phi * self.variances[model.basis.species_index()]
        covariance = a @ self.covariance @ a.T + full - scaled @ phi.T
        return MultivariateNormal(mean, to_linear_operator(0.5 * (covariance + covariance.T)))  # singular: forces add up to 0

    def check(self, atoms: Atoms) -> None:
        """DataError for unusable geometry or an element that the model has not seen."""
        problems = geometry_problems(atoms)
        if problems:
            raise DataError(f"cannot predict {atoms.symbols}: {problems[0]}.")
        self.check_elements(atoms, "the structure")

    def check_elements(self, atoms: Atoms, source: str) -> None:
        """DataError for an element that the model has not seen."""
        unknown = sorted(set(atoms.numbers.tolist()) - set(self.model.basis.species))
        if unknown:
            names = ", ".join(chemical_symbols[z] for z in unknown)
            known = ", ".join(chemical_symbols[z] for z in self.model.basis.species)
            raise DataError(
                f"{source} ({atoms.symbols}): the model has not seen {names}; it knows {known}. "
                "Fit again with training structures that contain it."
            )

    def _gp_mean(self, nb: Neighborhoods) -> tuple[Tensor, Tensor, Tensor]:
        """Local energies [N], forces [N, 3] and virial [6] of the GP part."""
        basis, n = self.model.basis, len(nb.numbers)
        expansion = self.model.soap.expand(nb)
        q = expansion.features
        energies, gradient = q.new_zeros(n), torch.zeros_like(q)
        for index, _ in basis.blocks():
            centres = torch.nonzero(nb.numbers == basis.species[index]).squeeze(1)
            dot = q[centres] @ basis.points[index].T
            energies[centres] = dot**basis.zeta @ self.alpha[index]
            gradient[centres] = (kernel_slope(dot, basis.zeta) * self.alpha[index]) @ basis.points[index]
        pair = self.model.soap.pullback(expansion, gradient)  # [pair, 3] dE/d r_ij
        forces = q.new_zeros(n, 3).index_add_(0, nb.centre, pair).index_add_(0, nb.neighbor, pair, alpha=-1)
        tensor = pair.T @ nb.vectors  # [3, 3] dE/d(strain)
        return energies, forces, -voigt(0.5 * (tensor + tensor.T))

    def _local_offsets(self, atoms: Atoms, extra: Tensor) -> Tensor:
        """e0 of each atom, and an equal share of the baselines' energy for each, [N] eV."""
        columns, m = self.model.columns, self.model.basis.size
        n = len(columns.species)
        e0 = columns.reference[self.level] + self.weights[m : m + n]  # [S]
        index = torch.searchsorted(torch.tensor(columns.species), torch.from_numpy(atoms.numbers.astype(np.int64)))
        out = e0[index.to(e0.device)]
        if columns.baselines:
            coefficients = self.weights[m + n :] + columns.coefficients[self.level]  # type: ignore[index]
            out = out + (extra[0, n:] @ coefficients) / len(atoms)
        return out

    def _energy_deviations(self, nb: Neighborhoods, extra: Tensor) -> dict[str, float | Array]:
        """energy_std and energies_std from descriptor values alone."""
        basis = self.model.basis
        q = self.model.soap.values(nb)
        phi = local_features(basis, q, nb.numbers)  # [N, M]
        prior = q.new_zeros(len(basis.species))
        for index, _ in basis.blocks():
            own = q[nb.numbers == basis.species[index]]
            prior[index] = ((own @ own.T) ** basis.zeta).sum()
        total = torch.cat([phi.sum(0), extra[0]])
        energy = self._variance(total[None], prior[None])[0]
        return {"energy_std": float(energy.sqrt()), "energies_std": _numpy(self._local_variance(nb, phi, extra).sqrt())}

    def _local_variance(self, nb: Neighborhoods, phi: Tensor, extra: Tensor) -> Tensor:
        """Variance of each local energy (GP part, e0, and the share of the baselines), [N] eV^2."""
        basis, n = self.model.basis, len(self.model.columns.species)
        one_hot = torch.stack([(nb.numbers == z) for z in self.model.columns.species], dim=1).to(phi)
        shares = extra[0, n:].expand(len(phi), -1) / len(phi)
        rows = torch.cat([phi, one_hot, shares], dim=1)
        prior = torch.stack([(nb.numbers == z) for z in basis.species], dim=1).to(phi)  # k(x, x) = 1
        return self._variance(rows, prior)

    def _deviations(self, nb: Neighborhoods, extra: Tensor, volume: float) -> dict[str, float | Array | None]:
        """All standard deviations, through the rows and the full derivative kernel."""
        basis = self.model.basis
        jac = jacobian(self.model.soap, nb)
        phi = rows_of_jacobian(basis, jac, nb.numbers)
        prior = functional_variances(jac, nb.numbers, basis.species, basis.zeta)
        std = self._variance(torch.cat([phi, extra], dim=1), prior).sqrt()
        local = self._local_variance(nb, local_features(basis, jac.features, nb.numbers), extra).sqrt()
        return {
            "energy_std": float(std[0]),
            "forces_std": _numpy(std[1:-6].view(-1, 3)),
            "stress_std": None if volume == 0 else _numpy(std[-6:] / volume),
            "energies_std": _numpy(local),
        }

    def _variance(self, rows: Tensor, prior: Tensor) -> Tensor:
        """a^T C a + Nystrom residual: rows [row, M'], prior [row, S] at unit amplitude -> [row]."""
        basis = self.model.basis
        explained = rows.new_zeros(len(rows), len(basis.species))
        for index, columns in basis.blocks():
            explained[:, index] = (rows[:, columns] ** 2).sum(1)
        residual = nystrom_residual(prior, explained) @ self.variances
        return ((rows @ self.covariance) * rows).sum(1).clamp(min=0.0) + residual


def nystrom_residual(prior: Tensor, explained: Tensor) -> Tensor:
    """prior - explained, at least zero. Warns when it is below zero by more than rounding explains."""
    residual = prior - explained
    worst = float((residual + RESIDUAL_TOLERANCE * prior.abs()).min()) if residual.numel() else 0.0
    if worst < -RESIDUAL_TOLERANCE:
        warnings.warn(f"inducing points explain more variance than there is (by {-worst:.1e})", stacklevel=2)
    return residual.clamp(min=0.0)


def dual_weights(basis: InducingBasis, weights: Tensor) -> list[Tensor]:
    """alpha = L^-T w of each species, [M_s]."""
    return [
        torch.linalg.solve_triangular(basis.factors[i].T, weights[columns, None], upper=True).squeeze(1)
        for i, columns in basis.blocks()
    ]


def voigt(tensor: Tensor) -> Tensor:
    """Symmetric [3, 3] -> [6]: xx yy zz yz xz xy."""
    return torch.stack([tensor[0, 0], tensor[1, 1], tensor[2, 2], tensor[1, 2], tensor[0, 2], tensor[0, 1]])


def cell_volume(atoms: Atoms) -> float:
    """Volume in Å^3; 0 where the structure has no periodic direction or no full cell, so no stress."""
    if not atoms.pbc.any() or atoms.cell.rank < 3:
        return 0.0
    return float(abs(np.linalg.det(atoms.cell.array)))


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()
