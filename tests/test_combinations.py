"""Differences and averages of energies: what single predictions say, dense references, draws from the prior."""

from __future__ import annotations

import copy
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones
from conftest import DESCRIPTOR, alloy, label
from dense_reference import dense_posterior
from numpy.testing import assert_allclose
from test_prior_draws import draws

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.calibration import Calibration, Scale
from mfgp.calibration.composition_scatter import Composition, CompositionScatter
from mfgp.calibration.novelty import EnergyNovelty
from mfgp.calibration.scores import coverage
from mfgp.errors import DataError
from mfgp.predict import combinations as module
from mfgp.predict import energy_steps
from mfgp.predict.energy_steps import NONE, followed, paths, power_step, steps

DRAWS = 60
ALIKE = 1e-5  # eV: a standard deviation that is rounding


@pytest.fixture(scope="module")
def fitted() -> MultiFidelityGP:
    """Two levels over a baseline with a pair potential and isolated atoms; factors of a calibration that all differ."""
    free = [label(alloy(i), "low") for i in range(8)]
    for symbol in ("Cu", "Au"):
        free.append(Atoms(symbol, info={"config_type": "IsolatedAtom", "REF_energy": 0.1}))
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 30, "rho": "species"},
        baselines=[{"name": "lj"}],
        pair={"r_cut": 4.0, "n": 4},
        training={"max_iterations": 10, "calibrate": False},
        device="cpu",
    )
    frames = read_frames({"low": free, "high": [label(alloy(i), "high") for i in range(5)]})
    calculators = {"lj": LennardJones(sigma=2.3, epsilon=0.02, rc=5.0, smooth=True)}
    model = MultiFidelityGP.fit(frames, config, baselines=calculators, progress=False)
    assert model.columns.vacuum is not None
    scales = (Scale(0.7, 0.2, 1.5), Scale(1.8, 0.4, 0.6))
    known = CompositionScatter(1.0, (Composition(((29, 0.5), (79, 0.5)), 9, 4.0),))
    forces = tuple({29: s, 79: s} for s in scales)
    novelty = (EnergyNovelty(0.8, 1e-6), EnergyNovelty(0.8, 1e-6))
    model.calibration = Calibration(
        scales, forces, scales, energy_novelty=novelty, energy_scatter=(CompositionScatter(), known)
    )
    return model


@pytest.fixture(scope="module")
def structures() -> list[Atoms]:
    """Two that are alike, a larger one, and one of another composition without periodicity."""
    first = alloy(50)
    near = first.copy()
    near.positions[0, 0] += 0.02  # Å
    cluster = alloy(52)[:3]
    cluster.pbc = False
    return [first, near, alloy(51, repeat=2), cluster]


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("level", ["low", "high"])
def test_one_structure_is_what_predict_says(
    fitted: MultiFidelityGP, structures: list[Atoms], level: str, calibrated: bool
) -> None:
    """By itself, and in the diagonal of several."""
    several = fitted.energy_combination(structures, np.ones(4), level, calibrated=calibrated)
    for i, atoms in enumerate(structures):
        p = fitted.predict(atoms, level, calibrated=calibrated)
        assert p.energy_std is not None
        assert p.energy_std > 1e-3  # eV
        found = fitted.energy_combination([atoms], [1.0], level, calibrated=calibrated)
        assert (found.fidelity, found.calibrated) == (level, calibrated) == (p.fidelity, p.calibrated)
        assert_allclose([found.value, several.energies[i]], p.energy, rtol=0, atol=1e-8)
        assert_allclose([found.std, several.covariance[i, i] ** 0.5], p.energy_std, rtol=0, atol=1e-7)


