"""Does the doctor find labels that are wrong? Leave-one-label-out scores of training structures at two levels.

    python benchmarks/doctor.py                                  # LMFP: nm + mag
    python benchmarks/doctor.py --data PATH_TO_acac              # acetylacetone: 500 GFN1-xTB + 100 PBE molecules
    python benchmarks/doctor.py --baseline sevennet-l3i5         # LMFP, with a pretrained network below mag
    python benchmarks/doctor.py --baseline sevennet-l3i5 --dpa3 FILE     # and DPA-3 beside it (accuracy/dpa3.py)

spoiled      in every round two structures of each level are spoiled in the same way, the model is fitted to all structures,
             and the training labels are scored by it and by fits without the suspects (mfgp.doctor.rounds), as
             `mfgp doctor --model` does; `first look` is what the model itself says. Faults: energy off by
             +-0.2 eV, the force on one atom (above 0.5 eV/Å) with the wrong sign, a lower label given as a higher one or a
             higher label given as a lower one in its place. A fault is found where a label of its structure at that level is
             suspect. False alarms are suspects among the other structures, those that share a geometry with a fault left
             out: as structures with a suspect label, as labels, and as structures without those that the doctor names
             apart because their magnetic moments are suspect too (which it calls no wrong label; faults that it names so are
             counted, too). With --mixed all kinds of fault are in the data of every round.
as they are  suspects of a fit to the data without any fault, by name: what the other rounds will name again; and in closed
             form from its scores (mfgp.doctor.suspects) how large an error would be found in nine of ten places, and in
             which share of the structures an energy off by +-0.2 eV would, without and with the second look.
metastable   (LMFP) the first answers of lmfp_mag_first.extxyz are put back for labels that a second start put lower.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator

sys.path.append(str(Path(__file__).resolve().parent / "accuracy"))  # dpa3, ours

from common import machine, timed, write_result
from dpa3 import NAME as DPA3
from dpa3 import FrozenModel
from ours import columns
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.baselines.columns import make_baselines
from mfgp.config import load_config
from mfgp.data.reading import read_structures
from mfgp.data.single_point import structure_hash
from mfgp.datasets import LMFP, load_lmfp
from mfgp.doctor.fit import LIMITS, SECOND_LOOK, LabelScore
from mfgp.doctor.rounds import scores_without_suspects
from mfgp.doctor.suspects import findable, other_moments

KINDS = ("energy", "force sign", "level")
EACH = 2  # structures of a level and kind of fault, a round
ENERGY = 0.2  # eV a structure
STRONG = 0.5  # eV/Å
LABELS = Path.home() / ".cache" / "mfgp" / "doctor"  # of baselines, by a hash of the structure
N_PBE = 100
Frames = dict[str, list[Atoms]]  # by level, cheapest first; info["structure_id"] is that of the geometry


@dataclass(frozen=True)
class Scored:
    """Scores of energies and forces after fits without the suspects, those of the first model, and (level, structure) of
    those with a suspect moment."""

    scores: list[LabelScore]
    first: list[LabelScore]
    other: set[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """Labelled structures, isolated atoms that are never spoiled, settings, and calculators of baselines unknown to mfgp."""

    frames: Frames
    isolated: Frames
    config: FitConfig
    calculators: dict[str, Calculator] = field(default_factory=dict)

    @property
    def tagged(self) -> Frames:
        """The frames as they are."""
        return {level: [tagged(a, level) for a in frames] for level, frames in self.frames.items()}

    def scored(self, frames: Frames) -> Scored:
        """Scores by a model that was fitted to `frames` in place of its own, and by fits without the suspects."""
        read = read_frames({level: [*self.isolated[level], *found] for level, found in frames.items()})
        baselines = {b.name: b for b in make_baselines(self.config.baselines, self.calculators, cache_dir=LABELS)}
        model = MultiFidelityGP.fit(read, self.config, progress=False, baselines=baselines)
        scoring = scores_without_suspects(model, read)
        other = {(f.fidelity, str(f.atoms.info["structure_id"])) for f in other_moments(scoring.scores)}
        own, first = ([s for s in found if s.kind != "moment"] for found in (scoring.scores, scoring.first))
        return Scored(own, first, other)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of acetylacetone; LMFP without.")] = None,
    n_inducing: Annotated[int, typer.Option(help="Inducing points of the fits.")] = 1000,
    rounds: Annotated[
        int, typer.Option(help="Fits to spoiled data for each kind of fault; 0: only the data as they are.")
    ] = 8,
    mixed: Annotated[bool, typer.Option("--mixed", help="All kinds of fault in every round.")] = False,
    kind: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(KINDS)}; may be repeated.")] = None,
    baseline: Annotated[str, typer.Option(help="LMFP: a baseline from mag on, a name known to mfgp.")] = "",
    dpa3: Annotated[Path | None, typer.Option(help="LMFP: file with the weights of DPA-3, below mag too.")] = None,
    name: Annotated[str, typer.Option(help="Name of the JSON file; doctor[_acac][_BASELINE][_mixed].")] = "",
) -> None:
    """Spoil, fit, score; print and write which faults were found."""
    kinds = tuple(kind or KINDS)
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise typer.BadParameter(f"no kind of fault {', '.join(unknown)}; there are {', '.join(KINDS)}.")
    if (baseline or dpa3) and data is not None:
        raise typer.BadParameter("--baseline and --dpa3 are for LMFP, --data for acetylacetone: give one of them.")
    case = lmfp(n_inducing, baseline, dpa3) if data is None else acetylacetone(data, n_inducing)
    console, result = Console(), {}
    with timed() as timing:
        together = [kinds] if mixed else [(one,) for one in kinds]
        found = [spoiled_round(case, faults, seed) for faults in together for seed in range(rounds)]
        as_they_are = case.scored(case.tagged)
        result |= {"as_they_are": named_suspects(as_they_are.scores), "other_moments": sorted(as_they_are.other)}
        result["findable"] = {level: forecast(as_they_are.scores, level) for level in case.frames}
        if data is None and not kind:
            result["metastable"] = metastable(case)
    if found:
        result |= {"spoiled": summary(found), "energy_by_limit": by_limit(found), "false_alarms": named_alarms(found)}
        console.print(table(result["spoiled"]), *result["energy_by_limit"], result["false_alarms"])
    console.print(result["as_they_are"], result["other_moments"], result["findable"])
    console.print({k: v for k, v in result.get("metastable", {}).items() if k != "structures"})
    training = {level: len(f) for level, f in case.frames.items()}
    parameters = {"n_inducing": n_inducing, "rounds": rounds, "mixed": mixed, "each": EACH, "training": training}
    parameters |= {"kinds": kinds, "baselines": [b.name for b in case.config.baselines]}
    below = "".join(f"_{b.name}" for b in case.config.baselines)
    name = name or ("doctor" if data is None else "doctor_acac") + below + "_mixed" * mixed
    write_result(name, {"machine": machine(), **parameters, "cpu_seconds": timing.cpu, **result})


def lmfp(n_inducing: int, baseline: str = "", dpa3: Path | None = None) -> Case:
    """nm and mag, all training structures."""
    config = load_config(LMFP / "config.yaml", [f"model.n_inducing={n_inducing}"])
    below = columns(*(name for name in (baseline, DPA3 if dpa3 else "") if name), from_level="mag")
    frames = {level: load_lmfp(level, "train") for level in ("nm", "mag")}
    calculators = {} if dpa3 is None else {DPA3: FrozenModel(dpa3)}
    return Case(frames, {level: [] for level in frames}, config.model_copy(update={"baselines": below}), calculators)


def acetylacetone(folder: Path, n_inducing: int) -> Case:
    """GFN1-xTB and N_PBE molecules at PBE."""
    from acac import configuration, read_training

    read = read_training(folder)
    frames: Frames = {level: [] for level in read.levels}
    isolated: Frames = {level: [] for level in read.levels}
    for f in read:
        atoms = Atoms(f.atoms.symbols, f.atoms.positions, info={"structure_id": structure_hash(f.atoms)})
        atoms.calc = SinglePointCalculator(atoms, energy=f.energy, forces=f.forces)
        (isolated if f.isolated_atom else frames)[f.fidelity].append(atoms)
    top = read.levels[-1]
    return Case(frames | {top: frames[top][:N_PBE]}, isolated, configuration(n_inducing, {}))


def spoiled_round(case: Case, kinds: Sequence[str], seed: int) -> dict[str, Any]:
    """Faults of one round with whether they were found, and the false alarms by level."""
    rng = np.random.default_rng(seed)
    spoiled, faults = spoil(case.frames, kinds, rng)
    scored = case.scored(spoiled)
    scores, other = scored.scores, scored.other
    suspects, first = ({(s.frame.fidelity, identity(s)) for s in own if s.suspect} for own in (scores, scored.first))
    listed = {(s.frame.fidelity, identity(s)) for s in scores if s.second_look}
    touched = {fault["structure"] for fault in faults}
    for fault in faults:
        fault["found"] = (fault["level"], fault["structure"]) in suspects
        fault["found_first"] = (fault["level"], fault["structure"]) in first
        fault["second_look"] = (fault["level"], fault["structure"]) in listed
        fault["moments_too"] = fault["found"] and (fault["level"], fault["structure"]) in other
    alarms = {}
    for level in case.frames:
        untouched = {identity(s) for s in scores if s.frame.fidelity == level} - touched
        wrong = [s for s in scores if s.frame.fidelity == level and identity(s) in untouched]
        named = named_suspects(wrong).get(level, {})
        alarms[level] = {
            "structures": len(untouched),
            "suspects": named,
            "suspects_first": sorted(name for at, name in first if at == level and name in untouched),
            "other_moments": sorted(name for at, name in other if at == level and name in named),
            "moments_alone": sorted(name for at, name in other if at == level and name in untouched - set(named)),
            "labels": len(wrong),
            "suspect_labels": sum(s.suspect for s in wrong),
        }
    off = {(f["level"], f["structure"]) for f in faults if f["kind"] == "energy"}
    energies = [s for s in scores if s.kind == "energy"]
    return {
        "faults": faults,
        "false_alarms": alarms,
        "off": {
            level: [s.score for s in energies if (level, identity(s)) in off and s.frame.fidelity == level]
            for level in case.frames
        },
        "good": {
            level: [s.score for s in energies if identity(s) not in touched and s.frame.fidelity == level]
            for level in case.frames
        },
    }


def spoil(frames: Frames, kinds: Sequence[str], rng: np.random.Generator) -> tuple[Frames, list[dict[str, Any]]]:
    """The frames with EACH faults of every kind in `kinds` at every level, no structure twice, and a list of the faults."""
    out = {level: {a.info["structure_id"]: a for a in found} for level, found in frames.items()}
    low, high = frames
    taken: set[str] = set()
    faults: list[dict[str, Any]] = []

    def draw(level: str, allowed: Callable[[str], bool] = lambda name: True) -> list[str]:
        names = [name for name in out[level] if name not in taken and allowed(name)]
        chosen = rng.choice(names, EACH, replace=False).tolist()
        taken.update(chosen)
        return chosen

    for level in frames:
        if "energy" in kinds:
            for name in draw(level):
                out[level][name] = changed(out[level][name], energy=ENERGY * rng.choice([-1, 1]))
                faults.append({"kind": "energy", "level": level, "structure": name})
        if "force sign" in kinds:
            for name in draw(level, lambda name: strongest(out[level][name]) > STRONG):  # noqa: B023
                forces = np.linalg.norm(out[level][name].get_forces(), axis=1)
                atom = int(rng.choice(np.flatnonzero(forces > STRONG)))
                out[level][name] = changed(out[level][name], flip=atom)
                faults.append({"kind": "force sign", "level": level, "structure": name, "atom": atom})
    if "level" in kinds:
        for name in draw(low, lambda name: name not in out[high]):
            out[high][name] = out[low].pop(name)
            faults.append({"kind": "level", "level": high, "structure": name})
        for name in draw(high):
            out[low][name] = out[high].pop(name)
            faults.append({"kind": "level", "level": low, "structure": name})
    return {level: [tagged(a, level) for _, a in sorted(named.items())] for level, named in out.items()}, faults


def strongest(atoms: Atoms) -> float:
    """The largest force on an atom, eV/Å."""
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def changed(atoms: Atoms, energy: float = 0.0, flip: int | None = None) -> Atoms:
    """With the energy moved by so many eV, and the force on one atom turned round."""
    forces = atoms.get_forces().copy()
    if flip is not None:
        forces[flip] *= -1
    return with_labels(atoms, atoms.get_potential_energy() + energy, forces)


def with_labels(atoms: Atoms, energy: float, forces: np.ndarray) -> Atoms:
    """With this energy and these forces; moments stay."""
    out = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=dict(atoms.info))
    magmoms = atoms.calc.results.get("magmoms")
    out.calc = SinglePointCalculator(out, energy=energy, forces=forces, magmoms=magmoms)
    return out


def tagged(atoms: Atoms, level: str) -> Atoms:
    """With the label's level as its file says it."""
    out = with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces())
    out.info["fidelity"] = level
    return out


