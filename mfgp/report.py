"""Plots of an evaluation: parity, calibration, error against standard deviation; and learning curves.

Every function returns a matplotlib Figure that belongs to no window and no global state. Calibration is the reliability
curve of the Gaussian predictive distributions: the central interval that should hold a share p of the labels,
mean +- Phi^-1((1 + p) / 2) std, against the share that it does hold (Kuleshov, Fenner & Ermon, ICML 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.special import ndtri

from mfgp.base.files import replacing
from mfgp.errors import DataError
from mfgp.evaluation import Comparison, Evaluation

Array = NDArray[np.float64]
COLORS = {"energy": "#0072b2", "forces": "#d55e00", "stress": "#009e73"}  # Okabe & Ito: apart for colour-blind eyes too
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^Dv<>"
SCATTER_LIMIT = 2000  # labels; more are drawn as a density
BINS = 10  # of equal counts, for the error against the standard deviation
FLOOR = 0.01  # of the median std: smaller errors are drawn at the bottom edge
TICKS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))  # of logarithmic axes, times powers of ten
DPI = 160


def parity(evaluation: Evaluation) -> Figure:
    """Predicted against labelled values of every kind: with error bars of one std, or as a density where there are many."""
    figure, axes = _panels(evaluation)
    for ax, (name, unit, data) in zip(axes, evaluation.kinds(), strict=True):
        low, high = _limits(data.label, data.predicted)
        ax.plot([low, high], [low, high], color="0.35", linewidth=0.9, zorder=3)
        if len(data.label) > SCATTER_LIMIT:
            _density(ax, data.label, data.predicted, (low, high, low, high), figure)
        else:
            style = {"color": COLORS[name], "markersize": 3.5, "elinewidth": 0.7, "alpha": 0.75}
            ax.errorbar(data.label, data.predicted, yerr=data.std, fmt="o", **style)  # type: ignore[arg-type]
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=f"{name}, {evaluation.fidelity}")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set(xlabel=f"label ({_shown(unit)})", ylabel=f"predicted, {evaluation.fidelity} ({_shown(unit)})")
        s, shown = data.scores, _shown(f"m{unit}")
        bars = "" if len(data.label) > SCATTER_LIMIT else "\nbars: one std"
        _note(ax, f"MAE {_number(1e3 * s.mae)} {shown}\nRMSE {_number(1e3 * s.rmse)} {shown}\nn = {s.n}{bars}")
    return figure


def calibration(evaluation: Evaluation) -> Figure:
    """Reliability curve: share of labels inside the central interval that should hold a share p, of every kind."""
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    ax = figure.add_subplot()
    expected = np.linspace(0.0, 1.0, 201)
    ax.plot([0, 1], [0, 1], color="0.35", linewidth=0.9)
    for name, _, data in _some_kinds(evaluation):
        s = data.scores
        label = f"{name}: {100 * s.coverage95:.1f} % in 95 %, n = {s.n}"
        ax.plot(expected, coverage(data.telling, expected), color=COLORS[name], linewidth=1.8, label=label)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"calibration, {evaluation.fidelity}")
    ax.set(xlabel="share of labels expected inside an interval", ylabel="share of labels found inside it")
    ax.annotate("std too wide\n(under-confident)", (0.04, 0.90), color="0.45", fontsize=8)
    ax.annotate("std too narrow\n(over-confident)", (0.96, 0.28), color="0.45", fontsize=8, ha="right")
    ax.legend(loc="lower right", fontsize=7.5, frameon=False)
    return figure


def coverage(data: Comparison, expected: Array) -> Array:
    """Observed share of labels inside the central intervals of probability `expected` [p] -> [p]."""
    z = np.sort(np.abs(data.error / data.std))
    half_width = ndtri(0.5 * (1.0 + expected))  # [p]; 0 for p = 0, inf for p = 1
    return np.searchsorted(z, half_width, side="right") / len(z)


def error_against_std(evaluation: Evaluation) -> Figure:
    """|error| against the predicted std of every kind, and the RMSE in bins of equal counts, which should equal the std."""
    figure, axes = _panels(evaluation)
    for ax, (name, unit, every) in zip(axes, evaluation.kinds(), strict=True):
        in_units = every.telling
        data = Comparison(*(1e3 * v for v in (in_units.label, in_units.predicted, in_units.std)))  # milli
        error = np.abs(data.error)
        floor = FLOOR * float(np.median(data.std))
        x, y = np.log10(data.std), np.log10(np.maximum(error, floor))
        if len(x) > SCATTER_LIMIT:
            _density(ax, x, y, (*_padded(x), float(np.log10(floor)), _padded(y)[1]), figure)
        else:
            ax.plot(x, y, "o", color=COLORS[name], markersize=3, alpha=0.45, markeredgewidth=0)
        bins = min(BINS, max(1, len(x) // 10))
        std, rmse = binned_rmse(data, bins)
        where = "RMSE of all" if bins == 1 else f"RMSE in {bins} bins of equal counts"
        ax.plot(np.log10(std), np.log10(np.maximum(rmse, floor)), "k-o", markersize=4, linewidth=1.2, label=where)
        low, high = _padded(x)
        bottom, top = float(np.log10(floor)), max(_padded(y)[1], high)
        ax.plot([low, high], [low, high], color="0.35", linewidth=0.9, label="RMSE = std (right)")
        ax.set(xlim=(low, high), ylim=(bottom, top), title=f"{name}, {evaluation.fidelity} (n = {len(x)})")
        ax.set(xlabel=f"predicted std ({_shown(f'm{unit}')})", ylabel=f"|error| ({_shown(f'm{unit}')})")
        ax.set_xticks(*_log_ticks(low, high))
        ax.set_yticks(*_log_ticks(bottom, top))
        ax.legend(loc="lower right", fontsize=7.5, framealpha=0.85, edgecolor="none")
    return figure


def binned_rmse(data: Comparison, bins: int) -> tuple[Array, Array]:
    """Root mean square of std and of error in `bins` bins of (nearly) equal counts, ordered by std: [bin], [bin]."""
    order = np.array_split(np.argsort(data.std, kind="stable"), bins)
    std = [np.sqrt((data.std[i] ** 2).mean()) for i in order]
    return np.array(std), np.array([np.sqrt((data.error[i] ** 2).mean()) for i in order])


def learning_curve(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str = "training structures",
    ylabel: str = "force MAE (eV/Å)",
) -> Figure:
    """Error against the amount of training data on logarithmic axes, one line for each {label: (sizes, values)}.

    Raises ValueError for an empty or ragged curve, or values that a logarithmic axis cannot show.
    """
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    ax = figure.add_subplot()
    sizes: set[float] = set()
    for i, (label, (size, value)) in enumerate(curves.items()):
        x, y = np.asarray(size, dtype=float), np.asarray(value, dtype=float)
        if x.shape != y.shape or not x.size or not ((x > 0) & (y > 0)).all():
            raise ValueError(f"learning curve {label!r}: {x.size} sizes and {y.size} values; all must be positive")
        order = np.argsort(x, kind="stable")
        ax.loglog(
            x[order], y[order], MARKERS[i % 7] + "-", color=SERIES[i % 7], markersize=5, linewidth=1.5, label=label
        )
        sizes.update(x.tolist())
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(sizes) <= 10:
        ax.set_xticks(sorted(sizes), labels=[f"{s:g}" for s in sorted(sizes)], minor=False)
        ax.set_xticks([], minor=True)
    ax.yaxis.set_major_formatter(lambda value, _: _number(value))
    ax.yaxis.set_minor_formatter(lambda value, _: _number(value) if f"{value:.0e}"[0] in "25" else "")
    ax.grid(which="both", color="0.9", linewidth=0.6)
    ax.legend(fontsize=8, frameon=False)
    return figure


PLOTS: dict[str, Callable[[Evaluation], Figure]] = {
    "parity": parity,
    "calibration": calibration,
    "error_against_std": error_against_std,
}


def write_plots(evaluation: Evaluation, directory: str | Path) -> list[Path]:
    """Write every plot as `<fidelity>_<plot>.png` into a directory (made if absent); returns their paths.

    A plot of that name is replaced only by a complete one. Raises DataError when the directory is a file.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory} is a file; name a directory for the plots.")
    directory.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in evaluation.fidelity)
    return [write_figure(plot(evaluation), directory / f"{stem}_{name}.png") for name, plot in PLOTS.items()]


