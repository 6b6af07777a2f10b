"""Hyperparameters as GPyTorch modules: amplitudes s_t, rho, noises, with their constraints and priors.

`AutoregressiveGP` holds one EnvironmentKernel per level (its outputscale is s_t^2) and rho; `LevelNoise` is the Gaussian
likelihood of labelled energies, forces and virials; `Evidence` is their marginal log likelihood on sufficient statistics.
"""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Positive
from gpytorch.priors import NormalPrior
from torch import Tensor
from torch.distributions import Normal

from mfgp.gp.autoregressive import block_scales, prior_variances
from mfgp.gp.evidence import evidence
from mfgp.gp.kernels import EnvironmentKernel
from mfgp.gp.statistics import Key, Statistics

LEARNED_KINDS = ("energy", "forces", "virial")
FORCE_NOISE_SPREAD = (1.0, 0.25)  # std of log noise_force: around its initial value, and from a level to the next
ENERGY_RATIO_SPREAD = 1.0  # std of log (noise_energy / noise_force) around its initial value
LARGEST = 1e13  # of the prior variance of all labels of a kind over that of their noise: float64 ends at 1e16
LARGEST_GIVEN = 1e12  # the same of labels with a sigma of their own, which nothing bounds from below
SCALE_SPREAD = 1.0  # std of log s_t around what is expected of it, at levels without forces
UNTOLD_SCALE = 5.0  # eV, of f_t where no level has forces: 3 - 18 where forces tell it (metals, alloys, molecules)
DISCREPANCY = 0.5  # of the amplitude that explains a level, what is expected of delta_t above the lowest
RHO_PRIOR = (1.0, 0.5)  # mean and standard deviation: Delta-learning is the centre, rho = 0 is two deviations away


