"""What the commands share: options, the way errors and notices are shown, and the writing of results.

Results go to standard output, notices, progress and errors to standard error. A mistake of the user is one line that begins
with `error:` and exit code 1, an interrupted command exits with 130; output files are replaced only by complete ones.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mfgp.base import console
from mfgp.errors import ConfigError, DataError, MfgpError

if TYPE_CHECKING:
    from ase import Atoms

    from mfgp.config import FitConfig
    from mfgp.model import MultiFidelityGP

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="model file, from `mfgp fit`", show_default=False)]
RawStd = Annotated[
    bool, typer.Option("--raw-std", help="the posterior's own standard deviations, not the calibrated ones")
]
Fidelity = Annotated[
    str | None, typer.Option("--fidelity", "-f", help="level of theory; the highest of the model by default")
]
Keys = Annotated[
    list[str] | None, typer.Option("--key", metavar="LABEL=NAME", help="name of a label, e.g. energy=dft_energy")
]


@contextmanager
def friendly() -> Iterator[Console]:
    """Turn what a user can act on into one line and an exit code; yields the console for notices."""
    errors = console.stderr()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        console.say(errors, f"warning: {message}", "yellow")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield errors
    except KeyboardInterrupt:
        console.say(errors, "interrupted; no file was left half-written.", "red")
        raise typer.Exit(130) from None
    except (MfgpError, OSError, MemoryError, RuntimeError) as error:
        line = _actionable(error)
        if line is None:
            raise
        console.say(errors, f"error: {line}", "red")
        raise typer.Exit(1) from None


def _actionable(error: Exception) -> str | None:
    """What to tell the user, or None for a mistake of ours."""
    if isinstance(error, MfgpError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else str(error)
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return "out of memory; lower model.n_inducing or descriptor.n_max, or use a machine with more (see --dry-run)."
    return None


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """DataError where a file cannot be written later on, or would replace an input: before hours are spent, not after."""
    named = [path for path in outputs if path is not None]
    for i, path in enumerate(named):
        if path.is_dir():
            raise DataError(f"{path} is a directory; name a file in it.")
        if not path.parent.is_dir():
            raise DataError(f"{path}: there is no directory {path.parent}; make it first.")
        if not os.access(path.parent, os.W_OK):
            raise DataError(f"{path}: the directory {path.parent} cannot be written to; name another one.")
        if any(path.resolve() == other.resolve() for other in inputs if other is not None):
            raise DataError(f"{path} is an input, and would be replaced; name another file.")
        if any(path.resolve() == other.resolve() for other in named[:i]):
            raise DataError(f"{path} is named for two outputs; name two files.")


def training_files(settings: FitConfig) -> list[Path]:
    """The files that a configuration trains on."""
    return [path for level in settings.fidelities for path in level.train]


def label_keys(texts: list[str] | None) -> dict[str, str]:
    """{label: name} of the values of --key. ConfigError for what is not LABEL=NAME."""
    known = ("energy", "forces", "stress", "virial", "magmoms")
    out = {}
    for text in texts or []:
        label, equals, name = text.partition("=")
        if label not in known or not equals or not name:
            raise ConfigError(f"--key {text!r}: expected LABEL=NAME with a label of {', '.join(known)}.")
        out[label] = name
    return out


def say_stress(model: MultiFidelityGP, fidelity: str | None, notices: Console) -> None:
    """What there is to say of the stress at a level, above all that no label taught it."""
    from mfgp.calculator import stress_note

    if (note := stress_note(model, model.levels[model.level(fidelity)])) is not None:
        console.say(notices, f"note: {note}.", "yellow")


def say_close_pairs(model: MultiFidelityGP, structures: Mapping[str, Atoms], notices: Console) -> None:
    """Warn of structures, by what they are called, with atoms closer than any of their elements in the training data."""
    from mfgp.data.closest_pairs import SHORT_RANGE, too_close

    closest = {} if model.calibration is None else model.calibration.closest
    found = {name: said for name, atoms in structures.items() if (said := too_close(atoms, closest)) is not None}
    if found:
        name, said = next(iter(found.items()))
        text = f"warning: in {len(found)} of {len(structures)} structures atoms are too close to trust forces"
        console.say(notices, f"{text}: {name}, {said} ({SHORT_RANGE}).", "yellow")


def write_json(values: dict[str, Any], path: Path) -> None:
    from mfgp.base.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
