"""Check the LMFP data and draw them: labels, units, duplicates, spin states, electronic branches, cost.

    python examples/lmfp/check.py --out out/lmfp_check

Prints what was found, writes one page of plots, and ends with exit code 1 if anything is wrong with the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from making.cells import MOMENTS, ONE_CELL, oxidation_states, starting_moments, states_of_moments
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from mfgp import DataError, read_frames
from mfgp.base.console import correlation_table, finding_lines, say, stdout
from mfgp.data.reading import read_structures
from mfgp.datasets import LEVELS, LMFP, SPLITS, load_lmfp
from mfgp.doctor import examine
from mfgp.doctor.labels import composition_residual
from mfgp.frames import FrameSet
from mfgp.report import write_figure

Data = dict[str, dict[str, list[Atoms]]]  # level -> split -> structures
NEAR_DUPLICATE = 0.05  # Å rms
SAME_BRANCH = 0.005  # eV a cell
SAME_CELL_ENERGY, SAME_CELL_FORCE = 0.002, 0.02  # eV/atom, eV/Å rms
LOST_SPIN = 0.9  # Bohr magnetons below the formal moment
SHARED_ELECTRON = 0.05  # Bohr magnetons of the cell from the formal moment
GRADIENT_TOLERANCE = {"gfn1": 0.005, "nm": 0.02, "mag": 0.04}  # eV/Å; the data card has the noise measured before
console = stdout()


def main(
    out: Annotated[Path, typer.Option(help="Where the plots go.")] = Path("out/lmfp_check"),
    directory: Annotated[Path, typer.Option(help="Folder of the data.")] = LMFP,
) -> None:
    """Check everything, then draw the page."""
    data = {level: dict(splits_of(level, directory)) for level in LEVELS}
    console.print(counts(data))
    problems = [
        *splits_apart(data),
        *partners(data, directory),
        *cells(data, directory / "doubled.extxyz"),
        *tags(data),
        *near_duplicates(data["mag"]),
        *spin_states(data["mag"]),
        *branches(data["mag"], directory / "lmfp_mag_first.extxyz"),
        *gradients(directory / "finite_differences.extxyz", data),
    ]
    training = read_frames({level: data[level]["train"] for level in LEVELS})
    report = examine(training)
    for text, style in finding_lines(report):
        say(console, text, style)
    console.print(correlation_table(report.correlations))
    problems += [f.message for f in report.of("error")]
    out.mkdir(parents=True, exist_ok=True)
    path = write_figure(page(data, training), out / "lmfp.png")
    console.print(f"plots: {path}")
    for problem in problems:
        say(console, f"problem: {problem}", "red")
    console.print(f"{len(problems)} problem(s)")
    raise typer.Exit(1 if problems else 0)


def splits_of(level: str, directory: Path) -> Iterator[tuple[str, list[Atoms]]]:
    for split in SPLITS:
        try:
            yield split, load_lmfp(level, split, directory)
        except DataError as error:  # a file that is not there yet is an empty split, said so
            console.print(f"[yellow]{error}[/yellow]")
            yield split, []


def counts(data: Data) -> Table:
    table = Table("level", *SPLITS, "median CPU s", "sum CPU h", title="structures")
    for level, splits in data.items():
        cost = np.array([a.info["cpu_seconds"] for frames in splits.values() for a in frames])
        table.add_row(
            level,
            *(str(len(splits[s])) for s in SPLITS),
            f"{np.median(cost):.1f}" if len(cost) else "",
            f"{cost.sum() / 3600:.2f}",
        )
    return table


def splits_apart(data: Data) -> Iterator[str]:
    """No structure is in two splits, at any level."""
    home: dict[str, str] = {}
    for splits in data.values():
        for split, frames in splits.items():
            for a in frames:
                name = a.info["structure_id"]
                if home.setdefault(name, split) != split:
                    yield f"{name} is in {home[name]} and in {split}"


def partners(data: Data, directory: Path) -> Iterator[str]:
    """Every structure has its label at each cheaper level, at the same positions, but for those of other k-points."""
    for cheap, dear in pairwise(LEVELS):
        path = directory / f"lmfp_{cheap}_other_k_points.extxyz"
        apart = {a.info["structure_id"] for a in read_structures(path)} if path.exists() else set()
        for split in SPLITS:
            below = {a.info["structure_id"]: a for a in data[cheap][split]}
            for a in data[dear][split]:
                name = a.info["structure_id"]
                if name in apart:
                    continue
                if name not in below:
                    yield f"{name} ({split}) has a {dear} label and none at {cheap}"
                elif np.abs(below[name].positions - a.positions).max() > 1e-6:
                    yield f"{name}: {cheap} and {dear} labels are of different positions"


def by_id(data: Data) -> dict[tuple[str, str], Atoms]:
    """Structures by level and id."""
    return {
        (level, a.info["structure_id"]): a for level, splits in data.items() for found in splits.values() for a in found
    }


def cells(data: Data, path: Path) -> Iterator[str]:
    """Structures twice, side by side (`of` in info), against themselves: what a second cell changes is k-points.

    A level that it changes has no label of more than one cell.
    """
    labels = by_id(data)
    if not path.exists():
        return
    table = Table("level", "structure", "energy, meV/atom", "forces, meV/Å rms", title="two cells less one")
    changed = set()
    for a in read_structures(path):
        level, one = a.info["fidelity"], labels[a.info["fidelity"], a.info["of"]]
        energy = (a.get_potential_energy() - 2 * one.get_potential_energy()) / len(a)
        force = float(np.sqrt(((a.get_forces() - np.tile(one.get_forces(), (2, 1))) ** 2).mean()))
        table.add_row(level, a.info["of"], f"{1e3 * energy:+.1f}", f"{1e3 * force:.0f}")
        if abs(energy) > SAME_CELL_ENERGY or force > SAME_CELL_FORCE:
            changed.add(level)
    console.print(table)
    for level in sorted(changed):
        for a in (a for found in data[level].values() for a in found):
            if len(a) > ONE_CELL:
                yield f"{a.info['structure_id']} at {level}: more than one cell, so k-points that no other label has"


def tags(data: Data) -> Iterator[str]:
    for level, splits in data.items():
        for a in (a for frames in splits.values() for a in frames):
            if a.info["fidelity"] != level or not a.info["converged"]:
                yield f"{a.info['structure_id']} in the {level} file: {a.info['fidelity']}, {a.info['converged']=}"


def near_duplicates(splits: dict[str, list[Atoms]]) -> Iterator[str]:
    """Structures of one variant whose atoms are within NEAR_DUPLICATE rms of each other, cells aside."""
    frames = [(split, a) for split, found in splits.items() for a in found]
    closest = np.inf
    for i, (split, a) in enumerate(frames):
        for other, b in frames[:i]:
            if a.info["variant"] != b.info["variant"]:
                continue
            shift = a.get_scaled_positions() - b.get_scaled_positions()
            shift = (shift - np.round(shift)) @ a.cell.array  # [atom, 3] Å
            distance = float(np.sqrt(((shift - shift.mean(0)) ** 2).sum(1).mean()))
            closest = min(closest, distance)
            if distance < NEAR_DUPLICATE:
                names = f"{a.info['structure_id']} ({split}) and {b.info['structure_id']} ({other})"
                yield f"{names} are {distance:.3f} Å rms apart"
    console.print(f"closest pair of magnetic structures: {closest:.3f} Å rms")


@dataclass(frozen=True)
class Site:
    kind: str
    moment: float
    formal: float


def sites(frames: Iterable[Atoms]) -> list[Site]:
    """Every metal: species and formal charge, moment in its sphere, formal moment (Bohr magnetons)."""
    out = []
    for a in frames:
        moments = a.get_magnetic_moments()
        charges = states_of_moments(a, moments)
        for symbol, charge, moment in zip(a.symbols, charges, moments, strict=True):
            if (symbol, int(charge)) in MOMENTS:
                out.append(Site(f"{symbol}{charge}+", abs(float(moment)), MOMENTS[symbol, int(charge)]))
    return out


def spin_states(splits: dict[str, list[Atoms]]) -> Iterator[str]:
    """Moments by site; a structure whose moments are not high spin should not be in the file."""
    found = sites(a for frames in splits.values() for a in frames)
    table = Table("site", "n", "mean", "lowest", "highest", "formal", title="moments in the spheres, Bohr magnetons")
    for kind in sorted({s.kind for s in found}):
        m = np.array([s.moment for s in found if s.kind == kind])
        formal = next(s.formal for s in found if s.kind == kind)
        table.add_row(kind, str(len(m)), f"{m.mean():.2f}", f"{m.min():.2f}", f"{m.max():.2f}", f"{formal:.0f}")
    console.print(table)
    for a in (a for frames in splits.values() for a in frames):
        if any(s.moment < s.formal - LOST_SPIN for s in sites([a])):
            yield f"{a.info['structure_id']}: a metal is not high spin"
        if abs(a.info["total_magmom"] - starting_moments(a).sum()) > SHARED_ELECTRON:
            yield f"{a.info['structure_id']}: the smearing left an electron between two metals"


def branches(splits: dict[str, list[Atoms]], first: Path) -> Iterator[str]:
    """How often the first start did not end lowest, and what the difference was."""
    replaced = {a.info["structure_id"]: a for a in read_structures(first)} if first.exists() else {}
    frames = [a for found in splits.values() for a in found]
    tried = [a for a in frames if np.size(a.info.get("branch_energies", 0.0)) > 1]
    gaps, rms = [], []
    for a in frames:
        energies = np.atleast_1d(a.info["branch_energies"])
        if abs(energies.min() - a.get_potential_energy()) > 0.006:
            yield f"{a.info['structure_id']}: not the lowest of its branches"
        if (old := replaced.get(a.info["structure_id"])) is not None:
            gaps.append(old.get_potential_energy() - a.get_potential_energy())
            rms.append(np.sqrt(((old.get_forces() - a.get_forces()) ** 2).mean()))
    without = [a for a in frames if "Fe" in a.symbols and a not in tried and has_iron_2(a)]
    share = f"{100 * len(gaps) / len(tried):.0f} %" if tried else "none"
    console.print(
        f"electronic branches: {len(tried)} structures from two or more starts, first answer metastable in {len(gaps)} "
        f"({share})"
        + (
            f", median {1e3 * np.median(gaps):.0f} meV a cell (at most {1e3 * max(gaps):.0f}) and "
            f"{1e3 * np.median(rms):.0f} meV/Å rms (at most {1e3 * max(rms):.0f})"
            if gaps
            else ""
        )
        + f"; {len(without)} structures with Fe2+ from one start only"
    )
    console.print(starts(tried))


def starts(tried: list[Atoms]) -> Table:
    """Where each start of the SCF cycle ended against the lowest of the others."""
    gaps: dict[str, list[float]] = {}
    for a in tried:
        names, values = a.info["branch_starts"].split(","), np.atleast_1d(a.info["branch_energies"])
        for k, name in enumerate(names):
            gaps.setdefault(name, []).append(values[k] - np.delete(values, k).min())
    table = Table(
        "start", "n", "lower", "same", "higher", "median gap", title=f"same: within {1e3 * SAME_BRANCH:.0f} meV a cell"
    )
    for name, found in gaps.items():
        gap = np.array(found)
        sums = (gap < -SAME_BRANCH).sum(), (np.abs(gap) <= SAME_BRANCH).sum(), (gap > SAME_BRANCH).sum()
        table.add_row(name, str(len(gap)), *map(str, sums), f"{1e3 * np.median(np.abs(gap)):.1f} meV")
    return table


def has_iron_2(atoms: Atoms) -> bool:
    return any(s == "Fe" and q == 2 for s, q in zip(atoms.symbols, oxidation_states(atoms), strict=True))


def gradients(path: Path, data: Data) -> Iterator[str]:
    """Stored forces against central differences of energies of displaced copies (`of`, `atom`, `axis`, `step` in info)."""
    if not path.exists():
        return
    labels = by_id(data)
    energies: dict[tuple[str, str, int, int, float], dict[int, float]] = {}
    for a in read_structures(path):
        i = a.info
        key = (i["fidelity"], i["of"], int(i["atom"]), int(i["axis"]), abs(float(i["step"])))
        energies.setdefault(key, {})[1 if i["step"] > 0 else -1] = a.get_potential_energy()
    table = Table("level", "structure", "force", "stored", "from energies", title="forces, eV/Å")
    for (level, name, atom, axis, step), pair in energies.items():
        if len(pair) < 2:
            yield f"{level} {name}, atom {atom} along {'xyz'[axis]}: one of the two displaced copies is missing"
            continue
        stored = labels[level, name].get_forces()[atom, axis]
        found = -(pair[1] - pair[-1]) / (2 * step)
        label = f"{labels[level, name].symbols[atom]}{atom} {'xyz'[axis]}"
        table.add_row(level, name, label, f"{stored:.4f}", f"{found:.4f}")
        if abs(stored - found) > GRADIENT_TOLERANCE[level]:
            yield f"{level} {name}, {label}: force {stored:.4f}, energies give {found:.4f} eV/Å"
    console.print(table)


def page(data: Data, training: FrameSet) -> Figure:
    """Energies, forces, correlation between levels, moments, branches and cost on one page."""
    figure = Figure(figsize=(15, 13), layout="constrained")
    axes = figure.subplots(3, 3)
    energies(axes[0, 0], training)
    forces(axes[0, 1], data)
    strains(axes[0, 2], data)
    for ax, low in zip((axes[1, 0], axes[1, 1]), ("gfn1", "nm"), strict=True):
        correlation(ax, data, low, "mag")
    correlations(axes[1, 2], data)
    moments(axes[2, 0], data["mag"])
    gaps(axes[2, 1], data["mag"])
    costs(axes[2, 2], data)
    return figure


def energies(ax: Axes, training: FrameSet) -> None:
    for level in training.levels:
        frames = [f for f in training.of(level) if f.energy is not None]
        ax.hist(1e3 * composition_residual(frames), bins=40, histtype="step", density=True, label=level)
    ax.set(xlabel="energy less a fit of the composition, meV/atom", ylabel="density", title="energies, training")
    ax.legend()


def forces(ax: Axes, data: Data) -> None:
    for level, splits in data.items():
        if splits["train"]:
            f = np.concatenate([a.get_forces().ravel() for a in splits["train"]])
            ax.hist(np.abs(f), bins=np.linspace(0, 6, 80), histtype="step", density=True, label=level)
    ax.set(xlabel="|force component|, eV/Å", ylabel="density", yscale="log", title="forces, training")
    ax.legend()


def strains(ax: Axes, data: Data) -> None:
    for split in SPLITS:
        found = data["mag"][split]
        x, t = [100 * a.info["strain"] for a in found], [a.info["md_temperature"] for a in found]
        ax.plot(x, t, ".", label=f"{split} ({len(found)})")
    ax.set(xlabel="volume strain, %", ylabel="temperature of the snapshot, K", title="magnetic structures")
    ax.legend()


def pairs(data: Data, low: str, high: str) -> Iterator[tuple[Atoms, Atoms]]:
    below = {a.info["structure_id"]: a for a in data[low]["train"]}
    for a in data[high]["train"]:
        if a.info["structure_id"] in below:
            yield below[a.info["structure_id"]], a


def correlation(ax: Axes, data: Data, low: str, high: str) -> None:
    found = list(pairs(data, low, high))
    for symbol in ("O", "P", "Li", "Fe", "Mn"):
        x = [b.get_forces()[b.symbols == symbol].ravel() for b, _ in found]
        y = [a.get_forces()[a.symbols == symbol].ravel() for _, a in found]
        if found:
            ax.plot(np.concatenate(x), np.concatenate(y), ".", ms=2, alpha=0.4, label=symbol)
    ax.axline((0, 0), slope=1, color="0.5", lw=0.8)
    ax.set(
        xlabel=f"force at {low}, eV/Å", ylabel=f"force at {high}, eV/Å", title=f"{low} and {high} (n = {len(found)})"
    )
    ax.legend(markerscale=4)


def correlations(ax: Axes, data: Data) -> None:
    species = ("O", "P", "Li", "Fe", "Mn")
    for k, (low, high) in enumerate((("gfn1", "nm"), ("gfn1", "mag"), ("nm", "mag"))):
        found = list(pairs(data, low, high))
        r = []
        for symbol in species:
            both = [
                (b.get_forces()[b.symbols == symbol].ravel(), a.get_forces()[a.symbols == symbol].ravel())
                for b, a in found
            ]
            r.append(np.corrcoef(*(np.concatenate(s) for s in zip(*both, strict=True)))[0, 1] if both else np.nan)
        ax.bar(np.arange(len(species)) + 0.27 * (k - 1), r, 0.25, label=f"{low}, {high}")
    ax.set(xticks=range(len(species)), xticklabels=species, ylabel="correlation of force components", ylim=(0, 1))
    ax.set_title("correlation between levels, training")
    ax.legend(loc="lower right")


def moments(ax: Axes, splits: dict[str, list[Atoms]]) -> None:
    found = sites(a for frames in splits.values() for a in frames)
    for kind in sorted({s.kind for s in found}):
        ax.hist([s.moment for s in found if s.kind == kind], bins=np.linspace(3, 5, 60), histtype="step", label=kind)
    ax.set(xlabel="moment in the sphere, Bohr magnetons", ylabel="sites", yscale="log", title="spin state by site")
    ax.legend()


def gaps(ax: Axes, splits: dict[str, list[Atoms]]) -> None:
    found = []
    for a in (a for frames in splits.values() for a in frames):
        starts, values = a.info["branch_starts"].split(","), np.atleast_1d(a.info["branch_energies"])
        if len(starts) > 1 and "held" in starts:
            found.append(1e3 * (values[starts.index("held")] - np.delete(values, starts.index("held")).min()))
    ax.hist(found, bins=30)
    ax.axvline(0, color="0.5", lw=0.8)
    ax.set(xlabel="energy of start `held` less the lowest other, meV a cell", ylabel="structures")
    ax.set_title(f"electronic branches (n = {len(found)})")


def costs(ax: Axes, data: Data) -> None:
    for level, splits in data.items():
        cost = [a.info["cpu_seconds"] for frames in splits.values() for a in frames]
        if cost:
            ax.hist(cost, bins=np.geomspace(0.5, 1000, 60), histtype="step", label=level)
    ax.set(
        xlabel="CPU seconds a label, all starts and attempts", ylabel="labels", xscale="log", yscale="log", title="cost"
    )
    ax.legend()


if __name__ == "__main__":
    typer.run(main)
