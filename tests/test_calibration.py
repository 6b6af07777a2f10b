"""Calibration: it finds known factors, is stored, reported and can be switched off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import DESCRIPTOR, alloy, label, molecules
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.calibration import Calibration, Scale
from mfgp.calibration.factors import PRIOR_STD, fit_calibration, fit_factors
from mfgp.calibration.leave_one_out import LeftOut
from mfgp.calibration.scores import Scores, coverage_of_few
from mfgp.data.training_frames import spread
from mfgp.evaluation import evaluate, label_std
from mfgp.predict.residual import residual_variance


@pytest.fixture(scope="module")
def calibrated(two_levels: FrameSet, model: MultiFidelityGP) -> MultiFidelityGP:
    config = model.config.model_copy(
        update={"training": model.config.training.model_copy(update={"calibrate": True, "optimise": False})}
    )
    return MultiFidelityGP.fit(two_levels, config, progress=False)


def test_finds_the_factors_of_simulated_errors() -> None:
    rng = np.random.default_rng(0)
    function, noise = rng.uniform(0.1, 4.0, 40000), np.full(40000, 0.5)
    error = rng.standard_normal(40000) * np.sqrt(0.2 * function + 0.6 * noise)
    assert_allclose(fit_factors(error, [function, noise], structures=4000), (0.2, 0.6), rtol=0.05)


def test_few_structures_stay_near_what_the_model_says() -> None:
    rng = np.random.default_rng(1)
    error, one = 0.1 * rng.standard_normal(300), np.ones(300)
    few, many = (sum(fit_factors(error, [one, one], structures=n)) for n in (1, 200))
    assert many < 0.05 < 0.5 < few < 2.0


def test_factors_that_the_errors_do_not_tell_apart_stay_where_they_are_expected() -> None:
    """The sum of two proportional parts is what the errors say, their ratio what is expected."""
    error, one = np.random.default_rng(1).standard_normal(3000), np.ones(3000)
    found = [fit_factors(error, [one, 0.5 * one], 1000, usual) for usual in (None, [1.0, 1.0], [20.0, 0.2])]
    for a, b in found:
        assert 0.9 < a + 0.5 * b < 1.1
    (a, b), same, (c, d) = found
    assert same == [a, b]
    assert 0.7 < a / b < 1.4
    assert c / d > 4.0


def test_forces_tell_which_part_of_an_energy_is_off(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """Energies of cells of one size, whose weights' part and noise are the same, beside forces where they are not."""
    rng, energies, forces = np.random.default_rng(5), [], []
    for frame in two_levels.training().of("high") * 8:
        species = np.repeat(frame.atoms.numbers, 3).astype(np.int64)
        n = len(species)
        w, b, none = rng.uniform(0.1, 4.0, n), np.full(n, 1.0), np.zeros(1, dtype=np.int64)
        error = rng.standard_normal(n) * np.sqrt(8.0 * w + 0.2 * b)
        forces.append(LeftOut(frame, "forces", error, w, 0 * w, b, species, np.arange(n)))
        v = np.ones(1)
        energies.append(LeftOut(frame, "energy", 2.9 * rng.standard_normal(1), v, 0 * v, v, none, none))
    species = model.basis.species
    alone = fit_calibration(energies, model.levels, species).energy[1]
    beside = fit_calibration([*energies, *forces], model.levels, species).energy[1]
    assert alone.weights == pytest.approx(alone.noise, rel=1e-3)
    assert beside.weights > 10 * beside.noise
    assert beside.weights + beside.noise == pytest.approx(alone.weights + alone.noise, rel=0.15)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_what_an_interval_holds_whose_width_comes_from_few_errors(n: int) -> None:
    """The width that n errors are most likely to have is their rms."""
    errors = np.random.default_rng(n).normal(0.0, 0.3, (200_000, n + 1))  # eV
    held = np.abs(errors[:, 0]) < 1.959964 * np.sqrt((errors[:, 1:] ** 2).mean(1))
    assert coverage_of_few(n) < 0.94
    assert abs(coverage_of_few(n) - held.mean()) < 3e-3


def test_notes_tell_of_energies_calibrated_on_few_structures(
    calibrated: MultiFidelityGP, model: MultiFidelityGP
) -> None:
    """12 low and 5 high structures."""
    (note,) = [note for note in calibrated.notes() if "left-out structures" in note]
    assert note.startswith(
        "note: standard deviations of energies at high are scaled to the errors of 5 left-out structures"
    )
    assert "expect 89 % of new energies" in note
    assert not [note for note in model.notes() if "left-out structures" in note]


