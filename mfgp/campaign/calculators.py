"""ASE calculators by name: ASE's own names and tblite. Never code named in a file; Python passes what has no name here.

A calculator that writes files does so in the directory of its calculation.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ase.calculators.calculator import BaseCalculator, FileIOCalculator, get_calculator_class, names
from ase.calculators.genericfileio import GenericFileIOCalculator

from mfgp.errors import ConfigError

Factory: TypeAlias = Callable[..., BaseCalculator]  # factory(**settings), or factory(directory=..., **settings)
_PROFILES = {"espresso": "EspressoProfile", "abinit": "AbinitProfile", "aims": "AimsProfile"}
_QUIET: dict[str, dict[str, Any]] = {"tblite": {"verbosity": 0}}  # settings that a user may override


def known_calculators() -> tuple[str, ...]:
    """Names that a configuration may give."""
    return tuple(sorted({*names, "tblite"}))


def calculator_class(name: str) -> Any:
    """The class of a known name. Raises ConfigError for an unknown name, or a package that is not installed."""
    if name not in known_calculators():
        raise ConfigError(f"no calculator named {name!r}; known are {', '.join(known_calculators())}.")
    try:
        if name == "tblite":
            from tblite.ase import TBLite

            return TBLite
        return get_calculator_class(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"calculator {name!r} needs a package that is not installed here ({error}); install {name}, or pass a "
            "calculator from Python."
        ) from None


def make_calculator(name: str, settings: Mapping[str, Any], directory: Path) -> BaseCalculator:
    """A calculator with plain settings. Raises ConfigError for what it does not take."""
    cls = calculator_class(name)
    values = {**_QUIET.get(name, {}), **settings}
    if name in _PROFILES and isinstance(values.get("profile"), Mapping):
        profile = getattr(sys.modules[cls.__module__], _PROFILES[name])
        values["profile"] = profile(**values["profile"])
    if name == "gpaw":
        values.setdefault("txt", str(directory / "gpaw.txt"))
    if name == "vasp" or issubclass(cls, (FileIOCalculator, GenericFileIOCalculator)):
        values["directory"] = str(directory)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"calculator {name!r} with settings {dict(settings)}: {error}") from error


def from_factory(factory: Factory, settings: Mapping[str, Any], directory: Path) -> BaseCalculator:
    """A calculator from Python; `directory` is passed to a factory that takes it."""
    parameters = inspect.signature(factory).parameters.values()
    takes = any(p.name == "directory" or p.kind is p.VAR_KEYWORD for p in parameters)
    return factory(**({"directory": str(directory)} if takes else {}), **settings)