class AutoregressiveGP(gpytorch.models.GP):
    """Prior of the levels: delta_t ~ GP(0, s_t^2 k), f_t = rho_{t-1} f_{t-1} + delta_t.

    rho has shape [T-1, 1] (`scalar`), [T-1, S] (`species`), or is a fixed list of T-1 numbers.

    Prior of the amplitudes, at levels without forces alone: log s_t around that of `expected_scale`. The columns of e0
    explain as many energies as there are elements, and little is left of a few more: the evidence then likes s_t = 0.
    """

    def __init__(self, n_levels: int, species: tuple[int, ...], zeta: int, rho: str | list[float]) -> None:
        super().__init__()
        self.species = species
        self.register_buffer("expected_scale", torch.full((n_levels,), UNTOLD_SCALE, dtype=torch.float64))  # eV
        self.register_buffer("without_forces", torch.zeros(n_levels, dtype=torch.float64))  # 1 or 0
        self.register_prior("scale_prior", NormalPrior(0.0, 1.0), AutoregressiveGP.scale_deviations)
        self.kernels = torch.nn.ModuleList([EnvironmentKernel(zeta) for _ in range(n_levels)])
        if isinstance(rho, str):
            if rho not in ("scalar", "species"):
                raise ValueError(f"rho must be 'scalar', 'species' or fixed numbers, not {rho!r}")
            width = len(species) if rho == "species" else 1
            start = torch.ones(n_levels - 1, width, dtype=torch.float64)
            self.register_parameter("rho_parameter", torch.nn.Parameter(start))
            self.register_prior("rho_prior", NormalPrior(*RHO_PRIOR), AutoregressiveGP.learned_rho)
        else:
            if len(rho) != n_levels - 1:
                raise ValueError(f"{n_levels} levels need {n_levels - 1} fixed values of rho, not {len(rho)}")
            fixed = torch.tensor(rho, dtype=torch.float64).reshape(-1, 1)
            self.register_buffer("rho_parameter", fixed)

    @property
    def n_levels(self) -> int:
        """T."""
        return len(self.kernels)

    @property
    def rho(self) -> Tensor:
        """rho of each step and species, [T-1, S]."""
        return self.rho_parameter.expand(self.n_levels - 1, len(self.species))

    def learned_rho(self) -> Tensor:
        """What rho's prior is on, [T-1, 1] or [T-1, S]."""
        return self.rho_parameter

    @property
    def scale(self) -> Tensor:
        """s_t, [T] eV."""
        return torch.stack([torch.as_tensor(kernel.outputscale) for kernel in self.kernels]).sqrt()

    def set_scale(self, values: Tensor) -> None:
        """Set s_t (eV)."""
        for kernel, value in zip(self.kernels, values.tolist(), strict=True):
            kernel.outputscale = value**2

    def know_forces(self, statistics: Statistics, n_features: int) -> None:
        """Take from the statistics which levels have forces, and what amplitude is expected of the others: what explains the
        forces of the next level below that has some, else above, DISCREPANCY times that if it is not the lowest."""
        found = [explaining_scale(statistics, (t, "forces"), n_features) for t in range(self.n_levels)]
        for t in range(self.n_levels):
            near = (scale for scale in (*found[:t][::-1], *found[t + 1 :]) if scale is not None)
            self.expected_scale[t] = next(near, UNTOLD_SCALE) * (DISCREPANCY if t else 1.0)
            self.without_forces[t] = float((t, "forces") not in statistics.moments)

    def scale_deviations(self) -> Tensor:
        """log s_t against where its prior expects it, in standard deviations of that prior, [T]; 0 at levels with forces."""
        return self.without_forces * (self.scale / self.expected_scale).log() / SCALE_SPREAD

    def local_variances(self) -> Tensor:
        """Prior variance of a local energy at each level and species, [T, S] eV^2."""
        return prior_variances(self.rho, self.scale)

    def forward(self, x: Tensor, level: int) -> gpytorch.distributions.MultivariateNormal:
        """Prior over the local energies of level t of environments x [n, 1 + D] (atomic number, descriptor)."""
        index = torch.searchsorted(torch.tensor(self.species, dtype=x.dtype, device=x.device), x[:, 0].contiguous())
        variance = self.local_variances()[level][index]
        correlation = self.kernels[0](x).to_dense() / self.kernels[0].outputscale
        covariance = correlation * variance.sqrt()[:, None] * variance.sqrt()[None, :]
        return gpytorch.distributions.MultivariateNormal(x.new_zeros(len(x)), covariance)


def explaining_scale(statistics: Statistics, key: Key, n_features: int) -> float | None:
    """The amplitude at which the prior explains labels (eV), sum y^2 = s^2 tr(G); None where there are none but zeros."""
    if (m := statistics.moments.get(key)) is None:
        return None
    trace = float(m.gram.diagonal()[:n_features].sum())
    return (m.square / trace) ** 0.5 if trace > 0 and m.square > 0 else None


