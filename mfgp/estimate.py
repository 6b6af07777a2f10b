"""What a fit will take, before it is started: memory and time from a sample of the data and a moment of measuring.

With n_ca the (centre, atom) pairs in range of a structure, counted on a sample, D features, E entries of a form (rows.py),
M_s inducing points of a species (M in all, M' with the columns beside them), T levels, rows R = 3N + 7 of a structure of N
atoms:

    descriptors        seconds per atom of SOAP values, measured on the sample
    inducing points    sum_s [ n_s M_s D + n_s M_s^2 / 2 ] multiply-adds of matrix-vector products    (n_s candidates)
    derivatives        seconds per pair of the coefficients' derivatives, measured on the sample
    rows               2 * 3 n_ca E M_s flops, summed over the species of the centres: matrix products
    statistics         whitening R M_s^2, Gram R M'^2 multiply-adds, and one pass over M'^2 numbers for each kind of label
    evidence           evaluations * [ (T M')^3 + passes over the statistics ]
    posterior          (T M')^3 and T covariances
    calibration        derivatives, rows and whitening of the structures that are left out, times CALIBRATION

Rates of matrix-matrix and matrix-vector products are those of this machine at this moment, on the device of the fit.
`OVERHEAD` is the ratio of measured to counted time: CPU seconds of every stage of fits to the LiFePO4 / LiMnPO4 example (111
structures at two levels, preset oxide, one core) with M = 400 and 1000, over the counts at rates measured in CPU seconds
too; with them the totals were 9.2 for 11.1 and 21.5 for 24.2 s. Memory is the largest of the stages of the fit, beyond what
the interpreter takes (about 0.3 GB): 0.28 and 0.38 GB where 0.18 and 0.29 GB were measured at M = 400 and 1000.
Calculators of baselines come on top, in time and memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from descriptors import SOAP, fit_contraction
from descriptors.slopes import expand_with_slopes, expansion_bytes, row_factors
from mfgp.config import FitConfig
from mfgp.features import CANDIDATES_PER_POINT, MIN_CANDIDATES, resolve_device
from mfgp.frames import Frame, FrameSet
from mfgp.model import CALIBRATION_STRUCTURES, spread, trainable
from mfgp.objectives import FOLDS
from mfgp.pair_term import pair_term
from mfgp.rows import BLOCK_BYTES, form_entries
from mfgp.training import REFINE_ITERATIONS

SAMPLE = 24  # structures on which pairs are counted
TIMED_PAIRS = 100  # (centre, atom) pairs whose derivatives are timed
GEMM_SIZE, GEMV_SIZE = 512, 2048
FLOAT = 8  # bytes
CALIBRATION = (
    3.0  # time of full Jacobian, rows and prior variances of a structure over that of its rows alone, measured
)
OVERHEAD = {"rows": 3.2, "statistics": 1.5, "evidence": 2.3, "posterior": 2.3}  # measured, see above
EVALUATIONS = 0.5  # of the evidence, for each iteration that is allowed
COPIES = 5  # of the joint precision that are held at a time
LIBRARY_BYTES = 100e6  # workspaces, fragmentation, libraries loaded on first use


@dataclass(frozen=True)
class Estimate:
    """Cost of a fit: memory beyond that of the interpreter (bytes), seconds in all and by part, and what they rest on."""

    memory_bytes: float
    seconds: float
    gemm_gflops: float
    n_features: int
    parts: dict[str, float]


@dataclass(frozen=True)
class Counts:
    """Sizes that set the cost. By species: atoms, pairs n_ca, candidates, inducing points M_s, each [S]."""

    atoms: np.ndarray
    pairs: np.ndarray
    candidates: np.ndarray
    inducing: np.ndarray
    n_features: int  # D
    n_entries: int  # E, of a form
    n_frames: int
    n_rows: int  # of all structures
    largest_rows: int  # of the largest structure
    largest_bytes: float  # of its expansion with slopes
    n_columns: int
    levels: tuple[int, ...]  # level of each set of statistics
    n_levels: int
    evaluations: tuple[tuple[int, float], ...]  # (inducing points, evaluations) of each run of the optimiser
    n_calibrated: int  # structures that are left out one by one
    jacobian_bytes: float  # of the largest structure, 0 where nothing needs it
    copies: int  # of the statistics: of all data, of folds, of all but one fold

    @property
    def size(self) -> int:
        """M', parameters of one level."""
        return int(self.inducing.sum()) + self.n_columns


@dataclass(frozen=True)
class Rates:
    """Of this machine: multiply-adds per second of matrix-matrix and matrix-vector products, seconds per atom and pair."""

    gemm: float
    gemv: float
    per_atom: float
    per_pair: float


