"""The signed sum of squares that local energies take their variances from."""

from __future__ import annotations

import pytest
import torch

from mfgp.predict import local_variances
from mfgp.predict.local_variances import LocalForm, signed_root


def symmetric(m: int, seed: int, lowest: float) -> torch.Tensor:
    """A symmetric matrix with eigenvalues from `lowest` to 1."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))[0]
    return (vectors * torch.linspace(lowest, 1.0, m, dtype=torch.float64)) @ vectors.T


def assembled(matrix: torch.Tensor) -> torch.Tensor:
    """G^T diag(s) G from the blocks."""
    out = torch.zeros_like(matrix)
    for rows, signs in zip(*signed_root(matrix, matrix.diagonal().abs().max().expand(len(matrix))), strict=True):
        out[: rows.shape[1], : rows.shape[1]] += rows.T @ (signs[:, None] * rows)
    return out


@pytest.mark.parametrize("lowest", [1e-3, 0.0, -2.0])  # definite, singular, of both signs
@pytest.mark.parametrize("m", [7, 60])  # one block, and several
def test_signed_root_multiplies_to_the_matrix(monkeypatch: pytest.MonkeyPatch, m: int, lowest: float) -> None:
    monkeypatch.setattr(local_variances, "SIZES", (8, 9, 10))
    matrix = symmetric(m, 3, lowest)
    assert (len(signed_root(matrix, torch.ones(m))[0]) > 1) == (m == 60)
    assert float((assembled(matrix) - matrix).abs().max()) < 1e-11


def test_directions_that_no_label_touches_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_variances, "SIZES", (8, 9, 10))
    matrix = symmetric(40, 5, 0.5)
    matrix[10:25] = 0.0
    matrix[:, 10:25] = 0.0
    assert float((assembled(matrix) - matrix).abs().max()) < 1e-11
    assert float((assembled(torch.zeros(30, 30, dtype=torch.float64))).abs().max()) < 1e-11


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize(("weights", "residual"), [(1.0, 1.0), (3.0, 0.1)])
def test_local_form_is_the_sum_of_both_parts(
    monkeypatch: pytest.MonkeyPatch, weights: float, residual: float, inverted: bool
) -> None:
    monkeypatch.setattr(local_variances, "SIZES", (8, 9, 10))
    m, generator = 35, torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(m, 50, generator=generator, dtype=torch.float64), dim=1)
    factor = torch.linalg.cholesky((points @ points.T) ** 2)
    covariance = symmetric(m, 1, 0.01)
    atoms = torch.nn.functional.normalize(torch.randn(5, 50, generator=generator, dtype=torch.float64), dim=1)
    k = (atoms @ points.T) ** 2
    phi = torch.linalg.solve_triangular(factor.T, k, upper=True, left=False)
    form = LocalForm.of(factor.mean(0), covariance, weights, residual)
    form = form.of_kernel(factor) if inverted else form
    away = phi - factor.mean(0)
    expected = weights * ((away @ covariance) * away).sum(1) + residual * (1.0 - phi.square().sum(1))
    found, sums = form.variances(k if inverted else phi)
    assert float(expected.min()) > 1e-3
    assert float((found - expected).abs().max()) < 1e-12
    total = phi.sum(0)
    assert float(form.of_sum(sums)) == pytest.approx(
        float(residual * total @ total - weights * total @ covariance @ total), rel=1e-11
    )


def test_a_negative_variance_is_reported_and_rounding_is_not() -> None:
    form = LocalForm(
        (torch.eye(2, dtype=torch.float64),),
        (torch.ones(2, dtype=torch.float64),),
        torch.zeros(2, dtype=torch.float64),
        1.0,
    )
    x = torch.tensor([[0.6, 0.0], [1.0 + 1e-9, 0.0]], dtype=torch.float64)
    assert form.variances(x)[0].tolist() == [pytest.approx(0.64), 0.0]
    with pytest.warns(UserWarning, match="negative variance"):
        assert form.variances(1.1 * x)[0].min() == 0.0
