"""Rows made centre by centre against rows of the whole Jacobian, and the slopes they are made from against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose
from systems import SYSTEMS, ethanol, isolated_atom, phosphate, rattled_silicon, sodium_chloride, triclinic

from descriptors import SOAP, Neighborhoods, SOAPConfig, fit_contraction, jacobian
from descriptors.slopes import expansion_bytes
from mfgp.gp import row_sums, rows
from mfgp.gp.inducing import InducingBasis, select_inducing
from mfgp.gp.observations import functional_rows, rows_of_jacobian, whiten_all, whitened_blocks
from mfgp.gp.rows import InducingForms, energy_rows, form_entries, inducing_forms, raw_rows

CONFIG = SOAPConfig(r_cut=4.5, n_max=3, l_max=3, sigma=0.5)  # Å; more than half of every cell in systems.py
STEP = 1e-5  # Å


def _soap(atoms: Atoms, retained: float | None = None, also: tuple[int, ...] = ()) -> SOAP:
    soap = SOAP(CONFIG, sorted({int(z) for z in atoms.numbers} | set(also)))
    if retained is None:
        return soap
    return SOAP(CONFIG, soap.species, fit_contraction(soap, [soap.neighborhoods([atoms])], retained))


def _basis(atoms: Atoms, soap: SOAP, zeta: int, limit: int = 10) -> InducingBasis:
    """Points of structures displaced from `atoms`, so that none has z . q = 1; few, so that K_MM is well conditioned."""
    structures = [atoms.copy() for _ in range(3)]
    for seed, a in enumerate(structures):
        a.rattle(0.2, seed=seed)
    numbers = torch.from_numpy(np.concatenate([a.numbers for a in structures]).astype(np.int64))
    return select_inducing(soap.features(structures), numbers, limit, zeta)


def _both(atoms: Atoms, soap: SOAP, basis: InducingBasis) -> tuple[torch.Tensor, torch.Tensor]:
    nb = soap.neighborhoods([atoms])
    return functional_rows(basis, inducing_forms(basis, soap), soap, nb), rows_of_jacobian(
        basis, jacobian(soap, nb), nb.numbers
    )


def _raw(basis: InducingBasis, forms: InducingForms, soap: SOAP, nb: Neighborhoods, *limit: float) -> torch.Tensor:
    return raw_rows(basis, forms, soap, nb, *limit).of_structure(0, 0, len(nb.numbers))


@pytest.mark.parametrize("retained", [None, 0.99])
@pytest.mark.parametrize("zeta", [1, 2, 4])
@pytest.mark.parametrize("name", SYSTEMS)
def test_rows_are_those_of_the_jacobian(name: str, zeta: int, retained: float | None) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms, retained)
    basis = _basis(atoms, soap, zeta)
    new, reference = _both(atoms, soap, basis)
    assert_allclose(new, reference, rtol=0, atol=1e-10)  # 1, 1/Å, 1
    assert float(reference[0].abs().max()) > 0.1
    if len(atoms) > 1:
        assert float(reference[1:-6].abs().max()) > 1e-2
        assert float(reference[-6:].abs().max()) > 1e-2


@pytest.mark.parametrize("retained", [None, 0.99])
@pytest.mark.parametrize("build", [phosphate, triclinic, rattled_silicon, ethanol])
def test_any_blocks_give_the_same(build, retained: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = build()
    soap = _soap(atoms, retained)
    basis, nb = _basis(atoms, soap, 2), soap.neighborhoods([atoms])
    forms = inducing_forms(basis, soap)
    whole = _raw(basis, forms, soap, nb)
    needed = expansion_bytes(soap, nb)
    for limit in (1.0, float(needed.sum()) / 2):  # bytes: every centre by itself; two or three blocks
        assert_allclose(_raw(basis, forms, soap, nb, limit), whole, rtol=0, atol=1e-12)
    for workspace in (1, 3000):  # one row or centre at a time; some
        monkeypatch.setattr(row_sums, "CACHE", workspace)
        monkeypatch.setitem(rows.PRODUCTS, "cpu", workspace)
        monkeypatch.setitem(rows.ROWS, "cpu", workspace)
        for compiled in (("cpu",), ()):
            monkeypatch.setattr(rows, "COMPILED", compiled)
            assert_allclose(_raw(basis, forms, soap, nb), whole, rtol=0, atol=1e-12)
    assert float(whole[1:].abs().max()) > 1e-2


@pytest.mark.parametrize("retained", [None, 0.99])
@pytest.mark.parametrize("name", SYSTEMS)
def test_tensor_operations_give_what_compiled_code_gives(
    name: str, retained: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, done on the CPU."""
    atoms = SYSTEMS[name]()
    soap = _soap(atoms, retained)
    basis, nb = _basis(atoms, soap, 3), soap.neighborhoods([atoms])
    forms = inducing_forms(basis, soap)
    compiled = _raw(basis, forms, soap, nb)
    monkeypatch.setattr(rows, "COMPILED", ())
    monkeypatch.setattr(rows, "add_rows", None)  # not called
    assert_allclose(_raw(basis, forms, soap, nb), compiled, rtol=0, atol=1e-12)
    assert len(atoms) == 1 or float(compiled[1:-6].abs().max()) > 1e-4  # 1/Å; not whitened


