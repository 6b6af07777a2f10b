"""Labels of several origins in one frame: which are of one calculation, which are left out, and what is said of it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCom
from frame_cases import FORCES, crystal, dimer

from mfgp.frames import read_frames


def test_a_label_of_another_name_is_pointed_out() -> None:
    atoms = dimer()
    atoms.info["dft_energy"] = atoms.info.pop("REF_energy")
    with pytest.warns(
        UserWarning, match=r"no frame has energy \(REF_energy\), but there is dft_energy.*energy: dft_energy"
    ):
        frames = read_frames({"low": [atoms]})
    assert frames.frames[0].energy is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_frames({"low": [dimer(energy_above_hull=0.1)]})


def test_a_box_around_a_molecule_has_no_stress() -> None:
    atoms = dimer(REF_stress=[0.1] * 6)
    atoms.set_cell([10, 10, 10])
    assert read_frames({"low": [atoms]}).frames[0].stress is None
    atoms.pbc = True
    assert read_frames({"low": [atoms]}).frames[0].stress is not None


def test_labels_of_one_level_from_two_places_are_said() -> None:
    """REF_energy in some frames and a calculator's energy in others: another level, or another zero."""
    frames = []
    for k in range(4):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy + 2.0, forces=forces)
        if k % 2:
            atoms.info["REF_energy"] = energy
        frames.append(atoms)
    with pytest.warns(
        UserWarning, match="'a': energy is energy of the calculator in 2 frames .*, REF_energy in 2 frames"
    ):
        read = read_frames({"a": frames})
    assert [f.energy for f in read][1] == frames[1].info["REF_energy"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_frames({"a": frames[::2], "b": frames[1::2]})  # each level from one place


def test_vectors_of_moments_are_said_to_be_left_out() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.info["REF_energy"] = -1.0
    atoms.set_array("REF_magmoms", np.ones((4, 3)))
    with pytest.warns(UserWarning, match="of 1 frames, first .*, are vectors"):
        (frame,) = read_frames({"a": [atoms]})
    assert frame.magmoms is None


def test_virials_under_another_name_are_said() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.info |= {"REF_energy": -1.0, "virial": np.eye(3)}
    with pytest.warns(UserWarning, match=r"no frame has virial \(REF_virial\), but there is virial"):
        read_frames({"a": [atoms]})


def relabelled(**results: object) -> Atoms:
    """Labels of its own beside the results of a calculator."""
    atoms = crystal()
    atoms.set_array("REF_forces", np.array(FORCES))
    atoms.calc = SinglePointCalculator(atoms, stress=np.full(6, 0.01), magmoms=np.ones(2), magmom=2.0, **results)
    return atoms


@pytest.mark.parametrize(
    "results",
    [
        {"forces": 0.8 * np.array(FORCES), "energy": -7.0},
        {"energy": -7.3},
        {"energy": -7.3, "free_energy": -7.4},
    ],
)
def test_leftovers_of_another_calculation_are_left_out(results: dict[str, object]) -> None:
    """As dynamics with a cheaper potential leave them."""
    atoms = relabelled(**results)
    with pytest.warns(UserWarning, match=r"'a': stress, magmoms of the calculator in 2 frames \(list.* 0 .*left out"):
        (frame, other) = read_frames({"a": [atoms, atoms]})
    assert frame.label_names == other.label_names == ("energy", "forces")
    assert frame.total_magmom is None
    if "forces" in results:
        del atoms.info["REF_energy"]
        with pytest.warns(UserWarning, match="energy, stress, magmoms of the calculator"):
            assert read_frames({"a": [atoms]}).frames[0].label_names == ("forces",)


@pytest.mark.parametrize(
    "results",
    [
        {"forces": np.array(FORCES) + 1e-5, "energy": -9.0},  # a shifted energy
        {"energy": -7.3, "free_energy": -7.0},
        {"energy": -7.0001},
        {},
    ],
)
def test_results_of_the_same_calculation_stay(results: dict[str, object]) -> None:
    (frame,) = read_frames({"a": [relabelled(**results)]})
    assert frame.label_names == ("energy", "forces", "stress", "magmoms")
    assert frame.total_magmom == 2.0


def test_forces_under_constraints_are_of_the_same_calculation() -> None:
    """get_forces() applies them, results hold the raw ones; a file may have lost the constraint."""
    for constraint in (FixAtoms([0]), FixCom()):
        for kept in (True, False) if isinstance(constraint, FixAtoms) else (True,):
            atoms = crystal()
            atoms.calc = SinglePointCalculator(
                atoms, energy=-7.0, stress=np.full(6, 0.01), forces=[[0.3, 0.2, 0.3], [0, 0.1, 1]]
            )
            atoms.set_constraint(constraint)
            atoms.set_array("REF_forces", atoms.get_forces())
            if not kept:
                atoms.set_constraint()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* exactly zero")
                assert read_frames({"a": [atoms]}).frames[0].stress is not None


@pytest.mark.parametrize("offset", [-3.5, 0.0])
def test_energies_per_atom_are_told(offset: float) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for i in range(20):
        atoms = bulk("Cu", cubic=True) * ((1, 1, 1), (1, 1, 2), (2, 2, 2))[i % 3]
        atoms.numbers[rng.random(len(atoms)) < 0.5] = 46
        atoms.rattle(0.1, seed=i)
        work = atoms.copy()
        work.calc = EMT()
        atoms.info["REF_energy"] = work.get_potential_energy() + offset * len(atoms)
        frames.append(atoms)
    read_frames({"total": frames})  # pytest raises warnings
    for atoms in frames:
        atoms.info["REF_energy"] /= len(atoms)
    if offset:
        with pytest.warns(UserWarning, match="'total': the energies of frames of 4 - 32 atoms do not grow"):
            read_frames({"total": frames})
