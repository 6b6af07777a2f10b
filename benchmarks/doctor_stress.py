"""Does the doctor find stresses that are wrong in single frames? Leave-one-label-out scores of the stress.

    python benchmarks/doctor_stress.py          # EMT: 100 rattled, strained cells of Cu, Au, Ni and Pd
    python benchmarks/doctor_stress.py --gfn1   # LMFP: 150 structures with GFN1-xTB labels

In every round EACH stresses are spoiled in each of these ways, all in the same data: the wrong sign; that of another frame;
ten times as large (kbar for GPa); 20 % too large; shear in VASP's order (xy yz xz). The model is fitted to all structures,
hyperparameters too, and the labels are scored by it (`first look`) and by fits without the suspects (mfgp.doctor.rounds), as
`mfgp doctor --model` does. Found is a fault whose stress is suspect. False alarms are suspect stresses of the other frames,
also without frames of which another label is suspect, too. At last the data as they are: suspect stresses, and how large an
error would be found in nine of ten components.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from common import machine, timed, write_result
from rich.console import Console

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.config import load_config
from mfgp.datasets import LMFP, load_lmfp
from mfgp.doctor.fit import LabelScore
from mfgp.doctor.rounds import ROUNDS, scores_without_suspects
from mfgp.doctor.suspects import findable

FAULTS = ("sign", "another frame", "ten times", "20 % too large", "order of VASP")
EACH = 2  # of a kind, a round
DESCRIPTOR = {"r_cut": 4.5, "n_max": 4, "l_max": 3, "sigma": 0.5}


def main(
    gfn1: Annotated[bool, typer.Option("--gfn1", help="LMFP's GFN1-xTB labels; EMT without.")] = False,
    rounds: Annotated[int, typer.Option(help="Fits to spoiled data.")] = 8,
    frames: Annotated[int | None, typer.Option(help="How many frames; 100 (EMT), 150 (LMFP).")] = None,
    n_inducing: Annotated[int, typer.Option(help="Inducing points of the fits.")] = 500,
    again: Annotated[int, typer.Option(help="Fits without the suspects, at most.")] = ROUNDS,
) -> None:
    """Spoil, fit, score; print and write which faults were found."""
    good = lmfp(frames or 150) if gfn1 else metals(frames or 100)
    if gfn1:
        config = load_config(LMFP / "config.yaml", [f"model.n_inducing={n_inducing}"])
    else:
        model = {"zeta": 3, "n_inducing": n_inducing}
        config = FitConfig(descriptor=DESCRIPTOR, model=model, training={"max_iterations": 30})
    with timed() as timing:
        found = [spoiled_round(good, config, seed, again) for seed in range(rounds)]
        as_they_are, _ = scored(good, config, again)
    stresses = [s for s in as_they_are if s.kind == "stress"]
    result: dict[str, Any] = {
        "faults": [fault for one, _ in found for fault in one],
        "false_alarms": [alarms for _, alarms in found],
        "as_they_are": alarms_of(as_they_are, set()),
        "findable": findable(stresses),  # eV/Å^3
        "left_out_rms": float(np.sqrt(np.mean([s.deviation**2 for s in stresses]))),  # eV/Å^3
    }
    result["found"] = {
        kind: {
            "n": sum(f["kind"] == kind for f in result["faults"]),
            **{look: sum(f[look] for f in result["faults"] if f["kind"] == kind) for look in ("found", "found_first")},
        }
        for kind in FAULTS
    }
    console = Console()
    console.print(result["found"], result["false_alarms"], result["as_they_are"])
    console.print({key: result[key] for key in ("findable", "left_out_rms")})
    settings = {"frames": len(good), "n_inducing": n_inducing, "rounds": rounds, "again": again, "each": EACH}
    name = "doctor_stress_gfn1" if gfn1 else "doctor_stress"
    write_result(name, {"machine": machine(), **settings, "cpu_seconds": timing.cpu, **result})


def metals(n: int) -> list[Atoms]:
    """Random alloys of eight atoms, cells strained by 3 %, atoms rattled by 0.03 - 0.15 Å."""
    rng, out = np.random.default_rng(0), []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=3.9) * (2, 2, 2)
        atoms.set_chemical_symbols(rng.choice(["Cu", "Au", "Ni", "Pd"], len(atoms)).tolist())
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.1 * rng.uniform(0.3, 1.5), atoms.positions.shape)
        atoms.calc = EMT()
        out.append(labelled(atoms))
    return out


def lmfp(n: int) -> list[Atoms]:
    every = load_lmfp("gfn1", "train")
    return [labelled(every[i]) for i in np.sort(np.random.default_rng(0).permutation(len(every))[:n])]


def labelled(atoms: Atoms) -> Atoms:
    """The structure with what its calculator says, as labels."""
    out = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    out.info["REF_energy"], out.info["REF_stress"] = atoms.get_potential_energy(), np.array(atoms.get_stress())
    out.arrays["REF_forces"] = atoms.get_forces()
    return out


def spoiled_round(
    good: list[Atoms], config: FitConfig, seed: int, again: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Faults of one round with whether they were found, and the false alarms."""
    rng = np.random.default_rng(seed)
    frames = [atoms.copy() for atoms in good]
    chosen = rng.choice(len(frames), EACH * len(FAULTS), replace=False).tolist()
    others = rng.choice(np.setdiff1d(np.arange(len(frames)), chosen), EACH).tolist()
    faults = []
    for k, i in enumerate(chosen):
        kind, own = FAULTS[k % len(FAULTS)], good[i].info["REF_stress"]
        other = good[others[k // len(FAULTS)]].info["REF_stress"]
        wrong = (-own, other, 10.0 * own, 1.2 * own, own[[0, 1, 2, 5, 3, 4]])[k % len(FAULTS)]
        frames[i].info["REF_stress"] = wrong
        faults.append({"kind": kind, "frame": i, "off": float(np.abs(wrong - own).max())})  # eV/Å^3
    scores, first = scored(frames, config, again)
    named, named_first = ({s.frame.atoms.info["number"] for s in x if wrong_stress(s)} for x in (scores, first))
    for fault in faults:
        fault |= {"found": fault["frame"] in named, "found_first": fault["frame"] in named_first}
    return faults, alarms_of(scores, set(chosen))


def scored(frames: list[Atoms], config: FitConfig, again: int) -> tuple[list[LabelScore], list[LabelScore]]:
    """Scores after fits without the suspects, and those of the first model."""
    for i, atoms in enumerate(frames):
        atoms.info["number"] = i
    read = read_frames({"low": frames})
    scoring = scores_without_suspects(MultiFidelityGP.fit(read, config, progress=False), read, again)
    return scoring.scores, scoring.first


def wrong_stress(score: LabelScore) -> bool:
    return score.kind == "stress" and score.suspect


def alarms_of(scores: list[LabelScore], spoiled: set[int]) -> dict[str, Any]:
    """Frames with a suspect stress among those that were not spoiled; `alone`: of which no other label is suspect."""
    good = [s for s in scores if s.frame.atoms.info["number"] not in spoiled]
    named = {s.frame.atoms.info["number"] for s in good if wrong_stress(s)}
    others = {s.frame.atoms.info["number"] for s in good if s.suspect and not wrong_stress(s)}
    n = sum(s.kind == "stress" for s in good)
    return {"n": n, "suspect": sorted(named), "alone": sorted(named - others), "other_labels": len(others)}


if __name__ == "__main__":
    typer.run(main)