class LevelNoise(gpytorch.likelihoods.Likelihood):
    """Independent Gaussian noise of each kind of label at each level.

    noise [T, 3]: energies in eV per sqrt(atom), forces in eV/Å, virials in eV per sqrt(atom). The raw parameters are the
    logarithms of (noise_energy / noise_force in Å, noise_force, noise_virial). max_energy_ratio (Å) bounds the first:
    thousands of forces otherwise outvote the energies and the evidence explains those away as noise.

    Prior: log noise_force of the lowest level around that of `initial`, of each other level around the level below;
    log (noise_energy / noise_force) of every level around that of `initial`. A few structures can be interpolated exactly,
    and the evidence then calls their labels noise-free; what the features cannot express at one level they cannot at the
    next. A level whose forces are noise altogether says nothing of the next: with u = min(1, (noise_force / rms of its
    forces)^2)^2 the centre is (1 - u) log noise_force + u log of `initial`, and the variance has the same mixture.
    """

    def __init__(self, n_levels: int, initial: tuple[float, float, float], max_energy_ratio: float = math.inf) -> None:
        super().__init__()
        self.max_energy_ratio = max_energy_ratio
        self.register_parameter("raw_noise", torch.nn.Parameter(torch.zeros(n_levels, 3, dtype=torch.float64)))
        self.register_constraint("raw_noise", Positive(transform=torch.exp, inv_transform=torch.log))
        self.set_noise(torch.tensor(initial, dtype=torch.float64).repeat(n_levels, 1))
        self.initial_ratio, self.initial_force = initial[0] / initial[1], initial[1]
        self.register_buffer("force_labels", torch.full((n_levels,), torch.inf, dtype=torch.float64))  # rms, eV/Å
        self.register_prior("force_noise_prior", NormalPrior(0.0, 1.0), LevelNoise.force_noise_deviations)
        self.register_prior("energy_ratio_prior", NormalPrior(0.0, 1.0), LevelNoise.energy_ratio_deviations)

    @property
    def noise(self) -> Tensor:
        """Standard deviations, [T, 3]."""
        ratio, force, virial = self.raw_noise_constraint.transform(self.raw_noise).unbind(1)
        return torch.stack([ratio * force, force, virial], dim=1)

    def know_forces(self, statistics: Statistics) -> None:
        """Take the rms of the force labels of each level from their statistics."""
        for t in range(len(self.force_labels)):
            forces = statistics.moments.get((t, "forces"))
            if forces is not None and forces.square > 0:
                self.force_labels[t] = (forces.square / forces.count) ** 0.5

    def force_noise_deviations(self) -> Tensor:
        """log noise_force against where its prior expects it, in standard deviations of that prior, [T]."""
        force, start, u = self.raw_noise[:, 1], math.log(self.initial_force), self._unexplained()
        centre = torch.cat([force.new_full((1,), start), (1.0 - u) * force[:-1] + u * start])
        return (force - centre) / self.force_noise_spreads()

    def force_noise_spreads(self) -> Tensor:
        """Standard deviations of the prior of log noise_force, [T]."""
        (first, step), u = FORCE_NOISE_SPREAD, self._unexplained()
        return torch.cat([u.new_full((1,), first), ((1.0 - u) * step**2 + u * first**2).sqrt()])

    def _unexplained(self) -> Tensor:
        """u of the levels below another one, [T-1]."""
        share = torch.exp(self.raw_noise[:-1, 1]) / self.force_labels[:-1]
        return (share**2).clamp(max=1.0) ** 2

    def energy_ratio_deviations(self) -> Tensor:
        """log (noise_energy / noise_force) against where its prior expects it, in standard deviations of that prior, [T]."""
        return (self.raw_noise[:, 0] - math.log(self.initial_ratio)) / ENERGY_RATIO_SPREAD

    def set_noise(self, values: Tensor) -> None:
        """Set the standard deviations, [T, 3]."""
        energy, force, virial = values.to(self.raw_noise).unbind(1)
        stacked = torch.stack([energy / force, force, virial], dim=1)
        self.initialize(raw_noise=self.raw_noise_constraint.inverse_transform(stacked))

    def of(self, key: Key) -> Tensor:
        """Standard deviation of (level, kind); 1 for rows that were divided by their own."""
        level, kind = key
        if kind not in LEARNED_KINDS:
            return self.raw_noise.new_ones(())
        return self.noise[level, LEARNED_KINDS.index(kind)]

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Normal:
        """Distribution of labels around function values; keyword `key` = (level, kind)."""
        return Normal(function_samples, self.of(kwargs["key"]))


