"""A campaign on one HTML page: what was chosen, when, why, and what it bought. Nothing outside the file is needed.

The error of a model on a label before it learns it is a test error as long as labels are chosen without looking at them; it
is shown beside the standard deviation that the model gave. Structures are chosen where the model is unsure, so it is larger
than the error on structures like the pool's.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mfgp import __version__
from mfgp.base.files import replacing
from mfgp.campaign.status import Status, human_hours, milli, status_lines
from mfgp.data.structure_json import structure_of
from mfgp.report import MARKERS, SERIES

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 13px; margin: 0.6em 0; }
th { text-align: left; color: #666; font-weight: 600; border-bottom: 1px solid #999; padding: 2px 10px 2px 0; }
td { border-bottom: 1px solid #e4e4e4; padding: 2px 10px 2px 0; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bad { color: #b03000; } .quiet { color: #666; } img { max-width: 100%; }
.wide { overflow-x: auto; }
"""


def write_report(s: Status, path: Path) -> None:
    """Write the page; a file of that name is replaced only by a complete one."""
    with replacing(path) as temporary:
        temporary.write_text(page(s), encoding="utf-8")


def page(s: Status) -> str:
    """The whole document."""
    parts = [f"<h1>Campaign {escape(s.directory.resolve().name)}</h1>"]
    parts += [f"<p>{escape(line)}.</p>" for line in status_lines(s)]
    figures: Sequence[tuple[str, Callable[[Status], Figure | None]]] = (
        ("What it bought", std_figure),
        ("Errors on new labels, before they were learned", error_figure),
        ("What it cost", cost_figure),
    )
    for title, draw in figures:
        figure = draw(s)
        if figure is not None:
            parts.append(f"<h2>{title}</h2>{_image(figure, title)}")
    for title, table in (
        ("Steps", _steps(s)),
        ("Decisions", _decisions(s)),
        ("Failed and rejected calculations", _failures(s)),
        ("Models", _models(s)),
        ("Events", _table(("when", "what", ""), [(_when(e["time"]), e["kind"], e["text"]) for e in s.events])),
    ):
        parts.append(f'<h2>{title}</h2><div class="wide">{table}</div>')
    parts.append(f'<p class="quiet">mfgp {__version__}; times are UTC.</p>')
    head = f'<meta charset="utf-8"><title>Campaign {escape(s.directory.resolve().name)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


# figures


def std_figure(s: Status) -> Figure | None:
    """The target's std against the cost so far: of every model, and as each step expected it."""
    known = [m for m in s.models if m["target_std"] is not None]
    if not known:
        return None
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    ax = figure.add_subplot()
    scale, unit = _time_scale(s.hours)
    x = [scale * m["hours_spent"] for m in known]
    ax.plot(x, [1e3 * m["target_std"] for m in known], "-o", color=SERIES[0], label="of the model", markersize=5)
    spent = {m["version"]: m["hours_spent"] for m in s.models}
    for i, step in enumerate(s.steps):
        after = spent.get(step["model_after"], s.hours)
        ends = [scale * spent[step["model"]], scale * after]
        label = "expected by the selection" if i == 0 else None
        ax.plot(ends, [1e3 * step["std_before"], 1e3 * step["std_expected"]], "--", color=SERIES[1], label=label)
    if s.config.stop.std is not None:
        ax.axhline(1e3 * s.config.stop.std, color="0.4", linewidth=0.8, label="asked for")
    ax.set(
        xlabel=f"cost of the calculations ({unit})", ylabel=f"std of {s.config.target} forces (meV/Å)", ylim=(0, None)
    )
    ax.legend(frameon=False, fontsize=8)
    return figure


def error_figure(s: Status) -> Figure | None:
    """Force RMSE of new labels against the std that the model gave for them, by level and by step."""
    found = [(t, json.loads(t["before"])) for t in s.tasks if t["before"] is not None]
    found = [(t, b) for t, b in found if "force_rmse" in b and "force_std" in b]
    if not found:
        return None
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    top = 1.08e3 * max(max(b["force_rmse"], b["force_std"]) for _, b in found)
    left.plot([0, top], [0, top], color="0.35", linewidth=0.9)
    for i, level in enumerate(s.levels):
        own = [(t["step"], b) for t, b in found if t["level"] == level]
        if not own:
            continue
        style = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)]}
        left.plot(*zip(*[(1e3 * b["force_std"], 1e3 * b["force_rmse"]) for _, b in own], strict=True),
                  linestyle="", markersize=4, label=level, **style)  # fmt: skip
        steps = sorted({step for step, _ in own})
        rms = [1e3 * np.sqrt(np.mean([b["force_rmse"] ** 2 for at, b in own if at == step])) for step in steps]
        std = [1e3 * np.sqrt(np.mean([b["force_std"] ** 2 for at, b in own if at == step])) for step in steps]
        right.plot(steps, rms, linestyle="-", markersize=4, label=f"{level}, error", **style)
        right.plot(steps, std, linestyle="--", color=style["color"], label=f"{level}, std")
    left.set(xlabel="std given (meV/Å)", ylabel="force RMSE (meV/Å)", xlim=(0, top), ylim=(0, top))
    right.set(xlabel="step", ylim=(0, None))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8)
    return figure


