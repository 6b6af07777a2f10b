"""Learning curves: how the error at the top level falls with the number of its training structures, for several models.

All models of a curve share the descriptor and the inducing points, which are chosen from the training structures without
their labels, and see the same subsets of the top level (nested: the first n in a seeded order). What differs is only what
they learn from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfgp.base.progress import Report, silent
from mfgp.config import FitConfig, FixedRho
from mfgp.evaluation import Evaluation, evaluate
from mfgp.fit.features import Features
from mfgp.frames import FrameSet
from mfgp.model import MultiFidelityGP

Variant = Callable[[FrameSet, FitConfig], tuple[FrameSet, FitConfig]]


def joint(frames: FrameSet, config: FitConfig) -> tuple[FrameSet, FitConfig]:
    """All levels, rho as configured."""
    return frames, config


def top_level_only(frames: FrameSet, config: FitConfig) -> tuple[FrameSet, FitConfig]:
    """The plain single-level model of the highest level."""
    top = frames.levels[-1]
    return FrameSet((top,), tuple(frames.of(top))), config


def delta_learning(frames: FrameSet, config: FitConfig) -> tuple[FrameSet, FitConfig]:
    """All levels with rho fixed at 1."""
    return frames, config.model_copy(update={"model": config.model.model_copy(update={"rho": FixedRho(fixed=1.0)})})


VARIANTS: dict[str, Variant] = {"joint": joint, "top level only": top_level_only, "delta-learning": delta_learning}


@dataclass(frozen=True)
class Point:
    """One fit of a curve: its size, its model, its scores on the held-out frames, and its CPU seconds with rows at hand."""

    variant: str
    n_top: int
    model: MultiFidelityGP
    evaluation: Evaluation
    cpu_seconds: float


def first_of_top(frames: FrameSet, n_top: int, seed: int) -> FrameSet:
    """All frames of the lower levels, and the first n of the highest in a seeded order (isolated atoms always)."""
    top = frames.levels[-1]
    order = np.random.default_rng(seed).permutation(len(frames.of(top)))
    ordered = [frames.of(top)[i] for i in order]
    atoms = [f for f in ordered if f.isolated_atom]
    chosen = [f for f in ordered if not f.isolated_atom][:n_top]
    lower = [f for f in frames if f.fidelity != top]
    return FrameSet(frames.levels, (*lower, *atoms, *chosen))


def learning_curve(
    training: FrameSet,
    held_out: FrameSet,
    config: FitConfig,
    sizes: Sequence[int],
    variants: Mapping[str, Variant] | None = None,
    *,
    features: Features | None = None,
    baselines: Mapping[str, Any] | None = None,
    seed: int = 0,
    report: Report = silent,
) -> list[Point]:
    """Fit every variant at every size and score it on the held-out frames of the highest level.

    features: shared between curves; built from the training structures, rows kept, by default. `seed` orders the top
    level's frames.
    """
    variants = variants or VARIANTS
    features = features or Features.build(training, config, report, keep_rows=True)
    seen = [*first_of_top(training, max(sizes, default=0), seed), *held_out.of(training.levels[-1])]
    for i, frame in enumerate(seen):  # once for all fits, and in none of their seconds
        if not frame.held_out:
            features.rows(frame.atoms)
        if frame.held_out or config.training.calibrate:
            features.functionals(frame.atoms)
        report("rows", i + 1, len(seen), frame.fidelity)
    points, total = [], len(sizes) * len(variants)
    for n in sizes:
        subset = first_of_top(training, n, seed)
        for name, variant in variants.items():
            chosen, settings = variant(subset, config)
            start = time.process_time()
            model = MultiFidelityGP.fit(chosen, settings, features=features, baselines=baselines, progress=False)
            seconds = time.process_time() - start
            points.append(Point(name, n, model, evaluate(model, held_out, training.levels[-1]), seconds))
            report("fits", len(points), total, f"{name}, {n}")
    return points
