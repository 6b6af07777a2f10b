"""LMFP: our candidates beside what a user would reach for instead, on the same frames with the same labels.

    python benchmarks/accuracy/lmfp.py                       # all methods, sizes and orders: results/accuracy_lmfp.json
    python benchmarks/accuracy/lmfp.py --sizes 20 --methods 'CHGNet + GP, mag' --methods 'CHGNet, fine-tuned'
    python benchmarks/accuracy/lmfp.py --split validation --results scratch.json      # to choose settings by

The lower levels train with all their frames, mag with the first n of an order; errors are those of the held-out magnetic
frames. Needs CHGNet, SevenNet and quippy (pip install -e '.[bench,chgnet,sevennet]'). A result is written as soon as it
is there: a run that was killed goes on where it stopped, and more sizes, orders or frames add to the file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))  # common

import sevennet_rivals as sevennet
from chgnet_rivals import CHGNetwork
from common import RESULTS, machine, write_result
from cross_fitted import FoldNetworks
from dpa3 import NAME as DPA3
from dpa3 import FrozenModel
from franken_rival import Franken
from mace_rival import FromScratch
from networks import Kind
from ours import CANDIDATES, CHGNETS_OF_FOLDS, SEVENNETS_OF_FOLDS, Workshop
from rival_methods import FINE_TUNING, Transferred, gap_fit, two_heads, zero_shot
from task import Method, Task, scores

from mfgp import FrameSet, read_frames
from mfgp.config import load_config
from mfgp.datasets import LEVELS, LMFP, load_lmfp
from mfgp.learning_curve import first_of_top

CACHE = Path.home() / ".cache" / "mfgp" / "lmfp_chgnet"
CHGNET_FOLDS, SEVENNET_FOLDS = 4, 2
SLOW = (
    "fine-tuned CHGNets + GP, mag",
    "CHGNets fine-tuned on folds, mean",
    "fine-tuned SevenNets + GP, mag",
    "fine-tuned SevenNets + DPA3 + GP, mag",
    "stacked SevenNets + DPA3 + GP, mag",
    "SevenNets fine-tuned on folds, mean",
    "CHGNet, fine-tuned",
    "CHGNet, nm then mag",
    "CHGNet, nm and mag, two readouts",
    "SevenNet-l3i5, zero-shot",
    "SevenNet-l3i5, fine-tuned",
    "gap_fit, mag",
    "MACE, from scratch",
    "franken on SevenNet",
)  # one order each
Key = tuple[str, int, int, str]


def main(
    sizes: Annotated[str, typer.Option(help="Magnetic training structures; `all` is all.")] = "10,20,40,80",
    orders: Annotated[int, typer.Option(help="Orders of the magnetic structures to average over.")] = 3,
    slow_orders: Annotated[int, typer.Option(help="The same for the rivals that take minutes.")] = 1,
    methods: Annotated[list[str] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    split: Annotated[str, typer.Option(help="test, test_ood or validation.")] = "test",
    results: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "accuracy_lmfp",
    cache: Annotated[Path, typer.Option(help="Folder for the networks' labels and trained weights.")] = CACHE,
    mace: Annotated[
        Path | None, typer.Option(help="Folder with mace_run_train (mace_rival.py); no MACE without.")
    ] = None,
    franken: Annotated[
        Path | None, typer.Option(help="Folder with franken (franken_rival.py); no franken without.")
    ] = None,
    dpa3: Annotated[
        Path | None, typer.Option(help="File with the weights of DPA-3 (dpa3.py); no DPA-3 without.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Only print what is there already.")] = False,
) -> None:
    """Run every method at every size and order that is not there yet, then print all."""
    if split != "test" and results == "accuracy_lmfp":
        raise typer.BadParameter("accuracy_lmfp holds the test split; name another file with --results.")
    torch.set_num_threads(1)
    training = read_frames({level: load_lmfp(level, "train") for level in LEVELS})
    held_out = read_frames({LEVELS[-1]: load_lmfp(LEVELS[-1], split)}).of(LEVELS[-1])
    runs, console = existing(results), Console()
    if not show:
        every = available(training, cache, mace, franken, dpa3)
        wanted = methods or list(every)
        unknown = [m for m in wanted if m not in every]
        if unknown:
            raise typer.BadParameter(f"no method {', '.join(unknown)}; known are {'; '.join(every)}.")
        for n, order, name in plan(sizes, wanted, orders, slow_orders, len(training.of(LEVELS[-1]))):
            task = Task(first_of_top(training, n, order), held_out, n, order)
            key = (name, n, order, data_hash(name, task))
            if key in runs:
                continue
            found = {"method": name, "n": n, "order": order, "data": key[3], **scores(every[name](task), held_out)}
            runs[key] = found
            console.print(line(found))
            write_result(results, {"machine": machine(), "split": split, **described(training, held_out, runs)})
    console.print(table(list(runs.values()), len(held_out)))


def available(
    training: FrameSet, cache: Path, mace: Path | None, franken: Path | None, dpa3: Path | None
) -> dict[str, Method]:
    """Every method by its name; what the candidates share is made when the first of them runs."""
    shop: list[Workshop] = []
    chgnets = Kind(CHGNETS_OF_FOLDS, CHGNetwork, FINE_TUNING, cache)
    sevennets = Kind(SEVENNETS_OF_FOLDS, sevennet.SevenNetwork, sevennet.FINE_TUNING, cache)
    quarters, halves = FoldNetworks(chgnets, CHGNET_FOLDS), FoldNetworks(sevennets, SEVENNET_FOLDS)
    of_folds = {
        "fine-tuned CHGNets + GP, mag": quarters.baseline,
        "fine-tuned SevenNets + GP, mag": halves.baseline,
        "fine-tuned SevenNets + DPA3 + GP, mag": halves.baseline,
        "stacked SevenNets + DPA3 + GP, mag": halves.stacked,
    }

    def candidate(name: str) -> Method:
        def run(task: Task) -> Any:
            if not shop:
                calculators = {} if dpa3 is None else {DPA3: FrozenModel(dpa3)}
                shop.append(Workshop(training, load_config(LMFP / "config.yaml"), cache, calculators))
            trained = of_folds[name](task) if name in of_folds else None
            return shop[0].run(CANDIDATES[name], task, trained)

        return run

    return {
        **{name: candidate(name) for name in CANDIDATES if dpa3 is not None or "DPA3" not in name},
        "CHGNet, zero-shot": zero_shot,
        "CHGNet, fine-tuned": chgnets.fine_tuned,
        "CHGNet, nm then mag": Transferred(),
        "CHGNet, nm and mag, two readouts": two_heads,
        "CHGNets fine-tuned on folds, mean": quarters.committee,
        "SevenNet-l3i5, zero-shot": sevennet.zero_shot,
        "SevenNet-l3i5, fine-tuned": sevennets.fine_tuned,
        "SevenNets fine-tuned on folds, mean": halves.committee,
        "gap_fit, mag": gap_fit,
        **({} if mace is None else {"MACE, from scratch": FromScratch(mace)}),
        **({} if franken is None else {"franken on SevenNet": Franken(franken)}),
    }


def plan(sizes: str, methods: list[str], orders: int, slow_orders: int, most: int) -> Iterator[tuple[int, int, str]]:
    """(n, order, method), cheap methods and small sizes first. All structures have one order only."""
    numbers = sorted({most if s == "all" else min(int(s), most) for s in sizes.split(",")})
    for slow in (False, True):
        for order in range(slow_orders if slow else orders):
            for n in numbers:
                if order == 0 or n < most:
                    yield from ((n, order, m) for m in methods if (m in SLOW) == slow)


def data_hash(method: str, task: Task) -> str:
    """Hash of what the method can see and of the frames that judge it; a run counts for these data only."""
    levels = CANDIDATES[method].levels if method in CANDIDATES else ("nm", "mag") if "nm" in method else ("mag",)
    seen = FrameSet(task.training.levels, tuple(f for f in task.training if f.fidelity in levels))
    judges = FrameSet((task.top,), tuple(task.held_out))
    return hashlib.sha256((seen.data_hash() + judges.data_hash()).encode()).hexdigest()[:12]


def existing(name: str) -> dict[Key, dict[str, Any]]:
    """Runs of an earlier call."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    return {(r["method"], r["n"], r["order"], r["data"]): r for r in found}


