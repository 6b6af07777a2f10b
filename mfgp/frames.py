"""Labelled structures of several levels of theory, read and validated once.

Levels are ordered, cheapest first; how a frame gets its level is in `sources`, how its labels are found in `labels`.
A frame may carry any subset of the labels: energy (eV), forces (eV/Å), stress (eV/Å^3, ASE's sign and Voigt order).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from mfgp.data.held_atoms import held_atoms
from mfgp.data.label_warnings import warn_of_labels
from mfgp.data.labels import (
    Array,
    LabelKeys,
    key_present,
    keys_found,
    prediction,
    resolve_labels,
    total_moment,
    weightless,
    without_labels,
)
from mfgp.data.reading import geometry_problems, raise_problems
from mfgp.data.sources import Entry, Sources, checked_levels, from_mapping, gather, named, tagged
from mfgp.errors import ConfigError, DataError

ALONE = (
    7.0  # Å; an atom whose nearest image is farther is an isolated one: crystals with one atom a cell end at 5.3 (Cs)
)
SAME_ATOM = 0.01  # eV; energies of an isolated atom that differ by more are of two states, or one is wrong

__all__ = ["Frame", "FrameSet", "LabelKeys", "frames_from", "read_frames", "to_atoms"]


def is_held_out(split: str | None) -> bool:
    """Whether a split, info["split"], keeps a structure out of training: test... and val... do, in any case."""
    return split is not None and str(split).lower().startswith(("test", "val"))


@dataclass(frozen=True)
class Frame:
    """One structure with its labels at one level.

    energy eV; forces [N, 3] eV/Å; force_mask [N] bool, True = used; stress [6] eV/Å^3; energy_sigma eV;
    force_sigma eV/Å; magmoms [N] Bohr magnetons (a label beside the others: alone it is none); total_magmom of
    the cell; held: atoms whose forces held_atoms has masked.
    `atoms` carries no calculator and no labels; `source` says where it came from ('nm.extxyz frame 3').
    """

    atoms: Atoms
    fidelity: str
    source: str
    energy: float | None
    forces: Array | None
    force_mask: NDArray[np.bool_]
    stress: Array | None
    energy_sigma: float | None
    force_sigma: float | None
    isolated_atom: bool
    split: str | None
    wall_seconds: float | None
    magmoms: Array | None = None
    total_magmom: float | None = None
    held: int = 0

    def __repr__(self) -> str:
        return f"<Frame {self.source}: {self.atoms.symbols} at {self.fidelity}, {', '.join(self.label_names) or 'no label'}>"

    @property
    def label_names(self) -> tuple[str, ...]:
        """Which labels it has: energy, forces, stress, magmoms."""
        return tuple(name for name in ("energy", "forces", "stress", "magmoms") if getattr(self, name) is not None)

    @property
    def held_out(self) -> bool:
        """Whether info["split"] keeps the frame out of training: 'test', 'test_ood', 'validation', ..."""
        return is_held_out(self.split)

    @property
    def labelled(self) -> bool:
        return self.energy is not None or self.forces is not None or self.stress is not None


@dataclass(frozen=True)
class FrameSet:
    """Frames of one or more levels; `levels` from the cheapest to the most accurate."""

    levels: tuple[str, ...]
    frames: tuple[Frame, ...]

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{level}: {own['frames']} frames" + (f" ({own['held_out']} held out)" if own["held_out"] else "")
            for level, own in self.summary().items()
        )
        return f"<FrameSet of {counts}>"

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def of(self, level: str) -> list[Frame]:
        """Frames of one level. Raises DataError for a level that is not in `levels`."""
        if level not in self.levels:
            raise DataError(f"unknown fidelity {level!r}; this set has {', '.join(self.levels)}.")
        return [frame for frame in self.frames if frame.fidelity == level]

    def training(self) -> FrameSet:
        """The frames that are not held out; `levels` stay."""
        return replace(self, frames=tuple(frame for frame in self.frames if not frame.held_out))

    def held_out(self) -> FrameSet:
        """The frames that info["split"] keeps out of training; `levels` stay."""
        return replace(self, frames=tuple(frame for frame in self.frames if frame.held_out))

    def summary(self) -> dict[str, dict[str, int]]:
        """Counts for each level: frames, atoms, frames with energies, with forces, with stresses, frames held out."""
        return {level: _summary(self.of(level)) for level in self.levels}

    def frame_hashes(self) -> tuple[str, ...]:
        """sha256 (hex) of each frame's level, structure and labels, in the order of the frames."""
        return tuple(_frame_hash(frame) for frame in self.frames)

    def data_hash(self) -> str:
        """sha256 (hex) over levels, structures and labels; independent of the order of the frames."""
        digest = hashlib.sha256("\n".join(self.levels).encode())
        digest.update("\n".join(sorted(self.frame_hashes())).encode())
        return digest.hexdigest()


