"""Calibration: standard deviations that are right on structures the model has not seen.

The variance of the difference between a prediction and a new calculation is taken as

    Var = a v_weights + r v_residual + b v_noise

with the variance of the posterior weights, that which the inducing points do not carry, and that of the labels' noise (all
as the fit has them), and factors a, r, b > 0 for each level and property, for forces by the species that they act on.
v_weights and v_residual are multiplied by the factor of novelty.py first, and all three, but for virials, by that of the
composition (composition_scatter.py). factors.py has how all that comes from left-out errors. Where these are hardly of
structures with an element (`rare`) they do not tell how well its e0 and local energies are known, and energies of such
structures have no factor below 1. The noise of a fit holds what the model cannot express as well as what is wrong with the
labels; a user meets both, so a calibrated std is that of the difference to a new calculation at that level, noise included.
Where v_residual is not known (sampled standard deviations) a second pair a', b' without it takes over. Magnetic moments
have one factor (moments.py). Variance scaling after the fit: Levi et al., Sensors 22, 5540 (2022); Busk et al., Mach.
Learn.: Sci. Technol. 3, 015012 (2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from mfgp.calibration import composition_scatter
from mfgp.calibration.carried import Carried
from mfgp.calibration.composition_scatter import CompositionScatter
from mfgp.calibration.new_labels import NewLabels
from mfgp.calibration.novelty import EnergyNovelty, Novelty, Pairs
from mfgp.data.closest_pairs import Closest
from mfgp.gp.observations import SHEAR, components

MIN_STRUCTURES = 3  # left out, of a property of a level or with an element: fewer do not tell what errors are like


@dataclass(frozen=True)
class Scale:
    """a, r, b and a', b' of one property: factors of the variances of weights, residual and noise, and without residual."""

    weights: float = 1.0
    residual: float = 1.0
    noise: float = 1.0
    sampled_weights: float = 1.0
    sampled_noise: float = 1.0

    def times(self, factor: float) -> Scale:
        """All of them times a factor."""
        return Scale(*(factor * x for x in astuple(self)))

    @property
    def widening(self) -> Scale:
        """Those above 1, and 1 for the others: of what the errors that they were fitted to say nothing of."""
        return Scale(*(max(1.0, x) for x in astuple(self)))


@dataclass(frozen=True)
class Fitted:
    """What the calibration of one property was fitted to; coverage of the 95 % interval and std of z before and after it,
    novelty included, scatter by composition not.
    """

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
    """Scales of energies and virials by level, of forces by level and atomic number; novelty (of forces and virials,
    and of energies) and scatter by composition of energies and of forces, by level; factors of the variances of magnetic
    moments by level and atomic number, for those that have one; how far the training cells of each level repeat
    (cell_widths.py); how it did on labels that were learned later (new_labels.py), and whether the inducing points carry
    these (carried.py).
    """

    energy: tuple[Scale, ...]
    forces: tuple[dict[int, Scale], ...]
    virial: tuple[Scale, ...]
    fitted: tuple[Fitted, ...] = ()
    novelty: tuple[Novelty, ...] = ()
    energy_novelty: tuple[EnergyNovelty, ...] = ()
    energy_scatter: tuple[CompositionScatter, ...] = ()
    force_scatter: tuple[CompositionScatter, ...] = ()
    moments: tuple[dict[int, float], ...] = ()
    widths: tuple[float, ...] = ()  # Å
    tested: tuple[NewLabels, ...] = ()
    shear: float = SHEAR  # of the model's labelled rows of shear (observations.Columns)
    carried: tuple[Carried, ...] = ()
    closest: Closest = field(default_factory=dict)  # of the training structures of all levels
    elements: tuple[dict[int, int], ...] = ()  # by level and atomic number, left-out energies of structures with it
    passed_over: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # left_out_warnings.passed_over

    def novelty_factors(self, level: int, weights: Tensor, numbers: NDArray[np.int64], pairs: Pairs) -> Tensor:
        """What the model's parts of the variances are multiplied by before `variances`, [1+3N+6].

        weights [1+3N+6]: the weights' part; pairs: of neighbours within the cutoff.
        """
        out = torch.ones_like(weights)
        out[0] = self.energy_novelty_factor(level, float(weights[0]), len(numbers))
        if self.novelty:
            variances = weights.cpu().numpy()
            rows = variances[-6:] * components(self.shear).numpy() ** 2
            forces, virial = self.novelty[level].factors(variances[1:-6], numbers, pairs, rows)
            out[1:-6] = torch.from_numpy(forces.repeat(3)).to(out)
            out[-6:] = virial
        return out

    def energy_novelty_factor(self, level: int, weights: float, atoms: int) -> float:
        """The same for the total energy alone; weights: their part of its variance, eV^2."""
        return self.energy_novelty[level].factor(weights, atoms) if self.energy_novelty else 1.0

    def energy_times_usual(self, level: int, weights: float, atoms: int) -> float | None:
        """How many times the usual the weights' standard deviation of the energy per atom is; None: not known."""
        return self.energy_novelty[level].times_usual(weights, atoms) if self.energy_novelty else None

    def variances(
        self, level: int, weights: Tensor, residual: Tensor | None, numbers: NDArray[np.int64], noise: Tensor
    ) -> Tensor:
        """Variances of the difference to a new calculation, [1+3N+6] or the energy's alone [1].

        weights, residual: parts of the model's own variances, eV^2, (eV/Å)^2, eV^2; residual None: not known. numbers [N].
        noise [3]: of energies and virials in eV per sqrt(atom), of forces in eV/Å; of shear 1/sqrt(2) of that of virials.
        """
        scales = self._scales(level, numbers, len(weights))
        labels = _label_variances(numbers, noise, self.shear, len(weights)).to(weights)
        if residual is None:
            return _of("sampled_weights", scales, weights) * weights + _of("sampled_noise", scales, weights) * labels
        model = _of("weights", scales, weights) * weights + _of("residual", scales, weights) * residual
        return model + _of("noise", scales, weights) * labels

    def noise_variances(self, level: int, numbers: NDArray[np.int64], noise: Tensor, size: int | None = None) -> Tensor:
        """The part of the labels' noise in those variances, [1+3N+6], or the first `size` of them."""
        out = _label_variances(numbers, noise, self.shear, size)
        return _of("noise", self._scales(level, numbers, len(out)), out) * out

    def structures(self) -> dict[tuple[str, str], int]:
        """How many left-out structures the scales of each level and kind come from, for those that are fitted."""
        out: dict[tuple[str, str], int] = {}
        for f in self.fitted:
            out[f.level, f.kind] = max(out.get((f.level, f.kind), 0), f.structures)
        return out

    @property
    def carries(self) -> bool:
        """False where the inducing points do not carry structures that updates brought, as far as they were looked at."""
        return not any(c.elements for c in self.carried)

    def local_factors(self, level: int) -> tuple[float, float]:
        """a and r of local energies: those of total energies; without novelty, scatter and noise."""
        return self.energy[level].weights, self.energy[level].residual

    def moment_factors(self, level: int, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the variances of the magnetic moments of atoms with these atomic numbers, [N]; 1 where there is none."""
        found = self.moments[level] if self.moments else {}
        return np.array([found.get(int(z), 1.0) for z in numbers])

    def energy_scale(self, level: int, numbers: NDArray[np.int64]) -> Scale:
        """Of the energy of a structure with these atomic numbers [N]: errors of other elements narrow no energy of one that
        is rare."""
        factor = self.energy_scatter[level].factor(numbers) if self.energy_scatter else 1.0
        scale = self.energy[level].times(factor)
        return scale.widening if self.rare(level, np.unique(numbers).tolist()) else scale

    def force_scales(self, level: int, numbers: NDArray[np.int64]) -> dict[int, Scale]:
        """Of the forces in a structure with these atomic numbers [N], by atomic number."""
        factor = self.force_scatter[level].factor(numbers) if self.force_scatter else 1.0
        return {z: scale.times(factor) for z, scale in self.forces[level].items()}

    def rare(self, level: int, elements: Iterable[int]) -> list[int]:
        """Of atomic numbers those that fewer than MIN_STRUCTURES of the left-out energies of a level tell of."""
        counts = self.elements[level] if self.elements else {}
        return [z for z in elements if counts and counts.get(z, 0) < MIN_STRUCTURES]

    def _scales(self, level: int, numbers: NDArray[np.int64], size: int) -> list[Scale]:
        energy = self.energy_scale(level, numbers)
        if size == 1:
            return [energy]
        forces = self.force_scales(level, numbers)
        return [energy, *(forces[int(z)] for z in numbers for _ in range(3)), *[self.virial[level]] * 6]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, forces by element symbol."""
        return {
            "energy": [asdict(s) for s in self.energy],
            "forces": [{chemical_symbols[z]: asdict(s) for z, s in level.items()} for level in self.forces],
            "virial": [asdict(s) for s in self.virial],
            "fitted": [asdict(f) for f in self.fitted],
            "novelty": [
                {**asdict(n), "reference": {chemical_symbols[z]: v for z, v in n.reference.items()}}
                for n in self.novelty
            ],
            "energy_novelty": [asdict(n) for n in self.energy_novelty],
            "energy_scatter": [composition_scatter.to_json(s) for s in self.energy_scatter],
            "force_scatter": [composition_scatter.to_json(s) for s in self.force_scatter],
            "moments": [{chemical_symbols[z]: c for z, c in level.items()} for level in self.moments],
            "widths": list(self.widths),
            "tested": [asdict(t) for t in self.tested],
            "shear": self.shear,
            "carried": [c.to_json() for c in self.carried],
            "closest": [[*(chemical_symbols[z] for z in key), r] for key, r in sorted(self.closest.items())],
            "elements": [{chemical_symbols[z]: n for z, n in level.items()} for level in self.elements],
            "passed_over": {level: list(counts) for level, counts in self.passed_over.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Calibration:
        """What `to_json` gave, also before it had the entries that have a default here."""
        return Calibration(
            tuple(Scale(**s) for s in data["energy"]),
            tuple({atomic_numbers[z]: Scale(**s) for z, s in level.items()} for level in data["forces"]),
            tuple(Scale(**s) for s in data["virial"]),
            tuple(Fitted(**{**f, "scale": Scale(**f["scale"])}) for f in data["fitted"]),
            tuple(
                Novelty(**{**n, "reference": {atomic_numbers[z]: v for z, v in n["reference"].items()}})
                for n in data["novelty"]
            ),
            tuple(EnergyNovelty(**n) for n in data["energy_novelty"]),
            tuple(composition_scatter.from_json(s) for s in data["energy_scatter"]),
            tuple(composition_scatter.from_json(s) for s in data["force_scatter"]),
            tuple({atomic_numbers[z]: c for z, c in level.items()} for level in data.get("moments", [])),
            tuple(data.get("widths", [])),
            tuple(NewLabels(**t) for t in data.get("tested", [])),
            data.get("shear", 1.0),
            tuple(Carried.from_json(c) for c in data.get("carried", [])),
            {(atomic_numbers[a], atomic_numbers[b]): r for a, b, r in data.get("closest", [])},
            tuple({atomic_numbers[z]: n for z, n in level.items()} for level in data.get("elements", [])),
            {level: (missing, of) for level, (missing, of) in data.get("passed_over", {}).items()},
        )


def _label_variances(numbers: NDArray[np.int64], noise: Tensor, shear: float, size: int | None) -> Tensor:
    """Of the labels' noise as the fit has it, [1+3N+6], or the first `size` of them."""
    n = len(numbers)
    out = noise.new_full((1 + 3 * n + 6,), float(noise[0]) ** 2 * n)
    out[1:-6] = noise[1] ** 2
    out[-6:] = noise[2] ** 2 * n / components(shear).to(noise) ** 2
    return out[:size]


def _of(name: str, scales: Sequence[Scale], like: Tensor) -> Tensor:
    """One of the factors of every functional, [1+3N+6] or [1] as `like`."""
    return torch.tensor([getattr(s, name) for s in scales], dtype=like.dtype, device=like.device)
