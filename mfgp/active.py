"""Learning on the fly: dynamics that call a real calculator where the model is unsure.

    otf = OnTheFly(model, {"gfn1": TBLite(method="GFN1-xTB"), "mag": gpaw}, threshold=0.1)
    atoms.calc = otf.calculator
    dyn.attach(otf)                        # or otf.attach(dyn)
    dyn.run(1000)

After each step the largest standard deviation in the calculator's results is compared with the threshold. Above it the
structure is labelled, at the level of largest gain per cost (selection), the model's error on the label is written down, the
model is updated and the calculator refreshed; the dynamics go on from the same positions, with the new forces. (The energy
surface changes at a call, so total energy is conserved between calls only.) If no label brings the std below the threshold,
it is not tried again for `patience` steps, unless the std rises by another tenth: the threshold is lower than the data can
reach.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.io import write

from mfgp.active_plot import on_the_fly_plot
from mfgp.base.extxyz_limits import writable
from mfgp.calculator import MultiFidelityCalculator
from mfgp.campaign.labelling import checked
from mfgp.campaign.learning import error_of
from mfgp.data.costs import CostModel
from mfgp.errors import ConfigError
from mfgp.frames import FrameSet, frames_from
from mfgp.model import MultiFidelityGP
from mfgp.selection.greedy import known_calculations, select

Source: TypeAlias = BaseCalculator | Callable[[], BaseCalculator]
RISE = 1.1  # of the std after a label that did not help enough: from there on another is tried
FILES = ("log.jsonl", "calls.jsonl", "labels.extxyz")
DEVIATIONS = {"full": "forces_std", "sampled": "forces_std", "energies": "energies_std", "local": "energies_std"}


class Attachable(Protocol):
    """An ASE dynamics or optimiser."""

    def attach(self, function: Any, interval: int = 1, *args: Any, **kwargs: Any) -> None: ...


class OnTheFly:
    """See the module's text.

    model: updated in place. calculators: by level, ASE calculators or functions that make one. threshold: of the largest
    std of a force component (eV/Å) with uncertainty `full` or `sampled`, of a local energy (eV) with `energies` or `local`,
    as the calculator's results have them. target: level of the dynamics (the highest). costs: hours by level; needed where
    there are several calculators and the model has not learned what they cost. directory: keeps log.jsonl, calls.jsonl and
    labels.extxyz of one run (each label is on disk before it is learned). frames: that the model was fitted to; with them it
    is calibrated on all after each label. refit_every: labels after which all is fitted again, inducing points too, or
    sooner where these do not carry one (calibration/carried.py); `otf.model` is another then. max_calls: calculations in
    all. patience: steps to wait after a call that did not help.
    spin: element -> accepted |moments|, within spin_tolerance (Bohr magnetons); other states are not learned.
    """

    def __init__(
        self,
        model: MultiFidelityGP,
        calculators: Mapping[str, Source],
        threshold: float,
        *,
        target: str | None = None,
        uncertainty: str = "full",
        costs: CostModel | Mapping[str, float] | None = None,
        directory: str | Path | None = None,
        frames: FrameSet | None = None,
        refit_every: int | None = None,
        max_calls: int | None = None,
        patience: int = 20,
        max_force: float = 100.0,
        spin: Mapping[str, list[float]] | None = None,
        spin_tolerance: float = 0.9,
    ) -> None:
        if not (isinstance(threshold, (int, float, np.number)) and np.isfinite(threshold) and threshold > 0):
            unit = "eV/Å" if DEVIATIONS.get(uncertainty) == "forces_std" else "eV"
            raise ConfigError(f"threshold is {threshold!r}; give a positive number of {unit}.")
        if uncertainty not in DEVIATIONS:
            raise ConfigError(f"uncertainty must be one of {', '.join(DEVIATIONS)}, not {uncertainty!r}.")
        if not calculators:
            raise ConfigError("no calculators: give at least one, {level: calculator}.")
        for level in calculators:
            model.level(level)
        self.costs = _costs(model, calculators, costs)
        self.model, self.calculators, self.threshold = model, dict(calculators), threshold
        self.calculator = MultiFidelityCalculator(model, target, uncertainty=uncertainty)
        self.quantity = DEVIATIONS[uncertainty]
        self.directory = None if directory is None else _fresh(Path(directory))
        if refit_every is not None and frames is None:
            raise ConfigError("refit_every needs frames: the data that the model was fitted to.")
        if frames is not None:
            model.check_seen(frames.training())
        self.frames, self.refit_every = frames, refit_every
        self.max_calls, self.patience = max_calls, patience
        self.max_force, self.spin, self.spin_tolerance = max_force, dict(spin or {}), spin_tolerance
        self.log: list[dict[str, Any]] = []  # one row for each step that was looked at
        self.calls: list[dict[str, Any]] = []  # one for each calculation
        self.labels: list[Atoms] = []
        self._wait_until, self._ceiling = 0, np.inf
        self._warned: set[str] = set()

    def attach(self, dynamics: Attachable, interval: int = 1) -> None:
        """Look at every `interval`-th step of an ASE dynamics or optimiser."""
        dynamics.attach(self, interval=interval)

    def __call__(self) -> None:
        """Look at the structure that the calculator holds; label, learn and refresh where it is unsure."""
        step, atoms = len(self.log), self.calculator.atoms
        if atoms is None or not self.calculator.results:
            raise ConfigError("nothing computed yet: set atoms.calc = otf.calculator before the dynamics run.")
        std = self.std()
        row: dict[str, Any] = {
            "step": step,
            "std": std,
            "energy": float(self.calculator.results["energy"]),
            "called": [],
        }
        self.log.append(row)
        unsure = std > self.threshold and (step >= self._wait_until or std > self._ceiling)
        if unsure and (self.max_calls is None or len(self.calls) < self.max_calls):
            row["called"] = self._learn(atoms.copy(), step)
            row["std_after"] = self.std()
            if row["called"] and row["std_after"] > self.threshold:
                self._wait_until = step + self.patience
                learned = self.calls[-1]["outcome"] == "done"
                self._ceiling = RISE * row["std_after"] if learned else np.inf
                self._warn(row["std_after"])
        self._write("log.jsonl", row, sync=bool(row["called"]))

    def std(self) -> float:
        """The largest standard deviation in the results of the calculator: eV/Å, or eV of a local energy."""
        return float(np.max(self.calculator.results[self.quantity]))

    def plot(self, path: str | Path | None = None) -> Path:
        """Draw std, calls and errors (PNG); by default plot.png in the directory."""
        if path is None and self.directory is None:
            raise ConfigError("plot: name a file, or give OnTheFly a directory.")
        path = Path(path) if path is not None else (self.directory or Path()) / "plot.png"
        return on_the_fly_plot(self.log, self.calls, self.threshold, self.quantity, path)

    def _learn(self, atoms: Atoms, step: int) -> list[str]:
        """Label a structure at one level after another until the model is sure, or no level is left."""
        tried: list[str] = []
        while self.std() > self.threshold and len(tried) < len(self.calculators):
            if self.max_calls is not None and len(self.calls) >= self.max_calls:
                break
            level = self._choose(atoms, tried)
            if level is None:
                break
            tried.append(level)
            self._call(atoms, level, step)
        return tried

    def _choose(self, atoms: Atoms, tried: list[str]) -> str | None:
        """The level of largest gain per cost, of those that were not tried and that the model has not learned it at."""
        known = {level for _, level in known_calculations(self.model, [atoms], self.model.levels)}
        levels = [t for t in self.model.levels if t in self.calculators and t not in tried and t not in known]
        if len(levels) < 2:
            return levels[0] if levels else None
        chosen = select(self.model, [atoms], self.calculator.fidelity, self.costs, n=1, levels=levels)
        return chosen.choices[0].level if chosen.choices else None

    def _call(self, atoms: Atoms, level: str, step: int) -> None:
        """One calculation: label, error before learning, update, refresh. A failure is written down, and no more."""
        start, std = time.perf_counter(), self.std()
        source = self.calculators[level]
        calculator = source if isinstance(source, BaseCalculator) else source()
        found = checked(calculator, atoms, self.spin, self.spin_tolerance, self.max_force)
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {"step": step, "level": level, "std": std, "outcome": found.outcome, "why": found.why}
        row |= {"hours": seconds / 3600.0}
        if found.outcome == "done":
            label = found.with_seconds(seconds).atoms(_plain(atoms), level)
            self._keep(label)
            frames = frames_from({level: [label]}, self.model.levels)
            row |= error_of(self.model.predictor(level)(atoms), frames.frames[0])
            self.model.update(frames)
            if self.frames is not None:
                self._learn_with(self.frames)
            self.calculator.refresh()
            self.calculator.calculate(atoms)
            row["std_after"] = self.std()
        self.calls.append(row)
        self._write("calls.jsonl", row, sync=True)

    def _learn_with(self, first: FrameSet) -> None:
        """Fit the first data and all labels again when it is time, or these are not carried, else calibrate on them."""
        labels = frames_from(self.labels, self.model.levels)
        data = FrameSet(self.model.levels, (*first.training().frames, *labels.frames))
        calibration = self.model.calibration
        missed = calibration is not None and not calibration.carries
        if self.refit_every is not None and (missed or len(self.labels) % self.refit_every == 0):
            known = {baseline.name: baseline for baseline in self.model.baselines}
            self.model = MultiFidelityGP.fit(data, self.model.config, baselines=known, progress=False)
            self.calculator.model = self.model
        elif calibration is not None:
            self.model.calibrate(data)

    def _keep(self, label: Atoms) -> None:
        """On disk before it is learned."""
        self.labels.append(label)
        if self.directory is not None:
            with open(self.directory / "labels.extxyz", "a", encoding="utf-8") as file:
                write(file, writable(label)[0], format="extxyz")
                file.flush()
                os.fsync(file.fileno())

    def _write(self, name: str, row: dict[str, Any], sync: bool) -> None:
        if self.directory is None:
            return
        with open(self.directory / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())

    def _warn(self, std: float) -> None:
        """Once of calculations that did not end well, and once of labels that do not help."""
        last = self.calls[-1]
        if last["outcome"] in self._warned:
            return
        self._warned.add(last["outcome"])
        after = f"Looking away for {self.patience} steps each time."
        if last["outcome"] != "done":
            warnings.warn(
                f"the calculation at {last['level']} {_ended(last)}. Nothing was learned from it. {after}", stacklevel=4
            )
            return
        unit = "eV/Å" if self.quantity == "forces_std" else "eV"
        warnings.warn(
            f"{self.quantity} is {std:.3g} {unit} after labelling, above the threshold of {self.threshold:g}: labels do "
            f"not make the model surer than that; raise it. {after}",
            stacklevel=4,
        )


def _ended(call: dict[str, Any]) -> str:
    return f"{'failed' if call['outcome'] == 'failed' else 'was rejected'}: {call['why']}"


def _plain(atoms: Atoms) -> Atoms:
    """The geometry alone: momenta and constraints are no part of a label."""
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _costs(model: MultiFidelityGP, levels: Collection[str], given: CostModel | Mapping[str, float] | None) -> CostModel:
    """What calculations at these levels cost; ConfigError where nothing says it of one of several."""
    known = given if isinstance(given, CostModel) else model.costs.with_given(given or {})
    missing = known.missing(levels)
    if missing and len(levels) > 1:
        raise ConfigError(f"costs: nothing says what {missing[0]} costs; give costs={{{missing[0]!r}: hours, ...}}.")
    return known.with_given(dict.fromkeys(missing, 1.0))  # of one level alone the cost does not matter


def _fresh(directory: Path) -> Path:
    """The directory, made where there is none; ConfigError where it holds an earlier run."""
    directory.mkdir(parents=True, exist_ok=True)
    if there := [name for name in FILES if (directory / name).exists()]:
        raise ConfigError(
            f"{directory} holds an earlier run ({', '.join(there)}); name another directory, or move those files. "
            "model.update(ase.io.read('labels.extxyz', ':')) learns its labels."
        )
    return directory
