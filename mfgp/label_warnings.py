"""Warnings about labels that may not be what a user means: other names, two origins in one level, vectors of moments."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mfgp.labels import LabelKeys, non_collinear, origin, unused_label_keys
from mfgp.sources import Entry, named

if TYPE_CHECKING:
    from mfgp.frames import Frame


def warn_of_labels(
    frames: Sequence[Frame], entries: Sequence[Entry], levels: Sequence[str], keys: LabelKeys, stacklevel: int
) -> None:
    """Warn once for each thing to look at; `frames` are the `entries` as they were read."""
    for level in levels:
        own = [frame for frame in frames if frame.fidelity == level]
        for message in (*_other_names(level, own, keys), *_two_origins(level, entries, keys)):
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
