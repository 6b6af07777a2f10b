"""The commands `mfgp select` and `mfgp plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mfgp.base import console
from mfgp.base.words import counted
from mfgp.cli.command_line import ModelPath, check_outputs, friendly, write_json
from mfgp.errors import ConfigError

if TYPE_CHECKING:
    from ase import Atoms

    from mfgp.data.costs import CostModel
    from mfgp.model import MultiFidelityGP
    from mfgp.selection.greedy import Selection

Pool = Annotated[
    Path,
    typer.Argument(metavar="POOL", help="structures that may be calculated (no labels needed)", show_default=False),
]
TargetLevel = Annotated[
    str | None, typer.Option("--target", "-t", metavar="F", help="level to become certain at; the highest by default")
]
Costs = Annotated[
    list[str] | None,
    typer.Option(
        "--cost", metavar="F=HOURS", help="hours of one calculation; by default learned from the training frames"
    ),
]
Levels = Annotated[
    list[str] | None, typer.Option("--level", metavar="F", help="level that may be calculated; all by default")
]
Targets = Annotated[
    Path | None, typer.Option("--targets", metavar="FILE", help="structures to become certain about; POOL by default")
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight", metavar="WHAT=W", help="weights of the variances of forces and energy; forces=1 by default"
    ),
]
Seed = Annotated[int, typer.Option(help="of the random directions", min=0)]


@dataclass(frozen=True)
class Question:
    """What both commands ask."""

    model: MultiFidelityGP
    pool: list[Atoms]
    targets: list[Atoms] | None
    costs: CostModel
    weights: dict[str, float]
    held_out: list[tuple[int, str]]  # (place in the pool, level), not to be calculated

    @property
    def unit(self) -> str:
        """Of the target's standard deviation."""
        return "eV/Å" if "forces" in self.weights else "eV/atom"


def question(
    model: Path, pool: Path, targets: Path | None, costs: list[str] | None, weights: list[str] | None, notices: Console
) -> Question:
    """Read what the options name, and say which costs are used."""
    from mfgp.data.reading import read_structures
    from mfgp.model import MultiFidelityGP

    given = _numbers("--cost", costs or [], "F=HOURS, such as --cost mag=0.03")
    wanted = _numbers("--weight", weights or ["forces=1"], "WHAT=W, such as --weight forces=1 --weight energy=100")
    fitted = MultiFidelityGP.load(model)
    if unknown := [name for name in given if name not in fitted.levels]:
        raise ConfigError(f"--cost {unknown[0]}: unknown level; this model has {', '.join(fitted.levels)}.")
    structures = read_structures(pool)
    held_out = _held_out(structures, notices)
    _say_known(fitted, structures, held_out, notices)
    known = fitted.costs.with_given(given)
    for level in fitted.levels:
        if not known.missing([level]):
            how = "given" if level in known.given else f"learned from {known.sums[level].count:.0f} training frames"
            console.say(
                notices, f"cost of {level}: {known.hours(level, structures).mean():.3g} hours a calculation ({how})"
            )
    reserved = [(i, level) for i in held_out for level in fitted.levels]
    return Question(fitted, structures, None if targets is None else read_structures(targets), known, wanted, reserved)


def _held_out(structures: Sequence[Atoms], notices: Console) -> list[int]:
    """Places of the structures of a pool that are held out, and so not offered; none where all are."""
    from mfgp.frames import is_held_out

    held_out = [i for i, a in enumerate(structures) if is_held_out(a.info.get("split"))]
    if len(held_out) == len(structures):
        console.say(notices, "warning: all structures of the pool are held out (info['split']): a test set?", "yellow")
        return []
    if held_out:
        text = f"not offered, since they are held out (info['split']): {len(held_out)} of {len(structures)} structures"
        console.say(notices, text)
    return held_out


def _say_known(fitted: MultiFidelityGP, structures: Sequence[Atoms], held_out: list[int], notices: Console) -> None:
    """Of the pool, what the model was trained on, and what there is more than once."""
    from mfgp.data.single_point import structure_hash
    from mfgp.selection.greedy import known_calculations

    if done := known_calculations(fitted, structures, fitted.levels):
        counts = ", ".join(f"{sum(name == level for _, name in done)} at {level}" for level in fitted.levels)
        console.say(notices, f"not offered, since the model was trained on them: {counts}")
        offered, known_there = set(range(len(structures))) - set(held_out), set(done)
        for level in fitted.levels:
            if all((i, level) in known_there for i in offered):
                console.say(
                    notices, f"nothing is on offer at {level}: the model was trained on all of them there", "yellow"
                )
    if repeated := len(structures) - len({structure_hash(a) for a in structures}):
        console.say(notices, f"{repeated} structures of the pool repeat another one: each is offered once")


