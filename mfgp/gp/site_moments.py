"""Magnetic moments of the atoms: a Gaussian process on the same environments, one for each level and species.

    m_i = c_z + g_z(x_i) + noise,     g_z ~ GP(0, s_z^2 k),   c_z ~ N(0, C_STD^2),   noise ~ N(0, sigma_z^2)

k is the kernel of the local energies, so with the whitened features phi of its inducing points (observations.py) a moment is
linear in weights v ~ N(0, I): a = [s phi(x), C_STD]. The fit needs G = sum b^T b, sum b^T m, sum m^2 and n of b = [phi, 1],
which are additive as those of energies and forces are; s and sigma maximise the evidence. The variance of a prediction is
that of the weights, what the inducing points do not carry, s^2 (1 - |phi|^2), and the noise: it is that of the difference to
a new calculation.

Moments say which charge state an ion is in (high spin Fe2+ near 3.7, Fe3+ near 4.3 Bohr magnetons): a site that the model
cannot tell apart has a standard deviation of that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.observations import local_features
from mfgp.gp.statistics import Moments

C_STD = 5.0  # Bohr magnetons
STARTS = ((0.3, 0.1), (3.0, 0.01))  # s and sigma, Bohr magnetons
BOUNDS = (math.log(1e-4), math.log(10.0))

SiteKey = tuple[int, int]  # level, atomic number


@dataclass
class SiteStatistics:
    """G, b, c, n of the moments of one (level, element); columns [phi of the element's inducing points, 1]."""

    moments: dict[SiteKey, Moments] = field(default_factory=dict)

    def merged(self, other: SiteStatistics) -> SiteStatistics:
        """Both sets of moments together."""
        out = dict(self.moments)
        for key, m in other.moments.items():
            out[key] = m if key not in out else out[key].plus(m)
        return SiteStatistics(out)

    def add(self, basis: InducingBasis, level: int, numbers: Tensor, features: Tensor, values: Tensor) -> None:
        """Add the moments [N] of a structure: atomic numbers [N], descriptors [N, D]."""
        phi = local_features(basis, features, numbers)
        for index, columns in basis.blocks():
            own = torch.nonzero(numbers == basis.species[index]).squeeze(1)
            if len(own):
                key = (level, basis.species[index])
                rows = with_constant(phi[own, columns])
                if key not in self.moments:
                    self.moments[key] = Moments.zeros(rows.shape[1], rows.device)
                self.moments[key].add(rows, values[own])


@dataclass(frozen=True)
class SitePosterior:
    """Moments of one element at one level. weights [M_s + 1] on [phi, 1]; covariance [M_s + 1, M_s + 1]; s, sigma."""

    weights: Tensor
    covariance: Tensor
    amplitude: float
    noise: float

    def predict(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [n] of the moments at features phi [n, M_s], in Bohr magnetons."""
        rows = with_constant(phi)
        variance = ((rows @ self.covariance) * rows).sum(1).clamp(min=0.0)
        return rows @ self.weights, (variance + self.residual(phi) + self.noise**2).sqrt()

    def residual(self, phi: Tensor) -> Tensor:
        """What the inducing points do not carry of the variances at features phi [n, M_s]: [n] Bohr magnetons^2."""
        return self.amplitude**2 * (1.0 - (phi**2).sum(1)).clamp(min=0.0)


def with_constant(phi: Tensor) -> Tensor:
    """b = [phi, 1], [n, M_s + 1]."""
    return torch.cat([phi, phi.new_ones(len(phi), 1)], dim=1)


def fit_sites(statistics: SiteStatistics) -> dict[SiteKey, SitePosterior]:
    """Learn s and sigma of every element at every level by the evidence, and condition on the data."""
    return {key: site_posterior(m, *_learned(m)) for key, m in statistics.moments.items()}


def predict_sites(
    basis: InducingBasis, posteriors: Mapping[SiteKey, SitePosterior], level: int, numbers: Tensor, phi: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [N] of the moments at a level from local features phi [N, M]; NaN where no label is."""
    mean, std = (phi.new_full((len(numbers),), math.nan) for _ in range(2))
    for index, columns in basis.blocks():
        own = torch.nonzero(numbers == basis.species[index]).squeeze(1)
        found = posteriors.get((level, basis.species[index]))
        if found is not None and len(own):
            mean[own], std[own] = found.predict(phi[own, columns])
    return mean, std


def site_evidence(m: Moments, amplitude: float, noise: float) -> float:
    """log p(m) in nats: the projected process, as of one level in autoregressive.py."""
    factor, theta, scale = _solve(m, amplitude, noise)
    fit = m.square / noise**2 - float((scale * m.projection) @ theta) / noise**2
    return -0.5 * (fit + m.count * math.log(2 * math.pi * noise**2) + 2.0 * float(factor.diagonal().log().sum()))


def _learned(m: Moments) -> tuple[float, float]:
    def negative(x: np.ndarray) -> float:
        try:
            return -site_evidence(m, math.exp(x[0]), math.exp(x[1]))
        except NumericalError:
            return math.inf

    floor = math.log(max(1e-4, 1e-6 * math.sqrt(m.square / max(m.count, 1))))
    bounds = [BOUNDS, (floor, BOUNDS[1])]
    options = {"xatol": 0.01, "fatol": 0.01}
    runs = [minimize(negative, np.log(s), method="Nelder-Mead", bounds=bounds, options=options) for s in STARTS]
    found = min(runs, key=lambda run: float(run.fun))  # there may be two maxima: all noise, or a steep function
    return math.exp(found.x[0]), math.exp(found.x[1])


def _solve(m: Moments, amplitude: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor of P = I + D G D / sigma^2, the mean of theta, and the diagonal of D."""
    scale = m.projection.new_full((len(m.projection),), amplitude)
    scale[-1] = C_STD
    precision = scale[:, None] * m.gram * scale[None, :] / noise**2
    precision.diagonal().add_(1.0)
    factor, info = torch.linalg.cholesky_ex(precision)
    if int(info) != 0:
        raise NumericalError("the precision of the magnetic moments lost its definiteness; their noise is too small.")
    theta = torch.cholesky_solve((scale * m.projection / noise**2)[:, None], factor).squeeze(1)
    return factor, theta, scale


def site_posterior(m: Moments, amplitude: float, noise: float) -> SitePosterior:
    """Condition on the data at given s and sigma (Bohr magnetons)."""
    factor, theta, scale = _solve(m, amplitude, noise)
    covariance = scale[:, None] * torch.cholesky_inverse(factor) * scale[None, :]
    return SitePosterior(scale * theta, covariance, amplitude, noise)
