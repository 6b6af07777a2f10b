"""Tuning of what is not learned by a fit: descriptor and kernel settings, by cross-validated log density.

For each setting the features are built, amplitudes, noises and rho are learned by the evidence, and the score is

    1/n sum_k log p(y_k | y_-k)          nats a label; objectives.CrossValidation, folds of structures, all levels

which is a density of the labels themselves, so settings with different descriptors compare. It rewards small errors and
honest noises at once. More inducing points and more features nearly always do, too, so trials are bounded by what a step of
dynamics would cost, M D (docs/cost_model.md): searched together, M, n_max, l_max and the contraction compete for it.
Optuna's tree-structured Parzen estimator proposes (Akiba et al., KDD 2019); the first trial is the configuration as it
stands, so the best is never worse than the start. Trials are kept in an SQLite file as they end: a killed run goes on where
it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mfgp.base.progress import Report, silent
from mfgp.baselines.columns import Baseline, first_levels, make_baselines
from mfgp.config import FitConfig
from mfgp.data.training_frames import distinct, trainable
from mfgp.errors import ConfigError, NumericalError
from mfgp.fit import fitting
from mfgp.fit.features import Features, build_soap
from mfgp.frames import Frame, FrameSet
from mfgp.gp.objectives import CrossValidation

if TYPE_CHECKING:
    import optuna

TRIES = 10  # of settings, for each that gets a score
COST_LIMIT = 2.0  # times M D of the start: a trial with more is not run
LEAST_LOST = 1e-7  # share of the variance that a contraction gives away, below which it is none
CONTRACTION = "descriptor.contraction"


@dataclass(frozen=True)
class Range:
    """Where a setting may lie; `log`: searched in its logarithm, `integer`: whole numbers.

    `share`: a retained share up to 1, searched in the logarithm of what it loses; 1 stands for losing nothing.
    """

    low: float
    high: float
    integer: bool = False
    log: bool = False
    share: bool = False

    def with_value(self, value: float) -> Range:
        """The range, widened where needed to hold a value."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def parameter(self, value: float) -> float:
        """The number that is searched, of a value of the setting."""
        return max(1.0 - value, LEAST_LOST) if self.share else value

    def value(self, parameter: float) -> float:
        """The setting of a number that was searched."""
        if not self.share:
            return parameter
        return 1.0 if parameter <= LEAST_LOST else 1.0 - parameter

    def suggest(self, trial: optuna.Trial, name: str) -> float | int:
        if self.integer:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        low, high = sorted((self.parameter(self.low), self.parameter(self.high)))
        return self.value(trial.suggest_float(name, low, high, log=self.log or self.share))


SPACE: dict[str, Range] = {
    "descriptor.r_cut": Range(3.5, 6.5),
    "descriptor.sigma": Range(0.2, 0.7, log=True),
    "descriptor.n_max": Range(4, 10, integer=True),
    "descriptor.l_max": Range(3, 8, integer=True),
    "descriptor.radial_scaling.r0": Range(1.0, 4.0, log=True),
    "descriptor.radial_scaling.m": Range(1, 8, integer=True),
    "model.zeta": Range(1, 6, integer=True),
}
SIZES: dict[str, Range] = {  # what trades accuracy for cost: searched where asked for
    "model.n_inducing": Range(100, 4000, integer=True, log=True),
    CONTRACTION: Range(0.99, 1.0, share=True),
}


@dataclass(frozen=True)
class Trial:
    """One setting, its score (nats a label; None where it could not be fitted or was left out), and what it costs.

    cost: M D, what a step of dynamics costs, over that of the start; None for trials of earlier versions.
    """

    number: int
    settings: Mapping[str, float | int]
    score: float | None
    cost: float | None = None


def default_space(config: FitConfig) -> dict[str, Range]:
    """What is tuned in a configuration unless asked for otherwise."""
    scaling = config.descriptor.radial_scaling is not None
    return {name: r for name, r in SPACE.items() if scaling or "radial_scaling" not in name}


