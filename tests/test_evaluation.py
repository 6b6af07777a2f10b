"""Evaluation against what the model predicts frame by frame."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose

from mfgp import DataError, Frame, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.scores import Scores
from mfgp.data.scored_frames import frames_to_score
from mfgp.evaluation import evaluate, label_std
from mfgp.frames import to_atoms
from mfgp.gp.observations import SHEAR, labelled_rows

CONTRACT = {"fidelity", "n_structures", "n_atoms", "energy", "forces", "stress"}
SCORES = {f.name for f in fields(Scores)}


@pytest.fixture(scope="module")
def held_out(two_levels: FrameSet) -> list[Frame]:
    return list(two_levels.held_out())


def test_evaluation_is_what_the_model_predicts(model: MultiFidelityGP, held_out: list[Frame]):
    result = evaluate(model, held_out, "high")
    predictions = [model.predict(f.atoms, "high") for f in held_out]
    energy = np.array([(p.energy - f.energy) / len(f.atoms) for p, f in zip(predictions, held_out, strict=True)])
    forces = np.concatenate([(p.forces - f.forces).ravel() for p, f in zip(predictions, held_out, strict=True)])
    stress = np.concatenate([p.stress - f.stress for p, f in zip(predictions, held_out, strict=True)])
    assert np.abs(forces).max() > 1e-3  # eV/Å: something to score
    assert_allclose(result.energy.error, energy, rtol=0, atol=1e-12)
    assert_allclose(result.forces.error, forces, rtol=0, atol=1e-12)
    assert result.stress is not None
    assert_allclose(result.stress.error, stress, rtol=0, atol=1e-14)
    assert result.n_structures == len(held_out)
    assert result.n_atoms == sum(len(f.atoms) for f in held_out)
    mae = [s.mae * s.n for s in result.forces_by_species().values()]
    assert set(result.forces_by_species()) == {"Cu", "Au"}
    assert_allclose(sum(mae), np.abs(forces).sum(), rtol=0, atol=1e-10)


def test_json_is_the_contract(model: MultiFidelityGP, held_out: list[Frame]):
    values = json.loads(json.dumps(evaluate(model, held_out, "high").to_json(), allow_nan=False))
    assert set(values) == CONTRACT
    assert all(set(values[kind]) == SCORES for kind in ("energy", "forces", "stress"))
    assert values["forces"]["n"] == 3 * values["n_atoms"]
    without = [replace(f, stress=None) for f in held_out]
    assert evaluate(model, without, "high").to_json()["stress"] is None


def test_masked_forces_do_not_count(model: MultiFidelityGP, held_out: list[Frame]):
    frame = held_out[0]
    assert frame.forces is not None
    wrong = frame.forces.copy()
    wrong[1] = 1e3
    mask = np.array([True, False, *[True] * (len(frame.atoms) - 2)])
    result = evaluate(model, [replace(frame, forces=wrong, force_mask=mask)], "high")
    assert len(result.forces.label) == 3 * (len(frame.atoms) - 1)
    assert result.forces.scores.mae < 10.0  # eV/Å
    assert (result.force_species == np.repeat(frame.atoms.numbers[mask], 3)).all()


def test_isolated_atoms_count_by_their_energy_only(model: MultiFidelityGP, held_out: list[Frame]):
    frame = replace(
        held_out[0], atoms=Atoms("Cu"), energy=1.0, forces=np.zeros((1, 3)), stress=None, isolated_atom=True,
        force_mask=np.array([True]),
    )  # fmt: skip
    result = evaluate(model, [frame], "high")
    assert (len(result.energy.label), len(result.forces.label)) == (1, 0)
    assert result.to_json()["forces"]["n"] == 0


def test_label_std_is_that_of_a_draw(model: MultiFidelityGP, held_out: list[Frame]):
    """Functions drawn from the posterior plus noise of the kind's definition: their spread is label_std."""
    frame = held_out[0]
    n, volume = len(frame.atoms), frame.atoms.get_volume()
    joint = model.distribution(frame.atoms, "high")
    rng = np.random.default_rng(0)
    mean, covariance = joint.mean.numpy(), joint.covariance_matrix.numpy()  # singular: forces add up to zero
    draws = rng.multivariate_normal(mean, covariance, 20000, method="eigh")
    energy_noise, force_noise, virial_noise = model.noise.noise[1].tolist()
    of_virial = virial_noise * (n / np.array([1, 1, 1, 2, 2, 2])) ** 0.5
    noise = np.concatenate([[energy_noise * n**0.5], np.full(3 * n, force_noise), of_virial])
    spread = (draws + noise * rng.standard_normal(draws.shape)).std(axis=0)
    std = label_std(model, frame, model.predict(frame.atoms, "high"))
    assert std.stress is not None
    stated = np.concatenate([[std.energy], std.forces.ravel(), volume * std.stress])
    assert_allclose(stated / spread, 1.0, rtol=0, atol=0.03)


