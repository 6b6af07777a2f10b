"""LMFP: stress at the magnetic level, which has no stress labels, against finite differences of energies.

    python benchmarks/lmfp_stress.py

Of the strained cells of held-out structures in examples/lmfp/strained.extxyz (made by making/strain.py) come, per structure,

    sigma_held = 1/V dE/de at held plane waves       all six components (GPAW's analytic stress), checked by differences
    sigma      = sigma_held + (2/3) (E_cut / V) dE/dE_cut 1    at constant cutoff, as the energies that a model learns,
                                                     checked by differences of energies with their basis correction

The models never saw these structures. Their stress is compared with central differences of their own energy over the same
strains, and with sigma; the stress of GFN1-xTB, where the only stress labels are, stands beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from common import machine, timed, write_result
from rich.console import Console
from rich.table import Table

from mfgp import MultiFidelityGP, read_frames
from mfgp.config import load_config
from mfgp.data.reading import read_structures
from mfgp.datasets import LMFP, load_lmfp

GPA = 160.21766  # GPa in an eV/Å^3
STRAIN = 0.005
DIRECTIONS = {"volume": np.eye(3), "xx": np.diag([1.0, 0.0, 0.0])}
VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
MODELS = (("nm", "mag"), ("gfn1", "nm", "mag"))


def main(
    n_inducing: Annotated[int, typer.Option(help="Inducing points of the fits.")] = 2000,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "lmfp_stress",
) -> None:
    """Fit both models, compare."""
    config = load_config(LMFP / "config.yaml", [f"model.n_inducing={n_inducing}"])
    structures = {s: dft_stress(frames) for s, frames in by_structure(LMFP / "strained.extxyz").items()}
    gfn1 = {a.info["structure_id"]: a for a in load_lmfp("gfn1", "test")}
    fits: dict[str, Any] = {}
    for levels in MODELS:
        training = read_frames({level: load_lmfp(level, "train") for level in levels})
        with timed() as timing:
            model = MultiFidelityGP.fit(training, config)
        fits["+".join(levels)] = {
            "data": training.summary(),
            "fit_cpu_seconds": timing.cpu,
            "structures": {s: compare(model, d["atoms"], d["sigma"]) for s, d in structures.items()},
        }
    for structure, dft in structures.items():
        atoms = dft.pop("atoms")
        dft.update(variant=atoms.info["variant"], gfn1=gfn1[structure].get_stress(), volume=atoms.get_volume())
    Console().print(differences_table(structures))
    Console().print(stress_table(structures, fits))
    write_result(name, {"machine": machine(), "n_inducing": n_inducing, "dft": structures, "models": fits})


def by_structure(path: Path) -> dict[str, list[Atoms]]:
    out: dict[str, list[Atoms]] = {}
    for a in (a for a in read_structures(path) if a.info["fidelity"] == "mag"):
        out.setdefault(a.info["of"], []).append(a)
    return out


def dft_stress(frames: list[Atoms]) -> dict[str, Any]:
    """Stresses [6] and their checks by differences (eV/Å^3, ASE's sign and order); the unstrained structure."""
    found = {a.info["structure_id"].split("_", 1)[1]: a for a in frames}
    energy = {suffix: a.get_potential_energy() for suffix, a in found.items()}
    cutoffs = sorted(a.info["cutoff"] for s, a in found.items() if s.startswith("cutoff"))
    low, middle, high = (f"cutoff{c:.0f}" for c in cutoffs)
    atoms = found[middle]
    volume = atoms.get_volume()
    raw = [energy[s] - found[s].info.get("basis_correction", 0.0) for s in (low, middle, high)]
    slope = slope_by_cutoff(cutoffs, raw)
    held = np.array(atoms.info["stress_held"])
    out: dict[str, Any] = {"atoms": atoms, "held": held, "sigma": held.copy()}
    out["sigma"][:3] += 2 / 3 * cutoffs[1] / volume * slope
    for direction in DIRECTIONS:
        for kind, end in (("differences", ""), ("differences_held", "_held")):
            pair = [f"{direction}{sign}{end}" for sign in ("plus", "minus")]
            if all(p in energy for p in pair):
                value = (energy[pair[0]] - energy[pair[1]]) / (2 * STRAIN * volume)
                out.setdefault(kind, {})[direction] = value
    return out


def slope_by_cutoff(cutoffs: list[float], energies: list[float]) -> float:
    """dE/dE_cut (eV/eV) at the middle of three cutoffs: the energy falls exponentially, E = a + b exp(-E_cut / w).

    Over steps of 25 eV the plain central difference would be 2 % too large, sinh(x) / x with x = 25 eV / w.
    """
    x = -np.log((energies[2] - energies[1]) / (energies[1] - energies[0]))
    return float((energies[2] - energies[0]) / (cutoffs[2] - cutoffs[0]) * x / np.sinh(x))


def compare(model: MultiFidelityGP, atoms: Atoms, sigma: np.ndarray) -> dict[str, Any]:
    """The model's stress at its highest level, its std, and central differences of its own energy. eV/Å^3."""
    predicted = model.predict(atoms)
    assert predicted.stress is not None
    own = {}
    for direction, e in DIRECTIONS.items():
        energies = [model.predict(deformed(atoms, s * STRAIN * e), uncertainty="none").energy for s in (1, -1)]
        own[direction] = (energies[0] - energies[1]) / (2 * STRAIN * atoms.get_volume())
    return {
        "stress": predicted.stress,
        "std": predicted.stress_std,
        "own_differences": own,
        "rms_error": float(np.sqrt(((predicted.stress - sigma) ** 2).mean())),
    }


def deformed(atoms: Atoms, e: np.ndarray) -> Atoms:
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ (np.eye(3) + e), scale_atoms=True)
    return out