def write_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG; a file of that name is replaced only by a complete one."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return Path(path)


def _some_kinds(evaluation: Evaluation) -> list[tuple[str, str, Comparison]]:
    kinds = list(evaluation.kinds())
    if not kinds:
        raise DataError(f"nothing to plot: the evaluation at level {evaluation.fidelity!r} holds no label.")
    return kinds


def _panels(evaluation: Evaluation) -> tuple[Figure, list[Axes]]:
    """One panel for every kind that has labels."""
    count = len(_some_kinds(evaluation))
    figure = Figure(figsize=(4.2 * count, 4.0), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def _density(ax: Axes, x: Array, y: Array, extent: tuple[float, float, float, float], figure: Figure) -> None:
    drawn = ax.hexbin(x, y, gridsize=70, extent=extent, bins="log", mincnt=1, cmap="viridis", linewidths=0.1)
    bar = figure.colorbar(drawn, ax=ax, shrink=0.82, pad=0.02)
    bar.set_label("labels", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _limits(*values: Array) -> tuple[float, float]:
    return _padded(np.concatenate(values))


def _padded(values: Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low) or max(0.05 * abs(high), 1e-3)
    return low - pad, high + pad


def _log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Positions (log10) and labels of round numbers inside a range: the finest of TICKS that gives no more than 6."""
    inside: list[float] = []
    for digits in TICKS:
        values = [d * 10.0**k for k in range(int(np.floor(low)), int(np.ceil(high)) + 1) for d in digits]
        inside = [v for v in values if low <= np.log10(v) <= high]
        if len(inside) <= 6:
            break
    return [float(np.log10(v)) for v in inside], [_number(v) for v in inside]


def _shown(unit: str) -> str:
    return unit.replace("^3", "³")


def _note(ax: Axes, text: str) -> None:
    ax.annotate(text, (0.04, 0.96), xycoords="axes fraction", va="top", fontsize=8)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
