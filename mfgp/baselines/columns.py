"""Baselines: the energy, forces and stress of an ASE calculator, used as one column with a learned coefficient.

    delta_t(S) has the mean  sum_b a_{t,b} B_b(S),    B_b from a Baseline here, a_{t,b} learned with e0

A model file stores a baseline's name and settings, never code: the calculator comes from the caller, or from the short
registry (registry.py). Labels are cached in memory, and in a directory when one is given, by a hash of the structure.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from mfgp.base.words import nearest
from mfgp.baselines.registry import OPEN_SPACE, VACUUM, default_dtype_hint, known_baselines, make_calculator
from mfgp.config import BaselineConfig, Setting
from mfgp.data.single_point import SinglePoint, compute_labels, structure_hash
from mfgp.errors import ConfigError, DataError

Array = NDArray[np.float64]


class Baseline:
    """A named ASE calculator with a bounded cache of its labels.

    settings: what a model file keeps beside the name. vacuum: Å put around structures in the directions that are not
    periodic, for calculators that know only crystals (their stress is left out then); open_space: not around molecules,
    which the calculator knows as they are. cache_size: structures kept in memory. cache_dir: directory for labels that
    outlive the process; one sub-directory for each name and settings, so it must be another directory when the same name
    stands for another calculator.
    """

    def __init__(
        self,
        name: str,
        calculator: BaseCalculator,
        settings: Mapping[str, Setting] | None = None,
        *,
        vacuum: float | None = None,
        open_space: bool = False,
        cache_size: int = 4096,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name = name
        self.calculator = calculator
        self.settings = dict(settings or {})
        self.vacuum, self.open_space = vacuum, open_space
        self._cache: OrderedDict[str, SinglePoint] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()  # an ASE calculator is no place for two threads
        self._directory = None if cache_dir is None else Path(cache_dir) / f"{name}-{_settings_hash(self.settings)}"

    def make_room(self, structures: int) -> None:
        """Keep labels of at least so many structures in memory."""
        self._cache_size = max(self._cache_size, structures)

    def labels(self, atoms: Atoms) -> SinglePoint:
        """Labels of `atoms`, computed once for each geometry; info, constraints, charges and moments play no part.

        One thread at a time. Raises DataError when the calculator fails on the structure, or returns something that is not
        finite.
        """
        with self._lock:
            return self._labels(atoms)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _labels(self, atoms: Atoms) -> SinglePoint:
        key = structure_hash(atoms)
        labels = self._cache.pop(key, None)
        path = None if self._directory is None else self._directory / f"{key}.npz"
        if labels is None and path is not None:
            labels = _load(path)
        if labels is None:
            labels = self._compute(atoms)
            if path is not None:
                _save(path, labels)
        self._cache[key] = labels  # last in, so the first is the one used longest ago
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return labels

    def _compute(self, atoms: Atoms) -> SinglePoint:
        bare = _right_handed(Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
        known = bare.pbc.all() or (self.open_space and not bare.pbc.any())
        boxed = self.vacuum is not None and not known
        if boxed:
            bare.center(vacuum=self.vacuum, axis=tuple(np.flatnonzero(~bare.pbc)))
            bare.pbc = True
        try:
            with torch.inference_mode(False), torch.enable_grad():  # networks take their forces from autograd
                labels = compute_labels(self.calculator, bare)
            labels = replace(labels, stress=None) if boxed else labels
        except Exception as error:  # a calculator may raise anything
            why = f"{type(error).__name__}: {error}".rstrip(" .\n")
            raise DataError(
                f"baseline {self.name!r} failed on {atoms.symbols}: {why}; leave this "
                f"baseline out, leave such structures out, or pass a calculator that covers them.{default_dtype_hint()}"
            ) from error
        for name in ("energy", "forces", "stress"):
            value = getattr(labels, name)
            if value is not None and not np.isfinite(value).all():
                raise DataError(
                    f"baseline {self.name!r}: {name} of {atoms.symbols} is not finite; leave the structure or the "
                    "baseline out."
                )
        return labels


def _right_handed(atoms: Atoms) -> Atoms:
    """The same crystal by vectors of positive volume: CHGNet 0.4.2 divides its stress by the signed one."""
    if np.linalg.det(atoms.cell.array) < 0:
        order = [1, 0, 2]
        atoms.set_cell(atoms.cell.array[order])
        atoms.pbc = atoms.pbc[order]
    return atoms


def make_baselines(
    configs: Iterable[BaselineConfig],
    calculators: Mapping[str, BaseCalculator | Baseline] | None = None,
    levels: Sequence[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> list[Baseline]:
    """Baselines in the order of `configs`: the caller's calculators first, then the registry of names known here.

    A Baseline instead of a calculator is taken as it is, with the labels that it holds already.

    levels: when given, every `from_level` must be one of them. Raises ConfigError that names every baseline without a
    calculator, calculators of no baseline, an unknown level, settings that the calculator does not take, or a package
    that is not installed.
    """
    given = dict(calculators or {})
    configs = list(configs)
    if strange := sorted(set(given) - {config.name for config in configs}):
        raise ConfigError(
            f"baselines {', '.join(map(repr, strange))}: the configuration names none of them; add them to its "
            "`baselines`, for example {name: " + strange[0] + "}."
        )
    if wrong := [name for name, value in given.items() if not isinstance(value, (BaseCalculator, Baseline))]:
        raise ConfigError(f"baseline {wrong[0]!r} is a {type(given[wrong[0]]).__name__}; give an ASE calculator.")
    missing = [config.name for config in configs if config.name not in given and config.name not in known_baselines()]
    if missing:
        example = ", ".join(f"{name!r}: calculator" for name in missing)
        hint = next((near for name in missing if (near := nearest(name, known_baselines())) != "."), ".")
        raise ConfigError(
            f"no calculator for baseline {', '.join(map(repr, missing))}{hint} Pass ASE calculators by name in Python, to "
            f"MultiFidelityGP.fit or .load, baselines={{{example}}}, or use a name known here: "
            f"{', '.join(known_baselines())}."
        )
    for config in configs:
        if levels is not None and config.from_level is not None and config.from_level not in levels:
            raise ConfigError(
                f"baseline {config.name!r}: from_level {config.from_level!r} is no level; known are "
                f"{', '.join(levels)}."
            )
    return [_baseline(config, given.get(config.name), cache_dir) for config in configs]


def _baseline(
    config: BaselineConfig, given: BaseCalculator | Baseline | None, cache_dir: str | os.PathLike[str] | None
) -> Baseline:
    if isinstance(given, Baseline):
        return given
    calculator = make_calculator(config.name, config.settings) if given is None else given
    vacuum, open_space = VACUUM.get(config.name), config.name in OPEN_SPACE
    return Baseline(config.name, calculator, config.settings, vacuum=vacuum, open_space=open_space, cache_dir=cache_dir)


def first_levels(configs: Iterable[BaselineConfig], levels: Sequence[str]) -> tuple[int, ...]:
    """The lowest level that uses each baseline."""
    return tuple(levels.index(c.from_level) if c.from_level else 0 for c in configs)


def _settings_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _save(path: Path, labels: SinglePoint) -> None:
    """Write an npz under another name and move it into place, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            stress = np.zeros(0) if labels.stress is None else labels.stress
            np.savez(file, energy=np.float64(labels.energy), forces=labels.forces, stress=stress)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _load(path: Path) -> SinglePoint | None:
    """Labels of a cache file; None when it is absent or damaged, and then they are computed again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            stress = data["stress"]
            return SinglePoint(float(data["energy"]), data["forces"], stress if stress.size else None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
