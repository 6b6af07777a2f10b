"""The steps of a fit once the features are chosen: e0 and baseline columns, one streaming pass over the data,
hyperparameters.

Memory does not grow with the number of structures: rows live for a few structures at a time (accumulation.py), what is kept
are the sufficient statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfgp.base.progress import Report, silent
from mfgp.baselines.columns import Baseline, first_levels
from mfgp.config import BaselineConfig, FitConfig, FixedRho
from mfgp.data.trajectories import relatives
from mfgp.errors import ConfigError, NumericalError
from mfgp.fit.accumulation import accumulate
from mfgp.fit.features import Features
from mfgp.frames import Frame, FrameSet
from mfgp.gp.centring import centred_prior
from mfgp.gp.hyperparameters import AutoregressiveGP, LevelNoise
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.objectives import FOLDS, TrainingData
from mfgp.gp.observations import Columns, frame_rows
from mfgp.gp.pair_term import pair_term
from mfgp.gp.site_moments import SiteStatistics
from mfgp.gp.statistics import Key, Statistics, merge
from mfgp.gp.training import (
    REFINE_ITERATIONS,
    TrainingResult,
    initialise,
    keep_definite,
    maximise_evidence,
    newton_units,
)
from mfgp.gp.vacuum_term import vacuum_term

DataPass = Callable[[FrameSet, Features, Columns, list[Baseline], float, Report], Statistics]  # `accumulate`
E0_STD = 10.0  # eV, prior of each e0 around the reference of the lowest level
DISTRUSTED = 20.0  # times the initial noise of virials: the second start of a fit
E0_SHIFT_STD = 3.0  # eV, prior of its change from one level to the next, around the reference shift


def baseline_coefficients(configs: tuple[BaselineConfig, ...], levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Prior mean of each coefficient at each level, and prior standard deviation of its shift: [T, baseline] each."""
    mean = torch.zeros(len(levels), len(configs), dtype=torch.float64)
    std = torch.zeros_like(mean)
    for k, (config, first) in enumerate(zip(configs, first_levels(configs, levels), strict=True)):
        mean[first:, k] = config.coefficient.mean
        std[first:, k] = config.coefficient.std
    return mean, std


def reference_energies(
    frames: FrameSet, species: tuple[int, ...], baselines: list[Baseline], coefficients: Tensor
) -> Tensor:
    """Reference energy of each species at each level, [T, S] eV: the centre of the prior of e0.

    A level starts from the one below; its isolated atoms fix their species; the smallest change that explains its
    energies in least squares (so nothing moves that the compositions leave open) does the rest.
    """
    out, below = [], np.zeros(len(species))
    for t, level in enumerate(frames.levels):
        labelled = [f for f in frames.of(level) if f.energy is not None]
        counts = np.array([[(f.atoms.numbers == z).sum() for z in species] for f in labelled], dtype=float)
        energies = np.array([f.energy for f in labelled], dtype=float)
        for i, f in enumerate(labelled):
            for k, b in enumerate(baselines):
                if float(coefficients[t, k]) != 0.0:
                    energies[i] -= float(coefficients[t, k]) * b.labels(f.atoms).energy
        current = below.copy()
        fixed = np.zeros(len(species), dtype=bool)
        for f, count, energy in zip(labelled, counts, energies, strict=True):
            if f.isolated_atom:
                index = int(count.argmax())
                current[index], fixed[index] = energy, True
        rest = [i for i, f in enumerate(labelled) if not f.isolated_atom]
        if rest and not fixed.all():
            size = counts[rest].sum(1, keepdims=True)
            target = (energies[rest] - counts[rest] @ current)[:, None] / size
            shift = np.linalg.lstsq((counts[rest] / size)[:, ~fixed], target[:, 0], rcond=1e-6)[0]
            current[~fixed] += shift
        out.append(current)
        below = current
    return torch.from_numpy(np.array(out))


def build_columns(
    frames: FrameSet, species: tuple[int, ...], config: FitConfig, baselines: list[Baseline]
) -> tuple[Columns, Tensor]:
    """The e0 and baseline columns, those of the terms, and the prior standard deviations of their shifts [T, column]."""
    mean, std = baseline_coefficients(config.baselines, frames.levels)
    reference = reference_energies(frames, species, baselines, mean)
    e0_std = torch.full((len(frames.levels), len(species)), E0_SHIFT_STD, dtype=torch.float64)
    e0_std[0] = E0_STD
    pair, vacuum = pair_term(config.pair, species), vacuum_term(isolated_elements(frames), config.descriptor)
    names, first = tuple(b.name for b in baselines), first_levels(config.baselines, frames.levels)
    columns = Columns(species, reference, names, first, mean, pair, vacuum)
    return columns, torch.cat([e0_std, std, *(term.prior_stds(len(e0_std)) for term in columns.terms)], dim=1)