def test_factors_and_noise(fitted: MultiFidelityGP, structures: list[Atoms]) -> None:
    """Each part with the factors of both structures; the labels' noise on the diagonal alone."""
    raw = fitted.energy_combination(structures, np.ones(4), calibrated=False)
    assert_allclose(fitted.energy_combination(structures, np.ones(4), label_noise=False, calibrated=False).std, raw.std)
    (on, off) = (fitted.energy_combination(structures, np.ones(4), label_noise=noise) for noise in (True, False))
    calibration, sigma = fitted.calibration, float(fitted.label_noise(1)[0])
    assert calibration is not None
    scales = [calibration.energy_scale(1, a.numbers) for a in structures]
    assert_allclose(
        on.covariance - off.covariance,
        np.diag([s.noise * sigma**2 * len(a) for s, a in zip(scales, structures, strict=True)]),
        rtol=0,
        atol=1e-12,
    )
    assert scales[0].noise > 1.5 * scales[3].noise  # composition
    one = copy.copy(fitted)
    one.calibration = Calibration((Scale(),) * 2, calibration.forces, calibration.virial)
    assert_allclose(one.energy_combination(structures, np.ones(4), label_noise=False).covariance, raw.covariance)
    parts = []
    for scale in (Scale(residual=0.0), Scale(weights=0.0)):
        one.calibration = Calibration((scale,) * 2, calibration.forces, calibration.virial)
        parts.append(one.energy_combination(structures, np.ones(4), label_noise=False).covariance)
    g = [calibration.energy_novelty_factor(1, v, len(a)) for v, a in zip(np.diag(parts[0]), structures, strict=True)]
    assert max(g) > 1.5 * min(g)
    p, q = (np.sqrt([g[i] * getattr(s, name) for i, s in enumerate(scales)]) for name in ("weights", "residual"))
    assert_allclose(off.covariance, np.outer(p, p) * parts[0] + np.outer(q, q) * parts[1], rtol=0, atol=1e-10)


def test_semi_definite_and_symmetric(fitted: MultiFidelityGP, structures: list[Atoms]) -> None:
    for level in fitted.levels:
        covariance = fitted.energy_combination(structures * 2, np.ones(8), level, label_noise=False).covariance
        assert_allclose(covariance, covariance.T, rtol=0, atol=0)
        values = np.linalg.eigvalsh(covariance)
        assert values[0] > -1e-10 * values[-1]
        assert values[3] < 1e-10 * values[-1]  # four are copies


def test_what_is_the_same_has_no_difference(fitted: MultiFidelityGP, structures: list[Atoms]) -> None:
    """A copy, atoms in another order, turned; a supercell against its cells."""
    atoms = structures[0]
    turned, mixed = atoms.copy(), atoms[[2, 0, 3, 1]]
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    for other, n in ((atoms.copy(), 1), (mixed, 1), (turned, 1), (atoms * (2, 1, 1), 2)):
        found = fitted.energy_combination([atoms, other], [n, -1], label_noise=False)
        assert abs(found.value) < 1e-7
        assert found.std < ALIKE
        assert found.covariance[0, 0] > 1e-4  # eV^2
    noisy = fitted.energy_combination([atoms, atoms], [1, -1])
    single = fitted.energy_combination([atoms], [1])
    without = fitted.energy_combination([atoms], [1], label_noise=False)
    assert noisy.std**2 == pytest.approx(2 * (single.std**2 - without.std**2), rel=1e-6)


def test_alike_structures_are_known_better_against_each_other(fitted: MultiFidelityGP, structures: list[Atoms]) -> None:
    """A displacement of 0.02 Å; and in other units, with the structures in another order."""
    found = fitted.energy_combination(structures, [1, -1, 0, 0], label_noise=False)
    assert ALIKE < found.std < 0.1 * found.covariance[0, 0] ** 0.5
    assert found.value == pytest.approx(found.energies[0] - found.energies[1], abs=1e-10)
    order = [2, 1, 3, 0]
    other = fitted.energy_combination([structures[i] for i in order], [0, 1000, 0, -1000], label_noise=False)
    assert other.std == pytest.approx(1000 * found.std, rel=1e-4)
    assert_allclose(other.covariance, found.covariance[np.ix_(order, order)], rtol=1e-11, atol=1e-10)
    again = other.with_coefficients([0, -1, 0, 1])
    assert (again.value, again.std) == (pytest.approx(found.value, abs=1e-8), pytest.approx(found.std, rel=1e-4))


def moved(atoms: Atoms, x: float) -> Atoms:
    """The first atom along x, by x Å."""
    out = atoms.copy()
    out.positions[0, 0] += x
    return out


