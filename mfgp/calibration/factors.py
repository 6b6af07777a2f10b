"""Factors and exponents of a calibration (calibration.py) from left-out errors.

The evidence chooses amplitudes and noises that describe all labels at once; what they say about one more structure can be
too wide or too narrow by a factor of several. Leave-one-structure-out errors (leave_one_out) are errors on unseen
structures. The factors a, r, b of Var = a v_weights + r v_residual + b v_noise maximise

    sum_i w log N(e_i; 0, Var_i) + sum over factors of log N(log(factor / factor_0); 0, 2^2),        w = structures / labels

over the left-out errors e_i: the labels of one structure are far from independent and count as one together, so that with
a handful of structures the calibration stays near what the model says by itself, factor_0 = 1. Of energies, beside
three structures with forces or more, factor_0 is that of all forces of the level: in cells of one size the three parts of an
energy's variance are nearly proportional to each other and its errors tell their sum alone, while a larger cell has another
mixture (the noise of N atoms grows as N, what is not known of the weights as up to N^2). Forces, of which a structure has
dozens that differ in these parts, tell which is how far off. The exponents of novelty.py are fitted in turns with them, the
scatter of composition_scatter.py last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.optimize import minimize

from mfgp.calibration.calibration import MIN_STRUCTURES, Calibration, Fitted, Scale
from mfgp.calibration.composition_scatter import ENERGIES, FORCES, CompositionScatter, fit_scatter, fractions
from mfgp.calibration.leave_one_out import LeftOut
from mfgp.calibration.novelty import (
    ENERGY_EXPONENT,
    VIRIAL_EXPONENT,
    EnergyNovelty,
    Neighbours,
    Novelty,
    Surprise,
    fit_exponent,
)
from mfgp.calibration.scores import scores

Array = NDArray[np.float64]
Alike = Mapping[tuple[str, str], Sequence[LeftOut]]  # by level and kind
PRIOR_STD = 2.0  # of the logarithm of a factor
BOUNDS = (-30.0, 6.0)  # an amplitude that ran away, as in earlier fits, makes the residual 10^6 times too large
FIXED = {"energy": ENERGY_EXPONENT, "virial": VIRIAL_EXPONENT}
ROUNDS = 3  # of factors and exponents in turns


@dataclass(frozen=True)
class _Errors:
    """Left-out errors of one property, [label], and the number of structures that they come from."""

    error: Array
    weights: Array
    residual: Array
    noise: Array
    structures: int

    def scale(self, usual: Scale) -> Scale:
        """All factors, from those that are expected."""
        both = fit_factors(
            self.error, [self.weights, self.noise], self.structures, [usual.sampled_weights, usual.sampled_noise]
        )
        parts, expected = [self.weights, self.residual, self.noise], [usual.weights, usual.residual, usual.noise]
        return Scale(*fit_factors(self.error, parts, self.structures, expected), *both)


def fit_calibration(
    left_out: Iterable[LeftOut], levels: Sequence[str], species: Sequence[int], neighbours: Neighbours | None = None
) -> Calibration:
    """Fit the scales of every property at every level, novelty, and scatter of energies and forces, to left-out errors.

    neighbours: pairs of a structure within the cutoff; without them there is neither novelty nor scatter. See fit_scales
    for what happens where there is little to fit to.
    """
    left = list(left_out)
    first = fit_scales(left, levels, species)
    if neighbours is None:
        return first
    alike = {
        (level, kind): [p for p in left if (p.frame.fidelity, p.kind) == (level, kind)]
        for level in levels
        for kind in ("energy", "forces", "virial")
    }
    forces, energies = _usual(alike, levels, species)
    ratios: dict[int, Array] = {}
    for level in levels:
        ratios |= _ratios(alike, level, forces[level], energies[level], neighbours)
    exponents, found = _in_turns(left, alike, ratios, first, levels, species)

    def scatters(kind: str, least: float) -> tuple[CompositionScatter, ...]:
        by_level = [[(p, _surprise(p, found, t, ratios[id(p)])) for p in alike[x, kind]] for t, x in enumerate(levels)]
        return tuple(_scatter(s, exponents[x, kind], least) for x, s in zip(levels, by_level, strict=True))

    return replace(
        found,
        energy_scatter=scatters("energy", ENERGIES),
        force_scatter=scatters("forces", FORCES),
        fitted=_as_before(first, found),
        novelty=tuple(
            replace(forces[x], exponent=exponents[x, "forces"], virial_exponent=exponents[x, "virial"]) for x in levels
        ),
        energy_novelty=tuple(replace(energies[level], exponent=exponents[level, "energy"]) for level in levels),
    )


def _scatter(left_out: Sequence[tuple[LeftOut, Surprise]], exponent: float, least: float) -> CompositionScatter:
    """How left-out energies or forces of a level scatter beyond their variances, novelty included."""
    rows = []
    for part, s in left_out:
        variance = s.model * np.exp(exponent * s.log_ratio) + s.noise
        rows.append((fractions(part.frame.atoms.numbers), float(np.mean(s.error**2 / variance))))
    return fit_scatter(rows, least)


def _usual(
    alike: Alike, levels: Sequence[str], species: Sequence[int]
) -> tuple[dict[str, Novelty], dict[str, EnergyNovelty]]:
    """The references of both novelties by level."""
    forces, energies = {}, {}
    for level in levels:
        mean = {z: _mean_variance(alike[level, "forces"], z) for z in species}
        of_virials = float(np.mean(_variances_per_atom(alike[level, "virial"]) or [0.0]))
        forces[level] = Novelty(0.0, {z: v for z, v in mean.items() if v > 0}, virial_reference=of_virials)
        energies[level] = EnergyNovelty(0.0, float(np.median(_variances_per_atom(alike[level, "energy"]) or [0.0])))
    return forces, energies


def _in_turns(
    left: Sequence[LeftOut],
    alike: Alike,
    ratios: Mapping[int, Array],
    first: Calibration,
    levels: Sequence[str],
    species: Sequence[int],
) -> tuple[dict[tuple[str, str], float], Calibration]:
    """Exponents by level and kind, and the scales beside them; ratios: log u by id of the part."""
    exponents, found = dict.fromkeys(alike, 0.0), first
    several = {key for key, parts in alike.items() if len(parts) >= MIN_STRUCTURES}
    exponents |= {key: FIXED[key[1]] for key in several if key[1] in FIXED}
    for _ in range(ROUNDS):
        for t, level in enumerate(levels):
            if (key := (level, "forces")) in several:
                exponents[key] = fit_exponent([_surprise(p, found, t, ratios[id(p)]) for p in alike[key]])
        found = fit_scales([_more_novel(p, ratios, exponents) for p in left], levels, species)
    return exponents, found


def _as_before(first: Calibration, found: Calibration) -> tuple[Fitted, ...]:
    """What `found` was fitted to, with the scores before of the calibration without novelty."""
    before = {(f.level, f.kind, f.species): f for f in first.fitted}
    out = []
    for f in found.fitted:
        was = before[f.level, f.kind, f.species]
        out.append(replace(f, coverage_before=was.coverage_before, z_std_before=was.z_std_before))
    return tuple(out)


def _mean_variance(parts: Sequence[LeftOut], z: int) -> float:
    """Of the weights, over the force components on species z; 0 for none."""
    found = np.concatenate([p.weight_variance[p.species == z] for p in parts] or [np.zeros(0)])
    return float(found.mean()) if len(found) else 0.0


def _variances_per_atom(parts: Sequence[LeftOut]) -> list[float]:
    """Of the weights, per atom squared, for each energy or virial. (LeftOut has them per sqrt(atom).)"""
    return [float(p.weight_variance.mean()) / len(p.frame.atoms) for p in parts]


def _ratios(
    alike: Alike, level: str, forces: Novelty, energies: EnergyNovelty, neighbours: Neighbours
) -> dict[int, Array]:
    """log u of every left-out label of a level, [row] by id of the part."""
    out, mean = {}, {}  # mean: u of the virial by id of the frame
    for p in alike[level, "forces"]:
        atoms = p.frame.atoms
        variances = np.zeros(3 * len(atoms))
        variances[p.component] = p.weight_variance
        u = forces.ratios(variances, atoms.numbers, neighbours(atoms))
        out[id(p)], mean[id(p.frame)] = np.log(u[p.component // 3]), float(u.mean())
    for p in alike[level, "virial"]:
        n = len(p.frame.atoms)
        ratio = forces.virial_ratio(mean.get(id(p.frame)), p.weight_variance * n, n)
        out[id(p)] = np.full(len(p.error), np.log(ratio))
    for p in alike[level, "energy"]:
        n = len(p.frame.atoms)
        out[id(p)] = np.log([energies.ratio(v * n, n) for v in p.weight_variance])
    return out


def _surprise(part: LeftOut, calibration: Calibration, level: int, log_ratio: Array) -> Surprise:
    """Left-out energies or forces as their level's scales have them."""
    scales = [calibration.energy[level]] * len(part.error)
    if part.kind == "forces":
        scales = [calibration.forces[level][int(z)] for z in part.species]
    a, r, b = (np.array([getattr(s, name) for s in scales]) for name in ("weights", "residual", "noise"))
    return Surprise(
        part.error, a * part.weight_variance + r * part.residual_variance, b * part.noise_variance, log_ratio
    )