def estimate(frames: FrameSet, config: FitConfig) -> Estimate:
    """Memory and time of `MultiFidelityGP.fit(frames, config)`; takes well under a second.

    Raises DataError where there is nothing to train on.
    """
    training = trainable(frames)
    device = resolve_device(config.device)
    sample = _sample(training, config.seed)
    species = tuple(sorted({int(z) for f in training for z in f.atoms.numbers}))
    soap = SOAP(config.descriptor, species)
    if config.descriptor.contraction is not None:
        batches = (soap.neighborhoods([f.atoms], device=device) for f in sample)
        soap = SOAP(config.descriptor, species, fit_contraction(soap, batches, config.descriptor.contraction))
    counts = count(training, sample, soap, config)
    gemm, gemv = product_rates(device)
    rates = Rates(gemm, gemv, *descriptor_rates(sample, soap, device))
    parts = {name: OVERHEAD.get(name, 1.0) * value for name, value in seconds(counts, rates).items()}
    of_rows = parts["derivatives"] + parts["rows"] + parts["statistics"]
    parts["calibration"] = CALIBRATION * of_rows * counts.n_calibrated / counts.n_frames
    if config.training.objective == "vfe":
        parts["prior variances"] = (CALIBRATION - 1) * of_rows
    return Estimate(memory_bytes(counts), sum(parts.values()), 2e-9 * gemm, soap.n_features, parts)


def count(training: FrameSet, sample: list[Frame], soap: SOAP, config: FitConfig) -> Counts:
    """Sizes of a fit; pairs are counted on the sample and scaled by the number of atoms of each species."""
    numbers = np.concatenate([f.atoms.numbers for f in training])
    atoms = np.array([(numbers == z).sum() for z in soap.species])
    per_centre = np.concatenate([pairs_per_centre(f, soap) for f in sample])
    sampled = np.concatenate([f.atoms.numbers for f in sample])
    mean = [per_centre[sampled == z].mean() if (sampled == z).any() else per_centre.mean() for z in soap.species]
    distinct = {f.atoms.numbers.tobytes() + f.atoms.positions.tobytes(): f.atoms.numbers for f in training}
    every = np.concatenate(list(distinct.values()))
    n_candidates = min(len(every), max(MIN_CANDIDATES, CANDIDATES_PER_POINT * config.model.n_inducing))
    share = np.array([(every == z).sum() for z in soap.species]) / len(every)
    m = min(config.model.n_inducing, n_candidates)
    largest = max(training, key=lambda f: len(f.atoms))
    pair = pair_term(config.pair, soap.species)
    needs_jacobian = config.training.calibrate or config.training.objective == "vfe"
    statistics = {
        (f.fidelity, kind) for f in training for kind in ("energy", "forces", "stress") if getattr(f, kind) is not None
    }
    return Counts(
        atoms=atoms,
        pairs=atoms * np.array(mean),
        candidates=share * n_candidates,
        inducing=share * m,
        n_features=soap.n_features,
        n_entries=form_entries(soap),
        n_frames=len(training),
        n_rows=3 * len(numbers) + 7 * len(training),
        largest_rows=3 * len(largest.atoms) + 7,
        largest_bytes=float(expansion_bytes(soap, soap.neighborhoods([largest.atoms])).sum()),
        n_columns=len(soap.species) + len(config.baselines) + (0 if pair is None else pair.size),
        levels=tuple(training.levels.index(level) for level, _ in statistics),
        n_levels=len(training.levels),
        evaluations=_evaluations(config, m),
        n_calibrated=_left_out(training, config) if config.training.calibrate else 0,
        jacobian_bytes=_jacobian_bytes(largest, soap) if needs_jacobian else 0.0,
        copies=FOLDS + 2 if config.training.objective == "cv" else 1,
    )


def _left_out(training: FrameSet, config: FitConfig) -> int:
    """Structures that calibration leaves out; those at several levels count once."""
    sample = spread(training, CALIBRATION_STRUCTURES, config.seed)
    return len({f.atoms.numbers.tobytes() + f.atoms.positions.tobytes() for f in sample})


def _jacobian_bytes(frame: Frame, soap: SOAP) -> float:
    """Of the derivatives of all features of a structure."""
    return FLOAT * 3.0 * soap.n_features * (float(pairs_per_centre(frame, soap).sum()) + 2 * len(frame.atoms))


def _evaluations(config: FitConfig, m: int) -> tuple[tuple[int, float], ...]:
    training = config.training
    if not training.optimise:
        return ()
    first = m if training.n_optimise is None else min(training.n_optimise, m)
    evidence = (first, EVALUATIONS * training.max_iterations)
    if training.objective != "evidence":
        factorisations = FOLDS + 1 if training.objective == "cv" else 1
        return evidence, (m, EVALUATIONS * training.max_iterations * factorisations)
    if first == m:
        return (evidence,)
    return evidence, (m, 1.2 * min(REFINE_ITERATIONS, training.max_iterations))


