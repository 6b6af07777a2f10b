"""FrameSet: its views, its hash, and the way out to ase.Atoms and in again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from numpy.testing import assert_allclose

from mfgp.errors import DataError
from mfgp.frames import FrameSet, LabelKeys, frames_from, read_frames, to_atoms

FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]  # eV/Å


def dimer(distance: float = 1.0, **info: object) -> Atoms:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, distance]])
    atoms.info.update({"REF_energy": -10.0 - distance, **info})
    atoms.set_array("REF_forces", np.array(FORCES))
    return atoms


def crystal(**info: object) -> Atoms:
    atoms = Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0.1]], cell=[3.6, 3.7, 3.8], pbc=True)
    atoms.info.update({"REF_energy": -7.0, **info})
    return atoms


def altered(change: Callable[[Atoms], object], atoms: Atoms | None = None) -> Atoms:
    atoms = dimer() if atoms is None else atoms
    change(atoms)
    return atoms


def contains(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"


@pytest.fixture
def frames() -> FrameSet:
    low = [dimer(1.0), dimer(1.1, split="test")]
    return read_frames({"low": low, "high": [crystal(REF_stress=np.full(6, 0.01))]})


@pytest.mark.parametrize("split", ["Test", "TEST", "Validation", "VAL", "test_ood"])
def test_splits_hold_out_in_any_case(split: str) -> None:
    frames = read_frames({"low": [dimer(1.0, split="Train"), dimer(1.1, split=split)]})
    assert [frame.split for frame in frames.held_out()] == [split]
    assert [frame.split for frame in frames.training()] == ["Train"]


def test_frame_set_views(frames: FrameSet) -> None:
    assert len(frames) == 3
    assert [frame.fidelity for frame in frames] == ["low", "low", "high"]
    assert len(frames.of("low")) == 2
    assert len(frames.training()) == 2
    assert [frame.split for frame in frames.held_out()] == ["test"]
    assert frames.held_out().levels == ("low", "high")
    assert frames.summary() == {
        "low": {"frames": 2, "atoms": 4, "energies": 2, "forces": 2, "stresses": 0, "held_out": 1},
        "high": {"frames": 1, "atoms": 2, "energies": 1, "forces": 0, "stresses": 1, "held_out": 0},
    }
    with pytest.raises(DataError, match="unknown fidelity 'top'; this set has low, high"):
        frames.of("top")


def test_data_hash_ignores_order_and_sees_every_label(frames: FrameSet) -> None:
    shuffled = FrameSet(frames.levels, frames.frames[::-1])
    assert shuffled.data_hash() == frames.data_hash()
    assert len(set(frames.frame_hashes())) == 3
    hashes = {frames.data_hash(), FrameSet(("high", "low"), frames.frames).data_hash()}
    base = dimer()
    changes: list[Callable[[Atoms], object]] = [
        lambda a: None,
        lambda a: a.info.update(REF_energy=-11.0 + 1e-9),
        lambda a: a.arrays["REF_forces"].__setitem__((0, 0), 0.2),
        lambda a: a.positions.__setitem__((0, 0), 1e-9),
        lambda a: a.set_array("force_mask", np.array([1, 0])),
        lambda a: a.set_cell([5, 5, 5]),
        lambda a: a.info.update(energy_sigma=0.1),
    ]
    for change in changes:
        hashes.add(read_frames({"low": [altered(change, base.copy())]}).data_hash())
    assert len(hashes) == 2 + len(changes)
    assert read_frames({"low": [base]}).data_hash() in hashes


def test_to_atoms_writes_what_read_frames_reads(tmp_path: Path) -> None:
    masked = dimer(1.1, energy_sigma=0.02, structure_id="s7", split="test")
    masked.set_array("force_mask", np.array([1, 0]))
    alone = Atoms("H", info={"REF_energy": -13.6})
    frames = read_frames({"low": [masked, alone], "high": [crystal(REF_virial=np.full(6, 0.3))]})
    write(tmp_path / "a.extxyz", [to_atoms(frame) for frame in frames])
    again = read_frames(tmp_path / "a.extxyz", levels=("low", "high"))
    assert [frame.fidelity for frame in again] == ["low", "low", "high"]
    assert [frame.isolated_atom for frame in again] == [False, True, False]
    assert again.frames[0].force_mask.tolist() == [True, False]
    assert again.frames[0].energy_sigma == 0.02
    assert again.frames[0].held_out
    for one, other in zip(frames, again, strict=True):
        assert one.energy == other.energy
    assert_allclose(again.frames[2].stress, frames.frames[2].stress, rtol=0, atol=1e-8)
    assert_allclose(again.frames[0].forces, FORCES, rtol=0, atol=1e-8)


def test_frames_from_accepts_what_update_is_given(frames: FrameSet) -> None:
    levels = ("low", "high")
    assert frames_from(frames, levels).frames == frames.frames
    added = frames_from({"high": [dimer(1.4)]}, levels)
    assert added.levels == levels
    assert [frame.fidelity for frame in added] == ["high"]
    tagged = frames_from([dimer(1.4, fidelity="high"), dimer(1.5, fidelity="low")], levels)
    assert [frame.fidelity for frame in tagged] == ["low", "high"]
    assert frames_from([dimer()], ("only",)).frames[0].fidelity == "only"
    assert len(frames_from([dimer()], ("only",), LabelKeys(stress="my_stress"))) == 1
    for new, parts in (
        ({"top": [dimer()]}, ["unknown fidelity 'top'", "low, high"]),
        ([dimer(fidelity="top")], ["frame 0 (CO)", "unknown fidelity 'top'"]),
        ([dimer()], ["frame 0 (CO)", "no level in info"]),
        ({"low": [Atoms("H")]}, ["fidelity 'low'", "no label"]),
        (FrameSet(("top",), read_frames({"top": [dimer()]}).frames), ["unknown fidelity 'top'", "low, high"]),
    ):
        with pytest.raises(DataError) as caught:
            frames_from(new, levels)  # type: ignore[arg-type]
        contains(str(caught.value), *parts)


def test_what_is_printed_is_short() -> None:
    frames = read_frames({"nm": [dimer(1.0 + 0.1 * i) for i in range(50)], "mag": [crystal(), crystal(split="test")]})
    assert repr(frames) == "<FrameSet of nm: 50 frames, mag: 2 frames (1 held out)>"
    assert repr(frames.frames[0]) == f"<Frame {frames.frames[0].source}: CO at nm, energy, forces>"
    assert repr(frames.frames[-1]).endswith("Cu2 at mag, energy>")


def test_many_frames_without_a_level_are_one_problem() -> None:
    with pytest.raises(DataError) as caught:
        frames_from([dimer(1.0 + 0.1 * i) for i in range(6)], ("low", "high"))
    contains(str(caught.value), "list of Atoms frame 0 (CO) and 5 more of 6 frames", "pass {'high': frames}")
    assert str(caught.value).count("tag with") == 1
    with pytest.raises(DataError) as caught:
        frames_from([dimer(1.0 + 0.1 * i, fidelity="top") for i in range(6)], ("low", "high"))
    assert str(caught.value).count("unknown fidelity 'top'") == 1
