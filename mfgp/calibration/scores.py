"""How good Gaussian predictions are: errors, and whether the standard deviations are honest.

With e = predicted - label and z = e / std, of n labels:

    mae = mean |e|,  rmse = sqrt(mean e^2),  z_std = sqrt(mean (z - mean z)^2),  sharpness = mean std
    coverageP = share of |z| <= Phi^-1((1 + P) / 2),  nll = mean [ z^2 / 2 + log std + log(2 pi) / 2 ]
    crps = mean std [ z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi) ]          (Gneiting & Raftery, JASA 102, 359 (2007))
    spearman = Pearson correlation of the ranks of |e| and std
    worst5_in_top10 = share of the labels with the 5 % largest |e| that are among those with the 10 % largest std

A calibrated model has coverage95 = 0.95 and z_std = 1. `spearman` says whether std ranks the errors: it is undefined where
either is constant, and even perfect stds give well under 1, since |e| is a draw. Of two calibrated models the sharper is
better; nll and crps judge both at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, chdtri, ndtr, ndtri, stdtr  # scipy.stats costs every command a third of a second

Array = NDArray[np.float64]
LOG_2PI = math.log(2.0 * math.pi)
BULK = 0.8  # quantile of scores that stands for the bulk: up to one label in five may be wrong
MIN_LABELS = 8  # alike, for their bulk to say anything


def bulk(scores: Array, components: int | NDArray[np.int64] = 1) -> float:
    """Standard deviation of the bulk of scores [label] = sqrt(|z|^2 / components), by their quantile: 1 if z ~ N(0, 1).

    components: of all labels or of each, [label].
    """
    normal = np.sqrt(chdtri(components, 1.0 - BULK) / components)
    return float(np.quantile(scores / normal, BULK))


@dataclass(frozen=True)
class Scores:
    """Scores of n labels; mae, rmse, crps and sharpness in the unit of the label, nll in nats, the rest dimensionless.

    NaN = undefined.
    """

    mae: float
    rmse: float
    coverage50: float
    coverage80: float
    coverage95: float
    z_std: float
    nll: float
    crps: float
    spearman: float
    worst5_in_top10: float
    sharpness: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain numbers, None for what is undefined."""
        return {k: v if k == "n" or math.isfinite(v) else None for k, v in asdict(self).items()}


def scores(error: Array, std: Array) -> Scores:
    """Scores of errors (predicted - label) with Gaussian standard deviations, any shape; all NaN for no labels.

    Raises ValueError for a std that is not positive: a label's distribution always has a width.
    """
    error, std = np.ravel(error), np.ravel(std)
    if error.shape != std.shape:
        raise ValueError(f"{error.size} errors, but {std.size} standard deviations")
    if not (std > 0).all():
        raise ValueError("standard deviations of labels must be positive")
    if not error.size:
        return Scores(**{f.name: math.nan for f in fields(Scores) if f.name != "n"}, n=0)
    z = error / std
    return Scores(
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt((error**2).mean())),
        coverage50=coverage(z, 0.50),
        coverage80=coverage(z, 0.80),
        coverage95=coverage(z, 0.95),
        z_std=float(z.std()) if z.size > 1 else math.nan,
        nll=float((0.5 * z**2 + np.log(std) + 0.5 * LOG_2PI).mean()),
        crps=float((std * (z * (2 * ndtr(z) - 1) + 2 * normal_density(z) - math.pi**-0.5)).mean()),
        spearman=rank_correlation(np.abs(error), std),
        worst5_in_top10=worst_found(np.abs(error), std),
        sharpness=float(std.mean()),
        n=int(error.size),
    )


def coverage(z: Array, probability: float) -> float:
    """Share of z-scores inside the central interval of a standard normal distribution with that probability."""
    return float((np.abs(z) <= ndtri(0.5 * (1.0 + probability))).mean())


def expected_inside(n: int, probability: float = 0.95) -> tuple[int, int]:
    """How many of n independent labels lie in the interval of that probability, 95 % of the time (central, binomial)."""
    cumulative = bdtr(np.arange(n + 1), n, probability)
    low, high = (int(np.searchsorted(cumulative, q)) for q in (0.025, 0.975))
    return low, high


def coverage_of_few(structures: int) -> float:
    """P(|t_n| < 1.96): of new energies, what the 95 % interval holds whose width was fitted to n errors (Student's t)."""
    return float(2.0 * stdtr(structures, 1.959964) - 1.0)


def normal_density(z: Array) -> Array:
    """phi(z)."""
    return np.exp(-0.5 * (z**2 + LOG_2PI))


def ranks(x: Array) -> Array:
    """1 for the smallest of x [n]; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - 0.5 * (counts - 1))[inverse]


def rank_correlation(x: Array, y: Array) -> float:
    """Spearman's rho of x [n] and y [n], ties sharing their mean rank; NaN where either is constant."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm_ = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm_ if norm_ > 0 else math.nan


def worst_found(error: Array, std: Array, worst: float = 0.05, top: float = 0.10) -> float:
    """Share of the `worst` largest errors [n] among the `top` largest std [n]; `top` by chance. NaN for a constant std."""
    if np.ptp(std) == 0:
        return math.nan
    n_worst, n_top = max(1, round(worst * len(error))), max(1, round(top * len(std)))
    largest = set(np.argsort(-std, kind="stable")[:n_top].tolist())
    return sum(i in largest for i in np.argsort(-error, kind="stable")[:n_worst].tolist()) / n_worst
