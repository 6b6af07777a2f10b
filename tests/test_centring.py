"""Energies against the mean environment: the same functions in other parameters, and what float64 gains by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import alloy
from numpy.testing import assert_allclose
from test_evidence import joint_precision
from test_fitting import argon

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.frames import to_atoms
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.centring import (
    centred,
    centred_prior,
    centred_statistics,
    mean_features,
    mean_kernels,
    recentred,
    uncentred,
    uncentred_covariance,
)
from mfgp.gp.kernels import kernel
from mfgp.gp.statistics import Statistics

F64 = torch.float64


def design(model: MultiFidelityGP, seed: int) -> torch.Tensor:
    atoms = alloy(seed)
    return torch.cat([model.features.rows(atoms), model.columns.rows_of(atoms, [])], dim=1)


def test_centred_rows_of_centred_weights_are_the_same_functions(model: MultiFidelityGP) -> None:
    """a'.w' = a.w, a'^T C' a' = a^T C a for random weights and covariances, energies and derivatives alike."""
    centre, rows = model.features.centre, design(model, 60)
    new = centred(rows.clone(), centre)
    root = torch.randn(rows.shape[1], rows.shape[1], dtype=F64, generator=torch.Generator().manual_seed(0))
    weights, covariance = root[0], root @ root.T
    assert_allclose(new @ weights, rows @ uncentred(weights, centre), rtol=0, atol=1e-10)
    back = uncentred_covariance(covariance, centre)
    assert_allclose(((new @ covariance) * new).sum(1), ((rows @ back) * rows).sum(1), rtol=1e-10)
    assert_allclose(recentred(uncentred(weights, centre), centre), weights, rtol=0, atol=1e-12)
    assert torch.equal(new[1:], rows[1:])
    assert float((new[0] - rows[0]).abs().max()) > 0.1


def test_the_mean_is_that_of_the_inducing_environments(model: MultiFidelityGP) -> None:
    """Before whitening: the mean kernel with them, species by species."""
    basis = model.basis
    raw = mean_kernels(basis)
    for index, columns in basis.blocks():
        z = basis.points[index]
        assert_allclose(raw[index, columns], kernel(z, z, basis.zeta).mean(0), rtol=0, atol=1e-10)
        others = [c for k, c in basis.blocks() if k != index]
        assert all(float(raw[index, c].abs().max()) == 0.0 for c in others)
    assert torch.equal(model.features.centre, mean_features(basis))


def test_prior_less_what_is_explained_stays(model: MultiFidelityGP) -> None:
    found = model.features.functionals(alloy(61))
    counts = model.columns.composition(alloy(61).numbers)
    moved = found.phi[:1] - counts @ model.features.centre
    prior = centred_prior(found.prior[:1], found.phi[:1], moved, model.basis)
    for phi, variance in ((found.phi[:1], found.prior[:1]), (moved, prior)):
        left = [variance[0, k] - (phi[0, c] ** 2).sum() for k, c in model.basis.blocks()]
        assert_allclose(
            left, [found.prior[0, k] - (found.phi[0, c] ** 2).sum() for k, c in model.basis.blocks()], atol=1e-9
        )
    assert float((prior - found.prior[:1]).abs().max()) > 0.1


def test_statistics_of_earlier_files_become_the_present_ones(model: MultiFidelityGP) -> None:
    rows = torch.cat([design(model, seed)[:1] for seed in range(60, 75)])
    y = torch.linspace(-1.0, 1.0, len(rows), dtype=F64)
    old, new = Statistics(rows.shape[1]), Statistics(rows.shape[1])
    old.add(0, {"energy": (rows, y)})
    each = torch.cat([centred(row[None].clone(), model.features.centre) for row in rows])
    new.add(0, {"energy": (each, y)})
    found = centred_statistics(old, model.features.centre).moments[0, "energy"]
    assert_allclose(found.gram, new.moments[0, "energy"].gram, rtol=0, atol=1e-9)
    assert_allclose(found.projection, new.moments[0, "energy"].projection, rtol=0, atol=1e-9)
    assert (found.square, found.count) == (new.moments[0, "energy"].square, len(rows))


def test_alike_environments_leave_digits(model: MultiFidelityGP) -> None:
    """The largest eigenvalue of P at the same amplitude and noise, energies as they are and against the mean."""
    frames = read_frames({"lj": [argon(i) for i in range(8)]})
    config = FitConfig(preset="molecule", model={"n_inducing": 60}, training={"optimise": False, "calibrate": False})
    fitted = MultiFidelityGP.fit(frames, config, progress=False)
    d = block_scales(
        fitted.prior.rho, torch.tensor([100.0], dtype=F64), fitted.basis.species_index(), fitted.column_std
    )
    rows = [
        torch.cat([fitted.features.rows(f.atoms)[:1], fitted.columns.rows_of(f.atoms, [])[:1]], dim=1) for f in frames
    ]
    largest = []
    for change in (lambda row: row, lambda row: centred(row.clone(), fitted.features.centre)):
        statistics = Statistics(d.shape[2])
        statistics.add(0, {"energy": (torch.cat([change(row) for row in rows]), torch.zeros(8, dtype=F64))})
        p, _ = joint_precision(statistics, d, {(0, "energy"): torch.tensor(1e6, dtype=F64)})
        largest.append(float(torch.linalg.eigvalsh(p)[-1]))
    assert largest[1] < 0.05 * largest[0]


def test_energies_with_a_sigma_of_their_own_are_learned_in_alike_environments() -> None:
    """The evidence of the forces chose 10^4 eV, where a sigma of 0.02 eV was nothing: off by 80 meV/atom."""
    data = [argon(i) for i in range(20)]
    for atoms in data:
        atoms.info["energy_sigma"] = 0.02  # eV
    config = FitConfig(preset="molecule", model={"n_inducing": 150}, training={"calibrate": False})
    model = MultiFidelityGP.fit(read_frames({"lj": data}), config, progress=False)
    held_out = [argon(i) for i in range(100, 108)]
    per_atom = np.array([a.info["REF_energy"] / len(a) for a in held_out])
    found = np.array([model.predict(a, uncertainty="none").energy / len(a) for a in held_out])
    assert np.abs(found - per_atom).mean() < 0.006 < 0.02 < per_atom.std()  # eV


def test_e0_of_isolated_atoms_is_their_energy(two_levels: FrameSet) -> None:
    """Reported are references of atoms, not energies of the mean environment."""
    atoms = [Atoms(symbol, info={"REF_energy": energy}) for symbol, energy in (("Cu", 3.1), ("Au", 2.2))]
    training = two_levels.training()
    data = {
        "low": [*atoms, *(to_atoms(f) for f in training.of("low"))],
        "high": [to_atoms(f) for f in training.of("high")],
    }
    config = FitConfig(descriptor={"r_cut": 4.0, "n_max": 3, "l_max": 2, "sigma": 0.5}, model={"n_inducing": 60})
    model = MultiFidelityGP.fit(read_frames(data), config, progress=False)
    assert model.hyperparameters()["e0"]["low"] == pytest.approx({"Cu": 3.1, "Au": 2.2}, abs=2e-3)