def cost_figure(s: Status) -> Figure | None:
    """Cost of every step by level; hatched: attempts that failed or were rejected."""
    if not s.attempts:
        return None
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    ax = figure.add_subplot()
    scale, unit = _time_scale(s.hours)
    steps = [step["step"] for step in s.steps]
    bottom = np.zeros(len(steps))
    for i, level in enumerate(s.levels):
        for good in (True, False):
            own = [a for a in s.attempts if a["level"] == level and (a["outcome"] == "done") is good]
            height = np.array([scale * sum(a["hours"] for a in own if a["step"] == k) for k in steps])
            if height.any():
                label = level if good else f"{level}, in vain"
                style: dict[str, Any] = {
                    "color": SERIES[i % len(SERIES)],
                    "hatch": "" if good else "///",
                    "edgecolor": "white",
                }
                ax.bar(steps, height, bottom=bottom, label=label, width=0.7, linewidth=0.3, **style)
                bottom += height
    ax.set(xlabel="step", ylabel=f"cost ({unit})")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=8)
    return figure


# tables


def _steps(s: Status) -> str:
    std = {m["version"]: m["target_std"] for m in s.models}
    rows = []
    for step in s.steps:
        own = [d for d in s.decisions if d["step"] == step["step"]]
        counts = ", ".join(f"{n} {level}" for level in s.levels if (n := sum(d["level"] == level for d in own)))
        lost = sum(d["state"] in ("failed", "rejected") for d in own)
        after = std.get(step["model_after"]) if step["model_after"] is not None else None
        expected, found = (
            step["std_before"] - step["std_expected"],
            None if after is None else step["std_before"] - after,
        )
        share = "–" if found is None or expected <= 0 else f"{100 * found / expected:.0f} %"
        cost = human_hours(sum(d["hours"] for d in own))
        stds = (milli(step["std_before"]), milli(step["std_expected"]), milli(after))
        numbers = (*map(_n, stds), _n(share), _n(human_hours(step["hours"])), _n(cost), _n(str(lost)))
        rows.append((_n(str(step["step"])), _when(step["opened"]), counts, *numbers))
    columns = ("step", "opened", "chosen", "std before (meV/Å)", "expected", "found", "of the gain", "cost expected", "cost",
               "lost")  # fmt: skip
    return _table(columns, rows)


def _decisions(s: Status) -> str:
    rows = []
    for d in s.decisions:
        before = {} if d["before"] is None else json.loads(d["before"])
        error = f"{milli(before.get('force_rmse'), 3)} / {milli(before.get('force_std'), 3)}" if before else "–"
        state = d["state"] if d["state"] == "done" else _Html(f'<span class="bad">{escape(d["state"])}</span>')
        formula = str(structure_of(d["atoms"]).symbols)
        place = (_n(str(d["step"])), _n("–" if d["rank"] is None else str(d["rank"])), d["source"], formula, d["level"])
        rows.append((*place, d["why"], state, _n(error), _n(human_hours(d["hours"]))))
    columns = ("step", "rank", "structure", "formula", "level", "why", "outcome", "force RMSE / std (meV/Å)", "cost")
    return _table(columns, rows)


def _failures(s: Status) -> str:
    source = {t["id"]: t["source"] for t in s.tasks}
    bad = [a for a in s.attempts if a["outcome"] in ("failed", "rejected", "interrupted")]
    rows = [
        (_when(a["finished"]), source[a["task"]], a["level"], _n(str(a["attempt"])), a["outcome"], a["why"],
         _n(human_hours(a["hours"])), a["settings"])
        for a in bad
    ]  # fmt: skip
    return _table(("when", "structure", "level", "attempt", "outcome", "why", "cost", "settings"), rows)


def _models(s: Status) -> str:
    rows = [
        (_n(str(m["version"])), _when(m["created"]), m["kind"], m["why"], _n(str(m["n_labels"])), _n(milli(m["target_std"])),
         _n(f"{m['seconds']:.3g} s"), m["file"])
        for m in s.models
    ]  # fmt: skip
    columns = ("version", "made", "what", "why", "labels", f"{s.config.target} std (meV/Å)", "took", "file")
    return _table(columns, rows)


class _Html(str):
    """Text that is HTML already."""


def _n(text: str) -> _Html:
    """A cell of a number."""
    return _Html(f'<td class="n">{escape(text)}</td>')


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return '<p class="quiet">None.</p>'
    out = ["<table><tr>", *(f"<th>{escape(c)}</th>" for c in columns), "</tr>"]
    for row in rows:
        cells = [c if isinstance(c, _Html) else escape(str(c)) for c in row]
        out.append("<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in cells) + "</tr>")
    return "\n".join([*out, "</table>"])


def _when(time: str | None) -> str:
    return "–" if time is None else time[:19].replace("T", " ")


def _time_scale(hours: float) -> tuple[float, str]:
    """Factor from hours, and the unit that suits so many."""
    if hours > 2:
        return 1.0, "h"
    return (60.0, "min") if hours > 0.05 else (3600.0, "s")


def _image(figure: Figure, text: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    code = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{code}">'
