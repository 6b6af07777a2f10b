"""Standard deviations that are right on structures the model has not seen, from left-out errors."""

from mfgp.calibration.calibration import Calibration

__all__ = ["Calibration"]
