"""Warnings about labels that may not be what a user means: other names, two origins in one level, leftovers of another
calculation, weights of a loss, energies per atom, forces that constraints set to zero, the same labels at two levels,
vectors of moments; and about cells that are not those of the positions."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from mfgp.data.labels import (
    WEIGHTS,
    LabelKeys,
    non_collinear,
    of_other_calculation,
    origin,
    unused_label_keys,
    weight,
    weightless,
)
from mfgp.data.sources import Entry, named
from mfgp.data.transposed_cells import columns_warning, transposed

if TYPE_CHECKING:
    from mfgp.frames import Frame

VARIED = 1.5  # largest over smallest number of atoms, from which on total energies and those per atom differ
FOLLOWS = 0.2  # of what the composition's sum leaves of the energies; total energies have 1 and more
FEW_ENERGIES = 3  # structures without forces whose energies are the same at two levels by no chance


def warn_of_labels(
    frames: Sequence[Frame], entries: Sequence[Entry], levels: Sequence[str], keys: LabelKeys, stacklevel: int
) -> None:
    """Warn once for each thing to look at; `frames` are the `entries` as they were read."""
    for level in levels:
        own = [frame for frame in frames if frame.fidelity == level]
        found = (
            *_other_names(level, own, keys),
            *_two_origins(level, entries, keys),
            *_other_calculation(level, entries, keys),
            *_per_atom(level, own),
            *_held(level, own),
            *_columns(level, own),
        )
        for message in found:
            warnings.warn(message, stacklevel=stacklevel + 1)
    for message in (*_without_weight(entries, keys), *_weights(entries), *_same_labels(frames, levels)):
        warnings.warn(message, stacklevel=stacklevel + 1)
    if vectors := [entry for entry in entries if non_collinear(entry.atoms, keys)]:
        warnings.warn(
            f"magnetic moments of {len(vectors)} frames, first {named(vectors[0])}, are vectors of a non-collinear "
            "calculation; only collinear ones, a number for each atom, are used",
            stacklevel=stacklevel + 1,
        )


def _other_names(level: str, frames: Sequence[Frame], keys: LabelKeys) -> Iterator[str]:
    """A level without energies, say, whose frames hold something of that name."""
    names = sorted({name for frame in frames for name in unused_label_keys(frame.atoms)})
    for label, word, missing in (
        ("energy", "energy", all(frame.energy is None for frame in frames)),
        ("forces", "force", all(frame.forces is None for frame in frames)),
        ("virial", "virial", all(frame.stress is None for frame in frames)),
        ("stress", "stress", all(frame.stress is None for frame in frames)),
    ):
        alike = [n for n in names if word in n.lower() and not n.endswith(("_std", "_sigma", "_weight"))]
        if missing and alike:
            yield (
                f"fidelity {level!r}: no frame has {label} ({getattr(keys, label)}), but there is {', '.join(alike)}; "
                f"if that is it, set the key ({label}: {alike[0]})"
            )


def _per_atom(level: str, frames: Sequence[Frame]) -> Iterator[str]:
    """Energies that follow the composition of the frames whatever the number of their atoms."""
    labelled = [f for f in frames if f.energy is not None and not f.isolated_atom]
    numbers = sorted({int(z) for f in labelled for z in f.atoms.numbers})
    sizes = np.array([len(f.atoms) for f in labelled], dtype=float)
    if len(labelled) < 2 * len(numbers) + 6 or sizes.max() < VARIED * sizes.min():
        return
    counts = np.array([[(f.atoms.numbers == z).sum() for z in numbers] for f in labelled], dtype=float)
    energies = np.array([f.energy for f in labelled], dtype=float)
    total, per_atom = (_left(design, energies) for design in (counts, counts / sizes[:, None]))
    if per_atom < FOLLOWS * total:
        yield (
            f"fidelity {level!r}: the energies of frames of {sizes.min():.0f} - {sizes.max():.0f} atoms do not grow with "
            "the number of atoms; are they per atom? Energies are those of all atoms of a frame, in eV: multiply them"
        )


def _left(design: np.ndarray, values: np.ndarray) -> float:
    """Rms of what a least-squares fit of `values` [n] to the columns of `design` [n, k] leaves."""
    return float(np.sqrt(np.mean((values - design @ np.linalg.lstsq(design, values, rcond=None)[0]) ** 2)))


def _held(level: str, frames: Sequence[Frame]) -> Iterator[str]:
    """Forces that held_atoms.py has left out; one frame without any other is the doctor's to tell."""
    found = [frame for frame in frames if frame.held]
    if len(found) > 1 or any(frame.force_mask.any() for frame in found):
        yield (
            f"fidelity {level!r}: forces on {sum(f.held for f in found)} atoms of {len(found)} frames "
            f"({found[0].source} first) are exactly zero where no symmetry makes them so, or without what a constraint "
            "removes: constraints were applied when they were written (FixAtoms and its like), or they were not computed. "
            "They are left out; to have them, write atoms.get_forces(apply_constraint=False)"
        )


