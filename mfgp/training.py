"""Learning the hyperparameters: bounded quasi-Newton ascent of the evidence over log-parameters and rho.

A first run uses a prefix of the inducing points (their statistics are sub-matrices of the full ones), where a step costs
little; a second, shorter one all of them. A factorisation that fails inside a line search is a very bad objective, not a
crash. Bounds keep the force and virial noises above a floor set by float64: P = I + G / noise^2 stays definite while
s^2 max eig(G) / noise^2 is below about 1e13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.hyperparameters import LEARNED_KINDS, AutoregressiveGP, Evidence, LevelNoise
from mfgp.statistics import Statistics

FLOAT64_HEADROOM = 1e12  # of s^2 eig(G) / noise^2
REFINE_ITERATIONS = 15  # with all inducing points, after the run on a prefix
RHO_BOUNDS = (-1.0, 3.0)
MIN_ENERGY_RATIO = 1e-4  # Å


@dataclass(frozen=True)
class TrainingResult:
    """What the optimiser did."""

    evidence: float  # the objective: log p(y) + log p(rho, noise_force), or another of objectives; nats
    evaluations: int
    converged: bool
    message: str


def initialise(prior: AutoregressiveGP, noise: LevelNoise, statistics: Statistics, n_features: int) -> None:
    """Start amplitudes where the prior explains the labels: s_t^2 = sum y^2 / tr(G) over the forces (or the energies).

    The discrepancies of higher levels start at half the amplitude that would explain all of their labels.
    """
    scales = []
    for t in range(prior.n_levels):
        moments = [
            statistics.moments[k] for k in ((t, "forces"), (t, "energy"), (t, "given")) if k in statistics.moments
        ]
        traces = [(m.square, float(m.gram.diagonal()[:n_features].sum())) for m in moments]
        ratios = [square / trace for square, trace in traces if trace > 0 and square > 0]
        scales.append((ratios[0] ** 0.5 if ratios else 1.0) * (0.5 if t else 1.0))
    prior.set_scale(torch.tensor(scales, dtype=torch.float64))
    values = noise.noise.detach().clone()
    for t in range(prior.n_levels):
        for k, kind in enumerate(LEARNED_KINDS):
            values[t, k] = max(values[t, k].item(), 2.0 * noise_floor(statistics, t, kind))
    noise.set_noise(values)


def noise_floor(statistics: Statistics, level: int, kind: str) -> float:
    """The smallest noise (unit of the kind) that float64 can carry next to labels of that size and number."""
    m = statistics.moments.get((level, kind))
    if m is None or m.count == 0:
        return 1e-6
    rms = (m.square / m.count) ** 0.5
    return max(1e-6, rms * (m.count / FLOAT64_HEADROOM) ** 0.5)


def maximise_evidence(
    objective: Evidence,
    statistics: Statistics,
    species_index: Tensor,
    column_std: Tensor,
    max_iterations: int,
    max_energy_ratio: float,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """Maximise the evidence, or another objective, in place; its modules keep the best parameters seen.

    species_index [M], column_std [T, column]; max_energy_ratio (Å) bounds noise_energy / noise_force. `on_step` is called
    with the number of evaluations and the value. Raises NumericalError when no evaluation succeeded.
    """
    prior, noise = objective.model, objective.likelihood
    parameters = [p for p in objective.parameters() if p.requires_grad]
    bounds = _bounds(prior, noise, statistics, max_energy_ratio)
    start = np.clip(_pack(parameters), *np.array(bounds).T)
    best_value, best, count = np.inf, start, 0

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best_value, best, count
        _unpack(parameters, x)
        objective.zero_grad()
        count += 1
        try:
            value = -objective(statistics, species_index, column_std)
            value.backward()
        except NumericalError:
            return (abs(best_value) + 1.0 if np.isfinite(best_value) else 1.0) * 1e3, np.zeros_like(x)
        found = value.item()
        if found < best_value:
            best_value, best = found, x.copy()
        if on_step is not None:
            on_step(count, -found)
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return found, _flat(gradient)

    result = minimize(
        negative,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": max_iterations, "ftol": 1e-7, "gtol": 1e-3, "maxls": 20},
    )
    if not np.isfinite(best_value):
        raise NumericalError(
            "the evidence could not be evaluated anywhere near the initial hyperparameters; "
            "raise training.noise_energy and training.noise_force."
        )
    _unpack(parameters, best)
    objective.zero_grad()
    return TrainingResult(-best_value, count, bool(result.success), str(result.message))


def _bounds(
    prior: AutoregressiveGP, noise: LevelNoise, statistics: Statistics, max_energy_ratio: float
) -> list[tuple[float, float]]:
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
                out.append((np.log(min(MIN_ENERGY_RATIO, max_energy_ratio)), np.log(max_energy_ratio)))
                for kind in ("forces", "virial"):
                    low = np.log(noise_floor(statistics, t, kind))
                    out.append((low, max(low + 1.0, np.log(1e3))))
        else:
            out += [RHO_BOUNDS] * parameter.numel()
    return out


def _flat(tensors: list[Tensor]) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1).cpu() for t in tensors]).numpy().astype(np.float64)


def _pack(parameters: list[torch.nn.Parameter]) -> np.ndarray:
    return _flat([p.data for p in parameters])


def _unpack(parameters: list[torch.nn.Parameter], x: np.ndarray) -> None:
    start = 0
    for p in parameters:
        values = torch.from_numpy(x[start : start + p.numel()].copy()).view_as(p)
        p.data.copy_(values)
        start += p.numel()
