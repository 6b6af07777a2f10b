"""The doctor finds units that differ between levels, signs and units of stresses, and lengths in Bohr."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from doctor_data import crystals, has, labelled, only, report_of, says

from mfgp.doctor.lengths import bond_ratios


@pytest.mark.parametrize(
    ("factor", "unit"), [(51.422, "Ha/bohr"), (27.211, "Ha/Å"), (25.711, "Ry/bohr"), (1 / 23.061, "kcal/mol/Å")]
)
def test_force_units_between_levels(factor: float, unit: str) -> None:
    low, high = crystals(), crystals()
    for a, b in zip(low, high, strict=True):
        a.arrays["REF_forces"] *= 0.9
        b.arrays["REF_forces"] /= factor
    finding = only(report_of(low, high), "error", "units")
    says(finding, "forces of 'high'", "12 shared structures", f"{unit} of 'high' (multiply them by {factor:.5g})")
    finding = only(report_of(high, low), "error", "units")
    says(finding, "forces of 'high'", f"{unit} of 'low' (multiply them by {factor:.5g})")


def test_energy_units_between_levels() -> None:
    low, high = crystals(), crystals()
    for a, b in zip(low, high, strict=True):
        a.info["REF_energy"] += 3.0 * (a.numbers == 79).sum()
        a.arrays["REF_forces"] *= 1.1
        b.info["REF_energy"] /= 27.2114
    finding = only(report_of(low, high), "error", "units")
    says(finding, "energy differences of 'high'", "Hartree of 'high' (multiply them by 27.211)")


def test_force_units_of_levels_that_share_nothing() -> None:
    low, high = crystals(seed=3), crystals(seed=4)
    report = report_of(low, high)
    says(only(report, "info", "shared structures"), "share no structure", "not checkable")
    assert not has(report, "warning", "units")
    for atoms in high:
        atoms.arrays["REF_forces"] /= 51.422
    says(only(report_of(low, high), "warning", "units"), "forces of 'high'", "Ha/bohr")


def test_a_hydrogen_atom_in_hartree() -> None:
    data = [*crystals(), Atoms("H", info={"REF_energy": -0.4996})]
    says(only(report_of(data), "warning", "units"), "frame 12 (H)", "Hartree", "27.2114")


def strained(stress_factor: float = 1.0) -> list[Atoms]:
    rng = np.random.default_rng(5)
    base = bulk("Cu", cubic=True, a=3.7)
    base.positions += rng.normal(scale=0.05, size=(4, 3))
    found = []
    for _ in range(6):
        atoms = base.copy()
        shear = rng.normal(scale=0.01, size=(3, 3))
        atoms.set_cell(base.cell.array @ (np.eye(3) + shear + shear.T), scale_atoms=True)
        atoms = labelled(atoms)
        atoms.info["REF_stress"] *= stress_factor
        found.append(atoms)
    return found


def test_stress_sign_and_unit_from_strained_copies() -> None:
    says(only(report_of(strained()), "info", "stress sign"), "agrees", "5 pairs", "slope 1.0")
    says(only(report_of(strained(-1.0)), "error", "stress sign"), "opposite of ASE's", "negate", "frame ")
    says(only(report_of(strained(1 / units.GPa)), "error", "stress sign"), "looks like GPa")
    flipped = only(report_of(strained(-10 / units.GPa)), "error", "stress sign")
    says(flipped, "looks like kbar", "opposite of ASE's")
    says(only(report_of(strained(3.0)), "warning", "stress sign"), "not the derivative", "leave it out")
    says(only(report_of(crystals()), "info", "stress sign"), "not checkable", "strained by 1 %")


def test_stress_size_looks_like_gpa() -> None:
    data = crystals()
    assert not has(report_of(data), "error", "stress unit")
    for atoms in data:
        atoms.info["REF_stress"] /= units.GPa
    says(only(report_of(data), "error", "stress unit"), "GPa or kbar", "0.0062415", "frame ")


@pytest.mark.parametrize(("factor", "way"), [(1 / units.Bohr, "multiply"), (units.Bohr, "divide")])
def test_lengths_in_bohr(factor: float, way: str) -> None:
    scaled = [atoms.copy() for atoms in crystals()]
    for atoms in scaled:
        atoms.set_cell(atoms.cell.array * factor, scale_atoms=True)
    good = [*crystals(), molecule("H2O", vacuum=4.0, pbc=True, info={"REF_energy": -14.0})]
    assert not has(report_of(good), "warning", "units")
    says(only(report_of(scaled), "warning", "units"), way, "0.529177", "covalent radii", "frame 0")


def test_nearest_neighbours_of_usual_structures_are_as_far_as_bonds() -> None:
    for atoms in (
        bulk("NaCl", "rocksalt", a=5.64),
        bulk("Na"),
        bulk("W"),
        bulk("Si"),
        molecule("C6H6"),
        molecule("SiH4"),
    ):
        assert 0.8 < np.median(bond_ratios(atoms)) < 1.3
    argon = bulk("Ar", "fcc", a=5.3)
    assert not len(bond_ratios(argon))
