"""The comparison of benchmarks/accuracy: errors, charge states and shifts of the elements' references that it reports."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from mfgp import read_frames
from mfgp.frames import Frame
from mfgp.single_point import structure_hash

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))  # common
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks" / "accuracy"))

from chgnet_rivals import composition_shift, shift_of
from cross_fitted import CrossFitted
from task import Predicted, scores


def labelled(symbols: str, energy: float, magmoms: list[float]) -> Frame:
    atoms = Atoms(symbols, positions=2.0 * np.arange(3 * len(magmoms)).reshape(-1, 3), cell=[50.0] * 3, pbc=True)
    atoms.info["REF_energy"] = energy
    atoms.arrays["REF_forces"] = np.full((len(atoms), 3), 0.25)
    atoms.arrays["REF_magmoms"] = np.array(magmoms)
    (frame,) = read_frames({"mag": [atoms]})
    return frame


@pytest.fixture
def frames() -> list[Frame]:
    """A cell with all its lithium (Fe2+, Mn2+) and one that has lost half (Fe2+, Fe3+, Mn3+, Li)."""
    return [labelled("LiFeLiMn", -10.0, [0.0, 3.74, 0.0, 4.59]), labelled("FeFeMnLi", -12.0, [3.75, 4.38, 3.9, 0.0])]


def test_errors_are_per_atom_and_charge_states_count_only_where_lithium_has_gone(frames: list[Frame]) -> None:
    read_as = [np.array([0.0, 4.4, 0.0, 4.6]), np.array([4.4, 4.38, 3.8, 0.1])]  # one Fe wrong in each cell
    found = Predicted(np.array([-9.6, -12.0]), [f.forces + 0.1 for f in frames], read_as, 1.0)
    out = scores(found, frames)
    assert out["energy_mae"] == pytest.approx(0.05)  # eV/atom: 0.4 eV of four atoms in one of two cells
    assert out["force_mae_by_element"] == pytest.approx({"Li": 0.1, "Mn": 0.1, "Fe": 0.1})
    assert out["moments"]["Fe"]["delithiated"] == {"right": 1, "sites": 2}
    assert out["moments"]["Fe"]["low_moment"] == {"right": 0, "sites": 1}
    assert out["moments"]["Mn"]["delithiated"] == {"right": 1, "sites": 1}
    assert out["moments"]["Fe"]["mae"] == pytest.approx((0.66 + 0.65 + 0.0) / 3)


def test_shifted_energies_fit_and_the_shift_is_the_smallest(frames: list[Frame]) -> None:
    shift = composition_shift(frames, np.array([-9.0, -9.0]))
    assert_allclose([shift_of(f.atoms, shift) for f in frames], [-1.0, -3.0], rtol=0, atol=1e-9)  # eV
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in shift] for f in frames])
    assert_allclose(list(shift.values()), np.linalg.pinv(counts) @ [-1.0, -3.0], rtol=0, atol=1e-9)


@dataclass(frozen=True)
class Constant:
    """A network that says one number, and the fold that it has not seen."""

    value: float
    fold: frozenset[str]

    def predict(self, structures: list[Atoms]) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        forces = [np.full((len(a), 3), self.value) for a in structures]
        return np.full(len(structures), self.value), forces, [f[:, 0] for f in forces]


def test_a_training_structure_is_never_judged_by_a_network_that_saw_it(frames: list[Frame]) -> None:
    keys = [structure_hash(f.atoms) for f in frames]
    calculator = CrossFitted([Constant(1.0, frozenset(keys[:1])), Constant(5.0, frozenset(keys[1:]))])
    other = frames[0].atoms.copy()
    other.positions[0, 0] += 0.1
    for atoms, expected in ((frames[0].atoms, 1.0), (frames[1].atoms, 5.0), (other, 3.0)):
        assert calculator.get_potential_energy(atoms) == expected
        assert_allclose(calculator.get_forces(atoms), expected)
