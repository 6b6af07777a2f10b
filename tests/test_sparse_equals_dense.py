"""The sparse posterior is the dense one where theory says so: all environments, or a feature space that is complete."""

from __future__ import annotations

from conftest import DESCRIPTOR, alloy
from dense_reference import dense_posterior, strip
from numpy.testing import assert_allclose

from mfgp import (
    FitConfig,
    FrameSet,
    MultiFidelityGP,
)


def test_sparse_equals_dense_for_energies_with_all_environments(two_levels: FrameSet) -> None:
    config = FitConfig(descriptor=DESCRIPTOR, model={"zeta": 3, "n_inducing": 500}, training={"optimise": False})
    model = MultiFidelityGP.fit(strip(two_levels, ("energy",)), config, progress=False)
    atoms = two_levels.training().frames[3].atoms  # an inducing structure: no Nystrom residual in its energy
    mean, cov = dense_posterior(model, two_levels.training(), atoms, slice(0, 1))
    p = model.predict(atoms, "high", calibrated=False)
    assert_allclose(p.energy, mean[0], rtol=0, atol=1e-6)
    assert_allclose(p.energy_std, cov[0, 0] ** 0.5, rtol=0, atol=1e-6)


def test_sparse_equals_dense_with_forces_when_the_feature_space_is_complete(two_levels: FrameSet) -> None:
    """zeta = 1 and M >= D: the linear kernel is exact, for new structures, energies, forces and virials alike."""
    small = {"r_cut": 4.0, "n_max": 2, "l_max": 1, "sigma": 0.5}
    config = FitConfig(
        descriptor=small, model={"zeta": 1, "n_inducing": 100}, training={"optimise": False, "noise_energy": 0.05}
    )
    model = MultiFidelityGP.fit(two_levels, config, progress=False)
    atoms = alloy(50)
    mean, cov = dense_posterior(model, two_levels.training(), atoms, slice(None))
    p = model.predict(atoms, "high", calibrated=False)
    assert p.forces_std is not None
    assert p.stress_std is not None
    # eV, eV/Å: what environments whose conditional variance is under the floor of 1e-12 could still add
    assert_allclose(p.energy, mean[0], rtol=0, atol=1e-4)
    assert_allclose(p.forces.reshape(-1), mean[1:-6], rtol=0, atol=1e-4)
    assert_allclose(p.energy_std, cov[0, 0] ** 0.5, rtol=0, atol=1e-4)
    assert_allclose(p.forces_std.reshape(-1), cov.diagonal()[1:-6] ** 0.5, rtol=0, atol=1e-4)
    assert_allclose(p.stress_std * atoms.get_volume(), cov.diagonal()[-6:] ** 0.5, rtol=0, atol=1e-4)
