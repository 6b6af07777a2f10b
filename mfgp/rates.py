"""How fast this machine is at what a fit does: each kind of work, timed for a moment on a sample of the data.

What is timed is the code of the fit itself, with as many inducing points as asked for (made up: the time does not depend on
their values) but few structures, rows and steps; `estimate.py` multiplies by how much of it there will be. Where one thread
computes, seconds are those that the processor spends, whatever else it is doing; else they are those of the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from descriptors import SOAP
from mfgp.base.threads import ordered_map
from mfgp.calibration.leave_one_out import hat_inverse
from mfgp.config import FitConfig
from mfgp.fit.accumulation import BATCH_ATOMS, BLOCK_ROWS
from mfgp.fit.features import Features
from mfgp.fit.fitting import make_prior
from mfgp.fit.primitive import primitive
from mfgp.frames import Frame
from mfgp.gp.evidence import level_products
from mfgp.gp.hyperparameters import Evidence, LevelNoise
from mfgp.gp.inducing import InducingBasis, select_inducing
from mfgp.gp.kernels import n_functionals
from mfgp.gp.observations import whitened_blocks
from mfgp.gp.statistics import Key, Moments, Statistics

GEMM_SIZE = 512
PIVOTS = 100  # that are chosen from the sample
LARGEST_EVALUATION = 1000  # inducing points of the evaluation of the evidence that is timed
SAMPLE_ATOMS = BATCH_ATOMS // 4  # of the structures whose rows are timed
ENOUGH = 0.1  # seconds of timed runs after which no further one is made


@dataclass(frozen=True)
class Rates:
    """Seconds of each kind of work on this machine."""

    gemm: float  # multiply-adds per second of matrix products
    per_atom: float  # of descriptor values
    per_pivot: float  # of the choice of inducing points, beside its matrix products
    per_row_product: float  # of rows: for each (centre, atom) pair and inducing point of the centre's species
    per_block_product: float  # of whitening and Gram matrices: for each row and M'^2
    per_evaluation: float  # of the evidence with its gradient: for each (4 T - 3) M'^3
    per_left_out: float  # of a structure that calibration leaves out


def measure(
    sample: list[Frame],
    soap: SOAP,
    sizes: np.ndarray,
    n_columns: int,
    keys: list[Key],
    n_levels: int,
    config: FitConfig,
    device: torch.device,
) -> Rates:
    """Time a bit of everything, in a second or two. sizes [S]: M_s; keys: (level, kind) of the statistics."""
    by_size = sorted(sample, key=lambda f: len(f.atoms))
    typical = by_size[len(by_size) // 2]
    features = pretended(soap, sizes, config.model.zeta, device)
    gemm = product_rate(device)
    nb = soap.neighborhoods([typical.atoms], device=device)
    values = best(lambda: soap.values(nb), device)
    size = features.basis.size + n_columns
    virial = any(frame.stress is not None for frame in sample)
    left_out = config.training.calibrate or config.training.objective == "vfe"
    return Rates(
        gemm=gemm,
        per_atom=values / len(typical.atoms),
        per_pivot=_pivot(sample, soap, gemm, config, device),
        per_row_product=_row_product(sample, features, device),
        per_block_product=_block(features, size, device),
        per_evaluation=_evaluation(keys, n_levels, size, config, features, device),
        per_left_out=_left_out(typical, virial, features, size, n_levels, gemm, device) if left_out else 0.0,
    )


def pretended(soap: SOAP, sizes: np.ndarray, zeta: int, device: torch.device) -> Features:
    """Features with as many random inducing points of each species as asked for, K_MM taken as 1."""
    generator = torch.Generator().manual_seed(0)
    counts = np.maximum(1, np.round(sizes)).astype(int)
    points = []
    for m in counts:
        z = torch.rand(int(m), soap.n_features, dtype=torch.float64, generator=generator)
        points.append((z / z.norm(dim=1, keepdim=True)).to(device))
    factors = tuple(torch.eye(len(z), dtype=torch.float64, device=device) for z in points)
    basis = InducingBasis(
        soap.species, tuple(points), factors, torch.arange(int(counts.sum()), device=device), zeta, 0.0
    )
    return Features(soap, basis, device)


def product_rate(device: torch.device) -> float:
    """Multiply-adds per second of float64 matrix products on a device."""
    a = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=torch.float64, device=device)
    return GEMM_SIZE**3 / best(lambda: a @ a, device)


def pairs_per_centre(atoms: Atoms, soap: SOAP) -> np.ndarray:
    """Unique (centre, atom) pairs of every atom of a structure, itself included, [N]."""
    nb = soap.neighborhoods([atoms])
    n = len(atoms)
    keys = torch.unique(torch.cat([nb.centre * n + nb.neighbor, torch.arange(n) * (n + 1)]))
    return torch.bincount(keys // n, minlength=n).numpy().astype(np.float64)


def row_products(frames: list[Frame], features: Features) -> float:
    """Pairs times the inducing points of the species of their centres, summed over the cells that structures repeat."""
    points = dict(zip(features.basis.species, features.basis.points, strict=True))
    total = 0.0
    for frame in frames:
        cell = primitive(frame.atoms).cell
        counts = pairs_per_centre(cell, features.soap)
        total += sum(counts[cell.numbers == z].sum() * len(p) for z, p in points.items())
    return total


def _pivot(sample: list[Frame], soap: SOAP, gemm: float, config: FitConfig, device: torch.device) -> float:
    q, numbers = [], []
    for frame in sample:
        nb = soap.neighborhoods([frame.atoms], device=device)
        q.append(soap.values(nb))
        numbers.append(nb.numbers)
        if sum(len(x) for x in q) > 4 * PIVOTS:
            break
    every, z = torch.cat(q), torch.cat(numbers)
    chosen = 0

    def select() -> None:
        nonlocal chosen
        chosen = select_inducing(every, z, PIVOTS, config.model.zeta).size

    seconds = best(select, device, repeats=1)
    return max(0.0, seconds - chosen * len(every) * (soap.n_features + 0.5 * chosen) / gemm) / max(1, chosen)


def _row_product(sample: list[Frame], features: Features, device: torch.device) -> float:
    frames: list[Frame] = []
    for frame in sample:
        if not frame.isolated_atom and (not frames or sum(len(f.atoms) for f in frames) < SAMPLE_ATOMS):
            frames.append(frame)
    if not frames:
        return 0.0
    virial, structures = any(f.stress is not None for f in frames), [f.atoms for f in frames]
    copies = _copies(device)

    def work() -> None:
        for _ in ordered_map(lambda batch: features.raw(batch, virial=virial), [structures] * copies, device):
            pass

    return best(work, device, repeats=2) / copies / max(1.0, row_products(frames, features))


def _copies(device: torch.device) -> int:
    """Of a piece of work that is done on all threads, one on each."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def _block(features: Features, size: int, device: torch.device) -> float:
    rows = torch.rand(BLOCK_ROWS, size, dtype=torch.float64, device=device)
    moments, y = Moments.zeros(size, device), rows[:, 0].clone()

    def work() -> None:
        moments.add_blocks(whitened_blocks(features.basis, [rows]), y)

    return best(work, device, repeats=2) / (BLOCK_ROWS * size**2)