@pytest.mark.parametrize(("n_max", "l_max", "retained"), [(8, 2, None), (9, 1, None), (11, 2, None), (11, 2, 0.9)])
def test_more_channels_than_lanes(n_max: int, l_max: int, retained: float | None) -> None:
    """Entries in one, two and more chunks, and channels that fill them; two species, images of one neighbour."""
    config, atoms = SOAPConfig(r_cut=4.5, n_max=n_max, l_max=l_max, sigma=0.5), triclinic()
    soap = SOAP(config, sorted(set(atoms.numbers.tolist())))
    if retained is not None:
        soap = SOAP(config, soap.species, fit_contraction(soap, [soap.neighborhoods([atoms])], retained))
    new, reference = _both(atoms, soap, _basis(atoms, soap, 2))
    assert_allclose(new, reference, rtol=0, atol=1e-10)
    assert float(reference[1:-6].abs().max()) > 1e-2


def test_blocks_are_whitened_as_rows_are() -> None:
    """Of each species in memory of its own, the columns beside left alone; nothing changes in the rows that are given."""
    atoms = phosphate()
    soap = _soap(atoms)
    basis = _basis(atoms, soap, 2)
    raw = _raw(basis, inducing_forms(basis, soap), soap, soap.neighborhoods([atoms]))
    raw = torch.cat([raw, torch.arange(len(raw), dtype=raw.dtype)[:, None]], dim=1)
    before = raw.clone()
    blocks = whitened_blocks(basis, [raw[:5], raw[5:]])
    assert torch.equal(raw, before)
    assert [b.shape[1] for b in blocks] == [*(len(z) for z in basis.points), 1]
    assert_allclose(torch.cat(blocks, dim=1), whiten_all(basis, raw.clone()), rtol=0, atol=1e-12)
    assert float((torch.cat(blocks, dim=1) - raw)[:, :-1].abs().max()) > 0.1


def test_species_without_centres_points_or_neighbours() -> None:
    """The descriptor knows Al and Cl, of which there are none; there are no inducing points of Na."""
    atoms = sodium_chloride()
    soap = _soap(atoms, also=(13,))
    full = _basis(atoms, soap, 2)
    keep = full.species.index(17)
    one = InducingBasis(
        (17,), (full.points[keep],), (full.factors[keep],), torch.arange(len(full.points[keep])), 2, 0.0
    )
    for basis in (full, one):
        new, reference = _both(atoms, soap, basis)
        assert_allclose(new, reference, rtol=0, atol=1e-10)
        assert float(reference[1:-6].abs().max()) > 1e-2


