"""The command `mfgp doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mfgp.base import console
from mfgp.cli.command_line import Keys, check_outputs, friendly, label_keys, write_json
from mfgp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mfgp.doctor.report import Finding, Report
    from mfgp.frames import FrameSet


def doctor(
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA...", help="labelled structures (extxyz)", show_default=False)
    ],
    fidelity: Annotated[
        list[str] | None,
        typer.Option("--fidelity", "-f", help="level of each file, in order; by default its frames' tag or its name"),
    ] = None,
    keys: Keys = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="MODEL", help="a model fitted to these data, for leave-one-out scores"),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=0, help="with a model: fits without the suspects, which hide smaller errors; at most, by default 3"
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="write all findings, with every frame, as JSON")
    ] = None,
) -> None:
    """Check labelled data before a fit is spent on it. Files in order, cheapest level first; exit code 1 on errors.

    With a model that was fitted to these data also: labels that disagree with all others (leave-one-label-out), those of
    frames whose magnetic moments do so too apart. Where there are any, the model is fitted again without them, and all
    labels are scored again.
    """
    with friendly() as notices:
        from mfgp.base.progress import bars
        from mfgp.doctor import examine
        from mfgp.frames import LabelKeys, read_frames

        check_outputs([json_path], [*data, model])
        sources, levels = _levels_of_files(data, fidelity or [], notices)
        frames = read_frames(sources, keys=LabelKeys(**label_keys(keys)), levels=levels)
        with bars(console=notices) as progress:
            report = examine(frames, progress)
        suspects, problem = None, None
        if model is not None:
            try:
                findings, suspects = _contradicted(model, frames, rounds)
                report = report.with_findings(findings)
            except DataError as error:  # what was found without the model is said first
                problem = error
        _show(report, frames.levels)
        if json_path is not None:
            write_json({**report.to_json(), "labels": suspects}, json_path)
        if problem is not None:
            raise problem
        if not report.ok:
            raise typer.Exit(1)


def _show(report: Report, levels: Sequence[str]) -> None:
    out = console.stdout()
    out.print(console.data_table(report.summary, levels))
    if report.correlations:
        out.print(console.correlation_table(report.correlations))
    for line, style in console.finding_lines(report):
        console.say(out, line, style)


def _contradicted(model: Path, frames: FrameSet, rounds: int | None) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Findings about labels that disagree with all others, and these labels."""
    from mfgp.doctor.report import about
    from mfgp.doctor.rounds import ROUNDS, scores_without_suspects
    from mfgp.doctor.suspects import contradiction_checks, fit_checks, order_checks
    from mfgp.frames import FrameSet
    from mfgp.model import MultiFidelityGP

    fitted, training = MultiFidelityGP.load(model), frames.training()
    if not len(training):
        message = (
            "every frame is held out (info['split']), and leave-one-out scores are for training frames: labels were not "
            "compared with the model. `mfgp evaluate` does that with held-out ones."
        )
        return [about("info", "leave-one-out", message), *contradiction_checks(fitted)], []
    if strange := sorted({frame.fidelity for frame in training} - set(fitted.levels)):
        raise DataError(
            f"--model: the model has the levels {', '.join(fitted.levels)}, the data {', '.join(strange)}; name the level "
            "of each file with --fidelity, in order."
        )
    training = FrameSet(tuple(level for level in training.levels if level in fitted.levels), training.frames)
    whole = [*contradiction_checks(fitted), *order_checks(fitted, training)]
    scoring = scores_without_suspects(fitted, training, ROUNDS if rounds is None else rounds, progress=True)
    findings = [*fit_checks(scoring.scores, training), *scoring.findings(), *whole]
    return findings, [s.to_json() for s in scoring.scores if s.suspect]


def _levels_of_files(data: list[Path], names: list[str], notices: Console) -> tuple[Any, list[str]]:
    """What read_frames takes: {level: files} where a file holds one level, else the files; and the levels in order.

    Says so where files of one name, in several folders, become one level.
    """
    from mfgp.data.reading import load
    from mfgp.data.scored_frames import level_tag
    from mfgp.data.sources import stem_of

    if names and len(names) != len(data):
        raise ConfigError(
            f"{len(names)} names with --fidelity for {len(data)} files; give one for each file, in order."
        )
    tags = [[n] for n in names] or [[t for t in dict.fromkeys(map(level_tag, load(p))) if t is not None] for p in data]
    own = [t or [stem_of(p)] for t, p in zip(tags, data, strict=True)]
    levels = list(dict.fromkeys(name for file in own for name in file))
    unnamed = [stem_of(path) for t, path in zip(tags, data, strict=True) if not t]
    for name in (n for n in dict.fromkeys(unnamed) if unnamed.count(n) > 1):
        text = f"{unnamed.count(name)} files are taken for one level, {name!r}, by their name; name the level of each file "
        console.say(notices, f"warning: {text}with --fidelity if they are not.", "yellow")
    if any(len(file) > 1 for file in own):
        return list(data), levels
    sources: dict[str, list[Path]] = {name: [] for name in levels}
    for (name,), path in zip(own, data, strict=True):
        sources[name].append(path)
    return sources, levels
