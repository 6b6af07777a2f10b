"""What a user is told of an evaluation whose 95 % intervals hold too few labels for chance (new_labels.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfgp.evaluation import Evaluation
from mfgp.notes.prequential import CHANCE, KINDS, listed

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

MANY = 10**6  # structures: a standard deviation that is fitted to no errors has none of its own


def narrow_intervals(model: MultiFidelityGP, result: Evaluation, *, calibrated: bool = True) -> str | None:
    """Which kinds of labels lie outside their intervals too often, and what to do; None where that can be chance.

    calibrated: as `evaluate` was called.
    """
    calibration = model.calibration if calibrated else None
    fitted = {} if calibration is None else calibration.structures()
    few = [t for t in result.intervals if t.chance(fitted.get((t.level, KINDS[t.kind]), MANY)) < CHANCE]
    if not few:
        return None
    text = f"only {listed(few)} lie in their 95 % intervals, too few for chance. "
    if calibration is None:
        return (
            text
            + "Calibrated ones (training.calibrate, without --raw-std) are scaled to errors of left-out structures."
        )
    return text + (
        "Standard deviations of structures like these are too small: label a few more and fit again with them, or `update` "
        "and `calibrate`. Are these labels of the calculation that the model was trained on? `mfgp doctor` looks at them."
    )
