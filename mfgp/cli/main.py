"""The command line: `mfgp fit`, `evaluate`, `info` here; the other commands have modules of their own.

What needs torch is imported inside the commands, so that `mfgp --help` is immediate.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mfgp import __version__
from mfgp.base import console
from mfgp.cli.campaign import campaign
from mfgp.cli.command_line import (
    Fidelity,
    Keys,
    ModelPath,
    RawStd,
    check_outputs,
    friendly,
    label_keys,
    say_close_pairs,
    say_stress,
    training_files,
    write_json,
)
from mfgp.cli.doctor import doctor
from mfgp.cli.predict import predict
from mfgp.cli.select import plan, select
from mfgp.cli.tune import tune
from mfgp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mfgp.config import FitConfig
    from mfgp.evaluation import Evaluation
    from mfgp.frames import FrameSet
    from mfgp.model import MultiFidelityGP

app = typer.Typer(
    name="mfgp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mfgp {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Gaussian-process force field that learns from several levels of theory at once."""
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "passive"
    )  # before torch: on a busy machine spinning threads cost more than work
    console.write_what_can_be()


@app.command()
def fit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="levels, data and settings", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="MODEL", help="model file to write")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a setting, e.g. model.zeta=3")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check data and settings, estimate, and stop")] = False,
    workers: Annotated[
        int | None, typer.Option(help="read the labels with so many processes on this machine", min=1)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="or with the workers of a running dask scheduler")
    ] = None,
) -> None:
    """Fit a model to the levels and data that CONFIG.yaml names. An existing MODEL is replaced only at the end."""
    with friendly() as notices:
        from mfgp.baselines.columns import make_baselines
        from mfgp.config import load_config
        from mfgp.frames import read_frames

        if output is None and not dry_run:
            raise ConfigError("no output file; name one with -o MODEL (or use --dry-run).")
        settings = load_config(config, overrides or [])
        _check_workers(settings, workers, scheduler)
        check_outputs([output], [config, *training_files(settings)])
        if not settings.fidelities:
            raise ConfigError(f"{config}: no `fidelities:`; name at least one level with its training files.")
        frames = _once(read_frames({f.name: list(f.train) for f in settings.fidelities}, keys=settings.keys))
        out = console.stdout()
        out.print(console.data_table(frames.summary(), frames.levels))
        _say_estimate(frames, settings, out, notices)
        if dry_run:
            make_baselines(settings.baselines, levels=frames.levels)  # a wrong name or setting is an error here already
        if output is not None and not dry_run:
            model = _fitted(frames, settings, workers, scheduler)
            model.save(output)
            _say_results(model, out, notices)
            console.say(out, f"wrote {output} ({console.human_bytes(output.stat().st_size)})")


def _check_workers(settings: FitConfig, workers: int | None, scheduler: str | None) -> None:
    """ConfigError for what a fit on several workers cannot do, before anything is read."""
    from mfgp.distributed import NO_BASELINES, ONE_OF_BOTH

    if workers is not None and scheduler is not None:
        raise ConfigError(ONE_OF_BOTH)
    if settings.baselines and (workers is not None or scheduler is not None):
        raise ConfigError(NO_BASELINES)


def _once(frames: FrameSet) -> FrameSet:
    """Each training frame once, with the warning of the fit about others: a dry run counts what a fit takes."""
    from dataclasses import replace

    from mfgp.data.training_frames import distinct

    taken = {id(frame) for frame in distinct(frames.training())}
    return replace(frames, frames=tuple(frame for frame in frames if frame.held_out or id(frame) in taken))


def _say_estimate(frames: FrameSet, settings: FitConfig, out: Console, notices: Console) -> None:
    from mfgp.base.devices import available_memory, resident_memory, resolve_device
    from mfgp.estimate import estimate

    device = resolve_device(settings.device)
    held = (
        resident_memory() if device.type == "cpu" else None
    )  # before the estimate, whose workspaces the fit uses again
    cost = estimate(frames, settings)
    console.say(out, console.estimate_line(cost, held))
    if settings.baselines:
        names = ", ".join(baseline.name for baseline in settings.baselines)
        console.say(notices, f"note: the estimate leaves out what the baselines take ({names}).")
    available = available_memory(device)
    if available is not None and cost.memory_bytes > available:
        free = console.human_bytes(available)
        text = f"warning: the fit takes more memory than is free ({free}); lower model.n_inducing or descriptor.n_max."
        console.say(notices, text, "yellow")


def _fitted(frames: FrameSet, settings: FitConfig, workers: int | None, scheduler: str | None) -> MultiFidelityGP:
    """A fit in this process, or with its pass over the labels on many."""
    from mfgp.model import MultiFidelityGP

    if workers is None and scheduler is None:
        return MultiFidelityGP.fit(frames, settings)
    from mfgp.distributed import DistributedPass, client_of

    with client_of(workers, scheduler) as client:
        return MultiFidelityGP.fit(frames, settings, data_pass=DistributedPass(client))


