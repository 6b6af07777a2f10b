"""Closed-form leave-one-structure-out against really leaving structures out."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from conftest import alloy, label, molecules
from numpy.testing import assert_allclose

from mfgp import DataError, FitConfig, Frame, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.leave_one_out import LeftOut, Smoother, hat_inverse, labelled_parts, leave_one_out
from mfgp.data.single_point import geometry, structure_hash
from mfgp.data.training_frames import calculations
from mfgp.evaluation import evaluate, label_std
from mfgp.fit import fitting
from mfgp.frames import to_atoms
from mfgp.gp.hyperparameters import LARGEST
from mfgp.selection.gains import cross_level_covariance


def without(model: MultiFidelityGP, frames: FrameSet) -> MultiFidelityGP:
    """The model with the statistics of `frames` alone, at the same hyperparameters and inducing points."""
    other = copy.copy(model)
    other.statistics = fitting.accumulate(
        frames, model.features, model.columns, model.baselines, model.config.training.noise_energy
    )
    other.refresh()
    return other


def split(frames: FrameSet, frame: Frame) -> tuple[FrameSet, list[Frame]]:
    """The frames of other structures, and those of this one at any level."""
    key = structure_hash(frame.atoms)
    same = [f for f in frames if structure_hash(f.atoms) == key]
    return FrameSet(frames.levels, tuple(f for f in frames if structure_hash(f.atoms) != key)), same


@pytest.fixture(scope="module")
def training(two_levels: FrameSet) -> FrameSet:
    return two_levels.training()


@pytest.fixture(scope="module")
def left_out(model: MultiFidelityGP, training: FrameSet) -> list[LeftOut]:
    return list(leave_one_out(model, training))


def test_threads_give_the_same(model: MultiFidelityGP, training: FrameSet, left_out: list[LeftOut]) -> None:
    """Structures are made on all threads at once; what they give and its order does not depend on how many."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if before == 1 else 1)
        again = list(leave_one_out(model, training))
        assert torch.get_num_threads() != before
    finally:
        torch.set_num_threads(before)
    assert [(p.frame, p.kind) for p in again] == [(p.frame, p.kind) for p in left_out]
    for one, other in zip(again, left_out, strict=True):
        assert_allclose(one.error, other.error, rtol=0, atol=1e-10)  # products of the posterior have all threads
        assert_allclose(one.residual_variance, other.residual_variance, rtol=1e-12, atol=0)


@pytest.mark.parametrize("index", [0, 3, 8])  # the first and fourth structure have labels at both levels
def test_equals_really_leaving_the_structure_out(
    model: MultiFidelityGP, training: FrameSet, left_out: list[LeftOut], index: int
) -> None:
    rest, same = split(training, training.frames[index])
    assert len(same) == (2 if index < 5 else 1)
    other = without(model, rest)
    for frame in same:
        p = other.predict(frame.atoms, frame.fidelity)
        std = label_std(other, frame, p)
        n = len(frame.atoms)
        volume = frame.atoms.get_volume() * np.sqrt([1, 1, 1, 2, 2, 2])  # times the factors of rows of virials
        assert frame.energy is not None
        assert frame.forces is not None
        assert frame.stress is not None
        assert p.stress is not None
        assert std.stress is not None
        expected = {
            "energy": (np.array([p.energy - frame.energy]) / n**0.5, np.array([std.energy]) / n**0.5),
            "forces": ((p.forces - frame.forces).ravel(), std.forces.ravel()),
            "virial": (-volume * (p.stress - frame.stress) / n**0.5, volume * std.stress / n**0.5),
        }
        found = {part.kind: part for part in left_out if part.frame is frame}
        assert set(found) == set(expected)
        for kind, (error, deviation) in expected.items():
            part = found[kind]
            assert np.abs(error).max() > 1e-4  # eV per sqrt(atom) or eV/Å: something to get wrong
            assert_allclose(part.error, error, rtol=0, atol=1e-7)
            assert_allclose(
                np.sqrt(part.weight_variance + part.residual_variance + part.noise_variance),
                deviation,
                rtol=1e-6,
                atol=1e-8,
            )


