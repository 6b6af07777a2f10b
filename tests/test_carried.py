"""What inducing points do not carry: the usual share, structures of another kind that an update brings, files, notes."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import DESCRIPTOR, alloy, label

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.calibration.calibration import Calibration
from mfgp.calibration.carried import BEYOND, USUAL, Carried, Left
from mfgp.predict.residual import residual_variance


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return [label(alloy(i), "low") for i in range(30)]


@pytest.fixture(scope="module")
def fitted(frames: list[Atoms]) -> MultiFidelityGP:
    config = FitConfig(descriptor=DESCRIPTOR, model={"n_inducing": 100})
    return MultiFidelityGP.fit(read_frames({"low": frames}), config, progress=False)


def of_another_kind(n: int) -> list[Atoms]:
    """Copper alone."""
    out = []
    for i in range(n):
        atoms = alloy(400 + i)
        atoms.symbols[:] = "Cu"
        atoms.set_cell(atoms.cell * 0.95, scale_atoms=True)
        out.append(label(atoms, "low"))
    return out


def carried(model: MultiFidelityGP) -> Carried:
    assert model.calibration is not None
    (found,) = model.calibration.carried
    return found


def test_the_usual_is_the_mean_over_the_forces_of_the_training_data(
    fitted: MultiFidelityGP, frames: list[Atoms]
) -> None:
    left: dict[int, list[float]] = {29: [], 79: []}
    for atoms in frames:
        f = fitted.features.functionals(atoms)
        variances = residual_variance(fitted, 0, f.phi, f.prior)[1:-6].reshape(-1, 3).numpy()
        for z, own in left.items():
            own += variances[atoms.numbers == z].ravel().tolist()
    assert carried(fitted).usual == pytest.approx({z: float(np.mean(own)) for z, own in left.items()}, rel=1e-6)
    assert min(carried(fitted).usual.values()) > 1e-8  # (eV/Å)^2: no rounding


def test_structures_of_another_kind_are_told_until_the_next_fit(
    fitted: MultiFidelityGP, frames: list[Atoms], tmp_path: Path
) -> None:
    model, new = copy.copy(fitted), of_another_kind(4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.update(new[:3])
    (told,) = [str(w.message) for w in caught if "cannot describe" in str(w.message)]
    assert told.startswith("fidelity 'low': the model cannot describe 3 of the structures")
    assert "the forces on Cu " in told
    assert (carried(model).beyond, carried(model).elements) == (3, (29,))
    assert carried(fitted).beyond == 0  # another model
    model.save(tmp_path / "model.mfgp")
    model = MultiFidelityGP.load(tmp_path / "model.mfgp")
    assert f"warning: {told}" in model.notes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.update(new[3:])
    assert not [w for w in caught if "cannot describe" in str(w.message)]  # told once
    every = read_frames({"low": [*frames, *new]})
    model.calibrate(every)  # makes standard deviations right, and nothing carried
    assert carried(model).beyond == 4
    assert carried(model).usual == carried(fitted).usual
    again = MultiFidelityGP.fit(every, model.config, progress=False)
    again.update([label(alloy(300), "low")])
    assert not [note for note in again.notes() if "cannot describe" in note]


def test_more_structures_like_the_earlier_ones_are_carried(fitted: MultiFidelityGP) -> None:
    """Many at once, and one at a time; pytest raises warnings."""
    model = copy.copy(fitted).update([label(alloy(200 + i), "low") for i in range(12)])
    for i in range(12):
        model.update([label(alloy(212 + i), "low")])
    assert carried(model).elements == ()
    assert not [note for note in model.notes() if "cannot describe" in note]


def test_forces_that_symmetry_makes_zero_say_nothing(fitted: MultiFidelityGP) -> None:
    """An equation of state and an isolated atom beside structures of another kind, in one update and before it."""
    perfect = [label(bulk("Cu", "sc", a=a) * 2, "low") for a in np.linspace(2.3, 2.5, 8)]
    perfect.append(label(Atoms("Cu", cell=[20.0] * 3), "low"))
    new = of_another_kind(3)

    def sums(*updates: list[Atoms]) -> dict[int, float]:
        model = copy.copy(fitted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for update in updates:
                model.update(update)
        return dict(carried(model).sums)

    alone = sums(new)
    assert alone[29] > 2 * USUAL * (BEYOND - 1)
    assert sums([*perfect, *new]) == pytest.approx(alone, rel=1e-6)
    assert sums(new, perfect) == pytest.approx(alone, rel=1e-6)


def test_only_what_matters_beside_the_noise_of_labels() -> None:
    numbers, nothing, every = np.array([29, 29, 79]), {29: 0.0, 79: 0.0}, np.ones(9, dtype=bool)
    reference = Carried("low", {29: 2e-4, 79: 4e-4})
    variances = np.array([[1e-4] * 3, [3e-4] * 3, [4e-4] * 3]).ravel()  # (eV/Å)^2: as usual

    def two(factor: float) -> list[Left]:
        one = np.where(np.repeat(numbers, 3) == 29, factor, 1.0) * variances
        return [Left.of(variances, every, numbers, "a"), Left.of(one, every, numbers, "b")]

    limit = (BEYOND * (USUAL + 2) - USUAL - 1) ** 2  # a mean of BEYOND with usual ones
    assert reference.plus(two(0.99 * limit), nothing).elements == ()
    told = reference.plus(two(1.01 * limit), nothing)
    assert (told.beyond, told.elements, told.first) == (1, (29,), "b")
    assert told.plus(two(0.5), nothing) == replace(told, sums={29: 0.0, 79: 0.0})
    noise = {29: 1.01 * BEYOND**2 * 2e-4, 79: 0.0}
    assert reference.plus(two(1.01 * limit), noise).elements == ()
    assert reference.plus(two(1.01 * limit), {29: 0.99 * BEYOND**2 * 2e-4, 79: 0.0}) == told
    hydrogen = Left.of(100 * variances, every, np.array([1, 1, 79]), "c")  # without a reference
    assert reference.plus([hydrogen], nothing).elements == (79,)
    one = Left({29: 25 * 2e-4}, "d")  # BEYOND + 2: one by one the third is above USUAL * (BEYOND - 1)
    first = reference.plus([one], nothing)
    assert first.plus([one], nothing).elements == ()
    assert first.plus([one], nothing).plus([one], nothing).elements == (29,)
    assert first.plus([Left({29: 2e-4}, "e")], nothing).plus([one], nothing).plus([one], nothing).elements == ()


def test_a_calibration_without_a_reference_says_nothing(fitted: MultiFidelityGP) -> None:
    """That of an earlier version."""
    model = copy.copy(fitted)
    assert model.calibration is not None
    stored = model.calibration.to_json()
    assert Calibration.from_json(stored) == model.calibration
    del stored["carried"]
    model.calibration = Calibration.from_json(stored)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.update(of_another_kind(3))
    assert not [w for w in caught if "cannot describe" in str(w.message)]
    assert model.calibration.carried == ()