def identity(score: LabelScore) -> str:
    return str(score.frame.atoms.info["structure_id"])


def metastable(case: Case) -> dict[str, Any]:
    """Ranks and scores of first answers among the mag labels, when they take the place of the lower ones."""
    first = {a.info["structure_id"]: a for a in read_structures(LMFP / "lmfp_mag_first.extxyz")}
    labels = {a.info["structure_id"]: a for a in case.frames["mag"]}
    replaced = sorted(set(first) & set(labels))
    mag = [tagged(first.get(name, a), "mag") for name, a in labels.items()]
    scores = [s for s in case.scored({**case.frames, "mag": mag}).scores if s.frame.fidelity == "mag"]
    energy = {identity(s): s.score for s in scores if s.kind == "energy"}
    force = {name: max(s.score for s in scores if s.kind == "forces" and identity(s) == name) for name in energy}
    rows = [
        {
            "structure": name,
            "higher_by": first[name].get_potential_energy() - labels[name].get_potential_energy(),  # eV a cell
            "forces_rms": float(np.sqrt(((first[name].get_forces() - labels[name].get_forces()) ** 2).mean())),  # eV/Å
            "energy_score": energy[name],
            "force_score": force[name],
            "suspect": any(s.suspect for s in scores if identity(s) == name),
        }
        for name in replaced
        if name in energy
    ]
    others = [name for name in energy if name not in first]
    return {
        "replaced": len(rows),
        "found": sum(r["suspect"] for r in rows),
        "others": len(others),
        "suspects_among_others": len({identity(s) for s in scores if s.suspect} & set(others)),
        "ranked_above_by_energy": ranked_above([r["energy_score"] for r in rows], [energy[n] for n in others]),
        "ranked_above_by_force": ranked_above([r["force_score"] for r in rows], [force[n] for n in others]),
        "spearman_of_gap_and_energy_score": float(
            spearmanr([r["higher_by"] for r in rows], [r["energy_score"] for r in rows])[0]
        ),
        "structures": rows,
    }


