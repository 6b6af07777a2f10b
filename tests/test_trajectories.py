"""Frames of a trajectory are left out with those before and after them, stretches whole, and never others."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.calibrating import of_one_kind
from mfgp.calibration.factors import fit_calibration
from mfgp.calibration.leave_one_out import leave_one_out
from mfgp.calibration.leave_relatives_out import leave_relatives_out, thinned
from mfgp.data.trajectories import FEWEST, reach, relatives
from mfgp.datasets import load_lmfp
from mfgp.evaluation import evaluate, label_std
from mfgp.fit import fitting

CONFIG = FitConfig(descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 40}, training={"max_iterations": 10})


def dynamics(seed: int, n: int, every: int) -> list[Atoms]:
    """n frames of CuAu at 800 K with labels of EMT, `every` steps of 2 fs apart."""
    atoms = bulk("Cu", "fcc", a=3.85, cubic=True) * (2, 2, 1)
    atoms.numbers[::2] = 79
    rng = np.random.default_rng(seed)
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    atoms.calc = EMT()
    thermostat = Langevin(atoms, 2 * units.fs, temperature_K=800, friction=0.02 / units.fs, rng=rng, fixcm=False)
    thermostat.run(200)
    out = []
    for _ in range(n):
        thermostat.run(every)
        frame = atoms.copy()
        frame.info["REF_energy"] = atoms.get_potential_energy()
        frame.set_array("REF_forces", atoms.get_forces())
        out.append(frame)
    return out


@pytest.fixture(scope="module")
def trajectory() -> FrameSet:
    """25 frames 4 fs apart."""
    return read_frames({"dft": dynamics(0, 25, 2)})


def counts(frames: FrameSet) -> list[int]:
    found = relatives(frames)
    return [found.count(found.same[id(f)]) for f in frames]


def test_frames_go_with_those_before_and_after_them(trajectory: FrameSet) -> None:
    found = relatives(trajectory)
    numbers = [found.same[id(f)] for f in trajectory]
    assert numbers == list(range(25))
    for number in numbers:
        block = sorted({number, *found.related[number]})
        assert block == list(range(block[0], block[-1] + 1))  # without a gap
        assert 4 <= len(block) <= 24
    assert found.independent(trajectory.frames) < 6
    assert found.enough(trajectory, 256) == FEWEST
    far = read_frames({"dft": dynamics(0, 12, 100)})
    assert counts(far) == [0] * 12
    assert relatives(far).enough(far, 256) == 48


def test_independent_structures_have_no_relatives(trajectory: FrameSet, two_levels: FrameSet) -> None:
    assert counts(two_levels.training()) == [0] * 17
    same_atoms = [label(alloy(i), "low") for i in range(30)]
    for i, atoms in enumerate(same_atoms):
        atoms.numbers = alloy(0).numbers
        same_atoms[i] = label(atoms, "low")
    assert counts(read_frames({"low": same_atoms})) == [0] * 30
    order = np.random.default_rng(0).permutation(25)
    assert counts(FrameSet(("dft",), tuple(trajectory.frames[i] for i in order))) == [0] * 25
    assert not relatives(read_frames({"mag": load_lmfp("mag")})).related


def test_many_short_runs_tell_together_what_one_does_not() -> None:
    atoms = []
    for seed in range(6):
        for frame in dynamics(seed, 6, 3):
            frame.numbers[:] = np.roll(frame.numbers, seed)  # another order: a run of its own
            atoms.append(frame)
    assert min(counts(read_frames({"dft": atoms}))) >= 1
    assert counts(read_frames({"dft": atoms[:6]})) == [0] * 6


def test_reach_of_correlated_noise() -> None:
    """c_ij of noise whose correlation is a^lag falls below 0.1 after log 0.1 / log a frames."""
    rng, a = np.random.default_rng(3), 0.8
    f = np.zeros((400, 600))
    f[0] = rng.normal(size=600)
    for i in range(1, 400):
        f[i] = a * f[i - 1] + (1 - a * a) ** 0.5 * rng.normal(size=600)
    before, after = reach(f)
    assert np.log(0.1) / np.log(a) == pytest.approx(10.3, abs=0.1)
    assert np.median(after) == pytest.approx(10, abs=1)
    assert np.median(before) == pytest.approx(10, abs=1)
    assert before[:5].tolist() == [0, 1, 2, 3, 4]  # the run begins there
    assert after[-5:].tolist() == [4, 3, 2, 1, 0]


def test_runs_end_where_atoms_change_and_without_forces(trajectory: FrameSet) -> None:
    atoms = dynamics(0, 25, 2)
    for i in range(0, 25, 4):  # runs of three are too short
        del atoms[i].arrays["REF_forces"]
    assert counts(read_frames({"dft": atoms})) == [0] * 25
    again = dynamics(0, 5, 2)  # the same first structures at another level
    for a in again:
        a.info["REF_energy"] += 1.0
    both = read_frames({"a": dynamics(0, 25, 2), "b": again})
    found = relatives(both)
    assert [found.same[id(f)] for f in both.of("b")] == list(range(5))
    assert [len(found.related[k]) for k in range(8, 25)] == counts(trajectory)[8:]


@pytest.mark.parametrize(("every", "index"), [(2, 12), (10, 12), (10, 0)])  # more rows than weights, and fewer
def test_equals_really_leaving_them_out(trajectory: FrameSet, every: int, index: int) -> None:
    training = CONFIG.training.model_copy(update={"calibrate": False, "optimise": False})
    kernel = CONFIG.model.model_copy(update={"n_inducing": 300})
    frames = trajectory if every == 2 else read_frames({"dft": dynamics(0, 25, every)})
    model = MultiFidelityGP.fit(
        frames, CONFIG.model_copy(update={"model": kernel, "training": training}), progress=False
    )
    found, frame = relatives(frames), frames.frames[index]
    block = {index, *found.related[index]}
    assert len(block) > 1
    assert ((len(block) - 1) * 49 > model.basis.size) == (every == 2)
    rest = FrameSet(("dft",), tuple(f for k, f in enumerate(frames) if k not in block))
    other = copy.copy(model)
    other.statistics = fitting.accumulate(
        rest, model.features, model.columns, model.baselines, model.config.training.noise_energy
    )
    other.refresh()
    p = other.predict(frame.atoms)
    std = label_std(other, frame, p)
    sample = FrameSet(("dft",), (frame,))
    parts = {part.kind: part for part in leave_relatives_out(model, frames, sample, found)}
    assert frame.forces is not None
    assert frame.energy is not None
    assert np.abs(p.forces - frame.forces).max() > 3e-3  # eV/Å: something to get wrong
    expected = {"energy": (np.array([p.energy - frame.energy]) / 4, np.array([std.energy]) / 4)}
    expected["forces"] = ((p.forces - frame.forces).ravel(), std.forces.ravel())
    assert set(parts) == set(expected)
    for kind, (error, deviation) in expected.items():
        part = parts[kind]
        variance = part.weight_variance + part.residual_variance + part.noise_variance
        assert_allclose(part.error, error, rtol=0, atol=2e-6)
        assert_allclose(variance**0.5, deviation, rtol=1e-4, atol=1e-7)


def test_without_relatives_it_is_leave_one_out(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    frames = two_levels.training()
    alone = list(leave_one_out(model, frames))
    found = list(leave_relatives_out(model, frames, frames, relatives(frames)))
    assert len(found) == len(alone)
    for a, b in zip(alone, found, strict=True):
        assert (a.frame, a.kind) == (b.frame, b.kind)
        assert_allclose(a.error, b.error, rtol=0, atol=0)


def test_intervals_hold_in_other_trajectories() -> None:
    """75 % of the forces where frames are left out one at a time."""
    frames = read_frames({"dft": dynamics(0, 40, 2)})
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"n_inducing": 100})})
    with pytest.warns(UserWarning, match="40 frames follow upon each other .* as much as about 3 independent"):
        model = MultiFidelityGP.fit(frames, config, progress=False)
    test = read_frames({"dft": [f for seed in range(50, 62) for f in dynamics(seed, 1, 1)]})
    assert 0.88 < evaluate(model, test, "dft").forces.scores.coverage95 < 0.99
    alone = model.leave_one_out(frames)
    model.calibration = fit_calibration(alone, model.levels, model.basis.species, model.features.pairs)
    assert evaluate(model, test, "dft").forces.scores.coverage95 < 0.82


def runs(n: int, each: int) -> list[Atoms]:
    """`each` displaced copies of n cells that differ in their strain, with labels of EMT."""
    out = []
    for i in range(n):
        for k in range(each):
            atoms = alloy(i)
            atoms.positions += np.random.default_rng(100 * i + k).normal(0, 0.05, atoms.positions.shape)
            out.append(label(atoms, "low"))
    return out


def test_stretches_are_left_out_whole() -> None:
    frames = read_frames({"low": runs(9, 4)})
    found = relatives(frames)
    assert [sorted(s) for s in found.stretches] == [list(range(4 * i, 4 * i + 4)) for i in range(9)]
    assert found.left_out_with(6) == {4, 5, 7}
    assert relatives(read_frames({"low": runs(7, 4)})).stretches == ()  # too few to tell how much they differ
    assert relatives(read_frames({"low": [*runs(9, 1), *runs(1, 12)]})).stretches == ()  # one that is half of all
    few = thinned(FrameSet(("low",), frames.frames), found)
    assert len(few) == 36
    more = read_frames({"low": runs(9, 10)})
    assert len(thinned(more, relatives(more))) == 9 * 4  # of every third


def test_stretches_of_one_kind_are_told_from_others() -> None:
    """Nine strains of one alloy, and nine cells of which each has elements of its own."""
    kinds = [label(a, "low") for i, a in enumerate(runs(9, 4)) for a in [composed(a, i // 4)]]
    for atoms, one_kind in ((runs(9, 4), True), (kinds, False)):
        frames = read_frames({"low": atoms})
        training = CONFIG.training.model_copy(update={"calibrate": False})
        model = MultiFidelityGP.fit(frames, CONFIG.model_copy(update={"training": training}), progress=False)
        found = relatives(frames)
        assert len(found.stretches) == 9
        alone = list(leave_relatives_out(model, frames, frames, replace(found, stretches=())))
        whole = list(leave_relatives_out(model, frames, frames, found))
        assert of_one_kind(alone, whole, found) == one_kind


def composed(atoms: Atoms, i: int) -> Atoms:
    """A copy with gold, silver, palladium or nickel on some of its places, the volume with it."""
    out = atoms.copy()
    out.numbers[:] = [29, 29, 29, 29]
    out.numbers[: 1 + i % 3] = (79, 47, 46)[i // 3]
    out.set_cell(out.cell.array * (1 + 0.02 * (i % 3)), scale_atoms=True)
    return out


def test_every_level_keeps_structures_of_a_stretch() -> None:
    """Of ten structures the second and third have labels at both levels: both stay, and two others."""
    cells = runs(9, 10)
    high = [label(cells[10 * i + k], "high") for i in range(9) for k in (1, 2)]
    frames = read_frames({"low": cells, "high": high})
    few = thinned(frames, relatives(frames))
    assert len(few.of("high")) == 18
    assert len(few.of("low")) == 9 * 4


def test_a_pair_among_independent_structures_is_no_stretch() -> None:
    atoms = [label(alloy(i), "low") for i in range(40)]
    atoms[8] = label(atoms[7], "low")
    atoms[8].positions[0] += 0.1
    assert relatives(read_frames({"low": atoms})).stretches == ()


def test_stretches_of_two_levels_are_joined() -> None:
    cells = runs(9, 4)
    other = [label(cells[i], "high") for i in (0, 1, 5, 6, 20)]
    found = relatives(read_frames({"low": cells, "high": other}))
    assert sorted(map(len, found.stretches)) == [4] * 9
    wider = [cells[3].copy()]
    wider[0].positions[0] += 0.1
    found = relatives(read_frames({"low": cells, "high": [label(a, "high") for a in (cells[3], *wider)]}))
    assert sorted(map(len, found.stretches)) == [4] * 8 + [5]


def test_equals_really_leaving_a_stretch_out() -> None:
    """Fewer rows than weights remain in the sum of their products, and in a matrix of their own."""
    frames = read_frames({"low": runs(9, 6)})
    training = CONFIG.training.model_copy(update={"calibrate": False, "optimise": False})
    found = relatives(frames)
    for n_inducing in (30, 150):
        kernel = CONFIG.model.model_copy(update={"n_inducing": n_inducing})
        config = CONFIG.model_copy(update={"model": kernel, "training": training})
        model = MultiFidelityGP.fit(frames, config, progress=False)
        other = copy.copy(model)
        rest = FrameSet(("low",), (*frames.frames[:6], *frames.frames[12:]))
        other.statistics = fitting.accumulate(
            rest, model.features, model.columns, model.baselines, model.config.training.noise_energy
        )
        other.refresh()
        sample = FrameSet(("low",), frames.frames[6:8])
        parts = {(part.frame.source, part.kind): part for part in leave_relatives_out(model, frames, sample, found)}
        assert len(parts) == 6
        for frame in sample:
            p = other.predict(frame.atoms)
            std = label_std(other, frame, p)
            assert frame.forces is not None
            part = parts[frame.source, "forces"]
            variance = part.weight_variance + part.residual_variance + part.noise_variance
            assert np.abs(part.error).max() > 2e-3  # eV/Å
            assert_allclose(part.error, (p.forces - frame.forces).ravel(), rtol=0, atol=2e-6)
            assert_allclose(variance**0.5, std.forces.ravel(), rtol=1e-4, atol=1e-7)


def test_folds_hold_pieces_of_trajectories(trajectory: FrameSet) -> None:
    parts = fitting.in_folds(trajectory, 3, seed=0)
    places = {id(f): i for i, f in enumerate(trajectory)}
    assert sorted(places[id(f)] for part in parts for f in part) == list(range(25))
    neighbours = sum(abs(places[id(a)] - places[id(b)]) == 1 for part in parts for a in part for b in part) / 2
    assert neighbours > 12  # of 24; 8 if they were dealt one by one