def test_an_isolated_atom_has_an_energy_only() -> None:
    atoms = isolated_atom()
    soap = _soap(phosphate())
    new = _both(atoms, soap, _basis(phosphate(), soap, 2, 30))[0]
    assert float(new[0].abs().max()) > 0.01
    assert torch.equal(new[1:], torch.zeros_like(new[1:]))


def test_dtype_follows_the_structure() -> None:
    atoms = phosphate()
    soap = _soap(atoms)
    basis = _basis(atoms, soap, 2)
    forms = inducing_forms(basis, soap)
    single = InducingBasis(
        basis.species, tuple(z.float() for z in basis.points), basis.factors, basis.rank, basis.zeta, basis.jitter
    )
    low = _raw(single, inducing_forms(single, soap), soap, soap.neighborhoods([atoms], dtype=torch.float32))
    assert low.dtype == torch.float32
    reference = _raw(basis, forms, soap, soap.neighborhoods([atoms]))
    assert_allclose(low, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("retained", [None, 0.99])
@pytest.mark.parametrize("build", [phosphate, rattled_silicon])
def test_size_of_the_forms(build, retained: float | None) -> None:
    atoms = build()
    soap = _soap(atoms, retained)
    forms = inducing_forms(_basis(atoms, soap, 2, 12), soap)
    assert sum(f[0].shape[1] for f in forms.forms) == 12
    assert {f.shape[0] for of_centre in forms.forms for f in of_centre} == {form_entries(soap)}


def test_a_batch_gives_the_rows_of_its_structures() -> None:
    structures = [phosphate() for _ in range(3)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    structures.insert(1, isolated_atom())
    soap = _soap(phosphate(), also=tuple(isolated_atom().numbers.tolist()))
    basis = _basis(phosphate(), soap, 3)
    forms = inducing_forms(basis, soap)
    batch = raw_rows(basis, forms, soap, soap.neighborhoods(structures))
    first = 0
    for i, atoms in enumerate(structures):
        alone = _raw(basis, forms, soap, soap.neighborhoods([atoms]))
        assert_allclose(batch.of_structure(i, first, first + len(atoms)), alone, rtol=0, atol=1e-12)
        first += len(atoms)
    assert float(batch.forces.abs().max()) > 1e-2


def test_rows_that_are_not_wanted() -> None:
    """Without the virial the others stay; an energy alone takes no derivatives."""
    soap = _soap(phosphate())
    basis, nb = _basis(phosphate(), soap, 2), soap.neighborhoods([phosphate(), phosphate()])
    forms = inducing_forms(basis, soap)
    whole, less = raw_rows(basis, forms, soap, nb), raw_rows(basis, forms, soap, nb, virial=False)
    assert less.virial is None
    assert torch.isnan(less.of_structure(0, 0, 1)[-6:]).all()
    assert_allclose(less.forces, whole.forces, rtol=0, atol=0)
    assert_allclose(energy_rows(basis, soap, nb), whole.energy, rtol=0, atol=1e-12)
    assert float(whole.energy.min(1).values.abs().max()) > 1e-3


@pytest.mark.gpu
def test_the_gpu_gives_the_rows_of_the_cpu(cuda: torch.device) -> None:
    soap = _soap(phosphate())
    basis = _basis(phosphate(), soap, 3)
    there = InducingBasis(
        basis.species,
        tuple(z.to(cuda) for z in basis.points),
        tuple(factor.to(cuda) for factor in basis.factors),
        basis.rank.to(cuda),
        basis.zeta,
        basis.jitter,
    )
    found = functional_rows(there, inducing_forms(there, soap), soap, soap.neighborhoods([phosphate()], device=cuda))
    expected = functional_rows(basis, inducing_forms(basis, soap), soap, soap.neighborhoods([phosphate()]))
    assert_allclose(found.cpu(), expected, rtol=0, atol=1e-10)
