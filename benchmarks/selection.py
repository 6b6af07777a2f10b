"""Which calculations to buy: joint selection of structure and level against rivals, on LMFP with the recorded costs.

    python benchmarks/selection.py                     # scores the test split
    python benchmarks/selection.py --split validation  # to choose settings by; writes no result

A simulated campaign on the labelled training structures: every seed starts from a few nm and mag labels, each strategy
spends the same hours (recorded CPU seconds of every calculation) in batches, and after each batch the same two-level model
is fitted to what it has. Strategies:

    joint              mfgp.selection.greedy: gain in the variance of mag forces over the pool per hour, both levels
    joint, mag only    the same, buying mag labels alone
    random, x % mag    random structures, a fixed share of the hours for mag
    mag, largest std   the mag structures of largest mean force std
    mag, D-optimal     greedy largest log det of the information of mag labels alone, as in MTP and ACE

Nobody knows what a calculation will cost: joint selection expects what its model has learned from the labels bought so
far, as `mfgp select` does; what was recorded is paid. A calculation that the rest of the budget does not pay for is passed
over by every strategy. The rivals that only buy mag labels keep the nm labels of the start. All models share descriptor and
inducing points, which are chosen from the structures of the pool without labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from common import machine, write_result
from lmfp import CONFIG
from rich.console import Console
from rich.table import Table

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.base.progress import bars
from mfgp.config import load_config
from mfgp.data.costs import cost_seconds
from mfgp.datasets import load_lmfp
from mfgp.fit.features import Features
from mfgp.frames import Frame
from mfgp.gp.autoregressive import block_scales
from mfgp.selection.gains import condition, information_factor
from mfgp.selection.greedy import select

LEVELS = ("nm", "mag")
START = {"nm": 10, "mag": 4}
MIXES = (0.25, 0.5, 0.75, 1.0)  # shares of the hours that random choices spend on mag
Pick = tuple[str, str]  # structure_id, level


@dataclass
class Problem:
    """The pool: every structure with its labels, and what they cost; and the structures to be right about."""

    frames: dict[Pick, Frame]
    hours: dict[Pick, float]
    structures: dict[str, Atoms]  # of the pool
    config: FitConfig
    features: Features
    test: list[Frame]

    def fit(self, labelled: Sequence[Pick]) -> MultiFidelityGP:
        frames = FrameSet(LEVELS, tuple(self.frames[p] for level in LEVELS for p in labelled if p[1] == level))
        return MultiFidelityGP.fit(frames, self.config, features=self.features, progress=False)

    def errors(self, model: MultiFidelityGP) -> np.ndarray:
        """Force errors of the test structures at mag, eV/Å."""
        weights = model.weights[-1][: model.basis.size]
        predicted = [self.features.rows(f.atoms)[1:-6] @ weights for f in self.test]
        return np.concatenate([p.numpy() - f.forces.ravel() for p, f in zip(predicted, self.test, strict=True)])  # type: ignore


@dataclass
class Campaign:
    """What one strategy has bought."""

    problem: Problem
    labelled: list[Pick]
    model: MultiFidelityGP
    rng: np.random.Generator
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0.0))

    def left(self, level: str) -> list[Pick]:
        have = set(self.labelled)
        return [p for p in self.problem.frames if p[1] == level and p not in have]

    def buy(self, pick: Pick) -> None:
        self.labelled.append(pick)
        self.spent[pick[1]] += self.problem.hours[pick]


Strategy = Callable[[Campaign, float], None]  # buys until all that was spent reaches the hours


def joint(levels: Sequence[str]) -> Strategy:
    """What `mfgp select` does, until nothing that it chooses can be paid."""

    def strategy(c: Campaign, until: float) -> None:
        names = list(c.problem.structures)
        have = set(c.labelled)
        left = until - sum(c.spent.values())
        found = select(
            c.model,
            list(c.problem.structures.values()),
            LEVELS[-1],
            budget_hours=2 * left,  # some will cost more than expected, some less
            levels=levels,
            taken=[
                (i, t) for i, s in enumerate(names) for t in LEVELS if (s, t) in have or (s, t) not in c.problem.frames
            ],
            seed=int(c.rng.integers(2**31)),
        )
        ranked(c, until, [(names[choice.index], choice.level) for choice in found.choices])

    return strategy


def ranked(c: Campaign, until: float, order: Sequence[Pick]) -> None:
    """Buy in order what the budget pays for."""
    for pick in order:
        if sum(c.spent.values()) + c.problem.hours[pick] <= until:
            c.buy(pick)


def random_mix(share: float) -> Strategy:
    def strategy(c: Campaign, until: float) -> None:
        while True:
            total = sum(c.spent.values())
            level = "mag" if c.spent["mag"] <= share * total else "nm"
            paid = {t: [p for p in c.left(t) if total + c.problem.hours[p] <= until] for t in LEVELS}
            left = paid[level] or (paid["nm" if level == "mag" else "mag"] if share < 1 else [])
            if not left:
                return
            c.buy(left[c.rng.integers(len(left))])

    return strategy


def largest_std(c: Campaign, until: float) -> None:
    left = c.left("mag")
    predictor = c.model.predictor("mag", calibrated=False)
    std = [(predictor(c.problem.frames[p].atoms).forces_std ** 2).mean() for p in left]  # type: ignore[operator]
    ranked(c, until, [left[i] for i in np.argsort(std)[::-1]])


def d_optimal(c: Campaign, until: float) -> None:
    """Greedy log det of the information matrix of magnetic labels alone, in the features of the model."""
    model = c.model
    d = block_scales(model.prior.rho, model.prior.scale, model.basis.species_index(), model.column_std)[-1]  # [T, M']
    covariance = torch.diag((d**2).sum(0)).detach()[None, None].clone()  # [1, 1, M', M'] of the mag weights before data
    noise = model.noise.noise[-1].detach()

    def rows(pick: Pick) -> torch.Tensor:
        atoms = c.problem.frames[pick].atoms
        design = torch.cat([model.features.rows(atoms), model.predictor("mag").columns_of(atoms)], dim=1)
        return torch.cat([design[:1] / (noise[0] * len(atoms) ** 0.5), design[1:-6] / noise[1]])

    for pick in c.labelled:
        if pick[1] == "mag":
            condition(covariance, rows(pick), 0)
    left = c.left("mag")
    while left:
        value = [float(information_factor(covariance, rows(p), 0).diagonal().log().sum()) for p in left]
        pick = left.pop(int(np.argmax(value)))
        if sum(c.spent.values()) + c.problem.hours[pick] <= until:
            c.buy(pick)
            condition(covariance, rows(pick), 0)


STRATEGIES: dict[str, Strategy] = {
    "joint": joint(LEVELS),
    "joint, mag only": joint(LEVELS[1:]),
    **{f"random, {round(100 * share)} % mag": random_mix(share) for share in MIXES},
    "mag, largest std": largest_std,
    "mag, D-optimal": d_optimal,
}


def main(
    seeds: Annotated[int, typer.Option(help="Starts to average over.")] = 5,
    step: Annotated[float, typer.Option(help="Hours of a batch.")] = 0.1,
    total: Annotated[float, typer.Option(help="Hours in all.")] = 1.0,
    n_inducing: Annotated[int, typer.Option()] = 300,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    only: Annotated[str, typer.Option(help="Only strategies whose name contains this.")] = "",
) -> None:
    """Run every strategy from every start."""
    problem = build(n_inducing, split)
    budgets = [round(step * k, 6) for k in range(round(total / step) + 1)]
    chosen = {name: s for name, s in STRATEGIES.items() if only in name}
    started, cpu = time.perf_counter(), time.process_time()
    runs: list[dict[str, Any]] = []
    with bars() as report:
        for seed in range(seeds):
            first = start(problem, seed)
            model = problem.fit(first)
            for name, strategy in chosen.items():
                campaign = Campaign(problem, list(first), model, np.random.default_rng(seed))
                runs.append(run(campaign, strategy, budgets) | {"strategy": name, "seed": seed})
                report("campaigns", len(runs), seeds * len(chosen), name)
    rows = summary(runs, budgets)
    Console(width=150).print(table(rows, budgets, len(problem.test)))
    if split == "validation":
        return
    write_result(
        "selection",
        {
            "machine": machine(),
            "config": problem.config.model_dump(mode="json", exclude={"fidelities"}),
            "pool": {level: sum(p[1] == level for p in problem.frames) for level in LEVELS},
            "start": START,
            "n_test": len(problem.test),
            "budgets_hours": budgets,
            "summary": rows,
            "runs": runs,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
        },
    )


def build(n_inducing: int, split: str) -> Problem:
    """The pool of training structures, and the magnetic structures of a split."""
    settings = [f"model.n_inducing={n_inducing}", "training.n_optimise=null"]
    config = load_config(CONFIG, settings)
    training = read_frames({level: load_lmfp(level, "train") for level in LEVELS})
    frames = {(str(f.atoms.info["structure_id"]), f.fidelity): f for f in training}
    hours = {pick: (cost_seconds(f) or 0.0) / 3600 for pick, f in frames.items()}
    structures = {name: f.atoms for (name, level), f in frames.items() if level == "nm"}
    test = list(read_frames({"mag": load_lmfp("mag", split)}))
    with bars() as report:
        features = Features.build(training, config, report, keep_rows=True)
    return Problem(frames, hours, structures, config, features, test)


def start(problem: Problem, seed: int, counts: Mapping[str, int] = START) -> list[Pick]:
    """A few labels of each level, with all elements among them."""
    rng = np.random.default_rng(1000 + seed)
    species = {z for atoms in problem.structures.values() for z in atoms.numbers}
    while True:
        out: list[Pick] = []
        for level, n in counts.items():
            picks = [p for p in problem.frames if p[1] == level]
            out += [picks[i] for i in rng.permutation(len(picks))[:n]]
        if all({z for p in out if p[1] == t for z in problem.frames[p].atoms.numbers} == species for t in LEVELS):
            return out


def run(campaign: Campaign, strategy: Strategy, budgets: Sequence[float]) -> dict[str, Any]:
    """Error and purchases at every budget; None where the labels have run out before."""
    out: dict[str, list[Any]] = {"force_mae": [], "force_rmse": [], "spent_hours": [], "n_nm": [], "n_mag": []}
    for budget in budgets:
        if budget > 0:
            before = len(campaign.labelled)
            strategy(campaign, budget)
            if len(campaign.labelled) > before:
                campaign.model = campaign.problem.fit(campaign.labelled)
        error = campaign.problem.errors(campaign.model)
        out["force_mae"].append(float(np.abs(error).mean()))
        out["force_rmse"].append(float((error**2).mean() ** 0.5))
        out["spent_hours"].append(sum(campaign.spent.values()))
        for level in LEVELS:
            out[f"n_{level}"].append(sum(p[1] == level for p in campaign.labelled))
    return out


def summary(runs: list[dict[str, Any]], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of the error at every budget, while what was spent keeps up with it."""
    out = []
    for name in dict.fromkeys(r["strategy"] for r in runs):
        own = [r for r in runs if r["strategy"] == name]
        mae = np.array([r["force_mae"] for r in own])
        enough = np.array([r["spent_hours"] for r in own]) >= 0.9 * np.array(budgets) - 0.02
        out.append(
            {
                "strategy": name,
                "n_seeds": len(own),
                "force_mae": mae.mean(0).tolist(),
                "force_mae_sd": mae.std(0, ddof=1).tolist() if len(own) > 1 else None,
                "labels_left": enough.all(0).tolist(),
                "n_mag": np.mean([r["n_mag"] for r in own], axis=0).tolist(),
                "n_nm": np.mean([r["n_nm"] for r in own], axis=0).tolist(),
            }
        )
    return out


def table(rows: list[dict[str, Any]], budgets: Sequence[float], n_test: int) -> Table:
    """Force MAE (meV/Å) against hours; in brackets where the labels of the pool have run out."""
    out = Table(title=f"force MAE meV/Å of held-out magnetic structures (n = {n_test}) against hours, mean over seeds")
    out.add_column("strategy")
    for budget in budgets:
        out.add_column(f"{budget:g} h", justify="right")
    out.add_column("nm + mag")
    for r in rows:
        cells = [
            f"{1e3 * m:.0f}" if ok else f"({1e3 * m:.0f})"
            for m, ok in zip(r["force_mae"], r["labels_left"], strict=True)
        ]
        out.add_row(r["strategy"], *cells, f"{r['n_nm'][-1]:.0f} + {r['n_mag'][-1]:.0f}")
    return out


if __name__ == "__main__":
    typer.run(main)
