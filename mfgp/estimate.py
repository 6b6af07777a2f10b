"""What a fit will take, before it is started: memory and time from a sample of the data and a moment of measuring.

With n_ca the (centre, atom) pairs in range of the smallest cell that a structure repeats (primitive.py), counted on a
sample, D features, E entries of a form (rows.py), M_s inducing points of a species (M in all, M' with the columns beside
them), T levels, R labelled rows:

    descriptors        seconds per atom of SOAP values
    inducing points    sum_s n_s M_s (D + M_s / 2) multiply-adds, and seconds per pivot beside them    (n_s candidates)
    rows               seconds per pair and inducing point of its centre's species; each geometry once
    statistics         seconds per R M'^2 of whitening and Gram matrices
    evidence           evaluations, (4 T - 3) M'^3 each
    posterior          two more of them
    calibration        seconds per structure that is left out

All seconds are measured on this machine at this moment, with the code of the fit (rates.py). What is not known beforehand is
how many evaluations the optimiser will take: EVALUATIONS and REFINED of those allowed, as found on fits of silicon,
acetylacetone and LMFP (`python benchmarks/estimates.py` compares). Memory is the largest of the stages of the fit, beyond
what the interpreter takes (about 0.3 GB). Calculators of baselines come on top, in time and memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from descriptors import SOAP, fit_contraction
from descriptors.slopes import expansion_bytes
from mfgp.base.devices import resolve_device
from mfgp.config import FitConfig
from mfgp.data.single_point import structure_hash
from mfgp.data.training_frames import CALIBRATION_STRUCTURES, distinct, spread, trainable
from mfgp.data.trajectories import relatives
from mfgp.fit.accumulation import BATCH_ATOMS, BLOCK_ENTRIES, BLOCK_ROWS
from mfgp.fit.features import CANDIDATES_PER_POINT, MIN_CANDIDATES, THREADS_BYTES, candidates, uncontracted
from mfgp.fit.fitting import isolated_elements
from mfgp.fit.primitive import primitive
from mfgp.frames import Frame, FrameSet
from mfgp.gp.evidence import level_products
from mfgp.gp.functionals import BYTES
from mfgp.gp.objectives import FOLDS
from mfgp.gp.pair_term import pair_term
from mfgp.gp.rows import BLOCK_BYTES, form_entries
from mfgp.gp.statistics import Key
from mfgp.gp.training import REFINE_ITERATIONS
from mfgp.gp.vacuum_term import vacuum_term
from mfgp.rates import Rates, measure, pairs_per_centre

SAMPLE = 24  # structures on which pairs are counted
FLOAT = 8  # bytes
EVALUATIONS, REFINED = 0.5, 0.8  # of the evidence, for each iteration that is allowed: of the first run, of the last
COPIES = 5, 2  # of Gram matrices of the size M' that are held at a time: of each level, and beside them
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
    """Sizes that set the cost. By species [S]: atoms, pairs n_ca (of distinct structures, where needed), candidates, M_s."""

    atoms: np.ndarray
    pairs: np.ndarray
    candidates: np.ndarray
    inducing: np.ndarray
    n_features: int  # D
    n_entries: int  # E, of a form
    n_frames: int
    n_rows: int  # with labels, of all frames
    largest_rows: int  # of the largest structure
    largest_bytes: float  # of its expansion with slopes
    n_columns: int
    keys: tuple[Key, ...]  # (level, kind) of each set of statistics
    n_levels: int
    evaluations: tuple[tuple[int, float], ...]  # (inducing points, evaluations) of each run of the optimiser
    n_calibrated: int  # structures whose rows calibration makes
    n_together: int  # the most of them that are left out, and held, together
    jacobian_bytes: float  # of the largest structure, 0 where nothing needs it
    copies: int  # of the statistics: of all data, of folds, of all but one fold
    threads: int = 1  # that expand structures at once

    @property
    def size(self) -> int:
        """M', parameters of one level."""
        return int(self.inducing.sum()) + self.n_columns


