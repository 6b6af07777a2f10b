"""Which level's discrepancy a standard deviation comes from: whether cheap or expensive data would narrow it.

    f_t = sum_u W[t, u] delta_u,        Var[f_t | y] = sum_u Cov[ W[t, u] delta_u, f_t | y ]

The covariance of each term with the whole adds up to the variance. For a functional with row a,

    share_u = a^T C_tu a + sum_z W[t, u][z]^2 s_u^2 (prior_z - |Phi_z|^2),      C_tu = sum_v D_tu (P^-1)_uv D_tv

Data at level t alone determine the sum better than its terms, which are then anticorrelated; a share that comes out negative
counts as zero, and the rest are scaled to add up to the variance. With a calibration both parts carry its factors, and the
part of the labels is a share too, named `noise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from mfgp.autoregressive import mixing_matrix
from mfgp.observations import cell_volume
from mfgp.prediction import nystrom_residual

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """Part of the standard deviations that one level brings; squares add up over levels. Units and shapes as Prediction."""

    energy_std: float
    forces_std: Array
    stress_std: Array | None


class LevelShares:
    """Shares at one level of a model; make one with `MultiFidelityGP.level_shares`, call it with a structure."""

    def __init__(self, model: MultiFidelityGP, level: int, calibrated: bool = True) -> None:
        self.predictor = model.predictor(model.levels[level], calibrated=calibrated)
        self.model, self.level = model, level
        joint = model.posterior()
        inverse = joint.inverse()
        terms = [joint.term_covariance(inverse, level, u, level) for u in range(level + 1)]
        self.covariances = torch.stack(terms)  # [u, M', M'] eV^2
        scale = model.prior.scale.detach()
        w = mixing_matrix(model.prior.rho.detach())[level, : level + 1]  # [u, S]
        self.variances = w**2 * scale[: level + 1, None] ** 2  # [u, S] eV^2

    def __call__(self, atoms: Atoms) -> dict[str, Share]:
        """Shares of the levels up to this one by name, and of the label noise (`noise`) where the model is calibrated."""
        self.predictor.check(atoms)
        f = self.model.features.functionals(atoms)
        rows = torch.cat([f.phi, self.predictor.columns_of(atoms)], dim=1)
        explained = torch.stack([(f.phi[:, c] ** 2).sum(1) for _, c in self.model.basis.blocks()], dim=1)
        residual = nystrom_residual(f.prior, explained)  # [row, S]
        weights = torch.stack([((rows @ c) * rows).sum(1) for c in self.covariances])  # [u, row]
        residuals = self.variances @ residual.T  # [u, row]
        names = list(self.model.levels[: self.level + 1])
        tiny = torch.finfo(rows.dtype).tiny
        positive = weights.clamp(min=0.0)
        weights = positive * (weights.sum(0).clamp(min=0.0) / positive.sum(0).clamp(min=tiny))
        calibration = self.predictor.calibration
        if calibration is None:
            shares = weights + residuals
        else:
            noise, none = self.model.label_noise(self.level), torch.zeros(3, dtype=rows.dtype)
            zero = torch.zeros_like(weights[0])
            parts = [
                calibration.variances(self.level, w, r, atoms.numbers, none)
                for w, r in zip(weights, residuals, strict=True)
            ]
            parts.append(calibration.variances(self.level, zero, zero, atoms.numbers, noise))
            shares = torch.stack(parts)
            names.append("noise")
        volume = cell_volume(atoms) if bool(torch.isfinite(rows).all()) else 0.0  # a baseline without stress: no stress
        return {name: _share(part.sqrt(), volume) for name, part in zip(names, shares, strict=True)}


def _share(std: Tensor, volume: float) -> Share:
    values = std.cpu().numpy()
    return Share(float(values[0]), values[1:-6].reshape(-1, 3), values[-6:] / volume if volume else None)
