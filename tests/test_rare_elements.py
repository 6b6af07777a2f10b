"""Energies of structures with an element that hardly any left-out energy is of: errors of the others do not narrow them."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from conftest import DESCRIPTOR, alloy, label

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.calibration import calibrating
from mfgp.calibration.calibration import MIN_STRUCTURES, Calibration

PD = 46
OTHERS = range(200, 208)


def with_palladium(seed: int) -> Atoms:
    """CuAuPd2 or Cu2AuPd, labelled."""
    atoms = alloy(seed)
    atoms.symbols[np.random.default_rng(seed).permutation(len(atoms))[: 1 + seed % 2]] = "Pd"
    return label(atoms, "low")


def fitted(palladium: int) -> MultiFidelityGP:
    """To 20 cells of CuAu and some with Pd."""
    structures = [*(label(alloy(seed), "low") for seed in range(20)), *map(with_palladium, range(100, 100 + palladium))]
    config = FitConfig(descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 60})
    return MultiFidelityGP.fit(read_frames({"low": structures}), config, progress=False)


def without_elements(model: MultiFidelityGP) -> MultiFidelityGP:
    """With the factors of all left-out energies for everything, as models of files that do not know elements."""
    out = copy.copy(model)
    assert model.calibration is not None
    out.calibration = replace(model.calibration, elements=())
    return out


@pytest.mark.filterwarnings("ignore:.*in the training data at least")  # no two Pd were neighbours there
def test_errors_of_other_elements_do_not_narrow_energies() -> None:
    model = fitted(1)
    assert model.calibration is not None
    assert model.calibration.rare(0, model.basis.species) == [PD]
    structures = [with_palladium(seed) for seed in OTHERS]
    true = np.array([a.info["REF_energy"] for a in structures])
    now, before, raw = (
        m.predict(structures, progress=False, calibrated=calibrated)
        for m, calibrated in ((model, True), (without_elements(model), True), (model, False))
    )

    def inside(predictions: list) -> float:
        z = [(p.energy - t) / p.energy_std for p, t in zip(predictions, true, strict=True)]
        return float(np.mean(np.abs(z) < 1.96))

    assert inside(now) > 0.8
    for p, was, posterior in zip(now, before, raw, strict=True):
        assert p.energy_std > 1.2 * was.energy_std  # something to get wrong
        assert p.energy_std >= posterior.energy_std
        assert np.array_equal(p.forces_std, was.forces_std)
    same = alloy(300)
    assert model.predict(same).energy_std == without_elements(model).predict(same).energy_std
    (note,) = [note for note in model.notes() if "of structures with Pd" in note]
    assert "at low" in note
    assert Calibration.from_json(model.calibration.to_json()) == model.calibration


def test_structures_are_left_out_for_elements_that_few_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where some of the structures alone are left out: of four with Pd three, whatever is drawn."""
    monkeypatch.setattr(calibrating, "CALIBRATION_STRUCTURES", 5)
    model = fitted(MIN_STRUCTURES + 1)
    assert model.calibration is not None
    assert MIN_STRUCTURES <= model.calibration.elements[0][PD] <= MIN_STRUCTURES + 1
    assert sum(n for n in model.calibration.elements[0].values()) < 3 * (20 + MIN_STRUCTURES)
    assert not model.calibration.rare(0, model.basis.species)


def test_an_element_of_enough_energies_is_as_others() -> None:
    model = fitted(MIN_STRUCTURES)
    assert model.calibration is not None
    assert model.calibration.elements[0][PD] == MIN_STRUCTURES
    assert not model.calibration.rare(0, model.basis.species)
    assert not [note for note in model.notes() if "of structures with" in note]
    other = with_palladium(OTHERS[0])
    assert model.predict(other).energy_std == without_elements(model).predict(other).energy_std
