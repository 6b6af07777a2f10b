"""Calibration: standard deviations that are right on structures the model has not seen.

The evidence chooses amplitudes and noises that describe all labels at once; what they say about one more structure can be
too wide or too narrow by a factor of several. Leave-one-structure-out errors (leave_one_out) are errors on unseen
structures, so the variance of the difference between a prediction and a new calculation is taken as

    Var = a v_weights + r v_residual + b v_noise

with the variance of the posterior weights, that which the inducing points do not carry, and that of the labels' noise (all
as the fit has them), and factors a, r, b > 0 for each level and property, for forces by the species that they act on. They
maximise

    sum_i w log N(e_i; 0, Var_i) + sum over factors of log N(log factor; 0, 2^2),        w = structures / labels

over the left-out errors e_i: the labels of one structure are far from independent and count as one together, so that with
a handful of structures the calibration stays near what the model says by itself. The noise of a fit holds what the model
cannot express as well as what is wrong with the labels; a user meets both, so a calibrated std is that of the
difference to a new calculation at that level, noise included. Where v_residual is not known (sampled standard deviations) a
second pair a', b' without it takes over. Variance scaling after the fit: Levi et al., Sensors 22, 5540 (2022); Busk et al.,
Mach. Learn.: Sci. Technol. 3, 015012 (2022). Of energies and forces v_weights and v_residual are multiplied by the factor of
novelty.py first, which is fitted in turns with a, r and b.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from mfgp.leave_one_out import LeftOut
from mfgp.novelty import EnergyNovelty, Neighbours, Novelty, Pairs, Surprise, fit_exponent
from mfgp.scores import scores

Array = NDArray[np.float64]
PRIOR_STD = 2.0  # of the logarithm of a factor
BOUNDS = (-9.0, 6.0)
MIN_STRUCTURES = 3  # with fewer a property of a level is left as it is
ROUNDS = 3  # of factors and exponents in turns


@dataclass(frozen=True)
class Scale:
    """a, r, b and a', b' of one property: factors of the variances of weights, residual and noise, and without residual."""

    weights: float = 1.0
    residual: float = 1.0
    noise: float = 1.0
    sampled_weights: float = 1.0
    sampled_noise: float = 1.0


@dataclass(frozen=True)
class Fitted:
    """What the calibration of one property was fitted to; coverage of the 95 % interval and std of z before and after."""

    level: str
    kind: str
    species: str  # "" where it is not by species
    structures: int
    labels: int
    scale: Scale
    coverage_before: float
    coverage_after: float
    z_std_before: float
    z_std_after: float


@dataclass(frozen=True)
class Calibration:
    """Scales of energies and virials by level, of forces by level and atomic number; novelty of both by level."""

    energy: tuple[Scale, ...]
    forces: tuple[dict[int, Scale], ...]
    virial: tuple[Scale, ...]
    fitted: tuple[Fitted, ...] = ()
    novelty: tuple[Novelty, ...] = ()
    energy_novelty: tuple[EnergyNovelty, ...] = ()

    def novelty_factors(self, level: int, weights: Tensor, numbers: NDArray[np.int64], pairs: Pairs) -> Tensor:
        """What the model's parts of the variances are multiplied by before `variances`, [1+3N+6]; 1 for the virial.

        weights [1+3N+6]: the weights' part; pairs: of neighbours within the cutoff.
        """
        out = torch.ones_like(weights)
        out[0] = self.energy_novelty_factor(level, float(weights[0]), len(numbers))
        if self.novelty:
            found = self.novelty[level].factors(weights[1:-6].cpu().numpy(), numbers, pairs)
            out[1:-6] = torch.from_numpy(found.repeat(3)).to(out)
        return out

    def energy_novelty_factor(self, level: int, weights: float, atoms: int) -> float:
        """The same for the total energy alone; weights: their part of its variance, eV^2."""
        return self.energy_novelty[level].factor(weights, atoms) if self.energy_novelty else 1.0

    def variances(
        self, level: int, weights: Tensor, residual: Tensor | None, numbers: NDArray[np.int64], noise: Tensor
    ) -> Tensor:
        """Variances of the difference to a new calculation, [1+3N+6] or the energy's alone [1].

        weights, residual: parts of the model's own variances, eV^2, (eV/Å)^2, eV^2; residual None: not known. numbers [N].
        noise [3]: of energies and virials in eV per sqrt(atom), of forces in eV/Å.
        """
        if residual is None:
            return self._factor("sampled_weights", level, numbers, weights) * weights + self.noise_variances(
                level, numbers, noise, len(weights), "sampled_noise"
            ).to(weights)
        model = self._factor("weights", level, numbers, weights) * weights
        model = model + self._factor("residual", level, numbers, weights) * residual
        return model + self.noise_variances(level, numbers, noise, len(weights)).to(weights)

    def noise_variances(
        self, level: int, numbers: NDArray[np.int64], noise: Tensor, size: int | None = None, name: str = "noise"
    ) -> Tensor:
        """The part of the labels' noise in those variances, [1+3N+6], or the first `size` of them."""
        n = len(numbers)
        out = noise.new_full((1 + 3 * n + 6,), float(noise[0]) ** 2 * n)
        out[1:-6] = noise[1] ** 2
        out[-6:] = noise[2] ** 2 * n
        out = out[:size]
        return self._factor(name, level, numbers, out) * out

    def _factor(self, name: str, level: int, numbers: NDArray[np.int64], like: Tensor) -> Tensor:
        """The factor of every functional, [1+3N+6] or [1] as `like`."""
        scales = self._scales(level, numbers, len(like))
        return torch.tensor([getattr(s, name) for s in scales], dtype=like.dtype, device=like.device)

    def local_variances(self, level: int, weights: Tensor, residual: Tensor) -> Tensor:
        """Variances of local energies [N] eV^2: the two parts scaled as those of total energies."""
        scale = self.energy[level]
        return scale.weights * weights + scale.residual * residual

    def _scales(self, level: int, numbers: NDArray[np.int64], size: int) -> list[Scale]:
        if size == 1:
            return [self.energy[level]]
        forces = [self.forces[level][int(z)] for z in numbers for _ in range(3)]
        return [self.energy[level], *forces, *[self.virial[level]] * 6]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, forces by element symbol."""
        return {
            "energy": [asdict(s) for s in self.energy],
            "forces": [{chemical_symbols[z]: asdict(s) for z, s in level.items()} for level in self.forces],
            "virial": [asdict(s) for s in self.virial],
            "fitted": [asdict(f) for f in self.fitted],
            "novelty": [
                {"exponent": n.exponent, "reference": {chemical_symbols[z]: v for z, v in n.reference.items()}}
                for n in self.novelty
            ],
            "energy_novelty": [asdict(n) for n in self.energy_novelty],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Calibration:
        """What `to_json` gave."""
        return Calibration(
            tuple(Scale(**s) for s in data["energy"]),
            tuple({atomic_numbers[z]: Scale(**s) for z, s in level.items()} for level in data["forces"]),
            tuple(Scale(**s) for s in data["virial"]),
            tuple(Fitted(**{**f, "scale": Scale(**f["scale"])}) for f in data["fitted"]),
            tuple(
                Novelty(n["exponent"], {atomic_numbers[z]: v for z, v in n["reference"].items()})
                for n in data["novelty"]
            ),
            tuple(EnergyNovelty(**n) for n in data["energy_novelty"]),
        )


@dataclass(frozen=True)
class _Errors:
    """Left-out errors of one property, [label], and the number of structures that they come from."""

    error: Array
    weights: Array
    residual: Array
    noise: Array
    structures: int

    def scale(self) -> Scale:
        a, r, b = fit_factors(self.error, [self.weights, self.residual, self.noise], self.structures)
        return Scale(a, r, b, *fit_factors(self.error, [self.weights, self.noise], self.structures))


def fit_calibration(
    left_out: Iterable[LeftOut], levels: Sequence[str], species: Sequence[int], neighbours: Neighbours | None = None
) -> Calibration:
    """Fit the scales of every property at every level, and the novelty of forces, to left-out errors.

    neighbours: pairs of a structure within the cutoff; without them there is no novelty. See fit_scales for what happens
    where there is little to fit to.
    """
    left = list(left_out)
    first = found = fit_scales(left, levels, species)
    if neighbours is None:
        return found
    alike = {
        (level, kind): [p for p in left if (p.frame.fidelity, p.kind) == (level, kind)]
        for level in levels
        for kind in ("energy", "forces")
    }
    usual = [{z: _mean_variance(alike[level, "forces"], z) for z in species} for level in levels]
    forces = [Novelty(0.0, {z: v for z, v in u.items() if v > 0}) for u in usual]
    energies = [EnergyNovelty(0.0, _mean_energy_variance(alike[level, "energy"])) for level in levels]
    ratios = {
        id(p): _ratios(p, forces[t], energies[t], neighbours)
        for t, level in enumerate(levels)
        for kind in ("energy", "forces")
        for p in alike[level, kind]
    }
    exponents = dict.fromkeys(alike, 0.0)
    for _ in range(ROUNDS):
        for key, parts in alike.items():
            if len(parts) >= MIN_STRUCTURES:
                t = levels.index(key[0])
                exponents[key] = fit_exponent([_surprise(p, found, t, ratios[id(p)]) for p in parts])
        found = fit_scales([_more_novel(p, ratios, exponents) for p in left], levels, species)
    before = {(f.level, f.kind, f.species): f for f in first.fitted}
    fitted = []
    for f in found.fitted:
        was = before[f.level, f.kind, f.species]
        fitted.append(replace(f, coverage_before=was.coverage_before, z_std_before=was.z_std_before))
    return replace(
        found,
        fitted=tuple(fitted),
        novelty=tuple(replace(n, exponent=exponents[level, "forces"]) for level, n in zip(levels, forces, strict=True)),
        energy_novelty=tuple(
            replace(n, exponent=exponents[level, "energy"]) for level, n in zip(levels, energies, strict=True)
        ),
    )


def _mean_variance(parts: Sequence[LeftOut], z: int) -> float:
    """Of the weights, over the force components on species z; 0 for none."""
    found = np.concatenate([p.weight_variance[p.species == z] for p in parts] or [np.zeros(0)])
    return float(found.mean()) if len(found) else 0.0


def _mean_energy_variance(parts: Sequence[LeftOut]) -> float:
    """Of the weights, per atom squared, over those energies; 0 for none. (LeftOut has energies per sqrt(atom).)"""
    return float(np.mean([p.weight_variance[0] / len(p.frame.atoms) for p in parts])) if parts else 0.0


def _ratios(part: LeftOut, forces: Novelty, energies: EnergyNovelty, neighbours: Neighbours) -> Array:
    """log u of every left-out energy or force component, [row]."""
    atoms = part.frame.atoms
    if part.kind == "energy":
        return np.log([energies.ratio(v * len(atoms), len(atoms)) for v in part.weight_variance])
    labelled = np.flatnonzero(part.frame.force_mask)
    u = forces.ratios(part.weight_variance, atoms.numbers, labelled, neighbours(atoms))
    return np.log(u[labelled]).repeat(3)


def _surprise(part: LeftOut, calibration: Calibration, level: int, log_ratio: Array) -> Surprise:
    """A left-out part of one kind as its level's scales have it."""
    scales = [calibration.energy[level]] * len(part.error)
    if part.kind == "forces":
        scales = [calibration.forces[level][int(z)] for z in part.species]
    a, r, b = (np.array([getattr(s, name) for s in scales]) for name in ("weights", "residual", "noise"))
    return Surprise(
        part.error, a * part.weight_variance + r * part.residual_variance, b * part.noise_variance, log_ratio
    )


