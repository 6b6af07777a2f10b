"""MultiFidelityGP: physics of its predictions, equality with dense Gaussian processes, update, data handling."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import read, write
from conftest import DESCRIPTOR, alloy, label
from gpytorch.distributions import MultivariateNormal
from numpy.testing import assert_allclose

from descriptors import jacobian
from mfgp import (
    ConfigError,
    DataError,
    FitConfig,
    FrameSet,
    ModelFileError,
    MultiFidelityGP,
    NumericalError,
    read_frames,
)
from mfgp.gp.kernels import functional_covariance

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


def dense_posterior(
    model: MultiFidelityGP, frames: FrameSet, atoms: Atoms, labelled: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of all functionals of `atoms` at the top level by the dense two-level formula.

    Energies are those against as many mean environments (centring), whose kernels with a functional are its features times
    their mean.
    `labelled` picks the functionals of each frame that carry a label.
    """
    structures = [(f.atoms, frames.levels.index(f.fidelity)) for f in frames] + [(atoms, 1)]
    jacs = [jacobian(model.soap, model.soap.neighborhoods([a])) for a, _ in structures]
    numbers = [torch.from_numpy(a.numbers.astype(np.int64)) for a, _ in structures]
    extra = [model.columns.rows(a.numbers, [], a.get_volume()) for a, _ in structures]
    scale, rho = model.prior.scale.tolist(), model.prior.rho[0].tolist()
    species, zeta, centre = model.basis.species, model.basis.zeta, model.features.centre
    phi = [model.features.rows(a) for a, _ in structures]
    counts = [e[:, : len(species)] for e in extra]  # of atoms: 0 for derivatives

    def block(i: int, j: int) -> np.ndarray:
        (_, t), (_, u) = structures[i], structures[j]
        weight = {z: scale[0] ** 2 * rho[k] ** (t + u) + scale[1] ** 2 * t * u for k, z in enumerate(species)}
        cov = functional_covariance(jacs[i], numbers[i], jacs[j], numbers[j], weight, zeta)
        w = torch.tensor([weight[z] for z in species], dtype=torch.float64)[model.basis.species_index()]
        mean_i, mean_j = counts[i] @ centre, counts[j] @ centre
        cov = cov - (phi[i] * w) @ mean_j.T - (mean_i * w) @ phi[j].T + (mean_i * w) @ mean_j.T
        for level in range(min(t, u) + 1):
            cov = cov + (extra[i] * model.column_std[level] ** 2) @ extra[j].T
        return cov.numpy()

    def pick(i: int) -> slice:
        return labelled if i < len(frames) else slice(None)

    n = len(structures)
    full = np.block([[block(i, j)[pick(i), pick(j)] for j in range(n)] for i in range(n)])
    y, noise = [], []
    for i, f in enumerate(frames):
        mean = model.columns.mean(extra[i], structures[i][1]).numpy()
        assert f.forces is not None
        assert f.stress is not None
        values = np.concatenate([[f.energy], f.forces.reshape(-1), -f.atoms.get_volume() * f.stress])
        y.append((values - mean)[labelled])
        sigma = model.noise.noise[structures[i][1]].tolist()
        root = len(f.atoms) ** 0.5
        of_virial = [sigma[2] * root] * 3 + [sigma[2] * root / 2**0.5] * 3
        sigmas = [sigma[0] * root, *[sigma[1]] * (3 * len(f.atoms)), *of_virial]
        noise.append(np.array(sigmas)[labelled] ** 2)
    m = sum(len(v) for v in y)
    k = full[:m, :m] + np.diag(np.concatenate(noise))
    mean = full[m:, :m] @ np.linalg.solve(k, np.concatenate(y)) + model.columns.mean(extra[-1], 1).numpy()
    return mean, full[m:, m:] - full[m:, :m] @ np.linalg.solve(k, full[:m, m:])


def strip(frames: FrameSet, keep: tuple[str, ...]) -> FrameSet:
    """The same training frames with only some labels."""
    data: dict[str, list[Atoms]] = {level: [] for level in frames.levels}
    for f in frames.training():
        atoms = label(f.atoms, f.fidelity)
        for name, store in (("energy", atoms.info), ("forces", atoms.arrays), ("stress", atoms.info)):
            if name not in keep:
                store.pop(f"REF_{name}")
        data[f.fidelity].append(atoms)
    return read_frames(data)


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


