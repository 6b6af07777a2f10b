"""Reading labelled structures: keys, levels, and every error that says which frame and what to do."""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCom
from ase.db import connect
from ase.io import read, write
from conftest import alloy
from numpy.testing import assert_allclose

from mfgp import MultiFidelityGP
from mfgp.data.reading import read_structures
from mfgp.errors import ConfigError, DataError
from mfgp.frames import LabelKeys, read_frames

LMFP = Path(__file__).parent.parent / "examples" / "lmfp"
FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]  # eV/Å


def dimer(distance: float = 1.0, **info: object) -> Atoms:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, distance]])
    atoms.info.update({"REF_energy": -10.0 - distance, **info})
    atoms.set_array("REF_forces", np.array(FORCES))
    return atoms


def crystal(**info: object) -> Atoms:
    atoms = Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0.1]], cell=[3.6, 3.7, 3.8], pbc=True)
    atoms.info.update({"REF_energy": -7.0, **info})
    return atoms


def altered(change: Callable[[Atoms], object], atoms: Atoms | None = None) -> Atoms:
    atoms = dimer() if atoms is None else atoms
    change(atoms)
    return atoms


def error_of(sources: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_frames(sources, **options)  # type: ignore[arg-type]
    return str(caught.value)


def contains(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"


# What is read


def test_labels_are_read_with_their_meaning(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    first = dimer(1.1, structure_id="s1", split="test_ood", wall_seconds=12.5, energy_sigma=0.01, force_sigma=0.2)
    first.set_array("force_mask", np.array([1, 0]))
    write(path, [first, dimer(1.2)])
    frames = read_frames({"low": path})
    frame, other = frames
    assert frames.levels == ("low",)
    assert frame.source == f"{path} frame 0"
    assert frame.fidelity == "low"
    assert frame.energy == pytest.approx(-11.1, abs=1e-9)
    assert_allclose(frame.forces, FORCES, rtol=0, atol=1e-8)
    assert frame.force_mask.tolist() == [True, False]
    assert (frame.energy_sigma, frame.force_sigma, frame.wall_seconds) == (0.01, 0.2, 12.5)
    assert frame.held_out
    assert frame.split == "test_ood"
    assert frame.atoms.calc is None
    assert set(frame.atoms.arrays) == {"numbers", "positions"}
    assert frame.atoms.info == {"structure_id": "s1", "split": "test_ood", "wall_seconds": 12.5}
    assert not other.held_out
    assert other.force_mask.all()
    assert (other.stress, other.energy_sigma, other.split) == (None, None, None)


def test_ref_keys_come_before_the_calculator_and_free_energy_before_energy() -> None:
    atoms = dimer(1.0)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, free_energy=-2.0, forces=FORCES)
    assert read_frames({"a": [atoms]}).frames[0].energy == -11.0
    del atoms.info["REF_energy"]
    frame = read_frames({"a": [atoms]}).frames[0]
    assert frame.energy == -2.0
    assert_allclose(frame.forces, FORCES)  # label by label: the forces are still REF_forces
    assert read_frames({"a": [atoms]}, keys=LabelKeys(energy="energy")).frames[0].energy == -1.0


def test_results_of_a_live_calculator_are_labels() -> None:
    atoms = crystal()
    del atoms.info["REF_energy"]
    atoms.calc = EMT()
    energy, stress = atoms.get_potential_energy(), atoms.get_stress()
    frame = read_frames({"emt": [atoms]}).frames[0]
    assert frame.energy == energy
    assert_allclose(frame.stress, stress, rtol=0, atol=1e-12)
    assert np.abs(stress).max() > 1e-3


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


def test_virial_is_minus_volume_times_stress() -> None:
    stress = np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])  # eV/Å^3
    full = np.array([[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]])
    volume = crystal().get_volume()
    for key, value in (
        ("REF_stress", stress),
        ("REF_stress", full),
        ("REF_stress", full.ravel()),
        ("REF_virial", -volume * stress),
        ("REF_virial", -volume * full),
    ):
        frame = read_frames({"a": [crystal(**{key: value})]}).frames[0]
        assert_allclose(frame.stress, stress, rtol=0, atol=1e-14)
    both = crystal(REF_stress=stress, REF_virial=-volume * full)
    assert_allclose(read_frames({"a": [both]}).frames[0].stress, stress)


