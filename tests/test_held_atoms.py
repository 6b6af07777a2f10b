"""Forces that a constraint has set to zero are no labels, those that symmetry makes zero are none to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import (
    FixAtoms,
    FixBondLength,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
    Hookean,
)
from ase.io import write
from conftest import DESCRIPTOR

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.data.held_atoms import directions, held_atoms

BOTTOM = [0, 1, 2, 3]


def slab(seed: int = 0, constraint: Any = None) -> Atoms:
    """A rattled slab of EMT copper, three layers of four atoms, forces as get_forces() gives them."""
    atoms = fcc111("Cu", (2, 2, 3), a=3.65, vacuum=6.0)
    atoms.pbc = (True, True, False)
    atoms.positions += np.random.default_rng(seed).normal(0, 0.1, atoms.positions.shape)
    atoms.calc = EMT()
    atoms.set_constraint(constraint)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = None
    atoms.info["REF_energy"] = energy
    atoms.set_array("REF_forces", forces)
    return atoms


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("constraint", [FixAtoms(BOTTOM), FixCartesian(BOTTOM, (True, True, True))])
def test_fixed_atoms_are_left_out(constraint: Any, kept: bool) -> None:
    atoms = slab(constraint=constraint)
    if not kept:
        atoms.set_constraint()
    with pytest.warns(
        UserWarning, match=r"forces on 4 atoms of 1 frames \(list of Atoms frame 0 first\) are exactly zero"
    ):
        (frame,) = read_frames({"dft": [atoms]})
    assert np.flatnonzero(~frame.force_mask).tolist() == BOTTOM


@pytest.mark.parametrize(
    "constraint",
    [FixCartesian(BOTTOM, (False, False, True)), FixedPlane(BOTTOM, (0, 0, 1)), FixedLine(BOTTOM, (1, 0, 0))],
)
def test_single_components_count_while_the_constraint_says_so(constraint: Any) -> None:
    atoms = slab(constraint=constraint)
    forces = atoms.arrays["REF_forces"]
    assert (forces[BOTTOM] == 0).any(axis=1).all()
    assert (forces[BOTTOM] != 0).any(axis=1).all()
    assert np.flatnonzero(held_atoms(atoms, forces)).tolist() == BOTTOM
    atoms.set_constraint()
    assert not held_atoms(atoms, forces).any()  # one number may be 0.0 by rounding


PROJECTING = [
    (FixedPlane(BOTTOM, (1, 2, 3)), BOTTOM),
    (FixedLine(BOTTOM, (1, 1, 2)), BOTTOM),
    (FixScaled(BOTTOM, (True, False, False)), BOTTOM),
    (FixBondLength(0, 5), [0, 5]),
    (FixBondLengths([[0, 5], [5, 9], [9, 0]]), [0, 5, 9]),
]


@pytest.mark.parametrize(("constraint", "atoms_held"), PROJECTING)
def test_projected_forces_are_left_out(constraint: Any, atoms_held: list[int]) -> None:
    atoms, raw = slab(constraint=constraint), slab().arrays["REF_forces"]
    forces = atoms.arrays["REF_forces"]
    assert np.flatnonzero(np.abs(forces - raw).max(axis=1) > 1e-3).tolist() == atoms_held
    assert (forces != 0).all()
    assert np.flatnonzero(held_atoms(atoms, forces)).tolist() == atoms_held
    assert np.flatnonzero(held_atoms(atoms, np.round(forces, 8))).tolist() == atoms_held  # extxyz
    assert not held_atoms(atoms, raw).any()  # computed without the constraint
    with pytest.warns(UserWarning, match="or without what a constraint removes"):
        (frame,) = read_frames({"dft": [atoms]})
    assert np.flatnonzero(~frame.force_mask).tolist() == atoms_held


def test_what_symmetry_lets_a_constraint_keep_stays() -> None:
    """In a flat layer no force leaves the plane, with or without FixedPlane."""
    atoms = Atoms("Cu4", [[0, 0, 5], [2.5, 0.2, 5], [0.1, 2.6, 5], [2.6, 2.4, 5]], cell=[5.1, 5.2, 10], pbc=True)
    atoms.calc = EMT()
    forces = atoms.get_forces()
    atoms.set_constraint(FixedPlane([0, 1, 2, 3], (0, 0, 1)))
    assert np.abs(forces[:, :2]).max() > 0.1  # eV/Å
    assert not held_atoms(atoms, forces).any()


def test_constraints_of_a_structure_are_left_as_they_are() -> None:
    atoms = slab(constraint=FixBondLength(0, 5))
    atoms.constraints[0].bondlengths = None
    held_atoms(atoms, atoms.arrays["REF_forces"])
    assert atoms.constraints[0].bondlengths is None


@pytest.mark.parametrize("constraint", [None, FixCom(), Hookean(0, 5, 5.0, 2.0)])
def test_other_forces_stay(constraint: Any) -> None:
    assert read_frames({"dft": [slab(constraint=constraint)]}).frames[0].force_mask.all()


def test_forces_of_the_calculator_are_unconstrained(tmp_path: Path) -> None:
    """SinglePointCalculator and files of ASE hold the raw forces beside the constraint."""
    raw = slab()
    atoms = raw.copy()
    atoms.set_constraint(FixAtoms(BOTTOM))
    forces = atoms.arrays.pop("REF_forces")
    atoms.calc = SinglePointCalculator(atoms, energy=atoms.info.pop("REF_energy"), forces=forces)
    write(tmp_path / "slab.traj", atoms)
    (frame,) = read_frames({"dft": tmp_path / "slab.traj"})
    assert frame.force_mask.all()
    assert frame.forces is not None
    np.testing.assert_allclose(frame.forces, forces, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Si"),
        bulk("NaCl", "rocksalt", 5.6),
        bulk("Ti", "hcp"),
        bulk("GaAs", "zincblende", 5.6),
        Atoms("Cu"),
        Atoms("Cu2", [[0, 0, 0], [0, 0, 8.0]]),  # Å apart: they feel nothing
    ],
    ids=lambda a: str(a.symbols),
)
def test_symmetry_makes_forces_zero(atoms: Atoms) -> None:
    assert np.abs(directions(atoms)).max() < 1e-12
    assert not held_atoms(atoms, np.zeros((len(atoms), 3))).any()


def test_symmetric_sites_of_asymmetric_structures() -> None:
    carbon_dioxide = molecule("CO2")  # C, O, O: carbon lies between its oxygens
    assert held_atoms(carbon_dioxide, np.zeros((3, 3))).tolist() == [False, True, True]
    atoms = fcc111("Cu", (1, 1, 3), a=3.65, vacuum=6.0)
    assert held_atoms(atoms, np.zeros((3, 3))).tolist() == [True, False, True]


def test_a_mask_of_the_data_is_no_news() -> None:
    atoms = slab(constraint=FixAtoms(BOTTOM))
    atoms.set_array("force_mask", np.array([0] * 4 + [1] * 8))
    assert np.flatnonzero(~read_frames({"dft": [atoms]}).frames[0].force_mask).tolist() == BOTTOM  # no warning


def test_fits_are_not_spoiled() -> None:
    config = FitConfig(descriptor=DESCRIPTOR, model={"zeta": 2, "n_inducing": 60}, training={"max_iterations": 15})
    test = [slab(100 + i) for i in range(6)]

    def error(constraint: Any) -> float:
        model = MultiFidelityGP.fit(
            read_frames({"dft": [slab(i, constraint) for i in range(12)]}), config, progress=False
        )
        return float(
            np.sqrt(
                np.mean(
                    [(p.forces - t.arrays["REF_forces"]) ** 2 for p, t in zip(model.predict(test), test, strict=True)]
                )
            )
        )

    with pytest.warns(UserWarning, match="exactly zero"):
        fixed = error(FixAtoms(BOTTOM))
    assert fixed < 1.3 * error(None)  # eV/Å; twice and more when zeros are labels
