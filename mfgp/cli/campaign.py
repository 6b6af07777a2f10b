"""The commands `mfgp campaign ...`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mfgp.base import console
from mfgp.base.words import counted
from mfgp.campaign.schema import CONFIG, DATABASE
from mfgp.cli.command_line import check_outputs, friendly, training_files
from mfgp.errors import DataError

campaign = typer.Typer(
    no_args_is_help=True, help="Choose, calculate, learn, until the target is sure or the budget spent."
)

Directory = Annotated[
    Path | None,
    typer.Option(
        "--directory", "-d", metavar="DIR", help="of the campaign; by default this one if it holds one, else ./campaign"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be computed and what it costs, and stop")]


def _directory(given: Path | None) -> Path:
    if given is not None:
        return given
    return Path() if Path("campaign.sqlite").is_file() else Path("campaign")


def _inputs(where: Path) -> list[Path | None]:
    """The files that a campaign lives on, which no output may replace."""
    from mfgp.campaign.config import load_campaign_config
    from mfgp.config import load_config

    own: list[Path | None] = [where / CONFIG, where / DATABASE]
    if not (where / CONFIG).is_file():
        return own
    config = load_campaign_config(where / CONFIG, sources=False)
    fit = config.fit
    trained = training_files(load_config(fit, sources=False)) if fit is not None and fit.is_file() else []
    return [*own, *config.pool, *config.targets, config.model, fit, *trained]


@campaign.command()
def init(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", show_default=False)], directory: Directory = None
) -> None:
    """Make a campaign: read and check the data, fit or load the first model."""
    with friendly() as notices:
        from mfgp.campaign.loop import Campaign

        where = _directory(directory)
        for notice in Campaign.init(config, where):
            console.say(notices, f"note: {notice}", "yellow")
        console.say(console.stdout(), f"made {where}; go on with: mfgp campaign run -d {where}")


@campaign.command()
def step(directory: Directory = None, dry_run: DryRun = False) -> None:
    """Do one step: select, calculate, check, update the model. A step that was interrupted is finished."""
    _run(_directory(directory), 1, dry_run)


@campaign.command()
def run(
    directory: Directory = None,
    dry_run: DryRun = False,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="at most so many steps now")] = None,
) -> None:
    """Do steps until the campaign stops. Killed at any point, the same command goes on."""
    _run(_directory(directory), steps, dry_run)


def _run(directory: Path, steps: int | None, dry_run: bool) -> None:
    with _interruptible(), friendly() as notices:
        from mfgp.base.progress import bars
        from mfgp.campaign.loop import Campaign
        from mfgp.campaign.status import proposal_table, read_status, status_lines, status_tables

        out = console.stdout()
        with Campaign.open(directory) as opened:
            if not dry_run:
                console.say(out, opened.run(steps))
            elif opened.store.unfinished_step() is not None:
                left = [t for t in opened.store.tasks("state = 'planned'")]
                console.say(out, f"a step is open: {len(left)} calculations are left, then the model is updated")
            else:
                with bars(console=notices) as report:
                    proposal = opened.propose(report)
                if proposal.stop is not None:
                    console.say(out, f"nothing: {proposal.stop}")
                else:
                    sources = [opened.store.source(p.structure) for p in proposal.planned]
                    out.print(proposal_table(proposal.planned, sources))
                return
        found = read_status(directory)
        for table in status_tables(found):
            out.print(table)
        for line in status_lines(found):
            console.say(out, line)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say what an interruption leaves."""
    try:
        yield
    except typer.Exit as end:
        if end.exit_code == 130:
            text = "calculations under way end by themselves and are taken in by the next `mfgp campaign run`."
            console.say(console.stderr(), text)
        raise


@campaign.command()
def status(directory: Directory = None) -> None:
    """Show where a campaign stands; also while it runs."""
    with friendly():
        from mfgp.campaign.status import failure_table, read_status, status_lines, status_tables

        found, out = read_status(_directory(directory)), console.stdout()
        for table in [*status_tables(found), failure_table(found)]:
            if table is not None:
                out.print(table)
        for line in status_lines(found):
            console.say(out, line)