def test_gradient_of_the_objective_is_exact() -> None:
    """At the optimum neither factor can be moved to gain: a wrong gradient stops elsewhere."""
    rng = np.random.default_rng(2)
    function, noise = rng.uniform(0.1, 4.0, 500), np.full(500, 0.3)
    error = rng.standard_normal(500) * np.sqrt(0.5 * function + 2.0 * noise)

    def objective(a: float, b: float) -> float:
        v = a * function + b * noise
        return float(0.05 * (error**2 / v + np.log(v)).sum() + 0.5 * (np.log(a) ** 2 + np.log(b) ** 2) / PRIOR_STD**2)

    a, b = fit_factors(error, [function, noise], structures=50)
    for x, y in ((1.03, 1), (0.97, 1), (1, 1.03), (1, 0.97)):
        assert objective(x * a, y * b) > objective(a, b)


def test_by_species_with_fallbacks(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """Errors on Cu are twice what the model says, on Au half; virials and the other level have no errors to look at."""
    rng = np.random.default_rng(3)
    frames = two_levels.training().of("high") * 20
    parts = []
    for frame in frames:
        species = np.repeat(frame.atoms.numbers, 3).astype(np.int64)
        std = np.where(species == 29, 2.0, 0.5)
        n = len(species)
        parts.append(
            LeftOut(frame, "forces", std * rng.standard_normal(n), *[np.full(n, 1 / 3)] * 3, species, np.arange(n))
        )
    found = fit_calibration(parts, model.levels, model.basis.species)
    cu, au = found.forces[1][29], found.forces[1][79]
    assert_allclose((cu.weights + cu.residual + cu.noise) / 3, 4.0, rtol=0.2)
    assert_allclose((cu.sampled_weights + cu.sampled_noise) / 3, 4.0, rtol=0.2)
    assert_allclose((au.weights + au.residual + au.noise) / 3, 0.25, rtol=0.2)
    assert au.weights < found.virial[1].weights < cu.weights  # virials take the scale of all forces
    assert found.energy[1] == Scale()
    assert found.forces[0][29] == found.virial[0] == Scale()
    narrow = [replace(part, error=0.1 * part.error) for part in parts]
    assert (
        fit_calibration(narrow, model.levels, model.basis.species).virial[1] == Scale()
    )  # but not where it is narrower
    by_species = {f.species: f for f in found.fitted}
    assert by_species["Cu"].coverage_before < 0.8 < 0.92 < by_species["Cu"].coverage_after
    assert by_species["Au"].z_std_before < 0.6 < 0.9 < by_species["Au"].z_std_after < 1.1


def test_predictions_carry_the_calibrated_std(calibrated: MultiFidelityGP) -> None:
    atoms = alloy(70)
    p, raw = calibrated.predict(atoms), calibrated.predict(atoms, calibrated=False)
    assert p.calibrated
    assert not raw.calibrated
    scales, noise = calibrated.calibration, calibrated.noise.noise[1]
    assert scales is not None
    assert p.forces_std is not None
    assert raw.forces_std is not None
    f = calibrated.features.functionals(atoms)
    rows = torch.cat([f.phi, calibrated.predictor().columns_of(atoms)], dim=1)
    weights = ((rows @ calibrated.covariances[1]) * rows).sum(1).numpy()
    residual = residual_variance(calibrated, 1, f.phi, f.prior).numpy()
    assert_allclose((weights + residual)[1:-6], raw.forces_std.ravel() ** 2, rtol=1e-9)

    novelty = scales.novelty_factors(
        1, torch.from_numpy(weights), atoms.numbers, calibrated.features.pairs(atoms)
    ).numpy()
    assert scales.novelty[1].exponent > 0
    assert scales.novelty[1].virial_exponent > 0
    u = scales.novelty[1].ratios(weights[1:-6], atoms.numbers, calibrated.features.pairs(atoms))
    assert_allclose(novelty[-6:], u.mean() ** scales.novelty[1].virial_exponent, rtol=1e-12)
    assert abs(novelty[-1] - 1.0) > 1e-3
    assert novelty[0] == scales.energy_novelty[1].factor(float(weights[0]), len(atoms))

    def expected(scale: Scale, row: int, label: float) -> float:
        model = scale.weights * weights[row] + scale.residual * residual[row]
        return (novelty[row] * model + scale.noise * label) ** 0.5

    for i, z in enumerate(atoms.numbers.tolist()):
        for c in range(3):
            value = expected(scales.forces[1][z], 1 + 3 * i + c, float(noise[1]) ** 2)
            assert p.forces_std[i, c] == pytest.approx(value, rel=1e-9)
    energy = scales.energy[1]
    assert p.energy_std == pytest.approx(expected(energy, 0, 4 * float(noise[0]) ** 2), rel=1e-9)
    assert p.stress_std is not None
    for k in range(6):
        label = 4 * float(noise[2]) ** 2 / (1 if k < 3 else 2)
        value = expected(scales.virial[1], k - 6, label) / atoms.get_volume()
        assert p.stress_std[k] == pytest.approx(value, rel=1e-9)
    cheap = calibrated.predict(atoms, uncertainty="energies")
    assert cheap.energy_std == pytest.approx(p.energy_std, rel=1e-6)
    assert_allclose(cheap.energies_std, p.energies_std, rtol=1e-6)
    assert p.energies_std is not None
    assert raw.energies_std is not None
    ratio = (p.energies_std / raw.energies_std) ** 2
    assert (ratio > min(energy.weights, energy.residual) - 1e-9).all()
    assert (ratio < max(energy.weights, energy.residual) + 1e-9).all()
    assert not np.allclose(p.forces_std, raw.forces_std, rtol=0.01)


def test_a_calibrated_label_std_is_the_predictions_own(calibrated: MultiFidelityGP, two_levels: FrameSet) -> None:
    frame = two_levels.held_out().of("high")[0]
    p = calibrated.predict(frame.atoms)
    std = label_std(calibrated, frame, p)
    assert std.energy == p.energy_std
    assert_allclose(std.forces, p.forces_std, rtol=0, atol=0)
    raw = evaluate(calibrated, [frame], "high", calibrated=False)
    assert not np.allclose(raw.forces.std, evaluate(calibrated, [frame], "high").forces.std, rtol=0.01)


def test_calibration_brings_the_coverage_to_where_it_should_be() -> None:
    """Forces of 30 unseen structures, with initial noises that are far too large: calibrated 90 - 99 %, raw 100 %."""
    training = [label(alloy(i), "high") for i in range(25)]
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 60},
        training={"optimise": False, "noise_force": 0.5},
    )
    model = MultiFidelityGP.fit(read_frames({"high": training}), config, progress=False)
    unseen = read_frames({"high": [label(alloy(200 + i), "high") for i in range(30)]})
    raw, good = (evaluate(model, unseen, "high", calibrated=c).forces.scores for c in (False, True))
    assert raw.coverage95 > 0.995
    assert 0.90 < good.coverage95 < 0.99
    assert good.nll < raw.nll - 0.3
    assert good.mae == raw.mae


