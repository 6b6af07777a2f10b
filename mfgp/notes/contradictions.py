"""Energies and forces of a level that contradict each other: a sign, a unit, energies of other structures.

A model follows the forces, of which there are more, and takes such energies for noise, or the other way round. How energies
would have to be scaled for both to be of one function is told by the statistics. With y the energies, w what baselines of
their prior mean m say of them, forces (less what these say) of a prior theta ~ N(0, D^2), b y = A theta + w + noise,
a = 1/b, and sigma in the unit of the forces,

    P = I + D (G_F / sigma_F^2 + G_E / sigma^2) D,      h_y = D A^T y / sigma^2,      h_w = D G_E m / sigma^2
    log p(y, F) = -1/2 [ alpha b^2 - 2 beta b ] + n log |b| + terms without b,        h = D b_F / sigma_F^2 - h_w
    alpha = |y|^2 / sigma^2 - h_y^T P^-1 h_y,    beta = h^T P^-1 h_y + y.w / sigma^2,
    b = (beta +- sqrt(beta^2 + 4 alpha n)) / (2 alpha)

the evidence of `autoregressive` for one level, with the maximum over a, of either sign, in closed form. It knows what the
forces leave open (energies between compositions, above all), which a regression on what the forces predict does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ase.units import Bohr
from torch import Tensor

from mfgp.base.units import ENERGY_UNITS, FORCE_UNITS
from mfgp.gp.evidence import LOG_2PI
from mfgp.gp.hyperparameters import explaining_scale
from mfgp.gp.statistics import Moments
from mfgp.notes.training_residuals import Residual, training_residuals

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

LEFT = 0.15  # residual over labels of energies about the best e0 from which on it is asked whether they fit the forces,
LEFT_OF_FORCES = 0.5  # and of forces
NATS, NATS_A_LABEL = 20.0, 0.7  # that another factor has to gain; 0.7 an energy: half the error
USUAL = (2 / 3, 1.5)  # factors that are no news
UNRELATED = 1.25  # residual over labels of energies that the model makes worse than e0 alone does
ENOUGH = 8  # energies beyond those that fix e0
SIGMAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # eV per sqrt(atom), of energies, beside the noise of the fit
EXPLAINED = 0.1  # noise over labels of forces of a model that follows them
ALIKE = 0.08  # of a factor and that of a unit


def contradiction_notes(model: MultiFidelityGP) -> list[str]:
    """A sentence for each level whose energies and forces are not of one function, with the likely reason."""
    found = {(r.level, r.kind): r for r in training_residuals(model)}
    return [
        note
        for t, level in enumerate(model.levels)
        if (level, "energy") in found and (level, "forces") in found
        for note in _notes(model, t, found[level, "energy"], found[level, "forces"])
    ]


def _notes(model: MultiFidelityGP, t: int, energy: Residual, forces: Residual) -> Iterator[str]:
    labels, free = about_e0(model, model.statistics.moments[t, "energy"])
    if free < ENOUGH or not labels > 0.0 or not forces.labels > 0.0:
        return
    left, left_of_forces = energy.residual / labels, forces.residual / forces.labels
    if left < LEFT and left_of_forces < LEFT_OF_FORCES:
        return
    best = energy_factor(model, t)
    told = best.gain > max(NATS, NATS_A_LABEL * energy.count) and not USUAL[0] < best.factor < USUAL[1]
    if told or (left > UNRELATED and left_of_forces < LEFT_OF_FORCES):
        reason = (
            f"the energies are {best.factor:.3g} times what the forces say{likely(best.factor)}"
            if told
            else ("energies of other structures, of another calculation or in another unit?")
        )
        yield (
            f"level {model.levels[t]}: its energies and forces contradict each other, and the model takes one of them for "
            f"noise (energies: residual {1e3 * energy.residual:.3g} of {1e3 * labels:.3g} meV per sqrt(atom); forces: "
            f"{1e3 * forces.residual:.3g} of {1e3 * forces.labels:.3g} meV/Å): {reason}. Energies are in eV, forces -dE/dr "
            "in eV/Å: correct the labels and fit again."
        )


def about_e0(model: MultiFidelityGP, energies: Moments) -> tuple[float, int]:
    """Root mean square of energies about the composition's best sum, eV per sqrt(atom), and how many are left for it."""
    m, s = model.basis.size, len(model.basis.species)
    gram, projection = energies.gram[m : m + s, m : m + s], energies.projection[m : m + s]
    unit = gram.diagonal().clamp_min(1e-300).sqrt()
    values, vectors = torch.linalg.eigh(gram / (unit[:, None] * unit))
    kept = values > 1e-9
    explained = float(((vectors[:, kept].T @ (projection / unit)) ** 2 / values[kept]).sum())
    free = energies.count - int(kept.sum())
    return math.sqrt(max(energies.square - explained, 0.0) / max(free, 1)), free