def along(stress: np.ndarray, direction: str) -> float:
    """What the energy difference over a strain measures: the trace, or one component."""
    return float(stress[:3].sum() if direction == "volume" else stress[0])


def differences_table(structures: dict[str, Any]) -> Table:
    """Is the stress of the calculations the derivative of their energies?"""
    out = Table("structure", "strain", "held planes: analytic", "differences", "constant cutoff: sigma", "differences")
    out.title = "DFT stress along a strain, eV/Å^3 (volume: the trace)"
    for structure, dft in structures.items():
        for direction in DIRECTIONS:
            held = dft.get("differences_held", {}).get(direction)
            cutoff = dft.get("differences", {}).get(direction)
            values = (along(dft["held"], direction), held, along(dft["sigma"], direction), cutoff)
            out.add_row(structure, direction, *("" if v is None else f"{v:.5f}" for v in values))
    return out


def stress_table(structures: dict[str, Any], fits: dict[str, Any]) -> Table:
    """Every component, in GPa."""
    out = Table("structure", "", "DFT", "gfn1", *fits, title="stress, GPa (models: ± one standard deviation)")
    for structure, dft in structures.items():
        for k, component in enumerate(VOIGT):
            cells = [
                f"{GPA * r['stress'][k]:.2f} ± {GPA * r['std'][k]:.2f}"
                for r in (fit["structures"][structure] for fit in fits.values())
            ]
            about = f"{structure} {dft['variant']}" if k == 0 else ""
            out.add_row(about, component, f"{GPA * dft['sigma'][k]:.2f}", f"{GPA * dft['gfn1'][k]:.2f}", *cells)
        errors = [f"rms error {GPA * fit['structures'][structure]['rms_error']:.2f}" for fit in fits.values()]
        gfn1 = GPA * float(np.sqrt(((dft["gfn1"] - dft["sigma"]) ** 2).mean()))
        out.add_row("", "", "", f"rms error {gfn1:.2f}", *errors, end_section=True)
    return out


if __name__ == "__main__":
    typer.run(main)
