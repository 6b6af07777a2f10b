"""Tables, plots and files of selections and plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from matplotlib.figure import Figure
from rich.table import Table

from mfgp.base import console
from mfgp.base.files import write_extxyz
from mfgp.data.labels import COSTS, FIDELITY_TAGS, LabelKeys, without_labels
from mfgp.report import SERIES
from mfgp.selection.greedy import Selection
from mfgp.selection.plan import Plan

SHOWN = 20  # rows of a table; the file has all


def selected_frames(selection: Selection, pool: Sequence[Atoms], keys: LabelKeys) -> list[Atoms]:
    """The chosen structures without labels; fidelity, rank, gain, expected_std_after, cost_hours (where it is known) and
    pool_index in info."""
    out = []
    for choice in selection.choices:
        atoms = without_labels(pool[choice.index], keys)
        for name in (*FIDELITY_TAGS, *COSTS):
            atoms.info.pop(name, None)
        atoms.info.update(
            fidelity=choice.level,
            rank=choice.rank,
            gain=choice.gain,
            expected_std_after=choice.std_after,
            pool_index=choice.index,
        )
        if not math.isnan(choice.hours):
            atoms.info["cost_hours"] = choice.hours
        out.append(atoms)
    return out


def write_selected(selection: Selection, pool: Sequence[Atoms], keys: LabelKeys, path: Path) -> None:
    """Write the chosen structures as extxyz; a file of that name is replaced only by a complete one."""
    write_extxyz(path, selected_frames(selection, pool, keys))


def selection_json(selection: Selection, unit: str) -> dict[str, Any]:
    """Everything about a batch in plain numbers; hours that nobody knows are None."""
    return {
        "target": selection.target,
        "unit": unit,
        "std_before": selection.std_before,
        "std_after": selection.choices[-1].std_after if selection.choices else selection.std_before,
        "hours": _or_none(selection.hours),
        "choices": [
            {
                "rank": c.rank,
                "pool_index": c.index,
                "fidelity": c.level,
                "gain": c.gain,
                "expected_std_after": c.std_after,
                "cost_hours": _or_none(c.hours),
            }
            for c in selection.choices
        ],
    }


def _or_none(hours: float) -> float | None:
    return None if math.isnan(hours) else hours


def _shown(hours: float) -> str:
    return "–" if math.isnan(hours) else f"{hours:.3g}"


def selection_table(selection: Selection, pool: Sequence[Atoms], unit: str) -> Table:
    """The first choices: what, at which level, what it costs and what it brings."""
    rows = [
        (
            str(c.rank),
            f"{c.index} {pool[c.index].info.get('structure_id', '')}".strip(),
            str(pool[c.index].symbols),
            c.level,
            _shown(c.hours),
            f"{c.std_after:.4g}",
        )
        for c in selection.choices[:SHOWN]
    ]
    columns = ["rank", "pool index", "structure", "level", "hours", f"expected std after ({unit})"]
    more = len(selection.choices) - SHOWN
    title = f"selected for {selection.target}" + (f" (the first {SHOWN}; {more} more in the file)" if more > 0 else "")
    return console.table(title, columns, rows)


def summary_line(selection: Selection, unit: str) -> str:
    """How many calculations at each level, what they cost, and what they are expected to bring."""
    counts = {level: 0 for level in dict.fromkeys(c.level for c in selection.choices)}
    for c in selection.choices:
        counts[c.level] += 1
    what = ", ".join(f"{n} {level}" for level, n in counts.items()) or "no calculation"
    after = selection.choices[-1].std_after if selection.choices else selection.std_before
    return (
        f"{what}; {_shown(selection.hours)} hours; expected std of the target (rms): {selection.std_before:.4g} -> "
        f"{after:.4g} {unit}"
    )


def plan_table(plan: Plan, unit: str) -> Table:
    """Std against hours, with the split by level and what each level alone would give."""
    levels = list(plan.alone)
    columns = ["hours", *levels, f"std ({unit})", *(f"{level} alone" for level in levels if len(levels) > 1)]
    rows = []
    for row in plan.rows():
        split = [f"{row['levels'][t]['n']} ({row['levels'][t]['hours']:.3g} h)" for t in levels]
        alone = [f"{row['std_alone'][t]:.4g}" for t in levels if len(levels) > 1]
        rows.append((f"{row['hours']:.3g}", *split, f"{row['std']:.4g}", *alone))
    title = f"expected std at {plan.joint.target} (now {plan.joint.std_before:.4g} {unit}): calculations by level"
    if len(rows) > 1:
        title += (
            "\n(after a part of the choice for the whole budget; a smaller one may be spent better: --budget-hours)"
        )
    return console.table(title, columns, rows)


def plan_figure(plan: Plan, unit: str) -> Figure:
    """Expected std against hours; with all levels, and with each alone."""
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    ax = figure.add_subplot()
    for i, (name, (hours, std)) in enumerate(plan.curves().items()):
        ax.plot(
            hours,
            std,
            color=SERIES[i % 7],
            linewidth=2.0 if i == 0 else 1.3,
            linestyle="-" if i == 0 else "--",
            label=name,
        )
    ax.set(xlabel="hours of calculation", ylabel=f"expected std at {plan.joint.target} ({unit})")
    ax.set_xlim(left=0.0)
    ax.grid(color="0.9", linewidth=0.6)
    ax.legend(fontsize=8, frameon=False)
    return figure
