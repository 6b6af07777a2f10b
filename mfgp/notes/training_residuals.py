"""What a fit leaves of its training labels, from the sufficient statistics alone, and signs that a level does not help.

|y - A w|^2 = c - 2 w.b + w.G w,        G = A^T A,  b = A^T y,  c = y^T y       (of a level and kind, over its labels)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mfgp.gp.centring import recentred
from mfgp.gp.training import RHO_BOUNDS

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

NOT_EXPLAINED = 0.8  # residual over labels of forces from which on a level is said to be noise
AT_BOUND = 1e-3  # of rho
NOTHING_LEFT = 1e-3  # eV/Å; where e0 and baselines leave no more of the forces, there is nothing to explain
NO_STRESS_LEFT = 5e-3  # eV per sqrt(atom), the same of virials: 0.2 kbar in a cell of four atoms
NO_TRANSFER = 0.2  # share of a level's amplitude under which the level below is said to carry nothing upwards


@dataclass(frozen=True)
class Residual:
    """What a model leaves of the training labels of one kind at one level.

    labels, residual: root mean square of the labels about e0 and baselines, before and after the model; noise: the standard
    deviation learned for them. Units eV per sqrt(atom) (energy, virial), eV/Å (forces), the labels' own sigma (others).
    """

    level: str
    kind: str
    count: int
    labels: float
    residual: float
    noise: float


def training_residuals(model: MultiFidelityGP) -> list[Residual]:
    """By level and kind of label."""
    out, noises, weights = [], model.noises(), recentred(model.weights, model.features.centre)
    for t, kind in model.statistics.observed():
        m, w = model.statistics.moments[t, kind], weights[t]
        left = m.square - 2.0 * float(w @ m.projection) + float(w @ m.gram @ w)
        rms = [math.sqrt(max(v, 0.0) / m.count) for v in (m.square, left)]
        out.append(Residual(model.levels[t], kind, m.count, rms[0], rms[1], noises[t, kind]))
    return out


def transfer_notes(model: MultiFidelityGP) -> list[str]:
    """Signs that a level does not help those above it: forces that the model takes for noise, a small share of what is above
    it, a rho at a bound.

    Such a level does no harm either (its noise or rho lets the fit ignore it); the notes say to look at its data.
    """
    notes = []
    for found in training_residuals(model):
        if found.kind == "forces" and found.residual > NOT_EXPLAINED * found.labels > NOT_EXPLAINED * NOTHING_LEFT:
            notes.append(
                f"level {found.level}: the model explains next to nothing of its forces (residual "
                f"{1e3 * found.residual:.0f} of {1e3 * found.labels:.0f} meV/Å): do its labels belong to its structures?"
            )
        if found.kind == "virial" and found.residual > NOT_EXPLAINED * found.labels > NOT_EXPLAINED * NO_STRESS_LEFT:
            notes.append(
                f"level {found.level}: the model explains next to nothing of its stresses, and takes them for noise: "
                "another sign, unit or order, Pulay stress, or forces that reach beyond r_cut (a larger one would help, or "
                "structures of several volumes)?"
            )
    return [*notes, *_small_shares(model), *_rho_at_bounds(model)]


def _small_shares(model: MultiFidelityGP) -> Iterator[str]:
    """Levels of which little is left above: |rho| sqrt(Var f_t / Var f_t+1) of the prior, in whatever units both are."""
    variances, rho = model.prior.local_variances(), model.prior.rho.abs()  # [T, S], [T-1, S]
    shares = (rho * (variances[:-1] / variances[1:]).sqrt()).max(1).values.tolist()
    for low, high, share in zip(model.levels, model.levels[1:], shares, strict=False):
        if share < NO_TRANSFER:
            yield f"{share:.2f} of the amplitude at {high} comes from {low}: {low} says next to nothing about {high}."


def _rho_at_bounds(model: MultiFidelityGP) -> Iterator[str]:
    """A learned rho that would have gone on: a factor between the labels, or a level that goes the other way."""
    symbols = model.hyperparameters()["rho"] if isinstance(model.config.model.rho, str) else []
    for (low, high), found in zip(pairwise(model.levels), symbols, strict=False):
        for bound in RHO_BOUNDS:
            there = [symbol for symbol, rho in found.items() if abs(rho - bound) < AT_BOUND]
            if there:
                of = "" if len(there) == len(found) else f" of {', '.join(there)}"
                yield (
                    f"rho of {low} -> {high}{of} is {bound:g}, the end of what is searched ({RHO_BOUNDS[0]:g} to "
                    f"{RHO_BOUNDS[1]:g}): are the labels of both levels in the same units? Or does {low} go against {high}?"
                )
