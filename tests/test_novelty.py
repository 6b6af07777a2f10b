"""Novelty: the exponent of simulated errors is found, strange surroundings are local, and left-out errors gain by it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import alloy
from numpy.testing import assert_allclose

from descriptors.neighbors import neighborhoods
from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.calibration.calibration import Scale
from mfgp.calibration.factors import fit_calibration
from mfgp.calibration.leave_one_out import LeftOut
from mfgp.calibration.novelty import (
    ENERGY_EXPONENT,
    ENERGY_RANGE,
    MAX_EXPONENT,
    RANGE,
    VIRIAL_EXPONENT,
    EnergyNovelty,
    Novelty,
    Pairs,
    Surprise,
    fit_exponent,
)
from mfgp.frames import Frame

NO_VIRIAL = np.zeros(6)


def pairs(atoms: Atoms) -> Pairs:
    nb = neighborhoods([atoms], 4.0)
    return nb.centre.numpy(), nb.neighbor.numpy()


def simulated(exponent: float, n: int = 300, rows: int = 30) -> list[Surprise]:
    """Structures whose errors have the model's variance times u^exponent, and some noise."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        log_ratio = np.full(rows, rng.normal(0.0, 0.6))
        model, noise = np.full(rows, 0.04), np.full(rows, 0.01)
        error = rng.standard_normal(rows) * np.sqrt(model * np.exp(exponent * log_ratio) + noise)
        out.append(Surprise(error, model, noise, log_ratio))
    return out


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.2])
def test_the_exponent_of_simulated_errors_is_found(exponent: float) -> None:
    assert_allclose(fit_exponent(simulated(exponent)), exponent, rtol=0, atol=0.1)


def test_errors_that_fall_with_novelty_give_no_negative_exponent() -> None:
    assert fit_exponent(simulated(-0.8)) < 0.02
    assert fit_exponent(simulated(4.0)) > MAX_EXPONENT - 0.02


def test_few_structures_hardly_say_anything() -> None:
    assert fit_exponent(simulated(1.2, n=2)) < 0.8 * fit_exponent(simulated(1.2))


def test_the_ratio_is_the_mean_over_atom_and_neighbours() -> None:
    """A chain in which each atom sees the next ones: 3 Å apart, pairs within 4 Å."""
    atoms = Atoms("CuAuCuCu", positions=[[0, 0, 0], [3, 0, 0], [6, 0, 0], [20, 0, 0]])
    variances = np.array([1.0, 2.0, 3.0, 10.0, 10.0, 10.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0])
    u = Novelty(1.0, {29: 1.0, 79: 5.0}).ratios(variances, atoms.numbers, pairs(atoms))
    assert_allclose(u, [(2 + 2) / 2, (2 + 2 + 1) / 3, (2 + 1) / 2, 4.0])
    variances[:3] = variances[6:] = 0.0
    some = Novelty(1.0, {29: 1.0, 79: 5.0}).ratios(variances, atoms.numbers, pairs(atoms))
    assert_allclose(some, [2.0, 2.0, 2.0, 1.0])  # what is not known is left out; nothing known: as usual
    variances[4:6] = 1e-16  # by symmetry
    some = Novelty(1.0, {29: 1.0, 79: 5.0}).ratios(variances, atoms.numbers, pairs(atoms))
    assert_allclose(some, [2.0, 2.0, 2.0, 1.0])


def test_what_is_far_away_changes_nothing() -> None:
    novelty, rng = Novelty(0.8, {29: 0.01, 79: 0.02}), np.random.default_rng(1)
    one, other = (Atoms("CuAu", positions=rng.uniform(0, 3, (2, 3))) for _ in range(2))
    other.positions += 30.0
    both, v = one + other, rng.uniform(0.005, 0.05, 12)
    apart = [novelty.factors(part, a.numbers, pairs(a), NO_VIRIAL)[0] for part, a in ((v[:6], one), (v[6:], other))]
    assert_allclose(novelty.factors(v, both.numbers, pairs(both), NO_VIRIAL)[0], np.concatenate(apart), rtol=1e-12)
    assert np.ptp(np.concatenate(apart)) > 0.05


def test_factors_are_bounded_and_one_where_nothing_was_learned() -> None:
    atoms = alloy(1)
    huge, usual = np.full(12, 1e9), {29: 1.0, 79: 1.0}
    for novelty, right in (
        (Novelty(0.5, usual), (RANGE[1] ** 0.5, 1.0)),
        (Novelty(0.0, usual, 0.7), (1.0, RANGE[1] ** 0.7)),
        (Novelty(), (1.0, 1.0)),
    ):
        forces, virial = novelty.factors(huge, atoms.numbers, pairs(atoms), NO_VIRIAL)
        assert_allclose(forces, right[0])
        assert virial == pytest.approx(right[1])