def read_frames(sources: Sources, *, keys: LabelKeys | None = None, levels: Sequence[str] | None = None) -> FrameSet:
    """Read, resolve and validate labelled structures.

    sources: a mapping level -> path, list of paths, or list of ase.Atoms, cheapest level first; or one path or list
        whose frames carry their level in info.
    keys: names of the labels, when they are not the default REF_* or what ASE puts on atoms.calc.
    levels: the order, cheapest first; needed when tagged frames hold more than one level.

    Raises DataError that names file, frame, structure and level: unreadable or truncated files, overlapping atoms,
    bad cells, labels that are missing, non-finite or of a wrong shape, keys found nowhere, unknown or repeated levels.
    """
    keys = keys or LabelKeys()
    if not isinstance(keys, LabelKeys):
        raise ConfigError(f"keys is a {type(keys).__name__}; give LabelKeys(energy='dft_energy', ...).")
    problems: list[str] = []
    entries, names = gather(sources, levels, problems)
    frames = _validated(entries, names, keys, problems)
    problems.extend(_absent_custom_keys(entries, keys))
    if not problems:
        problems.extend(_keys_of_other_levels(entries, names, keys))
    if not problems:
        problems.extend(_levels_without_labels(frames, entries, names, keys))
    raise_problems(problems)
    warn_of_labels(frames, entries, names, keys, stacklevel=2)
    return FrameSet(names, tuple(frames))


def frames_from(new: FrameSet | Sources, levels: Sequence[str], keys: LabelKeys | None = None) -> FrameSet:
    """Additional frames for a model with `levels`: a FrameSet, a mapping level -> Atoms, or tagged Atoms.

    Unlike read_frames, levels may be absent from `new`. Raises DataError as read_frames does.
    """
    keys = keys or LabelKeys()
    known = checked_levels(levels)
    if isinstance(new, FrameSet):
        unknown = sorted({frame.fidelity for frame in new} - set(known))
        if unknown:
            raise DataError(f"unknown fidelity {', '.join(map(repr, unknown))}; the model has {', '.join(known)}.")
        return FrameSet(known, new.frames)
    problems: list[str] = []
    entries = from_mapping(new, known, problems) if isinstance(new, Mapping) else tagged(new, known, problems)
    frames = _validated(entries, known, keys, problems)
    present = tuple(level for level in known if any(entry.level == level for entry in entries))
    if not problems:
        problems.extend(_levels_without_labels(frames, entries, present, keys))
    raise_problems(problems)
    return FrameSet(known, tuple(frames))


def to_atoms(frame: Frame) -> Atoms:
    """ase.Atoms with the labels under their REF_* keys and the level under `fidelity`, ready for ase.io.write."""
    keys = LabelKeys()
    atoms = frame.atoms.copy()
    atoms.info["fidelity"] = frame.fidelity
    optional = {
        keys.energy: frame.energy,
        keys.stress: None if frame.stress is None else frame.stress.copy(),
        "energy_sigma": frame.energy_sigma,
        "force_sigma": frame.force_sigma,
        "total_magmom": frame.total_magmom,
    }
    atoms.info.update({key: value for key, value in optional.items() if value is not None})
    if frame.isolated_atom:
        atoms.info.setdefault("config_type", "IsolatedAtom")
    if frame.forces is not None:
        atoms.set_array(keys.forces, frame.forces.copy())
    if frame.magmoms is not None:
        atoms.set_array(keys.magmoms, frame.magmoms.copy())
    if not frame.force_mask.all():
        atoms.set_array("force_mask", frame.force_mask.astype(int))
    return atoms


def _validated(entries: Sequence[Entry], levels: Sequence[str], keys: LabelKeys, problems: list[str]) -> list[Frame]:
    frames: list[Frame] = []
    for entry in entries:
        frame, found = _frame(entry, keys)
        problems.extend(f"{named(entry)}, fidelity {entry.level!r}: {problem}" for problem in found)
        frames.append(frame)
    return sorted(frames, key=lambda frame: levels.index(frame.fidelity))


def _frame(entry: Entry, keys: LabelKeys) -> tuple[Frame, list[str]]:
    atoms, info = entry.atoms, entry.atoms.info
    problems = geometry_problems(atoms)
    labels = resolve_labels(atoms, keys)
    mask = labels.force_mask
    if labels.forces is not None and not problems:
        mask = mask & ~held_atoms(atoms, labels.forces)
    if (problem := prediction(atoms, keys)) is not None:
        problems.append(problem)
    isolated = str(info.get("config_type", "")).lower().replace("_", "") == "isolatedatom"
    if isolated and len(atoms) != 1:
        problems.append(f"config_type is IsolatedAtom, but it has {len(atoms)} atoms; correct config_type")
    frame = Frame(
        atoms=without_labels(atoms, keys),
        fidelity=entry.level or "",
        source=entry.source,
        energy=labels.energy,
        forces=labels.forces,
        force_mask=mask,
        held=int((labels.force_mask & ~mask).sum()),
        stress=labels.stress,
        energy_sigma=labels.energy_sigma,
        force_sigma=labels.force_sigma,
        isolated_atom=isolated or (len(atoms) == 1 and not problems and _nearest_image(atoms) > ALONE),
        split=None if info.get("split") is None else str(info["split"]),
        wall_seconds=as_seconds(info.get("wall_seconds")),
        magmoms=labels.magmoms,
        total_magmom=total_moment(atoms, keys),
    )
    return frame, problems or list(labels.problems)  # labels of an unusable geometry say nothing more