def estimate(frames: FrameSet, config: FitConfig) -> Estimate:
    """Memory and time of `MultiFidelityGP.fit(frames, config)`; takes a second or two.

    Raises DataError where there is nothing to train on.
    """
    training = distinct(trainable(frames))
    device = resolve_device(config.device)
    sample = _sample(training, config.seed)
    species = tuple(sorted({int(z) for f in training for z in f.atoms.numbers}))
    soap = uncontracted(species, config.descriptor)
    if config.descriptor.contraction is not None:
        batches = (soap.neighborhoods([f.atoms], device=device) for f in sample)
        soap = SOAP(config.descriptor, species, fit_contraction(soap, batches, config.descriptor.contraction))
    counts = count(training, sample, soap, config)
    rates = measure(sample, soap, counts.inducing, counts.n_columns, list(counts.keys), counts.n_levels, config, device)
    parts = seconds(counts, rates)
    if config.training.objective == "vfe":
        parts["prior variances"] = rates.per_left_out * counts.n_frames
    return Estimate(memory_bytes(counts), sum(parts.values()), 2e-9 * rates.gemm, soap.n_features, parts)


def count(training: FrameSet, sample: list[Frame], soap: SOAP, config: FitConfig) -> Counts:
    """Sizes of a fit; pairs are counted on the sample and scaled by the number of atoms of each species."""
    cells = [primitive(f.atoms).cell for f in sample]
    per_centre = np.concatenate([pairs_per_centre(cell, soap) for cell in cells])
    sampled = np.concatenate([cell.numbers for cell in cells])
    mean = [per_centre[sampled == z].mean() if (sampled == z).any() else per_centre.mean() for z in soap.species]
    atoms, moved = _atoms(training, soap.species)
    numbers = np.concatenate([a.numbers for a in candidates(training, config)])
    offered = np.array([(numbers == z).sum() for z in soap.species])
    n_candidates = min(len(numbers), max(MIN_CANDIDATES, CANDIDATES_PER_POINT * config.model.n_inducing))
    chosen_from = _shares(offered, n_candidates)
    m = min(config.model.n_inducing, n_candidates)
    largest = max(training, key=lambda f: len(f.atoms))
    terms = (pair_term(config.pair, soap.species), vacuum_term(isolated_elements(training), config.descriptor))
    needs_jacobian = config.training.calibrate or config.training.objective == "vfe"
    keys = {(training.levels.index(f.fidelity), kind) for f in training for kind in _labels(f)}
    calibrated, together = _left_out(training, config) if config.training.calibrate else (0, 0)
    return Counts(
        atoms=atoms,
        pairs=moved * np.array(mean),
        candidates=chosen_from,
        inducing=chosen_from / chosen_from.sum() * m,
        n_features=soap.n_features,
        n_entries=form_entries(soap),
        n_frames=len(training),
        n_rows=sum(sum(_labels(f).values()) for f in training),
        largest_rows=3 * len(largest.atoms) + 7,
        largest_bytes=float(expansion_bytes(soap, soap.neighborhoods([largest.atoms])).sum()),
        n_columns=len(soap.species) + len(config.baselines) + sum(term.size for term in terms if term is not None),
        keys=tuple(sorted(keys)),
        n_levels=len(training.levels),
        evaluations=_evaluations(config, m),
        n_calibrated=calibrated,
        n_together=together,
        jacobian_bytes=_jacobian_bytes(largest, soap) if needs_jacobian else 0.0,
        copies=FOLDS + 2 if config.training.objective == "cv" else 1,
        threads=torch.get_num_threads() if resolve_device(config.device).type == "cpu" else 1,
    )


def _labels(frame: Frame) -> dict[str, int]:
    """Number of labels of a frame by kind."""
    if frame.isolated_atom:
        return {} if frame.energy is None else {"isolated": 2}
    out = {} if frame.energy is None else {"energy": 1}
    if frame.forces is not None:
        out["forces"] = 3 * int(frame.force_mask.sum())
    return out if frame.stress is None else {**out, "virial": 6}


