"""Structures that tell of each other: to be left out together when new ones are to be imitated.

Molecular dynamics that is written at every step or two gives frames that lie between those before and after them. Left out
one at a time they are predicted from these far better than any structure of another trajectory: calibrated on such errors,
95 % intervals held 65 - 80 % of the forces of new structures (docs/theory.md#trajectories). So with a frame go those
before and after it, up to the first whose forces no longer go with its own,

    c_ij = F_i . F_j / (|F_i| |F_j|)  <=  LEAST,        F: forces less their means over the run, over the rms of the element

A run is what follows upon each other at a level with the same atoms in the same order. It counts as a trajectory where the
forces of neighbours go together by more than chance, sum_i F_i . F_i+1 / sum_i |F_i|^2 > NEIGHBOURS: structures that
were made independently have no relatives, nor have frames that were shuffled. (h-block cross-validation: Burman, Chow &
Nolan, Biometrika 81, 351 (1994).)

Frames of one run share its composition, its arrangement and its cell for as long as it lasts, and so part of their errors.
Where the data are stretches, of the same atoms in the same order in nearly the same cell, MANY of them and none with more
than LARGEST of all structures, the next structure may be of another one: all of a stretch is left out then, if others tell
enough of it (calibrating.of_one_kind).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mfgp.data.same_structure import groups
from mfgp.frames import Frame, FrameSet

Array = NDArray[np.float64]
LEAST = 0.1
NEIGHBOURS = 0.2
CHANCE = 4.0  # standard deviations of that sum for independent forces, from which on it is none
SHORTEST = 5  # frames of a run
PIECES = 10  # of a run at least, for folds
SAMPLED = 200  # of them, to see in how many directions they differ
FURTHEST = 50  # frames that are looked at on either side
TOLD = 0.5
MANY, MOSTLY, LARGEST = 8, 0.5, 0.25  # stretches, and what they must and one of them may hold of all structures
STRAIN = 0.02  # between frames of a stretch that follow upon each other
EACH, FEWEST = 4.0, 32  # left-out structures for an independent one, and in all: more of them would tell nothing new


@dataclass(frozen=True)
class Relatives:
    """same: the number of each frame's structure (same_structure.groups) by its id; related: those of the structures that
    are left out with one, itself not among them; pieces: of each structure, the piece of a trajectory that it lies in;
    stretches: of the module docstring, those of more than one structure.
    """

    same: Mapping[int, int]
    related: Mapping[int, frozenset[int]]
    pieces: Mapping[int, int]
    stretches: tuple[frozenset[int], ...] = ()

    def count(self, number: int) -> int:
        """How many structures tell of one."""
        return len(self.related.get(number, ()))

    def left_out_with(self, number: int) -> frozenset[int]:
        """The structures that are left out with one: its stretch, else its relatives."""
        return self.stretch_of.get(number, self.related.get(number, frozenset())) - {number}

    @cached_property
    def stretch_of(self) -> dict[int, frozenset[int]]:
        """The stretch of each structure that lies in one."""
        return {k: s for s in self.stretches for k in s}

    def independent(self, frames: Sequence[Frame]) -> float:
        """For how many independent structures those count."""
        return sum(1.0 / (1 + self.count(k)) for k in {self.same[id(f)] for f in frames if not f.isolated_atom})

    def enough(self, frames: FrameSet, most: int) -> int:
        """Structures of a level to calibrate on: EACH times the independent ones, from FEWEST to `most`."""
        counts = [self.independent(frames.of(level)) for level in frames.levels]
        return min(most, max(FEWEST, math.ceil(EACH * max(counts, default=0.0))))


def relatives(frames: FrameSet) -> Relatives:
    """Of the frames that are no isolated atoms; runs are looked for level by level, in the order of the frames."""
    chosen = [frame for frame in frames if not frame.isolated_atom]
    same = dict(zip(map(id, chosen), groups([f.atoms for f in chosen]), strict=True))
    related: dict[int, set[int]] = {}
    pieces: dict[int, int] = {}
    last = 0  # number of the next piece
    for level in frames.levels:
        for run, before, after in reaches(list(runs([f for f in chosen if f.fidelity == level]))):
            numbers = [same[id(f)] for f in run]
            for i, (number, b, a) in enumerate(zip(numbers, before.tolist(), after.tolist(), strict=True)):
                if near := set(numbers[i - b : i + a + 1]) - {number}:
                    related.setdefault(number, set()).update(near)
            if after.any():
                length = min(1 + 2 * int(np.median(after)), max(1, len(run) // PIECES))
                for i, number in enumerate(numbers):
                    pieces.setdefault(number, last + i // length)
                last += 1 + (len(run) - 1) // length
    return Relatives(same, {k: frozenset(v) for k, v in related.items()}, pieces, stretches(frames, same))


def stretches(frames: FrameSet, same: Mapping[int, int]) -> tuple[frozenset[int], ...]:
    """The stretches of the module docstring, joined where two levels share a structure; none where they are too few."""
    home: dict[int, set[int]] = {}
    for level in frames.levels:
        last: Frame | None = None
        for frame in (f for f in frames.of(level) if not f.isolated_atom):
            own = home.setdefault(number := same[id(frame)], {number})
            before = own if last is None or not alike(last, frame) else home[same[id(last)]]
            if before is not own:
                less, more = sorted((own, before), key=len)
                more |= less
                home.update(dict.fromkeys(less, more))
            last = frame
    found = [frozenset(s) for s in {id(s): s for s in home.values()}.values() if len(s) > 1]
    inside = sum(map(len, found))
    if len(found) < MANY or inside < MOSTLY * len(home) or max(map(len, found)) > LARGEST * len(home):
        return ()
    return tuple(found)


def alike(a: Frame, b: Frame) -> bool:
    """Whether two frames have the same atoms in the same order, in cells that differ by STRAIN at most."""
    if not np.array_equal(a.atoms.numbers, b.atoms.numbers) or (a.atoms.pbc != b.atoms.pbc).any():
        return False
    periodic = a.atoms.pbc
    if not periodic.any():
        return True
    first, second = (x.atoms.cell.array[periodic] for x in (a, b))  # [periodic direction, 3] Å
    return bool((np.linalg.norm(second - first, axis=1) < STRAIN * np.linalg.norm(first, axis=1)).all())


def warn_of_trajectories(frames: FrameSet, related: Relatives) -> None:
    """Warn of levels whose frames count for less than TOLD of their number."""
    for level in frames.levels:
        own = [f for f in frames.of(level) if not f.isolated_atom]
        independent = related.independent(own)
        if independent < TOLD * len({related.same[id(f)] for f in own}):
            warnings.warn(
                f"fidelity {level!r}: {len(own)} frames follow upon each other with forces that go together, as steps of a "
                f"trajectory do, and tell as much as about {independent:.0f} independent ones. Standard deviations are "
                "calibrated with neighbours left out; as many frames that differ more would teach more",
                stacklevel=5,
            )


def runs(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """Consecutive frames with forces on the same atoms in the same order, SHORTEST and more of them."""
    run: list[Frame] = []
    for frame in frames:
        here = frame.forces is not None and len(frame.atoms) > 1
        if run and not (here and np.array_equal(run[-1].atoms.numbers, frame.atoms.numbers)):
            yield from [run] * (len(run) >= SHORTEST)
            run = []
        if here:
            run.append(frame)
    yield from [run] * (len(run) >= SHORTEST)


def directions(run: Sequence[Frame]) -> Array:
    """F of the module docstring, [frame, 3N]; forces without a label count as the mean."""
    numbers = run[0].atoms.numbers
    mask = np.array([f.force_mask for f in run])[:, :, None]
    forces = np.where(mask, np.array([f.forces for f in run]), 0.0)  # [frame, N, 3] eV/Å
    forces = np.where(mask, forces - forces.sum(0) / np.maximum(mask.sum(0), 1), 0.0)
    for z in np.unique(numbers):
        forces[:, numbers == z] /= max(float(np.sqrt(np.mean(forces[:, numbers == z] ** 2))), 1e-12)
    return forces.reshape(len(run), -1)


def reaches(found: Sequence[Sequence[Frame]]) -> Iterator[tuple[Sequence[Frame], NDArray[np.int64], NDArray[np.int64]]]:
    """The runs of a level with the relatives before and after each of their frames (`reach`), none in those that are no
    trajectories: neighbours have to go together by more than chance in the run, or in all runs of the level.
    """
    tested = [neighbours(directions(run)) for run in found]
    freedoms = sum(n for _, n in tested)
    mean = sum(first * n for first, n in tested) / max(freedoms, 1.0)
    all_of_them = mean > CHANCE / np.sqrt(max(freedoms, 1.0))
    for run, (first, n) in zip(found, tested, strict=True):
        if first > NEIGHBOURS and (all_of_them or first > CHANCE / np.sqrt(n)):
            yield run, *reach(directions(run))
        else:
            yield run, np.zeros(len(run), dtype=np.int64), np.zeros(len(run), dtype=np.int64)


def neighbours(f: Array) -> tuple[float, float]:
    """How much forces of neighbours in a run go together, from F [frame, 3N], and how many independent numbers say so."""
    square = (f**2).sum(1)
    first = float((f[:-1] * f[1:]).sum()) / max(0.5 * float((square[:-1] + square[1:]).sum()), 1e-12)
    return first, (len(f) - 1) * freedom(f)


def reach(f: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Relatives before and after each frame of a run, [frame], from F [frame, 3N]."""
    n = len(f)
    before, after = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    square = (f**2).sum(1)
    norm = np.sqrt(np.maximum(square, 1e-12))
    for lag in range(1, min(n, FURTHEST + 1)):
        together = (f[:-lag] * f[lag:]).sum(1) / (norm[:-lag] * norm[lag:]) > LEAST
        further = together & (after[:-lag] == lag - 1)
        earlier = together & (before[lag:] == lag - 1)
        after[:-lag] += further
        before[lag:] += earlier
        if not (further.any() or earlier.any()):
            break
    return before, after


def freedom(f: Array) -> float:
    """In how many independent directions F [frame, 3N] points: of squares over mean squares of products of two frames."""
    some = f[:: -(-len(f) // SAMPLED)]
    gram = some @ some.T
    square = float(np.diag(gram).mean())
    others = (float((gram**2).sum()) - float((np.diag(gram) ** 2).sum())) / max(len(gram) * (len(gram) - 1), 1)
    return max(square**2 / others, 1.0) if others > 0 else float(f.shape[1])
