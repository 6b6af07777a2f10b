"""Shares of the levels in a standard deviation, and standard deviations from draws of the weights."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.emt import EMT
from conftest import alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.config import BaselineConfig


def test_a_baseline_without_stress_leaves_no_stress_in_any_share(two_levels: FrameSet, config: FitConfig) -> None:
    class NoStress(EMT):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012 (as ASE has it)

        def calculate(self, *args: object) -> None:
            super().calculate(*args)  # type: ignore[arg-type]
            self.results.pop("stress", None)

    training = config.training.model_copy(update={"calibrate": True, "optimise": False})
    with_baseline = config.model_copy(update={"training": training, "baselines": (BaselineConfig(name="bare"),)})
    frames = [label(f.atoms, "high") for f in two_levels.training().of("high")]
    for atoms in frames:
        atoms.info.pop("REF_stress")
    model = MultiFidelityGP.fit(
        read_frames({"high": frames}), with_baseline, baselines={"bare": NoStress()}, progress=False
    )
    prediction = model.predict(alloy(66), "high", uncertainty="by_level")
    shares = prediction.std_by_level
    assert shares is not None
    assert list(shares) == ["high", "noise"]
    assert all(s.stress_std is None for s in shares.values())
    assert prediction.stress is None


@pytest.fixture(scope="module")
def calibrated(two_levels: FrameSet, model: MultiFidelityGP) -> MultiFidelityGP:
    training = model.config.training.model_copy(update={"calibrate": True, "optimise": False})
    config = model.config.model_copy(update={"training": training})
    return MultiFidelityGP.fit(two_levels, config, progress=False)


def test_squares_add_up_to_the_variance(calibrated: MultiFidelityGP) -> None:
    atoms = alloy(60)
    for use in (False, True):
        p = calibrated.predict(atoms, "high", calibrated=use, uncertainty="by_level")
        full = calibrated.predict(atoms, "high", calibrated=use)
        assert_allclose(p.forces_std, full.forces_std, rtol=1e-12)
        assert full.std_by_level is None
        shares = p.std_by_level
        assert shares is not None
        assert list(shares) == ["low", "high", *(["noise"] if use else [])]
        assert p.energy_std is not None
        assert p.forces_std is not None
        assert p.stress_std is not None
        assert_allclose(sum(s.energy_std**2 for s in shares.values()), p.energy_std**2, rtol=1e-9)
        assert_allclose(sum(s.forces_std**2 for s in shares.values()), p.forces_std**2, rtol=1e-9)
        assert_allclose(sum(s.stress_std**2 for s in shares.values()), p.stress_std**2, rtol=1e-9)  # type: ignore[operator]


def test_the_lowest_level_is_its_own_share(model: MultiFidelityGP) -> None:
    atoms = alloy(61)
    (p,) = model.predict([atoms], "low", uncertainty="by_level")
    assert p.std_by_level is not None
    assert list(p.std_by_level) == ["low"]
    assert_allclose(p.std_by_level["low"].forces_std, p.forces_std, rtol=1e-9)
    with pytest.raises(ValueError, match=r"needs model.predictor\(fidelity, by_level=True\)"):
        model.predictor("low")(atoms, "by_level")


def test_data_at_a_level_narrow_that_levels_share(config: FitConfig) -> None:
    """Same hyperparameters, more low or more high structures: the share of that level falls."""
    low, high = [label(alloy(i), "low") for i in range(14)], [label(alloy(i), "high") for i in range(14)]
    fixed = config.model_copy(update={"training": config.training.model_copy(update={"optimise": False})})
    features = MultiFidelityGP.fit(read_frames({"low": low, "high": high}), fixed, progress=False).features
    few = {"low": low[:4], "high": high[:4]}
    share = {}
    for name, data in {"few": few, "low": {**few, "low": low}, "high": {**few, "high": high}}.items():
        model = MultiFidelityGP.fit(read_frames(data), fixed, features=features, progress=False)
        model.prior.set_scale(model.prior.scale.new_tensor([1.0, 0.5]))
        model.refresh()
        found = model.predict(alloy(62), "high", uncertainty="by_level").std_by_level
        assert found is not None
        share[name] = {level: float((s.forces_std**2).mean()) for level, s in found.items()}
    assert share["low"]["low"] < 0.6 * share["few"]["low"]
    assert share["high"]["high"] < 0.6 * share["few"]["high"]


def test_draws_approach_the_exact_standard_deviation(two_levels: FrameSet) -> None:
    """Where the inducing points carry all variance (zeta = 1, more points than features), 1500 draws are within 8 %."""
    small = FitConfig(
        descriptor={"r_cut": 4.0, "n_max": 2, "l_max": 1, "sigma": 0.5},
        model={"zeta": 1, "n_inducing": 100},
        training={"optimise": False, "calibrate": False},
    )
    model = MultiFidelityGP.fit(two_levels, small, progress=False)
    atoms = alloy(63)
    exact = model.predict(atoms)
    sampled = model.predictor(draws=1500, seed=3)(atoms, "sampled")
    assert exact.forces_std is not None
    assert exact.forces_std.min() > 1e-4
    assert_allclose(sampled.forces_std, exact.forces_std, rtol=0.08)
    assert_allclose(sampled.stress_std, exact.stress_std, rtol=0.08)
    assert sampled.energy_std == pytest.approx(exact.energy_std, rel=1e-6)
    assert_allclose(sampled.forces, exact.forces, rtol=0, atol=1e-8)


def test_draws_are_seeded_and_follow_the_structure_smoothly(model: MultiFidelityGP) -> None:
    atoms, moved = alloy(64), alloy(64)
    moved.positions[0, 0] += 1e-4
    one, two = (model.predictor(draws=6, seed=1)(a, "sampled").forces_std for a in (atoms, atoms))
    assert_allclose(one, two, rtol=0, atol=0)
    other = model.predictor(draws=6, seed=2)(atoms, "sampled").forces_std
    assert not np.allclose(one, other, rtol=0.05)
    near = model.predictor(draws=6, seed=1)(moved, "sampled").forces_std
    assert_allclose(near, one, rtol=0.01, atol=1e-4)


def test_the_calculator_samples(model: MultiFidelityGP) -> None:
    atoms = alloy(65)
    atoms.calc = model.calculator("high", uncertainty="sampled", draws=4)
    forces = atoms.get_forces()
    assert_allclose(forces, model.predict(atoms).forces, rtol=0, atol=1e-8)
    assert atoms.calc.results["forces_std"].shape == (4, 3)
    assert (atoms.calc.results["forces_std"] > 0).all()
    with pytest.raises(ValueError, match="needs draws"):
        model.predictor("high")(atoms, "sampled")