def definite_variances(noise: LevelNoise, statistics: Statistics, d: Tensor) -> dict[Key, Tensor]:
    """sigma^2 + tr(D_t G D_t) / LARGEST of each (level, kind), D_t^2 = sum_u d_tu^2 the prior variances that level t sees.

    Of rows that were divided by their own sigma, isolated atoms apart: 1 + tr(D_t G D_t) / LARGEST_GIVEN. Labels without
    noise would leave nothing of the prior's 1 in P = I + D G D / sigma^2, and rounding would decide the evidence. d
    [T, T, M'] from `block_scales`.
    Forces have noise_force^2 x^2 / (1 + x) beside it, x = tr(D_t G D_t) / LARGEST of the energies over (R noise_force)^2, R
    the largest ratio of the two noises. Where environments are much alike the evidence likes amplitudes of 10^4 eV, and
    would pay for them by calling the energies noise. So the ratio stays below 1.16 R, and small amplitudes change nothing.
    """
    floors = {key: _signal(statistics, key, d) / LARGEST for key in _learned(statistics)}
    out = {key: noise.of(key) ** 2 + floor for key, floor in floors.items()}
    for t in {t for t, kind in floors if kind == "forces" and (t, "energy") in floors}:
        force = noise.of((t, "forces")) ** 2
        x = noise.max_energy_ratio**-2 * floors[t, "energy"] / force
        out[t, "forces"] = out[t, "forces"] + force * x**2 / (1.0 + x)
    return out | given_variances(statistics, d)


def given_variances(statistics: Statistics, d: Tensor) -> dict[Key, Tensor]:
    """What `definite_variances` has of labels with a sigma of their own: how much more than its square each counts with."""
    keys = [key for key in statistics.observed() if key[1] not in LEARNED_KINDS]
    return {key: 1.0 + _signal(statistics, key, d) / LARGEST_GIVEN for key in keys}


def inverse_variances(noise: LevelNoise, statistics: Statistics, d: Tensor) -> dict[Key, Tensor]:
    """sigma^-2 of each (level, kind) in a model whose learned noises are definite already (training.keep_definite)."""
    learned = {key: noise.of(key) ** -2 for key in _learned(statistics)}
    return learned | {key: 1.0 / variance for key, variance in given_variances(statistics, d).items()}


def _learned(statistics: Statistics) -> list[Key]:
    return [key for key in statistics.observed() if key[1] in LEARNED_KINDS]


def _signal(statistics: Statistics, key: Key, d: Tensor) -> Tensor:
    """tr(D_t G D_t)."""
    return ((d[key[0]] ** 2).sum(0) * statistics.moments[key].gram.diagonal()).sum()


class Evidence(gpytorch.mlls.MarginalLogLikelihood):
    """log p(y) + log p(s, rho, noise) of an AutoregressiveGP and a LevelNoise on sufficient statistics (nats)."""

    title = "evidence"
    likelihood: LevelNoise
    model: AutoregressiveGP

    def forward(self, statistics: Statistics, species_index: Tensor, column_std: Tensor) -> Tensor:
        """species_index [M] of each feature, column_std [T, column] prior standard deviations of the column shifts."""
        d = self.scales(species_index, column_std)
        return evidence(statistics, d, self.inverse_noise(statistics, d)) + self.log_prior()

    def scales(self, species_index: Tensor, column_std: Tensor) -> Tensor:
        """d [T, T, M'] of the present hyperparameters."""
        return block_scales(self.model.rho, self.model.scale, species_index, column_std)

    def inverse_noise(self, statistics: Statistics, d: Tensor) -> dict[Key, Tensor]:
        """sigma^-2 of each (level, kind), of the noises that float64 can carry."""
        return {key: variance**-1 for key, variance in definite_variances(self.likelihood, statistics, d).items()}

    def log_prior(self) -> Tensor:
        """log p(s, rho, noise), nats."""
        value = self.likelihood.raw_noise.new_zeros(())
        for _, module, prior, closure, _ in self.named_priors():
            value = value + prior.log_prob(closure(module)).sum()
        return value - self.likelihood.force_noise_spreads()[1:].div(FORCE_NOISE_SPREAD[1]).log().sum()