def test_labels_with_their_own_sigma_have_that_noise(model: MultiFidelityGP, held_out: list[Frame]):
    frame = replace(held_out[0], energy_sigma=0.7, force_sigma=0.9)
    p = model.predict(frame.atoms, "high")
    std = label_std(model, frame, p)
    n = len(frame.atoms)
    rows = labelled_rows(replace(frame, stress=None), torch.eye(3 * n + 7), torch.zeros(3 * n + 7), SHEAR)
    scale = rows["given"][0].diagonal()  # of rows whose noise is 1
    assert_allclose(std.energy**2 - p.energy_std**2, float(scale[0]) ** -2, rtol=0, atol=1e-6)
    assert_allclose(std.forces**2 - p.forces_std**2, float(scale[1]) ** -2, rtol=0, atol=1e-6)


def test_label_std_needs_uncertainty(model: MultiFidelityGP, held_out: list[Frame]):
    with pytest.raises(ValueError, match="full"):
        label_std(model, held_out[0], model.predict(held_out[0].atoms, "high", uncertainty="none"))


def test_a_frame_set_is_scored_at_its_level(model: MultiFidelityGP, two_levels: FrameSet):
    assert evaluate(model, two_levels, "low").n_structures == len(two_levels.of("low"))


def test_errors_name_the_input(model: MultiFidelityGP, held_out: list[Frame]):
    with pytest.raises(DataError, match="low, high"):
        evaluate(model, held_out, "medium")
    with pytest.raises(DataError, match="no labelled frame"):
        evaluate(model, [], "high")
    strange = replace(held_out[0], atoms=Atoms("Al4", positions=held_out[0].atoms.positions), source="x.extxyz frame 7")
    with pytest.raises(DataError, match=r"x\.extxyz frame 7.*Al.*Cu, Au"):
        evaluate(model, [strange], "high")


def test_frames_marked_test_are_scored_unless_all_are_wanted(two_levels: FrameSet):
    high = read_frames({"high": [marked(f) for f in two_levels.of("high")]})
    chosen, note = frames_to_score(high, "high", two_levels.levels)
    assert len(chosen) == 4
    assert all(f.held_out for f in chosen)
    assert note == "4 held-out frames at level high; left out 5 not held out (--all takes them)"
    assert len(frames_to_score(high, "high", two_levels.levels, everything=True)[0]) == 9
    unmarked = FrameSet(high.levels, tuple(f for f in high if not f.held_out))
    assert frames_to_score(unmarked, "high", two_levels.levels) == (list(unmarked), "5 labelled frames at level high")


def test_frames_of_other_levels_or_without_labels_are_left_out(two_levels: FrameSet):
    low, other = marked(two_levels.of("low")[0]), marked(two_levels.of("low")[1])
    other.info["head"] = other.info.pop("fidelity")
    tagged, untagged, foreign = (marked(f) for f in two_levels.of("high")[:3])
    untagged.info.pop("fidelity")
    foreign.info["fidelity"] = "ccsd"
    bare = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])
    frames = read_frames({"high": [low, other, tagged, untagged, foreign, bare]})
    chosen, note = frames_to_score(frames, "high", two_levels.levels)
    assert [f.energy for f in chosen] == [f.energy for f in two_levels.of("high")[:2]]
    left_out = "3 of other levels (low (2 frames), ccsd (1 frame)), 1 without labels"
    assert note == f"2 labelled frames at level high; left out {left_out}"
    with pytest.raises(DataError, match=r"tagged with low \(1 frame\); the model's levels are low, high"):
        frames_to_score(read_frames({"high": [low]}), "high", two_levels.levels)


