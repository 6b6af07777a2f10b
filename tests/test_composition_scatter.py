"""The factor by which energies and forces of like compositions scatter more or less than their variances say."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from conftest import alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.base.console import scattering
from mfgp.calibration.composition_scatter import (
    ENERGIES,
    FORCES,
    PRIOR_COUNT,
    Composition,
    CompositionScatter,
    Fractions,
    fit_scatter,
    formula,
    fractions,
    from_json,
    to_json,
)
from mfgp.calibration.factors import fit_calibration
from mfgp.calibration.leave_one_out import LeftOut

FE2, FE3 = np.array([26, 15, 8, 8, 8, 8, 3]), np.array([26, 15, 8, 8, 8, 8])
HALF = np.concatenate([FE2, FE3])


def left_out(spread: dict[str, float], n: int = 200, labels: int = 1, seed: int = 0) -> list[tuple[Fractions, float]]:
    """error^2 / variance of n left-out structures of each composition; errors `spread` times as wide as expected."""
    rng = np.random.default_rng(seed)
    numbers = {"discharged": FE2, "charged": FE3, "half": HALF}
    return [
        (fractions(numbers[name]), float(np.mean((wide * errors) ** 2)))
        for name, wide in spread.items()
        for errors in rng.standard_normal((n, labels))
    ]


def test_a_composition_that_scatters_is_found() -> None:
    found = fit_scatter(left_out({"discharged": 1.0, "charged": 1.0, "half": 3.0}), ENERGIES)
    assert found.exponent > 0.8
    assert 6.0 < found.factor(HALF) < 11.0  # 3^2
    for numbers in (FE2, FE3):
        assert 1.0 <= found.factor(numbers) < 2.0  # little of it is alike
    assert found.factor(np.array([29, 29])) == 1.0  # nothing is like it
    assert found.factor(np.tile(HALF, 8)) == found.factor(HALF)  # a supercell


def test_where_all_are_alike_there_is_no_factor() -> None:
    same = left_out({"discharged": 1.0, "charged": 1.0, "half": 1.0})
    assert abs(np.log(fit_scatter(same, ENERGIES).factor(HALF))) < 0.1
    for one in (left_out({"half": 3.0}), left_out({"half": 3.0, "charged": 1.0}, n=4)):  # one composition; too few
        assert fit_scatter(one, ENERGIES) == CompositionScatter()


def test_of_energies_it_only_widens() -> None:
    found = fit_scatter(left_out({"discharged": 0.5, "charged": 1.0, "half": 2.0}), ENERGIES)
    assert found.exponent > 0.5
    assert found.factor(FE2) == 1.0
    assert found.factor(HALF) > 1.5


def test_of_forces_it_narrows_too() -> None:
    """Structures with twenty labels each, errors 0.7, 1 and 2 times as wide as said: factors of the variance 0.5, 1, 4."""
    found = fit_scatter(left_out({"discharged": 0.7, "charged": 1.0, "half": 2.0}, n=50, labels=20), FORCES)
    assert 0.9 < found.exponent <= 1.0
    assert 0.4 < found.factor(FE2) < 0.7
    assert 3.0 < found.factor(HALF) < 4.2
    tiny = fit_scatter(left_out({"discharged": 0.01, "charged": 1.0, "half": 2.0}, n=50, labels=20), FORCES)
    assert tiny.factor(FE2) == pytest.approx(0.25**tiny.exponent)  # at most half as wide


def test_a_structure_does_not_speak_for_itself() -> None:
    """One bad energy among compositions of one structure each: nothing that others could confirm."""
    rng, rows = np.random.default_rng(0), []
    for k in range(40):
        x = fractions(np.array([13] * (k + 1) + [7] * (90 - 2 * k)))
        rows.append((x, float(rng.standard_normal() ** 2) * (900.0 if k == 20 else 1.0)))
    found = fit_scatter(rows, ENERGIES)
    assert found.exponent < 0.5
    assert found.factor(np.array([13] * 21 + [7] * 50)) < 2.0


def test_the_weighted_mean() -> None:
    """s = (n_0 + n q) / (n_0 + n) of the same composition, to the power c."""
    found = CompositionScatter(0.5, (Composition(fractions(FE2), 9, 4.0),))
    assert found.factor(FE2) == pytest.approx(((PRIOR_COUNT + 36.0) / (PRIOR_COUNT + 9.0)) ** 0.5)
    assert from_json(to_json(found)) == found


def test_what_a_user_is_told() -> None:
    found = CompositionScatter(
        1.0, (Composition(fractions(HALF), 50, 4.0), Composition(fractions(FE2), 50, 0.5)), FORCES
    )
    assert list(found.told().items()) == [
        ("Fe2LiO8P2", pytest.approx(found.factor(HALF))),
        ("FeLiO4P", pytest.approx(found.factor(FE2))),
    ]
    assert CompositionScatter(1.0, found.compositions).told() == {"Fe2LiO8P2": pytest.approx(found.factor(HALF))}
    assert formula(fractions(np.array([8, 1, 1]))) == "H2O"
    assert formula(fractions(np.repeat([26, 8], [500, 737]))) == "Fe500O737"


def test_a_level_is_told_by_its_name() -> None:
    """The second of three levels; the first has nothing that was fitted."""
    wide = to_json(CompositionScatter(1.0, (Composition(fractions(HALF), 50, 4.0),)))
    none = to_json(CompositionScatter())
    lines = list(scattering({"energy_scatter": [], "force_scatter": [none, wide, none]}, ("gfn1", "nm", "mag")))
    assert len(lines) == 1
    assert "of nm forces" in lines[0]
    assert "Fe2LiO8P2 x 1.96" in lines[0]


def test_a_calibration_finds_it_by_level_and_kind() -> None:
    """Twice as far off: forces of CuAu at the high level, energies of Cu at the low one."""
    rng = np.random.default_rng(0)
    pure = alloy(0)
    pure.numbers[:] = 29
    frames = read_frames({x: [label(alloy(0), x), label(pure, x)] for x in ("low", "high")})
    parts = []
    for frame in list(frames) * 40:
        mixed = 79 in frame.atoms.numbers
        for kind, n, species in (
            ("energy", 1, np.zeros(1, dtype=np.int64)),
            ("forces", 12, frame.atoms.numbers.repeat(3)),
        ):
            wide = 2.0 if (frame.fidelity, kind, mixed) in (("high", "forces", True), ("low", "energy", False)) else 1.0
            parts.append(
                LeftOut(frame, kind, wide * rng.standard_normal(n), *[np.full(n, 1 / 3)] * 3, species, np.arange(n))
            )
    nobody = np.zeros(0, dtype=np.int64)
    found = fit_calibration(parts, frames.levels, (29, 79), lambda atoms: (nobody, nobody))
    assert [s.least for s in found.force_scatter] == [FORCES] * 2
    assert [s.least for s in found.energy_scatter] == [ENERGIES] * 2
    cu, both = pure.numbers, alloy(0).numbers
    ratio = [s.factor(both) / s.factor(cu) for s in (*found.energy_scatter, *found.force_scatter)]
    assert ratio[0] < 0.85  # low energies: Cu is wider
    assert ratio[3] > 2.0  # high forces: CuAu is wider, as far as factors by species leave it to do
    assert_allclose(ratio[1:3], 1.0, rtol=0, atol=0.1)


def test_every_standard_deviation_follows(two_levels: FrameSet, config: FitConfig) -> None:
    training = config.training.model_copy(update={"calibrate": True})
    model = MultiFidelityGP.fit(two_levels, config.model_copy(update={"training": training}), progress=False)
    assert model.calibration is not None
    atoms = alloy(91)
    wide = CompositionScatter(1.0, (Composition(fractions(atoms.numbers), 1000, 4.0),))
    narrow = CompositionScatter(1.0, (Composition(fractions(atoms.numbers), 1000, 0.5),), FORCES)
    wider = copy.copy(model)
    wider.calibration = replace(model.calibration, energy_scatter=(wide,) * 2, force_scatter=(narrow,) * 2)
    plain = copy.copy(model)
    plain.calibration = replace(model.calibration, energy_scatter=(), force_scatter=())
    expected, of_forces = wide.factor(atoms.numbers) ** 0.5, narrow.factor(atoms.numbers) ** 0.5
    assert of_forces < 0.8
    for mode in ("full", "energies", "sampled", "by_level"):
        found, usual = (m.predictor(draws=4, by_level=True)(atoms, mode) for m in (wider, plain))
        assert found.energy_std == pytest.approx(expected * usual.energy_std)  # type: ignore[operator]
        if usual.forces_std is not None:
            assert_allclose(found.forces_std, of_forces * usual.forces_std, rtol=1e-12)
            assert_allclose(found.stress_std, usual.stress_std, rtol=1e-12)
        if usual.std_by_level is not None:
            for name, share in usual.std_by_level.items():
                assert found.std_by_level[name].energy_std == pytest.approx(expected * share.energy_std)  # type: ignore[index]
                assert_allclose(found.std_by_level[name].forces_std, of_forces * share.forces_std, rtol=1e-12)  # type: ignore[index]
