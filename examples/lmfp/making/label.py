"""Label structures at one level of theory, from one start; resumable, never two of a kind at once.

    OMP_NUM_THREADS=1 python3 label.py nm structures.extxyz -o raw/nm.extxyz
    OMP_NUM_THREADS=1 python3 label.py mag structures.extxyz -o raw/mag_held.extxyz --start held --every 3
    OMP_NUM_THREADS=1 python3 label.py mag raw/mag_held.extxyz -o raw/mag_free.extxyz --start free

Ids that the output, its .failed.jsonl or its .other_spin.extxyz holds are skipped. A calculation that did not converge goes
to the failures, one that ended in another spin state to the file of those, never to the output; where the smearing left
an electron between two metals of high spin, it is repeated with the total moment held. nm and mag need Debian's
gpaw 22.8 and that system's Python and ASE (so argparse, not typer); gfn1 needs tblite. A file named STOP beside the output
ends the run after the calculation in progress.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import re
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from cells import oxidation_states
from levels import LEVELS, SHARED_ELECTRON, attempts, calculator, lost_spin, shared_electron
from starts import STARTS

ABOUT = (
    "structure_id",
    "variant",
    "composition",
    "temperature",
    "md_temperature",
    "strain",
    "split",
    "of",
    "atom",
    "axis",
    "step",
    "cutoff",
    "basis_cell",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("level", choices=LEVELS)
    parser.add_argument("structures", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--start", choices=STARTS, default="held", help="of the SCF cycle of Fe2+, mag only")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th structure of the list")
    parser.add_argument("--with-iron-2", action="store_true", help="only structures that hold Fe2+")
    parser.add_argument("--match", default="", help="only structures whose id matches this regular expression")
    parser.add_argument("--limit", type=int, default=10**9, help="stop after so many calculations")
    parser.add_argument("--dry-run", action="store_true", help="say what would be calculated")
    o = parser.parse_args()
    chosen = [a for path in o.structures for a in read(path, ":") if re.search(o.match, a.info["structure_id"])]
    chosen = [a for a in chosen[:: o.every] if not o.with_iron_2 or has_iron_2(a)]
    failures = o.output.with_suffix(".failed.jsonl")
    o.output.parent.mkdir(parents=True, exist_ok=True)
    with open(o.output.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a second run of the same output ends here
        done = set(labelled(o.output)) | set(labelled(other_spin(o.output))) | failed(failures)
        todo = [a for a in chosen if a.info["structure_id"] not in done][: o.limit]
        print(f"{o.level}: {len(chosen)} structures, {len(todo)} to calculate", flush=True)
        for atoms in [] if o.dry_run else todo:
            if (o.output.parent / "STOP").exists():
                break
            label_one(atoms, o.level, o.start, o.output, failures)


def has_iron_2(atoms: Atoms) -> bool:
    return any(s == "Fe" and q == 2 for s, q in zip(atoms.symbols, oxidation_states(atoms)))  # noqa: B905


def label_one(atoms: Atoms, level: str, start: str, output: Path, failures: Path) -> None:
    """Append the label of a structure to the output, or why there is none to the failures."""
    name, wall, cpu, why = atoms.info["structure_id"], time.time(), time.process_time(), ""
    for attempt in range(1, attempts(level, start) + 1):
        try:
            found = [label(atoms, level, start, attempt)]
            if SHARED_ELECTRON in found[0].info.get("spin_state", ""):
                found.append(label(atoms, level, start, attempt, hold_moment=True))
            last = found[-1].info  # its cost includes failed attempts and a first answer that it replaces
            last["wall_seconds"] = round(time.time() - wall, 1)
            last["cpu_seconds"] = round(time.process_time() - cpu, 1)
            for out in found:
                append(output if "spin_state" not in out.info else other_spin(output), out)
                energy = f"{out.get_potential_energy():.4f} eV"
                print(level, start, name, energy, out.info.get("spin_state", ""), flush=True)
            return
        except Exception as error:  # recorded below; a crash of one calculation must not stop the rest
            why = f"{type(error).__name__}: {error}".strip()[:300]
            if not re.search("converge", why, re.IGNORECASE):
                break
    record = {"structure_id": name, "level": level, "start": start, "why": why}
    record.update(wall_seconds=round(time.time() - wall, 1), cpu_seconds=round(time.process_time() - cpu, 1))
    with failures.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(level, start, name, "FAILED", why, flush=True)


def label(atoms: Atoms, level: str, start: str, attempt: int, hold_moment: bool = False) -> Atoms:
    """The structure with energy (the free energy that the forces belong to), forces, and stress or magmoms."""
    atoms = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell.array, pbc=True, info=dict(atoms.info))
    about = {k: atoms.info[k] for k in ABOUT if k in atoms.info}
    atoms.info = {}
    atoms.calc = calculator(level, atoms, start, attempt, about, hold_moment)
    results = {
        "energy": float(atoms.get_potential_energy(force_consistent=level != "gfn1")),
        "forces": np.array(atoms.get_forces()),
    }
    about.update(fidelity=level, converged=True, attempt=attempt)
    if level == "gfn1":
        results["stress"] = np.array(atoms.get_stress())
    else:
        about["energy_sigma0"] = round(float(atoms.get_potential_energy()), 6)
        about["scf_iterations"] = int(atoms.calc.get_number_of_iterations())
        if "cutoff" in about:  # a strained copy: GPAW's stress, that of held plane waves (strain.py)
            about["stress_held"] = np.array(atoms.get_stress())
    if level == "mag":
        results["magmoms"] = np.array(atoms.get_magnetic_moments())
        about["total_magmom"] = round(float(atoms.get_magnetic_moment()), 4)
        about["start"] = start
        if hold_moment:
            about["total_moment_held"] = True
        wrong = lost_spin(atoms, results["magmoms"]) or shared_electron(atoms, about["total_magmom"])
        if wrong:
            about["spin_state"] = wrong
    if not all(np.isfinite(r).all() for r in results.values()):
        raise RuntimeError("a label is not finite")
    out = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell.array, pbc=True, info=about)
    out.calc = SinglePointCalculator(out, **results)
    return out


def labelled(path: Path) -> list[str]:
    """Ids in an output; a frame that a kill cut short is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    lines, ids, good, i = data.split(b"\n"), [], 0, 0
    while i < len(lines) and lines[i].strip().isdigit():
        frame = lines[i : i + int(lines[i]) + 2]
        if (
            i + len(frame) >= len(lines)
            or len(frame) < int(lines[i]) + 2
            or len({len(x.split()) for x in frame[2:]}) > 1
        ):
            break
        ids.append(re.search(rb'structure_id="?([^\s"]+)', frame[1]).group(1).decode())
        good += sum(len(x) + 1 for x in frame)
        i += len(frame)
    if good != len(data):
        print(f"cutting an incomplete frame off {path.name}", flush=True)
        with path.open("r+b") as file:
            file.truncate(good)
    return ids


def other_spin(output: Path) -> Path:
    return output.with_suffix(".other_spin.extxyz")


def failed(path: Path) -> set[str]:
    return {json.loads(line)["structure_id"] for line in path.read_text().splitlines()} if path.exists() else set()


def append(path: Path, atoms: Atoms) -> None:
    """One frame in one write, on the disk before it counts."""
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