def ranked_above(wrong: Sequence[float], good: Sequence[float]) -> float:
    """Probability that a wrong label scores higher than a good one (area under the ROC curve; 0.5 is chance)."""
    return float(np.mean(np.asarray(wrong)[:, None] > np.asarray(good)[None]))


def named_suspects(scores: Sequence[LabelScore]) -> dict[str, dict[str, list[str]]]:
    """Kinds of label that are suspect by level and structure."""
    out: dict[str, dict[str, set[str]]] = {s.frame.fidelity: {} for s in scores}
    for s in scores:
        if s.suspect:
            out[s.frame.fidelity].setdefault(identity(s), set()).add(s.kind)
    return {level: {name: sorted(kinds) for name, kinds in sorted(named.items())} for level, named in out.items()}


def named_alarms(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Rounds in which each structure without a fault was suspect, by level and "structure, kind"."""
    out = {}
    for level in found[0]["false_alarms"]:
        alarms = [one["false_alarms"][level]["suspects"] for one in found]
        out[level] = dict(Counter(f"{name}, {kind}" for one in alarms for name, kinds in one.items() for kind in kinds))
    return out


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares found by kind and level, and of false alarms by level, over all rounds."""
    faults = [fault for one in found for fault in one["faults"]]
    out: list[dict[str, Any]] = []
    for kind, level in dict.fromkeys((f["kind"], f["level"]) for f in faults):
        here = [f for f in faults if (f["kind"], f["level"]) == (kind, level)]
        counts = {n: sum(f[n] for f in here) for n in ("found", "found_first", "moments_too", "second_look")}
        out.append({"what": kind, "level": level, "n": len(here), **counts})
    for level in found[0]["false_alarms"]:
        alarms = [one["false_alarms"][level] for one in found]
        named, other, alone = (
            sum(len(a[key]) for a in alarms) for key in ("suspects", "other_moments", "moments_alone")
        )
        n, first = sum(a["structures"] for a in alarms), sum(len(a["suspects_first"]) for a in alarms)
        out.append({"what": "false alarm", "level": level, "n": n, "found": named, "found_first": first})
        out.append({"what": "false alarm, other moments apart", "level": level, "n": n, "found": named - other})
        out.append({"what": "moments alone", "level": level, "n": n, "found": alone})
        labels, suspects = (sum(a[key] for a in alarms) for key in ("labels", "suspect_labels"))
        out.append({"what": "false alarm, labels", "level": level, "n": labels, "found": suspects})
        good = np.concatenate([one["good"][level] for one in found])
        listed = int(((good > SECOND_LOOK) & (good <= LIMITS["energy"])).sum())
        out.append({"what": "good energies for a second look", "level": level, "n": len(good), "found": listed})
    return out


def by_limit(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares of the energies off by ENERGY and of the good ones whose score passes a limit."""
    out: list[dict[str, Any]] = []
    for level in found[0]["off"]:
        off, good = (np.concatenate([one[name][level] for one in found]) for name in ("off", "good"))
        for limit in (2.5, SECOND_LOOK, 3.0, 3.3, LIMITS["energy"]):
            shares = {"found": float(np.mean(off > limit)), "false_alarms": float(np.mean(good > limit))}
            out.append({"level": level, "limit": limit, **shares, "n": (len(off), len(good))})
    return out


def forecast(scores: Sequence[LabelScore], level: str) -> dict[str, float]:
    """What would be found at a level: sizes (eV/atom, eV/Å) in nine of ten places, share of energies off by ENERGY."""
    energies, forces = ([s for s in scores if (s.frame.fidelity, s.kind) == (level, k)] for k in ("energy", "forces"))
    moved = [abs(s.error + sign * ENERGY) * s.score / abs(s.error) for s in energies for sign in (-1, 1)]
    own = [s.score for s in energies]
    return {
        "energy": findable(energies),
        "energy_second_look": findable(energies, SECOND_LOOK),
        "forces": findable(forces),
        "share": float(np.mean(np.array(moved) > LIMITS["energy"])),
        "share_with_second_look": float(np.mean(np.array(moved) > SECOND_LOOK)),
        "good_with_second_look": float(np.mean(np.array(own) > SECOND_LOOK)),
        "left_out_rms": float(np.sqrt(np.mean([s.error**2 for s in energies]))),  # eV
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    out = Table("fault", "level", "n", "suspects", "share", "first look", "with moments", "second look")
    for r in rows:
        share = f"{100 * r['found'] / max(r['n'], 1):.1f} %"
        apart = (str(r.get(name, "")) for name in ("found_first", "moments_too", "second_look"))
        out.add_row(r["what"], r["level"], str(r["n"]), str(r["found"]), share, *apart)
    return out


if __name__ == "__main__":
    typer.run(main)