@pytest.mark.filterwarnings("ignore:a structure repeats later")
@pytest.mark.parametrize("zeta", [1, 3, 4])
def test_difference_of_small_displacements(zeta: int) -> None:
    """The standard deviation of a force times the displacement, however small; labels without noise."""
    config = FitConfig(descriptor=DESCRIPTOR, model={"zeta": zeta, "n_inducing": 60}, training={"max_iterations": 10})
    model = MultiFidelityGP.fit(
        read_frames({"low": [label(alloy(i), "low") for i in range(8)]}), config, progress=False
    )
    first, second = alloy(60, repeat=2), alloy(61, repeat=2)
    second.numbers = first.numbers
    force = [float(model.predict(a, calibrated=False).forces_std[0, 0]) for a in (first, second)]
    for x in (1e-2, 1e-3, 1e-4, 1e-5):  # Å
        structures = [first, second, moved(first, x), moved(second, x)]
        found = model.energy_combination(structures, [1, 0, -1, 0], calibrated=False)
        assert found.std / x == pytest.approx(force[0], rel=max(20 * x, 1e-3))
        assert found.with_coefficients([0, 1, 0, -1]).std / x == pytest.approx(force[1], rel=max(20 * x, 1e-3))
    both = found.with_coefficients([1, 1, -1, -1]).std / x
    assert abs(force[0] - force[1]) < both < force[0] + force[1]


@pytest.mark.parametrize("n", range(1, 9))
def test_steps_of_powers(n: int) -> None:
    """Against rational numbers: rounding is relative to the step."""
    x, step = 0.83, -1.3e-9
    whole, change = power_step(*torch.tensor([x, step], dtype=torch.float64), n)
    exact = (Fraction(x) + Fraction(step)) ** n - Fraction(x) ** n
    assert float(whole) == pytest.approx(x**n, rel=1e-15)
    assert float(change) == pytest.approx(float(exact), rel=1e-14)


def test_paths_are_short() -> None:
    """Structures follow the nearest, or what that follows where it is nearly as near; other atoms never."""
    places = [0.0, 1e-4, 1.5e-4, 1.01e-4, 5e-3, 5.0001e-3, 0.0]
    same = [Atoms("Cu")] * 6 + [Atoms("Au")]
    phi = torch.tensor([[1.0, x] for x in places], dtype=torch.float64)
    follows = followed(same, phi)
    assert follows == [NONE, 0, 0, 1, NONE, 4, NONE]
    assert_allclose(paths(follows, phi) @ steps(phi, follows), phi, rtol=0, atol=1e-15)


def apart(seed: int) -> tuple[Atoms, Atoms, Atoms]:
    """Two clusters, and both in one structure, too far from each other to be neighbours."""
    a, b = alloy(seed), alloy(seed + 1)[:3]
    a.pbc = b.pbc = False
    moved = b.copy()
    moved.positions += (30.0, 0.0, 0.0)
    return a, b, a + moved


@pytest.mark.parametrize("level", ["low", "high"])
def test_far_apart_energies_add_up(model: MultiFidelityGP, level: str) -> None:
    """Var[E_a + E_b] is that of one structure that holds both: covariances against standard deviations of `predict`."""
    a, b, both = apart(60)
    found = model.energy_combination([a, b, both], [1, 1, -1], level)
    assert found.std < ALIKE
    predicted = model.predict(both, level).energy_std
    assert found.with_coefficients([1, 1, 0]).std == pytest.approx(predicted, abs=1e-7)
    squares = np.sqrt(found.covariance[0, 0] + found.covariance[1, 1])
    assert abs(predicted / squares - 1) > 0.02  # something to get wrong
    covariance = model.distribution(both, level).covariance_matrix
    assert found.with_coefficients([1, 1, 0]).std ** 2 == pytest.approx(float(covariance[0, 0]), rel=1e-6)


