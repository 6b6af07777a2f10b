"""What is to become certain: the mean variance of forces or energies at the target level, over a set of structures.

    J = w_F <Var[F_a]> + w_E <Var[E/N]>,       <.> over structures, atoms and components

(<> of forces: the mean over structures of the mean over their atoms and components) as Var = factor * a^T C a + rest. Only
the first part falls when data are added; it is a sum over rows R of R C R^T, random directions of each structure for its
forces (directional.py; one of each of many structures, several of a few), scaled by the root of the calibration factor of
each atom, one row for its energy per atom. The rest (what the inducing points do not carry, and the labels'
noise, as the calibration has them) is a number. So sqrt of J is what `predict` says of the targets, root mean square,
but for novelty (novelty.py), which has no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mfgp.base.progress import Report, silent
from mfgp.calibration.calibration import Scale
from mfgp.errors import ConfigError
from mfgp.model import MultiFidelityGP
from mfgp.predict.batched import BATCH_ATOMS, batches
from mfgp.predict.predictor import Predictor
from mfgp.predict.residual import residual_variance
from mfgp.selection.directional import directional_rows

PROPERTIES = ("forces", "energy")
SAMPLE = 256  # target structures at most, drawn with the seed; their mean then has a relative error of a few per cent
DIRECTIONS = 32  # of one structure at most
RAW = Scale(noise=0.0)  # of a model without a calibration: the posterior's own variance


@dataclass(frozen=True)
class Target:
    """Rows whose summed variance is to fall, and what stays.

    rows [b, M'] are scaled so that their variances add up to the weighted mean; `parts` says which belong to which property;
    rest: the variance that no data take away (eV^2/Å^2 of forces, eV^2 of energies per atom).
    """

    level: int
    rows: Tensor
    parts: Mapping[str, slice]
    weights: Mapping[str, float]
    rest: Mapping[str, float]

    def deviations(self, variances: Tensor) -> dict[str, float]:
        """Standard deviation by property (eV/Å, eV/atom) from the variances of the rows [b]."""
        sums = {name: float(variances[part].sum()) / self.weights[name] for name, part in self.parts.items()}
        return {name: (max(value, 0.0) + self.rest[name]) ** 0.5 for name, value in sums.items()}


def build_target(
    model: MultiFidelityGP,
    level: int,
    structures: Sequence[Atoms],
    weights: Mapping[str, float],
    seed: int = 0,
    report: Report = silent,
) -> Target:
    """The target over (a seeded sample of) `structures`. ConfigError for weights that are not positive or not known."""
    bad = [f"{k}={v}" for k, v in weights.items() if k not in PROPERTIES or not v > 0]
    if bad or not weights:
        raise ConfigError(f"weights {', '.join(bad) or '{}'}: give positive numbers for {' or '.join(PROPERTIES)}.")
    predictor, rng = model.predictor(model.levels[level]), np.random.default_rng(seed)
    chosen = [structures[i] for i in sorted(rng.permutation(len(structures))[:SAMPLE])]
    found: dict[str, list[Tensor]] = {name: [] for name in weights}
    rest: dict[str, list[float]] = {name: [] for name in weights}
    k = min(-(-SAMPLE // len(chosen)), DIRECTIONS)
    for places in batches(chosen, BATCH_ATOMS // k):
        batch = [chosen[i] for i in places]
        for name, (rows, constant) in _batch(predictor, batch, k, rng).items():
            if name in weights:
                found[name].append(rows)
                rest[name] += constant
        report("structures of the target", places.stop, len(chosen), "")
    parts, scaled, at = {}, [], 0
    for name, weight in weights.items():
        rows = torch.cat(found[name])
        scaled.append(rows * (weight / len(rows)) ** 0.5)
        parts[name] = slice(at, at + len(rows))
        at += len(rows)
    return Target(level, torch.cat(scaled), parts, dict(weights), {k: float(np.mean(v)) for k, v in rest.items()})


def _batch(
    predictor: Predictor, batch: Sequence[Atoms], k: int, rng: np.random.Generator
) -> dict[str, tuple[Tensor, list[float]]]:
    """Rows [row, M'] (k of each structure for its forces) and the constant part of each one's variance, by property."""
    model, level = predictor.model, predictor.level
    energies = [RAW if model.calibration is None else model.calibration.energy_scale(level, a.numbers) for a in batch]
    per_atom = [_force_scales(model, level, atoms) for atoms in batch]
    roots = np.concatenate([[(s.weights**0.5, s.residual**0.5) for s in scales] for scales in per_atom])  # [atom, 2]
    v = torch.from_numpy(rng.standard_normal((len(roots), 3, 2 * k)) * roots.repeat(k, axis=1)[:, None, :])
    rows = directional_rows(model.features, batch, v, with_prior=True)
    assert rows.prior is not None
    sizes = [len(atoms) for atoms in batch]
    n = rows.energy.new_tensor(sizes)
    left = [residual_variance(model, level, rows.forces[:, i], rows.prior[:, 1 + i]) for i in range(k, 2 * k)]
    of_force = torch.stack(left).mean(0) / (3 * n)
    a, r, b = (n.new_tensor([getattr(s, name) for s in energies]) for name in ("weights", "residual", "noise"))
    of_energy = r * residual_variance(model, level, rows.energy, rows.prior[:, 0]) / n**2
    noise = model.label_noise(level)
    of_force += noise[1] ** 2 * n.new_tensor([np.mean([s.noise for s in scales]) for scales in per_atom])
    of_energy += b * noise[0] ** 2 / n
    columns = [predictor.columns_of(atoms) for atoms in batch]  # of each [1+3N+6, column]
    moved = [d[:, :, :k].flatten(0, 1).T.to(c) @ c[1:-6] for c, d in zip(columns, v.split(sizes), strict=True)]
    force_rows = torch.cat([rows.forces[:, :k], torch.stack(moved)], dim=2) / (3 * n[:, None, None]) ** 0.5
    energy_rows = torch.cat([rows.energy, torch.stack([c[0] for c in columns])], dim=1) / n[:, None]
    return {
        "forces": (force_rows.flatten(0, 1), of_force.tolist()),
        "energy": (energy_rows * a[:, None].sqrt(), of_energy.tolist()),
    }


def _force_scales(model: MultiFidelityGP, level: int, atoms: Atoms) -> list[Scale]:
    """Calibration factors of the force on each atom, [N]."""
    if model.calibration is None:
        return [RAW] * len(atoms)
    scales = model.calibration.force_scales(level, atoms.numbers)
    return [scales[int(z)] for z in atoms.numbers]