def test_stress_of_a_file_keeps_its_order(tmp_path: Path) -> None:
    atoms = crystal(REF_stress=np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 1e-3)
    write(tmp_path / "a.extxyz", atoms)
    frame = read_frames({"a": tmp_path / "a.extxyz"}).frames[0]
    assert_allclose(frame.stress, np.array([1, 2, 3, 4, 5, 6]) * 1e-3, rtol=0, atol=1e-10)


def test_subsets_of_labels_and_isolated_atoms() -> None:
    only_energy = altered(lambda a: a.arrays.pop("REF_forces"))
    alone = Atoms("H", info={"REF_energy": -13.6})
    tagged = Atoms("H", cell=[9, 9, 9], pbc=True, info={"REF_energy": -13.6, "config_type": "IsolatedAtom"})
    in_crystal = Atoms("Cu", cell=[2.5, 2.5, 2.5], pbc=True, info={"REF_energy": -3.0})
    frames = read_frames({"a": [only_energy, alone, tagged, in_crystal]})
    assert frames.frames[0].forces is None
    assert [frame.isolated_atom for frame in frames] == [False, True, True, False]


def test_an_atom_alone_in_a_box_is_isolated() -> None:
    skewed = [[5.0, 0, 0], [40.0, 9.0, 0], [0, 0, 9.0]]  # nearest images 5 Å away
    boxes = {
        "box": ([12, 12, 12], True),
        "skewed": (skewed, True),
        "crystal": (bulk("Cs", "bcc", a=6.14).cell, True),
        "wire": ([0, 0, 8.0], (False, False, True)),
        "chain": ([0, 0, 4.0], (False, False, True)),
    }
    atoms = [Atoms("Cs", cell=cell, pbc=pbc, info={"REF_energy": -1.0}) for cell, pbc in boxes.values()]
    found = dict(zip(boxes, (f.isolated_atom for f in read_frames({"a": atoms})), strict=True))
    assert found == {"box": True, "skewed": False, "crystal": False, "wire": True, "chain": False}


def test_masked_atoms_may_have_nan_forces() -> None:
    atoms = dimer()
    atoms.arrays["REF_forces"][1] = np.nan
    contains(error_of({"a": [atoms]}), "NaN force on atoms [1]", "force_mask=0")
    atoms.set_array("force_mask", np.array([True, False]))
    assert read_frames({"a": [atoms]}).frames[0].force_mask.tolist() == [True, False]


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


@pytest.mark.parametrize("name", ["Cu1", "Cu_pv", "29"])
def test_what_is_no_symbol_of_an_element_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.extxyz").write_text(f"2\nProperties=species:S:1:pos:R:3 REF_energy=1.0\n{name} 0 0 0\nCu 0 0 2\n")
    contains(error_of({"a": tmp_path / "a.extxyz"}), f"'{name}'", "symbol alone")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.extxyz")
    contains(error_of({"a": tmp_path / "a.extxyz"}), "is no file", "pipe")


# Levels


def test_levels_come_from_tags_and_aliases_in_the_order_given() -> None:
    tagged = [dimer(1.0, fidelity="high"), dimer(1.1, head="low"), dimer(1.2, data_modality="low")]
    frames = read_frames(tagged, levels=("low", "high"))
    assert [frame.fidelity for frame in frames] == ["low", "low", "high"]
    contains(error_of(tagged), "2 levels found", "high (1 frames)", "low (2 frames)", "levels=")
    contains(error_of(tagged, levels=("low", "top")), "frame 0 (CO)", "unknown fidelity 'high'", "low, top")
    contains(error_of(tagged, levels=("low", "high", "top")), "fidelity 'top'", "no frame", "low (2 frames)")


