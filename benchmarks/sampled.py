"""Standard deviations of forces from a few draws of the weights: how far from the exact ones, and how much faster.

    python benchmarks/sampled.py [--model MODEL]

The LMFP example is fitted, and magnetic validation structures are predicted; no label of theirs is used. The error is the
root mean square of sampled / exact - 1 over all force components, structures and seeds, for three exact ones:

    weights      of the posterior weights alone, what the draws estimate: 1 / sqrt(2 K) for K draws
    posterior    with what the inducing points do not carry, which draws leave out
    calibrated   both calibrated on left-out errors, the sampled one without that part (the default of a calculator)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import best_of, machine, write_result
from rich.console import Console
from rich.table import Table

from mfgp import MultiFidelityGP, read_frames
from mfgp.base.progress import bars
from mfgp.config import load_config
from mfgp.datasets import LMFP, load_lmfp
from mfgp.predict.predictor import Predictor
from mfgp.predict.residual import residual_variance

DRAWS = (4, 8, 16, 32)
KINDS = ("weights", "posterior", "calibrated")


def main(
    model: Annotated[Path | None, typer.Option(help="Model file; by default the LMFP example is fitted.")] = None,
    n_inducing: Annotated[int, typer.Option(help="Inducing points of that fit.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Sets of draws to average over.")] = 4,
    name: Annotated[str, typer.Option(help="Name of the JSON file under results/.")] = "sampled",
) -> None:
    """Compare sampled with exact standard deviations of forces, and time both."""
    torch.set_num_threads(1)
    config = load_config(LMFP / "config.yaml", (f"model.n_inducing={n_inducing}",))
    if model is None:
        fitted = MultiFidelityGP.fit(read_frames({k: load_lmfp(k, "train") for k in ("nm", "mag")}), config)
    else:
        fitted = MultiFidelityGP.load(model)
    structures = load_lmfp("mag", "validation")
    found, exact = errors(fitted, structures, seeds)
    timed = structures[0]
    whole = fitted.predictor()
    times = {kind: best_of(lambda kind=kind: whole(timed, kind), 5) for kind in ("none", "energies", "full")}
    for k in DRAWS:
        predictor = fitted.predictor(draws=k)
        times[f"sampled, {k} draws"] = best_of(lambda predictor=predictor: predictor(timed, "sampled"), 5)
    times = {kind: 1e3 * seconds / len(timed) for kind, seconds in times.items()}
    Console().print(error_table(found), time_table(times))
    result = {"machine": machine(), "n_structures": len(structures), "seeds": seeds, "exact": exact}
    write_result(name, {**result, "relative_rms_error": found, "cpu_ms_per_atom": times})


def errors(
    model: MultiFidelityGP, structures: list[Any], seeds: int
) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Relative rms errors by number of draws, and the root mean square of each exact standard deviation (eV/Å)."""
    exact = {kind: [] for kind in KINDS}
    plain, calibrated = model.predictor(calibrated=False), model.predictor()
    for atoms in structures:
        each = exact_deviations(plain, calibrated, atoms)
        for kind in KINDS:
            exact[kind].append(each[kind])
    squares: dict[int, dict[str, list[np.ndarray]]] = {k: {kind: [] for kind in KINDS} for k in DRAWS}
    with bars() as report:
        for done, (k, seed) in enumerate([(k, seed) for k in DRAWS for seed in range(seeds)]):
            predictor = model.predictor(calibrated=False, draws=k, seed=seed)
            for i, atoms in enumerate(structures):
                drawn = predictor(atoms, "sampled").forces_std
                with_factors = scaled(model, atoms, drawn)
                for kind in KINDS:
                    ours = with_factors if kind == "calibrated" else drawn
                    squares[k][kind].append((ours / exact[kind][i] - 1.0) ** 2)
            report("draws", done + 1, len(DRAWS) * seeds, "")
    found = {k: {kind: float(np.concatenate(v).mean() ** 0.5) for kind, v in s.items()} for k, s in squares.items()}
    return found, {kind: float(np.square(np.concatenate(v)).mean() ** 0.5) for kind, v in exact.items()}


def scaled(model: MultiFidelityGP, atoms: Any, drawn: np.ndarray) -> np.ndarray:
    """Calibrated standard deviations of forces from drawn ones, both [N, 3] eV/Å, as a calibrated predictor has them."""
    assert model.calibration is not None
    level = len(model.levels) - 1
    weights = torch.zeros(drawn.size + 7, dtype=torch.float64)
    weights[1:-6] = torch.from_numpy(drawn.ravel() ** 2)
    variances = model.calibration.variances(level, weights, None, atoms.numbers, model.label_noise(level))
    return variances[1:-6].sqrt().numpy().reshape(-1, 3)


def exact_deviations(plain: Predictor, calibrated: Predictor, atoms: Any) -> dict[str, np.ndarray]:
    """Exact standard deviations of forces, [N, 3] eV/Å."""
    posterior = plain(atoms).forces_std
    assert posterior is not None
    f = plain.model.features.functionals(atoms)
    residual = residual_variance(plain.model, plain.level, f.phi, f.prior)[1:-6].reshape(-1, 3).numpy()
    weights = np.sqrt(np.maximum(posterior**2 - residual, 0.0))
    return {"weights": weights, "posterior": posterior, "calibrated": calibrated(atoms).forces_std}


def error_table(found: dict[int, dict[str, float]]) -> Table:
    out = Table(title="relative rms error of sampled standard deviations of forces")
    for column in ("draws", "1 / sqrt(2 K)", *KINDS):
        out.add_column(column, justify="right")
    for k, each in found.items():
        out.add_row(str(k), f"{(2 * k) ** -0.5:.3f}", *(f"{each[kind]:.3f}" for kind in KINDS))
    return out


def time_table(times: dict[str, float]) -> Table:
    out = Table(title="energy, forces and stress of one structure")
    for column in ("uncertainty", "ms/atom (CPU)", "over the mean", "over exact"):
        out.add_column(column, justify="left" if column == "uncertainty" else "right")
    for kind, ms in times.items():
        out.add_row(kind, f"{ms:.3f}", f"{ms / times['none']:.2f}", f"{ms / times['full']:.3f}")
    return out


if __name__ == "__main__":
    typer.run(main)