def _columns(level: str, frames: Sequence[Frame]) -> Iterator[str]:
    """Cells that would fit the positions if their rows were columns."""
    if found := transposed([f.atoms for f in frames]):
        yield f"fidelity {level!r}: {columns_warning(len(found), frames[found[0]].source)}"


def _two_origins(level: str, entries: Sequence[Entry], keys: LabelKeys) -> Iterator[str]:
    """A level whose energies, forces or stresses come from one place in some frames and from another in others."""
    own = [entry for entry in entries if entry.level == level and len(entry.atoms) > 1]
    for label in ("energy", "forces", "stress"):
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in own:
            place = origin(entry.atoms, label, keys)
            if place is not None:
                found[place].append(entry)
        if len(found) > 1:
            places = ", ".join(f"{place} in {len(e)} frames ({named(e[0])} first)" for place, e in found.items())
            yield (
                f"fidelity {level!r}: {label} is {places}. If these are not the same quantity of the same calculation, "
                f"write it under one name in all frames, or set the key ({label}: ...)"
            )


def _other_calculation(level: str, entries: Sequence[Entry], keys: LabelKeys) -> Iterator[str]:
    """Labels of a calculator that are left out, since its forces or energies are not those that have a name of their own."""
    own = [(entry, of_other_calculation(entry.atoms, keys)) for entry in entries if entry.level == level]
    found = [(entry, left_out) for entry, left_out in own if left_out]
    if found:
        names = ", ".join(dict.fromkeys(name for _, left_out in found for name in left_out))
        yield (
            f"fidelity {level!r}: {names} of the calculator in {len(found)} frames ({named(found[0][0])} first): left out, "
            f"since its forces, or energies without forces, are not those under {keys.forces} and {keys.energy}: of another "
            "calculation (dynamics with a cheaper potential, labelled since?). If they belong to these labels, "
            f"write them under a name of their own, as {getattr(keys, found[0][1][0])}"
        )


def _without_weight(entries: Sequence[Entry], keys: LabelKeys) -> Iterator[str]:
    """Labels that are left out for a weight of 0."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        for label in weightless(entry.atoms, keys):
            found[label].append(entry)
    if found:
        counts = ", ".join(
            f"{label} of {len(found[label])} frames" for label in WEIGHTS["config_weight"] if label in found
        )
        first = next(entry for entry in entries if any(entry is own[0] for own in found.values()))
        names = ", ".join(name for name in WEIGHTS if any(weight(e.atoms, name) == 0.0 for e in entries))
        yield (
            f"{counts} ({named(first)} first) have a weight of 0 ({names}), as MACE marks labels that are none: left out. "
            "If they are labels, remove the weight"
        )


def _weights(entries: Sequence[Entry]) -> Iterator[str]:
    """Weights that say more than whether a label is one."""
    found = {name: sum(weight(e.atoms, name) not in (None, 0.0, 1.0) for e in entries) for name in WEIGHTS}
    if any(found.values()):
        counts = ", ".join(f"{name} of {count} frames" for name, count in found.items() if count)
        yield (
            f"{counts}: weights of a loss other than 0 and 1 are not used. How far a label is trusted is its noise, which "
            "is learned for each level; energy_sigma (eV) and force_sigma (eV/Å) of a frame replace it"
        )


def _same_labels(frames: Sequence[Frame], levels: Sequence[str]) -> Iterator[str]:
    """Structures with the same energy, and forces, at two levels: one file for both, or labels in the wrong place."""
    by_level: dict[str, dict[bytes, Frame]] = {level: {} for level in levels}
    for frame in frames:
        if frame.energy is not None and not frame.isolated_atom:
            forces = np.zeros(0) if frame.forces is None else frame.forces
            parts = (frame.atoms.numbers.astype("<i8"), frame.atoms.positions, np.array(frame.energy), forces)
            by_level[frame.fidelity][b"".join(np.ascontiguousarray(part).tobytes() for part in parts)] = frame
    for low, high in combinations(levels, 2):
        same = [frame for key, frame in by_level[high].items() if key in by_level[low]]
        if len(same) >= FEW_ENERGIES or any(f.forces is not None and f.forces.any() for f in same):
            yield (
                f"fidelities {low!r} and {high!r} have the same energies, and forces where there are any, to the last digit "
                f"for {len(same)} structures ({same[0].source} first). Labels of two levels of theory differ: was one file "
                "named for both? Name the right files"
            )