def _more_novel(part: LeftOut, ratios: Mapping[int, Array], exponents: Mapping[tuple[str, str], float]) -> LeftOut:
    """With the model's variances as novelty makes them."""
    g = np.exp(exponents[part.frame.fidelity, part.kind] * ratios[id(part)])
    return replace(part, weight_variance=g * part.weight_variance, residual_variance=g * part.residual_variance)


def fit_scales(left_out: Iterable[LeftOut], levels: Sequence[str], species: Sequence[int]) -> Calibration:
    """Fit the scales of every property at every level to left-out errors.

    A species whose forces too few structures hold takes the scale of all forces of the level, a level without virials that
    of its forces where it is wider than what the model says by itself, a level without enough of a property stays as it is.
    Factors of energies are expected near those of all forces of the level, the others near 1. So r is that of the forces
    where the environments of left-out energies are inducing points, as in a small data set: these have no residual, and a
    new structure has.
    """
    parts: dict[tuple[str, str, int], list[LeftOut]] = {}
    for part in left_out:
        for z in np.unique(part.species).tolist() if part.kind == "forces" else [0]:
            parts.setdefault((part.frame.fidelity, part.kind, z), []).append(part)
    fitted: list[Fitted] = []

    def fit(level: str, kind: str, z: int, fallback: Scale) -> Scale:
        chosen = parts.get((level, kind, z), [])
        if len(chosen) < MIN_STRUCTURES:
            return Scale() if kind == "energy" else fallback
        errors = _errors(chosen, z)
        scale = errors.scale(fallback if kind == "energy" else Scale())
        fitted.append(_report(level, kind, chemical_symbols[z] if z else "", errors, scale))
        return scale

    energy, forces, virial = [], [], []
    for level in levels:
        everything = [p for (name, kind, _), found in parts.items() if (name, kind) == (level, "forces") for p in found]
        pooled = _pooled(everything)
        energy.append(fit(level, "energy", 0, pooled))
        forces.append({z: fit(level, "forces", z, pooled) for z in species})
        virial.append(fit(level, "virial", 0, pooled.widening))
    return Calibration(tuple(energy), tuple(forces), tuple(virial), tuple(fitted))