def test_json_round_trip(calibrated: MultiFidelityGP) -> None:
    assert calibrated.calibration is not None
    text = json.dumps(calibrated.calibration.to_json(), allow_nan=False)
    assert Calibration.from_json(json.loads(text)) == calibrated.calibration
    assert {f.kind for f in calibrated.calibration.fitted} == {"energy", "forces", "virial"}


def test_sample_keeps_all_frames_of_a_geometry(two_levels: FrameSet) -> None:
    training = two_levels.training()
    sample = spread(training, 3, seed=0)
    assert len(sample.of("high")) == 3
    high = {f.atoms.positions.tobytes() for f in sample.of("high")}
    assert high == {f.atoms.positions.tobytes() for f in sample.of("low")}
    assert sample.frames == spread(training, 3, seed=0).frames
    assert len(spread(training, 100, seed=0)) == len(training)


def test_std_rises_with_the_error_where_the_coordination_was_never_seen() -> None:
    """Trained on bulk; vacancies and surfaces: ten times the std, and still at least 85 % inside the 95 % interval."""

    def vacancies(seed: int) -> Atoms:
        atoms = alloy(seed, repeat=2)
        del atoms[[0, 5, 9]]
        return atoms

    def surface(seed: int) -> Atoms:
        atoms = alloy(seed, repeat=2)
        atoms.center(vacuum=5.0, axis=2)
        return atoms

    config = FitConfig(descriptor=DESCRIPTOR, model={"zeta": 3, "n_inducing": 80}, training={"max_iterations": 40})
    model = MultiFidelityGP.fit(
        read_frames({"high": [label(alloy(i), "high") for i in range(25)]}), config, progress=False
    )

    def scored(make: Callable[[int], Atoms]) -> Scores:
        frames = read_frames({"high": [label(make(300 + i), "high") for i in range(5)]})
        return evaluate(model, frames, "high").forces.scores

    seen = scored(alloy)
    for make in (vacancies, surface):
        apart = scored(make)
        assert apart.rmse > 3 * seen.rmse
        assert apart.sharpness > 5 * seen.sharpness
        assert apart.coverage95 >= 0.85