def isolated_elements(frames: FrameSet) -> tuple[int, ...]:
    """Elements with an isolated atom that has an energy, ascending."""
    chosen = (f for f in frames if f.isolated_atom and f.energy is not None)
    return tuple(sorted({int(f.atoms.numbers[0]) for f in chosen}))


def accumulate_sites(frames: FrameSet, features: Features, report: Report = silent) -> SiteStatistics:
    """One pass over the frames with magnetic moments."""
    out, chosen = SiteStatistics(), [f for f in frames if f.magmoms is not None]
    for i, frame in enumerate(chosen):
        nb = features.soap.neighborhoods([frame.atoms], device=features.device)
        q = features.soap.values(nb)
        level = frames.levels.index(frame.fidelity)
        out.add(features.basis, level, nb.numbers, q, torch.from_numpy(frame.magmoms).to(q))
        report("magnetic moments", i + 1, len(chosen), frame.fidelity)
    return out


def in_folds(frames: FrameSet, n: int, seed: int) -> list[FrameSet]:
    """n parts of the structures, seeded; frames of the same structure, and of a piece of a trajectory, are in one part,
    isolated atoms in none."""
    found = relatives(frames)
    keys = {f: found.pieces.get(k, len(found.pieces) + k) for f, k in found.same.items()}
    distinct = list(dict.fromkeys(keys[id(f)] for f in frames if not f.isolated_atom))
    order = np.random.default_rng(seed).permutation(len(distinct))
    home = {distinct[i]: k % n for k, i in enumerate(order)}
    parts: list[list[Frame]] = [[] for _ in range(n)]
    for f in frames:
        if not f.isolated_atom:
            parts[home[keys[id(f)]]].append(f)
    return [FrameSet(frames.levels, tuple(part)) for part in parts if part]


def prior_traces(
    frames: FrameSet, features: Features, columns: Columns, default_sigma: float, report: Report = silent
) -> dict[Key, Tensor]:
    """Sums of the prior variances of the labelled rows at unit amplitude, scaled as these, [S] by (level, kind); no
    isolated atoms."""
    out: dict[Key, Tensor] = {}
    chosen = [frame for frame in frames if not frame.isolated_atom]
    virial = any(frame.stress is not None for frame in chosen)
    every = features.functionals_of_many([frame.atoms for frame in chosen], virial)
    for i, (frame, functionals) in enumerate(zip(chosen, every, strict=True)):
        composition = columns.composition(frame.atoms.numbers)
        found = functionals.phi[:1] - composition.to(features.centre) @ features.centre
        prior = functionals.prior.clone()
        prior[:1] = centred_prior(prior[:1], functionals.phi[:1], found, features.basis)
        deviation = prior.clamp(min=0.0).sqrt()  # [row, S]; symmetry: some are -0
        level, nothing = frames.levels.index(frame.fidelity), deviation.new_zeros(len(deviation), columns.size)
        none = deviation.new_zeros(len(columns.species), deviation.shape[1])
        for kind, (a, _) in frame_rows(frame, deviation, columns, nothing, level, default_sigma, none).items():
            scaled = a[:, : deviation.shape[1]]
            out[level, kind] = out.get((level, kind), torch.zeros_like(deviation[0])) + (scaled**2).sum(0)
        report("prior variances", i + 1, len(chosen), frame.fidelity)
    return out


def training_data(
    frames: FrameSet,
    features: Features,
    columns: Columns,
    baselines: list[Baseline],
    config: FitConfig,
    report: Report = silent,
    data_pass: DataPass = accumulate,
) -> TrainingData:
    """Statistics of the frames, and what the objective of the configuration needs beside them."""
    sigma = config.training.noise_energy
    if config.training.objective == "cv":
        parts = in_folds(frames, FOLDS, config.seed)
        if len(parts) < 2:
            raise ConfigError("training.objective: cv needs at least two structures; set objective: evidence.")
        atoms = FrameSet(frames.levels, tuple(f for f in frames if f.isolated_atom))
        fixed, *folds = (data_pass(p, features, columns, baselines, sigma, report) for p in (atoms, *parts))
        return TrainingData(merge([fixed, *folds]), tuple(folds))
    statistics = data_pass(frames, features, columns, baselines, sigma, report)
    if config.training.objective == "vfe":
        return TrainingData(statistics, traces=prior_traces(frames, features, columns, sigma, report))
    return TrainingData(statistics)


