"""Calibration: it finds known factors, is stored, reported and can be switched off."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration import Calibration, Scale, fit_calibration, fit_scale
from mfgp.evaluation import evaluate, label_std
from mfgp.leave_one_out import LeftOut
from mfgp.model import spread


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
    scale = fit_scale(error, function, noise, structures=4000)
    assert_allclose((scale.function, scale.noise), (0.2, 0.6), rtol=0.05)


def test_few_structures_stay_near_what_the_model_says() -> None:
    rng = np.random.default_rng(1)
    error, one = 0.1 * rng.standard_normal(300), np.ones(300)
    few, many = (fit_scale(error, one, one, structures=n) for n in (2, 200))
    assert many.function + many.noise < 0.05 < 0.3 < few.function + few.noise < 2.0


def test_gradient_of_the_objective_is_exact() -> None:
    """At the optimum neither factor can be moved to gain: a wrong gradient stops elsewhere."""
    rng = np.random.default_rng(2)
    function, noise = rng.uniform(0.1, 4.0, 500), np.full(500, 0.3)
    error = rng.standard_normal(500) * np.sqrt(0.5 * function + 2.0 * noise)

    def objective(scale: Scale) -> float:
        v = scale.function * function + scale.noise * noise
        prior = np.log(scale.function) ** 2 + np.log(scale.noise) ** 2
        return float(0.5 * 0.1 * (error**2 / v + np.log(v)).sum() + 0.5 * prior)

    best = fit_scale(error, function, noise, structures=50)
    for a, b in ((1.03, 1), (0.97, 1), (1, 1.03), (1, 0.97)):
        assert objective(Scale(a * best.function, b * best.noise)) > objective(best)


def test_by_species_with_fallbacks(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """Errors on Cu are twice what the model says, on Au half; virials and the other level have no errors to look at."""
    rng = np.random.default_rng(3)
    frames = two_levels.training().of("high") * 20
    parts = []
    for frame in frames:
        species = np.repeat(frame.atoms.numbers, 3).astype(np.int64)
        std = np.where(species == 29, 2.0, 0.5)
        n = len(species)
        parts.append(LeftOut(frame, "forces", std * rng.standard_normal(n), np.full(n, 0.5), np.full(n, 0.5), species))
    found = fit_calibration(parts, model.levels, model.basis.species)
    cu, au = found.forces[1][29], found.forces[1][79]
    assert_allclose(0.5 * (cu.function + cu.noise), 4.0, rtol=0.2)
    assert_allclose(0.5 * (au.function + au.noise), 0.25, rtol=0.2)
    assert au.function < found.virial[1].function < cu.function  # virials take the scale of all forces
    assert found.energy[1] == Scale()
    assert found.forces[0][29] == found.virial[0] == Scale()
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
    expected = [
        np.sqrt(
            scales.forces[1][z].function * raw.forces_std[i] ** 2 + scales.forces[1][z].noise * float(noise[1]) ** 2
        )
        for i, z in enumerate(atoms.numbers.tolist())
    ]
    assert_allclose(p.forces_std, np.array(expected), rtol=1e-10)
    energy = scales.energy[1]
    assert raw.energy_std is not None
    assert p.energy_std == pytest.approx(
        (energy.function * raw.energy_std**2 + energy.noise * float(noise[0]) ** 2 * 4) ** 0.5, rel=1e-10
    )
    virial, volume = scales.virial[1], atoms.get_volume()
    assert raw.stress_std is not None
    assert p.stress_std is not None
    assert_allclose(
        p.stress_std * volume,
        np.sqrt(virial.function * (raw.stress_std * volume) ** 2 + virial.noise * float(noise[2]) ** 2 * 4),
        rtol=1e-10,
    )
    cheap = calibrated.predict(atoms, uncertainty="energies")
    assert cheap.energy_std == pytest.approx(p.energy_std, rel=1e-6)
    assert_allclose(cheap.energies_std, p.energies_std, rtol=1e-6)
    assert_allclose(p.energies_std, raw.energies_std * energy.function**0.5, rtol=1e-10)
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