@dataclass(frozen=True)
class Factor:
    """a of the module docstring, and what it gains in log evidence, nats, over a = 1 and over energies that are noise."""

    factor: float
    gain: float


def energy_factor(model: MultiFidelityGP, t: int) -> Factor:
    """The factor of the energies of a level that goes best with its forces; each at its best of a few noises and two
    amplitudes, that of the fit and that which explains the forces."""
    forces, energies = (model.statistics.moments[t, kind] for kind in ("forces", "energy"))
    columns = model.column_std[: t + 1].square().sum(0)
    fitted = model.prior.local_variances()[t].detach()[model.basis.species_index()]  # [M] eV^2
    explaining = explaining_scale(model.statistics, (t, "forces"), model.basis.size) or 1.0
    mean = torch.zeros_like(energies.projection)
    if model.columns.coefficients is not None:
        own = model.columns.of_baselines
        mean[model.basis.size + own.start : model.basis.size + own.stop] = model.columns.coefficients[t]
    noises, rms = model.noises(), math.sqrt(forces.square / forces.count)
    scatter = about_e0(model, energies)[0]
    noise = (
        -0.5 * energies.count * (LOG_2PI + 2.0 * math.log(scatter) + 1.0)
    )  # evidence of energies without any function
    usual, best = -math.inf, (-math.inf, 1.0)
    for features, sigma_f in (
        (fitted, noises[t, "forces"]),
        (torch.full_like(fitted, explaining**2), EXPLAINED * rms),
    ):
        d = torch.cat([features, columns]).sqrt()
        usual = max(usual, _evidences(forces, energies, mean, d, sigma_f, math.inf)[0][0] + noise)
        for sigma in (noises[t, "energy"], *SIGMAS):
            found = _evidences(forces, energies, mean, d, sigma_f, sigma)
            usual, best = max(usual, found[0][0]), max(best, *found)
    return Factor(best[1], best[0] - usual)


def _evidences(
    forces: Moments, energies: Moments, mean: Tensor, d: Tensor, sigma_f: float, sigma: float
) -> list[tuple[float, float]]:
    """Log evidence and a: of a = 1, and of the best positive and negative one; with an infinite sigma that of the forces.

    energies: less what coefficients `mean` [column] of the baselines say, as the statistics have them.
    """
    said = energies.gram @ mean  # A^T w
    of_y = energies.projection + said
    w_w, y_w = float(mean @ said), float(mean @ of_y)
    y_y = energies.square + 2.0 * float(mean @ energies.projection) + w_w
    precision = d[:, None] * (forces.gram / sigma_f**2 + energies.gram / sigma**2) * d
    precision.diagonal().add_(1.0)
    factor, info = torch.linalg.cholesky_ex(precision)
    if int(info) != 0:
        return [(-math.inf, 1.0)]
    h = torch.stack([d * (forces.projection / sigma_f**2 - said / sigma**2), d * of_y / sigma**2], dim=1)
    z = torch.linalg.solve_triangular(factor, h, upper=False)
    (ff, beta), (_, ee) = (z.T @ z).tolist()
    rest = forces.square / sigma_f**2 + forces.count * (LOG_2PI + 2.0 * math.log(sigma_f)) - ff
    rest += 2.0 * float(factor.diagonal().log().sum())
    if math.isinf(sigma):
        return [(-0.5 * rest, 1.0)]
    alpha, n, beta = y_y / sigma**2 - ee, energies.count, beta + y_w / sigma**2
    rest += w_w / sigma**2 + n * (LOG_2PI + 2.0 * math.log(sigma))
    root = math.sqrt(beta**2 + 4.0 * alpha * n) if alpha > 0.0 else 0.0
    scales = [1.0, *((beta + sign * root) / (2.0 * alpha) for sign in (1.0, -1.0) if root > abs(beta))]
    return [(n * math.log(abs(b)) - 0.5 * (rest + alpha * b**2 - 2.0 * beta * b), 1.0 / b) for b in scales]


def likely(factor: float) -> str:
    """What energies that are `factor` times those of the forces may be: a sign, units."""
    units = [f"forces in {unit}" for size, unit in FORCE_UNITS.items() if abs(math.log(abs(factor) / size)) < ALIKE]
    units += [f"energies in {unit}" for size, unit in ENERGY_UNITS.items() if abs(math.log(abs(factor) * size)) < ALIKE]
    if abs(math.log(abs(factor) * Bohr)) < ALIKE:
        units.append("both in atomic units")
    guesses = [" or ".join(units)] if units else []
    if factor < 0:
        guesses.insert(0, "the sign of the forces is that of the gradient (negate them)")
    return f": {' and '.join(guesses)}" if guesses else ""