def _atoms(training: FrameSet, species: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Atoms by species, [S]: of distinct structures, and of the cells that those with labels of derivatives repeat."""
    derivatives: dict[str, bool] = {}
    structures: dict[str, Atoms] = {}
    for f in training:
        key = structure_hash(f.atoms)
        structures[key] = f.atoms
        moved = f.stress is not None or (f.forces is not None and not f.isolated_atom)
        derivatives[key] = derivatives.get(key, False) or moved

    def counted(chosen: Iterable[Atoms]) -> np.ndarray:
        return sum(
            (np.array([(a.numbers == s).sum() for s in species]) for a in chosen), np.zeros(len(species), dtype=int)
        )

    return counted(structures.values()), counted(
        primitive(structures[k]).cell for k, moved in derivatives.items() if moved
    )


def _shares(atoms: np.ndarray, limit: int) -> np.ndarray:
    """Candidates of each species: an equal share, what rare species leave goes to the others (features.py)."""
    out, room = np.zeros(len(atoms)), limit
    for rank, index in enumerate(np.argsort(atoms)):
        out[index] = min(int(atoms[index]), room // (len(atoms) - rank))
        room -= int(out[index])
    return out


def _left_out(training: FrameSet, config: FitConfig) -> tuple[int, int]:
    """Structures whose rows calibration makes: those that it leaves out and those that go with them; and the most of these
    that are held together.
    """
    related = relatives(training)
    sample = spread(training, related.enough(training, CALIBRATION_STRUCTURES), config.seed)
    chosen = {related.same[id(f)] for f in sample if not f.isolated_atom}
    distinct_structures = len(set(related.same.values()))
    alone = min(sum(1 + related.count(k) for k in chosen), distinct_structures)
    return alone + (distinct_structures if related.stretches else 0), max(
        (1 + related.count(k) for k in chosen), default=0
    )


def _jacobian_bytes(frame: Frame, soap: SOAP) -> float:
    """Of the derivatives of all features of a structure; of a large one those of a part, and by strain (functionals)."""
    n, pairs = len(frame.atoms), float(pairs_per_centre(frame.atoms, soap).sum())
    return min(FLOAT * 3.0 * soap.n_features * (pairs + 2 * n), BYTES + FLOAT * 7.0 * soap.n_features * n)


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
    return evidence, (m, REFINED * min(REFINE_ITERATIONS, training.max_iterations))


def seconds(c: Counts, r: Rates) -> dict[str, float]:
    """Seconds of each part (module docstring)."""
    m, size = c.inducing, c.size
    pivots = float((c.candidates * m * (c.n_features + 0.5 * m)).sum())
    learning = sum(n * level_products(c.n_levels) * (points + c.n_columns) ** 3 for points, n in c.evaluations)
    return {
        "descriptors": float(c.atoms.sum()) * r.per_atom,
        "inducing points": pivots / r.gemm + float(m.sum()) * r.per_pivot,
        "rows": float((c.pairs * m).sum()) * r.per_row_product,
        "statistics": c.n_rows * size**2 * r.per_block_product,
        "evidence": learning * r.per_evaluation,
        "posterior": 2 * level_products(c.n_levels) * size**3 * r.per_evaluation,
        "calibration": c.n_calibrated * r.per_left_out,
    }


def memory_bytes(c: Counts) -> float:
    """The largest of what the stages hold: candidates, a batch of rows with blocks that wait, the posterior."""
    m, size, n_keys = c.inducing, c.size, len(c.keys)
    basis = FLOAT * float((m * (c.n_features + len(m) * c.n_entries) + m**2).sum())
    candidates = FLOAT * float((3 * c.candidates * c.n_features + c.candidates * m).sum())
    statistics = FLOAT * c.copies * n_keys * size**2
    block = max(BLOCK_ROWS, BLOCK_ENTRIES // size)
    waiting = min(c.n_rows, n_keys * block) + 2 * min(c.n_rows, block)
    batch = min(c.n_rows, max(c.largest_rows, 3 * BATCH_ATOMS))
    batches = 3 if c.threads == 1 else 2 * c.threads + 2  # of rows: raw, whitened, and those that wait for their turn
    rows = c.threads * min(c.largest_bytes, BLOCK_BYTES) + FLOAT * size * (batches * batch + waiting)
    of_level, beside = COPIES
    joint = FLOAT * (of_level * c.n_levels + beside) * size**2
    covariances = FLOAT * c.n_levels * size**2
    rows += _functionals_bytes(c)
    left_out = FLOAT * c.n_together * c.largest_rows * size * (1 + c.n_levels)
    return LIBRARY_BYTES + basis + max(candidates, statistics + max(rows, joint + max(covariances, left_out)))


def _functionals_bytes(c: Counts) -> float:
    """Of the Jacobians that are held at once (Features.functionals_of_many), and of what waits for its turn then."""
    if c.threads == 1 or not 0.0 < c.threads * c.jacobian_bytes <= THREADS_BYTES:
        return c.jacobian_bytes
    return c.threads * c.jacobian_bytes + (c.threads + 1) * FLOAT * c.largest_rows * c.size * 4 / 3


def _sample(frames: FrameSet, seed: int) -> list[Frame]:
    order = np.random.default_rng(seed).permutation(len(frames))[:SAMPLE]
    return [frames.frames[i] for i in sorted(order)]
