"""Objectives of the hyperparameters against dense normal densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import mfgp.gp.hyperparameters
from descriptors import SOAPConfig
from mfgp import ConfigError, FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.data.single_point import structure_hash
from mfgp.fit import fitting
from mfgp.fit.features import Features
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.hyperparameters import LARGEST, AutoregressiveGP, Evidence, LevelNoise
from mfgp.gp.objectives import CollapsedBound, CrossValidation, TrainingData
from mfgp.gp.observations import frame_rows
from mfgp.gp.statistics import Statistics
from mfgp.predict.residual import residual_variance

SIGMAS = (0.02, 0.1)  # eV per sqrt(atom), eV/Å


def settings(objective: str = "evidence", n_inducing: int = 16) -> FitConfig:
    return FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": n_inducing},
        training={"objective": objective, "max_iterations": 15, "calibrate": False},
    )


class Problem:
    """A small two-level problem, and its design matrix in the space of all weights."""

    def __init__(self, frames: FrameSet) -> None:
        self.frames, config = frames, settings()
        self.features = Features.build(frames, config)
        basis = self.features.basis
        self.columns, self.std = fitting.build_columns(frames, basis.species, config, [])
        self.prior = AutoregressiveGP(2, basis.species, basis.zeta, "scalar")
        self.prior.set_scale(torch.tensor([0.7, 0.3], dtype=torch.float64))
        self.noise = LevelNoise(2, (*SIGMAS, 0.1))
        self.index = basis.species_index()

    def statistics(self, frames: FrameSet) -> Statistics:
        return fitting.accumulate(frames, self.features, self.columns, [], SIGMAS[0])

    def dense(self, frames: FrameSet) -> tuple[np.ndarray, np.ndarray]:
        """y [row], and rows of all weights [row, 2 M'] divided, like y, by nothing; noise variances are in `noises`."""
        rows, targets = [], []
        d = block_scales(self.prior.rho, self.prior.scale, self.index, self.std).detach()
        for f in frames:
            for level, kind, a, y in self.labelled(f):
                sigma = self.noise.of((level, kind)).item()
                rows.append(torch.cat([a * d[level, 0], a * d[level, 1]], dim=1) / sigma)
                targets.append(y / sigma)
        return torch.cat(targets).numpy(), torch.cat(rows).numpy()

    def labelled(self, f: object) -> list[tuple[int, str, torch.Tensor, torch.Tensor]]:
        frame = f
        level = self.frames.levels.index(frame.fidelity)  # type: ignore[attr-defined]
        phi = self.features.rows(frame.atoms)  # type: ignore[attr-defined]
        extra = self.columns.rows(frame.atoms.numbers, [], frame.atoms.get_volume())  # type: ignore[attr-defined]
        found = frame_rows(frame, phi, self.columns, extra, level, SIGMAS[0], self.features.centre)  # type: ignore[arg-type]
        return [(level, kind, a, y) for kind, (a, y) in found.items()]


@pytest.fixture(scope="module")
def problem(two_levels: FrameSet) -> Problem:
    training = two_levels.training()
    return Problem(FrameSet(training.levels, (*training.of("low")[:6], *training.of("high")[:4])))


def test_cross_validation_is_the_density_of_folds_given_the_others(problem: Problem) -> None:
    parts = fitting.in_folds(problem.frames, 3, seed=0)
    folds = [problem.statistics(p) for p in parts]
    objective = CrossValidation(problem.noise, problem.prior, folds)
    found = objective(problem.statistics(problem.frames), problem.index, problem.std) - objective.log_prior()
    dense = [problem.dense(p) for p in parts]
    expected = 0.0
    for k, (y, a) in enumerate(dense):
        y_rest, a_rest = (np.concatenate([d[i] for j, d in enumerate(dense) if j != k]) for i in (0, 1))
        precision = np.eye(a.shape[1]) + a_rest.T @ a_rest
        mean = np.linalg.solve(precision, a_rest.T @ y_rest)
        covariance = a @ np.linalg.solve(precision, a.T) + np.eye(len(y))
        expected += multivariate_normal(a @ mean, covariance).logpdf(y)
    scaling = [
        problem.noise.of((level, kind)) for f in problem.frames for level, kind, _, y in problem.labelled(f) for _ in y
    ]
    expected -= torch.stack(scaling).log().sum().item()  # densities of y, not of y / sigma
    assert_allclose(found.item(), expected, rtol=0, atol=1e-5)


def test_the_bound_is_the_evidence_less_what_the_inducing_points_do_not_carry(problem: Problem) -> None:
    traces = fitting.prior_traces(problem.frames, problem.features, problem.columns, SIGMAS[0])
    statistics = problem.statistics(problem.frames)
    bound = CollapsedBound(problem.noise, problem.prior, traces)(statistics, problem.index, problem.std)
    evidence = Evidence(problem.noise, problem.prior)(statistics, problem.index, problem.std)
    model = MultiFidelityGP(
        settings(), problem.frames.levels, problem.features, problem.columns, problem.std, problem.prior, problem.noise,
        statistics, [], {}, frozenset(),
    )  # fmt: skip
    expected = 0.0
    for f in problem.frames:
        level, n = problem.frames.levels.index(f.fidelity), len(f.atoms)
        functionals = problem.features.functionals(f.atoms)
        left = residual_variance(model, level, functionals.phi, functionals.prior)
        noise = problem.noise.noise[level].detach()
        expected += float(
            left[0] / n / noise[0] ** 2
            + left[1:-6].sum() / noise[1] ** 2
            + (left[-6:-3] + 2.0 * left[-3:]).sum() / n / noise[2] ** 2
        )
    assert expected > 10.0
    assert_allclose((evidence - bound).item(), 0.5 * expected, rtol=1e-8)
    for p in (*problem.prior.parameters(), *problem.noise.parameters()):
        p.requires_grad_(True)


@pytest.mark.parametrize("largest", [LARGEST, 1e4], ids=["", "noise that float64 cannot carry"])
@pytest.mark.parametrize("kind", ["evidence", "vfe", "cv"])
def test_gradients(problem: Problem, kind: str, largest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that the noises depend on: 1e4 makes the amplitudes raise them."""
    monkeypatch.setattr(mfgp.gp.hyperparameters, "LARGEST", largest)
    statistics = problem.statistics(problem.frames)
    if kind == "evidence":
        data = TrainingData(statistics)
    elif kind == "vfe":
        data = TrainingData(
            statistics, traces=fitting.prior_traces(problem.frames, problem.features, problem.columns, SIGMAS[0])
        )
    else:
        folds = tuple(problem.statistics(p) for p in fitting.in_folds(problem.frames, 3, seed=0))
        data = TrainingData(statistics, folds)
    first = torch.cat(
        [torch.arange(0, 16, 2), torch.arange(16, statistics.size)]
    )  # as on a prefix of the inducing points
    part, index = data.subset(first), problem.index[::2]
    objective = part.objective(problem.noise, problem.prior)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    objective.zero_grad()
    objective(part.statistics, index, problem.std).backward()
    for p in parameters:
        assert p.grad is not None
        flat = p.data.view(-1)
        for i in range(len(flat)):
            values = []
            for step in (1e-5, -1e-5):
                flat[i] += step
                values.append(objective(part.statistics, index, problem.std).item())
                flat[i] -= step
            assert_allclose(p.grad.view(-1)[i].item(), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-3)


def test_folds_keep_geometries_together(two_levels: FrameSet) -> None:
    training = two_levels.training()
    parts = fitting.in_folds(training, 4, seed=1)
    assert sum(map(len, parts)) == len(training)
    keys = [{structure_hash(f.atoms) for f in part} for part in parts]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 12
    assert all(len(k) == 3 for k in keys)


def test_every_objective_fits(two_levels: FrameSet) -> None:
    error, noise = {}, {}
    for name in ("evidence", "vfe", "cv"):
        model = MultiFidelityGP.fit(two_levels, settings(name, 40), progress=False)
        difference = [model.predict(f.atoms).forces - f.forces for f in two_levels.held_out()]
        error[name], noise[name] = np.abs(np.concatenate(difference)).mean(), float(model.noise.noise[1, 1])
    assert error["evidence"] < 0.5  # eV/Å
    assert error["cv"] < 0.5
    assert noise["vfe"] > noise["evidence"]  # the trace of what 40 points do not carry is paid for with noise


def test_nothing_is_left_where_the_inducing_points_are_complete(two_levels: FrameSet) -> None:
    """zeta = 1 and M >= D: the traces are carried in full, by species."""
    config = settings("vfe", 100).model_copy(update={"descriptor": SOAPConfig(r_cut=4.0, n_max=2, l_max=1, sigma=0.5)})
    config = config.model_copy(update={"model": config.model.model_copy(update={"zeta": 1})})
    training = two_levels.training()
    features = Features.build(training, config)
    columns, _ = fitting.build_columns(training, features.basis.species, config, [])
    data = fitting.training_data(training, features, columns, [], config)
    assert set(data.traces) == set(data.statistics.observed())
    for key, trace in data.traces.items():
        diagonal = data.statistics.moments[key].gram.diagonal()
        carried = [diagonal[block].sum().item() for _, block in features.basis.blocks()]
        assert trace.min() > 1e-3
        assert_allclose(carried, trace, rtol=1e-6)


def test_isolated_atoms_are_in_no_fold(two_levels: FrameSet) -> None:
    """They fix references: left out they would be scored against bulk, and the amplitude would run away."""
    atoms = []
    for symbol, energy in (("Cu", -20.1), ("Au", 10.2)):
        atom = Atoms(symbol, info={"REF_energy": energy, "config_type": "IsolatedAtom", "fidelity": "low"})
        atom.arrays["REF_forces"] = np.zeros((1, 3))
        atoms.append(atom)
    low = [label(f.atoms, "low") for f in two_levels.training().of("low")]
    frames = read_frames({"low": low + atoms})
    assert all(not f.isolated_atom for part in fitting.in_folds(frames, 4, seed=0) for f in part)
    scale = {}
    for name in ("evidence", "cv"):
        model = MultiFidelityGP.fit(frames, settings(name, 40), progress=False)
        scale[name] = model.prior.scale.item()
    assert scale["cv"] < 20 * scale["evidence"]


def test_one_structure_cannot_be_cross_validated() -> None:
    with pytest.raises(ConfigError, match="at least two structures"):
        MultiFidelityGP.fit(read_frames({"low": [label(alloy(0), "low")]}), settings("cv"), progress=False)