def _evaluation(
    keys: list[Key], n_levels: int, size: int, config: FitConfig, features: Features, device: torch.device
) -> float:
    """Of (4 T - 3) M'^3, with all inducing points or LARGEST_EVALUATION: fewer are slower for their number."""
    n_columns = size - features.basis.size
    m = max(1, min(size, LARGEST_EVALUATION))
    index = torch.zeros(m, dtype=torch.long, device=device)
    statistics = Statistics(m + n_columns)
    for key in keys:
        moments = Moments.zeros(statistics.size, device)
        moments.gram.diagonal().fill_(1.0)
        statistics.moments[key] = Moments(moments.gram, moments.projection, 1.0, 100)
    prior = make_prior(tuple(str(t) for t in range(n_levels)), features.basis, config.model.rho).to(device)
    objective = Evidence(LevelNoise(n_levels, (0.1, 0.1, 0.1)).to(device), prior)
    std = torch.ones(n_levels, n_columns, dtype=torch.float64, device=device)

    def work() -> None:
        (-objective(statistics, index, std)).backward()

    return best(work, device, repeats=2) / (level_products(n_levels) * statistics.size**3)


def _left_out(
    frame: Frame, virial: bool, features: Features, size: int, n_levels: int, gemm: float, device: torch.device
) -> float:
    """Rows with their prior variances, on all threads, and the eigenproblem of the labels of one structure."""
    n, copies = n_functionals(len(frame.atoms)), _copies(device)
    h = torch.eye(n, dtype=torch.float64, device=device) * 0.5
    h[0] += 1e-3

    def work() -> None:
        for _ in features.functionals_of_many([frame.atoms] * copies, virial):
            pass

    return (
        best(work, device, repeats=1) / copies
        + best(lambda: hat_inverse(h, 0.0), device, repeats=1)
        + n * n_levels * size * (0.5 * n_levels * size + n) / gemm
    )


def best(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Shortest of a few runs, of one if it is long, seconds; the first, which sets things up, does not count."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    work()
    times: list[float] = []
    while len(times) < repeats and sum(times) < ENOUGH:
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return min(times)
