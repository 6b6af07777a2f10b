"""Which level's discrepancy a standard deviation comes from: whether cheap or expensive data would narrow it.

    f_t = sum_u W[t, u] delta_u,        Var[f_t | y] = sum_u Cov[ W[t, u] delta_u, f_t | y ]

The covariance of each term with the whole adds up to the variance. For a functional with row a,

    share_u = a^T C_tu a + sum_z W[t, u][z]^2 s_u^2 (prior_z - |Phi_z|^2)
    C_tu = W[t, u] ( Cov[f_u, f_t | y] - rho_{u-1} Cov[f_{u-1}, f_t | y] ),      since delta_u = f_u - rho_{u-1} f_{u-1}

Data at level t alone determine the sum better than its terms, which are then anticorrelated; a share that comes out negative
counts as zero, and the rest are scaled to add up to the variance. With a calibration both parts carry its factors, and the
part of the labels is a share too, named `noise`. Predictions carry the shares as `std_by_level`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfgp.data.sources import NOISE
from mfgp.gp.autoregressive import level_mixing, mixing_matrix
from mfgp.gp.centring import uncentred_covariance
from mfgp.predict.weights_variances import weights_variances

if TYPE_CHECKING:
    from mfgp.calibration.calibration import Calibration
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """Part of the standard deviations that one level brings; squares add up over levels. Units and shapes as Prediction."""

    energy_std: float
    forces_std: Array
    stress_std: Array | None


def term_covariances(covariance: Tensor, mixing: Tensor, level: int) -> list[Tensor]:
    """C_tu of each term u, [M', M'] (eV^2), from those between weights of the levels [T, T, M', M'] and W [T, T, M']."""
    out = []
    for u in range(level + 1):
        delta = covariance[u, level]
        if u:
            delta = delta - mixing[u, u - 1][:, None] * covariance[u - 1, level]
        out.append(mixing[level, u][:, None] * delta)
    return out


class LevelShares:
    """The terms of one level of a model: what they have in common with the whole, and their own prior variances."""

    def __init__(self, model: MultiFidelityGP, level: int) -> None:
        rho, n_columns = model.prior.rho.detach(), model.columns.size
        mixing = level_mixing(rho, model.basis.species_index(), n_columns)
        terms = term_covariances(model.posterior().all_covariances(), mixing, level)
        self.level, self.names = level, model.levels[: level + 1]
        self.covariances = uncentred_covariance(torch.stack(terms), model.features.centre)  # [u, M', M'] eV^2
        scale = model.prior.scale.detach()
        w = mixing_matrix(rho)[level, : level + 1]  # [u, S]
        self.variances = w**2 * scale[: level + 1, None] ** 2  # [u, S] eV^2
        self.noise = model.label_noise(level)  # [3]

    def variances_by_name(
        self,
        phi: Tensor,
        extra: Tensor,
        residual: Tensor,
        numbers: NDArray[np.int64],
        calibration: Calibration | None,
        novelty: Tensor,
    ) -> dict[str, Tensor]:
        """Shares of the variances of energy, forces and virial, [1+3N+6] each, by level and, calibrated, `noise`.

        phi [1+3N+6, M], extra [1+3N+6, column]: rows; residual [1+3N+6, S]: what the inducing points do not carry at unit
        amplitude; numbers [N]; novelty [1+3N+6]: factors of the calibration.
        """
        weights = torch.stack([weights_variances(phi, extra, c) for c in self.covariances])  # [u, row]
        residuals = self.variances @ residual.T  # [u, row]
        positive = weights.clamp(min=0.0)
        tiny = torch.finfo(phi.dtype).tiny
        weights = positive * (weights.sum(0).clamp(min=0.0) / positive.sum(0).clamp(min=tiny))
        if calibration is None:
            return dict(zip(self.names, weights + residuals, strict=True))
        none = torch.zeros_like(self.noise)
        pairs = zip(self.names, novelty * weights, novelty * residuals, strict=True)
        out = {name: calibration.variances(self.level, w, r, numbers, none) for name, w, r in pairs}
        out[NOISE] = calibration.noise_variances(self.level, numbers, self.noise).to(phi)
        return out


def share(variance: Tensor, volume: float) -> Share:
    """Standard deviations of one share from its variances of energy, forces and virial [1+3N+6]; volume 0: no stress."""
    std = variance.sqrt().cpu().numpy()
    return Share(float(std[0]), std[1:-6].reshape(-1, 3), std[-6:] / volume if volume else None)