def test_forces_know_the_species_they_act_on(training: FrameSet, left_out: list[LeftOut]) -> None:
    for part in left_out:
        if part.kind == "forces":
            assert part.species.tolist() == np.repeat(part.frame.atoms.numbers, 3).tolist()
        else:
            assert not part.species.any()


def test_masked_forces_are_left_alone(config: FitConfig) -> None:
    """Forces on three of four atoms: nine rows, with their species; a sigma of their own is their noise."""
    own, masked = label(alloy(3), "high"), label(alloy(4), "high")
    own.info["force_sigma"] = 0.1  # eV/Å
    masked.arrays["force_mask"] = np.array([1, 0, 1, 1])
    low = [label(alloy(i), "low") for i in range(6)]
    frames = read_frames({"low": low, "high": [own, masked, label(alloy(9), "high")]})
    model = MultiFidelityGP.fit(frames, config, progress=False)
    parts = {(p.frame.source, p.kind): p for p in leave_one_out(model, frames) if p.frame.fidelity == "high"}
    first, second = (f.source for f in frames.of("high")[:2])
    assert parts[second, "forces"].species.tolist() == np.repeat(masked.numbers[[0, 2, 3]], 3).tolist()
    assert len(parts[first, "forces"].error) == 12
    assert_allclose(parts[first, "forces"].noise_variance, 0.01, rtol=1e-6)  # (eV/Å)^2
    assert parts[first, "forces"].species.tolist() == np.repeat(own.numbers, 3).tolist()


def test_what_one_structure_alone_determines_is_passed_over(config: FitConfig) -> None:
    """Gold in one structure only, and energies that are nearly exact: rounding would decide what is left of 1 - H."""
    copper = [label(alloy(i), "high") for i in range(5)]
    for a in copper:
        a.symbols = "Cu4"
    frames = read_frames({"high": [label(a, "high") for a in copper] + [label(alloy(7), "high")]})
    training = config.training.model_copy(update={"optimise": False, "noise_energy": 3e-4})
    model = MultiFidelityGP.fit(frames, config.model_copy(update={"training": training}), progress=False)
    left = {id(p.frame) for p in leave_one_out(model, frames)}
    assert left
    assert id(frames.of("high")[5]) not in left


def test_blocks_between_levels_hold_those_of_each_level(model: MultiFidelityGP) -> None:
    covariance = cross_level_covariance(model.posterior(), model.features.centre)
    for t in range(2):
        assert_allclose(covariance[t, t], model.covariances[t], rtol=0, atol=1e-8)
    assert_allclose(covariance[0, 1], covariance[1, 0].T, rtol=0, atol=1e-12)
    assert covariance[0, 1].abs().max() > 1e-3


