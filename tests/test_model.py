"""MultiFidelityGP: physics of its predictions, and the data that a fit takes or refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from conftest import alloy, label
from gpytorch.distributions import MultivariateNormal
from numpy.testing import assert_allclose

from mfgp import (
    ConfigError,
    DataError,
    FitConfig,
    FrameSet,
    ModelFileError,
    MultiFidelityGP,
    read_frames,
)

CLUSTER = Atoms("Cu2Au", positions=[[0, 0, 0], [2.4, 0.2, 0.1], [0.9, 2.2, 0.7]])
SLAB = alloy(7)
SLAB.pbc = (True, True, False)
SYSTEMS = {"crystal": alloy(6), "cluster": CLUSTER, "slab": SLAB}


def energy(model: MultiFidelityGP, atoms: Atoms, level: str) -> float:
    return model.predict(atoms, level, uncertainty="none").energy


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("level", ["low", "high"])
def test_forces_are_minus_the_gradient(model: MultiFidelityGP, name: str, level: str) -> None:
    atoms, step = SYSTEMS[name], 1e-4
    forces = model.predict(atoms, level).forces
    assert np.abs(forces).max() > 0.1  # eV/Å: something to get wrong
    for atom in range(2):
        for axis in range(3):
            moved = [atoms.copy(), atoms.copy()]
            moved[0].positions[atom, axis] += step
            moved[1].positions[atom, axis] -= step
            slope = (energy(model, moved[0], level) - energy(model, moved[1], level)) / (2 * step)
            assert_allclose(forces[atom, axis], -slope, rtol=0, atol=1e-6)


def test_stress_is_the_strain_derivative(model: MultiFidelityGP) -> None:
    atoms, step = SYSTEMS["crystal"], 3e-5
    stress = model.predict(atoms, "high").stress
    assert stress is not None
    assert np.abs(stress).max() > 1e-3  # eV/Å^3
    for row, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        values = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * step
            strain[j, i] += 0.5 * sign * step
            work = atoms.copy()
            work.set_cell(atoms.cell.array @ strain.T, scale_atoms=True)
            values.append(energy(model, work, "high"))
        assert_allclose(stress[row], (values[0] - values[1]) / (2 * step) / atoms.get_volume(), rtol=0, atol=1e-7)


def test_invariance_extensivity_and_separation(model: MultiFidelityGP) -> None:
    atoms = SYSTEMS["crystal"]
    p = model.predict(atoms, "high")
    turned = atoms.copy()
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    q = model.predict(turned, "high")
    assert_allclose(q.energy, p.energy, rtol=0, atol=1e-9)
    assert_allclose(np.linalg.norm(q.forces, axis=1), np.linalg.norm(p.forces, axis=1), rtol=0, atol=1e-9)
    assert q.energy_std == pytest.approx(p.energy_std, abs=1e-9)
    assert_allclose(np.linalg.norm(q.forces_std), np.linalg.norm(p.forces_std), rtol=0.5)
    double = model.predict(atoms * (2, 1, 1), "high")
    assert_allclose(double.energy, 2 * p.energy, rtol=0, atol=1e-9)
    assert_allclose(double.forces, np.tile(p.forces, (2, 1)), rtol=0, atol=1e-9)
    far = CLUSTER.copy()
    far.positions += (100.0, 0, 0)
    pair = CLUSTER + far
    assert_allclose(energy(model, pair, "low"), 2 * energy(model, CLUSTER, "low"), rtol=0, atol=1e-9)
    order = np.random.default_rng(0).permutation(len(atoms))
    assert_allclose(model.predict(atoms[order], "high").forces, p.forces[order], rtol=0, atol=1e-9)


def test_local_energies_add_up_and_kinds_of_uncertainty_agree(model: MultiFidelityGP) -> None:
    for atoms in SYSTEMS.values():
        full = model.predict(atoms, "high")
        cheap = model.predict(atoms, "high", uncertainty="energies")
        assert_allclose(full.energies.sum(), full.energy, rtol=0, atol=1e-9)
        assert full.energy_std == pytest.approx(cheap.energy_std, abs=1e-10)
        assert_allclose(full.energies_std, cheap.energies_std, rtol=0, atol=1e-10)
        assert cheap.forces_std is None
        assert full.forces_std is not None
        assert full.forces_std.shape == (len(atoms), 3)
        assert (full.forces_std >= 0).all()
        assert (full.stress is None) == (full.stress_std is None) == (not atoms.pbc.any())
        plain = model.predict(atoms, "high", uncertainty="none")
        assert plain.energy_std is None
        assert_allclose(plain.energy, full.energy, rtol=0, atol=1e-9)  # reverse pass and rows: two ways to the mean
        assert_allclose(plain.forces, full.forces, rtol=0, atol=1e-9)
        assert_allclose(plain.energies, full.energies, rtol=0, atol=1e-9)


def test_covariance_is_a_multivariate_normal_with_the_same_marginals(model: MultiFidelityGP) -> None:
    atoms = SYSTEMS["crystal"]
    p, d = model.predict(atoms, "high"), model.distribution(atoms, "high")
    assert isinstance(d, MultivariateNormal)
    std = d.stddev.detach().numpy()
    assert_allclose(float(d.mean[0]), p.energy, rtol=0, atol=1e-9)
    assert_allclose(d.mean[1:-6].numpy().reshape(-1, 3), p.forces, rtol=0, atol=1e-9)
    assert_allclose(-d.mean[-6:].numpy() / atoms.get_volume(), p.stress, rtol=0, atol=1e-9)
    assert_allclose(std[0], p.energy_std, rtol=0, atol=1e-7)
    assert_allclose(std[1:-6].reshape(-1, 3), p.forces_std, rtol=0, atol=1e-7)
    assert_allclose(std[-6:] / atoms.get_volume(), p.stress_std, rtol=0, atol=1e-7)


def test_two_levels_beat_the_high_level_alone(two_levels: FrameSet, config: FitConfig, model: MultiFidelityGP) -> None:
    alone = MultiFidelityGP.fit(
        FrameSet(("high",), tuple(two_levels.of("high"))), config, features=model.features, progress=False
    )
    frames = two_levels.held_out().frames
    truth = np.concatenate([f.forces.reshape(-1) for f in frames if f.forces is not None])

    def error(m: MultiFidelityGP) -> float:
        return float(np.abs(np.concatenate([m.predict(f.atoms).forces.reshape(-1) for f in frames]) - truth).mean())

    assert error(model) < 0.7 * error(alone)


def test_same_seed_same_model(two_levels: FrameSet, config: FitConfig, model: MultiFidelityGP) -> None:
    again = MultiFidelityGP.fit(two_levels, config, progress=False)
    assert torch.equal(again.weights, model.weights)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_fit_where_gradients_are_switched_off(
    two_levels: FrameSet, config: FitConfig, model: MultiFidelityGP, without: type[torch.no_grad]
) -> None:
    with without():
        again = MultiFidelityGP.fit(two_levels, config)
    assert_allclose(again.weights.numpy(), model.weights.numpy(), rtol=0, atol=1e-9)
    again.update({"high": [label(alloy(90), "high")]})


def test_features_must_match_the_configuration_and_cover_the_elements(
    two_levels: FrameSet, model: MultiFidelityGP
) -> None:
    other = model.config.model_copy(update={"model": model.config.model.model_copy(update={"zeta": 3})})
    with pytest.raises(ConfigError, match="another descriptor or zeta"):
        MultiFidelityGP.fit(two_levels, other, features=model.features, progress=False)
    silver = label(alloy(76), "low")
    silver.symbols[0] = "Ag"
    with pytest.raises(DataError, match=r"frame 0 .*no inducing point for Ag"):
        MultiFidelityGP.fit(read_frames({"low": [silver]}), model.config, features=model.features, progress=False)
    few = model.config.model_copy(update={"model": model.config.model.model_copy(update={"n_inducing": 1})})
    with pytest.raises(ConfigError, match="1 inducing points for 2 elements"):
        MultiFidelityGP.fit(two_levels, few, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_error(two_levels: FrameSet, model: MultiFidelityGP) -> None:
    with pytest.raises(ConfigError, match="set device: auto or cpu"):
        MultiFidelityGP.fit(two_levels, model.config.model_copy(update={"device": "cuda"}), progress=False)


def test_test_frames_are_never_trained_on(two_levels: FrameSet, model: MultiFidelityGP) -> None:
    assert model.data["high"]["frames"] == 5
    only_test = two_levels.held_out()
    with pytest.raises(DataError, match="held out"):
        MultiFidelityGP.fit(only_test, model.config, progress=False)


def test_unusable_structures_are_named(model: MultiFidelityGP) -> None:
    with pytest.raises(DataError, match="not seen Ni"):
        model.predict(Atoms("Ni"))
    with pytest.raises(DataError, match="unknown level 'ccsd'; this model has low, high"):
        model.predict(CLUSTER, "ccsd")
    with pytest.raises(DataError, match=r"0\.3"):
        model.predict(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.1]]))


def test_wrong_kinds_of_argument_are_named(two_levels: FrameSet, model: MultiFidelityGP, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ase\.io\.read"):
        model.predict("new.extxyz")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not a NoneType"):
        model.predict(None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="list with a Frame"):
        model.predict(list(two_levels.frames))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="read_frames returns, not a list"):
        MultiFidelityGP.fit([alloy(0)], progress=False)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="there is no folder"):
        model.save(tmp_path / "missing" / "m.mfgp")


def test_masked_forces_and_partial_labels(two_levels: FrameSet, config: FitConfig, model: MultiFidelityGP) -> None:
    """A spoiled force that is masked changes nothing; one that is not masked does."""
    settings = config.model_copy(update={"training": config.training.model_copy(update={"optimise": False})})

    def weights(spoil: float, mask: bool) -> torch.Tensor:
        data = {level: [label(f.atoms, level) for f in two_levels.training().of(level)] for level in ("low", "high")}
        frame = data["high"][0]
        frame.arrays["REF_forces"][1] += spoil
        if mask:
            frame.arrays["force_mask"] = np.array([1, 0, 1, 1])
        return MultiFidelityGP.fit(read_frames(data), settings, features=model.features, progress=False).weights

    assert_allclose(weights(5.0, True).numpy(), weights(0.0, True).numpy(), rtol=0, atol=1e-9)
    assert float((weights(5.0, False) - weights(0.0, False)).abs().max()) > 1e-2


def test_isolated_atoms_fix_the_reference_energies(two_levels: FrameSet, config: FitConfig) -> None:
    atoms = []
    for symbol, value in (("Cu", -3.0), ("Au", 2.0)):
        single = Atoms(symbol)
        single.info |= {"REF_energy": value, "config_type": "IsolatedAtom"}
        atoms.append(single)
    data = {level: [label(f.atoms, level) for f in two_levels.training().of(level)] for level in ("low", "high")}
    data["low"] += atoms
    fitted = MultiFidelityGP.fit(read_frames(data), config, progress=False)
    assert energy(fitted, Atoms("Cu"), "low") == pytest.approx(-3.0, abs=1e-3)
    assert energy(fitted, Atoms("Au"), "low") == pytest.approx(2.0, abs=1e-3)


def test_what_a_fit_would_ignore_is_an_error(two_levels: FrameSet, config: FitConfig) -> None:
    with pytest.raises(ConfigError, match="'lj': the configuration names none"):
        MultiFidelityGP.fit(two_levels, config, baselines={"lj": EMT()}, progress=False)
    with pytest.raises(ConfigError, match="config is a dict"):
        MultiFidelityGP.fit(two_levels, {"model": {"zeta": 2}}, progress=False)  # type: ignore[arg-type]
