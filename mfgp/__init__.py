"""mfgp: a Gaussian-process force field that learns from several levels of theory at once."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mfgp.config import FitConfig
    from mfgp.errors import ConfigError, DataError, MfgpError, ModelFileError, NumericalError
    from mfgp.frames import Frame, FrameSet, LabelKeys, read_frames
    from mfgp.model import MultiFidelityGP
    from mfgp.predict.prediction import Prediction

_HOME = {
    "ConfigError": "errors",
    "DataError": "errors",
    "FitConfig": "config",
    "Frame": "frames",
    "FrameSet": "frames",
    "LabelKeys": "frames",
    "MfgpError": "errors",
    "ModelFileError": "errors",
    "MultiFidelityGP": "model",
    "NumericalError": "errors",
    "Prediction": "predict.prediction",
    "read_frames": "frames",
}

__all__ = [
    "ConfigError",
    "DataError",
    "FitConfig",
    "Frame",
    "FrameSet",
    "LabelKeys",
    "MfgpError",
    "ModelFileError",
    "MultiFidelityGP",
    "NumericalError",
    "Prediction",
    "read_frames",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import on first use, names and modules alike: `mfgp --help` and a bad configuration do not wait for torch."""
    if name in _HOME:
        return getattr(import_module(f"mfgp.{_HOME[name]}"), name)
    if not name.isidentifier() or find_spec(f"mfgp.{name}") is None:
        raise AttributeError(f"module 'mfgp' has no attribute {name!r}")
    return import_module(f"mfgp.{name}")