def with_settings(config: FitConfig, settings: Mapping[str, float | int]) -> FitConfig:
    """The configuration with dotted keys replaced; a contraction to all of the variance is none.

    Raises ConfigError for values that it does not allow.
    """
    data = config.model_dump()
    for name, value in settings.items():
        node = data
        *path, last = name.split(".")
        for part in path:
            if node.get(part) is None:
                raise ConfigError(
                    f"{name}: the configuration has no {part} to tune; set it first, or leave {name} out."
                )
            node = node[part]
        if last not in node:
            raise ConfigError(f"{name}: no such setting.")
        node[last] = None if name == CONTRACTION and value == 1 else value
    return FitConfig.model_validate(data)


def settings_of(config: FitConfig, names: Sequence[str]) -> dict[str, float | int]:
    """Present values of dotted keys; 1 for a contraction that there is not. Raises ConfigError for what is no number."""
    out = {}
    for name in names:
        node: Any = config
        for part in name.split("."):
            node = getattr(node, part, None)
        if name == CONTRACTION and node is None:
            node = 1.0
        if isinstance(node, bool) or not isinstance(node, (int, float)):
            raise ConfigError(f"{name}: {node!r} in the configuration is not a number that could be tuned.")
        out[name] = node
    return out


def cross_validated_score(
    frames: FrameSet, config: FitConfig, baselines: Sequence[Baseline] = (), report: Report = silent
) -> float:
    """Log density of each fold given the others, nats a label, at the hyperparameters that the evidence of all data chooses.

    baselines: those of the configuration. Raises NumericalError where float64 does not carry the problem.
    """
    features = Features.build(frames, config, report)
    basis = features.basis
    columns, column_std = fitting.build_columns(frames, basis.species, config, list(baselines))
    columns, column_std = columns.to(features.device), column_std.to(features.device)
    folds = config.model_copy(update={"training": config.training.model_copy(update={"objective": "cv"})})
    data = fitting.training_data(frames, features, columns, list(baselines), folds, report)
    training = config.training
    prior = fitting.make_prior(frames.levels, basis, config.model.rho).to(features.device)
    noise = fitting.make_noise(frames.levels, config).to(features.device)
    evidence = config.model_copy(update={"training": training.model_copy(update={"objective": "evidence"})})
    fitting.learn(prior, noise, fitting.TrainingData(data.statistics), basis, column_std, evidence, report)
    objective = CrossValidation(noise, prior, data.folds)
    with torch.no_grad():
        value = objective(data.statistics, basis.species_index(), column_std) - objective.log_prior()
    labels = sum(m.count for fold in data.folds for m in fold.moments.values())
    return float(value) / labels


