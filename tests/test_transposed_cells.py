"""Cells given transposed are told; right ones, of any shape, are not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, hcp0001, make_supercell, molecule
from ase.io import read, write

from mfgp import MultiFidelityGP
from mfgp.data.reading import geometry_problems, read_structures
from mfgp.data.transposed_cells import closest_pair, transposed, with_transposed_cell
from mfgp.doctor import examine
from mfgp.errors import DataError
from mfgp.frames import FrameSet, read_frames

LMFP = Path(__file__).parent.parent / "examples" / "lmfp"


def rattled(atoms: Atoms, n: int = 6, seed: int = 0) -> list[Atoms]:
    """Strained by up to 5 %, displaced by 0.05 Å, with energies."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        one = atoms.copy()
        one.set_cell(one.cell.array @ (np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3))), scale_atoms=True)
        one.positions += rng.normal(scale=0.05, size=one.positions.shape)
        one.info["REF_energy"] = rng.normal()
        found.append(one)
    return found


def with_columns(structures: list[Atoms]) -> list[Atoms]:
    found = [atoms.copy() for atoms in structures]
    for atoms in found:
        atoms.set_cell(atoms.cell.array.T)
    return found


def box(name: str) -> Atoms:
    return Atoms(molecule(name), cell=[[11, 0, 0], [3, 10, 0], [2, -3, 11]], pbc=True)


def random_atoms(n: int = 60) -> Iterator[Atoms]:
    """Three atoms at random in a random cell, no closer than 0.8 Å: they have no lengths of their own."""
    rng = np.random.default_rng(1)
    while n:
        cell = rng.normal(size=(3, 3))
        cell *= (54.0 / abs(np.linalg.det(cell))) ** (1 / 3)
        atoms = Atoms("Cu3", cell=cell, scaled_positions=rng.uniform(size=(3, 3)), pbc=True, info={"REF_energy": 0.0})
        if closest_pair(atoms) > 0.3:
            n -= 1
            yield atoms


OBLIQUE = {
    "hcp": bulk("Ti") * (2, 2, 2),
    "triclinic": make_supercell(bulk("Ti"), [[2, 0, 0], [1, 2, 0], [0, 1, 2]]),
    "slab": hcp0001("Ti", (2, 2, 3), vacuum=6.0),
    "periodic slab": fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True),
}


@pytest.mark.parametrize("name", OBLIQUE)
def test_transposed_cells_are_told_and_right_ones_are_not(name: str) -> None:
    right = rattled(OBLIQUE[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = read_frames({"pbe": right})
    assert not [f for f in examine(frames).findings if f.check == "cells"]
    with pytest.warns(UserWarning, match=r"6 structures \(list of Atoms frame 0 first\) are closer.*set_cell"):
        wrong = read_frames({"pbe": with_columns(right)})
    (finding,) = [f for f in examine(wrong).findings if f.check == "cells"]
    assert finding.severity == "error"
    assert len(finding.frames) == 6
    for frame, atoms in zip(wrong, right, strict=True):  # the way out gives the right cell
        np.testing.assert_array_equal(with_transposed_cell(frame.atoms).cell.array, atoms.cell.array)


def test_some_frames_of_a_level() -> None:
    right = rattled(OBLIQUE["hcp"], 20)
    with pytest.warns(UserWarning, match="5 structures"):
        read_frames({"pbe": right[:15] + with_columns(right[15:])})


@pytest.mark.parametrize(
    "atoms", [bulk("Cu"), bulk("Cu", cubic=True), bulk("Ti"), box("C2H6"), molecule("H2O"), bulk("Na") * 2]
)
def test_what_does_not_tell_is_left_alone(atoms: Atoms) -> None:
    for structures in (rattled(atoms), with_columns(rattled(atoms))):
        assert not transposed(structures)


def test_atoms_at_random_and_data_of_crystals_are_not_called_wrong() -> None:
    strange = read_frames({"pbe": list(random_atoms())})
    assert sum(closest_pair(frame.atoms) < 0.6 for frame in strange) > 20
    assert not transposed([frame.atoms for frame in strange])
    frames: FrameSet = read_frames({"nm": [a for path in sorted(LMFP.glob("*nm*.extxyz")) for a in read(path, ":")]})
    assert not transposed([frame.atoms for frame in frames])


def test_atoms_upon_each_other_in_the_given_cell_alone() -> None:
    (right,) = rattled(make_supercell(bulk("Cu"), [[2, 1, 0], [-1, 2, 1], [0, -1, 2]]), 1)
    (wrong,) = with_columns([right])
    assert not geometry_problems(right)
    (problem,) = geometry_problems(wrong)
    assert "written as columns" in problem
    with pytest.raises(DataError, match="as columns"):
        read_frames({"pbe": [wrong]})
    near = rattled(bulk("Ti"), 1)[0]
    near.positions[1] = near.positions[0] + [0.1, 0.0, 0.0]
    assert "columns" not in geometry_problems(near)[0]


def test_structures_without_labels_are_told_when_they_are_read(tmp_path: Path) -> None:
    """What `predict`, `select` and campaigns read."""
    write(tmp_path / "wrong.extxyz", with_columns(rattled(OBLIQUE["hcp"])))
    with pytest.warns(UserWarning, match=r"wrong\.extxyz frame 0 first\) are closer .* atoms\.set_cell"):
        read_structures(tmp_path / "wrong.extxyz")


def test_python_is_told_as_the_commands_are(tmp_path: Path, model: MultiFidelityGP) -> None:
    right = [alloy_cell(seed) for seed in range(4)]
    wrong = with_columns(right)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(right, "low", uncertainty="none")
        model.predict(right[0], "low", uncertainty="none")
    with pytest.warns(UserWarning, match=r"atoms of the structure are closer .* atoms\.set_cell") as caught:
        model.predict(wrong[0], "low", uncertainty="none")
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"atoms of 4 structures \(structure 0 of the list first\) are closer"):
        model.predict(wrong, "low", uncertainty="none")
    write(tmp_path / "POSCAR", wrong[0])
    with pytest.warns(UserWarning, match="POSCAR frame 0 are closer"):
        read_structures(tmp_path / "POSCAR")
    moving = wrong[0]
    moving.calc = model.calculator("low", uncertainty="none")
    with pytest.warns(UserWarning, match="atoms of the structure are closer"):
        moving.get_forces()
    moving.positions += 1e-3
    with warnings.catch_warnings():  # later steps do not look again
        warnings.simplefilter("error")
        moving.get_forces()


def test_of_one_or_two_structures_all_speak_for_it() -> None:
    (wrong,) = with_columns([alloy_cell(0)])
    assert transposed([wrong], 1) == [0]
    assert transposed([wrong, alloy_cell(1)], 2) == []


def alloy_cell(seed: int) -> Atoms:
    """A cell of CuAu with angles far from 90 degrees, rattled."""
    atoms = make_supercell(bulk("Ti", a=2.6, c=4.25), [[2, 0, 0], [1, 2, 0], [0, 1, 2]])
    atoms.symbols = ["Cu", "Au"] * (len(atoms) // 2)
    return rattled(atoms, 1, seed)[0]