def test_a_level_that_the_model_does_not_know_is_never_scored(two_levels: FrameSet):
    strange = [marked(f) for f in two_levels.of("high")]
    for atoms in strange:
        atoms.info["fidelity"] = "ccsd"
    frames = read_frames({"high": strange})
    with pytest.raises(DataError, match=r"tagged with ccsd \(9 frames\); the model's levels are low, high"):
        frames_to_score(frames, "high", two_levels.levels)
    assert len(frames_to_score(frames, "high", two_levels.levels, everything=True, tag="ccsd")[0]) == 9
    for atoms in strange:
        atoms.info.pop("fidelity")
    assert len(frames_to_score(read_frames({"high": strange}), "high", two_levels.levels, everything=True)[0]) == 9


def test_a_tag_that_is_no_level_is_bookkeeping_where_the_level_is_named(two_levels: FrameSet):
    tagged = [marked(f) for f in two_levels.of("high")]
    for atoms in tagged:
        atoms.info["head"] = "Default"
        atoms.info.pop("fidelity")
    frames = read_frames({"high": tagged})
    chosen, note = frames_to_score(frames, "high", two_levels.levels, everything=True, named=True)
    assert [f.energy for f in chosen] == [f.energy for f in two_levels.of("high")]
    assert note == "9 labelled frames (tagged with Default (9 frames)) at level high"
    with pytest.raises(DataError, match=r"tagged with Default \(9 frames\).* Name their level with --fidelity"):
        frames_to_score(frames, "high", two_levels.levels)
    with pytest.raises(DataError, match=r"tagged with Default"):
        frames_to_score(frames, "high", two_levels.levels, tag="mine", named=True)


def test_beside_levels_of_the_model_other_tags_are_other_levels(two_levels: FrameSet):
    """A file of three levels, of which the model has two; a known level in any of the tags is the frame's own."""
    low, high, other = (marked(two_levels.of(level)[i]) for level, i in (("low", 0), ("high", 0), ("high", 1)))
    other.info["fidelity"] = "ccsd"
    low.info.update(fidelity="pbe_u", head="low")
    frames = read_frames({"high": [low, high, other]})
    chosen, note = frames_to_score(frames, "high", two_levels.levels, named=True)
    assert [f.energy for f in chosen] == [high.info["REF_energy"]]
    assert note.endswith("left out 2 of other levels (low (1 frame), ccsd (1 frame))")
    with pytest.raises(DataError, match=r"tagged with low \(1 frame\)"):
        frames_to_score(read_frames({"high": [low]}), "high", two_levels.levels, named=True)


def test_one_split_can_be_chosen(two_levels: FrameSet):
    frames = [marked(f) for f in two_levels.of("high")]
    for i, split in enumerate(("test_ood", "test", "test_ood", "train")):
        frames[i].info["split"] = split
    read = read_frames({"high": frames})
    chosen, note = frames_to_score(read, "high", two_levels.levels, split="test_ood")
    assert [f.energy for f in chosen] == [read.frames[i].energy for i in (0, 2)]
    assert note == "2 frames of split test_ood at level high; left out 7 of other splits"
    assert len(frames_to_score(read, "high", two_levels.levels, split="train")[0]) == 1
    with pytest.raises(
        DataError, match=r"split 'val'; found test_ood \(2 frames\), test \(5 .*, train .*, no split \(1 "
    ):
        frames_to_score(read, "high", two_levels.levels, split="val")


def marked(frame: Frame) -> Atoms:
    """Labelled Atoms with the split mark of the frame."""
    atoms = to_atoms(frame)
    if frame.split is not None:
        atoms.info["split"] = frame.split
    return atoms


def test_forces_that_symmetry_makes_zero_are_no_labels(model: MultiFidelityGP) -> None:
    """Perfect crystals alone: no coverage of forces, whatever an SCF cycle leaves of them."""
    frames = []
    for a in (3.7, 3.8, 3.9):
        atoms = bulk("Cu", "fcc", a=a, cubic=True)
        atoms.positions += 1e-8 * np.random.default_rng(0).normal(size=(4, 3))  # what a file leaves of them
        atoms.info.update(REF_energy=-1.0, fidelity="high")
        atoms.arrays["REF_forces"] = np.full((4, 3), 1.6e-5)
        frames.append(atoms)
    found = evaluate(model, list(read_frames({"high": frames})), "high")
    assert not found.forces.tells.any()
    assert found.forces.scores.mae == pytest.approx(1.6e-5, rel=1e-3)
    assert np.isnan(found.forces.scores.coverage95)
    assert np.isfinite(found.energy.scores.coverage95)
