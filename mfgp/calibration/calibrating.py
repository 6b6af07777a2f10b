"""The calibration of a fitted model: which structures are left out, with what, and what is fitted to their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mfgp.base.progress import Report, silent
from mfgp.calibration.calibration import MIN_STRUCTURES, Calibration
from mfgp.calibration.carried import Carried, usually_carried
from mfgp.calibration.cell_widths import widths
from mfgp.calibration.factors import energies_by_element, fit_calibration
from mfgp.calibration.leave_one_out import LeftOut
from mfgp.calibration.leave_relatives_out import leave_relatives_out, thinned
from mfgp.calibration.left_out_warnings import passed_over, warn_of_left_out
from mfgp.calibration.moments import leave_moments_out, with_moments
from mfgp.data.closest_pairs import closest_pairs
from mfgp.data.training_frames import CALIBRATION_STRUCTURES, spread
from mfgp.data.trajectories import Relatives, relatives, warn_of_trajectories
from mfgp.frames import FrameSet

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

ALIKE = {"energy": 5.0, "forces": 1.5}  # times the error that a stretch left out whole may have


def calibrated(model: MultiFidelityGP, frames: FrameSet, report: Report = silent) -> Calibration | None:
    """What left-out errors of training frames of `model` say of its standard deviations; None, with a warning, where there
    are too few.

    CALIBRATION_STRUCTURES of each level are left out, drawn with the seed of the configuration, highest level first, and
    others for elements that too few of them have; fewer of trajectories, whose frames are left out with those that tell of
    them (trajectories.py), and whole stretches where they are of one kind.
    """
    related = relatives(frames)
    warn_of_trajectories(frames, related)
    few = spread(frames, related.enough(frames, CALIBRATION_STRUCTURES), model.config.seed)
    sample = with_every_element(frames, few, related, model.config.seed)
    near = replace(related, stretches=())
    left_out = list(leave_relatives_out(model, frames, sample, near, report))
    if related.stretches:
        some = thinned(sample, related)
        whole = list(leave_relatives_out(model, frames, some, related, report))
        if of_one_kind(left_out, whole, related):
            sample, near, left_out = some, related, whole
    found = fit_calibration(left_out, model.levels, model.basis.species, model.features.pairs)
    moments = leave_moments_out(model, frames, sample, near, report)
    calibration = with_moments(found, moments, model.levels) if found.fitted else None
    if calibration is not None:
        reach = 2 * model.soap.config.r_cut
        carried = _carried(model) or usually_carried(left_out, model.levels)
        wide, shear = widths(frames, model.levels, reach), model.columns.shear
        elements = tuple(energies_by_element(left_out, level) for level in model.levels)
        closest = closest_pairs(frame.atoms for frame in frames)
        calibration = replace(
            calibration,
            widths=wide,
            carried=carried,
            shear=shear,
            closest=closest,
            elements=elements,
            passed_over=passed_over(sample, left_out),
        )
    warn_of_left_out(frames, sample, found, left_out)
    return calibration


def with_every_element(frames: FrameSet, sample: FrameSet, related: Relatives, seed: int) -> FrameSet:
    """A sample and what it takes of the other structures for MIN_STRUCTURES energies with each element at each level."""
    chosen = {related.same[id(f)] for f in sample if not f.isolated_atom}
    for level in frames.levels:
        of_element: dict[int, dict[int, None]] = {}  # structures with it that have an energy
        for f in frames.of(level):
            if f.energy is not None and not f.isolated_atom:
                for z in np.unique(f.atoms.numbers).tolist():
                    of_element.setdefault(z, {})[related.same[id(f)]] = None
        for holding in of_element.values():
            rest = [k for k in holding if k not in chosen]
            missing = max(0, MIN_STRUCTURES - (len(holding) - len(rest)))
            chosen |= {rest[i] for i in np.random.default_rng(seed).permutation(len(rest))[:missing]}
    return FrameSet(frames.levels, tuple(f for f in frames if not f.isolated_atom and related.same[id(f)] in chosen))


def _carried(model: MultiFidelityGP) -> tuple[Carried, ...]:
    """What is known of the inducing points: a calibration on what they do not carry does not make them carry it."""
    return () if model.calibration is None else model.calibration.carried


def of_one_kind(alone: Sequence[LeftOut], whole: Sequence[LeftOut], related: Relatives) -> bool:
    """Whether structures left out with all of their stretch are predicted nearly as well as those whose stretch stays: the
    next one can be expected to be of their kind.
    """
    errors = {(id(p.frame), p.kind): float(np.median(np.abs(p.error))) for p in alone}
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for p in whole:
        if p.kind in ALIKE and (id(p.frame), p.kind) in errors and related.same[id(p.frame)] in related.stretch_of:
            both = (errors[id(p.frame), p.kind], float(np.median(np.abs(p.error))))
            pairs.setdefault((p.frame.fidelity, p.kind), []).append(both)
    ratios = {key: float(np.divide(*np.median(found, axis=0)[::-1])) for key, found in pairs.items()}
    return bool(pairs) and all(ratio <= ALIKE[kind] for (_, kind), ratio in ratios.items())
