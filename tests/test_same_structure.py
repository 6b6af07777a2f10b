"""Copies of a structure in another description are the same; small displacements are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.calibration.leave_one_out import leave_one_out
from mfgp.data.same_structure import groups, invariants

Change = Callable[[Atoms], Atoms]


def rattled(atoms: Atoms, seed: int, size: float = 0.1) -> Atoms:
    out = atoms.copy()
    out.positions += np.random.default_rng(seed).normal(0.0, size, out.positions.shape)
    return out


def crystal(seed: int) -> Atoms:
    return rattled(bulk("NaCl", "rocksalt", a=5.6, cubic=True), seed)


def ethanol(seed: int) -> Atoms:
    return rattled(molecule("CH3CH2OH"), seed)


def shuffled(atoms: Atoms) -> Atoms:
    return atoms[np.random.default_rng(5).permutation(len(atoms))]


def turned(atoms: Atoms) -> Atoms:
    out = atoms.copy()
    out.rotate(37, (1, 2, 3), rotate_cell=True)
    return out


def mirrored(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, -atoms.positions, cell=-atoms.cell.array, pbc=atoms.pbc)


def moved(atoms: Atoms) -> Atoms:
    out = atoms.copy()
    out.positions += [0.3, -4.1, 7.7]
    return out


def boxed(atoms: Atoms) -> Atoms:
    out = atoms.copy()
    out.center(vacuum=4.0)
    out.pbc = True
    return out


def rounded(digits: int) -> Change:
    def change(atoms: Atoms) -> Atoms:
        cell = np.round(atoms.cell.array, digits)
        return Atoms(atoms.numbers, np.round(atoms.positions, digits), cell=cell, pbc=atoms.pbc)

    return change


ANY: list[Change] = [shuffled, turned, mirrored, moved, rounded(8), rounded(4)]
CRYSTAL: list[Change] = [lambda a: a * (2, 1, 1), lambda a: make_supercell(a, [[1, 1, 0], [0, 1, 0], [0, 0, 1]])]


@pytest.mark.parametrize("make", [crystal, ethanol])
def test_other_descriptions_are_the_same_structure(make: Callable[[int], Atoms]) -> None:
    changes = [*ANY, *(CRYSTAL if make is crystal else [boxed])]
    structures = [make(seed) for seed in range(20)]
    for change in changes:
        found = groups([*structures, *(change(atoms) for atoms in structures)])
        assert found[:20] == list(range(20))
        assert found[20:] == list(range(20))


@pytest.mark.parametrize("make", [crystal, ethanol])
def test_other_structures_are_not(make: Callable[[int], Atoms]) -> None:
    structures = [make(seed) for seed in range(20)]
    near = [rattled(atoms, 1, 0.01) for atoms in structures]
    assert len(set(groups([*structures, *near]))) == 40
    one = [a.copy() for a in structures]
    for atoms in one:
        atoms.positions[2] += [0.01, 0.01, 0.01]
    assert len(set(groups([*structures, *one]))) == 40
    strained = [Atoms(a.numbers, 1.002 * a.positions, cell=1.002 * a.cell.array, pbc=a.pbc) for a in structures]
    assert len(set(groups([*structures, *strained]))) == 40
    other = structures[0].copy()
    other.numbers[[0, -1]] = other.numbers[[-1, 0]]
    assert len(set(groups([structures[0], other]))) == 2


def test_a_displacement_in_a_perfect_crystal_is_another_structure() -> None:
    perfect = bulk("Cu", cubic=True) * (3, 3, 3)
    displaced = perfect.copy()
    displaced.positions[0, 0] += 0.01  # Å, as for phonons
    along_y = perfect.copy()
    along_y.positions[50, 1] -= 0.01
    assert groups([perfect, displaced, along_y]) == [0, 1, 1]


def test_batches_and_empty_lists_change_nothing() -> None:
    structures = [alloy(i) for i in range(5)] * 90  # 1800 atoms
    found = list(invariants(structures))
    for sums, alone in zip(found[::90], structures[::90], strict=True):
        assert_allclose(sums, next(invariants([alone])), rtol=0, atol=1e-12)
    assert groups([]) == []
    assert len(found[0]) == 6


def turned_label(atoms: Atoms) -> Atoms:
    """A copy turned by a quarter, in another order, with its labels."""
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    order = np.random.default_rng(0).permutation(len(atoms))
    out = Atoms(atoms.numbers[order], (atoms.positions @ turn.T)[order], cell=atoms.cell.array @ turn.T, pbc=atoms.pbc)
    out.arrays["REF_forces"] = (atoms.arrays["REF_forces"] @ turn.T)[order]
    out.info["REF_energy"] = atoms.info["REF_energy"]
    return out


def test_turned_copies_are_left_out_together() -> None:
    """As if they were not there: else every left-out energy would be known from its copy."""
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 3, "n_inducing": 80},
        training={"optimise": False, "calibrate": False, "noise_energy": 0.01, "noise_force": 0.05},
    )
    plain = [label(alloy(i, rattle=0.08), "high") for i in range(12)]
    for atoms in plain:
        atoms.info.pop("REF_stress", None)
    copies = [turned_label(a) for a in plain]
    both = read_frames({"high": plain + copies})
    model = MultiFidelityGP.fit(both, config, progress=False)
    left = [p for p in leave_one_out(model, both) if p.kind == "energy"]
    assert len(left) == 24
    errors = {id(p.frame): abs(float(p.error[0])) for p in left}
    of_plain, of_copies = ([errors[id(f)] for f in part] for part in (both.frames[:12], both.frames[12:]))
    assert_allclose(of_plain, of_copies, rtol=0, atol=1e-6)  # eV per sqrt(atom)
    alone = read_frames({"high": plain})
    once = MultiFidelityGP.fit(alone, config, features=model.features, progress=False)
    expected = [abs(float(p.error[0])) for p in leave_one_out(once, alone) if p.kind == "energy"]
    assert np.mean(of_plain) == pytest.approx(np.mean(expected), rel=0.5)
