"""Large structures, taken in parts, against a Jacobian of everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose
from systems import SYSTEMS, isolated_atom, phosphate, rattled_silicon
from test_rows import _basis, _soap

from descriptors import jacobian, jacobian_of_atoms, strain_jacobian
from mfgp.gp import functionals as module
from mfgp.gp import kernels
from mfgp.gp.functionals import functionals
from mfgp.gp.kernels import force_variances
from mfgp.gp.rows import inducing_forms
from mfgp.predict import weights_variances as variances_module
from mfgp.predict.weights_variances import weights_variances

CPU = torch.device("cpu")


@pytest.mark.parametrize("retained", [None, 0.99])
@pytest.mark.parametrize("name", SYSTEMS)
def test_parts_give_the_whole(name: str, retained: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = SYSTEMS[name]()
    soap = _soap(atoms, retained)
    basis = _basis(atoms, soap, 3)
    forms, seen = inducing_forms(basis, soap), []
    whole = functionals(basis, forms, soap, atoms, CPU)
    monkeypatch.setitem(kernels.PAIRS, "cpu", 40)
    monkeypatch.setattr(module, "BYTES", 1.0)
    parts = functionals(basis, forms, soap, atoms, CPU, lambda *told: seen.append(told[1:3]))
    assert_allclose(parts.phi, whole.phi, rtol=0, atol=1e-9)  # 1, 1/Å, 1
    assert_allclose(parts.prior, whole.prior, rtol=1e-11, atol=1e-11)
    assert_allclose(parts.local, whole.local, rtol=0, atol=1e-9)
    assert float(whole.prior[0].max()) > 0.5
    assert seen == [(i, len(atoms)) for i in range(len(atoms) + 1)]  # one atom at a time


@pytest.mark.parametrize("bytes_held", [1e9, 1.0])  # one Jacobian; parts
def test_virials_that_are_not_wanted(bytes_held: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is the same, and what is not wanted says so."""
    atoms = phosphate()
    soap = _soap(atoms)
    basis = _basis(atoms, soap, 3)
    forms = inducing_forms(basis, soap)
    monkeypatch.setattr(module, "BYTES", bytes_held)
    every = functionals(basis, forms, soap, atoms, CPU)
    without = functionals(basis, forms, soap, atoms, CPU, virial=False)
    assert_allclose(without.phi[:-6], every.phi[:-6], rtol=0, atol=1e-12)  # 1, 1/Å
    assert_allclose(without.prior[:-6], every.prior[:-6], rtol=1e-12, atol=1e-13)
    assert_allclose(without.local, every.local, rtol=0, atol=1e-12)
    assert bool(without.phi[-6:].isnan().all())
    assert bool(without.prior[-6:].isnan().all())
    assert float(every.phi[-6:].abs().max()) > 1e-2


def test_elements_that_a_structure_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = phosphate()
    soap = _soap(whole)
    basis = _basis(whole, soap, 2)
    atoms = whole[whole.numbers != whole.numbers[0]]
    one = functionals(basis, inducing_forms(basis, soap), soap, atoms, CPU)
    monkeypatch.setattr(module, "BYTES", 1.0)
    other = functionals(basis, inducing_forms(basis, soap), soap, atoms, CPU)
    assert_allclose(other.prior, one.prior, rtol=1e-11, atol=1e-11)
    assert one.prior.shape[1] == len(basis.species)
    assert (one.prior[0] == 0.0).sum() == 1


@pytest.mark.parametrize("name", SYSTEMS)
def test_jacobian_of_some_atoms(name: str) -> None:
    """Every centre that sees one of them, and nothing that is another atom's."""
    atoms = SYSTEMS[name]()
    soap = _soap(atoms)
    nb = soap.neighborhoods([atoms])
    whole = jacobian(soap, nb)
    wanted = torch.arange(len(atoms))[:: max(1, len(atoms) // 3)]
    part = jacobian_of_atoms(soap, nb, wanted)
    dense = torch.zeros(2, len(atoms), len(atoms), 3, soap.n_features, dtype=torch.float64)
    for of, jac in zip(dense, (whole, part), strict=True):
        of[jac.centre, jac.atom] = jac.d_positions
    assert_allclose(dense[1][:, wanted], dense[0][:, wanted], rtol=0, atol=1e-13)  # 1/Å
    assert set(part.atom.tolist()) <= set(wanted.tolist())
    assert_allclose(part.features, whole.features[part.centres], rtol=0, atol=1e-14)
    if len(atoms) > 1:
        assert float(dense[1].abs().max()) > 1e-2  # 1/Å
    species = tuple(sorted({int(z) for z in atoms.numbers}))
    of_part, of_whole = (
        force_variances(jac, nb.numbers, species, 4).view(-1, 3, len(species)) for jac in (part, whole)
    )
    assert_allclose(of_part[wanted], of_whole[wanted], rtol=1e-12, atol=1e-13)
    others = np.setdiff1d(np.arange(len(atoms)), wanted.numpy())
    assert not bool(of_part[others].any())


def test_strain_alone() -> None:
    soap = _soap(phosphate())
    nb = soap.neighborhoods([phosphate()])
    whole = jacobian(soap, nb)
    q, strain = strain_jacobian(soap, nb, torch.tensor([2, 9]))
    assert_allclose(q, whole.features[[2, 9]], rtol=0, atol=1e-14)
    assert_allclose(strain, whole.d_strain[[2, 9]], rtol=0, atol=1e-13)


def test_parts_are_near_each_other_and_fill_their_memory() -> None:
    """So that few centres see a part: 512 atoms in any order, parts of a cutoff's size."""
    atoms = rattled_silicon(4)
    atoms = atoms[np.random.default_rng(0).permutation(len(atoms))]
    soap = _soap(atoms)
    nb = soap.neighborhoods([atoms])
    parts = list(module._parts(soap, atoms, nb, 2e6))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(atoms)))
    assert 10 < len(parts) < len(atoms) / 10
    seen = [len(jacobian_of_atoms(soap, nb, part).centres) / len(part) for part in parts[:5]]
    assert max(seen) < 12  # centres an atom; 17 neighbours each
    single = isolated_atom()
    assert len(list(module._parts(_soap(single), single, _soap(single).neighborhoods([single]), 1.0))) == 1


def test_variances_of_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, root = (torch.from_numpy(rng.normal(size=shape)) for shape in ((11, 7), (7, 7)))
    c = root @ root.T
    monkeypatch.setattr(variances_module, "ROWS", 4)
    assert_allclose(weights_variances(a[:, :5], a[:, 5:], c), (a @ c @ a.T).diagonal(), rtol=1e-12)


def test_a_large_structure_is_predicted_in_parts(monkeypatch: pytest.MonkeyPatch, model: object) -> None:
    from conftest import alloy

    from mfgp import MultiFidelityGP

    assert isinstance(model, MultiFidelityGP)
    atoms: Atoms = alloy(7, repeat=2)
    expected = model.predict(atoms, "high")
    monkeypatch.setattr(module, "BYTES", 1e5)
    found = model.predict(atoms, "high")
    assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-9)  # eV/Å
    assert_allclose(found.forces_std, expected.forces_std, rtol=1e-6)
    assert_allclose(found.stress_std, expected.stress_std, rtol=1e-6)
    assert found.energy_std == pytest.approx(expected.energy_std, rel=1e-6)
