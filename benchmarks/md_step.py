"""Time of a step of molecular dynamics beside quippy GAP and CHGNet.

    python benchmarks/md_step.py --data PATH_TO_mlearn_si [--gap gap.xml] [--chgnet-python PATH]

CPU milliseconds of a step through the ASE calculators, on one thread, along a path of small random moves: Si64 of the mlearn
set (M = 1000, the descriptor of `mlearn_si.py`; GAP with the same basis and number of sparse points, trained by gap_fit
unless a file of an earlier training is given) and the 28-atom LMFP cell with the model of its config.yaml (CHGNet from its
own Python, where it is installed). Each round runs a block of steps of every calculator in turn, so that a change of the
machine's speed meets all of them; figures are medians over all steps but the first of each block, with quartiles.
The floor is the two products with the inducing points at the machine's rate of matrix products in the same run.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import torch
import typer
import yaml
from ase import Atoms
from common import THREAD_VARIABLES, data_option, gemm_rate, machine, run_measured, timed, write_result
from mlearn_si import GAP, SETTINGS, gap_of
from rich.console import Console
from rich.table import Table

from mfgp import MultiFidelityGP, read_frames
from mfgp.compression import compression_error
from mfgp.config import load_config
from mfgp.datasets import load_lmfp
from mfgp.predict.reduction import MAX_ZETA

LMFP = Path(__file__).parent.parent / "examples" / "lmfp" / "config.yaml"
COMPRESSIONS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # eV
STEP = 5e-4  # Å, standard deviation of a move
ROUNDS, OURS, THEIRS = 12, 12, 3  # steps of a block
OURS_OPTIONS: dict[str, dict[str, Any]] = {
    "float64": {"uncertainty": "none"},
    "float32": {"uncertainty": "none", "dtype": "float32"},
    "float64, std of local energies": {"uncertainty": "local"},
    "float32, std of local energies": {"uncertainty": "local", "dtype": "float32"},
    "float64, std of energies": {"uncertainty": "energies"},
    "float32, std of energies": {"uncertainty": "energies", "dtype": "float32"},
}
COMPRESSED: dict[str, dict[str, Any]] = {  # where the kernel allows it
    f"{dtype}, compression 1e-5 eV": {"uncertainty": "none", "dtype": dtype, "compression": 1e-5}
    for dtype in ("float64", "float32")
}
CHGNET = """
import json, sys, time, warnings
import ase.io, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
from chgnet.model.dynamics import CHGNetCalculator
print_to, sys.stdout = sys.stdout, sys.stderr
calculator = CHGNetCalculator(use_device="cpu")
for line in sys.stdin:
    frames = ase.io.read(line.strip(), ":")
    seconds = []
    atoms = frames[0].copy()
    atoms.calc = calculator
    for frame in frames:
        atoms.positions = frame.positions
        start = time.process_time()
        atoms.get_forces()
        seconds.append(time.process_time() - start)
    print(json.dumps(seconds), file=print_to, flush=True)
"""


def main(
    data: Annotated[Path, data_option("training.extxyz and test.extxyz")],
    gap: Annotated[Path | None, typer.Option(help="GAP of an earlier training; by default gap_fit trains one.")] = None,
    chgnet_python: Annotated[Path | None, typer.Option(help="A Python that has CHGNet.")] = None,
    rival: Annotated[bool, typer.Option(help="Time GAP too.")] = True,
    rounds: Annotated[int, typer.Option(help="Blocks of each calculator.")] = ROUNDS,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "md_step",
) -> None:
    """Time all calculators."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        result["Si64"] = silicon(work, data, gap, rival, rounds)
        result["LMFP"] = cathode(work, chgnet_python, rounds)
    console = Console()
    for system in ("Si64", "LMFP"):
        console.print(table(system, result[system]))
    write_result(name, result)


def silicon(work: Path, data: Path, gap: Path | None, rival: bool, rounds: int) -> dict[str, Any]:
    """The model of mlearn_si.py, and GAP."""
    training = ase.io.read(data / "training.extxyz", ":")
    ase.io.write(work / "train.extxyz", training)
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump({"fidelities": [{"name": "pbe", "train": ["train.extxyz"]}], **SETTINGS}))
    model = MultiFidelityGP.fit(read_frames({"pbe": work / "train.extxyz"}), load_config(config, []))
    atoms = next(a for a in ase.io.read(data / "test.extxyz", ":") if len(a) == 64)
    rivals = {}
    if rival:
        from quippy.potential import Potential

        if gap is None:
            run_measured(gap_of(GAP), work, threads=1)
        rivals["GAP"] = Local(Potential(param_filename=str(gap or work / "gap.xml")))
    return compare(model, atoms, rivals, rounds)


