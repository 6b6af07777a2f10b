"""What cannot be read: every error says which frame, what was found, and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from frame_cases import FORCES, altered, contains, crystal, dimer, error_of

from mfgp.errors import ConfigError, DataError
from mfgp.frames import LabelKeys, read_frames


@pytest.mark.parametrize("name", ["Cu1", "Cu_pv", "29"])
def test_what_is_no_symbol_of_an_element_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.extxyz").write_text(f"2\nProperties=species:S:1:pos:R:3 REF_energy=1.0\n{name} 0 0 0\nCu 0 0 2\n")
    contains(error_of({"a": tmp_path / "a.extxyz"}), f"'{name}'", "symbol alone")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.extxyz")
    contains(error_of({"a": tmp_path / "a.extxyz"}), "is no file", "pipe")


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


def test_a_slice_of_a_file_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", dimer())
    with pytest.raises(DataError, match=r"@::10: no such file; .* No frames are chosen by @"):
        read_frames({"low": f"{tmp_path}/a.extxyz@::10"})
    with pytest.raises(DataError, match=r"b.extxyz@0: no such file; looked in [^ ]*$"):
        read_frames({"low": f"{tmp_path}/b.extxyz@0"})
