"""From raw labels, one file a level and start, to the files of the data set; structures that raw/ lacks stay as they are.

    python assemble.py raw ..

raw/gfn1.extxyz, raw/nm.extxyz, raw/mag_<start>.extxyz  ->  lmfp_<level>.extxyz (training and validation),
lmfp_<level>_test.extxyz (test, test_ood), lmfp_mag_first.extxyz, lmfp_mag_other_spin.extxyz, failed.jsonl
raw/differences_<level>.extxyz  ->  finite_differences.extxyz
raw/strains_mag.extxyz          ->  strained.extxyz
raw/doubled_<level>.extxyz      ->  doubled.extxyz

A magnetic label is the start of lowest energy. All energies are kept as `branch_energies` (eV), in the order of
`branch_starts`, and the cost of all starts is added up. Where the first start (held) was not the lowest by more than
SAME_BRANCH, its label goes to lmfp_mag_first.extxyz as well: what a single calculation would have given.

gfn1 and nm have the Gamma point alone: two cells along c see twice the k-points of one, and labels of them are of another
level, which goes to lmfp_<level>_other_k_points.extxyz (doubled.extxyz says by how much).

All DFT energies at the labels' cutoff are corrected for the number of plane waves of their cell (basis.py);
`basis_correction` (eV a cell) is what was added.
"""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.io import read, write
from basis import CUTOFF, correction
from cells import ONE_CELL
from starts import STARTS

SAME_BRANCH = 0.005  # eV a cell; the cycle wanders by as much on soft orbital modes
FIRST = "held"
GAMMA = ("gfn1", "nm")  # levels with the Gamma point alone
COSTS = ("wall_seconds", "cpu_seconds")


def main(
    raw: Annotated[Path, typer.Argument(help="Folder of raw labels.")],
    output: Annotated[Path, typer.Argument(help="Folder of the data set.")],
) -> None:
    """Merge raw labels, print what there is."""
    levels = {level: frames_of(raw / f"{level}.extxyz") for level in ("gfn1", "nm")}
    levels["mag"], first = lowest(raw)
    for level in GAMMA:
        apart = [a for a in levels[level].values() if len(a) > ONE_CELL]
        save(apart, output / f"lmfp_{level}_other_k_points.extxyz")
        levels[level] = {name: a for name, a in levels[level].items() if len(a) <= ONE_CELL}
    for level, frames in levels.items():
        for suffix, splits in (("", ("train", "validation")), ("_test", ("test", "test_second", "test_ood"))):
            path = output / f"lmfp_{level}{suffix}.extxyz{'.xz' if level == 'gfn1' else ''}"
            chosen = save([a for a in frames.values() if a.info["split"] in splits], path)
            print(f"{level}{suffix}:", {s: sum(a.info["split"] == s for a in chosen) for s in splits})
    save(first, output / "lmfp_mag_first.extxyz", levels["mag"])
    apart = every(raw, "mag*.other_spin.extxyz")
    save(apart, output / "lmfp_mag_other_spin.extxyz")
    save(pairs(every(raw, "differences_*.extxyz")), output / "finite_differences.extxyz")
    save(every(raw, "strains_*.extxyz"), output / "strained.extxyz")
    save(every(raw, "doubled_*.extxyz"), output / "doubled.extxyz")
    failures = [line for path in sorted(raw.glob("*.failed.jsonl")) for line in path.read_text().splitlines()]
    path = output / "failed.jsonl"
    before = path.read_text().splitlines() if path.exists() else []
    path.write_text("".join(f"{line}\n" for line in dict.fromkeys([*before, *failures])))
    for start in STARTS[1:]:
        print(against_the_others(start, frames_of(raw / f"mag_{start}.extxyz"), levels["mag"], failures))
    lost = sorted({json.loads(line)["structure_id"] for line in failures} - set(levels["mag"]))
    print(f"first answers that were replaced: {len(first)}; another spin state: {len(apart)}")
    print(f"calculations that failed: {len(failures)}; structures without a magnetic label for it: {lost}")
    seconds = [a.info.get("cpu_seconds", 0.0) for a in every(raw, "*.extxyz")]
    seconds += [json.loads(line).get("cpu_seconds", 0.0) for line in failures]
    print(f"CPU hours of everything: {sum(seconds) / 3600:.1f}")


def pairs(copies: list[Atoms]) -> list[Atoms]:
    """Displaced copies of which the opposite one is there too."""

    def key(a: Atoms, sign: int) -> tuple[str, str, int, int, float]:
        return a.info["fidelity"], a.info["of"], int(a.info["atom"]), int(a.info["axis"]), sign * float(a.info["step"])

    there = {key(a, 1) for a in copies}
    return [a for a in copies if key(a, -1) in there]