def test_update_equals_a_refit_at_the_same_hyperparameters(two_levels: FrameSet, model: MultiFidelityGP) -> None:
    training = two_levels.training()
    part = FrameSet(training.levels, tuple(f for i, f in enumerate(training.frames) if i not in (2, 14)))
    rest = FrameSet(training.levels, tuple(f for i, f in enumerate(training.frames) if i in (2, 14)))
    config = model.config.model_copy(update={"training": model.config.training.model_copy(update={"optimise": False})})
    updated = MultiFidelityGP.fit(part, config, features=model.features, progress=False)
    updated.columns, updated.column_std = model.columns, model.column_std
    updated.statistics = _restricted(model, part)
    updated.prior, updated.noise = copy.deepcopy(model.prior), copy.deepcopy(model.noise)
    updated.refresh()
    before = updated.predict(alloy(60)).energy
    updated.update(rest)
    assert abs(updated.predict(alloy(60)).energy - before) > 1e-6
    p, q = updated.predict(alloy(61)), model.predict(alloy(61))
    assert_allclose(p.energy, q.energy, rtol=0, atol=1e-8)
    assert_allclose(p.forces, q.forces, rtol=0, atol=1e-8)
    assert_allclose(p.energy_std, q.energy_std, rtol=0, atol=1e-7)
    assert_allclose(np.asarray(p.forces_std), np.asarray(q.forces_std), rtol=0, atol=1e-7)
    assert updated.data == model.data
    with pytest.warns(UserWarning, match="2 frames are of calculations that the model has already"):
        updated.update(rest)
    assert_allclose(updated.predict(alloy(61)).energy, q.energy, rtol=0, atol=1e-8)


def _restricted(model: MultiFidelityGP, frames: FrameSet):  # type: ignore[no-untyped-def]
    from mfgp.fit.fitting import accumulate

    return accumulate(frames, model.features, model.columns, [], model.config.training.noise_energy)


def test_update_takes_tagged_atoms_and_refuses_what_it_cannot_use(model: MultiFidelityGP) -> None:
    work = copy.deepcopy(model)
    work.update([label(alloy(70), "high")])
    assert work.data["high"]["frames"] == model.data["high"]["frames"] + 1
    weights = work.weights.clone()
    strange = label(alloy(71), "low")
    strange.symbols[0] = "Ag"
    with pytest.raises(DataError, match=r"not seen Ag; it knows Cu, Au"):
        work.update([strange])
    other = label(alloy(72), "low")
    other.info["fidelity"] = "dft"
    with pytest.raises(DataError, match="dft"):
        work.update([other])
    assert torch.equal(work.weights, weights)


def test_update_counts_a_repeated_frame_once_and_says_what_it_skips(model: MultiFidelityGP, tmp_path: Path) -> None:
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    new, held_out = label(alloy(73), "high"), label(alloy(74), "high")
    held_out.info["split"] = "test"
    one.update([new])
    with pytest.warns(UserWarning, match="repeated .* skipped: 1 frame$"):
        two.update([new, new])
    assert torch.equal(one.weights, two.weights)
    with pytest.warns(UserWarning, match=r"held out .* skipped: 1 of 1 frames"):
        one.update([held_out])
    write(tmp_path / "new.extxyz", new)  # rounds to 1e-8
    with pytest.warns(UserWarning, match="1 frames are of calculations that the model has already"):
        one.update([read(tmp_path / "new.extxyz")])
    assert torch.equal(one.weights, two.weights)
    assert one.data["high"]["frames"] == model.data["high"]["frames"] + 1


def test_update_warns_of_an_energy_in_another_unit(model: MultiFidelityGP) -> None:
    atoms = label(alloy(77), "high")
    atoms.info["REF_energy"] += 3.0  # eV: 0.75 eV/atom
    with pytest.warns(UserWarning, match=r"1 of 1 new energies .*Is it a total energy in eV"):
        copy.deepcopy(model).update({"high": [atoms]})


def test_failed_update_leaves_the_model_as_it_was(model: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch) -> None:
    work = copy.deepcopy(model)
    new = [label(alloy(75), "high")]

    def broken(*args: object) -> None:
        raise NumericalError("no")

    with monkeypatch.context() as m:
        m.setattr("mfgp.model.Posterior", broken)
        with pytest.raises(NumericalError):
            work.update(new)
    assert (work.seen, work.data) == (model.seen, model.data)
    work.update(new)
    assert work.data["high"]["frames"] == model.data["high"]["frames"] + 1


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