def energies_by_element(left_out: Iterable[LeftOut], level: str) -> dict[int, int]:
    """How many left-out energies of a level are of structures with an element, by atomic number; empty where they are too
    few for a scale.
    """
    energies = [p for p in left_out if (p.frame.fidelity, p.kind) == (level, "energy")]
    counts = Counter(z for p in energies for z in np.unique(p.frame.atoms.numbers).tolist())
    return dict(counts) if len(energies) >= MIN_STRUCTURES else {}


def fit_factors(
    error: Array, variances: Sequence[Array], structures: int, usual: Sequence[float] | None = None
) -> list[float]:
    """Factors of the parts of the variance, as the module docstring has them.

    error [label]; variances each [label]; usual: factor_0 of each, 1 by default.
    """
    weight = structures / len(error)
    parts = np.array(variances)  # [part, label]
    expected = np.zeros(len(parts)) if usual is None else np.log(usual)

    def negative(x: Array) -> tuple[float, Array]:
        scaled, off = np.exp(x)[:, None] * parts, (x - expected) / PRIOR_STD
        total = scaled.sum(0)
        value = 0.5 * weight * float((error**2 / total + np.log(total)).sum()) + 0.5 * float(off @ off)
        slope = 0.5 * weight * (1.0 - error**2 / total) / total
        return value, scaled @ slope + off / PRIOR_STD

    found = minimize(negative, expected, jac=True, method="L-BFGS-B", bounds=[BOUNDS] * len(parts))
    return np.exp(found.x).tolist()


def _pooled(parts: Sequence[LeftOut]) -> Scale:
    distinct = list({id(p): p for p in parts}.values())
    if len(distinct) < MIN_STRUCTURES:
        return Scale()
    return _errors(distinct, None).scale(Scale())


def _errors(parts: Sequence[LeftOut], z: int | None) -> _Errors:
    """The labels of those parts; of forces only those on species z, where it is one."""
    masks = [p.species == z if z and p.kind == "forces" else np.ones(len(p.error), dtype=bool) for p in parts]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(p, name)[mask] for p, mask in zip(parts, masks, strict=True)])

    return _Errors(
        joined("error"),
        joined("weight_variance"),
        joined("residual_variance"),
        joined("noise_variance"),
        len(parts),
    )


def _report(level: str, kind: str, species: str, e: _Errors, scale: Scale) -> Fitted:
    before = scores(e.error, np.sqrt(e.weights + e.residual + e.noise))
    variance = scale.weights * e.weights + scale.residual * e.residual + scale.noise * e.noise
    after = scores(e.error, np.sqrt(variance))
    return Fitted(
        level,
        kind,
        species,
        e.structures,
        len(e.error),
        scale,
        before.coverage95,
        after.coverage95,
        before.z_std,
        after.z_std,
    )
