"""Pairs over periodic images, against ase.neighborlist, and the errors for cells that make no sense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.geometry import complete_cell
from ase.neighborlist import neighbor_list
from numpy.testing import assert_allclose
from systems import SYSTEMS, isolated_atom, rattled_silicon, slab, sodium_chloride, triclinic, water

from descriptors import neighborhoods, without_gaps
from descriptors.neighbors import SEARCHED_THERE, _order
from mfgp.data.reading import geometry_problems


def _sorted_rows(i: np.ndarray, j: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    rows = np.column_stack([i, j, vectors])
    return rows[np.lexsort(np.round(rows.T, 6))]


@pytest.mark.parametrize("r_cut", [2.3, 5.0, 7.5])
@pytest.mark.parametrize("name", SYSTEMS)
def test_pairs_are_those_of_ase(name: str, r_cut: float) -> None:
    atoms = SYSTEMS[name]()
    nb = neighborhoods([atoms], r_cut)
    i, j, vectors = neighbor_list("ijD", atoms, r_cut)
    assert len(nb.centre) == len(i)
    ours = _sorted_rows(nb.centre.numpy(), nb.neighbor.numpy(), nb.vectors.numpy())
    assert_allclose(ours, _sorted_rows(i, j, vectors), rtol=0, atol=1e-12)  # Å
    assert bool((nb.centre.diff() >= 0).all())


@pytest.mark.parametrize("pbc", [(True, False, False), (False, True, False), (False, True, True), (True, False, True)])
def test_every_mix_of_periodic_directions(pbc: tuple[bool, bool, bool]) -> None:
    atoms = triclinic()
    atoms.pbc = pbc
    nb = neighborhoods([atoms], 6.0)
    i, j, vectors = neighbor_list("ijD", atoms, 6.0)
    assert len(i) > 12  # more than the pairs within the cell
    ours = _sorted_rows(nb.centre.numpy(), nb.neighbor.numpy(), nb.vectors.numpy())
    assert_allclose(ours, _sorted_rows(i, j, vectors), rtol=0, atol=1e-12)  # Å


def test_cells_of_non_periodic_directions_are_ignored() -> None:
    atoms = slab()
    flat = atoms.copy()
    flat.cell[2] = atoms.cell[0] + atoms.cell[1]  # in the plane: the three vectors do not span space
    expected, found = neighborhoods([atoms], 5.0), neighborhoods([flat], 5.0)
    assert len(expected.centre) > 50
    assert_allclose(found.vectors, expected.vectors, rtol=0, atol=1e-12)  # Å


def test_small_cells_see_their_own_images() -> None:
    nb = neighborhoods([sodium_chloride()], 4.5)
    own = nb.centre == nb.neighbor
    assert int(own.sum()) == 24  # 12 lattice vectors of 3.99 Å around each of two atoms
    assert_allclose(torch.linalg.vector_norm(nb.vectors[own], dim=1), 5.64 / np.sqrt(2), rtol=0, atol=1e-12)  # Å


def test_isolated_atoms_and_empty_batches_have_no_pairs() -> None:
    nb = neighborhoods([isolated_atom(), isolated_atom(), Atoms()], 5.0)
    assert nb.vectors.shape == (0, 3)
    assert nb.centre.dtype == nb.neighbor.dtype == torch.long
    assert nb.numbers.tolist() == [8, 8]
    assert nb.n_structures == 3
    assert neighborhoods([], 5.0).numbers.shape == (0,)


def test_a_batch_numbers_atoms_through() -> None:
    structures = [water(), isolated_atom(), rattled_silicon()]
    nb = neighborhoods(structures, 5.0, dtype=torch.float32)
    assert nb.vectors.dtype == torch.float32
    assert nb.structure.tolist() == [0] * 3 + [1] + [2] * 8
    offset = 0
    for index, atoms in enumerate(structures):
        single = neighborhoods([atoms], 5.0)
        mine = nb.structure[nb.centre] == index
        assert torch.equal(nb.centre[mine] - offset, single.centre)
        assert torch.equal(nb.neighbor[mine] - offset, single.neighbor)
        assert torch.equal(nb.vectors[mine], single.vectors.float())
        offset += len(atoms)


@pytest.mark.parametrize("gap", [4.9, 5.1, 7.4, 7.6, 70.0])  # Å; r_cut is 5
@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False), (False, False, False)])
def test_gaps_do_not_change_pairs(pbc: tuple[bool, bool, bool], gap: float) -> None:
    atoms = triclinic()
    atoms.pbc = pbc
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    normal /= np.linalg.norm(normal)
    upper = atoms.copy()
    upper.positions += (np.ptp(atoms.positions @ normal) + gap) * normal
    atoms += upper
    nb = neighborhoods([atoms], 5.0)
    i, j, vectors = neighbor_list("ijD", atoms, 5.0)
    assert len(i) > 8
    ours = _sorted_rows(nb.centre.numpy(), nb.neighbor.numpy(), nb.vectors.numpy())
    assert_allclose(ours, _sorted_rows(i, j, vectors), rtol=0, atol=1e-12)  # Å
    near, _ = without_gaps(atoms, 5.0)
    for axis in complete_cell(np.where(atoms.pbc[:, None], atoms.cell.array, 0.0))[~atoms.pbc]:
        assert np.diff(np.sort(near @ axis)).max() < 7.5 + 1e-9


@pytest.mark.parametrize("atoms", [slab(), water()], ids=["slab", "molecule"])
def test_an_atom_that_has_gone_far_away_ends_nothing(atoms: Atoms) -> None:
    """The search divided by zero, which no Python sees."""
    expected = neighborhoods([atoms], 5.0)
    atoms += Atoms("H", [[0.1, 0.2, 3e6]])
    found = neighborhoods([atoms], 5.0)
    own = found.centre < len(atoms) - 1  # in the slab it has images of its own
    assert own.sum() > 4
    assert found.centre[own].equal(expected.centre)
    assert found.neighbor[own].equal(expected.neighbor)
    assert found.vectors[own].equal(expected.vectors)
    assert not geometry_problems(atoms)


EXTREME = {
    "thin": [[7.6, 0, 0], [0, 2000, 0], [0, 0, 2000]],
    "wire": [[2.5, 0, 0], [0, 2.5, 0], [0, 0, 1e6]],
    "oblique": [[3.0, 0.4, -0.2], [300, 2500, 200], [-40, -500, 3000]],
}


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (True, True, False)])
@pytest.mark.parametrize("name", EXTREME)
def test_cells_of_extreme_shape(name: str, pbc: tuple[bool, bool, bool]) -> None:
    """Pairs are those of a cell that leaves out most of the gaps; the search divided by zero."""
    r_cut, rng = 5.0, np.random.default_rng(0)
    large = np.array(EXTREME[name], dtype=float)
    small = large * np.minimum(1.0, 30.0 / np.linalg.norm(large, axis=1, keepdims=True))
    along = small / np.linalg.norm(small, axis=1, keepdims=True)
    around, turns = rng.uniform(-6, 6, (12, 3)) @ along, rng.integers(-2, 3, (12, 3)) * pbc  # the corner, some images
    made = [Atoms("Cu12", around + turns @ cell, cell=cell, pbc=pbc) for cell in (small, large)]
    expected, found = (neighborhoods([atoms], r_cut) for atoms in made)
    assert len(expected.centre) > 24
    assert found.centre.equal(expected.centre)
    assert found.neighbor.equal(expected.neighbor)
    assert_allclose(found.vectors, expected.vectors, rtol=0, atol=1e-8)  # Å
    assert not geometry_problems(made[1])


def test_cells_of_ordinary_shape_stay_as_they_are() -> None:
    atoms = Atoms("Cu2", [[0.1, 0.2, 0.3], [40.1, 1.0, 90.0]], cell=[70, 80, 100], pbc=True)
    positions, cell = without_gaps(atoms, 5.0)
    assert np.array_equal(positions, atoms.positions)
    assert np.array_equal(cell, atoms.cell.array)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([[4, 0, 0], [0, 4, 0], [0, 0, 0]], True),
        ([[4, 0, 0], [8, 0, 0], [0, 0, 4]], True),
        ([[4, 0, 0], [4, 1e-9, 0], [0, 0, 4]], (True, True, False)),
        ([[4, 0, 0], [0, 4, 0], [3, 3, 0]], True),
    ],
)
def test_degenerate_periodic_cells_are_errors(cell: list[list[float]], pbc: bool | tuple[bool, bool, bool]) -> None:
    bad = Atoms("H", cell=cell, pbc=pbc)
    with pytest.raises(ValueError, match=r"structure 1 \(H\).*zero or linearly dependent"):
        neighborhoods([water(), bad], 3.0)


def test_values_that_are_not_finite_are_errors() -> None:
    atoms = water()
    atoms.positions[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"structure 0 .*atoms \[2\] are not finite"):
        neighborhoods([atoms], 3.0)
    crystal = rattled_silicon()
    crystal.cell[0, 0] = np.inf
    with pytest.raises(ValueError, match=r"structure 0 .*cell"):
        neighborhoods([crystal], 3.0)


@pytest.mark.parametrize("far", [1, 10**6])
def test_pairs_are_sorted_by_centre_neighbour_and_shift(far: int) -> None:
    """Atoms outside the cell have large shifts; very large ones do not fit one whole number for all."""
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 1000, (2, 500))
    i[:100], j[:100] = 7, 9
    shift = rng.integers(-2 * far, 2 * far + 1, (500, 3))
    found = _order(torch.from_numpy(i), torch.from_numpy(j), torch.from_numpy(shift), 1000)
    expected = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
    rows = np.column_stack([i, j, shift])
    assert np.array_equal(rows[found.numpy()], rows[expected])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="vesin's search runs on a real GPU, not on a pretended one")
@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True)])
def test_large_structures_are_searched_on_the_gpu(pbc: tuple[bool, bool, bool]) -> None:
    """The same pairs in the same order, of a sheared cell with atoms outside it."""
    atoms = rattled_silicon() * (5, 5, 4)
    rng = np.random.default_rng(0)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.1, (3, 3))), scale_atoms=True)
    atoms.positions += rng.integers(-2, 3, (len(atoms), 3)) * pbc @ atoms.cell.array
    atoms.pbc = pbc
    assert len(atoms) >= SEARCHED_THERE
    here, there = neighborhoods([atoms, water()], 6.0), neighborhoods([atoms, water()], 6.0, device="cuda")
    for name in ("numbers", "structure", "centre", "neighbor"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name
    assert_allclose(there.vectors.cpu(), here.vectors, rtol=0, atol=1e-12)
