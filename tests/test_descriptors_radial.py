"""The radial functions against numerical integration, their slopes against finite differences; settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from numpy.testing import assert_allclose
from pydantic import ValidationError

from descriptors.config import RadialScaling, SOAPConfig
from descriptors.radial import (
    gto_orbitals,
    neighbor_weight,
    radial_basis,
    radial_functions,
    radial_functions_with_slopes,
    radial_scaling,
    smooth_cutoff,
)

SMALL = SOAPConfig(r_cut=4.0, n_max=4, l_max=3, sigma=0.5)


def _orbital(alphas: np.ndarray, beta: np.ndarray, degree: int, r: np.ndarray) -> np.ndarray:
    """g_nl(r), [n, r]."""
    return beta @ (r**degree * np.exp(-alphas[:, None] * r**2))


def test_orbitals_are_orthonormal_and_decay_at_their_radii() -> None:
    alphas, betas = gto_orbitals(4.0, 4, 3)
    r = np.linspace(0, 30, 60001)  # Å
    for degree in range(4):
        g = _orbital(alphas[degree], betas[degree], degree, r)
        overlap = scipy.integrate.simpson(g[:, None] * g[None] * r**2, x=r)
        assert_allclose(overlap, np.eye(4), rtol=0, atol=1e-9)
        radii = np.linspace(1, 4, 4)
        assert_allclose(radii**degree * np.exp(-alphas[degree] * radii**2), 1e-3, rtol=0, atol=1e-14)


@pytest.mark.parametrize("distance", [0.0, 0.7, 2.9])
def test_functions_are_the_overlap_of_a_gaussian_with_an_orbital(distance: float) -> None:
    """int exp(-eta |r - R|^2) g_nl(r) Y_lm = G_nl(R) R^l Y_lm(R), by radial quadrature of the Gaussian's expansion.

    exp(-eta |r - R|^2) = 4 pi exp(-eta (r^2 + R^2)) sum_lm i_l(2 eta r R) Y_lm(r) Y_lm(R); i_l: modified Bessel.
    """
    alphas, betas = gto_orbitals(SMALL.r_cut, SMALL.n_max, SMALL.l_max)
    ours = radial_functions(radial_basis(SMALL), torch.tensor([distance], dtype=torch.float64))[:, 0]  # [l, n]
    eta = 0.5 / SMALL.sigma**2
    r = np.linspace(0, 12, 24001)  # Å
    for degree in range(SMALL.l_max + 1):
        bessel = scipy.special.spherical_in(degree, 2 * eta * r * distance)
        gaussian = 4 * np.pi * np.exp(-eta * (r**2 + distance**2)) * bessel
        expected = scipy.integrate.simpson(gaussian * _orbital(alphas[degree], betas[degree], degree, r) * r**2, x=r)
        assert_allclose(ours[degree] * distance**degree, expected, rtol=0, atol=1e-9)
    assert ours.abs().max() > 0.1


def test_slopes_are_the_derivatives_of_the_values() -> None:
    basis, h = radial_basis(SMALL), 1e-5  # Å
    r = torch.linspace(0.0, 4.5, 40, dtype=torch.float64)
    values, slopes = radial_functions_with_slopes(basis, r)
    numerical = (radial_functions(basis, r + h) - radial_functions(basis, r - h)) / (2 * h)
    assert_allclose(values, radial_functions(basis, r), rtol=0, atol=1e-13)
    assert_allclose(slopes, numerical, rtol=0, atol=1e-8)  # 1/Å
    assert slopes.abs().max() > 0.1


@pytest.mark.parametrize("scaling", [None, RadialScaling(r0=2.0, m=4), RadialScaling(r0=1.5, m=1.5)])
@pytest.mark.parametrize("width", [0.0, 0.7, 4.0])
def test_the_weight_and_its_slope(scaling: RadialScaling | None, width: float) -> None:
    config, h = SOAPConfig(r_cut=4.0, cutoff_width=width, radial_scaling=scaling), 1e-5
    r = torch.linspace(0.05, 4.5, 90, dtype=torch.float64)
    w, slope = neighbor_weight(r, config)
    numerical = (neighbor_weight(r + h, config)[0] - neighbor_weight(r - h, config)[0]) / (2 * h)
    assert_allclose(slope, numerical, rtol=0, atol=1e-8)  # 1/Å
    if scaling is None:
        assert_allclose(w[r < 4.0 - width], 1, rtol=0, atol=0)
    else:
        assert_allclose(
            w[r < 4.0 - width], 1 / (1 + (r[r < 4.0 - width] / scaling.r0) ** scaling.m), rtol=0, atol=1e-15
        )
    if width > 0:
        assert float(w[r > 4.0].abs().max()) == 0


def test_the_cutoff_has_two_continuous_derivatives() -> None:
    inside, outside = torch.tensor([2.9, 3.0], dtype=torch.float64), torch.tensor([4.0, 4.1], dtype=torch.float64)
    assert smooth_cutoff(inside, 4.0, 1.0)[0].tolist() == [1, 1]
    assert smooth_cutoff(outside, 4.0, 1.0)[0].tolist() == [0, 0]
    for end in (3.0, 4.0):
        h = torch.tensor([1e-3, 5e-4], dtype=torch.float64)  # Å into the transition
        slope = smooth_cutoff(end + h * (1 if end < 3.5 else -1), 4.0, 1.0)[1].abs()
        assert float(slope[0] / slope[1]) == pytest.approx(4, abs=0.02)  # the slope grows as h^2
    assert float(smooth_cutoff(torch.tensor([3.5]), 4.0, 1.0)[1]) == pytest.approx(-30 / 16, abs=1e-6)  # 1/Å


@pytest.mark.parametrize("m", [0.5, 1.0, 2.0, 6.0])
def test_the_scaling_is_finite_at_the_centre(m: float) -> None:
    u, slope = radial_scaling(torch.zeros(1, dtype=torch.float64), RadialScaling(r0=2.0, m=m))
    assert (float(u), float(slope)) == (1.0, 0.0)


def test_too_many_orbitals_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"20 radial functions of degree 0 .*lower n_max"):
        gto_orbitals(5.0, 20, 2)
    with pytest.raises(ValueError, match="orthonormalised"):
        gto_orbitals(5.0, 16, 8)


def test_the_neighbor_cutoff_of_a_hard_cutoff_is_that_of_dscribe() -> None:
    assert SOAPConfig(r_cut=4.0, cutoff_width=0.5).neighbor_cutoff == 4.0
    hard = SOAPConfig(r_cut=4.0, cutoff_width=0, sigma=0.3)
    assert hard.neighbor_cutoff == pytest.approx(4.0 + 0.3 * math.sqrt(-2 * math.log(1e-3)), abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"r_cut": 1.0},
        {"r_cut": math.inf},
        {"n_max": 0},
        {"n_max": 21},
        {"l_max": -1},
        {"l_max": 13},
        {"sigma": 0.0},
        {"cutoff_width": -0.1},
        {"r_cut": 3.0, "cutoff_width": 3.1},
        {"contraction": 0.0},
        {"contraction": 1.1},
        {"radial_scaling": {"r0": 0.0, "m": 4}},
        {"radial_scaling": {"r0": 2.0, "m": 0}},
        {"rcut": 5.0},
    ],
)
def test_settings_out_of_range_are_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SOAPConfig(**wrong)  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        SOAPConfig().r_cut = 3.0  # type: ignore[misc]