def test_a_single_untagged_source_needs_no_levels(tmp_path: Path) -> None:
    write(tmp_path / "silicon.v1.extxyz", [dimer()])
    assert read_frames(tmp_path / "silicon.v1.extxyz").levels == ("silicon.v1",)
    assert read_frames([dimer()], levels=["only"]).frames[0].fidelity == "only"
    contains(error_of([dimer()]), "frame 0 (CO)", "no level in info", "info['fidelity']")
    contains(error_of([dimer(), dimer(1.2, fidelity="x")], levels=("x", "y")), "frame 0 (CO)", "x, y")


def test_a_tag_of_another_level_is_an_error_of_none_is_not() -> None:
    swapped = {"low": [dimer(1.0, fidelity="high")], "high": [dimer(1.1)]}
    contains(error_of(swapped), "frame 0 (CO)", "fidelity 'low'", "fidelity='high'")
    assert read_frames({"low": [dimer(1.0, fidelity="gfn1")]}).frames[0].fidelity == "low"
    contains(error_of({"low": [dimer(1.0, head="high")], "high": [dimer(1.1)]}), "fidelity 'low'", "head='high'")
    assert read_frames({"low": [dimer(1.0, head="Default")]}).frames[0].fidelity == "low"


def test_files_are_levels_by_their_names(tmp_path: Path) -> None:
    files = [tmp_path / "lmfp.nm.extxyz", tmp_path / "lmfp.mag.extxyz"]
    for k, file in enumerate(files):
        write(file, [dimer(1.0 + 0.1 * k)])
    contains(error_of(files), "2 levels found", "levels=('lmfp.nm', 'lmfp.mag')")
    frames = read_frames(files, levels=("lmfp.nm", "lmfp.mag"))
    assert [f.fidelity for f in frames] == ["lmfp.nm", "lmfp.mag"]


def test_a_key_that_one_level_alone_has(tmp_path: Path) -> None:
    own = dimer(1.1)
    own.info["dft_energy"] = own.info.pop("REF_energy")
    sources = {"low": [dimer(1.0)], "high": [own]}
    with pytest.raises(DataError, match=r"fidelity 'low': key 'dft_energy' for energy is in none.*'REF_energy' is"):
        read_frames(sources, keys=LabelKeys(energy="dft_energy"))


def test_levels_named_twice_or_not_at_all() -> None:
    contains(error_of([dimer()], levels=("a", "b", "a")), "'a'", "2 times", "once")
    contains(error_of({}), "no level", "at least one")
    contains(error_of({"a": [dimer()]}, levels=("a", "b")), "a, b", "the sources are for a")
    contains(error_of({"a": []}), "empty list of frames")
    contains(error_of({"a": [3]}), "int", "paths or ase.Atoms")


def test_levels_argument_reorders_a_mapping() -> None:
    frames = read_frames({"b": [dimer(1.0)], "a": [dimer(1.1)]}, levels=("a", "b"))
    assert [frame.fidelity for frame in frames] == ["a", "b"]


# Errors in files


def test_missing_directory_empty_and_unreadable_files(tmp_path: Path) -> None:
    contains(error_of({"a": tmp_path / "no.extxyz"}), "no.extxyz", "no such file", str(tmp_path))
    contains(error_of({"a": tmp_path}), str(tmp_path), "directory")
    for name, text in (("empty.extxyz", ""), ("blank.extxyz", "\n\n")):
        (tmp_path / name).write_text(text)
        contains(error_of({"a": tmp_path / name}), name, "empty", "at least one frame")
    (tmp_path / "binary.extxyz").write_bytes(bytes(range(128, 256)))
    contains(error_of({"a": tmp_path / "binary.extxyz"}), "binary.extxyz", "cannot be read")
    (tmp_path / "bad.extxyz.gz").write_bytes(b"not gzip at all")
    contains(error_of({"a": tmp_path / "bad.extxyz.gz"}), "bad.extxyz.gz", "cannot be read")
    (tmp_path / "what.ever").write_text("hello")
    contains(error_of({"a": tmp_path / "what.ever"}), "what.ever", "not a structure file that ASE knows")


