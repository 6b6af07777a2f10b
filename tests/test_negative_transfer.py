"""A low level that does not help must not hurt: shuffled labels, and labels of the opposite sign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from conftest import DESCRIPTOR, alloy, label

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.config import FixedRho
from mfgp.fit.features import Features
from mfgp.notes.training_residuals import training_residuals, transfer_notes

LABELS = ("REF_energy", "REF_stress")
CONFIG = FitConfig(
    descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 60}, training={"max_iterations": 60, "calibrate": False}
)


def shuffled(frames: list[Atoms]) -> list[Atoms]:
    """Each structure with the labels of another one."""
    out = [atoms.copy() for atoms in frames]
    for atoms, j in zip(out, np.random.default_rng(0).permutation(len(out)), strict=True):
        atoms.info.update({name: frames[j].info[name] for name in LABELS})
        atoms.set_array("REF_forces", frames[j].arrays["REF_forces"])
    return out


def unrelated(frames: list[Atoms]) -> list[Atoms]:
    """Forces and stresses of a potential of its own: a soft pair repulsion, alike for all elements."""
    from ase.calculators.morse import MorsePotential

    out = []
    for atoms in frames:
        work = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        work.calc = MorsePotential(epsilon=0.3, r0=4.4, rho0=4.0, rcut1=5.0, rcut2=5.5)
        work.info.update(REF_energy=work.get_potential_energy(), REF_stress=work.get_stress())
        work.set_array("REF_forces", work.get_forces())
        work.calc = None
        out.append(work)
    return out


@pytest.fixture(scope="module")
def low() -> list[Atoms]:
    return [label(alloy(i), "low") for i in range(24)]


@pytest.fixture(scope="module")
def high() -> list[Atoms]:
    return [label(alloy(i), "high") for i in range(8)]


def error(model: MultiFidelityGP) -> float:
    """Force MAE on unseen structures, eV/Å."""
    test = [label(alloy(900 + i), "high") for i in range(10)]
    found = [model.predict(a, "high", uncertainty="none").forces - a.arrays["REF_forces"] for a in test]
    return float(np.abs(np.concatenate(found)).mean())


@pytest.mark.parametrize("spoil", [shuffled, unrelated])
def test_a_useless_low_level_does_no_harm(
    low: list[Atoms], high: list[Atoms], spoil: Callable[[list[Atoms]], list[Atoms]]
) -> None:
    features = Features.build(read_frames({"low": low, "high": high}), CONFIG)  # the same inducing points for all

    def found(**levels: list[Atoms]) -> float:
        return error(MultiFidelityGP.fit(read_frames(levels), CONFIG, features=features, progress=False))

    alone, helped, spoiled = found(high=high), found(low=low, high=high), found(low=spoil(low), high=high)
    assert helped < 0.8 * alone
    assert spoiled < 1.1 * alone


def test_noise_below_does_not_make_exact_labels_noisy(low: list[Atoms], high: list[Atoms]) -> None:
    """With many inducing points the high level alone is learned nearly exactly; so it is above shuffled labels."""
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"n_inducing": 200})})
    features = Features.build(read_frames({"low": low, "high": high}), config)
    fits = [
        MultiFidelityGP.fit(read_frames(levels), config, features=features, progress=False)
        for levels in ({"high": high}, {"low": shuffled(low), "high": high})
    ]
    assert error(fits[1]) < 1.1 * error(fits[0])
    assert fits[1].hyperparameters()["noise"]["high"]["forces"] < 5e-3  # eV/Å; 0.02 where the level below held it


def test_labels_of_other_structures_are_pointed_out(low: list[Atoms], high: list[Atoms]) -> None:
    spoiled = MultiFidelityGP.fit(read_frames({"low": shuffled(low), "high": high}), CONFIG, progress=False)
    assert any("level low: the model explains next to nothing" in note for note in transfer_notes(spoiled))
    assert [note for note in spoiled.notes() if note.startswith("warning:")] == [
        f"warning: {note}" for note in transfer_notes(spoiled)
    ]
    assert transfer_notes(MultiFidelityGP.fit(read_frames({"low": low, "high": high}), CONFIG, progress=False)) == []


def test_stresses_of_other_structures_are_pointed_out(low: list[Atoms], high: list[Atoms]) -> None:
    spoiled = [atoms.copy() for atoms in low]
    for atoms, other in zip(spoiled, low[1:] + low[:1], strict=True):
        atoms.info["REF_stress"] = -3.0 * other.info["REF_stress"]
    notes = transfer_notes(MultiFidelityGP.fit(read_frames({"low": spoiled, "high": high}), CONFIG, progress=False))
    assert any("level low: the model explains next to nothing of its stresses" in note for note in notes)


def test_stresses_that_a_baseline_explains_are_none_to_explain() -> None:
    """What is left is rounding and the noise of the labels, which no model explains."""
    frames, rng = [label(alloy(i), "low") for i in range(12)], np.random.default_rng(0)
    for atoms in frames:
        atoms.info["REF_stress"] = atoms.info["REF_stress"] + rng.normal(0, 1e-4, 6)  # eV/Å^3
    config = FitConfig(**{**CONFIG.model_dump(), "baselines": ["emt"]})
    model = MultiFidelityGP.fit(read_frames({"low": frames}), config, progress=False)
    (virial,) = (r for r in training_residuals(model) if r.kind == "virial")
    assert virial.residual > 0.8 * virial.labels > 1e-4  # eV per sqrt(atom)
    assert transfer_notes(model) == []


def in_other_units(frames: list[Atoms], factor: float) -> list[Atoms]:
    """Every label times a factor."""
    out = [atoms.copy() for atoms in frames]
    for atoms in out:
        atoms.info.update({name: factor * atoms.info[name] for name in LABELS})
        atoms.arrays["REF_forces"] = factor * atoms.arrays["REF_forces"]
    return out


def test_a_low_level_of_another_scale_still_says_something(low: list[Atoms], high: list[Atoms]) -> None:
    model = MultiFidelityGP.fit(read_frames({"low": in_other_units(low, 10.0), "high": high}), CONFIG, progress=False)
    assert 0.05 < float(model.prior.rho.max()) < 0.2
    assert transfer_notes(model) == []


def test_a_low_level_that_says_nothing_is_pointed_out(low: list[Atoms], high: list[Atoms]) -> None:
    """A rho of 1 of an amplitude of nothing, as shuffled labels have it."""
    model = MultiFidelityGP.fit(read_frames({"low": shuffled(low), "high": high}), CONFIG, progress=False)
    assert float(model.prior.rho.max()) > 0.5
    assert any("of the amplitude at high comes from low: low says next to nothing" in n for n in transfer_notes(model))


@pytest.mark.parametrize(("factor", "bound"), [(0.1, "3"), (-1.0, "-1")])
def test_a_rho_at_its_bound_is_pointed_out(low: list[Atoms], factor: float, bound: str) -> None:
    above = in_other_units(low, 1.0)
    for atoms in above:
        atoms.info["fidelity"] = "high"
    frames = read_frames({"low": in_other_units(low, factor), "high": above})
    (note,) = transfer_notes(MultiFidelityGP.fit(frames, CONFIG, progress=False))
    assert f"rho of low -> high is {bound}, the end of what is searched (-1 to 3)" in note
    assert "same units" in note


def test_a_fixed_rho_is_where_it_was_put(low: list[Atoms], high: list[Atoms]) -> None:
    model = CONFIG.model.model_copy(update={"rho": FixedRho(fixed=3.0)})
    frames = read_frames({"low": low, "high": high})
    found = MultiFidelityGP.fit(frames, CONFIG.model_copy(update={"model": model}), progress=False)
    assert not any("the end of what is searched" in note for note in transfer_notes(found))