def every(raw: Path, pattern: str) -> list[Atoms]:
    """Labels of the files of that name, their energies corrected for the number of plane waves."""
    frames = [a for path in sorted(raw.glob(pattern)) for a in read(path, ":")]
    for a in frames:
        i = a.info
        if i.get("fidelity") in ("nm", "mag") and "basis_cell" not in i and i.get("cutoff", CUTOFF) == CUTOFF:
            i["basis_correction"] = round(correction(a, i["fidelity"]), 6)
            i["energy_sigma0"] = round(i["energy_sigma0"] + i["basis_correction"], 6)
            a.calc.results["energy"] = a.get_potential_energy() + i["basis_correction"]
            a.calc.results.pop("free_energy", None)
    return frames


def against_the_others(start: str, found: dict[str, Atoms], chosen: dict[str, Atoms], failures: list[str]) -> str:
    """Where a start ended, against the lowest of the other starts of the structure."""
    gaps, forces = [], []
    for name, a in found.items():
        starts, energies = chosen[name].info["branch_starts"].split(","), chosen[name].info["branch_energies"]
        others = [e for s, e in zip(starts, energies, strict=True) if s != start]
        if others:
            gaps.append(a.get_potential_energy() - min(others))  # eV a cell
        if chosen[name].info["start"] != start:
            forces.append(float(np.sqrt(((a.get_forces() - chosen[name].get_forces()) ** 2).mean())))  # eV/Å
    gap = np.array(gaps)
    lost = sum(json.loads(line)["start"] == start for line in failures)
    text = f"{start}: {len(gap)} with another start; lower {(gap < -SAME_BRANCH).sum()}, same branch "
    text += f"{(np.abs(gap) <= SAME_BRANCH).sum()}, higher {(gap > SAME_BRANCH).sum()}; {lost} did not converge"
    if len(gap) and forces:
        text += f"; energies {1e3 * np.median(np.abs(gap)):.1f} meV a cell apart (median, at most "
        text += f"{1e3 * np.abs(gap).max():.1f}), forces {1e3 * np.median(forces):.1f} meV/Å rms from the label's "
        text += f"(median, at most {1e3 * max(forces):.1f})"
    return text


def frames_of(path: Path) -> dict[str, Atoms]:
    """Frames by structure_id, sorted by it."""
    frames = {a.info["structure_id"]: a for a in every(path.parent, path.name)}
    return dict(sorted(frames.items()))


def lowest(raw: Path) -> tuple[dict[str, Atoms], list[Atoms]]:
    """The label of lowest energy of every magnetic structure, and the first answers that it replaced."""
    labels = {start: frames_of(raw / f"mag_{start}.extxyz") for start in STARTS}
    chosen, replaced = {}, []
    for name in sorted({name for frames in labels.values() for name in frames}):
        found = {start: frames[name] for start, frames in labels.items() if name in frames}
        energies = {start: float(a.get_potential_energy()) for start, a in found.items()}
        best = min(energies, key=energies.__getitem__)
        if FIRST in found and energies[FIRST] - energies[best] <= SAME_BRANCH:
            best = FIRST
        label = found[best].copy()
        label.calc = found[best].calc
        label.info["branch_starts"] = ",".join(found)
        label.info["branch_energies"] = np.array([round(e, 6) for e in energies.values()])
        for cost in COSTS:
            label.info[cost] = round(float(sum(a.info[cost] for a in found.values())), 1)
        chosen[name] = label
        if FIRST in found and best != FIRST:
            replaced.append(found[FIRST])
    return chosen, replaced


def save(frames: list[Atoms], path: Path, replaced: Collection[str] = ()) -> list[Atoms]:
    """Write the frames in place of those of the same id and level that the file holds, and of the ids `replaced`."""

    def key(a: Atoms) -> tuple[str, str]:
        return a.info["structure_id"], a.info.get("fidelity", "")

    new = {key(a) for a in frames}
    kept = [a for a in written(path) if key(a) not in new and key(a)[0] not in replaced]
    found = sorted([*kept, *frames], key=key)
    if frames or replaced:
        part = path.with_name(f"part_{path.name}")
        write(part, found, format="extxyz")
        part.replace(path)
    return found


def written(path: Path) -> list[Atoms]:
    """Frames of a file of the data set, packed or not; ASE alone would unpack it again for each of them."""
    if not path.exists():
        return []
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
        return read(io.StringIO(file.read()), ":", format="extxyz")


if __name__ == "__main__":
    typer.run(main)
