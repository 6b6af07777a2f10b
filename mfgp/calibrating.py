"""The calibration of a fitted model: which structures are left out, with what, and what is fitted to their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfgp.calibration import Calibration
from mfgp.calibration_fit import fit_calibration
from mfgp.frames import FrameSet
from mfgp.leave_relatives_out import leave_relatives_out, thinned
from mfgp.moment_calibration import leave_moments_out, with_moments
from mfgp.progress import Report, silent
from mfgp.surprises import warn_of_left_out
from mfgp.training_frames import CALIBRATION_STRUCTURES, spread
from mfgp.trajectories import relatives, warn_of_trajectories

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP


def calibrated(model: MultiFidelityGP, frames: FrameSet, report: Report = silent) -> Calibration | None:
    """What left-out errors of training frames of `model` say of its standard deviations; None, with a warning, where there
    are too few.

    CALIBRATION_STRUCTURES of each level are left out, drawn with the seed of the configuration, highest level first; fewer
    where structures are left out with others that tell of them (trajectories.py).
    """
    related = relatives(frames)
    warn_of_trajectories(frames, related)
    sample = thinned(spread(frames, related.enough(frames, CALIBRATION_STRUCTURES), model.config.seed), related)
    left_out = list(leave_relatives_out(model, frames, sample, related, report))
    found = fit_calibration(left_out, model.levels, model.basis.species, model.features.pairs)
    moments = leave_moments_out(model, frames, sample, related, report)
    calibration = with_moments(found, moments, model.levels) if found.fitted else None
    warn_of_left_out(frames, sample, found, left_out)
    return calibration
