"""Many structures at once are predicted as one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import DESCRIPTOR, alloy
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.errors import DataError
from mfgp.fit import features
from mfgp.predict.batched import batches, predict_many


@pytest.fixture(scope="module")
def model(two_levels: FrameSet) -> MultiFidelityGP:
    training = {"max_iterations": 30}
    return MultiFidelityGP.fit(
        two_levels, FitConfig(descriptor=DESCRIPTOR, model={"n_inducing": 40}, training=training)
    )


@pytest.fixture(params=[1, 2])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def structures() -> list[Atoms]:
    """Of several sizes; one without a cell, one of two atoms far apart, which have no neighbours."""
    molecule = alloy(73)
    molecule.pbc = False
    molecule.cell = None
    apart = alloy(74)[:2]
    apart.cell, apart.pbc = np.eye(3) * 60.0, True
    apart.positions = [[0.0, 0.0, 0.0], [30.0, 30.0, 30.0]]
    return [alloy(70), alloy(71) * (2, 1, 1), molecule, apart, alloy(72)]


@pytest.mark.parametrize("uncertainty", ["none", "local", "energies", "full", "by_level"])
def test_many_are_predicted_as_one_by_one(
    model: MultiFidelityGP, structures: list[Atoms], uncertainty: str, n_threads: int
) -> None:
    predictor = model.predictor(by_level=uncertainty == "by_level")
    many = list(predict_many(predictor, structures, uncertainty))
    assert len(many) == len(structures)
    for atoms, p in zip(structures, many, strict=True):
        alone = predictor(atoms, uncertainty)
        assert p.energy == pytest.approx(alone.energy, abs=1e-8)
        assert_allclose(p.forces, alone.forces, rtol=0, atol=1e-8)
        assert_allclose(p.energies, alone.energies, rtol=0, atol=1e-8)
        assert (p.stress is None) == (alone.stress is None)
        if alone.stress is not None:
            assert_allclose(p.stress, alone.stress, rtol=0, atol=1e-9)
        for name in ("energy_std", "forces_std", "stress_std", "energies_std"):
            expected, found = getattr(alone, name), getattr(p, name)
            assert (found is None) == (expected is None)
            if expected is not None:
                assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert max(np.abs(p.forces).max() for p in many) > 0.1  # eV/Å
    assert abs(many[0].energy - many[-1].energy) > 1e-3  # eV: structures are told apart


def test_batches_bound_the_atoms_and_keep_the_order() -> None:
    sizes = [3, 4, 9, 1, 1, 1, 20, 2]
    places = list(batches([Atoms("Cu" * n) for n in sizes], 9))
    assert [i for part in places for i in part] == list(range(len(sizes)))
    assert all(len(part) == 1 or sum(sizes[i] for i in part) <= 9 for part in places)
    assert len(places) == 5


@pytest.mark.parametrize("uncertainty", ["none", "full"])
def test_what_cannot_be_predicted_is_an_error(model: MultiFidelityGP, uncertainty: str) -> None:
    strange, close, lost = alloy(75), alloy(76), alloy(77)
    strange.numbers[0] = 92
    close.positions[1] = close.positions[0] + 1e-6
    lost.positions[2, 1] = np.nan
    flat = alloy(78)
    flat.cell[2] = 0.0
    cases = ((strange, "has not seen U"), (close, "apart"), (lost, "position"), (Atoms(), "atoms"), (flat, "cell"))
    for bad, message in cases:
        with pytest.raises(DataError, match=message):
            model.predict([alloy(70), bad], uncertainty=uncertainty)
    assert model.predict([], uncertainty=uncertainty) == []


@pytest.mark.parametrize("uncertainty", ["energies", "full"])
def test_what_comes_before_it_is_predicted(model: MultiFidelityGP, uncertainty: str) -> None:
    """A structure that cannot be predicted, the largest of all, in the third place."""
    strange = alloy(75, repeat=2)
    strange.numbers[0] = 92
    found = predict_many(model.predictor(), [alloy(70), alloy(71), strange], uncertainty)
    assert [next(found).energy for _ in range(2)] == pytest.approx([model.predict(alloy(i)).energy for i in (70, 71)])
    with pytest.raises(DataError, match="has not seen U"):
        next(found)


def test_a_kind_of_uncertainty_is_checked_first(model: MultiFidelityGP) -> None:
    with pytest.raises(ValueError, match="not 'fulll'"):
        list(predict_many(model.predictor(), [], "fulll"))
    with pytest.raises(ValueError, match="by_level=True"):
        list(predict_many(model.predictor(), [alloy(70)], "by_level"))


def test_the_kinds_that_the_message_names_are_those_that_predict_takes(model: MultiFidelityGP) -> None:
    with pytest.raises(ValueError, match="must be one of") as found:
        model.predict(alloy(70), uncertainty="fulll")
    offered = str(found.value).split("must be one of ")[1].split(", not")[0].replace(" or ", ", ").split(", ")
    assert len(offered) == 5
    assert all(model.predict(alloy(70), uncertainty=kind).energy for kind in offered)
    for message in (str(found.value), _refused(model, "sampled")):
        assert "model.predictor(fidelity, draws=8)" in message


def _refused(model: MultiFidelityGP, uncertainty: str) -> str:
    with pytest.raises(ValueError, match=uncertainty) as found:
        model.predict(alloy(70), uncertainty=uncertainty)
    return str(found.value)


def test_float32_stays_float32(model: MultiFidelityGP) -> None:
    predictor, exact = model.predictor(dtype="float32"), model.predictor()
    (many,), alone = predict_many(predictor, [alloy(70)], "none"), predictor(alloy(70), "none")
    assert_allclose(many.forces, alone.forces, rtol=0, atol=1e-9)
    assert np.abs(many.forces - exact(alloy(70), "none").forces).max() > 1e-8


def test_large_structures_come_one_after_the_other(model: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch) -> None:
    structures, predictor = [alloy(70), alloy(71)], model.predictor()
    assert model.features.fits_threads(structures)
    monkeypatch.setattr(features, "THREADS_BYTES", 1e3)
    assert not model.features.fits_threads(structures)
    monkeypatch.setattr(features, "ordered_map", None)
    assert len(list(predict_many(predictor, structures))) == 2
