"""Our candidates: which levels train, what lies below them, how the levels are tied.

All share descriptor and inducing points, chosen from the nm and mag training structures without their labels. CPU seconds
count the choice of inducing points, rows and the baselines' labels of the frames that train, and the fit with calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator
from common import timed
from dpa3 import NAME as DPA3
from task import Predicted, Task

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.base.progress import bars
from mfgp.baselines.columns import Baseline
from mfgp.baselines.registry import make_calculator
from mfgp.config import BaselineConfig, CoefficientPrior
from mfgp.data.single_point import structure_hash
from mfgp.fit.features import Features
from mfgp.frames import Frame

WIDTH_95 = 1.959964  # standard deviations
TIMED = 5  # structures on which the cost of a baseline's label is measured


@dataclass(frozen=True)
class Candidate:
    """levels that train; baselines; other settings of the sections model and training."""

    levels: tuple[str, ...]
    baselines: tuple[BaselineConfig, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def column(name: str, mean: float = 1.0, std: float = 0.3, from_level: str | None = None) -> BaselineConfig:
    """A potential as a baseline."""
    return BaselineConfig(name=name, from_level=from_level, coefficient=CoefficientPrior(mean=mean, std=std))


def columns(*names: str, from_level: str | None = None) -> tuple[BaselineConfig, ...]:
    """Several potentials: the first around 1, the others around 0."""
    return tuple(column(name, float(i == 0), 0.5, from_level) for i, name in enumerate(names))


CHGNETS = ("chgnet", "chgnet-0.2.0", "chgnet-r2scan")
SEVENNETS = ("sevennet-l3i5", "sevennet", "sevennet-mf-0")
CHGNETS_OF_FOLDS, SEVENNETS_OF_FOLDS = "chgnet-cross-fitted", "sevennet-l3i5-cross-fitted"  # cross_fitted.py
# Over a fine-tuned network the evidence takes what ten structures share for a property of all: with noises that are learned,
# forces and energies of validation structures were worse than with these (docs/accuracy_lmfp.md).
CAUTIOUS = {"optimise": False, "noise_force": 0.3, "noise_energy": 0.03}
CANDIDATES = {
    "GP, mag": Candidate(("mag",)),
    "GP, nm+mag": Candidate(("nm", "mag")),
    "GP, nm+mag, rho = 1 (Delta)": Candidate(("nm", "mag"), model={"rho": {"fixed": 1.0}}),
    "GP, gfn1+nm+mag": Candidate(("gfn1", "nm", "mag")),
    "CHGNet + GP, mag": Candidate(("mag",), (column("chgnet"),)),
    "CHGNet + GP, nm+mag": Candidate(("nm", "mag"), (column("chgnet"),)),
    "CHGNet + GP, nm+mag, rho by species": Candidate(("nm", "mag"), (column("chgnet"),), {"rho": "species"}),
    "CHGNet from mag on + GP, nm+mag": Candidate(("nm", "mag"), (column("chgnet", from_level="mag"),)),
    "CHGNet + GP, nm+mag, free coefficients": Candidate(("nm", "mag"), (column("chgnet", std=3.0),)),
    "three CHGNets + GP, mag": Candidate(("mag",), columns(*CHGNETS)),
    "two CHGNets + GP, mag": Candidate(("mag",), columns(*CHGNETS[:2])),
    "three CHGNets from mag on + GP, nm+mag": Candidate(("nm", "mag"), columns(*CHGNETS, from_level="mag")),
    "three CHGNets + GP, nm+mag": Candidate(("nm", "mag"), columns(*CHGNETS)),
    "SevenNet-l3i5 + GP, mag": Candidate(("mag",), columns("sevennet-l3i5")),
    "SevenNet-l3i5 + GP, nm+mag": Candidate(("nm", "mag"), columns("sevennet-l3i5")),
    "SevenNet-l3i5 from mag on + GP, nm+mag": Candidate(("nm", "mag"), columns("sevennet-l3i5", from_level="mag")),
    "SevenNet-l3i5 + CHGNet + GP, mag": Candidate(("mag",), columns("sevennet-l3i5", "chgnet")),
    "three SevenNets + GP, mag": Candidate(("mag",), columns(*SEVENNETS)),
    "three SevenNets + two CHGNets + GP, mag": Candidate(("mag",), columns(*SEVENNETS, *CHGNETS[:2])),
    "DPA3 + GP, mag": Candidate(("mag",), columns(DPA3)),
    "SevenNet-l3i5 + DPA3 + GP, mag": Candidate(("mag",), columns("sevennet-l3i5", DPA3)),
    "fine-tuned CHGNets + GP, mag": Candidate(("mag",), columns(CHGNETS_OF_FOLDS, "chgnet")),
    "fine-tuned SevenNets + GP, mag": Candidate(("mag",), (column(SEVENNETS_OF_FOLDS, std=0.1),), training=CAUTIOUS),
    "fine-tuned SevenNets + DPA3 + GP, mag": Candidate(("mag",), columns(SEVENNETS_OF_FOLDS, DPA3), training=CAUTIOUS),
    "stacked SevenNets + DPA3 + GP, mag": Candidate(("mag",), columns(SEVENNETS_OF_FOLDS, DPA3), training=CAUTIOUS),
}


class Workshop:
    """What the candidates share: features with the rows of every frame, the baselines' labels, and what both cost."""

    def __init__(
        self, training: FrameSet, config: FitConfig, cache: Path, calculators: Mapping[str, Calculator] | None = None
    ) -> None:
        self.config, self.calculators = config, calculators or {}  # of baselines that have no name in mfgp
        both = FrameSet(("nm", "mag"), tuple(f for f in training if f.fidelity in ("nm", "mag")))
        with bars() as report:
            with timed() as building:
                self.features = Features.build(both, config, report, keep_rows=True)
            with timed() as rows:
                for i, frame in enumerate(both):
                    self.features.rows(frame.atoms)
                    report("rows", i + 1, len(both), frame.fidelity)
        self.building = building.cpu
        self.row_seconds = rows.cpu / len({structure_hash(f.atoms) for f in both})
        self.cache = cache
        self._baselines: dict[str, Baseline] = {}
        self._label_seconds: dict[str, float] = {}

    def baselines(self, configs: Sequence[BaselineConfig]) -> dict[str, Baseline]:
        """Calculators with their labels on disk."""
        for c in configs:
            if c.name not in self._baselines:
                calculator = self.calculators.get(c.name) or make_calculator(c.name)
                self._baselines[c.name] = Baseline(c.name, calculator, cache_dir=self.cache)
        return {c.name: self._baselines[c.name] for c in configs}

    def label_seconds(self, baseline: Baseline, frames: Sequence[Frame]) -> float:
        """CPU seconds of one label, measured once for each baseline without the cache."""
        if baseline.name not in self._label_seconds:
            fresh = Baseline("timing", baseline.calculator)
            with timed() as labels:
                for frame in frames[:TIMED]:
                    fresh.labels(frame.atoms)
            self._label_seconds[baseline.name] = labels.cpu / len(frames[:TIMED])
        return self._label_seconds[baseline.name]

    def run(self, candidate: Candidate, task: Task, trained: tuple[Baseline, float] | None = None) -> Predicted:
        """Fit and predict. trained: a baseline made for the task, and the CPU seconds that its training took."""
        frames = FrameSet(candidate.levels, tuple(f for f in task.training if f.fidelity in candidate.levels))
        given = self.baselines([c for c in candidate.baselines if trained is None or c.name != trained[0].name])
        if trained is not None:
            given[trained[0].name] = trained[0]
        for baseline in given.values():
            for frame in (*frames, *task.held_out):
                baseline.labels(frame.atoms)  # from here on they are in its cache
        structures = len({structure_hash(f.atoms) for f in frames})
        for frame in frames:
            self.features.rows(frame.atoms)  # new ones only: gfn1
        with timed() as fit:
            config = self.configured(candidate)
            model = MultiFidelityGP.fit(frames, config, features=self.features, baselines=given, progress=False)
        seconds = {
            "fit": fit.cpu,
            "inducing points": self.building,
            "rows": self.row_seconds * structures,
            "labels of the baselines": sum(self.label_seconds(b, frames.frames) * structures for b in given.values()),
            "training of the baseline": 0.0 if trained is None else trained[1],
        }
        return _predicted(model, task, seconds)

    def configured(self, candidate: Candidate) -> FitConfig:
        """The settings of the example with what the candidate changes."""
        settings = self.config.model_dump(exclude={"preset", "fidelities"})
        settings["model"] |= candidate.model
        settings["training"] |= candidate.training
        return FitConfig(**settings | {"baselines": candidate.baselines})


def _predicted(model: MultiFidelityGP, task: Task, seconds: dict[str, float]) -> Predicted:
    predictor = model.predictor(task.top)
    found = [predictor(f.atoms) for f in task.held_out]
    pairs = list(zip(found, task.held_out, strict=True))
    energy = [abs(p.energy - f.energy) < WIDTH_95 * p.energy_std for p, f in pairs]
    forces = np.concatenate([(np.abs(p.forces - f.forces) < WIDTH_95 * p.forces_std).ravel() for p, f in pairs])
    return Predicted(
        energies=np.array([p.energy for p in found]),
        forces=[p.forces for p in found],
        magmoms=[p.magmoms for p in found],
        cpu_seconds=sum(seconds.values()),
        coverage={"energy": float(np.mean(energy)), "forces": float(forces.mean())},
        note={"cpu_seconds": seconds, "learned": model.hyperparameters()},
    )
