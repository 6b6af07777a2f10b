"""Calibration of the standard deviations of magnetic moments (site_moments.py).

The variance of the difference between a predicted moment and that of a new calculation is taken as

    Var = c [b^T C b + s^2 (1 - |phi|^2) + sigma^2]

with one factor c for each level and element. Amplitude and noise maximise the evidence of the moments of one element, of a
dozen atoms in a small data set, and then say too little of what other structures do. c is fitted as the factors of other
labels are (factors.fit_factors: log-normal prior, a structure counts as one), to the moments of structures that are
left out whole, in closed form (leave_one_out.left_out_moments). Amplitude and noise are those of all, so that with few
structures what is left out still looks a little too certain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from mfgp.base.progress import Report, silent
from mfgp.calibration.calibration import MIN_STRUCTURES, Calibration, Fitted, Scale
from mfgp.calibration.factors import fit_factors
from mfgp.calibration.leave_one_out import left_out_moments
from mfgp.calibration.scores import scores
from mfgp.data.trajectories import Relatives
from mfgp.frames import Frame, FrameSet
from mfgp.gp.observations import local_features

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
MOST_ATOMS = 500  # in frames that are left out with a structure


@dataclass(frozen=True)
class LeftOutMoments:
    """Moments of one element in one structure, left out: error [atom] predicted - label and std [atom], Bohr magnetons."""

    level: str
    species: int
    error: Array
    std: Array


def leave_moments_out(
    model: MultiFidelityGP, frames: FrameSet, sample: FrameSet, related: Relatives, report: Report = silent
) -> Iterator[LeftOutMoments]:
    """What the model would say of the moments of each structure of `sample`, had it not been trained on that structure.

    frames: all that the model was trained on; sample: some of them, the same objects; related: of `frames`. Frames of the
    same structure at a level are left out together, with those that tell of them in a trajectory; isolated atoms, and
    elements of which nothing else has moments, are passed over. Hyperparameters and inducing points are those of the fit.
    """
    same, chosen = defaultdict[tuple[str, int], list[Frame]](list), dict[tuple[str, int], None]()
    for frame in frames:
        if frame.magmoms is not None and not frame.isolated_atom:
            same[frame.fidelity, related.same[id(frame)]].append(frame)
    for frame in sample:
        if frame.magmoms is not None and not frame.isolated_atom:
            chosen[frame.fidelity, related.same[id(frame)]] = None
    for i, (level, number) in enumerate(chosen):
        group = same[level, number]
        near = _nearest(number, {k: same.get((level, k), []) for k in related.related.get(number, ())})
        numbers, phi, moments = _environments(model, [*group, *near])
        first = torch.arange(len(numbers), device=numbers.device) < sum(len(f.atoms) for f in group)
        for index, columns in model.basis.blocks():
            of_element = numbers == model.basis.species[index]
            every, n = torch.nonzero(of_element).squeeze(1), int((of_element & first).sum())
            posterior = model.sites.get((model.level(level), model.basis.species[index]))
            if posterior is None or not n:
                continue
            left = left_out_moments(posterior, phi[every, columns], moments[every])
            if left is not None:
                mean, std = (value[:n].cpu().numpy() for value in left)
                error = mean - moments[every[:n]].cpu().numpy()
                yield LeftOutMoments(level, model.basis.species[index], error, std)
        report("leave moments out", i + 1, len(chosen), level)


def _nearest(number: int, frames: Mapping[int, Sequence[Frame]]) -> list[Frame]:
    """Frames of the structures that tell of one, those that follow it closest first, up to MOST_ATOMS."""
    out: list[Frame] = []
    for k in sorted(frames, key=lambda k: abs(k - number)):
        if sum(len(f.atoms) for f in (*out, *frames[k])) > MOST_ATOMS:
            break
        out += frames[k]
    return out


def _environments(model: MultiFidelityGP, frames: Sequence[Frame]) -> tuple[Tensor, Tensor, Tensor]:
    """Atomic numbers [atom], local features [atom, M] and moments [atom] of frames with moments."""
    nb = model.soap.neighborhoods([frame.atoms for frame in frames], device=model.features.device)
    phi = local_features(model.basis, model.soap.values(nb), nb.numbers)
    moments = np.concatenate([frame.magmoms for frame in frames if frame.magmoms is not None])
    return nb.numbers, phi, torch.from_numpy(moments).to(phi)


def with_moments(calibration: Calibration, left_out: Iterable[LeftOutMoments], levels: Sequence[str]) -> Calibration:
    """The calibration with factors of moments, for elements whose moments MIN_STRUCTURES of a level tell and more."""
    parts = defaultdict[tuple[str, int], list[LeftOutMoments]](list)
    for part in left_out:
        parts[part.level, part.species].append(part)
    fitted: list[Fitted] = []
    factors: list[dict[int, float]] = []
    for level in levels:
        own = {z: found for (name, z), found in sorted(parts.items()) if name == level and len(found) >= MIN_STRUCTURES}
        fitted += (rows := [_fitted(level, z, found) for z, found in own.items()])
        factors.append({z: row.scale.weights for z, row in zip(own, rows, strict=True)})
    return replace(calibration, moments=tuple(factors), fitted=(*calibration.fitted, *fitted))


def _fitted(level: str, z: int, parts: Sequence[LeftOutMoments]) -> Fitted:
    """The factor of the moments of one element, and what it does to left-out ones."""
    error, std = (np.concatenate([getattr(part, name) for part in parts]) for name in ("error", "std"))
    (factor,) = fit_factors(error, [std**2], len(parts))
    before, after = scores(error, std), scores(error, factor**0.5 * std)
    coverages, widths = (before.coverage95, after.coverage95), (before.z_std, after.z_std)
    scale = Scale(factor, factor, factor, factor, factor)
    return Fitted(level, "moments", chemical_symbols[z], len(parts), len(error), scale, *coverages, *widths)