def test_labels_with_their_own_sigma_replace_the_noise() -> None:
    """Forces that all carry a sigma: nothing learned a force noise, that of a new label is the sigma; it is added once."""
    frames = [label(alloy(i), "high") for i in range(8)]
    for atoms in frames:
        atoms.info["force_sigma"] = 0.1
    read = read_frames({"high": frames})
    stds = []
    for noise in (0.05, 0.5):
        config = FitConfig(
            descriptor=DESCRIPTOR,
            model={"zeta": 2, "n_inducing": 40},
            training={"optimise": False, "noise_force": noise},
        )
        model = MultiFidelityGP.fit(read, config, progress=False)
        p = model.predict(alloy(70))
        assert p.forces_std is not None
        stds.append(p.forces_std)
        frame = read.of("high")[0]
        std = label_std(model, frame, model.predict(frame.atoms))
        assert model.calibration is not None
        factors = np.array([[model.calibration.forces[0][z].noise] for z in frame.atoms.numbers])
        model_alone = model.predict(frame.atoms).forces_std ** 2 - 0.01 * factors  # type: ignore[operator]
        assert_allclose(std.forces**2 - model_alone, 0.01, rtol=1e-6)
    assert_allclose(stds[0], stds[1], rtol=1e-6)


def test_one_structure_cannot_calibrate(config: FitConfig) -> None:
    training = config.training.model_copy(update={"calibrate": True})
    with pytest.warns(UserWarning, match="too few structures to calibrate"):
        model = MultiFidelityGP.fit(
            read_frames({"high": [label(alloy(1), "high")]}),
            config.model_copy(update={"training": training}),
            progress=False,
        )
    assert model.calibration is None
    assert not model.predict(alloy(2)).calibrated


@pytest.mark.parametrize("n_inducing", [115, 120])
def test_energies_take_the_residual_of_forces_where_they_have_none(n_inducing: int) -> None:
    """Nearly all training environments are inducing points: left-out energies have no residual, new ones do."""
    settings = FitConfig(preset="molecule", model={"n_inducing": n_inducing})
    model = MultiFidelityGP.fit(molecules("CH3OH", 20, 0), settings, progress=False)
    assert model.basis.size == n_inducing
    assert model.calibration is not None
    assert model.calibration.energy[0].residual < 0.1
    assert (
        0.3 < evaluate(model, molecules("CH3OH", 50, 9), "emt").to_json()["energy"]["z_std"] < 1.5
    )  # 0.05 with a factor of 1


def test_copies_that_differ_in_the_last_digits_are_left_out_together() -> None:
    """Else each says what the other is, and standard deviations were a quarter of what they should be."""
    config = FitConfig(descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 200})
    frames = [label(alloy(i), "low") for i in range(24)]
    for atoms in frames[:]:
        copy = atoms.copy()
        copy.positions = copy.positions.round(6)
        frames.append(copy)
    model = MultiFidelityGP.fit(read_frames({"low": frames}), config, progress=False)
    tests = read_frames({"low": [label(alloy(900 + i), "low") for i in range(12)]})
    found = evaluate(model, tests, "low").to_json()["forces"]
    assert found["coverage95"] > 0.88
    assert found["z_std"] < 1.5


def test_a_part_that_is_far_too_large_is_scaled_away() -> None:
    """The residual of an amplitude that ran away, 10^8 times what the errors say: a factor that ended at e^-9 left 10^4."""
    error = np.random.default_rng(0).normal(size=400)
    small, large = fit_factors(error, [np.full(400, 1e-6), np.full(400, 1e8)], structures=40)
    assert 0.7 < 1e-6 * small + 1e8 * large < 1.5
