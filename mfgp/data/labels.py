"""Which numbers of an ase.Atoms are its labels, and are they usable.

Keys are resolved label by label: first the key of LabelKeys (in `info`, then `arrays`, then among the calculator's
results, so that `energy: energy` in a config works), then what ASE put on `atoms.calc`: `free_energy` before
`energy` (with smearing only the free energy is consistent with the forces), `forces`, `stress`. Nothing is taken of a
calculator whose forces (or energies) are others than those under the keys: it is that of another calculation.

A weight of 0 (WEIGHTS, what MACE reads of `info`) says that a label is none: placeholders are not learned.

What the numbers must look like is in `label_values`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from mfgp.data import label_values
from mfgp.data.label_values import Array

FIDELITY_TAGS = ("fidelity", "head", "data_modality")
SIGMAS = ("energy_sigma", "force_sigma")
COSTS = ("wall_seconds", "cpu_seconds")  # of the calculation that gave the labels
PREDICTED = "predicted_fidelity"  # in info: the level at which a model predicted what the calculator has
OWN_CALCULATOR = "multifidelitycalculator"  # name of calculator.MultiFidelityCalculator, live and in trajectories
_CALCULATOR = " of the calculator"
_CALCULATOR_KEYS = {
    "energy": ("free_energy", "energy"),
    "forces": ("forces",),
    "stress": ("stress",),
    "virial": (),
    "magmoms": ("magmoms",),
}
# MACE's weights in a loss -> the labels that one of 0 takes out of it
WEIGHTS = {
    "config_weight": ("energy", "forces", "stress", "virial", "magmoms"),
    "config_energy_weight": ("energy",),
    "config_forces_weight": ("forces",),
    "config_stress_weight": ("stress",),
    "config_virials_weight": ("virial",),
}
_LABEL_WORDS = ("energy", "force", "stress", "virial")


class LabelKeys(BaseModel):
    """Names of the labels in extxyz `info` (energy, stress, virial) and `arrays` (forces, magmoms)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: str = Field(default="REF_energy", min_length=1)
    forces: str = Field(default="REF_forces", min_length=1)
    stress: str = Field(default="REF_stress", min_length=1)
    virial: str = Field(default="REF_virial", min_length=1)
    magmoms: str = Field(default="REF_magmoms", min_length=1)

    def custom(self) -> dict[str, str]:
        """The keys that differ from the defaults: label -> key."""
        default = LabelKeys()
        return {label: key for label, key in self.model_dump().items() if key != getattr(default, label)}


@dataclass(frozen=True)
class Labels:
    """Labels of one structure as found, with what is wrong with them.

    energy eV; forces [N, 3] eV/Å; force_mask [N] bool (True = used); stress [6] eV/Å^3; magmoms [N] Bohr magnetons; sigmas
    in eV (of the total energy) and eV/Å.
    """

    energy: float | None
    forces: Array | None
    force_mask: NDArray[np.bool_]
    stress: Array | None
    magmoms: Array | None
    energy_sigma: float | None
    force_sigma: float | None
    problems: tuple[str, ...]

    @property
    def any(self) -> bool:
        return self.energy is not None or self.forces is not None or self.stress is not None


def resolve_labels(atoms: Atoms, keys: LabelKeys) -> Labels:
    """Labels of `atoms` under `keys`; every problem is described in `Labels.problems`, none is raised."""
    problems: list[str] = []
    results = _labelling_results(atoms, keys)
    for name in WEIGHTS:
        label_values.scalar(name, atoms.info.get(name), problems)
    labels = [label for label in _CALCULATOR_KEYS if label not in _without_weight(atoms)]
    found = {label: _find(atoms, label, getattr(keys, label), results, problems) for label in labels}
    mask = label_values.force_mask(atoms, problems)
    energy = label_values.scalar("energy", found.get("energy"), problems)
    forces = label_values.forces(found.get("forces"), mask, problems)
    stress = label_values.stress(found.get("stress"), found.get("virial"), atoms, problems)
    magmoms = label_values.magmoms(found.get("magmoms"), len(atoms), problems)
    sigmas = [label_values.sigma(name, atoms, problems) for name in SIGMAS]
    return Labels(energy, forces, mask, stress, magmoms, sigmas[0], sigmas[1], tuple(problems))


