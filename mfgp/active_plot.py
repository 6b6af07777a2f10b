"""The plot of learning on the fly: standard deviation of every step, calls, and the model's error on the called frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mfgp.report import MARKERS, SERIES, write_figure


def on_the_fly_plot(
    log: Sequence[Mapping[str, Any]], calls: Sequence[Mapping[str, Any]], threshold: float, quantity: str, path: Path
) -> Path:
    """Write a PNG. log: a row for each step; calls: a row for each calculation, as OnTheFly keeps them."""
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    unit = "meV/Å" if quantity == "forces_std" else "meV"
    top.plot([row["step"] for row in log], [1e3 * row["std"] for row in log], color=SERIES[0], linewidth=1.0)
    top.axhline(1e3 * threshold, color="0.35", linewidth=0.9, linestyle="--", label="threshold")
    levels = list(dict.fromkeys(call["level"] for call in calls))
    for i, level in enumerate(levels):
        style: dict[str, Any] = {"color": SERIES[(i + 1) % len(SERIES)], "marker": MARKERS[i % len(MARKERS)]}
        own = [call for call in calls if call["level"] == level]
        top.plot(
            [c["step"] for c in own], [1e3 * c["std"] for c in own], linestyle="", label=f"call of {level}", **style
        )
        good = [c for c in own if "force_rmse" in c]
        steps = [c["step"] for c in good]
        bottom.plot(steps, [1e3 * c["force_rmse"] for c in good], linestyle="-", label=f"{level}, error", **style)
        given = [1e3 * c["force_std"] for c in good]
        bottom.plot(steps, given, linestyle="--", color=style["color"], label=f"{level}, std given")
    top.set(ylabel=f"largest {quantity} ({unit})", ylim=(0, None))
    bottom.set(xlabel="step", ylabel="force RMSE on called frames (meV/Å)", ylim=(0, None))
    for ax in (top, bottom):
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=8)
    return write_figure(figure, path)
