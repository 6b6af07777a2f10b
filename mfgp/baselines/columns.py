"""Baselines: the energy, forces and stress of an ASE calculator, used as one column with a learned coefficient.

    delta_t(S) has the mean  sum_b a_{t,b} B_b(S),    B_b from a Baseline here, a_{t,b} learned with e0

A model file stores a baseline's name and settings, never code: the calculator comes from the caller, or from the short
registry in this file. Labels are cached in memory, and in a directory when one is given, by a hash of the structure.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import os
import tempfile
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator
from numpy.typing import NDArray

from mfgp.baselines.coulomb import CoulombCalculator
from mfgp.baselines.zbl import ZBLCalculator
from mfgp.config import BaselineConfig, Setting
from mfgp.data.single_point import SinglePoint, compute_labels, structure_hash
from mfgp.errors import ConfigError, DataError

Array = NDArray[np.float64]


class Baseline:
    """A named ASE calculator with a bounded cache of its labels.

    settings: what a model file keeps beside the name. vacuum: Å put around structures in the directions that are not
    periodic, for calculators that know only crystals (their stress is left out then). cache_size: structures kept in
    memory. cache_dir: directory for labels that outlive the process; one sub-directory for each name and settings, so
    it must be another directory when the same name stands for another calculator.
    """

    def __init__(
        self,
        name: str,
        calculator: BaseCalculator,
        settings: Mapping[str, Setting] | None = None,
        *,
        vacuum: float | None = None,
        cache_size: int = 4096,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name = name
        self.calculator = calculator
        self.settings = dict(settings or {})
        self.vacuum = vacuum
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
        boxed = self.vacuum is not None and not bare.pbc.all()
        if boxed:
            bare.center(vacuum=self.vacuum, axis=tuple(np.flatnonzero(~bare.pbc)))
            bare.pbc = True
        try:
            with torch.inference_mode(False), torch.enable_grad():  # networks take their forces from autograd
                labels = compute_labels(self.calculator, bare)
            labels = replace(labels, stress=None) if boxed else labels
        except Exception as error:  # a calculator may raise anything
            raise DataError(
                f"baseline {self.name!r} failed on {atoms.symbols}: {type(error).__name__}: {error}; leave this "
                f"baseline out, leave such structures out, or pass a calculator that covers them.{_dtype_hint()}"
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
    missing = [config.name for config in configs if config.name not in given and config.name not in _REGISTRY]
    if missing:
        example = ", ".join(f"{name!r}: calculator" for name in missing)
        raise ConfigError(
            f"no calculator for baseline {', '.join(map(repr, missing))}; pass ASE calculators by name in Python, to "
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
    return Baseline(config.name, calculator, config.settings, vacuum=_VACUUM.get(config.name), cache_dir=cache_dir)


def first_levels(configs: Iterable[BaselineConfig], levels: Sequence[str]) -> tuple[int, ...]:
    """The lowest level that uses each baseline."""
    return tuple(levels.index(c.from_level) if c.from_level else 0 for c in configs)


def known_baselines() -> tuple[str, ...]:
    """Names that need no calculator from the caller."""
    return tuple(sorted(_REGISTRY))


def make_calculator(name: str, settings: Mapping[str, Setting] | None = None) -> Calculator:
    """Calculator of a registered name. Raises ConfigError for unknown names and settings, or a missing package."""
    if name not in _REGISTRY:
        raise ConfigError(f"no baseline named {name!r}; known are {', '.join(known_baselines())}.")
    factory = _REGISTRY[name]
    parameters = inspect.signature(factory).parameters
    known = [key for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    unknown = [key for key in settings or {} if key not in known]
    if unknown and len(known) == len(parameters):
        raise ConfigError(
            f"baseline {name!r} has no setting {', '.join(map(repr, unknown))}; known are {', '.join(known)}."
        )
    try:
        return factory(**dict(settings or {}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"baseline {name!r} with settings {dict(settings or {})}: {error}.{_dtype_hint()}") from error


def _dtype_hint() -> str:
    """Where a program has changed the default dtype that pretrained networks count on: what to do. Else empty."""
    if torch.get_default_dtype() == torch.float32:
        return ""
    return (
        f" Something in this program has made {torch.get_default_dtype()} PyTorch's default (MACE's calculators do), and "
        "pretrained networks count on float32: call torch.set_default_dtype(torch.float32) first."
    )


def _emt(*, asap_cutoff: bool = False) -> Calculator:
    from ase.calculators.emt import EMT  # a quarter of a second

    return EMT(asap_cutoff=asap_cutoff)


def _zbl(*, r_inner: float = 1.0, r_outer: float = 2.5) -> Calculator:
    return ZBLCalculator(r_inner=r_inner, r_outer=r_outer)


def _coulomb(*, smearing: float = 1.0, permittivity: float = 5.0, **charges: float) -> Calculator:
    return CoulombCalculator(charges, smearing, permittivity)


def _chgnet(*, model_name: str = "0.3.0", device: str = "cpu") -> Calculator:
    """CHGNet's pretrained potential; its weights ship in its package. Energy per cell, stress in eV/Å^3, ASE's sign."""
    try:
        from chgnet.model.dynamics import CHGNetCalculator
        from chgnet.model.model import CHGNet
    except ImportError as error:
        raise ConfigError(
            f"baseline 'chgnet' needs a package that is not installed ({error}); install it with "
            "pip install -e '.[chgnet]', or pass a calculator, baselines={'chgnet': calculator}."
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its device
        model = CHGNet.load(model_name=model_name, use_device=device, verbose=False)
        return CHGNetCalculator(model, use_device=device, on_isolated_atoms="ignore")


def _chgnet_0_2(*, device: str = "cpu") -> Calculator:
    """CHGNet's earlier weights, trained on the same data: errors of its own, so a second column beside the first helps."""
    return _chgnet(model_name="0.2.0", device=device)