def select(
    model: ModelPath,
    pool: Pool,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="SELECTED", help="extxyz file to write", show_default=False)
    ],
    target: TargetLevel = None,
    budget_hours: Annotated[float | None, typer.Option("--budget-hours", help="spend at most so many hours")] = None,
    n: Annotated[int | None, typer.Option("-n", help="choose so many calculations", min=1)] = None,
    costs: Costs = None,
    levels: Levels = None,
    targets: Targets = None,
    weights: Weights = None,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write the choices as JSON")] = None,
    seed: Seed = 0,
) -> None:
    """Choose the calculations that reduce the target level's uncertainty most for their hours: which, at which level.

    The frames of SELECTED come in the order of choice, each with `fidelity` (where to calculate it), `rank`, `gain` (fall of
    the mean variance), `expected_std_after`, `cost_hours` and `pool_index`. With -n and no cost of any level the gain alone
    decides, and there is no `cost_hours`.
    """
    with friendly() as notices:
        from mfgp.base.files import check_extxyz
        from mfgp.base.progress import bars
        from mfgp.cli.selection_report import selection_json, selection_table, summary_line, write_selected
        from mfgp.selection import greedy

        check_outputs([output, json_path], [model, pool, targets])
        check_extxyz(output)
        asked = question(model, pool, targets, costs, weights, notices)
        with bars(console=notices) as report:
            chosen = greedy.select(
                asked.model,
                asked.pool,
                target,
                asked.costs,
                budget_hours=budget_hours,
                n=n,
                levels=levels,
                targets=asked.targets,
                weights=asked.weights,
                taken=asked.held_out,
                seed=seed,
                report=report,
            )
        _say_same(chosen, notices)
        console.stdout().print(selection_table(chosen, asked.pool, asked.unit))
        console.say(console.stdout(), summary_line(chosen, asked.unit))
        if not chosen.choices:
            stays = f", and {output} is an earlier selection" if output.exists() else ""
            text = f"warning: nothing fits the budget, or is left to choose; no file written{stays}."
            console.say(notices, text, "yellow")
            return
        write_selected(chosen, asked.pool, asked.model.config.keys, output)
        console.say(notices, f"wrote {counted(len(chosen.choices), 'structure')} to {output}")
        if json_path is not None:
            write_json(selection_json(chosen, asked.unit), json_path)


def _say_same(chosen: Selection, notices: Console) -> None:
    """How many structures of the pool were passed over, and why."""
    if chosen.same:
        text = (
            f"{chosen.same} structures of the pool were passed over as others of it in another description (order of "
            "atoms, orientation, cell, rounding): one of each is offered at a level"
        )
        console.say(notices, text)


def plan(
    model: ModelPath,
    pool: Pool,
    hours: Annotated[
        float, typer.Option("--budget-hours", "--hours", metavar="H", help="as of select", min=0.0, show_default=False)
    ],
    target: TargetLevel = None,
    costs: Costs = None,
    levels: Levels = None,
    targets: Targets = None,
    weights: Weights = None,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write the forecast as JSON")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="draw std against hours")] = None,
    seed: Seed = 0,
) -> None:
    """Forecast what a budget would buy, before anything is calculated: std at the target level against hours."""
    with friendly() as notices:
        from mfgp.base.progress import bars
        from mfgp.cli.selection_report import plan_figure, plan_table, selection_json
        from mfgp.report import write_figure
        from mfgp.selection.plan import plan as forecast

        check_outputs([json_path, plot], [model, pool, targets])
        asked = question(model, pool, targets, costs, weights, notices)
        with bars(console=notices) as report:
            found = forecast(
                asked.model,
                asked.pool,
                target,
                asked.costs,
                hours,
                levels=levels,
                targets=asked.targets,
                weights=asked.weights,
                taken=asked.held_out,
                seed=seed,
                report=report,
            )
        console.stdout().print(plan_table(found, asked.unit))
        text = (
            "note: the std will probably end lower, since a fit to more labels also learns smaller noise and amplitudes. "
            "Compare levels by it."
        )
        console.say(notices, text)
        if found.joint.hours < 0.9 * hours:
            text = f"note: the pool is calculated in full, or nothing more fits, after {found.joint.hours:.3g} hours."
            console.say(notices, text, "yellow")
        if json_path is not None:
            alone = {level: selection_json(s, asked.unit) for level, s in found.alone.items()}
            joint = selection_json(found.joint, asked.unit)
            write_json({"budget_hours": hours, "rows": found.rows(), "joint": joint, "alone": alone}, json_path)
        if plot is not None:
            console.say(notices, f"wrote {write_figure(plan_figure(found, asked.unit), plot)}")


def _numbers(option: str, texts: list[str], expected: str) -> dict[str, float]:
    """{name: number} of NAME=NUMBER. ConfigError for anything else, or a name that comes twice."""
    out: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")  # names of levels may hold one, too
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"{option} {text!r}: expected {expected}.") from None
        if not name or name in out:
            raise ConfigError(f"{option} {text!r}: {'given twice' if name else f'expected {expected}'}.")
        out[name] = number
    return out