def described(training: FrameSet, held_out: list[Any], runs: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    """What the file holds beside machine and split."""
    return {"data": training.summary(), "n_held_out": len(held_out), "runs": list(runs.values())}


def line(r: dict[str, Any]) -> str:
    """One run in a line."""
    return (
        f"{r['method']}, n = {r['n']}, order {r['order']}: {1e3 * r['energy_mae']:.2f} meV/atom, "
        f"{1e3 * r['force_mae']:.1f} meV/Å, {r['cpu_seconds']:.0f} CPU s"
    )


def table(runs: list[dict[str, Any]], n_held_out: int) -> Table:
    """Means over orders."""
    out = Table(title=f"held-out magnetic structures (n = {n_held_out}); mean over orders")
    head = (
        "n",
        "method",
        "orders",
        "E meV/atom",
        "F meV/Å",
        "± sem",
        "95 % E, F",
        "Fe, Mn µB",
        "charge right",
        "CPU s",
    )
    for column in head:
        out.add_column(column, justify="left" if column == "method" else "right")
    for n, name in sorted({(r["n"], r["method"]) for r in runs}, key=lambda k: (k[0], not k[1].startswith("GP"), k[1])):
        out.add_row(*row(n, name, [r for r in runs if (r["n"], r["method"]) == (n, name)]))
    return out


def row(n: int, name: str, found: list[dict[str, Any]]) -> list[str]:
    """One line of the table."""
    force = 1e3 * np.array([r["force_mae"] for r in found])
    sem = "" if len(found) < 2 else f"{force.std(ddof=1) / len(found) ** 0.5:.1f}"
    coverage = [r["coverage95"] for r in found if r["coverage95"]]
    covered = (
        ", ".join(f"{100 * np.mean([c[k] for c in coverage]):.0f}" for k in ("energy", "forces")) if coverage else ""
    )
    moments = [r["moments"] for r in found if "moments" in r]
    errors = ", ".join(f"{np.mean([m[s]['mae'] for m in moments]):.3f}" for s in ("Fe", "Mn")) if moments else ""
    right = [sum(m[s]["delithiated"][k] for m in moments for s in ("Fe", "Mn")) for k in ("right", "sites")]
    energy = f"{1e3 * np.mean([r['energy_mae'] for r in found]):.2f}"
    charge = f"{right[0]} of {right[1]}" if moments else ""
    seconds = f"{np.mean([r['cpu_seconds'] for r in found]):.0f}"
    return [str(n), name, str(len(found)), energy, f"{force.mean():.1f}", sem, covered, errors, charge, seconds]


if __name__ == "__main__":
    typer.run(main)
