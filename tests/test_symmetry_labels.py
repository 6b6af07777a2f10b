"""Forces and virials that symmetry makes zero are no labels: they teach neither weights nor noises nor calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from conftest import DESCRIPTOR

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.doctor.fit import label_scores
from mfgp.evaluation import evaluate

NOISE = 0.05  # eV/Å of the labels that are not zero by symmetry
CONFIG = FitConfig(descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 40}, training={"max_iterations": 40})
FEW_POINTS = FitConfig(
    descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 6}, training={"optimise": False, "calibrate": False}
)


def copper(seed: int, rattle: float) -> Atoms:
    """A strained cell of four atoms with labels of EMT, forces with noise where they are not zero."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.65, cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
    atoms.positions += rattle * rng.normal(size=(4, 3))
    atoms.calc = EMT()
    noise = NOISE * rng.normal(size=(4, 3)) * (rattle > 0)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces() + noise, atoms.get_stress()
    atoms.calc = None
    atoms.info.update(REF_energy=energy, REF_stress=stress)
    atoms.set_array("REF_forces", forces)
    return atoms


def data(n_perfect: int) -> FrameSet:
    perfect = [copper(500 + i, 0.0) for i in range(n_perfect)]
    return read_frames({"dft": [copper(i, 0.1) for i in range(20)] + perfect})


@pytest.fixture(scope="module")
def mixed() -> MultiFidelityGP:
    return MultiFidelityGP.fit(data(20), CONFIG, progress=False)


def test_perfect_crystals_make_no_noise_small(mixed: MultiFidelityGP) -> None:
    assert np.abs(data(20).frames[-1].forces).max() < 1e-9
    alone = MultiFidelityGP.fit(data(0), CONFIG, progress=False)
    noise = [float(m.noise.of((0, "forces"))) for m in (alone, mixed)]
    assert noise == pytest.approx([NOISE, NOISE], rel=0.1)
    test = read_frames({"dft": [copper(900 + i, 0.1) for i in range(30)]})
    scores = evaluate(mixed, test, "dft").forces.scores
    assert 0.92 < scores.coverage95 < 0.98
    assert 0.85 < scores.z_std < 1.15


def test_they_are_not_among_left_out_labels(mixed: MultiFidelityGP) -> None:
    frames = data(20)
    left = {(p.frame.source, p.kind): p for p in mixed.leave_one_out(frames)}
    perfect, rattled = frames.frames[-1].source, frames.frames[0].source
    assert (perfect, "forces") not in left
    assert (perfect, "energy") in left
    assert len(left[perfect, "virial"].error) == 6  # of a sheared cell
    np.testing.assert_array_equal(left[rattled, "forces"].component, np.arange(12))


def test_amplitudes_make_no_label_of_a_zero() -> None:
    """Nor of crystals whose positions a file has rounded: rows that vanish do so at any amplitude."""
    nearly = [copper(500 + i, 0.0) for i in range(4)]
    for i, atoms in enumerate(nearly):
        atoms.positions += 1e-6 * np.random.default_rng(i).normal(size=(4, 3))  # Å
    frames = read_frames({"dft": [copper(i, 0.1) for i in range(8)] + nearly})
    model = MultiFidelityGP.fit(frames, FEW_POINTS, progress=False)
    for amplitude in (1.0, 1e3):  # eV
        model.prior.set_scale(torch.tensor([amplitude], dtype=torch.float64))
        model.refresh()
        left = [len(p.error) for p in model.leave_one_out(frames) if p.kind == "forces"]
        assert left == [12] * 8  # of the rattled ones alone


def test_components_of_a_surface_atom_that_can_move_one_way_alone() -> None:
    """A slab of mirror planes: forces along z only, no shear."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(16):
        atoms = bulk("Cu", "fcc", a=3.65, cubic=True)
        atoms.center(4.0, axis=2)
        atoms.set_cell(atoms.cell.array * (1 + rng.normal(0, 0.02, 3))[:, None], scale_atoms=True)
        atoms.calc = EMT()
        info = {"REF_energy": atoms.get_potential_energy(), "REF_stress": atoms.get_stress()}
        forces = atoms.get_forces()
        atoms.calc, atoms.info = None, info
        atoms.set_array("REF_forces", forces)
        frames.append(atoms)
    assert np.abs(frames[0].arrays["REF_forces"][:, 2]).max() > 0.1
    assert np.abs(frames[0].arrays["REF_forces"][:, :2]).max() < 1e-9
    read = read_frames({"dft": frames})
    model = MultiFidelityGP.fit(read, CONFIG, progress=False)
    for part in model.leave_one_out(read):
        if part.kind == "forces":
            assert part.component.tolist() == [2, 5, 8, 11]
            assert part.species.tolist() == [29] * 4
        if part.kind == "virial":
            assert len(part.error) == 3
    p = model.predict(frames[0], uncertainty="full")
    assert p.forces_std is not None
    assert (p.forces_std[:, 2] > 0).all()


def test_a_force_that_symmetry_forbids_is_suspect(mixed: MultiFidelityGP) -> None:
    frames = data(20)
    wrong = frames.frames[-1]
    assert wrong.forces is not None
    wrong.forces[2] = [0.0, 0.8, 0.0]
    model = MultiFidelityGP.fit(frames, CONFIG, progress=False)
    scores = [s for s in label_scores(model, frames) if s.kind == "forces"]
    assert [(s.frame.source, s.atom) for s in scores if s.suspect] == [(wrong.source, 2)]
    assert len(scores) == 4 * 20 + 1  # the zeros of perfect crystals have none


@pytest.mark.filterwarnings("ignore:a structure repeats later")
def test_perfect_crystals_alone_leave_the_forces_to_the_prior() -> None:
    frames = read_frames({"dft": [copper(500 + i, 0.0) for i in range(12)]})
    with pytest.warns(UserWarning, match=r"forces of 0 left-out structures \(of 12\) are too few"):
        model = MultiFidelityGP.fit(frames, CONFIG, progress=False)
    p = model.predict(copper(1, 0.1), uncertainty="full")
    assert p.forces_std is not None
    assert (p.forces_std > 0.01).all()
    assert not [s for s in label_scores(model, frames) if s.kind == "forces"]


def test_they_do_not_flatter_the_coverage(mixed: MultiFidelityGP) -> None:
    """Errors are of all labels, coverage and density of those that say something."""
    rattled = [copper(900 + i, 0.1) for i in range(6)]
    perfect = [copper(950 + i, 0.0) for i in range(6)]
    some, every = (evaluate(mixed, read_frames({"dft": a}), "dft").forces.scores for a in (rattled, rattled + perfect))
    assert (some.n, every.n) == (72, 144)
    assert every.mae == pytest.approx(some.mae / 2)
    assert every.rmse == pytest.approx(some.rmse / 2**0.5)
    for name in ("coverage50", "coverage80", "coverage95", "z_std", "nll", "crps", "spearman", "sharpness"):
        assert getattr(every, name) == pytest.approx(getattr(some, name))
    alone = evaluate(mixed, read_frames({"dft": perfect}), "dft").forces.scores
    assert alone.n == 72
    assert np.isnan(alone.coverage95)
