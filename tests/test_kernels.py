"""The environment kernel, its derivatives, and the covariances of energies, forces and virials."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import DESCRIPTOR, alloy
from numpy.testing import assert_allclose

from descriptors import SOAP, Jacobian, SOAPConfig, jacobian
from mfgp.gp.kernels import (
    EnvironmentKernel,
    functional_covariance,
    functional_variances,
    kernel_curvature,
    kernel_slope,
)

SPECIES = (29, 79)
VARIANCE = {29: 0.7, 79: 1.3}
SYSTEMS = [alloy(0), Atoms("CuAuCu", positions=[[0, 0, 0], [2.3, 0.3, 0], [0.2, 2.4, 0.5]])]


def prepared(atoms: Atoms) -> tuple[Jacobian, torch.Tensor]:
    soap = SOAP(SOAPConfig(**DESCRIPTOR), SPECIES)
    nb = soap.neighborhoods([atoms])
    return jacobian(soap, nb), nb.numbers


@pytest.mark.parametrize("zeta", [1, 2, 4])
def test_slope_and_curvature_are_derivatives_of_the_power(zeta: int) -> None:
    dot = torch.linspace(0.1, 1.0, 7, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad((dot**zeta).sum(), dot, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), dot)[0] if zeta > 1 else torch.zeros_like(dot)
    assert_allclose(kernel_slope(dot, zeta).detach().numpy(), first.detach().numpy(), rtol=0, atol=1e-13)
    assert_allclose(kernel_curvature(dot, zeta).detach().numpy(), second.detach().numpy(), rtol=0, atol=1e-13)


def test_gpytorch_kernel_separates_species_and_has_a_positive_outputscale() -> None:
    q = torch.nn.functional.normalize(torch.rand(5, 4, dtype=torch.float64), dim=1)
    x = torch.cat([torch.tensor([[6.0], [6], [8], [8], [8]], dtype=torch.float64), q], dim=1)
    kernel = EnvironmentKernel(zeta=3, outputscale=2.5)
    k = kernel(x).to_dense().detach()
    expected = 2.5 * (q @ q.T) ** 3 * (x[:, :1] == x[:, 0])
    assert_allclose(k.numpy(), expected.numpy(), rtol=0, atol=1e-12)
    assert_allclose(kernel(x, diag=True).detach().numpy(), np.full(5, 2.5), rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(k).min()) > -1e-12
    kernel.raw_outputscale.data.fill_(-40.0)
    assert kernel.outputscale.item() > 0
    with pytest.raises(ValueError, match="integer"):
        EnvironmentKernel(zeta=1.5)


@pytest.mark.parametrize("zeta", [1, 2, 4])
def test_covariances_are_derivatives_of_the_energy_covariance(zeta: int) -> None:
    """d2 Cov[E(A), E(B)] / (dr_A dr_B) and / (d strain dr) by central differences."""
    a, b = SYSTEMS
    jb, nb = prepared(b)

    def covariance(moved: Atoms) -> np.ndarray:
        ja, na = prepared(moved)
        return functional_covariance(ja, na, jb, nb, VARIANCE, zeta).numpy()

    full, step = covariance(a), 1e-4
    assert np.abs(full[1:-6, 1:-6]).max() > 1e-2
    for atom, axis in ((0, 0), (2, 1)):
        plus, minus = a.copy(), a.copy()
        plus.positions[atom, axis] += step
        minus.positions[atom, axis] -= step
        expected = -(covariance(plus)[0] - covariance(minus)[0]) / (2 * step)  # force = - derivative of the energy row
        assert_allclose(full[1 + 3 * atom + axis], expected, rtol=0, atol=1e-6)
    for row, (i, j) in ((0, (0, 0)), (3, (1, 2))):
        strained = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * sign * step
            strain[j, i] += 0.5 * sign * step
            work = a.copy()
            work.set_cell(a.cell.array @ (np.eye(3) + strain).T, scale_atoms=True)
            strained.append(covariance(work)[0])
        assert_allclose(full[-6 + row], -(strained[0] - strained[1]) / (2 * step), rtol=0, atol=1e-6)


@pytest.mark.parametrize("atoms", SYSTEMS, ids=["crystal", "molecule"])
@pytest.mark.parametrize("zeta", [1, 2, 4])
def test_variances_are_the_diagonal_and_the_matrix_is_positive(atoms: Atoms, zeta: int) -> None:
    jac, numbers = prepared(atoms)
    full = functional_covariance(jac, numbers, jac, numbers, VARIANCE, zeta)
    split = functional_variances(jac, numbers, SPECIES, zeta)
    summed = split @ torch.tensor([VARIANCE[z] for z in SPECIES], dtype=torch.float64)
    assert float(summed[1:-6].max()) > 1e-2
    assert_allclose(full.diagonal().numpy(), summed.numpy(), rtol=0, atol=1e-10)
    assert_allclose(full.numpy(), full.T.numpy(), rtol=0, atol=1e-10)
    assert float(torch.linalg.eigvalsh(full).min()) > -1e-9