def test_truncated_and_damaged_frames_name_the_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    write(path, [dimer(1.0), dimer(1.1), dimer(1.2)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    contains(error_of({"a": path}), "a.extxyz frame 2", "2 atoms announced, 1 found", "truncated")
    marked = tmp_path / "marked.extxyz"
    marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    contains(error_of({"a": marked}), "begins with a byte order mark")
    path.write_text("\n".join(lines[:5] + lines[6:]) + "\n")
    contains(error_of({"a": path}), "a.extxyz frame 2", "expected the number of atoms", "frame 1 or 2 is truncated")
    path.write_text("\n".join([*lines[:-1], lines[-1][:20]]) + "\n")
    contains(error_of({"a": path}), "a.extxyz frame 2", "cannot be read", "truncated or damaged")
    path.write_text("\n".join([*lines[:4], "", *lines[4:]]) + "\n")
    contains(error_of({"a": path}), "a.extxyz", "blank line after frame 0", "remove")


def test_trailing_blank_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    write(path, [dimer(1.0), dimer(1.1)])
    path.write_text(path.read_text() + "\n\n")
    assert len(read_frames({"a": path})) == 2


# Errors in geometries and labels

BAD_FRAMES = {
    "NaN energy": (lambda: dimer(REF_energy=np.nan), ["NaN energy", "remove"]),
    "infinite energy": (lambda: dimer(REF_energy=np.inf), ["infinite energy", "remove"]),
    "text energy": (lambda: dimer(REF_energy="-1.0 eV"), ["energy is '-1.0 eV'", "not numbers", "key"]),
    "no value": (lambda: dimer(REF_energy=True), ["energy is 'True'", "not numbers"]),
    "vector energy": (lambda: dimer(REF_energy=[1.0, 2.0]), ["energy has shape (2,)", "one number (a decimal comma"]),
    "infinite force": (
        lambda: altered(lambda a: a.arrays["REF_forces"].__setitem__((1, 2), -np.inf)),
        ["infinite force on atoms [1]", "force_mask=0"],
    ),
    "force shape": (
        lambda: altered(lambda a: (a.arrays.pop("REF_forces"), a.set_array("REF_forces", np.zeros((2, 2))))),
        ["forces have shape (2, 2)", "expected (2, 3)"],
    ),
    "mask": (lambda: altered(lambda a: a.set_array("force_mask", np.array([0.5, 1]))), ["force_mask", "2 atoms"]),
    "sigma": (lambda: dimer(energy_sigma=-0.1), ["energy_sigma = -0.1", "positive"]),
    "overlap": (lambda: dimer(0.2), ["atoms 0 (C) and 1 (O) are 0.200 Å apart", "0.3 Å", "correct"]),
    "overlap through the boundary": (
        lambda: altered(lambda a: a.positions.__setitem__((1, slice(None)), [3.5, 3.6, 3.7]), crystal()),
        ["0 (Cu) and 1 (Cu)", "0.173 Å"],
    ),
    "own image": (
        lambda: Atoms("H", cell=[0.25, 5, 5], pbc=True, info={"REF_energy": 0.0}),
        ["0 (H) and 0 (H) (its periodic image)", "0.250 Å"],
    ),
    "flat cell": (lambda: altered(lambda a: a.set_pbc(True)), ["zero volume", "pbc [True, True, True]", "pbc=False"]),
    "coplanar cell": (
        lambda: altered(lambda a: a.set_cell([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), crystal()),
        ["zero volume", "set the cell"],
    ),
    "skewed cell": (
        lambda: altered(lambda a: a.set_cell([[3, 0, 0], [700, 3, 0], [0, 700, 3]]), crystal()),
        ["so skewed", "minkowski_reduce"],
    ),
    "thin cell": (lambda: altered(lambda a: a.set_cell([10, 10, 9e-4]), crystal()), ["zero volume"]),
    "positions": (
        lambda: altered(lambda a: a.positions.__setitem__((1, 0), np.nan)),
        ["non-finite position of atoms [1]"],
    ),
    "cell": (lambda: altered(lambda a: a.cell.__setitem__((0, 0), np.inf), crystal()), ["non-finite cell"]),
    "stress": (lambda: crystal(REF_stress=np.full(6, np.nan)), ["NaN stress", "remove"]),
    "stress shape": (lambda: crystal(REF_stress=np.zeros(5)), ["stress has shape (5,)", "6, 9 or 3x3"]),
    "virial asymmetric": (lambda: crystal(REF_virial=np.arange(9.0)), ["virial is not symmetric"]),
    "stress and virial": (
        lambda: crystal(REF_stress=np.full(6, 0.01), REF_virial=np.full(6, 0.01)),
        ["stress and virial disagree", "virial = -V * stress"],
    ),
    "stress of a molecule": (lambda: dimer(REF_stress=np.zeros(6)), ["no volume", "remove"]),
    "isolated pair": (lambda: dimer(config_type="IsolatedAtom"), ["IsolatedAtom", "2 atoms", "correct config_type"]),
    "no atoms": (lambda: Atoms(info={"REF_energy": 0.0}), ["no atoms", "remove"]),
    "no element": (lambda: Atoms("X", info={"REF_energy": 0.0}), ["[0]", "symbol X"]),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_name_frame_structure_level_and_way_out(name: str) -> None:
    make, expected = BAD_FRAMES[name]
    bad = make()
    message = error_of({"low": [dimer(1.3)], "high": [dimer(1.1), bad]})
    contains(message, f"list of Atoms frame 1 ({bad.symbols})", "fidelity 'high'", *expected)


def test_a_calculator_of_another_geometry_is_an_error() -> None:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    atoms.positions[1, 2] = 1.2
    contains(error_of({"a": [atoms]}), "frame 0 (CO)", "another geometry", "recompute")


def test_all_frames_are_checked_and_the_first_problems_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    write(path, [dimer(0.1), dimer(1.1), dimer(1.2, REF_energy=np.nan), dimer(0.2)])
    message = error_of({"low": path, "high": tmp_path / "missing.extxyz"})
    contains(
        message, "4 problems:", f"{path} frame 0 (CO), fidelity 'low'", "frame 2 (CO)", "frame 3", "missing.extxyz"
    )
    many = error_of({"a": [dimer(0.1) for _ in range(9)]})
    contains(many, "9 problems:", "frame 4", "and 4 more")
    assert "frame 5" not in many


def test_missing_labels_list_the_keys_found() -> None:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], info={"dft_energy": -1.0})
    atoms.set_array("dft_forces", np.zeros((2, 3)))
    message = error_of({"low": [dimer()], "high": [atoms]})
    contains(message, "fidelity 'high'", "no label", "dft_energy", "arrays: dft_forces", "calc: nothing", "LabelKeys(")
    frame = read_frames({"high": [atoms]}, keys=LabelKeys(energy="dft_energy", forces="dft_forces")).frames[0]
    assert frame.energy == -1.0
    assert frame.forces is not None


def test_a_custom_key_found_nowhere_is_an_error() -> None:
    message = error_of({"a": [dimer()]}, keys=LabelKeys(energy="dft_enrgy"))
    contains(message, "'dft_enrgy'", "for energy", "none of the 1 frames", "REF_energy", "correct `keys`")


# Structures without labels, and real data


def test_read_structures_needs_no_labels_but_checks_geometry(tmp_path: Path) -> None:
    write(tmp_path / "pool.extxyz", [Atoms("CO", [[0, 0, 0], [0, 0, d]]) for d in (1.1, 0.1)])
    with pytest.raises(DataError, match=r"pool\.extxyz frame 1 \(CO\): atoms 0 \(C\) and 1 \(O\) are 0\.100"):
        read_structures(tmp_path / "pool.extxyz")
    write(tmp_path / "pool.extxyz", [Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])])
    assert len(read_structures(tmp_path / "pool.extxyz")) == 1