def _nearest_image(atoms: Atoms) -> float:
    """Distance to the nearest periodic image of an atom, Å."""
    reduced, _ = minkowski_reduce(atoms.cell.array, atoms.pbc)
    return float(np.linalg.norm(reduced[atoms.pbc], axis=1).min(initial=np.inf))


def disagreeing_atoms(frames: Iterable[Frame]) -> dict[int, list[Frame]]:
    """Isolated atoms of one element whose energies differ by more than SAME_ATOM, by atomic number; frames of one level."""
    atoms: dict[int, list[Frame]] = {}
    for frame in frames:
        if frame.isolated_atom and frame.energy is not None:
            atoms.setdefault(int(frame.atoms.numbers[0]), []).append(frame)
    return {z: found for z, found in atoms.items() if np.ptp([f.energy for f in found]) > SAME_ATOM}


def as_seconds(raw: Any) -> float | None:
    """A cost as a number; anything else is no cost at all, since it is no label."""
    if isinstance(raw, (int, float, np.integer, np.floating)) and not isinstance(raw, bool) and raw >= 0:
        return float(raw)
    return None


def _absent_custom_keys(entries: Sequence[Entry], keys: LabelKeys) -> list[str]:
    frames = [entry.atoms for entry in entries]
    return [
        f"key {key!r} for {label} is in none of the {len(frames)} frames; found {keys_found(frames)}; correct `keys`"
        for label, key in keys.custom().items()
        if frames and not any(key_present(atoms, key) for atoms in frames)
    ]


def _keys_of_other_levels(entries: Sequence[Entry], levels: Sequence[str], keys: LabelKeys) -> list[str]:
    """Custom keys that no frame of a level has, where its frames have the label under another name."""
    problems, usual = [], LabelKeys().model_dump()
    for level in levels:
        own = [entry.atoms for entry in entries if entry.level == level]
        for label, key in keys.custom().items():
            there = any(key_present(atoms, key) for atoms in own)
            if own and not there and any(key_present(atoms, usual[label]) for atoms in own):
                problems.append(
                    f"fidelity {level!r}: key {key!r} for {label} is in none of its {len(own)} frames, {usual[label]!r} is; "
                    "one key serves all levels, so rename one of them in the files"
                )
    return problems


def _levels_without_labels(
    frames: Sequence[Frame], entries: Sequence[Entry], levels: Sequence[str], keys: LabelKeys
) -> list[str]:
    problems = []
    for level in levels:
        if any(frame.labelled for frame in frames if frame.fidelity == level):
            continue
        own = [entry for entry in entries if entry.level == level]
        if any(weightless(entry.atoms, keys) for entry in own):
            problems.append(f"fidelity {level!r}: its labels have a weight of 0 (config_weight, ...): remove it")
            continue
        wanted = ", ".join(f"{label}={key}" for label, key in keys.model_dump().items())
        problems.append(
            f"fidelity {level!r}: no label in its {len(own)} frames ({own[0].source if own else 'none'} and on); "
            f"looked for {wanted} and for energy, forces, stress on atoms.calc; found "
            f"{keys_found(entry.atoms for entry in own)}; set the keys, for example "
            "keys=LabelKeys(energy='dft_energy'), `keys:` in the config, or --key energy=dft_energy"
        )
    return problems


def _summary(frames: Sequence[Frame]) -> dict[str, int]:
    return {
        "frames": len(frames),
        "atoms": sum(len(frame.atoms) for frame in frames),
        "energies": sum(frame.energy is not None for frame in frames),
        "forces": sum(frame.forces is not None for frame in frames),
        "stresses": sum(frame.stress is not None for frame in frames),
        "held_out": sum(frame.held_out for frame in frames),
    }


def _frame_hash(frame: Frame) -> str:
    digest = hashlib.sha256(frame.fidelity.encode())
    atoms = frame.atoms
    parts = (
        atoms.numbers.astype("<i8"),
        atoms.pbc.astype("<i8"),
        frame.force_mask.astype("<i8"),
        *(
            np.asarray([] if value is None else value, dtype="<f8") + 0.0  # + 0.0 turns -0.0 into 0.0
            for value in (
                atoms.positions,
                atoms.cell.array,
                frame.energy,
                frame.forces,
                frame.stress,
                frame.energy_sigma,
                frame.force_sigma,
            )
        ),
    )
    if frame.magmoms is not None:  # without them the hash is that of files from before there were any
        parts = (*parts, np.asarray(frame.magmoms, dtype="<f8") + 0.0)
    for part in parts:
        digest.update(str(part.shape).encode() + part.tobytes())
    return digest.hexdigest()
