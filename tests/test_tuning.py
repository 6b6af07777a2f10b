"""`mfgp tune`: the score against explicit folds, the search, going on after a kill, and the command."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import ase.io
import pytest
import torch
import yaml
from ase.calculators.lj import LennardJones
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from mfgp import ConfigError, FitConfig, FrameSet, tuning
from mfgp.cli import app
from mfgp.config import BaselineConfig, load_config
from mfgp.fit import fitting
from mfgp.fit.features import Features
from mfgp.frames import to_atoms
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.evidence import evidence
from mfgp.gp.hyperparameters import inverse_variances
from mfgp.gp.objectives import FOLDS
from mfgp.tuning import Range, cross_validated_score, settings_of, tune, with_settings

SPACE = {"descriptor.sigma": Range(0.3, 0.8, log=True), "model.zeta": Range(1, 4, integer=True)}


@pytest.fixture(scope="module")
def small(config: FitConfig) -> FitConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"max_iterations": 10})})


def test_the_score_is_the_log_density_of_folds(
    two_levels: FrameSet, small: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against evidences of explicitly left-out frames, at the hyperparameters that the score used."""
    learned = {}
    learn = fitting.learn

    def remembered(prior, noise, data, *args):  # type: ignore[no-untyped-def]
        out = learn(prior, noise, data, *args)
        learned.update(prior=prior, noise=noise, statistics=data.statistics)
        return out

    monkeypatch.setattr("mfgp.fit.fitting.learn", remembered)
    training = two_levels.training()
    score = cross_validated_score(training, small)
    features = Features.build(training, small)
    columns, column_std = fitting.build_columns(training, features.basis.species, small, [])
    prior, noise = learned["prior"], learned["noise"]

    def log_density(frames: FrameSet) -> float:
        statistics = fitting.accumulate(frames, features, columns, [], small.training.noise_energy)
        d = block_scales(prior.rho, prior.scale, features.basis.species_index(), column_std)
        with torch.no_grad():
            return float(evidence(statistics, d, inverse_variances(noise, statistics, d)))

    parts = fitting.in_folds(training, FOLDS, small.seed)
    total, labels = 0.0, 0
    for part in parts:
        rest = FrameSet(training.levels, tuple(f for f in training if all(f is not g for g in part)))
        total += log_density(training) - log_density(rest)
        labels += sum(1 + 3 * len(f.atoms) + 6 for f in part)
    assert_allclose(score, total / labels, rtol=1e-6)