def test_real_data_of_two_levels() -> None:
    paths = {"nm": LMFP / "lmfp_nm.extxyz", "mag": LMFP / "lmfp_mag.extxyz"}
    frames = read_frames(paths)
    for level, path in paths.items():
        raw = read(path, ":")
        own = frames.of(level)
        assert len(own) == len(raw) > 20
        assert own[3].energy == raw[3].calc.results["energy"]
        assert_allclose(own[3].forces, raw[3].calc.results["forces"])
        assert own[3].source == f"{path} frame 3"
        assert own[3].wall_seconds == raw[3].info["wall_seconds"]
    summary = frames.summary()
    assert summary["nm"]["held_out"] > 0
    assert summary["mag"]["forces"] == summary["mag"]["frames"]
    assert read_frames([paths["mag"], paths["nm"]], levels=("nm", "mag")).data_hash() == frames.data_hash()
    contains(error_of({"nm": paths["mag"], "mag": paths["nm"]}), "lmfp_mag.extxyz frame 0", "'nm'", "'mag'")


@pytest.mark.parametrize("name", ["force_sigma", "energy_sigma"])
@pytest.mark.parametrize("place", ["arrays", "info"])
def test_sigmas_of_atoms_are_refused(tmp_path: Path, name: str, place: str) -> None:
    """As an array they were ignored without a word."""
    atoms = dimer()
    getattr(atoms, place)[name] = np.array([0.5, 0.1])
    write(tmp_path / "a.extxyz", [dimer(), atoms])
    contains(error_of({"low": tmp_path / "a.extxyz"}), "frame 1", f"{name} is given for each atom", "force_mask=0")


