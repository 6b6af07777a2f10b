"""The steps of a fit: which labels count and how much, reference energies, baselines, levels, hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose

from mfgp import ConfigError, DataError, FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.fit import features as features_module
from mfgp.fit.features import Features
from mfgp.fit.fitting import reference_energies
from mfgp.gp.hyperparameters import AutoregressiveGP, Evidence, LevelNoise
from mfgp.gp.observations import SHEAR, components, labelled_rows
from mfgp.gp.statistics import Statistics
from mfgp.gp.training import initialise, maximise_evidence, noise_floor
from mfgp.learning_curve import first_of_top, joint, learning_curve

QUICK = {"optimise": False}


def settings(**sections: object) -> FitConfig:
    return FitConfig(descriptor=DESCRIPTOR, **({"model": {"zeta": 2, "n_inducing": 40}} | sections))  # type: ignore[arg-type]


def test_rows_are_scaled_by_root_n_and_given_sigmas(two_levels: FrameSet) -> None:
    """A frame's own energy_sigma is that of its total energy, as gap_fit has it."""
    frame = two_levels.frames[0]
    design = torch.arange(19 * 3, dtype=torch.float64).reshape(19, 3)
    rows = labelled_rows(frame, design, torch.ones(19, dtype=torch.float64), SHEAR)
    assert set(rows) == {"energy", "forces", "virial"}
    assert_allclose(rows["energy"][0].numpy(), design[:1].numpy() / 2, rtol=0, atol=1e-12)  # 4 atoms
    assert frame.energy is not None
    assert frame.stress is not None
    assert_allclose(rows["energy"][1].numpy(), [(frame.energy - 1) / 2], rtol=0, atol=1e-12)
    virial, factor = -frame.atoms.get_volume() * frame.stress, components(SHEAR).numpy()
    assert_allclose(rows["virial"][0].numpy(), design[-6:].numpy() / 2 * factor[:, None], rtol=0, atol=1e-12)
    assert_allclose(rows["virial"][1].numpy(), (virial - 1) / 2 * factor, rtol=0, atol=1e-12)
    atoms = label(frame.atoms, "low")
    atoms.info |= {"energy_sigma": 0.01, "force_sigma": 0.2}
    own = read_frames({"low": [atoms]}).frames[0]
    given = labelled_rows(own, design, torch.zeros(19, dtype=torch.float64), SHEAR)
    assert set(given) == {"given", "virial"}
    assert_allclose(given["given"][0][0].numpy(), design[0].numpy() / 0.01, rtol=0, atol=1e-9)
    assert_allclose(given["given"][0][1].numpy(), design[1].numpy() / 0.2, rtol=0, atol=1e-9)


def test_a_precise_frame_is_fitted_more_closely(two_levels: FrameSet) -> None:
    def residual(sigma: float) -> float:
        data = [label(f.atoms, "low") for f in two_levels.training().of("low")]
        data[0].info["energy_sigma"] = sigma
        model = MultiFidelityGP.fit(read_frames({"low": data}), settings(training=QUICK), progress=False)
        return abs(model.predict(data[0]).energy - data[0].info["REF_energy"])

    assert residual(1e-6) < 1e-4 < residual(10.0)


def test_reference_energies_of_a_higher_level_move_as_little_as_the_data_allow() -> None:
    def frame(symbols: str, energy: float) -> Atoms:
        atoms = Atoms(symbols, positions=np.arange(3 * len(Atoms(symbols))).reshape(-1, 3) * 2.0)
        atoms.info["REF_energy"] = energy
        return atoms

    low = [frame("H2", -2.0), frame("O2", -20.0), frame("H2O", -12.0)]  # H -1, O -10
    high = [frame("H2O", -12.0 + 3.0)]
    frames = read_frames({"low": low, "high": high})
    reference = reference_energies(frames, (1, 8), [], torch.zeros(2, 0)).numpy()
    assert_allclose(reference[0], [-1.0, -10.0], rtol=0, atol=1e-9)
    assert_allclose(reference[1] - reference[0], [3.0 * 2 / 5, 3.0 / 5], rtol=0, atol=1e-9)  # along (2, 1), 2a + b = 3