def _say_results(model: MultiFidelityGP, out: Console, notices: Console) -> None:
    from mfgp.notes.training_residuals import training_residuals

    for table in console.hyperparameter_tables(model.hyperparameters(), model.levels):
        out.print(table)
    out.print(console.residual_table(training_residuals(model)))
    if model.calibration is not None:
        out.print(console.calibration_table(model.calibration.to_json(), model.levels))
    for note in model.notes():
        console.say(notices, note, "yellow")


@app.command()
def evaluate(
    model: ModelPath,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="labelled structures (extxyz)", show_default=False)],
    fidelity: Fidelity = None,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write the scores as JSON")] = None,
    plots: Annotated[Path | None, typer.Option("--plots", metavar="DIR", help="write plots (PNG) here")] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="only frames of this split, e.g. test_ood")
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME", help="what frames of the level are tagged with, if not F")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="frames that are not held out, too")] = False,
    keys: Keys = None,
    raw_std: RawStd = False,
) -> None:
    """Compare predictions with labels: errors, coverage and calibration of the uncertainty.

    Takes the labelled frames of DATA whose level is F or that name none (with --fidelity also those whose tag is no level of
    the model, if no frame of DATA names one); of those the held-out ones (split test... or val...), if there are any.
    Labels have the names that the model was fitted with, unless --key says otherwise.
    """
    with friendly() as notices:
        from mfgp import evaluation
        from mfgp.base.progress import bars
        from mfgp.data.scored_frames import frames_to_score
        from mfgp.data.training_frames import calculation_key
        from mfgp.model import MultiFidelityGP
        from mfgp.notes.energy_shift import energy_shift
        from mfgp.notes.narrow_intervals import narrow_intervals

        check_outputs([json_path], [model, data])
        if plots is not None and plots.exists() and not plots.is_dir():
            raise DataError(f"{plots} is a file; name a directory for the plots.")
        if split is not None and everything:
            raise ConfigError("--split and --all contradict each other; give one of them.")
        fitted = MultiFidelityGP.load(model)
        level = fitted.levels[fitted.level(fidelity)]
        frames = _read_labelled(data, level, fitted, label_keys(keys))
        chosen, note = frames_to_score(
            frames, level, fitted.levels, everything, split=split, tag=tag, named=fidelity is not None
        )
        which = "the posterior's own" if raw_std or fitted.calibration is None else "calibrated"
        if which == "calibrated" and (raw := fitted.predictor(level).raw_moments):
            which += f", those of moments of {', '.join(raw)} the posterior's own"
        console.say(notices, f"{note}; standard deviations: {which}")
        if seen := sum(calculation_key(level, f.atoms) in fitted.calculated for f in chosen):
            text = f"warning: the model was trained on {seen} of these frames: their errors are too small."
            console.say(notices, text, "yellow")
        with bars(console=notices) as report:
            result = evaluation.evaluate(fitted, chosen, level, report, calibrated=not raw_std)
        if result.stress is not None:
            say_stress(fitted, fidelity, notices)
        say_close_pairs(fitted, {frame.source: frame.atoms for frame in chosen}, notices)
        _report(result, json_path, plots, notices)
        for said in (energy_shift(result), narrow_intervals(fitted, result, calibrated=not raw_std)):
            if said is not None:
                console.say(notices, f"warning: {said}", "yellow")


def _report(result: Evaluation, json_path: Path | None, plots: Path | None, notices: Console) -> None:
    """Show the scores, and write them and plots where that was asked for."""
    if json_path is not None:
        write_json(result.to_json(), json_path)
    console.stdout().print(console.score_table(result))
    if plots is not None:
        from mfgp.report import write_plots

        for path in write_plots(result, plots):
            console.say(notices, f"wrote {path}")


def _read_labelled(data: Path, level: str, model: MultiFidelityGP, names: dict[str, str]) -> FrameSet:
    """The frames of a file as of one level, their labels under the model's keys, or under those of the command line."""
    from mfgp.frames import LabelKeys, read_frames

    return read_frames({level: data}, keys=LabelKeys(**{**model.config.keys.model_dump(), **names}))


@app.command()
def info(model: ModelPath) -> None:
    """Show what a model file holds, from its header alone."""
    with friendly():
        from mfgp.model_file import read_header

        header = read_header(model)
        out = console.stdout()
        for line in console.header_lines(header):
            console.say(out, line)
        out.print(console.data_table(header["data"], header["levels"]))
        if header["calibration"] is not None:
            console.stdout().print(console.calibration_table(header["calibration"], header["levels"]))
        for table in console.hyperparameter_tables(header["hyperparameters"], header["levels"]):
            out.print(table)


for command in (predict, tune, doctor, select, plan):
    app.command()(command)
app.add_typer(campaign, name="campaign")