def test_hat_inverse_says_where_nothing_is_left() -> None:
    hat = torch.tensor([[1.0 + 1e-12, 0.0], [0.0, 0.25]], dtype=torch.float64)
    assert hat_inverse(hat, 1e-10) is None
    hat[0, 0] = 0.9
    found = hat_inverse(hat, 1e-10)
    assert hat_inverse(hat, 0.2) is None
    assert found is not None
    assert_allclose(found, np.diag([10.0, 1 / 0.75]), rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def exact() -> MultiFidelityGP:
    return MultiFidelityGP.fit(
        molecules("H2O", 30, 0), FitConfig(preset="molecule", model={"n_inducing": 90}), progress=False
    )


def test_hat_matrices_of_nearly_exact_labels(exact: MultiFidelityGP) -> None:
    """Against the QR factor of all rows, which no normal equations have rounded."""
    smoother, parts = Smoother.of(exact), []
    for frame in molecules("H2O", 30, 0):
        parts.append(list(labelled_parts(exact, smoother, frame, exact.features.functionals(frame.atoms))))
    scaled = [torch.cat([p.rows for p in of_one]) * smoother.posterior.std[0] for of_one in parts]
    orthogonal = torch.linalg.qr(torch.cat([*scaled, torch.eye(scaled[0].shape[1], dtype=torch.float64)]))[0]
    for i, of_one in enumerate(parts):
        turned, q = torch.cat([p.turned for p in of_one]), orthogonal[10 * i : 10 * (i + 1)]
        worst = float((turned @ turned.T - q @ q.T).abs().max())
        assert worst < 0.5 * smoother.smallest(of_one)
        assert worst < 5e-4


def test_nearly_exact_labels_are_calibrated_on(exact: MultiFidelityGP) -> None:
    assert exact.calibration is not None
    found = evaluate(exact, molecules("H2O", 50, 9), "emt").to_json()
    assert 0.4 < found["forces"]["z_std"] < 2.0
    assert 0.25 < found["energy"]["z_std"] < 2.0  # nearly all environments are inducing points: r is that of the forces


def test_rounding_does_not_decide_the_noise_of_nearly_exact_labels(exact: MultiFidelityGP) -> None:
    """The statistics in another order of sums, which moved amplitude and noise by factors of ten."""
    frames = molecules("H2O", 30, 0)
    turned = FrameSet(frames.levels, frames.frames[::-1])
    again = MultiFidelityGP.fit(turned, exact.config, features=exact.features, progress=False)
    assert_allclose(again.noise.noise.detach(), exact.noise.noise.detach(), rtol=0.02)
    assert_allclose(again.prior.scale.detach(), exact.prior.scale.detach(), rtol=0.02)


def test_noise_stays_where_the_prior_is_not_lost(exact: MultiFidelityGP) -> None:
    variance = exact.posterior().std ** 2
    for key, m in exact.statistics.moments.items():
        if key[1] not in ("given", "isolated"):
            scale = variance[0].sqrt()
            largest = (
                float(torch.linalg.eigvalsh(scale[:, None] * m.gram * scale).max()) / float(exact.noise.of(key)) ** 2
            )
            assert 1e6 < largest < 1.05 * LARGEST


def test_frames_of_others_are_refused(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    with pytest.raises(DataError, match="not in the training data"):
        model.leave_one_out(two_levels.held_out())


def test_atoms_in_other_images_are_the_same_structure(two_levels: FrameSet, model: MultiFidelityGP) -> None:
    """VASP's output has all atoms inside the cell."""
    training = two_levels.training()
    wrapped = [to_atoms(f) for f in training.of("high")]
    for k, atoms in enumerate(wrapped):
        atoms.positions += np.array([[k, 0, -1], [0, 0, 0], [1, 2, 0], [0, -1, 0]]) @ atoms.cell.array
    moved = read_frames({"low": [to_atoms(f) for f in training.of("low")], "high": wrapped})
    again = without(model, moved)
    again.calculated = calculations(moved)
    assert again.calculated == model.calculated
    left, expected = list(leave_one_out(again, moved)), list(leave_one_out(model, training))
    for one, other in zip(left, expected, strict=True):
        assert_allclose(one.error, other.error, rtol=0, atol=1e-6)
        assert_allclose(one.weight_variance, other.weight_variance, rtol=1e-5, atol=1e-9)


def test_geometry_knows_structures_apart() -> None:
    atoms = alloy(3)
    box = Atoms(atoms.numbers, atoms.positions)
    for change in (lambda a: a.rattle(1e-3, seed=0), lambda a: a.set_pbc(False), lambda a: a.set_cell(a.cell * 1.001)):
        other = atoms.copy()
        change(other)
        assert geometry(other) != geometry(atoms)
    assert geometry(Atoms(box, cell=[20.0] * 3)) == geometry(box) != geometry(atoms)


def test_frames_that_a_file_has_rounded_are_the_same(
    model: MultiFidelityGP, two_levels: FrameSet, tmp_path: Path
) -> None:
    """extxyz keeps eight decimals of positions."""
    training = two_levels.training()
    paths = {}
    for level in training.levels:
        paths[level] = tmp_path / f"{level}.extxyz"
        write(paths[level], [to_atoms(f) for f in training.of(level)])
    again = read_frames(paths)
    assert not set(again.frame_hashes()) <= model.seen
    with pytest.warns(UserWarning, match="17 frames are of calculations that the model was trained on"):
        rounded = list(model.leave_one_out(again))
    for a, b in zip(rounded, model.leave_one_out(training), strict=True):
        assert_allclose(a.error, b.error, rtol=0, atol=1e-5)  # eV per sqrt(atom), eV/Å