def test_three_levels_recover_the_ratio_of_the_lower_two(two_levels: FrameSet) -> None:
    middle = [label(alloy(i), "low") for i in range(12)]
    for atoms in middle:
        atoms.info["fidelity"] = "middle"
        atoms.info["REF_energy"] *= 1.1
        atoms.arrays["REF_forces"] *= 1.1
        atoms.info["REF_stress"] *= 1.1
    data = {level: [label(f.atoms, level) for f in two_levels.training().of(level)] for level in ("low", "high")}
    frames = read_frames({"low": data["low"], "middle": middle, "high": data["high"]})
    model = MultiFidelityGP.fit(frames, settings(), progress=False)
    assert_allclose(model.prior.rho[0].numpy(), 1.1, rtol=0, atol=1e-2)  # what the labels were multiplied with
    by_species = settings(model={"zeta": 2, "n_inducing": 30, "rho": "species"})
    assert MultiFidelityGP.fit(frames, by_species, progress=False).prior.rho.shape == (2, 2)


def test_one_level_is_a_plain_sparse_gp(two_levels: FrameSet) -> None:
    one = FrameSet(("low",), tuple(two_levels.of("low")))
    model = MultiFidelityGP.fit(one, settings(), progress=False)
    assert model.prior.rho.shape == (0, 2)
    test = label(alloy(300), "low")
    assert_allclose(model.predict(test).forces, test.arrays["REF_forces"], rtol=0, atol=0.5)


def test_fixed_rho_is_delta_learning(two_levels: FrameSet) -> None:
    model = MultiFidelityGP.fit(
        two_levels, settings(model={"zeta": 2, "n_inducing": 30, "rho": {"fixed": 1.0}}), progress=False
    )
    assert_allclose(model.prior.rho.numpy(), 1.0, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="fixed"):
        MultiFidelityGP.fit(two_levels, settings(model={"rho": {"fixed": [1.0, 1.0]}}), progress=False)


@pytest.mark.filterwarnings("ignore:too few structures to calibrate")
def test_a_baseline_that_is_the_truth_takes_over(two_levels: FrameSet) -> None:
    """EMT below labels that are EMT: coefficient 1, and errors that only the baseline can explain away."""
    few = FrameSet(("low",), tuple(two_levels.of("low")[:3]))
    config = settings(baselines=[{"name": "emt"}], training={"max_iterations": 40})
    with_emt = MultiFidelityGP.fit(few, config, progress=False)
    without = MultiFidelityGP.fit(few, settings(), progress=False)
    test = label(alloy(301), "low")

    def error(model: MultiFidelityGP) -> float:
        return float(np.abs(model.predict(test).forces - test.arrays["REF_forces"]).max())

    assert error(with_emt) < 0.05 * error(without)
    assert with_emt.hyperparameters()["baselines"]["low"]["emt"] == pytest.approx(1.0, abs=0.02)
    p = with_emt.predict(test)
    assert p.stress is not None
    assert_allclose(p.stress, test.info["REF_stress"], rtol=0, atol=2e-3)
    assert_allclose(p.energies.sum(), p.energy, rtol=0, atol=1e-9)


def test_baseline_forces_are_the_gradient_and_calculators_can_be_handed_over(two_levels: FrameSet) -> None:
    config = settings(
        baselines=[{"name": "mine", "from_level": "high", "coefficient": {"mean": 0.5, "std": 0.2}}, {"name": "zbl"}],
        training=QUICK,
    )
    with pytest.raises(ConfigError, match="mine"):
        MultiFidelityGP.fit(two_levels, config, progress=False)
    model = MultiFidelityGP.fit(two_levels, config, baselines={"mine": EMT()}, progress=False)
    atoms, step = alloy(302), 1e-4
    forces = model.predict(atoms, "high").forces
    moved = [atoms.copy(), atoms.copy()]
    moved[0].positions[1, 2] += step
    moved[1].positions[1, 2] -= step
    up, down = (model.predict(a, "high", uncertainty="none").energy for a in moved)
    assert_allclose(forces[1, 2], -(up - down) / (2 * step), rtol=0, atol=1e-6)
    assert model.hyperparameters()["baselines"]["low"]["mine"] == 0.0  # not used below `high`


def test_levels_below_a_baseline_know_nothing_of_it(two_levels: FrameSet) -> None:
    """Stress labels there, and elements that it does not cover."""

    class WithoutStress(Calculator):
        implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

        def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
            super().calculate(atoms, *args, **kwargs)
            asked.append(len(atoms))
            self.results = {"energy": 1.0, "forces": np.zeros((len(atoms), 3))}

    asked: list[int] = []
    frames = FrameSet(
        two_levels.levels, (*two_levels.of("low"), *(replace(f, stress=None) for f in two_levels.of("high")))
    )
    config = settings(baselines=[{"name": "mine", "from_level": "high"}], training=QUICK)
    model = MultiFidelityGP.fit(frames, config, baselines={"mine": WithoutStress()}, progress=False)
    assert len(asked) == len(frames.training().of("high"))
    assert model.predict(alloy(302), "low").stress is not None
    assert model.predict(alloy(302), "high").stress is None


