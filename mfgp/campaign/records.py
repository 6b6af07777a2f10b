"""Rows of a campaign's database, and labels as JSON text, exact and readable; structures are in structure_json.

A label keeps the `info` of its own frame, so what is exported is what came in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from mfgp.data.labels import FIDELITY_TAGS, LabelKeys
from mfgp.data.structure_json import plain, structure_of
from mfgp.frames import Frame, FrameSet, frames_from, to_atoms

Record = dict[str, Any]
_KEYS = LabelKeys()


@dataclass(frozen=True)
class LabelRow:
    """A label of the database. origin: initial, computed or added; learned_in: the first model version that holds it."""

    id: int
    structure: int
    level: str
    origin: str
    accepted: bool
    why: str
    learned_in: int | None
    created: str
    atoms: Atoms  # with REF_* labels and info
    before: Record | None  # the model's error on it before it was learned


@dataclass(frozen=True)
class Task:
    """One calculation: a structure at a level, and which attempt it is."""

    id: int
    structure: int
    level: str
    state: str
    attempt: int
    interruptions: int
    why: str


@dataclass(frozen=True)
class Planned:
    """A decision of a step, before it is written."""

    structure: int
    level: str
    gain: float
    std_before: float
    std_after: float
    hours: float
    why: str


def label_record(frame: Frame) -> str:
    """Labels of a frame as JSON: REF_* and what else its info and arrays hold."""
    atoms = to_atoms(frame)
    arrays = {k: v.tolist() for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
    info = {str(k): plain(v) for k, v in atoms.info.items()}
    if frame.wall_seconds is not None:
        info["wall_seconds"] = frame.wall_seconds
    return json.dumps({"info": info, "arrays": arrays})


def labelled_atoms(structure: str, label: str) -> Atoms:
    """Atoms with labels under REF_*, the level under `fidelity`; what `read_frames` takes."""
    atoms, record = structure_of(structure), json.loads(label)
    atoms.info = dict(record["info"])
    for key in (_KEYS.stress, _KEYS.virial):
        if key in atoms.info:
            atoms.info[key] = np.array(atoms.info[key], dtype=np.float64)
    for name, values in record["arrays"].items():
        atoms.set_array(name, np.array(values))
    return atoms


def frames_of(rows: list[LabelRow], levels: tuple[str, ...]) -> FrameSet:
    """Validated frames of labels, with levels as the model orders them."""
    if not rows:
        return FrameSet(levels, ())
    return frames_from({t: own for t in levels if (own := [r.atoms for r in rows if r.level == t])}, levels)


def bare(atoms: Atoms) -> Atoms:
    """Geometry, initial moments and what info says of the structure itself: no level, no labels, no costs."""
    out = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.has("initial_magmoms"):
        out.set_initial_magnetic_moments(atoms.get_initial_magnetic_moments())
    words = ("energy", "force", "stress", "virial", "seconds", "magmom")
    dropped = {*FIDELITY_TAGS, "split", "converged", "attempt", "scf_iterations", "start"}
    for key, value in atoms.info.items():
        if str(key) not in dropped and not any(w in str(key).lower() for w in words):
            out.info[str(key)] = value
    return out