def _chgnet_r2scan(*, device: str = "cpu") -> Calculator:
    """CHGNet's weights after transfer to r2SCAN."""
    return _chgnet(model_name="r2scan", device=device)


def _sevennet(*, model_name: str = "7net-0", device: str = "cpu") -> Calculator:
    """SevenNet's pretrained potential, of those whose weights ship in its package (Materials Project, PBE(+U))."""
    if model_name not in _SEVENNETS:
        raise ValueError(f"no weights of {model_name!r} in SevenNet's package; known are {', '.join(_SEVENNETS)}")
    try:
        from sevenn.calculator import SevenNetCalculator
    except ImportError as error:
        raise ConfigError(
            f"baseline 'sevennet' needs a package that is not installed ({error}); install it with "
            "pip install -e '.[sevennet]', or pass a calculator, baselines={'sevennet': calculator}."
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No tensor product accelerator")  # of GPUs
        return SevenNetCalculator(model_name, device=device, modal=_SEVENNETS[model_name])


def _sevennet_l3i5(*, device: str = "cpu") -> Calculator:
    """SevenNet with angular momenta to 3 and five layers: the most accurate here, three times the cost of the first."""
    return _sevennet(model_name="7net-l3i5", device=device)


def _sevennet_mf_0(*, device: str = "cpu") -> Calculator:
    """SevenNet trained on PBE(+U) and r2SCAN together, its PBE(+U) side."""
    return _sevennet(model_name="7net-mf-0", device=device)


_SEVENNETS = {"7net-0": None, "7net-l3i5": None, "7net-mf-0": "PBE"}  # and the side of a model of several fidelities
_REGISTRY: dict[str, Callable[..., Calculator]] = {
    "chgnet": _chgnet,
    "chgnet-0.2.0": _chgnet_0_2,
    "chgnet-r2scan": _chgnet_r2scan,
    "coulomb": _coulomb,
    "emt": _emt,
    "sevennet": _sevennet,
    "sevennet-l3i5": _sevennet_l3i5,
    "sevennet-mf-0": _sevennet_mf_0,
    "zbl": _zbl,
}
_VACUUM = {name: 15.0 for name in _REGISTRY if name.startswith("chgnet")}  # Å; beyond its cutoff of 6 Å: as open space


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