@pytest.mark.filterwarnings("ignore:a structure repeats later")
def test_equals_a_dense_gaussian_process(two_levels: FrameSet) -> None:
    """zeta = 1 and M >= D, where the sparse model is exact; two levels, energies, forces and virials."""
    small = {"r_cut": 4.0, "n_max": 2, "l_max": 1, "sigma": 0.5}
    config = FitConfig(
        descriptor=small, model={"zeta": 1, "n_inducing": 100}, training={"optimise": False, "noise_energy": 0.05}
    )
    sparse = MultiFidelityGP.fit(two_levels, config, progress=False)
    a, b, both = apart(70)
    v_a, v_b, v = (dense_posterior(sparse, two_levels.training(), x, slice(None))[1][0, 0] for x in (a, b, both))
    found = sparse.energy_combination([a, b], [1, -1], "high", calibrated=False)
    assert abs(v - v_a - v_b) > 1e-3  # eV^2
    assert found.covariance[0, 1] == pytest.approx(0.5 * (v - v_a - v_b), abs=1e-4)
    assert found.std == pytest.approx((2 * v_a + 2 * v_b - v) ** 0.5, abs=1e-3)


def test_coverage_of_differences_and_means() -> None:
    """95 +- 3 % of those of draws from the prior, at both levels; standard deviations added in squares are wrong."""
    z: dict[str, list[float]] = defaultdict(list)
    for draw in draws(DRAWS, seed=3):
        model = draw.model
        for t, level in enumerate(model.levels):
            structures = [frame.atoms for frame in draw.test.of(level)]
            rows = model.predictor(level).columns_of
            true = np.array(
                [
                    float(model.features.rows(a)[0] @ draw.weights[t, : model.basis.size])
                    + float(rows(a)[0] @ draw.weights[t, model.basis.size :] + model.columns.mean(rows(a), t)[0])
                    for a in structures
                ]
            )
            found = model.energy_combination(structures, np.ones(len(true)), level)
            pairs = np.eye(len(true))[::2] - np.eye(len(true))[1::2]
            for name, c in [("difference", c) for c in pairs] + [("mean", np.full(len(true), 1 / len(true)))]:
                one = found.with_coefficients(c)
                z[name].append((one.value - c @ true) / one.std)
                z[f"{name}, in squares"].append((one.value - c @ true) / np.sqrt(c**2 @ np.diag(found.covariance)))
    every = np.array(z["difference"] + z["mean"])
    assert len(z["difference"]) == 7 * DRAWS
    assert abs(coverage(every, 0.95) - 0.95) < 0.03
    assert abs(every.std() - 1.0) < 0.1
    assert np.std(z["difference, in squares"]) < 0.5
    assert np.std(z["mean, in squares"]) > 1.5


def test_blocks(fitted: MultiFidelityGP, structures: list[Atoms], monkeypatch: pytest.MonkeyPatch) -> None:
    many = [*structures, alloy(53), *structures]
    whole = fitted.energy_combination(many, np.ones(9), label_noise=False)
    monkeypatch.setattr(module, "BLOCK_ATOMS", 9)
    monkeypatch.setattr(module, "BATCH_ATOMS", 5)
    monkeypatch.setattr(energy_steps, "BATCH_ATOMS", 5)
    assert_allclose(
        fitted.energy_combination(many, np.ones(9), label_noise=False).covariance, whole.covariance, rtol=0, atol=1e-10
    )


def test_errors(fitted: MultiFidelityGP, structures: list[Atoms]) -> None:
    for coefficients, said in (
        ([1.0], "coefficients: 1 for 4 structures"),
        (np.ones((4, 1)), r"an array of shape \(4, 1\) for 4 structures"),
        ([1, 0, np.nan, 0], "coefficient 2 is nan"),
        (["a", 1, 1, 1], "must be numbers"),
    ):
        with pytest.raises(DataError, match=said):
            fitted.energy_combination(structures, coefficients)
        with pytest.raises(DataError, match=said):
            fitted.energy_combination(structures, np.ones(4)).with_coefficients(coefficients)
    with pytest.raises(DataError, match="no structures"):
        fitted.energy_combination([], [])
    with pytest.raises(DataError, match=r"structure 1 of the list \(He\): the model has not seen He"):
        fitted.energy_combination([structures[0], Atoms("He")], [1, -1])
    with pytest.raises(DataError, match=r"takes a list of ase\.Atoms, not a single Atoms"):
        fitted.energy_combination(structures[0], [1])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="unknown level 'ccsd'"):
        fitted.energy_combination(structures, np.ones(4), "ccsd")
    broken = structures[0].copy()
    broken.positions[0] = np.nan
    with pytest.raises(DataError, match="cannot predict"):
        fitted.energy_combination([broken], [1])
