"""`MultiFidelityGP.update`: that of a refit at the same hyperparameters, and what it skips, tells and refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write
from conftest import alloy, label
from numpy.testing import assert_allclose

from mfgp import (
    DataError,
    FrameSet,
    MultiFidelityGP,
    NumericalError,
)


def test_update_equals_a_refit_at_the_same_hyperparameters(two_levels: FrameSet, model: MultiFidelityGP) -> None:
    training = two_levels.training()
    part = FrameSet(training.levels, tuple(f for i, f in enumerate(training.frames) if i not in (2, 14)))
    rest = FrameSet(training.levels, tuple(f for i, f in enumerate(training.frames) if i in (2, 14)))
    config = model.config.model_copy(update={"training": model.config.training.model_copy(update={"optimise": False})})
    updated = MultiFidelityGP.fit(part, config, features=model.features, progress=False)
    updated.columns, updated.column_std = model.columns, model.column_std
    updated.statistics = _restricted(model, part)
    updated.prior, updated.noise = copy.deepcopy(model.prior), copy.deepcopy(model.noise)
    updated.refresh()
    before = updated.predict(alloy(60)).energy
    updated.update(rest)
    assert abs(updated.predict(alloy(60)).energy - before) > 1e-6
    p, q = updated.predict(alloy(61)), model.predict(alloy(61))
    assert_allclose(p.energy, q.energy, rtol=0, atol=1e-8)
    assert_allclose(p.forces, q.forces, rtol=0, atol=1e-8)
    assert_allclose(p.energy_std, q.energy_std, rtol=0, atol=1e-7)
    assert_allclose(np.asarray(p.forces_std), np.asarray(q.forces_std), rtol=0, atol=1e-7)
    assert updated.data == model.data
    with pytest.warns(UserWarning, match="2 frames are of calculations that the model has already"):
        updated.update(rest)
    assert_allclose(updated.predict(alloy(61)).energy, q.energy, rtol=0, atol=1e-8)


def _restricted(model: MultiFidelityGP, frames: FrameSet):  # type: ignore[no-untyped-def]
    from mfgp.fit.fitting import accumulate

    return accumulate(frames, model.features, model.columns, [], model.config.training.noise_energy)


def test_update_takes_tagged_atoms_and_refuses_what_it_cannot_use(model: MultiFidelityGP) -> None:
    work = copy.deepcopy(model)
    work.update([label(alloy(70), "high")])
    assert work.data["high"]["frames"] == model.data["high"]["frames"] + 1
    weights = work.weights.clone()
    strange = label(alloy(71), "low")
    strange.symbols[0] = "Ag"
    with pytest.raises(DataError, match=r"not seen Ag; it knows Cu, Au"):
        work.update([strange])
    other = label(alloy(72), "low")
    other.info["fidelity"] = "dft"
    with pytest.raises(DataError, match="dft"):
        work.update([other])
    assert torch.equal(work.weights, weights)


def test_update_counts_a_repeated_frame_once_and_says_what_it_skips(model: MultiFidelityGP, tmp_path: Path) -> None:
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    new, held_out = label(alloy(73), "high"), label(alloy(74), "high")
    held_out.info["split"] = "test"
    one.update([new])
    with pytest.warns(UserWarning, match="repeated .* skipped: 1 frame$"):
        two.update([new, new])
    assert torch.equal(one.weights, two.weights)
    with pytest.warns(UserWarning, match=r"held out .* skipped: 1 of 1 frames"):
        one.update([held_out])
    write(tmp_path / "new.extxyz", new)  # rounds to 1e-8
    with pytest.warns(UserWarning, match="1 frames are of calculations that the model has already"):
        one.update([read(tmp_path / "new.extxyz")])
    assert torch.equal(one.weights, two.weights)
    assert one.data["high"]["frames"] == model.data["high"]["frames"] + 1


def test_update_warns_of_an_energy_in_another_unit(model: MultiFidelityGP) -> None:
    atoms = label(alloy(77), "high")
    atoms.info["REF_energy"] += 3.0  # eV: 0.75 eV/atom
    with pytest.warns(UserWarning, match=r"1 of 1 new energies .*Is it a total energy in eV"):
        copy.deepcopy(model).update({"high": [atoms]})


def test_failed_update_leaves_the_model_as_it_was(model: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch) -> None:
    work = copy.deepcopy(model)
    new = [label(alloy(75), "high")]

    def broken(*args: object) -> None:
        raise NumericalError("no")

    with monkeypatch.context() as m:
        m.setattr("mfgp.model.Posterior", broken)
        with pytest.raises(NumericalError):
            work.update(new)
    assert (work.seen, work.data) == (model.seen, model.data)
    work.update(new)
    assert work.data["high"]["frames"] == model.data["high"]["frames"] + 1
