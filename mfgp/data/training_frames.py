"""Which of the labelled frames a fit takes, and the calculations that they are the results of."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor

from mfgp.base.words import counted
from mfgp.data.same_structure import groups
from mfgp.data.single_point import geometry
from mfgp.errors import DataError
from mfgp.frames import FrameSet, disagreeing_atoms

CALIBRATION_STRUCTURES = (
    256  # of each level; the coverage that one draw of them gives wanders by 1.4 % (docs/theory.md#calibration)
)


def trainable(frames: FrameSet) -> FrameSet:
    """The frames to train on; warns of isolated atoms that disagree.

    Raises DataError for what is no FrameSet, when there is none at all, or none at some level.
    """
    if not isinstance(frames, FrameSet):
        raise DataError(f"fit takes the frames that read_frames returns, not a {type(frames).__name__}.")
    training = frames.training()
    if not len(training):
        raise DataError("no frame to train on: there is none, or every frame is held out (info['split']).")
    for level in frames.levels:
        if not training.of(level):
            raise DataError(f"level {level!r} has no training frame; leave the level out or add frames to it.")
        for z, found in disagreeing_atoms(training.of(level)).items():
            values = ", ".join(f"{f.energy:.4f} ({f.source})" for f in found[:4])
            warnings.warn(
                f"level {level!r}: isolated {chemical_symbols[z]} atoms have different energies, {values} eV; "
                "e0 is their mean: keep the one of the ground state",
                stacklevel=3,
            )
    return training


def spread(frames: FrameSet, n: int, seed: int) -> FrameSet:
    """n structures of each level (all, if it has fewer) with all frames of the same structures (same_structure), seeded.

    Highest level first; what it chose counts for the lower ones, which may so hold more than n. No isolated atoms.
    """
    numbers = dict(zip(map(id, frames), groups([f.atoms for f in frames]), strict=True))
    chosen: set[int] = set()
    for level in reversed(frames.levels):
        own = list(dict.fromkeys(numbers[id(f)] for f in frames.of(level) if not f.isolated_atom))
        rest = [k for k in own if k not in chosen]
        room = max(0, n - (len(own) - len(rest)))
        chosen |= {rest[i] for i in np.random.default_rng(seed).permutation(len(rest))[:room]}
    return FrameSet(frames.levels, tuple(f for f in frames if numbers[id(f)] in chosen))


def own_sigmas(frames: FrameSet) -> Tensor:
    """Root mean square of the sigmas that energies (eV per sqrt(atom)) and forces (eV/Å) came with, [T, 3]; 0 for none."""
    out = torch.zeros(len(frames.levels), 3, dtype=torch.float64)
    for t, level in enumerate(frames.levels):
        own = [f for f in frames.of(level) if not f.isolated_atom]
        energies = [f.energy_sigma / len(f.atoms) ** 0.5 for f in own if f.energy is not None and f.energy_sigma]
        forces = [f.force_sigma for f in own if f.forces is not None and f.force_sigma]
        for k, sigmas in enumerate((energies, forces)):
            if sigmas:
                out[t, k] = float(np.mean(np.square(sigmas))) ** 0.5
    return out


def calculations(frames: FrameSet) -> frozenset[str]:
    """The calculations that those frames are the results of."""
    return frozenset(calculation_key(frame.fidelity, frame.atoms) for frame in frames)


def calculation_key(level: str, atoms: Atoms) -> str:
    """What is calculated at which level, whatever comes out: in one description, as files round it.

    Not by same_structure, which tells apart less than a calculator does: no label that was paid for is to be taken for
    another.
    """
    return f"{level} {geometry(atoms)}"


def new_calculations(frames: FrameSet, known: frozenset[str], seen: frozenset[str]) -> FrameSet:
    """The frames that are no results of a calculation in `known`, nor have a hash in `seen` (older models have no
    calculations); warns about the others."""
    hashed = zip(frames, frames.frame_hashes(), strict=True)
    fresh = tuple(f for f, key in hashed if key not in seen and calculation_key(f.fidelity, f.atoms) not in known)
    if len(fresh) < len(frames):
        warnings.warn(
            f"{len(frames) - len(fresh)} frames are of calculations that the model has already (same structure and level); "
            "skipped. To replace a label, fit again",
            stacklevel=3,
        )
    return FrameSet(frames.levels, fresh)


def check_seen(frames: FrameSet, known: frozenset[str], seen: frozenset[str]) -> None:
    """DataError for frames that are neither in `seen` by their hash nor results of a calculation in `known`; a warning where
    their last digits alone may be others."""
    other = [f for f, key in zip(frames, frames.frame_hashes(), strict=True) if key not in seen]
    strange = [f for f in other if calculation_key(f.fidelity, f.atoms) not in known]
    if strange:
        raise DataError(
            f"{len(strange)} of {len(frames)} frames are not in the training data, first {strange[0].source} "
            f"({strange[0].atoms.symbols}); leave-one-out is for training frames, use evaluate for others."
        )
    if other:
        warnings.warn(
            f"{len(other)} frames are of calculations that the model was trained on, but their numbers are not the same to "
            f"the last digit, first {other[0].source}: a file has rounded them, or a label has been changed since, which a "
            "model cannot tell. If one has, fit again, or the scores are wrong",
            stacklevel=4,
        )


def distinct(frames: FrameSet) -> FrameSet:
    """Each frame once; warns about the others."""
    fresh, known = [], set()
    for frame, key in zip(frames.frames, frames.frame_hashes(), strict=True):
        if key not in known:
            fresh.append(frame)
            known.add(key)
    if len(fresh) < len(frames):
        n = len(frames) - len(fresh)
        warnings.warn(f"repeated (same structure and labels) and skipped: {counted(n, 'frame')}", stacklevel=3)
    return FrameSet(frames.levels, tuple(fresh))
