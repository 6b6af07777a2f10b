"""The command `mfgp tune`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mfgp.base import console
from mfgp.cli.command_line import check_outputs, friendly, training_files
from mfgp.errors import ConfigError

if TYPE_CHECKING:
    from mfgp.config import FitConfig
    from mfgp.tuning import Range, Trial

SHOWN = 10


def tune(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG.yaml", help="levels, data and the settings to start from", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="TUNED.yaml", help="configuration to write", show_default=False)
    ],
    trials: Annotated[
        int, typer.Option("--trials", "-n", help="settings to try, those of earlier runs included", min=1)
    ] = 40,
    storage: Annotated[
        Path, typer.Option(help="SQLite file that keeps the trials; a run with the same file goes on")
    ] = Path("tune.db"),
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="KEY=LOW:HIGH", help="tune only these, e.g. descriptor.sigma=0.2:0.6"),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="KEY=LOW:HIGH",
            help="tune these beside the others, e.g. model.n_inducing=200:2000 or descriptor.contraction=0.999:1",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a setting, e.g. model.n_inducing=500"),
    ] = None,
) -> None:
    """Search descriptor and kernel settings by the cross-validated log density of the training data.

    A smaller model.n_inducing makes trials cheap, and its best settings are near those of a larger one. Settings whose
    steps of dynamics would cost more than twice those of CONFIG.yaml are not tried. Fit the written configuration
    afterwards.
    """
    with friendly() as notices:
        from mfgp.base.files import replacing
        from mfgp.base.progress import bars
        from mfgp.config import load_config
        from mfgp.frames import read_frames
        from mfgp.tuning import tune as search
        from mfgp.tuning import with_settings

        settings = load_config(config, overrides or [])
        check_outputs([output, storage], [config, *training_files(settings)])
        if not settings.fidelities:
            raise ConfigError(f"{config}: no `fidelities:`; name at least one level with its training files.")
        frames = read_frames({f.name: list(f.train) for f in settings.fidelities}, keys=settings.keys)
        with bars(console=notices) as report:
            found = search(frames, settings, trials, storage, _space(settings, ranges or [], also or []), report)
        scored = [t for t in found if t.score is not None]
        if not scored:
            raise ConfigError("no trial could be fitted; widen the ranges, or raise training.noise_force.")
        console.stdout().print(_table(scored, len(found) - len(scored)))
        with replacing(output) as temporary:
            temporary.write_text(with_settings(settings, scored[0].settings).to_yaml(), encoding="utf-8")
        console.say(notices, f"wrote {output}")


def _table(scored: list[Trial], others: int) -> console.Table:
    """The best of the trials that have a score, best first."""
    names = list(scored[0].settings)
    rows = [
        (str(t.number), f"{t.score:.4f}", _cost(t), *(_shown(name, t.settings[name]) for name in names))
        for t in scored[:SHOWN]
    ]
    title = f"best of {len(scored)} trials (trial 0: as configured; {others} more left out or failed)"
    settings = (name.removeprefix("descriptor.") for name in names)
    return console.table(title, ["trial", "log density (nats/label)", "cost of a step", *settings], rows)


def _cost(trial: Trial) -> str:
    return "" if trial.cost is None else f"{trial.cost:.2f}"


def _shown(name: str, value: float) -> str:
    from mfgp.tuning import CONTRACTION

    if name != CONTRACTION:
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    return "none" if value == 1 else f"{value:.7g}"


def _space(config: FitConfig, ranges: list[str], also: list[str]) -> dict[str, Range] | None:
    """Ranges of KEY=LOW:HIGH, with those of the default search where there is `also`; None for that search."""
    from mfgp.tuning import default_space

    own = dict(_range("--range", text) for text in ranges)
    more = dict(_range("--also", text) for text in also)
    return {**(own or default_space(config)), **more} if more else own or None


def _range(option: str, text: str) -> tuple[str, Range]:
    from mfgp.tuning import SIZES, SPACE

    known = {**SPACE, **SIZES}
    name, _, limits = text.partition("=")
    try:
        low, high = (float(x) for x in limits.split(":"))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected KEY=LOW:HIGH, such as descriptor.sigma=0.2:0.6.") from None
    if name not in known:
        raise ConfigError(f"{option} {text!r}: can tune {', '.join(known)}.")
    if not 0 < low < high < math.inf:
        raise ConfigError(f"{option} {text!r}: give 0 < LOW < HIGH.")
    if known[name].integer and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{option} {text!r}: {name} takes whole numbers.")
    if known[name].share and high > 1:
        raise ConfigError(f"{option} {text!r}: {name} is a share of the variance, 1 at most (none is given away).")
    return name, replace(known[name], low=low, high=high)