def test_a_level_is_not_named_like_the_noise(tmp_path: Path) -> None:
    """std_by_level has the label noise under that name."""
    write(tmp_path / "noise.extxyz", dimer())
    for sources in ({"noise": [dimer()]}, [dimer(fidelity="noise")], tmp_path / "noise.extxyz"):
        contains(error_of(sources), "a level is named 'noise'", "give it another name")
    contains(error_of([dimer(fidelity="noise")], levels=["noise"]), "a level is named 'noise'")


def test_what_is_no_source_or_no_keys() -> None:
    contains(error_of(None), "a source is a NoneType")
    contains(error_of({"low": None}), "a source is a NoneType")
    with pytest.raises(ConfigError, match=r"keys is a dict; give LabelKeys"):
        read_frames([dimer()], keys={"energy": "dft_energy"})  # type: ignore[arg-type]


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


def test_predictions_are_no_labels() -> None:
    """What `mfgp predict` writes looks like the results of a calculation."""
    atoms = dimer(predicted_fidelity="low")
    read_frames({"low": [atoms]})  # labels of its own
    predictions = {"energy": -11.0, "forces": FORCES, "stress": np.ones(6), "magmoms": np.array([1.0, np.nan])}
    atoms.set_cell([9.0, 9.0, 9.0])
    atoms.pbc = True
    atoms.calc = SinglePointCalculator(atoms, **predictions)
    (frame,) = read_frames({"low": [atoms]})
    assert frame.energy == atoms.info["REF_energy"]
    assert frame.stress is None
    assert frame.magmoms is None
    del atoms.info["REF_energy"], atoms.arrays["REF_forces"]
    atoms.calc = SinglePointCalculator(atoms, energy=-11.0, forces=FORCES)
    with pytest.raises(DataError, match=r"frame 0 .*'low': its energy and forces are predictions of a model"):
        read_frames({"low": [atoms]})


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


def test_a_slice_of_a_file_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", dimer())
    with pytest.raises(DataError, match=r"@::10: no such file; .* No frames are chosen by @"):
        read_frames({"low": f"{tmp_path}/a.extxyz@::10"})
    with pytest.raises(DataError, match=r"b.extxyz@0: no such file; looked in [^ ]*$"):
        read_frames({"low": f"{tmp_path}/b.extxyz@0"})
