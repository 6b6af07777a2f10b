"""The mean with fewer terms is the same mean, within what is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import DESCRIPTOR, alloy
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.compression import compression_error
from mfgp.errors import ConfigError, DataError
from mfgp.gp.inducing import InducingBasis
from mfgp.predict.reduction import checked_tolerance, reduced


def _unit(n: int, d: int, seed: int) -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(seed).random((n, d)))
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _basis(points: torch.Tensor, zeta: int) -> InducingBasis:
    factor = torch.eye(len(points), dtype=torch.float64)  # not used by the mean
    return InducingBasis((1,), (points,), (factor,), torch.arange(len(points)), zeta, 0.0)


def _mean(basis: InducingBasis, alpha: list[torch.Tensor], q: torch.Tensor) -> torch.Tensor:
    return (q @ basis.points[0].T) ** basis.zeta @ alpha[0]


@pytest.mark.parametrize(("zeta", "most"), [(1, 1), (2, 6)])
def test_forms_of_low_degree_have_few_terms(zeta: int, most: int) -> None:
    many, q = _basis(_unit(40, 6, 2), zeta), _unit(50, 6, 1)
    alpha = [torch.from_numpy(np.random.default_rng(3).normal(size=40))]
    less = reduced(many, alpha, 0.0)
    assert len(less[0].points[0]) <= most
    assert float(_mean(many, alpha, q).abs().max()) > 0.1  # eV
    assert_allclose(_mean(*less, q), _mean(many, alpha, q), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tolerance", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("m", [15, 60])  # fewer and more points than features
def test_no_inducing_environment_changes_by_more_than_the_tolerance(m: int, tolerance: float) -> None:
    rng = np.random.default_rng(4)
    scales = torch.from_numpy(10.0 ** -np.arange(0.0, 5.0, 0.25))  # [feature] a spectrum that falls
    points = _unit(m, 20, 5) * scales
    many = _basis(points / points.norm(dim=1, keepdim=True), 2)
    alpha = [torch.from_numpy(rng.normal(size=m))]
    less = reduced(many, alpha, tolerance)
    change = (_mean(*less, many.points[0]) - _mean(many, alpha, many.points[0])).abs().max()
    assert len(less[0].points[0]) < min(m, 20)
    assert 1e-3 * tolerance < float(change) <= tolerance


@pytest.mark.parametrize(("m", "d", "zeta"), [(5, 40, 2), (30, 4, 3)])
def test_what_has_no_fewer_terms_is_left_alone(m: int, d: int, zeta: int) -> None:
    basis = _basis(_unit(m, d, 0), zeta)
    alpha = [torch.from_numpy(np.random.default_rng(3).normal(size=m))]
    same, weights = reduced(basis, alpha, 0.0)
    assert same is basis
    assert weights is alpha


@pytest.fixture(scope="module")
def model(two_levels: FrameSet) -> MultiFidelityGP:
    descriptor = {**DESCRIPTOR, "n_max": 2, "l_max": 1}  # D = 20, below the inducing points of an element
    training = {"max_iterations": 30, "calibrate": False}
    config = FitConfig(descriptor=descriptor, model={"zeta": 2, "n_inducing": 60}, training=training)
    return MultiFidelityGP.fit(two_levels, config, progress=False)


def test_a_model_predicts_the_same_by_either_way(model: MultiFidelityGP) -> None:
    predictor = model.predictor()
    atoms = alloy(60)
    full, fast = predictor(atoms), predictor(atoms, "none")
    assert max(len(p) for p in predictor.mean_terms[0].points) <= 20 < max(len(p) for p in model.basis.points)
    assert np.abs(full.forces).max() > 0.1  # eV/Å
    assert fast.energy == pytest.approx(full.energy, abs=1e-5)
    assert_allclose(fast.forces, full.forces, rtol=0, atol=2e-5)
    assert_allclose(fast.stress, full.stress, rtol=0, atol=1e-6)


def test_the_forces_of_a_compressed_mean_are_the_gradient_of_its_energy(model: MultiFidelityGP) -> None:
    atoms = alloy(61)
    atoms.calc = model.calculator(uncertainty="none", compression=1e-2)
    assert len(atoms.calc.predictor.mean_terms[0].points[0]) < 20
    forces, h = atoms.get_forces(), 1e-4
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[0, 0] += sign * h
        energies.append(moved.get_potential_energy())
    assert abs(forces[0, 0]) > 1e-3
    assert forces[0, 0] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-6)


def test_a_larger_tolerance_has_fewer_terms_and_a_larger_error(model: MultiFidelityGP) -> None:
    structures = [alloy(60), alloy(61)]
    small, large = (compression_error(model, structures, tolerance) for tolerance in (1e-6, 1e-2))
    assert large.terms < small.terms < small.inducing_points == model.basis.size
    assert small.force <= 1e-4 < large.force
    assert 0 < small.force_rms < large.force_rms < large.force
    assert small.energy < large.energy


def test_wrong_input(model: MultiFidelityGP) -> None:
    with pytest.raises(DataError, match="no structure"):
        compression_error(model, [], 1e-5)
    with pytest.raises(ConfigError, match=r"compression = -1\.0 eV"):
        model.calculator(compression=-1.0)
    with pytest.raises(ConfigError, match="compression = fast eV: give zero or more"):
        model.calculator(compression="fast")  # type: ignore[arg-type]
    steep = _basis(_unit(30, 4, 0), 4)
    assert checked_tolerance(steep, 0.0) == 0.0
    with pytest.raises(ConfigError, match="zeta = 4"):
        checked_tolerance(steep, 1e-5)
