"""The figures of the documentation, drawn from the files in results/.

python benchmarks/figures.py                 # docs/figures/accuracy.svg and uncertainty.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from common import RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

from mfgp.base.files import replacing

OUT = Path(__file__).parent.parent / "docs" / "figures"
OURS, RIVALS = "#0072b2", "#d55e00"  # Okabe & Ito
ACCURACY = (  # method of accuracy_lmfp.json, its name in the figure, colour, line, marker
    ("GP, mag", "Gaussian process (GP) alone", "#56b4e9", "-", "o"),
    ("SevenNet-l3i5 + GP, mag", "GP over SevenNet", OURS, ":", "s"),
    ("SevenNet-l3i5 + DPA3 + GP, mag", "GP over SevenNet and DPA-3", OURS, "-", "D"),
    ("stacked SevenNets + DPA3 + GP, mag", "GP over fine-tuned SevenNets and DPA-3 (stacked)", "#000000", "-", "^"),
    ("gap_fit, mag", "gap_fit", "0.55", "--", "o"),
    ("CHGNet, nm then mag", "CHGNet, nm first", "#e69f00", "--", "v"),
    ("CHGNet, fine-tuned", "CHGNet, fine-tuned", RIVALS, "--", "s"),
    ("SevenNet-l3i5, fine-tuned", "SevenNet, fine-tuned", "#cc79a7", "--", "D"),
)
SIZES = (10, 20, 40, 80)
UNCERTAINTY = (  # file, level, test set, its name in the figure
    ("lmfp", "mag", "test", "LMFP mag"),
    ("lmfp", "mag", "test_second", "LMFP mag, second set"),
    ("lmfp", "mag", "test_ood", "LMFP mag, out of range"),
    ("lmfp", "nm", "test", "LMFP nm"),
    ("lmfp", "nm", "test_second", "LMFP nm, second set"),
    ("lmfp", "nm", "test_ood", "LMFP nm, out of range"),
    ("acac", "pbe", "300 K", "acetylacetone, 25 PBE"),
    ("acac", "pbe", "600 K", "acetylacetone, 25 PBE, at 600 K"),
    ("acac_100", "pbe", "300 K", "acetylacetone, 100 PBE"),
    ("acac_100", "pbe", "600 K", "acetylacetone, 100 PBE, at 600 K"),
    ("mlearn_si", "pbe", "test", "silicon"),
)
METHODS = (  # method of uncertainty_*.json, its name in the figure, colour, marker
    ("calibrated", "mfgp", OURS, "D"),
    ("constant (left-out error)", "one standard deviation for all", "0.45", "|"),
    ("committee", "committee of eight", RIVALS, "x"),
)
STYLE = {"svg.hashsalt": "mfgp", "font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}


def main(out: Annotated[Path, typer.Option(help="Folder of the figures.")] = OUT) -> None:
    """Draw and write all figures."""
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, figure in (("accuracy", accuracy()), ("uncertainty", uncertainty())):
            with replacing(out / f"{name}.svg") as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None}, bbox_inches="tight")
            typer.echo(f"wrote {out / name}.svg")


def accuracy() -> Figure:
    """LMFP: errors against the number of magnetic structures, the same for all methods, and against the time of training."""
    runs = results("accuracy_lmfp")["runs"]
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    forces, energies, cost = figure.subplots(1, 3)
    for method, label, color, line, marker in ACCURACY:
        found = {r["n"]: r for r in runs if r["method"] == method and r["order"] == 0 and r["n"] in SIZES}
        rows = [found[n] for n in sorted(found)]  # of a method that was run again, the later
        style = {"color": color, "linestyle": line, "marker": marker, "markersize": 4.5, "linewidth": 1.3}
        if line == "--":
            style["markerfacecolor"] = "white"
        force, energy = ([1e3 * r[key] for r in rows] for key in ("force_mae", "energy_mae"))
        forces.plot([r["n"] for r in rows], force, label=label, **style)
        energies.plot([r["n"] for r in rows], energy, **style)
        cost.plot([r["cpu_seconds"] for r in rows], force, **style)
    titles = ("force MAE (meV/Å)", "energy MAE (meV/atom)", "force MAE (meV/Å) against time of training")
    for ax, title in zip((forces, energies, cost), titles, strict=True):
        ax.set_title(title, fontsize=9, loc="left")
        ax.set_xlabel("CPU-seconds, for n from left to right" if ax is cost else "magnetic structures trained on")
        plain_logarithmic(ax, SIZES if ax is not cost else (10, 100, 1000, 10000))
    for ax in (forces, cost):
        ax.set_yticks([40, 60, 100, 200, 400])
    energies.set_yticks([1, 2, 5, 10, 20])
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def uncertainty() -> Figure:
    """What of test labels lies in the 95 % interval, and the negative log likelihood of forces, by method and test set."""
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    energies, forces, likelihood = figure.subplots(1, 3, sharey=True)
    rows = {
        (name, r["level"], r["test"], r["method"]): r
        for name in dict.fromkeys(name for name, *_ in UNCERTAINTY)
        for r in results(f"uncertainty_{name}")["rows"]
    }
    places = range(len(UNCERTAINTY), 0, -1)
    for method, label, color, marker in METHODS:
        found = [rows[name, level, test, method] for name, level, test, _ in UNCERTAINTY]
        ours = [rows[name, level, test, METHODS[0][0]] for name, level, test, _ in UNCERTAINTY]
        style = {"color": color, "marker": marker, "linestyle": "none", "markersize": 5.5, "markeredgewidth": 1.5}
        energies.plot([100 * r["energy"]["coverage95"] for r in found], places, label=label, **style)
        forces.plot([100 * r["forces"]["coverage95"] for r in found], places, **style)
        worse = [r["forces"]["nll"] - o["forces"]["nll"] for r, o in zip(found, ours, strict=True)]
        likelihood.plot(worse, places, **style)
    for ax, kind in ((energies, "energy"), (forces, "forces")):
        ax.axvspan(93, 97, color=OURS, alpha=0.12, linewidth=0)
        ax.set_xlabel("% in the 95 % interval")
        ax.set_title("energies" if kind == "energy" else "force components", fontsize=9, loc="left")
    likelihood.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    likelihood.set_xlabel("nats a component; right is worse")
    likelihood.set_title("negative log likelihood of forces, over mfgp's", fontsize=9, loc="left")
    names = [
        f"{label} ({rows[name, level, test, METHODS[0][0]]['energy']['n']})" for name, level, test, label in UNCERTAINTY
    ]
    energies.set_yticks(list(places), names)
    for ax in (energies, forces, likelihood):
        ax.grid(axis="y", color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def plain_logarithmic(ax: Axes, ticks: tuple[int, ...]) -> None:
    """Both axes logarithmic, with plain numbers."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(ticks)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
