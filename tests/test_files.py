"""Writing files: links stay, devices are refused, a full disk is an error that says so, and what is written can be read."""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from mfgp import DataError, ModelFileError, MultiFidelityGP
from mfgp.base.files import replacing, write_extxyz


def test_what_a_link_points_at_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "data" / "target.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="is no file"), replacing(pipe):
        pass
    assert pipe.is_fifo()


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As on a full disk: longer files cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_model_that_the_disk_does_not_hold(model: MultiFidelityGP, tmp_path: Path) -> None:
    path = tmp_path / "m.mfgp"
    path.write_text("what was there before")
    with pytest.raises(ModelFileError, match=r"m.mfgp could not be written: "), no_file_above(4096):
        model.save(path)
    assert path.read_text() == "what was there before"
    assert sorted(tmp_path.iterdir()) == [path]


FITTING = {
    "text": 'Größe, "x" = {1}',
    "path": "C:\\tmp",
    "none": None,
    "words": ["a", "b c"],
    "nested": {"a": {"b": [1, 2]}},
    "true": True,
    "numbers": np.zeros((2, 3, 4)),
    "key with space": 3,
    "virial": np.eye(3),
}
NOT_FITTING = {
    "lines": "ENCUT = 520\nISMEAR = 0",
    "empty": "",
    "no_numbers": np.zeros(0),
    "virial": np.zeros(6),
    "stress": 1.0,
    "end": "C:\\my files\\",
    "ragged": [[1], [1, 2]],
    "Properties": "pos:R:3",
    3: 4,
}
COLUMNS = {"one": np.ones(3), "two": np.ones((3, 2)), "words": np.array(["a", "b", "c"]), "true": np.ones(3, bool)}
NO_COLUMNS = {
    "charges": np.ones((3, 3, 3)),
    "labels": np.array(["a b", "", "c"]),
    "complex": np.ones(3) * 1j,
    "unsigned": np.ones(3, np.uint64),
    "none": np.ones((3, 0)),
    "site name": np.ones(3),
    "symbols": np.array(["a", "b", "c"]),
}


def reread(path: Path, info: dict[object, object], arrays: dict[str, np.ndarray]) -> Atoms:
    """What is read of the first of two structures with these entries."""
    atoms = Atoms("Cu3", positions=np.diag([1.0, 2.0, 3.0]), cell=[5.0, 6.0, 7.0], pbc=True)
    atoms.info.update(info)
    atoms.arrays.update(arrays)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=np.arange(9.0).reshape(3, 3), stress=np.arange(6.0))
    write_extxyz(path, [atoms, atoms])
    found = read(path, ":")
    assert len(found) == 2
    assert found[0].get_potential_energy() == -1.5
    np.testing.assert_allclose(found[0].get_forces(), np.arange(9.0).reshape(3, 3), rtol=0, atol=1e-8)
    np.testing.assert_allclose(found[0].get_stress(), np.arange(6.0), rtol=0, atol=1e-8)
    np.testing.assert_array_equal(found[0].cell, atoms.cell)
    assert set(atoms.info) >= set(info)  # the caller's is left alone
    return found[0]


def test_entries_that_extxyz_carries_are_written(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms = reread(tmp_path / "a.extxyz", dict(FITTING), COLUMNS)
    assert set(atoms.info) == set(FITTING)
    assert set(COLUMNS) <= set(atoms.arrays)


@pytest.mark.parametrize("key", NOT_FITTING)
def test_info_that_would_spoil_a_file_is_left_out(tmp_path: Path, key: object) -> None:
    with pytest.warns(UserWarning, match=f"cannot carry '{key}' of 2 structures"):
        atoms = reread(tmp_path / "a.extxyz", {key: NOT_FITTING[key], "kept": 1}, {})
    assert set(atoms.info) == {"kept"}


@pytest.mark.parametrize("name", NO_COLUMNS)
def test_arrays_that_would_spoil_a_file_are_left_out(tmp_path: Path, name: str) -> None:
    with pytest.warns(UserWarning, match=f"cannot carry '{name}' of 2 structures"):
        atoms = reread(tmp_path / "a.extxyz", {}, {name: NO_COLUMNS[name], "kept": np.ones(3)})
    assert name not in atoms.arrays
    assert "kept" in atoms.arrays
