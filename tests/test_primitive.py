"""The smallest cell that a structure repeats, and rows made from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from numpy.testing import assert_allclose
from scipy.spatial import cKDTree
from systems import ethanol, phosphate, triclinic

from descriptors import SOAP, Neighborhoods
from mfgp import FitConfig, read_frames
from mfgp.fit import primitive as module
from mfgp.fit.features import Features
from mfgp.fit.primitive import TOLERANCE, primitive, shortest_translation


def _sheared(atoms: Atoms) -> Atoms:
    """Strained without symmetry: forces within the cell, and every row of the virial."""
    strain = np.array([[1.02, 0.05, -0.03], [0.0, 0.97, 0.04], [0.0, 0.0, 1.01]])
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return out


def _salt() -> Atoms:
    """Two NaCl units, one chlorine displaced: repeated by nothing but the cell."""
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    atoms.positions[1] += (0.1, -0.2, 0.05)
    return _sheared(atoms)


@pytest.mark.parametrize(
    ("supercell", "n_atoms", "n"),
    [
        (_sheared(bulk("Si", cubic=True) * (2, 2, 2)), 2, 32),
        (_sheared(bulk("Cu") * (3, 1, 2)), 1, 6),
        (_salt() * (1, 2, 2), 4, 4),
        (make_supercell(_salt(), [[1, 1, 0], [-1, 1, 0], [0, 1, 2]]), 4, 4),
        (make_supercell(_salt(), [[1, 0, 0], [5, 2, 0], [-6, 7, 1]]), 4, 2),  # long and flat
        (_salt(), 4, 1),
    ],
)
def test_the_smallest_cell(supercell: Atoms, n_atoms: int, n: int) -> None:
    supercell.translate((0.3, 1.1, -7.0))  # atoms outside of the cell, none at the origin
    found = primitive(supercell)
    assert (len(found.cell), found.n) == (n_atoms, n)
    assert found.cell.cell.volume * n == pytest.approx(supercell.cell.volume)
    between = (supercell.positions - found.cell.positions[found.copy_of]) @ np.linalg.inv(found.cell.cell.array)
    assert_allclose(between, np.round(between), atol=1e-6)  # each atom is a lattice vector away from what it repeats
    assert (supercell.numbers == found.cell.numbers[found.copy_of]).all()
    fitting = supercell.cell.array @ np.linalg.inv(found.cell.cell.array)
    assert_allclose(fitting, np.round(fitting), atol=1e-6)


def _copper(missing: int | None = None, moved: int | None = None) -> Atoms:
    atoms = bulk("Cu", cubic=True) * (8, 8, 8)
    if moved is not None:
        atoms.positions[moved, 1] += 0.01
    if missing is not None:
        del atoms[missing]
    return atoms


@pytest.mark.parametrize(
    ("atoms", "n"), [(_copper(), 2048), (_copper(missing=0), 1), (_copper(missing=700), 1), (_copper(moved=700), 1)]
)
def test_large_crystals_take_neither_the_memory_nor_the_time_of_all_pairs(
    atoms: Atoms, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = list[int]()

    class Counting(cKDTree):  # type: ignore[misc]
        def query(self, x: Any, **options: Any) -> Any:
            looked_up.append(len(x))
            return super().query(x, **options)

    monkeypatch.setattr(module, "cKDTree", Counting)
    assert primitive(atoms).n == n
    assert sum(looked_up) < 20 * len(atoms)
    assert shortest_translation(atoms, 10.0) == (pytest.approx(3.61 / 2**0.5) if n > 1 else np.inf)
    assert sum(looked_up) < 40 * len(atoms)


def _displaced(by: float) -> Atoms:
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    atoms.positions[3, 1] += by
    return atoms


def _slab() -> Atoms:
    atoms = bulk("Si", cubic=True) * (2, 2, 1)
    atoms.pbc = (True, True, False)
    return atoms


def _antisite() -> Atoms:
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.numbers[5] = 32
    return atoms


@pytest.mark.parametrize("atoms", [_displaced(1e-3), _slab(), _antisite(), ethanol(), phosphate(), triclinic()])
def test_a_structure_that_repeats_nothing_is_itself(atoms: Atoms) -> None:
    found = primitive(atoms)
    assert found.cell is atoms
    assert found.n == 1
    assert found.copy_of.tolist() == list(range(len(atoms)))


def test_what_files_round_is_no_displacement() -> None:
    assert primitive(_displaced(0.3 * TOLERANCE)).n == 8
    assert primitive(_displaced(3.0 * TOLERANCE)).n == 1


@pytest.mark.parametrize("derivatives", [True, False])
def test_rows_are_those_of_the_whole_structure(
    derivatives: bool, config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    crystal, moved = _sheared(bulk("NaCl", "rocksalt", a=5.64) * (2, 2, 1)), _salt()
    moved.rattle(0.2, seed=1)
    for i, atoms in enumerate((crystal, moved)):
        atoms.info["REF_energy"] = float(i)
    features = Features.build(read_frames({"pbe": [crystal, moved]}), config)
    structures = [moved, crystal, _salt() * (1, 2, 1)]
    seen, original = list[int](), SOAP.neighborhoods

    def neighborhoods(soap: SOAP, some: Sequence[Atoms], **options: Any) -> Neighborhoods:
        seen.extend(map(len, some))
        return original(soap, some, **options)

    monkeypatch.setattr(SOAP, "neighborhoods", neighborhoods)
    found = features.raw(structures, derivatives)
    assert seen == [4, 2, 4]  # atoms
    whole = features._raw(structures, derivatives, True)
    for a, b in zip(found, whole, strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)  # 1, 1/Å, 1
    assert float(whole[2][0].abs().max()) > 1.0
    assert not derivatives or float(whole[2][1:-6].abs().max()) > 1e-3
