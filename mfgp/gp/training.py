"""Learning the hyperparameters: bounded quasi-Newton ascent of the evidence over log-parameters and rho.

A first run uses a prefix of the inducing points (their statistics are sub-matrices of the full ones), where a step costs
little; a second, shorter one all of them. A factorisation that fails inside a line search is a very bad objective, not a
crash. Bounds keep the force and virial noises above a floor that the labels alone set (`noise_floor`); the objective adds
what the amplitudes ask for (`definite_variances`), so that P = I + D G D / noise^2 stays definite and rounding never
decides, and `keep_definite` gives the model the noises that were used.

Between two bounds for each parameter scipy's first step is the gradient itself, thousands of nats long: to the corner of the
box, the largest amplitude and the smallest noises. What rounding asks for is all the noise there, and its amplitude a
maximum of its own: s = 10^3 eV in the place of 3, a thousand nats below. So parameters are taken in units c in which that
step, c^2 times the gradient, is no longer than FIRST_STEP. After the run on a prefix the units follow from the curvatures
there (`newton_units`): noises, amplitudes and rho hardly act on each other, but the noise of 10^4 forces bends the evidence
500 times as much as an amplitude does. The first step is then nearly Newton's, and a third of the evaluations suffices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.hyperparameters import (
    DISCREPANCY,
    LEARNED_KINDS,
    AutoregressiveGP,
    Evidence,
    LevelNoise,
    definite_variances,
    explaining_scale,
)
from mfgp.gp.statistics import Statistics

FLOAT64_HEADROOM = 1e12  # of s^2 eig(G) / noise^2
FIRST_STEP = 1.0  # length, in logarithms of amplitudes and noises, and rho
REFINE_ITERATIONS = 15  # with all inducing points, after the run on a prefix
FLAT = 1e-3  # nats, a slope by logarithms of amplitudes and noises, and rho, that is taken for none
FLAT_IN_UNITS = 0.03  # the same in units of the curvature, where half of its square is what is left to gain
DIFFERENCE = 1e-3  # of a parameter, between two gradients
FLATTEST = 1e-4  # of the largest curvature, what counts as one
RHO_BOUNDS = (-1.0, 3.0)
MIN_ENERGY_RATIO = 1e-4  # Å


@dataclass(frozen=True)
class TrainingResult:
    """What the optimiser did."""

    evidence: float  # the objective: log p(y) + log p(s, rho, noise), or another of objectives; nats
    evaluations: int
    converged: bool
    message: str
    last_gain: float | None = None  # nats, of the last iteration


def initialise(prior: AutoregressiveGP, noise: LevelNoise, statistics: Statistics, n_features: int) -> None:
    """Start amplitudes where the prior explains the labels: s_t^2 = sum y^2 / tr(G) over the forces (or the energies).

    The discrepancies of higher levels start at half the amplitude that would explain all of their labels. Levels without
    forces start where their amplitudes are expected (`AutoregressiveGP.know_forces`).
    """
    prior.know_forces(statistics, n_features)
    scales = prior.expected_scale.clone()
    for t in range(prior.n_levels):
        if not prior.without_forces[t]:
            every = [explaining_scale(statistics, (t, kind), n_features) for kind in ("forces", "energy", "given")]
            scales[t] = next((s for s in every if s is not None), 1.0) * (DISCREPANCY if t else 1.0)
    prior.set_scale(scales)
    values = noise.noise.detach().clone()
    for t in range(prior.n_levels):
        for k, kind in enumerate(LEARNED_KINDS):
            values[t, k] = max(values[t, k].item(), 2.0 * noise_floor(statistics, t, kind))
    noise.set_noise(values)
    noise.know_forces(statistics)


def noise_floor(statistics: Statistics, level: int, kind: str) -> float:
    """The smallest noise (unit of the kind) that float64 can carry next to labels of that size and number."""
    m = statistics.moments.get((level, kind))
    if m is None or m.count == 0:
        return 1e-6
    rms = (m.square / m.count) ** 0.5
    return max(1e-6, rms * (m.count / FLOAT64_HEADROOM) ** 0.5)


@torch.no_grad()
def keep_definite(
    prior: AutoregressiveGP, noise: LevelNoise, statistics: Statistics, species_index: Tensor, column_std: Tensor
) -> None:
    """Set the noises to those of the objective (`definite_variances`). species_index [M], column_std [T, column]."""
    d = block_scales(prior.rho, prior.scale, species_index, column_std)
    values = noise.noise.clone()
    for (level, kind), variance in definite_variances(noise, statistics, d).items():
        if kind in LEARNED_KINDS:
            values[level, LEARNED_KINDS.index(kind)] = variance.sqrt()
    noise.set_noise(values)


def maximise_evidence(
    objective: Evidence,
    statistics: Statistics,
    species_index: Tensor,
    column_std: Tensor,
    max_iterations: int,
    on_step: Callable[[int, float], None] | None = None,
    units: NDArray[np.float64] | None = None,
) -> TrainingResult:
    """Maximise the evidence, or another objective, in place; its modules keep the best parameters seen.

    species_index [M], column_std [T, column]. `on_step` is called with the number of evaluations and the value. units
    [parameter]: steps along each that are alike, of `newton_units`; without them all are. Raises NumericalError when no
    evaluation succeeded.
    """
    descent = _Descent(objective, lambda: objective(statistics, species_index, column_std), on_step)
    bounds = np.array(_bounds(objective.model, objective.likelihood, statistics))  # [parameter, 2]
    start = np.clip(_pack(descent.parameters), *bounds.T)
    unit, flat = (np.ones(len(start)), FLAT) if units is None else (units, FLAT_IN_UNITS)
    slope = float(np.linalg.norm(unit**2 * descent(start)[1]))
    shorter = min(1.0, (FIRST_STEP / slope) ** 0.5) if slope > 0.0 else 1.0
    unit = shorter * unit

    def scaled(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = descent(unit * z)
        return value, unit * gradient

    values = [np.inf]
    result = minimize(
        scaled,
        start / unit,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds / unit[:, None],
        callback=lambda _: values.append(descent.lowest),
        options={"maxiter": max_iterations, "ftol": 1e-7, "gtol": shorter * flat, "maxls": 20},
    )
    if descent.best is None:
        raise NumericalError(
            "the evidence could not be evaluated anywhere near the initial hyperparameters; "
            "raise training.noise_energy and training.noise_force."
        )
    _unpack(descent.parameters, descent.best)
    objective.zero_grad()
    gain = values[-2] - values[-1] if len(values) > 2 else None
    return TrainingResult(-descent.lowest, descent.count, bool(result.success), str(result.message), gain)


def newton_units(
    objective: Evidence, statistics: Statistics, species_index: Tensor, column_std: Tensor
) -> NDArray[np.float64]:
    """1 / sqrt(curvature) of the negative objective along each parameter, where its modules are; for `maximise_evidence`.

    By differences of the gradient, away from the nearer bound; a parameter that cannot be displaced counts as the stiffest.
    Ones where nothing is curved. The modules stay as they are.
    """
    descent = _Descent(objective, lambda: objective(statistics, species_index, column_std), None)
    here, bounds = _pack(descent.parameters), np.array(_bounds(objective.model, objective.likelihood, statistics))
    steps = np.where(here - bounds[:, 0] < bounds[:, 1] - here, DIFFERENCE, -DIFFERENCE)
    gradient, *beside = (descent(here + e)[1] for e in (0.0 * steps, *np.diag(steps)))
    _unpack(descent.parameters, here)
    objective.zero_grad()
    curvature = np.array([(g[i] - gradient[i]) / steps[i] for i, g in enumerate(beside)])
    known = np.array([g.any() for g in beside]) & gradient.any()  # all zero where a factorisation failed
    largest = float(curvature.max(where=known, initial=0.0))
    if largest <= 0.0:
        return np.ones(len(here))
    return np.maximum(np.where(known, curvature, largest), FLATTEST * largest) ** -0.5


class _Descent:
    """The negative objective and its gradient for scipy; remembers the best point and the number of evaluations."""

    def __init__(
        self, objective: Evidence, value: Callable[[], Tensor], on_step: Callable[[int, float], None] | None
    ) -> None:
        self.objective, self.value, self.on_step = objective, value, on_step
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.best: NDArray[np.float64] | None = None
        self.lowest, self.count = np.inf, 0

    def __call__(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """A factorisation that fails, or a value that is not finite, counts as a very bad one."""
        _unpack(self.parameters, x)
        self.objective.zero_grad()
        self.count += 1
        try:
            value = -self.value()
            value.backward()
        except NumericalError:
            return self._very_bad(), np.zeros_like(x)
        found = value.item()
        if not np.isfinite(found):
            return self._very_bad(), np.zeros_like(x)
        if found < self.lowest:
            self.lowest, self.best = found, x.copy()
        if self.on_step is not None:
            self.on_step(self.count, -found)
        return found, _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])

    def _very_bad(self) -> float:
        return 1e3 * (abs(self.lowest) + 1.0 if self.best is not None else 1.0)


def _bounds(prior: AutoregressiveGP, noise: LevelNoise, statistics: Statistics) -> list[tuple[float, float]]:
    """Box for each raw parameter, in the order of Evidence.parameters()."""
    out: list[tuple[float, float]] = []
    for name, parameter in Evidence(noise, prior).named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("raw_outputscale"):
            start = parameter.item()
            out.append((start - 18.0, start + 14.0))  # s over nearly seven orders of magnitude
        elif name.endswith("raw_noise"):
            for t in range(prior.n_levels):
                out.append((np.log(min(MIN_ENERGY_RATIO, noise.max_energy_ratio)), np.log(noise.max_energy_ratio)))
                for kind in ("forces", "virial"):
                    low = np.log(noise_floor(statistics, t, kind))
                    out.append((low, max(low + 1.0, np.log(1e3))))
        else:
            out += [RHO_BOUNDS] * parameter.numel()
    return out


def _flat(tensors: list[Tensor]) -> NDArray[np.float64]:
    return torch.cat([t.detach().reshape(-1).cpu() for t in tensors]).numpy().astype(np.float64)


def _pack(parameters: list[torch.nn.Parameter]) -> NDArray[np.float64]:
    return _flat([p.data for p in parameters])


def _unpack(parameters: list[torch.nn.Parameter], x: NDArray[np.float64]) -> None:
    start = 0
    for p in parameters:
        values = torch.from_numpy(x[start : start + p.numel()].copy()).view_as(p)
        p.data.copy_(values)
        start += p.numel()