def test_the_virial_goes_by_the_mean_over_the_atoms_of_cell_and_supercell_alike() -> None:
    atoms, novelty = alloy(4), Novelty(0.3, {29: 0.01, 79: 0.02}, 0.8)
    v = np.repeat(np.random.default_rng(5).uniform(0.001, 0.05, len(atoms)), 3)
    virial = novelty.factors(v, atoms.numbers, pairs(atoms), NO_VIRIAL)[1]
    assert virial == pytest.approx(novelty.ratios(v, atoms.numbers, pairs(atoms)).mean() ** 0.8)
    copies = atoms * (2, 1, 1)
    assert novelty.factors(np.tile(v, 2), copies.numbers, pairs(copies), NO_VIRIAL)[1] == pytest.approx(
        virial, rel=1e-12
    )
    assert abs(virial - 1.0) > 0.02
    nothing = np.full(3 * len(atoms), 1e-16)  # forces that symmetry makes zero
    assert novelty.factors(nothing, atoms.numbers, pairs(atoms), NO_VIRIAL)[1] == 1.0


def test_calibration_learns_what_tells_structures_apart(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """Errors of structures whose variances are four times the usual ones are sixteen times as large in the square."""
    rng, parts = np.random.default_rng(2), []
    for k, frame in enumerate(two_levels.training().of("high") * 16):
        species = np.repeat(frame.atoms.numbers, 3).astype(np.int64)
        strange, n = 4.0 if k % 4 == 0 else 1.0, len(species)
        error = strange * 0.1 * rng.standard_normal(n)
        v = np.full(n, 0.01 * strange)
        parts.append(LeftOut(frame, "forces", error, v, v, np.full(n, 1e-4), species, np.arange(n)))
    found = fit_calibration(parts, model.levels, model.basis.species, pairs)
    assert 0.7 < found.novelty[1].exponent < 1.2
    assert found.novelty[0].exponent == 0
    for f in found.fitted:
        assert f.z_std_before > 0.85 * f.z_std_after
        assert 0.93 < f.z_std_after < 1.07
    v = np.full(12, 0.04)
    atoms = alloy(3)
    usual, strange = (found.novelty[1].factors(x, atoms.numbers, pairs(atoms), NO_VIRIAL)[0] for x in (v / 4, v))
    assert_allclose(strange / usual, 4.0 ** found.novelty[1].exponent)


def strange_virials(frames: Sequence[Frame]) -> list[LeftOut]:
    """Forces as the model has them, every fourth frame with four times the variance; virials there 8 times, not 4 times."""
    rng, parts = np.random.default_rng(6), []
    for k, repeated in enumerate(frames):
        frame, strange = replace(repeated), 4.0 if k % 4 == 0 else 1.0  # forces and virial of a frame belong together
        species = np.repeat(frame.atoms.numbers, 3).astype(np.int64)
        n = len(species)
        v, none = np.full(n, 0.01 * strange), np.zeros(6, dtype=np.int64)
        error = 0.1 * strange**0.5 * rng.standard_normal(n)
        parts.append(LeftOut(frame, "forces", error, v, 0 * v, np.full(n, 1e-6), species, np.arange(n)))
        error, v = 0.3 * strange**0.75 * rng.standard_normal(6), np.full(6, 0.09 * strange)
        parts.append(LeftOut(frame, "virial", error, v, 0 * v, np.full(6, 1e-5), none, none))
    return parts


def test_calibration_learns_which_virials_are_novel(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """They take the root of the mean over the atoms where the exponent of the forces is 0, and no factor at a level with
    few virials."""
    parts = strange_virials(two_levels.training().of("high") * 16)
    found = fit_calibration(parts, model.levels, model.basis.species, pairs)
    low, high = found.novelty
    assert high.exponent < 0.15
    assert high.virial_exponent == VIRIAL_EXPONENT == 0.5
    assert low.virial_exponent == 0
    few = fit_calibration(parts[:4], model.levels, model.basis.species, pairs)
    assert few.novelty[1].virial_exponent == 0
    before, after, usual = (
        [
            np.mean(p.error**2) / (g * scale.weights * p.weight_variance[0] + scale.noise * p.noise_variance[0])
            for p in parts[start::8]
        ]
        for start, g, scale in (
            (1, 1.0, fit_calibration(parts, model.levels, model.basis.species).virial[1]),
            (1, (4 / 1.75) ** 0.5, found.virial[1]),
            (3, (1 / 1.75) ** 0.5, found.virial[1]),
        )
    )  # z^2 of the strange ones, and of others
    assert np.mean(before) > 1.4
    assert 0.7 < np.mean(after) < 1.3
    assert 0.7 < np.mean(usual) < 1.3
    factors = [((4.0 if k % 4 == 0 else 1.0) / 1.75) ** 0.5 for k in range(len(parts) // 2)]
    wider = [replace(p, weight_variance=g * p.weight_variance) for p, g in zip(parts[1::2], factors, strict=True)]
    same = fit_calibration(wider, model.levels, model.basis.species).virial[1]
    assert found.virial[1].weights == pytest.approx(same.weights, rel=1e-6)


def test_virials_of_crystals_go_by_their_own_variance() -> None:
    """Where forces tell nothing, or little: a variance per atom, the same for a supercell."""
    novelty = Novelty(0.8, {29: 0.01}, 0.5, 0.02)
    cell = bulk("Cu", cubic=True)
    zero, virial = np.full(12, 1e-16), np.array([0.5, 1.1, 0.8, 0.0, 1e-14, 0.0])
    own = novelty.factors(zero, cell.numbers, pairs(cell), virial)[1]
    assert own == pytest.approx((0.8 / 16 / 0.02) ** 0.5)
    double = cell * (2, 1, 1)
    assert novelty.factors(np.tile(zero, 2), double.numbers, pairs(double), 4 * virial)[1] == pytest.approx(own)
    assert novelty.factors(zero, cell.numbers, pairs(cell), 1e9 * virial)[1] == pytest.approx(10**0.5)
    assert novelty.factors(zero, cell.numbers, pairs(cell), 1e-3 * virial)[1] == pytest.approx(0.1**0.5)
    assert novelty.factors(zero, cell.numbers, pairs(cell), NO_VIRIAL)[1] == 1.0
    assert replace(novelty, virial_reference=0.0).factors(zero, cell.numbers, pairs(cell), virial)[1] == 1.0
    for quiet in (1e-10, 1e-6, 1e-3, 0.01):  # displaced a little, more, until forces are as usual
        told = np.full(12, quiet)
        assert novelty.factors(told, cell.numbers, pairs(cell), virial)[1] == pytest.approx(own)
        assert novelty.factors(told, cell.numbers, pairs(cell), 1e-3 * virial)[1] == pytest.approx(
            max(quiet / 0.01, 0.1) ** 0.5
        )
    assert novelty.factors(np.full(12, 0.09), cell.numbers, pairs(cell), virial)[1] == pytest.approx(3.0)


def test_left_out_virials_without_forces_go_by_their_own_variance(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """In the fit of the factors, as in predictions."""
    parts = strange_virials(two_levels.training().of("high") * 16)
    alone = parts[1::2]
    found, n = fit_calibration(alone, model.levels, model.basis.species, pairs), len(alone[0].frame.atoms)
    assert found.novelty[1].virial_reference == pytest.approx(np.mean([p.weight_variance[0] / n for p in alone]))
    factors = [((4.0 if k % 4 == 0 else 1.0) / 1.75) ** 0.5 for k in range(len(alone))]
    wider = [replace(p, weight_variance=g * p.weight_variance) for p, g in zip(alone, factors, strict=True)]
    same = fit_calibration(wider, model.levels, model.basis.species).virial[1]
    assert found.virial[1].weights == pytest.approx(same.weights, rel=1e-6)
    few = fit_calibration(alone[:2], model.levels, model.basis.species, pairs)
    assert few.novelty[1].virial_exponent == 0


def test_a_supercell_is_as_novel_as_its_cell() -> None:
    """The weights' part of its variance is that of the cell times the number of copies squared."""
    novelty = EnergyNovelty(0.7, 0.02)
    assert (
        novelty.factor(0.5, 4) == pytest.approx(novelty.factor(0.5 * 9, 12)) == pytest.approx((0.5 / 16 / 0.02) ** 0.7)
    )
    assert novelty.factor(1e9, 4) == ENERGY_RANGE[1] ** 0.7
    assert novelty.factor(1e-9, 4) == 1.0  # it never narrows
    assert EnergyNovelty().factor(0.5, 4) == 1.0


def energies(frames: Sequence[Frame], power: float) -> list[LeftOut]:
    """Every fourth frame has four times the variance, and a squared error that is 4^power times as large."""
    rng, parts = np.random.default_rng(3), []
    for k, frame in enumerate(frames):
        strange = 4.0 if k % 4 == 0 else 1.0
        error, v = 0.1 * strange ** (power / 2) * rng.standard_normal(1), np.array([0.01 * strange])
        parts.append(LeftOut(frame, "energy", error, v, 0 * v, np.array([1e-6]), *[np.zeros(1, dtype=np.int64)] * 2))
    return parts


def test_energies_are_novel_by_the_root_of_their_variance(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """At levels with three of them or more; factors are fitted beside it."""
    parts = energies(two_levels.training().of("high") * 16, 1.4)
    found = fit_calibration(parts, model.levels, model.basis.species, pairs)
    low, high = found.energy_novelty
    n = len(parts[0].frame.atoms)
    assert high.exponent == ENERGY_EXPONENT == 0.5
    assert low.exponent == 0
    assert fit_calibration(parts[:2], model.levels, model.basis.species, pairs).energy_novelty[1].exponent == 0
    assert high.reference == pytest.approx(0.01 / n)  # the median
    factors = [2.0 if k % 4 == 0 else 1.0 for k in range(len(parts))]
    wider = [replace(p, weight_variance=g * p.weight_variance) for p, g in zip(parts, factors, strict=True)]
    same = fit_calibration(wider, model.levels, model.basis.species).energy[1]
    assert found.energy[1].weights == pytest.approx(same.weights, rel=1e-6)
    unlike = fit_calibration(parts, model.levels, model.basis.species).energy[1]

    def z(part: LeftOut, scale: Scale, g: float) -> float:
        return float(part.error[0] / np.sqrt(g * scale.weights * part.weight_variance[0] + scale.noise * 1e-6))

    strange = parts[::4]  # those that calibration without novelty is too sure of
    with_novelty = [z(p, found.energy[1], high.factor(p.weight_variance[0] * n, n)) for p in strange]
    assert np.std(with_novelty) < 0.9 * np.std([z(p, unlike, 1.0) for p in strange])


def test_one_strange_energy_does_not_hide_others(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    """Nearly exact labels: one variance of 20000 times the usual one, and of the others a quarter of 9 times."""
    parts, n = [], len(two_levels.training().of("high")[0].atoms)
    for k, part in enumerate(energies(two_levels.training().of("high") * 16, 1.4)):
        v = 0.01 * (20000.0 if k == 1 else 9.0 if k % 4 == 0 else 1.0)
        parts.append(replace(part, weight_variance=np.array([v])))
    novelty = fit_calibration(parts, model.levels, model.basis.species, pairs).energy_novelty[1]
    assert novelty.factor(0.09 * n, n) == pytest.approx(3.0)
    assert novelty.factor(200.0 * n, n) == pytest.approx(10**0.5)
    assert novelty.factor(0.001 * n, n) == 1.0


@pytest.mark.filterwarnings("ignore:.*in the training data at least")  # the structure is to be strange
def test_sampled_and_by_level_follow(two_levels: FrameSet, config: FitConfig) -> None:
    """Strained beyond the training data, calibrated stds rise more than without novelty, in every mode."""
    training = config.training.model_copy(update={"calibrate": True})
    model = MultiFidelityGP.fit(two_levels, config.model_copy(update={"training": training}), progress=False)
    assert model.calibration is not None
    atoms = alloy(90, rattle=0.35)
    exact = model.predict(atoms, uncertainty="by_level")
    assert exact.forces_std is not None
    assert exact.std_by_level is not None
    shares = np.sum([share.forces_std**2 for share in exact.std_by_level.values()], axis=0)
    assert_allclose(shares, exact.forces_std**2, rtol=1e-9)
    assert exact.stress_std is not None
    stress = [share.stress_std for share in exact.std_by_level.values() if share.stress_std is not None]
    assert len(stress) == 3
    assert_allclose(np.sum(np.square(stress), axis=0), exact.stress_std**2, rtol=1e-9)
    energy_shares = sum(share.energy_std**2 for share in exact.std_by_level.values())
    assert energy_shares == pytest.approx(exact.energy_std**2, rel=1e-9)  # type: ignore[operator]
    plain = copy.copy(model)
    plain.calibration = replace(model.calibration, novelty=(), energy_novelty=())
    assert model.calibration.novelty[1].virial_exponent > 0
    for mode in ("full", "sampled"):
        found, without = (m.predictor(draws=16, seed=1)(atoms, mode) for m in (model, plain))
        assert (found.forces_std / without.forces_std).min() > 1.02
        assert (found.stress_std / without.stress_std).min() > 1.02
    sure = copy.copy(model)
    sure.calibration = replace(model.calibration, energy_novelty=tuple(EnergyNovelty(0.5, 1e-12) for _ in model.levels))
    for mode in ("full", "energies", "sampled"):
        std, without, most = (m.predictor(draws=4)(atoms, mode).energy_std for m in (model, plain, sure))
        assert std >= without * (1 - 1e-12)
        noise = float(model.calibration.noise_variances(1, atoms.numbers, model.label_noise(1))[0])
        assert most**2 - noise == pytest.approx((without**2 - noise) * ENERGY_RANGE[1] ** 0.5, rel=1e-9)