def make_prior(levels: tuple[str, ...], basis: InducingBasis, rho: str | FixedRho) -> AutoregressiveGP:
    """The autoregressive prior that a configuration asks for."""
    fixed: str | list[float] = rho if isinstance(rho, str) else rho.values(len(levels) - 1)
    return AutoregressiveGP(len(levels), basis.species, basis.zeta, fixed)


def make_noise(levels: tuple[str, ...], config: FitConfig) -> LevelNoise:
    """The noises that a configuration starts from."""
    training = config.training
    initial = (training.noise_energy, training.noise_force, training.noise_virial)
    return LevelNoise(len(levels), initial, training.max_energy_ratio)


def learn(
    prior: AutoregressiveGP,
    noise: LevelNoise,
    data: TrainingData,
    basis: InducingBasis,
    column_std: Tensor,
    config: FitConfig,
    report: Report = silent,
) -> TrainingResult | None:
    """Initialise the hyperparameters and maximise the objective: first on a prefix of the inducing points, then on all.

    The bound and cross-validation start where the evidence ends: from the initial amplitudes the bound calls everything
    noise. Where there are virials the first stage is run from a large noise of theirs, too, and the better end is kept:
    virials that contradict the forces (a wrong sign, Pulay stress) would else be followed, and the forces called noise.
    """
    initialise(prior, noise, data.statistics, basis.size)
    if not config.training.optimise:
        return None
    starts = [noise.noise.detach().clone()]
    if any(kind == "virial" for _, kind in data.statistics.observed()):
        starts.append(starts[0] * starts[0].new_tensor([1.0, 1.0, DISTRUSTED]))
    result, units = None, None
    for m, part, iterations in _stages(data, basis, config):
        index = basis.species_index()[basis.rank < m]
        run = partial(_maximise, prior, noise, part, index, column_std, iterations, report, units)
        result = _best_of(starts, prior, noise, run)
        starts = [noise.noise.detach().clone()]
        if part is not data:
            units = newton_units(part.objective(noise, prior), part.statistics, index, column_std)
    keep_definite(prior, noise, data.statistics, basis.species_index(), column_std)
    return result


def _stages(data: TrainingData, basis: InducingBasis, config: FitConfig) -> list[tuple[int, TrainingData, int]]:
    """Number of inducing points, data and most iterations of each run of the optimiser; `data` themselves in the last."""
    training, size = config.training, basis.size
    prefix = size if training.n_optimise is None else min(training.n_optimise, size)
    only_evidence, iterations = TrainingData(data.statistics), training.max_iterations
    stages = []
    if prefix < size:
        first = torch.nonzero(basis.rank < prefix).squeeze(1)
        extra = torch.arange(size, data.statistics.size, device=first.device)
        stages.append((prefix, only_evidence.subset(torch.cat([first, extra])), iterations))
        if training.objective == "evidence":
            iterations = min(REFINE_ITERATIONS, iterations)
    elif training.objective != "evidence":
        stages.append((size, only_evidence, iterations))
    return [*stages, (size, data, iterations)]


def _best_of(
    starts: list[Tensor], prior: AutoregressiveGP, noise: LevelNoise, run: Callable[[], TrainingResult]
) -> TrainingResult:
    """The best of what `run` finds from each of these noises, in place. NumericalError where it ends in one from all."""
    ends: list[tuple[TrainingResult, dict[str, Any], Tensor]] = []
    amplitudes = copy.deepcopy(prior.state_dict())
    for start in starts:
        prior.load_state_dict(amplitudes)
        noise.set_noise(start)
        try:
            result = run()
        except NumericalError:
            if start is starts[-1] and not ends:
                raise
            continue
        ends.append((result, copy.deepcopy(prior.state_dict()), noise.noise.detach().clone()))
    result, amplitudes, best = max(ends, key=lambda end: end[0].evidence)
    prior.load_state_dict(amplitudes)
    noise.set_noise(best)
    return result


def _maximise(
    prior: AutoregressiveGP,
    noise: LevelNoise,
    data: TrainingData,
    species_index: Tensor,
    column_std: Tensor,
    iterations: int,
    report: Report,
    units: NDArray[np.float64] | None,
) -> TrainingResult:
    """Maximise the objective of `data` over the inducing points of `species_index` [m], with a progress bar."""
    objective = data.objective(noise, prior)
    name = f"{objective.title}, M = {len(species_index)}"

    def on_step(count: int, value: float) -> None:
        report(name, min(count, iterations - 1), iterations, f"{value:.1f} nats")  # it may take more of them

    result = maximise_evidence(objective, data.statistics, species_index, column_std, iterations, on_step, units)
    report(name, iterations, iterations, f"{result.evidence:.1f} nats")
    return result
