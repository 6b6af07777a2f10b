"""Predictions at one level: means through the reverse pass of the descriptor, standard deviations through its rows.

Means:       e_i = k(q_i, Z) alpha_z + e0[z_i] and the reverse pass of its gradient (means).
Deviations:  Var = a^T C a + sum_z S[z] (prior_z - |Phi_z|^2), never negative; scaled to left-out errors where the model is
             calibrated (calibration). `sampled` draws weights from N(w, C) and takes the spread of the forces and virials
             that the draws give by the reverse pass: K draws cost K means, with a relative error of 1 / sqrt(2 K); what
             the inducing points do not carry is left out. `by_level` splits Var over the levels' discrepancies
             (level_shares).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_linear_operator
from numpy.typing import NDArray
from torch import Tensor

from descriptors import RadialTable, SkinPairs, jacobian
from mfgp.base.progress import Report, silent
from mfgp.data.reading import MIN_DISTANCE, geometry_problems
from mfgp.errors import DataError
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import functional_covariance
from mfgp.gp.observations import cell_volume, local_features, rows_of_jacobian
from mfgp.gp.site_moments import predict_sites
from mfgp.predict.energy_variances import EnergyForms, energy_variances, local_variances
from mfgp.predict.level_shares import LevelShares, Share, share
from mfgp.predict.means import Mean, dual_weights, inner_products, local_gradient, mean, members_of
from mfgp.predict.offsets import LevelOffsets, Offsets
from mfgp.predict.prediction import UNCERTAINTIES, Array, Prediction
from mfgp.predict.reduction import checked_tolerance, reduced
from mfgp.predict.residual import RESIDUAL_TOLERANCE, nystrom_residual, residual_variance, unexplained
from mfgp.predict.weights_variances import weights_variances

if TYPE_CHECKING:
    from mfgp.gp.functionals import Functionals
    from mfgp.model import MultiFidelityGP

Values = dict[str, Tensor]  # mean [1+3N+6], local [N]; std [1+3N+6] or [1], local_std [N], weights where asked for


class Predictor:
    """One level of a model, with what repeated predictions share."""

    def __init__(
        self,
        model: MultiFidelityGP,
        level: int,
        calibrated: bool = True,
        draws: int = 0,
        seed: int = 0,
        by_level: bool = False,
        skin: float = 0.0,
        dtype: str = "float64",
        compression: float = 0.0,
    ) -> None:
        if dtype not in ("float64", "float32"):
            raise ValueError(f"dtype must be float64 or float32, not {dtype!r}")
        self.model, self.level, self.compression = model, level, checked_tolerance(model.basis, compression)
        self.pairs = SkinPairs(model.soap, skin, self.check, model.weights.device)
        self.calibration = model.calibration if calibrated else None
        self.fidelity = model.levels[level]
        basis, config, device = model.soap.basis, model.soap.config, model.weights.device
        self.table = RadialTable.of(basis, config, torch.float32, device) if dtype == "float32" else None
        self.weights = model.weights[level]  # [M'] eV
        self.covariance = model.covariances[level]  # [M', M'] eV^2
        self.variances = model.prior.local_variances()[level].detach()  # [S] eV^2
        self.reference = model.features.centre  # [S, M]
        self.draws = weight_draws(self.covariance, draws, seed)  # [draw, M'] about the mean
        self.alpha_draws = [dual_weights(model.basis, w) for w in self.draws]
        self.shares = LevelShares(model, level) if by_level else None
        self.offsets = LevelOffsets(model, level)
        self.sites = model.sites  # an update of the model makes others

    @cached_property
    def mean_terms(self) -> tuple[InducingBasis, list[Tensor]]:
        """What the mean is summed over: the inducing points and their dual weights alpha, or fewer terms (reduction)."""
        return reduced(self.model.basis, dual_weights(self.model.basis, self.weights), self.compression)

    def __call__(self, atoms: Atoms, uncertainty: str = "full", report: Report = silent) -> Prediction:
        """Predict one structure; see MultiFidelityGP.predict. `report` is told of large ones (functionals)."""
        self.check_uncertainty(uncertainty)
        if uncertainty in ("sampled", "energies", "local", "none"):
            with torch.inference_mode():  # without the bookkeeping of autograd
                return self._from_descriptor(atoms, uncertainty)
        self.check(atoms)
        return self.from_functionals(atoms, self.model.features.functionals(atoms, report), uncertainty)

    def check_uncertainty(self, uncertainty: str) -> None:
        """ValueError for a kind of uncertainty that there is not, or that this predictor was not made for."""
        if uncertainty not in (*UNCERTAINTIES, "by_level"):
            raise ValueError(
                f"uncertainty must be one of full, by_level, energies, local or none, not {uncertainty!r}; `sampled` comes "
                "from model.predictor(fidelity, draws=8) and from calculators"
            )
        if uncertainty == "sampled" and not len(self.draws):
            way = "model.predictor(fidelity, draws=8), or model.calculator(fidelity, uncertainty='sampled')"
            raise ValueError(f"uncertainty='sampled' needs draws: {way}")
        if uncertainty == "by_level" and self.shares is None:
            raise ValueError("uncertainty='by_level' needs model.predictor(fidelity, by_level=True)")

    def from_functionals(self, atoms: Atoms, functionals: Functionals, uncertainty: str = "full") -> Prediction:
        """`full` or `by_level` from the rows of all functionals of a structure that has been checked."""
        offsets = self.offsets(atoms)
        prediction = self._prediction(atoms, offsets, self._from_rows(atoms, offsets.rows, functionals))
        if self.has_moments:
            magmoms, std = self._moments(atoms.numbers, functionals.local)
            prediction = replace(prediction, magmoms=magmoms, magmoms_std=std)
        if uncertainty == "full":
            return prediction
        return replace(prediction, std_by_level=self._by_level(atoms, offsets.rows, functionals))

    def from_mean(self, atoms: Atoms, found: Mean) -> Prediction:
        """A prediction without standard deviations from the Gaussian process's part of it."""
        return self._prediction(atoms, self.offsets(atoms), {"mean": found.stacked(), "local": found.energies})

    @property
    def has_moments(self) -> bool:
        """Whether the training data have magnetic moments at this level."""
        return any(level == self.level for level, _ in self.sites)

    @property
    def raw_moments(self) -> list[str]:
        """Elements with moments in the training data at this level whose standard deviations are not calibrated."""
        own = sorted(z for level, z in self.sites if level == self.level)
        known = {} if self.calibration is None or not self.calibration.moments else self.calibration.moments[self.level]
        return [chemical_symbols[z] for z in own if z not in known]

    def magnetic_moments(self, atoms: Atoms) -> tuple[Array, Array]:
        """Moments and their standard deviations [N] in Bohr magnetons; NaN for elements without labels at this level."""
        self.check(atoms)
        nb = self.model.soap.neighborhoods([atoms], device=self.weights.device)
        return self._moments(atoms.numbers, local_features(self.model.basis, self.model.soap.values(nb), nb.numbers))

    def _moments(self, numbers: NDArray[np.int64], phi: Tensor) -> tuple[Array, Array]:
        of_atom = torch.from_numpy(numbers.astype(np.int64)).to(phi.device)
        mean, std = predict_sites(self.model.basis, self.sites, self.level, of_atom, phi)
        if self.calibration is None:
            return _numpy(mean), _numpy(std)
        return _numpy(mean), _numpy(std) * np.sqrt(self.calibration.moment_factors(self.level, numbers))

    def columns_of(self, atoms: Atoms) -> Tensor:
        """Composition and baselines of every functional, [1+3N+6, column]."""
        return self.offsets.rows_of(atoms)

    def _prediction(self, atoms: Atoms, offsets: Offsets, values: Values) -> Prediction:
        """Add the columns to the GP part, and turn virials into stresses."""
        volume = cell_volume(atoms) if offsets.has_stress else 0.0
        mean = _numpy(values["mean"]) + offsets.functionals
        std = None if "std" not in values else _numpy(values["std"])
        full, known = std is not None and len(std) > 1, self.model.calibration if "weights" in values else None
        return Prediction(
            self.fidelity,
            energy=float(mean[0]),
            forces=mean[1:-6].reshape(-1, 3),
            stress=None if volume == 0 else -mean[-6:] / volume,
            energies=_numpy(values["local"]) + offsets.local,
            energy_std=None if std is None else float(std[0]),
            forces_std=std[1:-6].reshape(-1, 3) if std is not None and full else None,
            stress_std=std[-6:] / volume if std is not None and full and volume else None,
            energies_std=None if "local_std" not in values else _numpy(values["local_std"]),
            calibrated=self.calibration is not None and "local_std" in values,
            novelty=None
            if known is None
            else known.energy_times_usual(self.level, float(values["weights"]), len(atoms)),
        )

    def distribution(self, atoms: Atoms) -> MultivariateNormal:
        """Posterior of energy, 3N forces and 6 virial components with their covariance; never calibrated."""
        self.check(atoms)
        model, extra = self.model, self.columns_of(atoms)
        nb = model.soap.neighborhoods([atoms], device=self.weights.device)
        jac = jacobian(model.soap, nb)
        phi = rows_of_jacobian(model.basis, jac, nb.numbers)
        if not bool(torch.isfinite(extra).all()):
            raise DataError(
                f"{atoms.symbols}: a baseline gives no stress, so there is no joint distribution with the virial."
            )
        a = torch.cat([phi, extra], dim=1)
        mean = a @ self.weights + model.columns.mean(extra, self.level)
        variance = dict(zip(model.basis.species, self.variances.tolist(), strict=True))
        full = functional_covariance(jac, nb.numbers, jac, nb.numbers, variance, model.basis.zeta)
        scaled = phi * self.variances[model.basis.species_index()]
        covariance = a @ self.covariance @ a.T + full - scaled @ phi.T
        return MultivariateNormal(
            mean, to_linear_operator(0.5 * (covariance + covariance.T))
        )  # singular: forces add up to 0

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

    def _from_descriptor(self, atoms: Atoms, uncertainty: str) -> Prediction:
        """Means by the reverse pass, and what of the standard deviations needs no rows."""
        pairs = self.pairs(atoms)
        forward = self.model.soap.expand_slots(pairs.slots, pairs.species, self.table)
        if not forward.shortest >= MIN_DISTANCE:  # nor for a position that is not a number
            self.check(atoms)
        offsets = self.offsets(atoms)
        members = members_of(self.model.basis, pairs, self.model.soap)
        terms, alpha = self.mean_terms
        gradient, products = local_gradient(terms, alpha, forward.features, members)
        found = mean(terms.zeta, gradient, pairs, forward)
        values = {"mean": found.stacked(), "local": found.energies}
        basis = self.model.basis
        if uncertainty != "none" and terms is not basis:
            products = inner_products(basis, forward.features, members)
        if uncertainty == "local":
            values["local_std"] = local_variances(basis, self.energy_forms, members, products, len(atoms)).sqrt()
        elif uncertainty != "none":
            values |= self._energy_deviations(forward.features, atoms.numbers, members, products, offsets.rows)
        if uncertainty == "sampled":
            draws = []
            for weights in self.alpha_draws:
                gradient, _ = local_gradient(self.model.basis, weights, forward.features, members, products)
                draws.append(mean(self.model.basis.zeta, gradient, pairs, forward).stacked())
            added = self.draws[:, self.model.basis.size :] @ offsets.rows.T  # [draw, 1+3N+6]
            values["std"] = self._sampled((torch.stack(draws) + added).square().mean(0), values["std"], atoms)
        return self._prediction(atoms, offsets, values)

    def _sampled(self, weights: Tensor, energy: Tensor, atoms: Atoms) -> Tensor:
        """Standard deviations [1+3N+6] of forces and virials from the draws' `weights`, and the exact `energy` [1]."""
        out = self._std(self._novelty(weights, atoms) * weights, None, atoms.numbers)
        out[0] = energy[0]
        return out

    def _by_level(self, atoms: Atoms, extra: Tensor, f: Functionals) -> dict[str, Share]:
        """Standard deviations of the levels' discrepancies, and of the noise where calibrated."""
        assert self.shares is not None
        residual, volume = unexplained(self.model.basis, f.phi, f.prior), stress_volume(atoms, extra)
        novelty = self._novelty(weights_variances(f.phi, extra, self.covariance).clamp(min=0.0), atoms)
        parts = self.shares.variances_by_name(f.phi, extra, residual, atoms.numbers, self.calibration, novelty)
        return {name: share(part, volume) for name, part in parts.items()}

    def _from_rows(self, atoms: Atoms, extra: Tensor, f: Functionals) -> Values:
        """Means of the GP part and all standard deviations, through the rows and the full derivative kernel."""
        mean = self.weights[: self.model.basis.size]
        weights = weights_variances(f.phi, extra, self.covariance).clamp(min=0.0)
        residual = residual_variance(self.model, self.level, f.phi, f.prior)
        novelty = self._novelty(weights, atoms)
        return {
            "mean": f.phi @ mean,
            "local": f.local @ mean,
            "std": self._std(novelty * weights, novelty * residual, atoms.numbers),
            "local_std": self._local_std(atoms.numbers, f.local),
            "weights": weights[0],
        }

    def _novelty(self, weights: Tensor, atoms: Atoms) -> Tensor:
        """Factors of the model's variances [1+3N+6] by novelty, from the weights' part; 1 uncalibrated."""
        if self.calibration is None:
            return torch.ones_like(weights)
        pairs = self.model.features.pairs(atoms)
        return self.calibration.novelty_factors(self.level, weights, atoms.numbers, pairs)

    def _std(self, weights: Tensor, residual: Tensor | None, numbers: NDArray[np.int64]) -> Tensor:
        """Standard deviations from the two parts of the variances [1+3N+6] or [1]; calibrated where the model is.

        residual None: not known.
        """
        if self.calibration is not None:
            return self.calibration.variances(self.level, weights, residual, numbers, self.label_noise).sqrt()
        return (weights if residual is None else weights + residual).sqrt()

    @cached_property
    def label_noise(self) -> Tensor:
        """Of energies, forces and virials, [3]."""
        return self.model.label_noise(self.level)

    @property
    def local_factors(self) -> tuple[float, float]:
        """Of the two parts of the variance of a local energy; 1 uncalibrated."""
        return (1.0, 1.0) if self.calibration is None else self.calibration.local_factors(self.level)

    @cached_property
    def energy_forms(self) -> EnergyForms:
        """Made when energies first get a standard deviation."""
        weights, residual = self.local_factors
        return EnergyForms.of(self.model.basis, self.covariance, weights, (residual * self.variances).tolist())

    def _energy_deviations(
        self,
        q: Tensor,
        numbers: NDArray[np.int64],
        members: tuple[Tensor, ...],
        products: list[Tensor],
        extra: Tensor,
    ) -> Values:
        """Standard deviations of the total [1] and the local energies [N], from descriptors q [N, D]."""
        basis = self.model.basis
        found = energy_variances(basis, self.energy_forms, q, members, products, extra[:1])
        a, r = self.local_factors
        rounding = RESIDUAL_TOLERANCE * max(1.0, a / r)  # what is explained comes from a difference of both parts
        residual = nystrom_residual(found.prior, found.explained, rounding) @ self.variances
        novelty = 1.0
        if self.calibration is not None:
            novelty = self.calibration.energy_novelty_factor(self.level, float(found.weights[0]), len(q))
        return {
            "std": self._std(novelty * found.weights, novelty * residual, numbers),
            "local_std": found.local.sqrt(),
            "weights": found.weights[0],
        }

    def _local_std(self, numbers: NDArray[np.int64], phi: Tensor) -> Tensor:
        """Standard deviation of each local energy against its species' reference, f(x_i) - mean_m f(z_m), [N] eV.

        Total energies and forces fix local energies only up to a constant for each species (which e0 shares), so a local
        energy is compared with the mean over the inducing environments of its species.
        """
        of_atom = torch.from_numpy(numbers.astype(np.int64)).to(phi.device)
        one_hot = torch.stack([of_atom == z for z in self.model.basis.species], dim=1).to(phi)  # [N, S]
        rows = phi - one_hot @ self.reference
        features = len(rows.T)
        weights = ((rows @ self.covariance[:features, :features]) * rows).sum(1).clamp(min=0.0)
        explained = (phi**2).sum(1, keepdim=True) * one_hot
        residual = nystrom_residual(one_hot, explained) @ self.variances  # k(x, x) = 1
        a, r = self.local_factors
        return (a * weights + r * residual).sqrt()


def weight_draws(covariance: Tensor, n: int, seed: int) -> Tensor:
    """n draws of N(0, covariance [M', M']), [n, M'], the same for the same seed on every device."""
    if n < 0:
        raise ValueError(f"draws is {n}; give 0 or more")
    if n == 0:
        return covariance.new_zeros(0, len(covariance))
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T  # symmetric, so unique
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, len(covariance)))).to(covariance) @ root


def stress_volume(atoms: Atoms, extra: Tensor) -> float:
    """Volume of the cell in Å^3; 0 where there is no stress: no cell, or a baseline without (NaN in its columns)."""
    return cell_volume(atoms) if bool(torch.isfinite(extra).all()) else 0.0


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()