def seconds(c: Counts, r: Rates) -> dict[str, float]:
    """Seconds of each part (module docstring), without overheads."""
    m, d, size = c.inducing, c.n_features, c.size
    pivots = float((c.candidates * m * (d + 0.5 * m)).sum())
    row_products = float((3 * c.pairs * c.n_entries * m).sum())
    whitening = float(c.n_rows * (0.5 * m**2).sum())
    passes = len(c.levels) / c.n_levels * c.n_frames * size**2  # every structure updates the statistics of its level
    learning = 0.0
    for points, evaluations in c.evaluations:
        learning += evaluations * _evidence(c, points + c.n_columns, r)
    posterior = 0.5 * (c.n_levels * size) ** 3 / r.gemm + 2 * c.n_levels**3 * size**2 / r.gemv
    return {
        "descriptors": float(c.atoms.sum()) * r.per_atom,
        "inducing points": pivots / r.gemv,
        "derivatives": float(c.pairs.sum()) * r.per_pair,
        "rows": row_products / r.gemm,
        "statistics": (whitening + c.n_rows * size**2) / r.gemm + 2 * passes / r.gemv,
        "evidence": learning,
        "posterior": posterior,
    }


def _evidence(c: Counts, size: int, r: Rates) -> float:
    """Seconds of one evaluation with its gradient: a factorisation, an inverse, and passes over the statistics."""
    passes = sum(3 * (t + 1) ** 2 for t in c.levels) + 4 * c.n_levels**2
    return 0.5 * (c.n_levels * size) ** 3 / r.gemm + passes * size**2 / r.gemv


def memory_bytes(c: Counts) -> float:
    """The largest of what the stages hold: candidates, rows of the largest structure, joint precision."""
    m, size = c.inducing, c.size
    basis = FLOAT * float((m * (c.n_features + len(m) * c.n_entries) + m**2).sum())
    candidates = FLOAT * float((3 * c.candidates * c.n_features + c.candidates * m).sum())
    statistics = FLOAT * c.copies * len(c.levels) * size**2
    rows = min(c.largest_bytes, BLOCK_BYTES) + FLOAT * (3 * c.largest_rows * size + size**2)
    joint = FLOAT * COPIES * (c.n_levels * size) ** 2
    covariances = FLOAT * c.n_levels * size**2
    rows += c.jacobian_bytes
    return LIBRARY_BYTES + basis + max(candidates, statistics + max(rows, joint + covariances))


def pairs_per_centre(frame: Frame, soap: SOAP) -> np.ndarray:
    """Unique (centre, atom) pairs of every atom of a structure, itself included, [N]."""
    nb = soap.neighborhoods([frame.atoms])
    n = len(frame.atoms)
    keys = torch.unique(torch.cat([nb.centre * n + nb.neighbor, torch.arange(n) * (n + 1)]))
    return torch.bincount(keys // n, minlength=n).numpy().astype(np.float64)


def product_rates(device: torch.device) -> tuple[float, float]:
    """Multiply-adds per second of float64 matrix-matrix and matrix-vector products on a device, in about 0.1 s."""
    a = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=torch.float64, device=device)
    b = torch.ones(GEMV_SIZE, GEMV_SIZE, dtype=torch.float64, device=device)
    return GEMM_SIZE**3 / _best(lambda: a @ a, device), GEMV_SIZE**2 / _best(lambda: b @ b[0], device)


def descriptor_rates(sample: list[Frame], soap: SOAP, device: torch.device) -> tuple[float, float]:
    """Seconds per atom of descriptor values, and per (centre, atom) pair of their derivatives, on one structure."""
    frame = sorted(sample, key=lambda f: len(f.atoms))[len(sample) // 2]
    nb = soap.neighborhoods([frame.atoms], device=device)
    n = len(frame.atoms)
    cumulative = np.cumsum(pairs_per_centre(frame, soap))
    centres = torch.arange(min(n, 1 + int(np.searchsorted(cumulative, TIMED_PAIRS))), device=device)
    values = _best(lambda: soap.values(nb), device)

    def slopes() -> Tensor:
        expansion = expand_with_slopes(soap, nb, centres)
        parts = [row_factors(expansion, 0, len(centres), s) for s in range(len(soap.species))]
        return parts[0].centre

    derivatives = _best(slopes, device)
    return values / n, derivatives / float(cumulative[len(centres) - 1])


def _best(work: Callable[[], Tensor], device: torch.device, repeats: int = 3) -> float:
    """Shortest of a few runs, seconds; the first, which sets things up, does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _sample(frames: FrameSet, seed: int) -> list[Frame]:
    order = np.random.default_rng(seed).permutation(len(frames))[:SAMPLE]
    return [frames.frames[i] for i in sorted(order)]


def available_memory(device: torch.device) -> float | None:
    """Bytes that a fit could still take: free on the GPU or the machine, or left by a container; None if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free: list[float] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [1024.0 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free.append(float(limit) - float(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return min(free, default=None)
