"""Cells that are turned, with their labels, teach the same model; noise of virials knows no direction."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from conftest import DESCRIPTOR, alloy, label
from model_files import as_written, less
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.fit import fitting
from mfgp.fit.features import Features
from mfgp.frames import to_atoms
from mfgp.gp.observations import Columns
from mfgp.model_file import read_header

CONFIG = FitConfig(
    descriptor=DESCRIPTOR,
    model={"zeta": 2, "n_inducing": 30},
    training={"max_iterations": 300, "calibrate": False},
    device="cpu",
)
NOISE = 0.02  # eV/Å^3 of the labels on the diagonal
DIAGONAL = np.sqrt(
    [1, 1, 1, 2, 2, 2]
)  # std of noise without a direction on the diagonal over that of xx yy zz yz xz xy


def turned(atoms: Atoms, rotation: np.ndarray) -> Atoms:
    """A structure and its labels, turned."""
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ rotation.T)
    out.positions = atoms.positions @ rotation.T
    out.arrays["REF_forces"] = atoms.arrays["REF_forces"] @ rotation.T
    out.info["REF_stress"] = turned_stress(atoms.info["REF_stress"], rotation)
    return out


def turned_stress(stress: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    return full_3x3_to_voigt_6_stress(rotation @ voigt_6_to_full_3x3_stress(stress) @ rotation.T)


def noisy(seed: int, level: str) -> Atoms:
    """A labelled alloy, with noise on its stress."""
    atoms = label(alloy(seed), level)
    noise = np.random.default_rng(seed).normal(0, NOISE, 6) / DIAGONAL
    atoms.info["REF_stress"] = atoms.info["REF_stress"] + noise
    return atoms


def data(turn: bool) -> FrameSet:
    rotations = Rotation.random(18, random_state=0).as_matrix()
    frames = [noisy(i, "low") for i in range(12)] + [noisy(i, "high") for i in range(6)]
    return read_frames(
        [turned(a, r) if turn else a for a, r in zip(frames, rotations, strict=True)], levels=["low", "high"]
    )


@pytest.fixture(scope="module")
def models() -> tuple[MultiFidelityGP, MultiFidelityGP]:
    """Fitted to cells as they lie, and turned; with the same inducing points, of which each fit would draw its own."""
    features = Features.build(data(False), CONFIG)
    as_they_lie, others = (
        MultiFidelityGP.fit(data(t), CONFIG, features=features, progress=False) for t in (False, True)
    )
    return as_they_lie, others


def test_turned_labels_teach_the_same(models: tuple[MultiFidelityGP, MultiFidelityGP]) -> None:
    as_they_lie, others = models
    assert as_they_lie.training is not None
    assert others.training is not None
    assert others.training.evidence == pytest.approx(as_they_lie.training.evidence, abs=1e-4)  # nats
    noises = [m.noise.noise.numpy() for m in models]
    assert noises[0][0, 2] > 0.1  # eV per sqrt(atom): there is noise to get wrong
    assert_allclose(noises[1], noises[0], rtol=1e-3)
    atoms, rotation = alloy(80), Rotation.random(random_state=1).as_matrix()
    p, q = (m.predict(atoms, "high") for m in models)
    assert_allclose(q.forces, p.forces, rtol=0, atol=1e-4)  # eV/Å
    assert_allclose(q.stress, p.stress, rtol=0, atol=1e-5)  # eV/Å^3
    assert p.stress_std is not None
    assert q.stress_std is not None
    assert_allclose(q.stress_std, p.stress_std, rtol=1e-3)
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ rotation.T)
    other.positions = atoms.positions @ rotation.T
    r = as_they_lie.predict(other, "high")
    assert_allclose(r.forces, p.forces @ rotation.T, rtol=0, atol=1e-9)
    assert_allclose(r.stress, turned_stress(p.stress, rotation), rtol=0, atol=1e-10)
    assert r.stress_std is not None
    total = [np.sum((DIAGONAL * std) ** 2) for std in (p.stress_std, r.stress_std)]
    assert total[1] == pytest.approx(total[0], rel=1e-9)  # sum over i, j of the variances of stress_ij


def test_files_of_schema_12_keep_their_noise_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions are as they were, and what an update adds to the statistics is like what is in them."""
    monkeypatch.setattr(fitting, "Columns", partial(Columns, shear=1.0))
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"optimise": False})})
    first, later = data(False), [noisy(30 + i, "high") for i in range(3)]
    model = MultiFidelityGP.fit(first, config, progress=False)
    model.calibrate(first)
    old = tmp_path / "old.mfgp"
    model.save(old)
    as_written(old, {"schema": 12, "calibration": less(read_header(old)["calibration"], "shear")}, ("shear",))
    loaded = MultiFidelityGP.load(old)
    assert loaded.columns.shear == 1.0
    assert loaded.calibration == model.calibration is not None
    every = read_frames([*map(to_atoms, first), *later], levels=["low", "high"])
    whole = MultiFidelityGP.fit(every, config, features=model.features, progress=False)
    atoms = alloy(81)
    for calibrated in (True, False):
        p, q = (m.predict(atoms, calibrated=calibrated) for m in (model, loaded))
        assert_allclose(q.stress, p.stress, rtol=0, atol=1e-10)
        assert_allclose(q.stress_std, p.stress_std, rtol=0, atol=1e-10)
    loaded.update(later)
    loaded.save(old)
    again = MultiFidelityGP.load(old)
    assert again.columns.shear == 1.0
    for key in ((0, "virial"), (1, "virial")):
        found, expected = again.statistics.moments[key], whole.statistics.moments[key]
        assert found.count == expected.count
        assert found.square == pytest.approx(expected.square, rel=1e-12)
        assert_allclose(found.gram, expected.gram, rtol=0, atol=1e-9 * float(expected.gram.abs().max()))
