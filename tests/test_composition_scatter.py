"""The factor by which energies of like compositions scatter more than their variances say."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from conftest import alloy
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.composition_scatter import (
    PRIOR_COUNT,
    Composition,
    CompositionScatter,
    fit_scatter,
    formula,
    fractions,
    from_json,
    to_json,
)

FE2, FE3 = np.array([26, 15, 8, 8, 8, 8, 3]), np.array([26, 15, 8, 8, 8, 8])
HALF = np.concatenate([FE2, FE3])


def energies(
    spread: dict[str, float], n: int = 200, seed: int = 0
) -> list[tuple[tuple[tuple[int, float], ...], float, float]]:
    """n left-out energies of each composition, with errors `spread` times as wide as their variances say."""
    rng = np.random.default_rng(seed)
    numbers = {"discharged": FE2, "charged": FE3, "half": HALF}
    out = []
    for name, wide in spread.items():
        variance = rng.uniform(0.01, 0.04, n)
        out += [
            (fractions(numbers[name]), wide * e * v**0.5, v)
            for e, v in zip(rng.standard_normal(n), variance, strict=True)
        ]
    return out


def test_a_composition_that_scatters_is_found() -> None:
    found = fit_scatter(energies({"discharged": 1.0, "charged": 1.0, "half": 3.0}))
    assert found.exponent > 0.8
    assert 6.0 < found.factor(HALF) < 11.0  # 3^2
    for numbers in (FE2, FE3):
        assert 1.0 <= found.factor(numbers) < 2.0  # little of it is alike
    assert found.factor(np.array([29, 29])) == 1.0  # nothing is like it
    assert found.factor(np.tile(HALF, 8)) == found.factor(HALF)  # a supercell


def test_where_all_are_alike_there_is_no_factor() -> None:
    assert abs(np.log(fit_scatter(energies({"discharged": 1.0, "charged": 1.0, "half": 1.0})).factor(HALF))) < 0.1
    for one in (energies({"half": 3.0}), energies({"half": 3.0, "charged": 1.0}, n=4)):  # one composition; too few
        assert fit_scatter(one) == CompositionScatter()


def test_it_only_widens() -> None:
    found = fit_scatter(energies({"discharged": 0.5, "charged": 1.0, "half": 2.0}))
    assert found.exponent > 0.5
    assert found.factor(FE2) == 1.0
    assert found.factor(HALF) > 1.5


def test_a_structure_does_not_speak_for_itself() -> None:
    """One bad energy among compositions of one structure each: nothing that others could confirm."""
    rng, rows = np.random.default_rng(0), []
    for k in range(40):
        x = fractions(np.array([13] * (k + 1) + [7] * (90 - 2 * k)))
        rows.append((x, float(rng.standard_normal()) * (30.0 if k == 20 else 1.0), 1.0))
    found = fit_scatter(rows)
    assert found.exponent < 0.5
    assert found.factor(np.array([13] * 21 + [7] * 50)) < 2.0


def test_the_weighted_mean() -> None:
    """s = (n_0 + n q) / (n_0 + n) of the same composition, to the power c."""
    found = CompositionScatter(0.5, (Composition(fractions(FE2), 9, 4.0),))
    assert found.factor(FE2) == pytest.approx(((PRIOR_COUNT + 36.0) / (PRIOR_COUNT + 9.0)) ** 0.5)
    assert from_json(to_json(found)) == found


def test_what_a_user_is_told() -> None:
    found = CompositionScatter(1.0, (Composition(fractions(HALF), 50, 4.0), Composition(fractions(FE2), 50, 0.5)))
    assert found.widest() == {"Fe2LiO8P2": pytest.approx(found.factor(HALF))}
    assert formula(fractions(np.array([8, 1, 1]))) == "H2O"
    assert formula(fractions(np.repeat([26, 8], [500, 737]))) == "Fe500O737"


def test_every_standard_deviation_of_an_energy_follows(two_levels: FrameSet, config: FitConfig) -> None:
    training = config.training.model_copy(update={"calibrate": True})
    model = MultiFidelityGP.fit(two_levels, config.model_copy(update={"training": training}), progress=False)
    assert model.calibration is not None
    atoms = alloy(91)
    wide = CompositionScatter(1.0, (Composition(fractions(atoms.numbers), 1000, 4.0),))
    wider = copy.copy(model)
    wider.calibration = replace(model.calibration, scatter=(wide,) * 2)
    plain = copy.copy(model)
    plain.calibration = replace(model.calibration, scatter=())
    expected = wide.factor(atoms.numbers) ** 0.5
    for mode in ("full", "energies", "sampled", "by_level"):
        found, usual = (m.predictor(draws=4, by_level=True)(atoms, mode) for m in (wider, plain))
        assert found.energy_std == pytest.approx(expected * usual.energy_std)  # type: ignore[operator]
        if usual.forces_std is not None:
            assert_allclose(found.forces_std, usual.forces_std, rtol=1e-12)
        if usual.std_by_level is not None:
            for name, share in usual.std_by_level.items():
                assert found.std_by_level[name].energy_std == pytest.approx(expected * share.energy_std)  # type: ignore[index]
