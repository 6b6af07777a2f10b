"""Silicon of the mlearn set, one level: error, time of a fit and of an evaluation, beside gap_fit in the same run.

    python benchmarks/mlearn_si.py --data PATH_TO_mlearn_si

Both codes learn the same structures on one thread with the same basis (n_max 8, l_max 6, cutoff 5 Å with 1 Å transition,
zeta 4, M = 1000), each with its own best settings: those below were chosen on folds of the training set (`--folds`: every
fourth training structure is scored, the others train). Both are run as commands, from extxyz to a model file.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import torch
import typer
import yaml
from ase import Atoms
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent / "accuracy"))  # dpa3

from common import Usage, best_of, data_option, gemm_rate, machine, run_measured, timed, write_result
from dpa3 import NAME, FrozenModel
from gap_command import gap_command
from stages import STAGES, timed_pass

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.config import load_config
from mfgp.fit.features import CANDIDATES_PER_POINT, MIN_CANDIDATES, Features
from mfgp.fit.fitting import learn, make_noise, make_prior
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.hyperparameters import inverse_variances
from mfgp.gp.inducing import select_inducing
from mfgp.gp.levels import Chain, Posterior
from mfgp.gp.objectives import TrainingData
from mfgp.gp.statistics import Statistics

SETTINGS: dict[str, Any] = {
    "descriptor": {
        "r_cut": 5.0,
        "n_max": 8,
        "l_max": 6,
        "sigma": 0.6,
        "cutoff_width": 1.0,
        "radial_scaling": {"r0": 3.0, "m": 2},
    },
    "model": {"zeta": 4, "n_inducing": 1000},
    "training": {"max_energy_ratio": 0.02, "calibrate": False},  # gap_fit calibrates nothing
    "device": "cpu",
}
GAP = {"sigma": "0.6", "sigma_energy": "0.004", "sigma_force": "0.1", "delta": "1.0"}
TARGETS = {"energy_mae": 2.9e-3, "force_mae": 0.072, "fit_cpu_over_gap_fit": 1 / 15}  # eV/atom, eV/Å
TIMED_STRUCTURES = 5

Evaluate = Callable[[Atoms], tuple[float, np.ndarray]]  # structure -> energy eV, forces [N, 3] eV/Å


def main(
    data: Annotated[Path, data_option("training.extxyz and test.extxyz")],
    folds: Annotated[bool, typer.Option(help="Score every fourth training structure; writes no result.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a setting, e.g. model.zeta=3")] = None,
    gap: Annotated[list[str] | None, typer.Option("--gap", help=f"Override one of gap_fit's {', '.join(GAP)}")] = None,
    rival: Annotated[bool, typer.Option(help="Run gap_fit (quippy-ase) too.")] = True,
    stages: Annotated[bool, typer.Option(help="Split the time of our fit by stage.")] = True,
    dpa3: Annotated[
        Path | None,
        typer.Option(help="File with the weights of DPA-3, for a baseline dpa3-openlam among the settings."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "mlearn_si",
) -> None:
    """Fit and score both codes."""
    torch.set_num_threads(1)
    training, held_out = ase.io.read(data / "training.extxyz", ":"), ase.io.read(data / "test.extxyz", ":")
    if folds:
        training, held_out = [a for i, a in enumerate(training) if i % 4 != 3], training[3::4]
    result: dict[str, Any] = {"machine": machine(), "n_train": len(training), "n_test": len(held_out)}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        ase.io.write(work / "train.extxyz", training)
        config = work / "config.yaml"
        config.write_text(yaml.safe_dump({"fidelities": [{"name": "pbe", "train": ["train.extxyz"]}], **SETTINGS}))
        if dpa3 is None:
            result["mfgp"] = fit_mfgp(work, config, settings or [], held_out)
        else:
            result["mfgp"] = fit_in_python(work, config, settings or [], held_out, dpa3)
        if rival:
            result["gap_fit"] = fit_gap(work, {**GAP, **dict(s.split("=") for s in gap or [])}, held_out)
        if stages and not folds:
            final = load_config(config, settings or [])
            result["stages"] = profile(read_frames({"pbe": work / "train.extxyz"}), final)
    console = Console()
    console.print(score_table(result))
    if rival:
        ratios = {key: result["mfgp"][key] / result["gap_fit"][key] for key in ("fit_cpu_seconds", "cpu_ms_per_atom")}
        result["ratio_to_gap_fit"] = ratios
        console.print(*(f"{key}: {value:.3f} of gap_fit's\n" for key, value in ratios.items()))
    if "stages" in result:
        console.print(stage_table(result["stages"]))
    if not folds:
        result["targets"] = TARGETS
        write_result(name, result)


def fit_mfgp(work: Path, config: Path, overrides: list[str], held_out: list[Atoms]) -> dict[str, Any]:
    """`mfgp fit` as a command, and its scores."""
    command = [Path(sys.executable).with_name("mfgp"), "fit", config, "-o", work / "si.mfgp"]
    usage = run_measured([*command, *(part for s in overrides for part in ("--set", s))], work, threads=1)
    predictor = MultiFidelityGP.load(work / "si.mfgp").predictor()

    def energy_and_forces(atoms: Atoms) -> tuple[float, np.ndarray]:
        prediction = predictor(atoms, "none")
        return prediction.energy, prediction.forces

    out = summary(usage, energy_and_forces, held_out)
    return {**out, "settings": load_config(config, overrides).model_dump(mode="json", exclude={"fidelities"})}


def fit_in_python(work: Path, config: Path, overrides: list[str], held_out: list[Atoms], dpa3: Path) -> dict[str, Any]:
    """As fit_mfgp, with a baseline that the command does not know."""
    settings, baselines = load_config(config, overrides), {NAME: FrozenModel(dpa3)}
    with timed() as timing:
        model = MultiFidelityGP.fit(read_frames({"pbe": work / "train.extxyz"}), settings, baselines=baselines)
    predictor = model.predictor()

    def energy_and_forces(atoms: Atoms) -> tuple[float, np.ndarray]:
        prediction = predictor(atoms, "none")
        return prediction.energy, prediction.forces

    usage = Usage(timing.cpu, timing.wall, 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    out = summary(usage, energy_and_forces, held_out)
    return {**out, "settings": settings.model_dump(mode="json", exclude={"fidelities"})}


def gap_of(settings: dict[str, str]) -> list[str | Path]:
    """`gap_fit` from train.extxyz to gap.xml; no isolated atom is in the set, so e0 is the mean energy."""
    soap = (
        f"soap l_max=6 n_max=8 atom_sigma={settings['sigma']} zeta=4 cutoff=5.0 cutoff_transition_width=1.0 "
        f"n_sparse=1000 sparse_method=cur_points covariance_type=dot_product delta={settings['delta']}"
    )
    return gap_command([soap], "e0_method=average", settings["sigma_energy"], settings["sigma_force"])


def fit_gap(work: Path, settings: dict[str, str], held_out: list[Atoms]) -> dict[str, Any]:
    """`gap_fit` as a command, and its scores."""
    from quippy.potential import Potential

    usage = run_measured(gap_of(settings), work, threads=1)
    potential = Potential(param_filename=str(work / "gap.xml"))

    def energy_and_forces(atoms: Atoms) -> tuple[float, np.ndarray]:
        atoms = atoms.copy()
        potential.calculate(atoms, properties=["energy", "forces"])
        return potential.results["energy"], potential.results["forces"]

    return {**summary(usage, energy_and_forces, held_out), "settings": settings}


def summary(usage: Usage, energy_and_forces: Evaluate, held_out: list[Atoms]) -> dict[str, Any]:
    """Errors on held-out structures (eV/atom, eV/Å), cost of the fit, CPU time of an evaluation per atom."""
    energy, forces = [], []
    for atoms in held_out:
        e, f = energy_and_forces(atoms)
        energy.append((e - atoms.info["REF_energy"]) / len(atoms))
        forces.append((f - atoms.arrays["REF_forces"]).ravel())
    timed_on = held_out[:TIMED_STRUCTURES]
    seconds = best_of(lambda: [energy_and_forces(atoms) for atoms in timed_on])
    flat = np.concatenate(forces)
    return {
        "energy_mae": np.abs(energy).mean(),
        "energy_rmse": np.sqrt(np.square(energy).mean()),
        "force_mae": np.abs(flat).mean(),
        "force_rmse": np.sqrt(np.square(flat).mean()),
        "n_energies": len(energy),
        "n_forces": flat.size,
        "fit_cpu_seconds": usage.cpu,
        "fit_wall_seconds": usage.wall,
        "fit_peak_bytes": usage.peak_bytes,
        "cpu_ms_per_atom": 1e3 * seconds / sum(len(atoms) for atoms in timed_on),
    }


def profile(frames: FrameSet, config: FitConfig) -> dict[str, dict[str, float]]:
    """CPU seconds of each stage of our fit, and over the floor: its flops at the matrix-product rate of this run."""
    rate = gemm_rate()
    features, n_candidates, spent = profile_features(frames, config)
    statistics, passed, flops, _, column_std = timed_pass(frames, features, config)
    rate = 0.5 * (rate + gemm_rate())
    spent |= passed | profile_learning(frames, features, config, statistics, column_std)
    m = features.basis.size
    flops["inducing points"] = 2.0 * n_candidates * m * (features.soap.n_features + 0.5 * m)
    flops["posterior"] = 1.0 * m**3  # factor and inverse
    spent["all"], flops["all"] = sum(spent.values()), sum(flops.values())
    three = [sum(x[stage] for stage in STAGES) for x in (spent, flops)]
    spent["rows, whitening, Gram"], flops["rows, whitening, Gram"] = three
    return {
        stage: {"cpu_seconds": seconds, "over_floor": seconds * rate / flops.get(stage, np.nan)}
        for stage, seconds in spent.items()
    }


def profile_features(frames: FrameSet, config: FitConfig) -> tuple[Features, int, dict[str, float]]:
    """Features, number of candidates for inducing points, CPU seconds of the descriptors and of the choice."""
    with timed() as both:
        features = Features.build(frames, config)
    soap, basis = features.soap, features.basis
    numbers = torch.cat([torch.as_tensor(f.atoms.numbers) for f in frames])
    limit = max(MIN_CANDIDATES, CANDIDATES_PER_POINT * config.model.n_inducing)
    kept = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))[:limit]
    candidates = torch.cat([soap.features([f.atoms]) for f in frames])[kept]
    with timed() as choice:
        select_inducing(candidates, numbers[kept], config.model.n_inducing, basis.zeta)
    return features, len(kept), {"descriptors": both.cpu - choice.cpu, "inducing points": choice.cpu}


def profile_learning(
    frames: FrameSet, features: Features, config: FitConfig, statistics: Statistics, column_std: torch.Tensor
) -> dict[str, float]:
    """CPU seconds of evidence and posterior."""
    basis = features.basis
    prior, noise = make_prior(frames.levels, basis, config.model.rho), make_noise(frames.levels, config)
    with timed() as learning:
        learn(prior, noise, TrainingData(statistics), basis, column_std, config)
    with timed() as solving, torch.no_grad():
        d = block_scales(prior.rho, prior.scale, basis.species_index(), column_std)
        joint = Posterior(statistics, Chain.of(d), inverse_variances(noise, statistics, d))
        joint.level_means(), joint.level_covariances()
    return {"evidence": learning.cpu, "posterior": solving.cpu}


def score_table(result: dict[str, Any]) -> Table:
    """Errors and times of both codes."""
    title = f"mlearn Si, {result['n_test']} structures held out, {result['n_train']} trained on"
    out = Table(title=title)
    for column in ("", "energy MAE meV/atom", "force MAE eV/Å", "fit CPU s", "fit peak GB", "E + F ms/atom (CPU)"):
        out.add_column(column, justify="right" if column else "left")
    for code in ("mfgp", "gap_fit"):
        if code in result:
            r = result[code]
            errors = (f"{1e3 * r['energy_mae']:.2f}", f"{r['force_mae']:.4f}")
            costs = (f"{r['fit_cpu_seconds']:.1f}", f"{1e-9 * r['fit_peak_bytes']:.2f}", f"{r['cpu_ms_per_atom']:.3f}")
            out.add_row(code, *errors, *costs)
    return out


def stage_table(stages: dict[str, dict[str, float]]) -> Table:
    """Where the time of our fit goes."""
    out = Table(title="our fit by stage")
    for column in ("stage", "CPU s", "over flops / GEMM rate"):
        out.add_column(column, justify="left" if column == "stage" else "right")
    for stage, r in stages.items():
        floor = "" if np.isnan(r["over_floor"]) else f"{r['over_floor']:.1f}"
        out.add_row(stage, f"{r['cpu_seconds']:.2f}", floor)
    return out


if __name__ == "__main__":
    typer.run(main)