def test_evidence_is_at_a_maximum_and_the_energy_ratio_is_bounded(two_levels: FrameSet, config: FitConfig) -> None:
    model = MultiFidelityGP.fit(two_levels, config, progress=False)
    ratio = (model.noise.noise[:, 0] / model.noise.noise[:, 1]).numpy()
    assert (ratio <= 0.1 * (1 + 1e-4)).all()  # and what float64 needs
    objective = Evidence(model.noise, model.prior)
    arguments = (model.statistics, model.basis.species_index(), model.column_std)
    best = objective(*arguments).item()
    for factor in (0.5, 2.0):
        scale = model.prior.scale.clone()
        model.prior.set_scale(scale * factor)
        assert objective(*arguments).item() < best
        model.prior.set_scale(scale)


def test_noise_free_labels_do_not_break_the_optimiser() -> None:
    """Exactly linear labels: noises fall to their floors, and nothing loses definiteness."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(400, 12, dtype=torch.float64, generator=generator)
    statistics = Statistics(12)
    statistics.add(0, {"forces": (a, a @ torch.ones(12, dtype=torch.float64))})
    prior, noise = AutoregressiveGP(1, (6,), 2, "scalar"), LevelNoise(1, (0.005, 0.05, 0.05), 0.1)
    initialise(prior, noise, statistics, 11)
    index, std = torch.zeros(11, dtype=torch.long), torch.ones(1, 1, dtype=torch.float64)
    result = maximise_evidence(Evidence(noise, prior), statistics, index, std, 200)
    assert np.isfinite(result.evidence)
    assert noise.noise[0, 1].item() < 1e-3
    assert noise.noise[0, 1].item() >= noise_floor(statistics, 0, "forces")


def test_an_energy_noise_far_below_its_initial_ratio_costs_what_the_prior_says() -> None:
    """Five e-folds below cost 12.5 nats at each level: more than ten energies gain that are interpolated exactly."""
    prior, noise = AutoregressiveGP(2, (6,), 2, "scalar"), LevelNoise(2, (0.005, 0.05, 0.05))
    objective = Evidence(noise, prior)
    before = objective.log_prior().item()
    values = noise.noise.detach().clone()
    values[:, 0] *= math.exp(-5.0)
    noise.set_noise(values)
    assert objective.log_prior().item() == pytest.approx(before - 2 * 12.5, rel=1e-9)


def test_stored_rows_are_those_computed_afresh(two_levels: FrameSet, config: FitConfig) -> None:
    kept = Features.build(two_levels, config, keep_rows=True)
    fresh = Features(kept.soap, kept.basis, kept.device)
    atoms = two_levels.frames[0].atoms
    for _ in range(2):
        assert torch.equal(kept.rows(atoms), fresh.rows(atoms))
        assert torch.equal(kept.functionals(atoms).prior, fresh.functionals(atoms).prior)


def argon(seed: int) -> Atoms:
    """A rattled crystal whose environments are all much alike."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Ar", "fcc", a=rng.uniform(5.1, 5.5), cubic=True) * ((1, 1, 2), (2, 2, 1), (1, 1, 1))[seed % 3]
    strain = rng.normal(0.0, 0.015, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
    atoms.positions += rng.normal(0.0, 0.15, atoms.positions.shape)
    work = atoms.copy()
    work.calc = LennardJones(sigma=3.4, epsilon=0.104, rc=9.0, smooth=True)
    atoms.info["REF_energy"], atoms.arrays["REF_forces"] = work.get_potential_energy(), work.get_forces()
    return atoms


def test_large_amplitudes_are_not_paid_for_by_the_energies() -> None:
    """The evidence chose 10^4 eV, where float64 carries energies with a noise of 10 times that of the forces only."""
    config = FitConfig(
        descriptor={"r_cut": 5.0, "n_max": 6, "l_max": 3, "sigma": 0.6, "radial_scaling": {"r0": 1.0, "m": 2}},
        model={"zeta": 2, "n_inducing": 40},
        training={"calibrate": False},
    )
    model = MultiFidelityGP.fit(read_frames({"lj": [argon(i) for i in range(20)]}), config, progress=False)
    noise = model.hyperparameters()["noise"]["lj"]
    assert noise["energy"] < 0.12 * noise["forces"]
    held_out = [argon(i) for i in range(100, 112)]
    per_atom = np.array([a.info["REF_energy"] / len(a) for a in held_out])
    found = np.array([model.predict(a, uncertainty="none").energy / len(a) for a in held_out])
    assert np.abs(found - per_atom).mean() < 0.001 < 0.02 < per_atom.std()  # eV


class NoStress(EMT):
    """EMT that does not know its stress."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (declared so by ASE)

    def calculate(self, *args: object, **kwargs: object) -> None:
        super().calculate(*args, **kwargs)
        self.results.pop("stress", None)


def test_a_baseline_without_stress_leaves_stress_unknown(two_levels: FrameSet) -> None:
    config = settings(baselines=[{"name": "mine"}], training=QUICK)
    data = [label(f.atoms, "low") for f in two_levels.training().of("low")]
    with pytest.raises(DataError, match=r"frame 0 .*baseline gives no stress"):
        MultiFidelityGP.fit(read_frames({"low": data}), config, baselines={"mine": NoStress()}, progress=False)
    for atoms in data:
        del atoms.info["REF_stress"]
    model = MultiFidelityGP.fit(read_frames({"low": data}), config, baselines={"mine": NoStress()}, progress=False)
    p = model.predict(data[0])
    assert p.stress is None
    assert p.stress_std is None
    assert p.forces_std is not None
    assert np.isfinite(p.forces_std).all()


@pytest.mark.parametrize(
    "change", [lambda s: -s, lambda s: s + np.array([0.02, 0.02, 0.02, 0, 0, 0])], ids=["sign", "Pulay"]
)
def test_stresses_that_contradict_the_forces_are_not_followed(change: Callable[[np.ndarray], np.ndarray]) -> None:
    """A fit that followed them called the forces noise, and had a much smaller evidence."""
    frames = [label(alloy(i), "low") for i in range(24)]
    for atoms in frames:
        atoms.info["REF_stress"] = change(atoms.info["REF_stress"])
    config = settings(model={"zeta": 2, "n_inducing": 90}, training={"calibrate": False})
    model = MultiFidelityGP.fit(read_frames({"low": frames}), config, progress=False)
    noise = model.hyperparameters()["noise"]["low"]
    assert noise["virial"] > 0.2  # eV per sqrt(atom)
    assert noise["forces"] < 0.1  # eV/Å


@pytest.mark.parametrize("calibrate", [True, False])
def test_no_fit_of_a_learning_curve_makes_what_others_find_made(
    calibrate: bool, two_levels: FrameSet, config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their seconds are compared: the first took those of the rows that calibration needs."""
    settings = config.model_copy(update={"training": config.training.model_copy(update={"calibrate": calibrate})})
    training, held_out = two_levels.training(), two_levels.held_out()
    made: list[str] = []
    for module, name in ((features_module, "functionals"), (features_module, "functional_rows")):
        monkeypatch.setattr(module, name, _counted(getattr(module, name), made))
    stages: list[str] = []
    points = learning_curve(
        training,
        held_out,
        settings,
        [5],
        {"joint": joint},
        report=lambda stage, *rest: stages.append(stage + str(len(made))),
    )
    assert [p.variant for p in points] == ["joint"]
    assert [s for s in stages if s.startswith("rows")][-1] == f"rows{len(made)}"


def test_a_learning_curve_makes_no_rows_of_structures_that_no_fit_sees(
    two_levels: FrameSet, config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.model_copy(update={"training": config.training.model_copy(update={"calibrate": False})})
    high, made = two_levels.levels[-1], list[str]()
    training, held_out = (FrameSet((high,), tuple(f.of(high))) for f in (two_levels.training(), two_levels.held_out()))
    monkeypatch.setattr(features_module, "functional_rows", _counted(features_module.functional_rows, made))
    learning_curve(training, held_out, settings, [2, 3], {"joint": joint})
    assert len(made) == len(first_of_top(training, 3, seed=0)) < len(training)


def _counted(function: Callable[..., Any], made: list[str]) -> Callable[..., Any]:
    def counting(*arguments: Any, **options: Any) -> Any:
        made.append(function.__name__)
        return function(*arguments, **options)

    return counting