@campaign.command()
def add(
    labels: Annotated[list[Path], typer.Argument(metavar="LABELS...", help="labelled structures", show_default=False)],
    directory: Directory = None,
    fidelity: Annotated[
        str | None, typer.Option("--fidelity", "-f", help="their level, where the frames do not say it")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="in place of other labels of the same structures and levels")
    ] = False,
) -> None:
    """Take in labels that were computed elsewhere; the next step learns them."""
    with friendly():
        from mfgp.campaign.loop import Campaign

        with Campaign.open(_directory(directory)) as opened:
            n = opened.add(list(labels) if fidelity is None else {fidelity: list(labels)}, replace=replace)
        console.say(console.stdout(), f"{n} new labels taken in{'; the next step learns them' if n else ''}")


@campaign.command()
def extend(
    pool: Annotated[list[Path], typer.Argument(metavar="POOL...", help="structures", show_default=False)],
    directory: Directory = None,
) -> None:
    """Add structures to choose from; those that the pool has already are passed over."""
    with friendly() as notices:
        from mfgp.campaign.loop import Campaign

        warnings.filterwarnings("ignore", "pool: .* changed since")  # that it did is what this command is for
        with Campaign.open(_directory(directory)) as opened:
            n, found = opened.extend(list(pool))
            total = len(opened.store.structures("pool_index"))
        for notice in found:
            console.say(notices, f"note: {notice}", "yellow")
        console.say(console.stdout(), f"{n} structure{'' if n == 1 else 's'} added to the pool, which has {total} now")


@campaign.command()
def retry(
    directory: Directory = None,
    level: Annotated[str | None, typer.Option("--level", help="those of this level; of all by default")] = None,
) -> None:
    """Let calculations that failed be chosen again, once their cause is mended."""
    with friendly():
        from mfgp.campaign.loop import Campaign

        where = _directory(directory)
        with Campaign.open(where) as opened:
            n = opened.retry(level)
        what = f"{n} failed calculation{'' if n == 1 else 's'}"
        then = f" may be chosen again; go on with: mfgp campaign run -d {where}" if n else ": nothing to try again"
        console.say(console.stdout(), what + then)


@campaign.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="extxyz file", show_default=False)],
    directory: Directory = None,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="those of other spin states, or replaced, instead")
    ] = False,
    initial: Annotated[bool, typer.Option("--initial", help="also the data it began with")] = False,
) -> None:
    """Write the labels of a campaign as extxyz: REF_energy, REF_forces, REF_stress, fidelity."""
    with friendly():
        from mfgp.base.files import check_extxyz, write_extxyz
        from mfgp.campaign.status import exported

        where = _directory(directory)
        check_outputs([output], _inputs(where))
        check_extxyz(output)
        frames = exported(where, rejected=rejected, initial=initial)
        if not frames:
            what = "rejected" if rejected else "of its own"
            raise DataError(f"{where} has no labels {what} to write; {output} is left as it is.")
        write_extxyz(output, frames)
        console.say(console.stdout(), f"wrote {counted(len(frames), 'label')} to {output}")


@campaign.command()
def report(
    directory: Directory = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="HTML file; report.html in DIR by default")
    ] = None,
) -> None:
    """Write one HTML page: what was chosen, when, why, and what it bought."""
    with friendly():
        from mfgp.campaign.report import write_report
        from mfgp.campaign.status import read_status

        where = _directory(directory)
        path = output if output is not None else where / "report.html"
        found = read_status(where)
        check_outputs([path], _inputs(where))
        if path.suffix.lower() not in ("", ".html", ".htm"):
            raise DataError(f"{path}: the report is a page of HTML; name the file *.html.")
        write_report(found, path)
        console.say(console.stdout(), f"wrote {path}")