def key_present(atoms: Atoms, key: str) -> bool:
    """Whether a label key exists in info, arrays or the calculator's results of `atoms`."""
    return key in atoms.info or key in atoms.arrays or key in calculator_results(atoms)


def keys_found(frames: Iterable[Atoms]) -> str:
    """What info, arrays and calculators of `frames` hold, for messages: 'info: a, b; arrays: c; calc: d'."""
    info: set[str] = set()
    arrays: set[str] = set()
    results: set[str] = set()
    for atoms in frames:
        info.update(map(str, atoms.info))
        arrays.update(set(atoms.arrays) - {"numbers", "positions"})
        results.update(calculator_results(atoms))
    parts = (("info", info), ("arrays", arrays), ("calc", results))
    return "; ".join(f"{name}: {', '.join(sorted(names)) or 'nothing'}" for name, names in parts)


def unused_label_keys(atoms: Atoms) -> list[str]:
    """Keys of a clean structure that are named like labels (energy, force, stress, virial) but were not read."""
    names = [str(name) for name in (*atoms.info, *atoms.arrays)]
    return [name for name in names if any(word in name.lower() for word in _LABEL_WORDS)]


def without_labels(atoms: Atoms, keys: LabelKeys) -> Atoms:
    """Copy of `atoms` with no calculator, constraints, labels or their weights; other info and arrays stay."""
    dropped = {*keys.model_dump().values(), *SIGMAS, *WEIGHTS, "force_mask"}
    clean = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    for name, array in atoms.arrays.items():
        if name not in dropped and name not in ("numbers", "positions"):
            clean.set_array(name, array.copy())
    clean.info = {key: value for key, value in atoms.info.items() if key not in dropped}
    return clean


def calculator_results(atoms: Atoms) -> dict[str, Any]:
    """Results held by `atoms.calc`, without computing anything; empty when there is no calculator.

    Of what `mfgp predict` has written, or the calculator of a model, only those by which `prediction` knows it: its stresses
    and moments are no labels beside an energy and forces under names of their own.
    """
    results = dict(getattr(atoms.calc, "results", None) or {})
    known = {name for label in ("energy", "forces") for name in _CALCULATOR_KEYS[label]}
    return {k: v for k, v in results.items() if k in known} if _of_a_model(atoms) else results


def _of_a_model(atoms: Atoms) -> bool:
    return PREDICTED in atoms.info or str(getattr(atoms.calc, "name", "")).lower() == OWN_CALCULATOR


def _labelling_results(atoms: Atoms, keys: LabelKeys) -> dict[str, Any]:
    """Those of `calculator_results` that may be labels beside the ones under `keys`."""
    return {} if _other_calculation(atoms, keys) else calculator_results(atoms)


def _other_calculation(atoms: Atoms, keys: LabelKeys) -> bool:
    """Whether the calculator has other forces than those under a key or, without forces, only other energies: leftovers of
    molecular dynamics with a cheaper potential, say, in structures that were labelled since.
    """
    results = calculator_results(atoms)
    energy, forces = (_under_key(atoms, key) for key in (keys.energy, keys.forces))
    if results.get("forces") is not None:
        return forces is not None and label_values.other_forces(atoms, forces, results["forces"])
    energies = [results[name] for name in _CALCULATOR_KEYS["energy"] if results.get(name) is not None]
    return energy is not None and bool(energies) and all(label_values.other_energy(atoms, energy, e) for e in energies)


def of_other_calculation(atoms: Atoms, keys: LabelKeys) -> tuple[str, ...]:
    """Labels that only its calculator has, and that are left out since these are another calculation's."""
    if not _other_calculation(atoms, keys):
        return ()
    own = [label for label in _CALCULATOR_KEYS if _under_key(atoms, getattr(keys, label)) is not None]
    own += ["stress"] if "virial" in own else []
    results = calculator_results(atoms)
    return tuple(n for n in _CALCULATOR_KEYS if n not in own and _of_calculator(results, n, getattr(keys, n)))


