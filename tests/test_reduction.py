"""The mean with fewer terms is the same mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import DESCRIPTOR, alloy
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.inducing import InducingBasis, build_basis
from mfgp.reduction import TOLERANCE, reduced


def _unit(n: int, d: int, seed: int) -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(seed).random((n, d)))
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _basis(m: int, d: int, zeta: int) -> InducingBasis:
    return build_basis((1,), (_unit(m, d, 0),), torch.arange(m), zeta)


@pytest.mark.parametrize(("zeta", "most"), [(1, 1), (2, 6)])
def test_forms_of_low_degree_have_few_terms(zeta: int, most: int) -> None:
    basis, q = _basis(most if zeta == 1 else 18, 6, zeta), _unit(50, 6, 1)
    points = _unit(40, 6, 2)
    many = InducingBasis((1,), (points,), basis.factors, torch.arange(40), zeta, 0.0)
    alpha = torch.from_numpy(np.random.default_rng(3).normal(size=40))
    less, weights = reduced(many, [alpha])
    assert len(less.points[0]) <= most
    expected, found = (q @ points.T) ** zeta @ alpha, (q @ less.points[0].T) ** zeta @ weights[0]
    assert float(expected.abs().max()) > 0.1  # eV
    assert_allclose(found, expected, rtol=0, atol=1.01 * TOLERANCE)


def test_what_has_no_fewer_terms_is_left_alone() -> None:
    for basis in (_basis(5, 40, 2), _basis(30, 4, 3)):
        alpha = torch.from_numpy(np.random.default_rng(3).normal(size=len(basis.points[0])))
        same, weights = reduced(basis, [alpha])
        assert torch.equal(same.points[0], basis.points[0])
        assert torch.equal(weights[0], alpha)


def test_a_model_predicts_the_same_by_either_way(two_levels: FrameSet) -> None:
    descriptor = {**DESCRIPTOR, "n_max": 2, "l_max": 1}  # D = 20, below the inducing points of an element
    config = FitConfig(
        descriptor=descriptor,
        model={"zeta": 2, "n_inducing": 60},
        training={"max_iterations": 30, "calibrate": False},
    )
    model = MultiFidelityGP.fit(two_levels, config, progress=False)
    predictor = model.predictor()
    atoms = alloy(60)
    full, fast = predictor(atoms), predictor(atoms, "none")
    assert max(len(p) for p in predictor.mean_terms[0].points) <= 20 < max(len(p) for p in model.basis.points)
    assert np.abs(full.forces).max() > 0.1  # eV/Å
    assert fast.energy == pytest.approx(full.energy, abs=1e-5)
    assert_allclose(fast.forces, full.forces, rtol=0, atol=2e-5)
    assert_allclose(fast.stress, full.stress, rtol=0, atol=1e-6)