def test_a_search_starts_from_the_configuration_and_goes_on(
    two_levels: FrameSet, small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(two_levels, small, 2, tmp_path / "t.db", SPACE)
    assert len(first) == 2
    start = next(t for t in first if t.number == 0)
    assert start.settings == settings_of(small, list(SPACE))
    calls = []
    score = cross_validated_score
    monkeypatch.setattr(tuning, "cross_validated_score", lambda *args: calls.append(1) or score(*args))
    again = tune(two_levels, small, 3, tmp_path / "t.db", SPACE)
    assert len(calls) == 1  # the first two were not done again
    assert {t.number: t.score for t in first}.items() <= {t.number: t.score for t in again}.items()
    scores = [t.score for t in again if t.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] >= start.score  # type: ignore[operator]


def test_settings_that_are_not_tried_do_not_count(
    two_levels: FrameSet, small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose steps would cost too much are not fitted; where there are no others it ends nevertheless."""
    monkeypatch.setattr(tuning, "cross_validated_score", lambda frames, config, calculators: -config.descriptor.n_max)
    n_max = small.descriptor.n_max
    space = {"descriptor.n_max": Range(n_max - 1, 3 * n_max, integer=True)}
    found = tune(two_levels, small, 6, tmp_path / "t.db", space)
    assert sum(t.score is not None for t in found) == 6 < len(found)
    assert any(t.cost is None for t in found)  # twelve radial functions of 4.5 Å are not to be told apart
    monkeypatch.setattr(tuning, "COST_LIMIT", 0.1)
    none = tune(two_levels, small, 2, tmp_path / "none.db", space)
    assert [t.score for t in none] == [None] * 2 * tuning.TRIES


def test_inducing_points_and_contraction_compete_for_the_cost_of_a_step(
    two_levels: FrameSet, small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More points always score higher here, so that the best setting lies near the limit, with a contraction."""
    training = two_levels.training()
    fitted: list[FitConfig] = []

    def score(frames: FrameSet, config: FitConfig, calculators: object) -> float:
        fitted.append(config)
        return math.log(config.model.n_inducing)

    monkeypatch.setattr(tuning, "cross_validated_score", score)
    m = small.model.n_inducing
    space = {
        "model.n_inducing": Range(m // 2, 8 * m, integer=True, log=True),
        "descriptor.contraction": Range(0.9, 1.0, share=True),
    }
    found = tune(two_levels, small, 30, tmp_path / "t.db", space)
    start = next(t for t in found if t.number == 0)
    assert (start.settings["descriptor.contraction"], start.cost) == (1.0, 1.0)
    assert fitted[0] == small  # no contraction, not one to all of the variance
    for trial in found:
        config = with_settings(small, trial.settings)
        expected = config.model.n_inducing * Features.build(training, config).soap.n_features
        assert_allclose(trial.cost, expected / (m * Features.build(training, small).soap.n_features), rtol=1e-12)
        assert (trial.score is None) == (trial.cost > tuning.COST_LIMIT)
    assert found[0].settings["model.n_inducing"] > 2 * m
    assert found[0].settings["descriptor.contraction"] < 1
    with pytest.raises(ConfigError, match="searched from 1 on, but there are"):
        tune(two_levels, small, 2, tmp_path / "few.db", {"model.n_inducing": Range(1, 50, integer=True)})


def test_shares_are_searched_by_what_they_lose() -> None:
    contraction = Range(0.99, 1.0, share=True)
    for value in (0.99, 0.9999, 0.99999, 1.0):
        assert contraction.value(contraction.parameter(value)) == value
    assert Range(1, 6).value(Range(1, 6).parameter(3)) == 3


def test_a_killed_first_trial_is_done_again(
    two_levels: FrameSet, small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "cross_validated_score", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(two_levels, small, 1, tmp_path / "t.db", SPACE)
    found = tune(two_levels, small, 1, tmp_path / "t.db", SPACE)
    assert [t.settings for t in found] == [settings_of(small, list(SPACE))]


def test_baselines_are_computed_once_for_all_trials(two_levels: FrameSet, small: FitConfig, tmp_path: Path) -> None:
    """What the levels differ by, as a baseline of the higher one, makes the labels likelier."""
    seen: list[bytes] = []

    class Counted(LennardJones):
        def calculate(self, atoms=None, *args, **kwargs):
            seen.append(atoms.positions.tobytes())
            super().calculate(atoms, *args, **kwargs)

    config = small.model_copy(update={"baselines": (BaselineConfig(name="lj", from_level="high"),)})
    calculators = {"lj": Counted(sigma=2.3, epsilon=0.05, rc=6.0, smooth=True)}
    space = {"descriptor.sigma": Range(0.3, 0.6)}
    found = tune(two_levels, config, 2, tmp_path / "tune.db", space, baselines=calculators)
    structures = {f.atoms.positions.tobytes() for f in two_levels.training().of("high")}
    assert sorted(seen) == sorted(structures)  # and none of the structures at the level that does not use it
    start = next(t for t in found if t.number == 0)
    assert start.score > cross_validated_score(two_levels.training(), small) + 0.05  # nats a label
    with pytest.raises(ConfigError, match="another file"):
        tune(two_levels, small, 2, tmp_path / "tune.db", space)
    other = with_settings(config, {"model.zeta": 3})  # not among what is tuned
    with pytest.raises(ConfigError, match="another file"):
        tune(two_levels, other, 2, tmp_path / "tune.db", space, baselines=calculators)


def test_a_storage_that_is_no_database_is_left_alone(two_levels: FrameSet, small: FitConfig, tmp_path: Path) -> None:
    (tmp_path / "data.extxyz").write_text("2\n\nCu 0 0 0\nCu 0 0 2.5\n")
    with pytest.raises(ConfigError, match="no SQLite file"):
        tune(two_levels, small, 1, tmp_path / "data.extxyz", SPACE)
    assert (tmp_path / "data.extxyz").read_text().startswith("2\n")


def test_other_data_want_another_file(two_levels: FrameSet, small: FitConfig, tmp_path: Path) -> None:
    tune(two_levels, small, 1, tmp_path / "t.db", SPACE)
    fewer = FrameSet(two_levels.levels, two_levels.frames[1:])
    with pytest.raises(ConfigError, match="a search of other data"):
        tune(fewer, small, 1, tmp_path / "t.db", SPACE)


def test_settings() -> None:
    config = FitConfig(descriptor={"sigma": 0.9})
    tuned = with_settings(config, {"descriptor.sigma": 0.5, "descriptor.radial_scaling.m": 3, "model.zeta": 2})
    assert (tuned.descriptor.sigma, tuned.descriptor.radial_scaling.m, tuned.model.zeta) == (0.5, 3, 2)  # type: ignore
    assert tuning.default_space(config).keys() == tuning.SPACE.keys()
    plain = FitConfig(descriptor={"radial_scaling": None})
    assert not [name for name in tuning.default_space(plain) if "radial_scaling" in name]
    with pytest.raises(ConfigError, match="no radial_scaling to tune"):
        with_settings(plain, {"descriptor.radial_scaling.m": 3})
    assert Range(1.0, 2.0).with_value(3.0) == Range(1.0, 3.0)


def write_config(frames: FrameSet, config: FitConfig, folder: Path) -> None:
    """config.yaml and the files that it trains on."""
    for level in frames.levels:
        ase.io.write(folder / f"{level}.extxyz", [to_atoms(f) for f in frames.of(level)])
    settings = config.model_dump(mode="json", include={"descriptor", "model", "training"})
    settings["fidelities"] = [{"name": level, "train": f"{level}.extxyz"} for level in frames.levels]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def test_the_command_writes_a_configuration(two_levels: FrameSet, small: FitConfig, tmp_path: Path) -> None:
    write_config(two_levels, small, tmp_path)
    out, storage = tmp_path / "tuned.yaml", tmp_path / "t.db"
    arguments = ["tune", tmp_path / "config.yaml", "-o", out, "-n", 2, "--storage", storage]
    result = CliRunner().invoke(app, [str(a) for a in [*arguments, "--range", "descriptor.sigma=0.3:0.8"]])
    assert result.exit_code == 0, result.output
    assert "best of 2 trials" in result.stdout
    tuned = load_config(out)
    assert 0.3 <= tuned.descriptor.sigma <= 0.8
    assert tuned.levels == two_levels.levels
    with sqlite3.connect(storage) as db:
        assert db.execute("SELECT count(*) FROM trials").fetchone()[0] == 2
    for bad in (
        "sigma=1:2",
        "descriptor.sigma=2:1",
        "descriptor.sigma",
        "descriptor.n_max=4.2:8",
        "descriptor.contraction=0.9:1.1",
    ):
        for option in ("--range", "--also"):
            result = CliRunner().invoke(app, [str(a) for a in [*arguments, option, bad]])
            assert result.exit_code == 1
            assert f"error: {option}" in result.stderr


def test_the_command_tunes_more_on_request(two_levels: FrameSet, small: FitConfig, tmp_path: Path) -> None:
    write_config(two_levels, small, tmp_path)
    also = ["--also", "model.n_inducing=10:50", "--also", "descriptor.contraction=0.999:1"]
    for options, n in (([], len(tuning.SPACE)), (["--range", "model.zeta=1:4"], 1)):
        out, storage = tmp_path / f"tuned{n}.yaml", tmp_path / f"{n}.db"
        arguments = ["tune", tmp_path / "config.yaml", "-o", out, "-n", 2, "--storage", storage]
        result = CliRunner().invoke(app, [str(a) for a in [*arguments, *options, *also]])
        assert result.exit_code == 0, result.output
        assert "cost" in result.stdout
        tuned = load_config(out)
        assert 10 <= tuned.model.n_inducing <= 50
        assert tuned.descriptor.contraction is None or 0.999 <= tuned.descriptor.contraction < 1
        with sqlite3.connect(storage) as db:
            names = {row[0] for row in db.execute("SELECT param_name FROM trial_params")}
        assert len(names) == n + 2