def weight(atoms: Atoms, name: str) -> float | None:
    """One of WEIGHTS of a frame, None where it has none (what is no number is among the problems of its labels)."""
    raw = atoms.info.get(name)
    return None if raw is None else label_values.scalar(name, raw, [])


def _without_weight(atoms: Atoms) -> set[str]:
    """Labels that a weight of 0 says are none."""
    return {label for name, labels in WEIGHTS.items() if weight(atoms, name) == 0.0 for label in labels}


def weightless(atoms: Atoms, keys: LabelKeys) -> tuple[str, ...]:
    """Labels that it has and that are left out for their weight of 0."""
    results, without = _labelling_results(atoms, keys), _without_weight(atoms)
    return tuple(n for n in without if _find(atoms, n, getattr(keys, n), results, []) is not None)


def total_moment(atoms: Atoms, keys: LabelKeys) -> float | None:
    """Magnetic moment of the cell as the calculation gave it, in Bohr magnetons (magmom of its results or of info)."""
    results = _labelling_results(atoms, keys)
    for raw in (results.get("magmom"), atoms.info.get("total_magmom"), atoms.info.get("magmom")):
        value = None if raw is None else label_values.scalar("magmom", raw, [])
        if value is not None:
            return value
    return None


def prediction(atoms: Atoms, keys: LabelKeys) -> str | None:
    """What is wrong where its energy or forces are those that a model has predicted; None elsewhere."""
    places = (origin(atoms, label, keys) for label in ("energy", "forces"))
    if not _of_a_model(atoms) or not any(place is not None and place.endswith(_CALCULATOR) for place in places):
        return None
    what = "its energy and forces are predictions of a model"
    if PREDICTED in atoms.info:
        return f"{what} ({PREDICTED} in its info), no labels; if it has been calculated since, remove {PREDICTED}"
    return (
        f"{what} (its calculator is a MultiFidelityCalculator), no labels; calculate the structure, or write them under "
        f"{keys.energy} and {keys.forces} to have them as labels all the same"
    )


def origin(atoms: Atoms, label: str, keys: LabelKeys) -> str | None:
    """Where a label (energy, forces, ...) is taken from: 'REF_energy', 'free_energy of the calculator'."""
    key = getattr(keys, label)
    if label in _without_weight(atoms):
        return None
    if _under_key(atoms, key) is not None:
        return str(key)
    name = _of_calculator(_labelling_results(atoms, keys), label, key)
    return None if name is None else f"{name}{_CALCULATOR}"


def non_collinear(atoms: Atoms, keys: LabelKeys) -> bool:
    """Whether its magnetic moments are vectors, which are not used."""
    raw = _find(atoms, "magmoms", keys.magmoms, _labelling_results(atoms, keys), [])
    return raw is not None and np.ndim(raw) == 2


def _of_calculator(results: dict[str, Any], label: str, key: str) -> str | None:
    """The name of a label among a calculator's results."""
    return next((name for name in (key, *_CALCULATOR_KEYS[label]) if results.get(name) is not None), None)


def _under_key(atoms: Atoms, key: str) -> Any:
    """Raw value of a label under a name of its own, or None."""
    return next((place[key] for place in (atoms.info, atoms.arrays) if key in place), None)


def _find(atoms: Atoms, label: str, key: str, results: dict[str, Any], problems: list[str]) -> Any:
    """Raw value of a label, or None. A value of a calculator that belongs to another geometry is a problem."""
    if (raw := _under_key(atoms, key)) is not None:
        return raw
    name = _of_calculator(results, label, key)
    if name is None:
        return None
    if hasattr(atoms.calc, "check_state") and atoms.calc.check_state(atoms):
        problems.append(
            f"{name} on atoms.calc belongs to another geometry than the atoms; recompute it, or detach the calculator"
        )
        return None
    return results[name]