def tune(
    frames: FrameSet,
    config: FitConfig,
    n_trials: int,
    storage: Path,
    space: Mapping[str, Range] | None = None,
    report: Report = silent,
    baselines: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """Run trials until `n_trials` in `storage` (SQLite; made where there is none) have a score. Best first, then the others.

    Settings whose steps cost too much (COST_LIMIT), or that float64 does not carry, have none and do not count, up to TRIES
    for each that does.

    baselines: calculators by name, as in MultiFidelityGP.fit; each structure is computed once for all trials. Raises
    ConfigError for a storage of another search, settings that cannot be tuned, baselines that are not known, or a missing
    Optuna.
    """
    optuna = _optuna()
    _check_storage(storage)
    calculators = make_baselines(config.baselines, baselines, frames.levels)
    space = dict(space or default_space(config))
    start = settings_of(config, list(space))
    space = {name: r.with_value(start[name]) for name, r in space.items()}
    training = distinct(trainable(frames))
    study = _study(optuna, storage, training.data_hash(), space, start, config)
    _enough_points(space, training)
    start_cost = step_cost(config, training)
    for baseline, first in zip(calculators, first_levels(config.baselines, frames.levels), strict=True):
        _remember(baseline, [f for f in training if frames.levels.index(f.fidelity) >= first], report)
    complete, tried = (optuna.trial.TrialState.COMPLETE,), len(study.get_trials(states=_ended(optuna)))
    done = len(study.get_trials(states=complete))

    def objective(trial: Any) -> float:
        proposed = with_settings(config, {name: r.suggest(trial, name) for name, r in space.items()})
        try:
            cost = step_cost(proposed, training) / start_cost
        except ConfigError as error:  # radial functions that cannot be told apart
            raise optuna.TrialPruned(str(error)) from None
        trial.set_user_attr("cost", cost)
        if cost > COST_LIMIT:
            raise optuna.TrialPruned(f"more than {COST_LIMIT:g} times the cost of a step at the start")
        try:
            score = cross_validated_score(training, proposed, calculators)
        except NumericalError as error:
            raise optuna.TrialPruned(str(error)) from None
        if not math.isfinite(score):
            raise optuna.TrialPruned("the score is not finite")
        return score

    while done < n_trials and tried < TRIES * n_trials:
        study.optimize(objective, n_trials=1)
        scored = [float(t.value) for t in study.get_trials(states=complete) if t.value is not None]
        done, tried = len(scored), tried + 1
        report("trials", done, n_trials, f"best {max(scored):.4f} nats a label" if scored else "")
    return _sorted(study, space, optuna)


def step_cost(config: FitConfig, frames: FrameSet) -> float:
    """M D: a step of dynamics costs about 6 M D flops an atom (docs/cost_model.md)."""
    species = tuple(sorted({int(z) for f in frames for z in f.atoms.numbers}))
    soap = build_soap(frames, species, config.descriptor, config.seed, torch.device("cpu"))
    return float(config.model.n_inducing) * soap.n_features


def _check_storage(storage: Path) -> None:
    if storage.exists():
        with open(storage, "rb") as file:
            if file.read(16) not in (b"SQLite format 3\0", b""):
                raise ConfigError(f"{storage} is no SQLite file; name the one of an earlier search, or a new one.")


def _enough_points(space: Mapping[str, Range], frames: FrameSet) -> None:
    n_species = len({int(z) for f in frames for z in f.atoms.numbers})
    points = space.get("model.n_inducing")
    if points is not None and points.low < n_species:
        raise ConfigError(f"model.n_inducing: searched from {points.low:g} on, but there are {n_species} elements.")


def _remember(baseline: Baseline, frames: Sequence[Frame], report: Report) -> None:
    """Let the baseline compute the labels of all frames, with room for them."""
    baseline.make_room(len(frames))
    for i, frame in enumerate(frames):
        baseline.labels(frame.atoms)
        report(f"labels of {baseline.name}", i + 1, len(frames), "")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("tune needs Optuna: pip install -e '.[tune]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _study(
    optuna: Any, storage: Path, data: str, space: Mapping[str, Range], start: Mapping[str, Any], config: FitConfig
) -> optuna.Study:
    what = f"{data} {sorted(space)} {_held(config, space)}"
    study = optuna.create_study(
        storage=f"sqlite:///{storage}",
        study_name="tune",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=config.seed + _count(optuna, storage)),
        load_if_exists=True,
    )
    if study.user_attrs.get("search", what) != what:
        raise ConfigError(f"{storage} holds a search of other data or settings; name another file.")
    study.set_user_attr("search", what)
    waiting = optuna.trial.TrialState.WAITING
    first = {name: space[name].parameter(value) for name, value in start.items()}
    if not any(t.params == first for t in study.get_trials(states=(*_ended(optuna), waiting))):
        study.enqueue_trial(first)
    return study


def _held(config: FitConfig, space: Mapping[str, Range]) -> str:
    """What a search does not change of a configuration, as text: trials of another one do not compare."""
    data = config.model_dump(mode="json", exclude={"fidelities", "device"})
    for name in space:
        node = data
        *path, last = name.split(".")
        for part in path:
            node = node[part]
        node.pop(last)
    return json.dumps(data, sort_keys=True)


def _count(optuna: Any, storage: Path) -> int:
    """Trials so far: a sampler that goes on must not repeat the numbers of the first one."""
    if not storage.exists():
        return 0
    return len(optuna.load_study(study_name="tune", storage=f"sqlite:///{storage}").trials)


def _ended(optuna: Any) -> tuple[Any, ...]:
    states = optuna.trial.TrialState
    return states.COMPLETE, states.PRUNED


def _sorted(study: optuna.Study, space: Mapping[str, Range], optuna: Any) -> list[Trial]:
    found = [
        Trial(t.number, {k: space[k].value(p) for k, p in t.params.items()}, t.value, t.user_attrs.get("cost"))
        for t in study.get_trials(states=_ended(optuna))
    ]
    return sorted(found, key=lambda t: (t.score is None, -(t.score or 0.0)))