def _more_novel(part: LeftOut, ratios: Mapping[int, Array], exponents: Mapping[tuple[str, str], float]) -> LeftOut:
    """With the model's variances of energies and forces as their novelty makes them."""
    if id(part) not in ratios:
        return part
    g = np.exp(exponents[part.frame.fidelity, part.kind] * ratios[id(part)])
    return replace(part, weight_variance=g * part.weight_variance, residual_variance=g * part.residual_variance)


def fit_scales(left_out: Iterable[LeftOut], levels: Sequence[str], species: Sequence[int]) -> Calibration:
    """Fit the scales of every property at every level to left-out errors.

    A species whose forces too few structures hold takes the scale of all forces of the level, a level without virials
    that of its forces, a level without enough of a property stays as it is.
    """
    parts: dict[tuple[str, str, int], list[LeftOut]] = {}
    for part in left_out:
        for z in np.unique(part.species).tolist() if part.kind == "forces" else [0]:
            parts.setdefault((part.frame.fidelity, part.kind, z), []).append(part)
    fitted: list[Fitted] = []

    def fit(level: str, kind: str, z: int, fallback: Scale) -> Scale:
        chosen = parts.get((level, kind, z), [])
        if len(chosen) < MIN_STRUCTURES:
            return fallback
        errors = _errors(chosen, z)
        scale = errors.scale()
        fitted.append(_report(level, kind, chemical_symbols[z] if z else "", errors, scale))
        return scale

    energy, forces, virial = [], [], []
    for level in levels:
        energy.append(fit(level, "energy", 0, Scale()))
        everything = [p for (name, kind, _), found in parts.items() if (name, kind) == (level, "forces") for p in found]
        pooled = _pooled(everything)
        forces.append({z: fit(level, "forces", z, pooled) for z in species})
        virial.append(fit(level, "virial", 0, pooled))
    return Calibration(tuple(energy), tuple(forces), tuple(virial), tuple(fitted))


def fit_factors(error: Array, variances: Sequence[Array], structures: int) -> list[float]:
    """Factors of the parts of the variance, as the module docstring has them. error [label], variances each [label]."""
    weight = structures / len(error)
    parts = np.array(variances)  # [part, label]

    def negative(x: Array) -> tuple[float, Array]:
        scaled = np.exp(x)[:, None] * parts
        total = scaled.sum(0)
        value = 0.5 * weight * float((error**2 / total + np.log(total)).sum()) + 0.5 * float(x @ x) / PRIOR_STD**2
        slope = 0.5 * weight * (1.0 - error**2 / total) / total
        return value, scaled @ slope + x / PRIOR_STD**2

    found = minimize(negative, np.zeros(len(parts)), jac=True, method="L-BFGS-B", bounds=[BOUNDS] * len(parts))
    return np.exp(found.x).tolist()


def _pooled(parts: Sequence[LeftOut]) -> Scale:
    distinct = list({id(p): p for p in parts}.values())
    if len(distinct) < MIN_STRUCTURES:
        return Scale()
    return _errors(distinct, None).scale()


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
