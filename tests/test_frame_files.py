"""Kinds of files that are read: databases, compressed files, names without an ending, disorder in a CIF."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import read, write
from conftest import alloy
from frame_cases import contains, crystal, dimer, error_of
from numpy.testing import assert_allclose

from mfgp import MultiFidelityGP
from mfgp.data.reading import read_structures
from mfgp.frames import read_frames


@pytest.mark.parametrize("name", ["a.db", "a.json"])
def test_databases_keep_what_belongs_to_their_rows(tmp_path: Path, name: str) -> None:
    """ASE's reader leaves key-value pairs and data behind, and test structures would be trained on."""
    atoms = crystal()
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    pairs = {"split": "test", "fidelity": "low", "energy_sigma": 0.01, "cpu_seconds": 12.5}
    with connect(tmp_path / name) as rows:
        rows.write(atoms, key_value_pairs=pairs, data={"force_mask": np.array([1, 0]), "split": "train"})
        rows.write(atoms, fidelity="high", REF_energy=-5.0)
    frame, other = read_frames(tmp_path / name, levels=["low", "high"])
    assert (frame.fidelity, frame.split, frame.held_out, frame.energy_sigma) == ("low", "test", True, 0.01)
    assert (frame.energy, frame.force_mask.tolist()) == (energy, [True, False])
    assert frame.atoms.info["cpu_seconds"] == 12.5
    assert (other.fidelity, other.split, other.energy) == ("high", None, -5.0)


def test_a_compressed_database(tmp_path: Path) -> None:
    with connect(tmp_path / "a.json") as rows:
        rows.write(crystal(), split="test", REF_energy=-7.0)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    assert read_structures(tmp_path / "a.json.gz")[0].info == {"split": "test", "REF_energy": -7.0}


def test_stress_of_a_file_keeps_its_order(tmp_path: Path) -> None:
    atoms = crystal(REF_stress=np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 1e-3)
    write(tmp_path / "a.extxyz", atoms)
    frame = read_frames({"a": tmp_path / "a.extxyz"}).frames[0]
    assert_allclose(frame.stress, np.array([1, 2, 3, 4, 5, 6]) * 1e-3, rtol=0, atol=1e-10)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", [dimer(1.0), dimer(1.3)])
    path = tmp_path / "a.extxyz.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.extxyz").read_bytes()))
    assert len(read_frames({"a": path})) == 2


@pytest.mark.parametrize("name", ["OUTCARs.xyz", "Cu_CONTCAR_all.extxyz", "POSCAR.extxyz", "XDATCAR.xyz", "A.XYZ"])
def test_the_ending_says_what_a_file_is(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [dimer(1.0), dimer(1.3)], format="extxyz")
    assert len(read_frames({"a": tmp_path / name})) == 2
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n2\n")
    contains(error_of({"a": tmp_path / name}), "blank line")


CIF = """data_x
_cell_length_a 3.7
_cell_length_b 3.7
_cell_length_c 3.7
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_occupancy
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""


ORDERED = "Cu1 Cu 1.0 0 0 0\nCu2 Cu 0.998 0.5 0.5 0\n"


def test_disorder_in_a_cif_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.cif"
    path.write_text(CIF + ORDERED)
    assert len(read_structures(path)[0]) == 2
    for sites, said in (
        ("Au1 Au 0.45 0.5 0 0.5\nCu3 Cu 0.55 0.5 0 0.5\n", "Au 0.45 Cu 0.55"),
        ("Li1 Li 0.5 0 0.5 0.5\n", "Li 0.5"),
    ):
        path.write_text(CIF + ORDERED + sites)
        with pytest.warns(UserWarning, match=rf"a.cif \(.*\): sites are shared or partly empty \({said}\).*ordered"):
            assert len(read_structures(path)[0]) == 3


def test_disorder_is_told_in_python_until_atoms_are_drawn(tmp_path: Path, model: MultiFidelityGP) -> None:
    path = tmp_path / "a.cif"
    path.write_text(CIF + ORDERED + "Au1 Au 0.45 0.5 0 0.5\nCu3 Cu 0.55 0.5 0 0.5\n")
    atoms = read(path)
    with pytest.warns(UserWarning, match=r"the structure \(Cu3\): sites are shared .*Au 0.45 Cu 0.55") as caught:
        model.predict(atoms, "low", uncertainty="none")
    assert caught[0].filename == __file__
    atoms = atoms * (2, 1, 1)
    with pytest.warns(UserWarning, match=r"structure 1 of the list \(Cu6\): sites are shared"):
        model.predict([alloy(1), atoms], "low", uncertainty="none")
    atoms.calc = model.calculator("low", uncertainty="none")
    with pytest.warns(UserWarning, match="sites are shared"):
        atoms.get_potential_energy()
    atoms.symbols[2] = "Au"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(atoms, "low", uncertainty="none")


def test_trailing_blank_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    write(path, [dimer(1.0), dimer(1.1)])
    path.write_text(path.read_text() + "\n\n")
    assert len(read_frames({"a": path})) == 2