def cathode(work: Path, chgnet_python: Path | None, rounds: int) -> dict[str, Any]:
    """The model of LMFP's config.yaml, and CHGNet."""
    config = load_config(LMFP, ())
    frames = read_frames({f.name: list(f.train) for f in config.fidelities}, keys=config.keys).training()
    model = MultiFidelityGP.fit(frames, config)
    atoms = frames.of("mag")[0].atoms.copy()
    rivals = {"CHGNet": Remote(chgnet_python, work)} if chgnet_python else {}
    errors = [compression_error(model, load_lmfp("mag", "validation"), e, "mag") for e in COMPRESSIONS]
    found = [{"compression": e} | asdict(error) for e, error in zip(COMPRESSIONS, errors, strict=True)]
    return compare(model, atoms, rivals, rounds) | {"compressions": found}


class Local:
    """A calculator of this process."""

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator

    def seconds(self, path: list[Atoms]) -> list[float]:
        """CPU seconds of each step along a path."""
        atoms, out = path[0].copy(), []
        atoms.calc = self.calculator
        for place in path:
            atoms.positions = place.positions
            with timed() as timing:
                atoms.get_forces()
            out.append(timing.cpu)
        return out


class Remote:
    """CHGNet in a process of another Python."""

    def __init__(self, python: Path, work: Path) -> None:
        import os

        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": ""}
        command = [str(python), "-c", CHGNET]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        self.file = work / "path.extxyz"

    def seconds(self, path: list[Atoms]) -> list[float]:
        """CPU seconds of each step along a path."""
        ase.io.write(self.file, [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in path])
        self.process.stdin.write(f"{self.file}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def compare(model: MultiFidelityGP, atoms: Atoms, rivals: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Blocks of steps of all calculators in turn."""
    ours = OURS_OPTIONS | (COMPRESSED if model.basis.zeta <= MAX_ZETA else {})
    runs = {k: Local(model.calculator(**options)) for k, options in ours.items()} | rivals
    spent: dict[str, list[float]] = {name: [] for name in runs}
    rng, rates, place = np.random.default_rng(0), [], atoms.copy()
    for _ in range(rounds):
        rates.append(gemm_rate())
        for name, run in runs.items():
            path = []
            for _ in range((OURS if name in ours else THEIRS) + 1):
                place.positions += rng.normal(0.0, STEP, place.positions.shape)
                path.append(place.copy())
            spent[name] += run.seconds(path)[1:]
    floor = 4.0 * model.soap.n_features * products(model, atoms) / float(np.median(rates))
    out: dict[str, Any] = {"atoms": str(atoms.symbols), "n_features": model.soap.n_features, "floor_ms": 1e3 * floor}
    out |= {"n_inducing": model.basis.size, "gemm_gflops": 1e-9 * float(np.median(rates))}
    medians = {name: float(np.median(s)) for name, s in spent.items()}
    for name, s in spent.items():
        low, high = np.percentile(s, (25, 75))
        over = {rival: medians[rival] / medians[name] for rival in rivals}
        row = {
            "cpu_ms": 1e3 * medians[name],
            "quartiles_ms": [1e3 * low, 1e3 * high],
            "n": len(s),
            "times_faster": over,
        }
        out[name] = row | ({"over_floor": medians[name] / floor} if name in ours else {})
    out["float32_force_error"] = force_error(model, atoms)
    return out


def force_error(model: MultiFidelityGP, atoms: Atoms) -> float:
    """Largest difference of a force component between float32 and float64, eV/Å."""
    double, single = (model.predictor(dtype=dtype)(atoms, "none").forces for dtype in ("float64", "float32"))
    return float(np.abs(double - single).max())


def products(model: MultiFidelityGP, atoms: Atoms) -> int:
    """Pairs of an atom and an inducing point of its element."""
    points = {z: len(p) for z, p in zip(model.basis.species, model.basis.points, strict=True)}
    return sum(points[z] for z in atoms.numbers.tolist())


def table(system: str, result: dict[str, Any]) -> Table:
    """Times of one system."""
    floor = f"floor {result['floor_ms']:.2f} ms at {result['gemm_gflops']:.0f} GFlop/s"
    out = Table(title=f"{system} ({result['atoms']}), M = {result['n_inducing']}, {floor}")
    for column in ("", "ms a step (CPU)", "quartiles", "n", "over the floor", "times faster than"):
        out.add_column(column, justify="right" if column else "left")
    for name, r in result.items():
        if isinstance(r, dict):
            low, high = r["quartiles_ms"]
            rivals = ", ".join(f"{k} {v:.1f}" for k, v in r["times_faster"].items() if k != name)
            over = f"{r['over_floor']:.1f}" if "over_floor" in r else ""
            out.add_row(name, f"{r['cpu_ms']:.2f}", f"{low:.2f} - {high:.2f}", str(r["n"]), over, rivals)
    return out


if __name__ == "__main__":
    typer.run(main)
