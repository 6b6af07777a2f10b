"""What new labels say of a calibration before they are learned (new_labels.py), and what a user is told of it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mfgp.base.words import counted
from mfgp.calibration.carried import Left
from mfgp.calibration.new_labels import NewLabels
from mfgp.data.closest_pairs import closest_pairs, merged
from mfgp.data.training_frames import spread
from mfgp.evaluation import compare, label_std
from mfgp.frames import Frame, FrameSet
from mfgp.gp.observations import telling
from mfgp.notes.not_carried import not_carried
from mfgp.predict.prediction import Prediction
from mfgp.predict.residual import residual_variance

if TYPE_CHECKING:
    from mfgp.calibration.calibration import Calibration
    from mfgp.model import MultiFidelityGP

KINDS = {"energy": "energy", "forces": "forces", "stress": "virial", "magmoms": "moments"}  # evaluation: calibration
NAMES = {"energy": "energies", "virial": "stresses", "stress": "stresses", "magmoms": "moments"}
MOST = 16  # structures of each level, in one update
CHANCE = 0.01  # probability of so few in their intervals


def tested(model: MultiFidelityGP, frames: FrameSet) -> Calibration | None:
    """The calibration of `model` with what labels say of it that the model is about to learn; warns, once for each level,
    where they lie outside their 95 % intervals too often for chance, and where the inducing points do not carry them.

    MOST structures of each level are looked at, drawn with the seed of the configuration: a prediction with standard
    deviations takes two or three times as long as learning its structure. Isolated atoms, labels that symmetry makes zero,
    and kinds of labels that a level is not calibrated on, say nothing.
    """
    if model.calibration is None:
        return None
    known, fitted = {(t.level, t.kind): t for t in model.calibration.tested}, model.calibration.structures()
    shares, left = defaultdict[tuple[str, str], list[float]](list), defaultdict[str, list[Left]](list)
    for frame, prediction, found in _predicted(model, spread(frames, MOST, model.config.seed)):
        left[frame.fidelity].append(found)
        for kind, share in _shares(model, frame, prediction).items():
            shares[frame.fidelity, kind].append(share)
    for key, of_kind in shares.items():
        if key in fitted:
            known[key] = known.get(key, NewLabels(*key)).plus(of_kind)
    carried = tuple(c.plus(left[c.level], _least(model, model.level(c.level))) for c in model.calibration.carried)
    closest = model.calibration.closest and merged(
        model.calibration.closest, closest_pairs(frame.atoms for frame in frames)
    )
    calibration = replace(model.calibration, tested=tuple(known.values()), carried=carried, closest=closest)
    for says in (_too_narrow, not_carried):
        fresh = [level for level in model.levels if not any(says(model.calibration, [level]))]
        for text in says(calibration, fresh):
            warnings.warn(text, stacklevel=3)
    return calibration


def _predicted(model: MultiFidelityGP, frames: FrameSet) -> Iterator[tuple[Frame, Prediction, Left]]:
    """Each labelled frame, what the model says of it, and what its inducing points leave open of its forces."""
    for level in model.levels:
        own, predictor = [f for f in frames.of(level) if f.labelled], model.predictor(level)
        every = model.features.functionals_of_many([f.atoms for f in own])
        for frame, found in zip(own, every, strict=True):
            residual = residual_variance(model, predictor.level, found.phi, found.prior)[1:-6].cpu().numpy()
            told, source = telling(found.phi[1:-6]).cpu().numpy(), f"{frame.source} ({frame.atoms.symbols})"
            left = Left.of(residual, told, frame.atoms.numbers, source)
            yield frame, predictor.from_functionals(frame.atoms, found), left


def _least(model: MultiFidelityGP, level: int) -> dict[int, float]:
    """b_z noise^2 / r_z of the forces of a level by atomic number, (eV/Å)^2."""
    assert model.calibration is not None
    noise = float(model.label_noise(level)[1])
    return {z: scale.noise * noise**2 / scale.residual for z, scale in model.calibration.forces[level].items()}


def _shares(model: MultiFidelityGP, frame: Frame, prediction: Prediction) -> dict[str, float]:
    """Of the labels of a frame, by kind, that lie in their 95 % intervals; not of moments, which an update fits again."""
    out = {}
    for kind, found in compare(frame, prediction, label_std(model, frame, prediction)).items():
        if kind != "magmoms" and (share := found.inside) is not None:
            out[KINDS[kind]] = share
    return out


def prequential_notes(model: MultiFidelityGP) -> list[str]:
    """How many new labels lay in their intervals, level by level; warnings where that are too few for chance."""
    if model.calibration is None:
        return []
    out = []
    for level in model.levels:
        if own := [t for t in model.calibration.tested if t.level == level]:
            out.append(
                f"note: before updates learned them, {listed(own)} at {level} lay in their 95 % intervals. The calibration "
                "is that of the data before: model.calibrate(all frames, these too) brings it up to date."
            )
    return [*out, *(f"warning: {text}" for text in _too_narrow(model.calibration, model.levels))]


def _too_narrow(calibration: Calibration, levels: Sequence[str]) -> Iterator[str]:
    """Of levels whose new labels lay outside their intervals too often; not where they were not carried, which says more."""
    fitted = calibration.structures()
    for level in (level for level in levels if not any(not_carried(calibration, [level]))):
        own = [t for t in calibration.tested if t.level == level]
        if few := [t for t in own if t.chance(fitted[level, t.kind]) < CHANCE]:
            yield (
                f"fidelity {level!r}: before updates learned them, only {listed(few)} lay in their 95 % intervals. The "
                "calibration is of the earlier data, which these are not like: standard deviations can be too small, of "
                "structures like the earlier ones, too. Fit again with all data, or `calibrate` on them (a campaign with "
                "`fit` does so by itself)"
            )


def listed(found: Sequence[NewLabels]) -> str:
    """'88 % of the forces of 24 structures, 75 % of ...'."""
    return ", ".join(
        f"{100 * t.share:.0f} % of the {NAMES.get(t.kind, t.kind)} of {counted(t.structures, 'structure')}"
        for t in found
    )
