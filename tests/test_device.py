"""The CUDA branch of everything that a user asks of a model against the CPU: on a real device, or a pretended one.

Means differ by what the table of the radial functions is off on the CPU (1e-9), standard deviations by that times what
their differences lose.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.md.verlet import VelocityVerlet
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.data.costs import CostModel
from mfgp.doctor.fit import label_scores
from mfgp.evaluation import evaluate
from mfgp.gp.objectives import Evidence
from mfgp.predict.prediction import Prediction
from mfgp.selection.greedy import select

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:a structure repeats later")]

LJ = {"lj": LennardJones(sigma=2.3, epsilon=0.02, rc=5.0, smooth=True)}
CONFIG = FitConfig(
    descriptor={**DESCRIPTOR, "contraction": 0.9999},
    model={"zeta": 2, "n_inducing": 30, "rho": "species"},
    baselines=[{"name": "lj"}],
    pair={"r_cut": 4.0, "n": 4},
    training={"max_iterations": 4, "calibrate": True},
    device="cpu",
)
ON_CUDA = CONFIG.model_copy(update={"device": "cuda"})


@pytest.fixture(scope="module")
def frames() -> FrameSet:
    """Two levels with all that labels can carry: own sigmas, a mask, moments, a frame without stress.

    Their noise keeps the precision of the weights well-conditioned, so that rounding stays rounding.
    """
    low = [label(alloy(i), "low") for i in range(6)]
    high = [label(alloy(i), "high") for i in range(4)]
    rng = np.random.default_rng(0)
    for atoms in low + high:
        atoms.arrays["REF_forces"] += rng.normal(0, 0.1, (4, 3))  # eV/Å
        atoms.info["REF_energy"] += rng.normal(0, 0.1)  # eV
        atoms.info["REF_stress"] += rng.normal(0, 0.01, 6)  # eV/Å^3
    low[0].info["energy_sigma"], low[1].info["force_sigma"] = 0.05, 0.1
    mask = np.ones(4)
    mask[2] = 0
    low[2].arrays["force_mask"] = mask
    del low[3].info["REF_stress"]
    for atoms in high:
        atoms.arrays["REF_magmoms"] = 1.0 + 0.1 * np.sin(atoms.positions.sum(1))
    return read_frames({"low": low, "high": high})


@pytest.fixture(scope="module")
def host(frames: FrameSet) -> MultiFidelityGP:
    """Fitted on the CPU."""
    return MultiFidelityGP.fit(frames, CONFIG, baselines=LJ, progress=False)


@pytest.fixture(scope="module")
def stored(host: MultiFidelityGP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the CPU in a file that asks for CUDA."""
    path = tmp_path_factory.mktemp("model") / "cuda.mfgp"
    asking = copy.copy(host)
    asking.config = ON_CUDA
    asking.save(path)
    return path


@pytest.fixture
def there(stored: Path, cuda: torch.device) -> MultiFidelityGP:
    """The same model on the device."""
    model = MultiFidelityGP.load(stored, baselines=LJ)
    assert model.weights.device == cuda
    return model


def agree(found: Prediction, expected: Prediction, tolerance: float = 1e-8, of_std: float = 1e-6) -> None:
    """Means to `tolerance` (eV, eV/Å, eV/Å^3), standard deviations to `of_std` of the largest.

    Local energies to ten times that: what of them belongs to e0, only its prior (10 eV) says.
    """
    for f in fields(Prediction):
        a, b = getattr(found, f.name), getattr(expected, f.name)
        assert (a is None) == (b is None), f.name
        if b is None or isinstance(b, str | bool):
            assert a == b
        elif f.name == "std_by_level":
            assert list(a) == list(b)
            for name in a:
                assert_allclose(a[name].energy_std, b[name].energy_std, rtol=of_std)
                largest = float(
                    expected.forces_std.max()
                )  # shares of forces that symmetry makes zero are rounding alone
                assert_allclose(a[name].forces_std, b[name].forces_std, rtol=0, atol=of_std * largest)
        else:
            scale = of_std * float(np.nanmax(b)) if f.name.endswith("_std") else tolerance
            scale *= 10.0 if f.name == "energies" else 1.0
            assert_allclose(a, b, rtol=0, atol=scale, err_msg=f.name)


def test_a_fit(host: MultiFidelityGP, frames: FrameSet, cuda: torch.device) -> None:
    """A few steps of the optimiser, for it magnifies rounding; then the calibration."""
    found = MultiFidelityGP.fit(frames, ON_CUDA, baselines=LJ, progress=False)
    tensors = [found.weights, found.covariances, *found.basis.points, found.columns.reference, found.column_std]
    tensors += [m.gram for m in found.statistics.moments.values()]
    assert {t.device for t in tensors} == {cuda}
    assert torch.equal(found.basis.rank.cpu(), host.basis.rank)
    assert found.training is not None
    assert host.training is not None
    assert found.training.evidence == pytest.approx(host.training.evidence, rel=1e-6)
    for ours, theirs in zip(found.statistics.moments.values(), host.statistics.moments.values(), strict=True):
        assert_allclose(ours.gram.cpu(), theirs.gram, rtol=0, atol=1e-8 * float(theirs.gram.abs().max()))
    assert found.calibration is not None
    assert host.calibration is not None
    for ours, theirs in zip(found.calibration.fitted, host.calibration.fitted, strict=True):
        assert ours.z_std_before == pytest.approx(theirs.z_std_before, rel=1e-3)
        assert ours.z_std_after == pytest.approx(theirs.z_std_after, rel=1e-3)
    agree(found.predict(alloy(50)), host.predict(alloy(50)), tolerance=1e-4, of_std=1e-3)


def test_the_evidence_and_its_slopes(host: MultiFidelityGP, there: MultiFidelityGP) -> None:
    slopes = []
    for model in (copy.deepcopy(host), there):
        objective = Evidence(model.noise, model.prior)
        objective.requires_grad_(True)
        value = objective(model.statistics, model.basis.species_index(), model.column_std)
        value.backward()
        found = [p.grad.cpu().flatten() for p in objective.parameters() if p.grad is not None]
        slopes.append(torch.cat([value.detach().cpu()[None], *found]))
        objective.requires_grad_(False)
    assert len(slopes[0]) > 8
    assert_allclose(slopes[1], slopes[0], rtol=1e-7)


@pytest.mark.parametrize("uncertainty", ["full", "by_level", "energies", "local", "none"])
def test_predictions(host: MultiFidelityGP, there: MultiFidelityGP, uncertainty: str) -> None:
    """At every level; then many structures at once, one of them without a cell and one of another size."""
    atoms = alloy(60)
    for level in host.levels:
        for calibrated in (True, False):
            options = {"uncertainty": uncertainty, "calibrated": calibrated}
            agree(there.predict(atoms, level, **options), host.predict(atoms, level, **options))
    free = alloy(61)
    free.pbc = False
    many = [atoms, free, bulk("Cu", cubic=True) * (2, 1, 1)]
    pairs = zip(there.predict(many, uncertainty=uncertainty), host.predict(many, uncertainty=uncertainty), strict=True)
    for ours, theirs in pairs:
        agree(ours, theirs)


def test_a_structure_in_parts(host: MultiFidelityGP, there: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = alloy(31, repeat=2)
    expected = host.predict(atoms, "high")
    monkeypatch.setattr("mfgp.gp.functionals.BYTES", 1e5)
    agree(there.predict(atoms, "high"), expected)


def test_sampled_and_joint_standard_deviations(host: MultiFidelityGP, there: MultiFidelityGP) -> None:
    atoms = alloy(62)
    ours, theirs = (m.predictor("high", draws=3, seed=1)(atoms, "sampled") for m in (there, host))
    agree(ours, theirs, of_std=1e-5)
    ours, theirs = (m.predictor("high").magnetic_moments(atoms) for m in (there, host))
    assert_allclose(ours, theirs, rtol=0, atol=1e-8)
    config = there.distribution(atoms).covariance_matrix.cpu(), host.distribution(atoms).covariance_matrix
    assert_allclose(config[0], config[1], rtol=0, atol=1e-8 * float(config[1].abs().max()))


def test_combinations_of_energies(host: MultiFidelityGP, there: MultiFidelityGP) -> None:
    structures = [alloy(60), alloy(61), bulk("Cu", cubic=True) * (2, 1, 1)]
    for level in host.levels:
        ours, theirs = (m.energy_combination(structures, [1, -2, 0.5], level) for m in (there, host))
        assert isinstance(ours.covariance, np.ndarray)
        assert_allclose(ours.energies, theirs.energies, rtol=0, atol=1e-8)
        assert_allclose(ours.covariance, theirs.covariance, rtol=0, atol=1e-6 * theirs.covariance.max())
        assert ours.std == pytest.approx(theirs.std, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-8), ({"dtype": "float32"}, 1e-4), ({"compression": 1e-3}, 1e-6)],
    ids=["float64", "float32", "compression"],
)
def test_dynamics(host: MultiFidelityGP, there: MultiFidelityGP, options: dict[str, object], tolerance: float) -> None:
    """Steps within the skin and beyond it; energies eV, positions Å."""
    ends = []
    for model in (there, host):
        atoms = alloy(63)
        atoms.calc = model.calculator("high", **{"uncertainty": "energies", "skin": 0.05, **options})
        atoms.set_velocities(np.random.default_rng(0).normal(0, 0.03, (4, 3)))
        VelocityVerlet(atoms, 2 * units.fs).run(4)
        ends.append((atoms.positions, atoms.get_potential_energy(), atoms.get_stress(), atoms.calc))
    assert ends[0][3].predictor.pairs.searches == ends[1][3].predictor.pairs.searches > 1
    for ours, theirs in zip(ends[0][:3], ends[1][:3], strict=True):
        assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_left_out_structures(host: MultiFidelityGP, there: MultiFidelityGP, frames: FrameSet) -> None:
    ours, theirs = (list(m.leave_one_out(frames)) for m in (there, host))
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs, strict=True):
        assert_allclose(a.error, b.error, rtol=0, atol=1e-6)
        assert_allclose(a.weight_variance, b.weight_variance, rtol=1e-4, atol=1e-10)
        assert_allclose(a.residual_variance, b.residual_variance, rtol=1e-4, atol=1e-10)
    ours, theirs = (label_scores(m, frames) for m in (there, host))
    assert_allclose([s.score for s in ours], [s.score for s in theirs], rtol=1e-4)


def test_update_and_files(host: MultiFidelityGP, there: MultiFidelityGP, tmp_path: Path) -> None:
    """New calculations on the device; the model saved there and read on the CPU."""
    assert there.soap.contraction is not None
    assert {m.device.type for m in there.soap.contraction.matrices} == {"cpu"}  # constants of the descriptor
    new = label(alloy(70), "high")
    new.arrays["REF_magmoms"] = np.ones(4)
    ours, theirs = (m.update({"high": [new]}) for m in (there, copy.copy(host)))
    assert {m.gram.device for m in ours.statistics.moments.values()} == {ours.weights.device}
    agree(ours.predict(new), theirs.predict(new))
    ours.config = CONFIG
    ours.save(tmp_path / "model.mfgp")
    back = MultiFidelityGP.load(tmp_path / "model.mfgp", baselines=LJ)
    assert back.weights.device.type == "cpu"
    agree(back.predict(new), theirs.predict(new))
    agree(ours.predict(new), theirs.predict(new))


def test_selection(host: MultiFidelityGP, there: MultiFidelityGP) -> None:
    pool = [alloy(80 + i, rattle=0.05 + 0.03 * i) for i in range(3)]
    costs, weights = CostModel.fixed({"low": 0.01, "high": 0.03}), {"forces": 1.0, "energy": 1.0}
    ours, theirs = (select(m, pool, costs=costs, n=2, weights=weights) for m in (there, host))
    assert [(c.index, c.level) for c in ours.choices] == [(c.index, c.level) for c in theirs.choices]
    assert len(ours.choices) == 2


def test_evaluation(host: MultiFidelityGP, there: MultiFidelityGP) -> None:
    held = read_frames({"high": [label(alloy(90 + i), "high") for i in range(2)]})
    ours, theirs = (evaluate(m, held, "high").to_json() for m in (there, host))
    assert ours["forces"]["mae"] == pytest.approx(theirs["forces"]["mae"], rel=1e-6)
    assert ours["forces"]["nll"] == pytest.approx(theirs["forces"]["nll"], rel=1e-5)


def test_the_calculator_with_all_standard_deviations(host: MultiFidelityGP, there: MultiFidelityGP) -> None:
    found = []
    for model in (there, host):
        atoms = alloy(60)
        atoms.calc = model.calculator("high", uncertainty="full")
        found.append((atoms.get_forces(), atoms.get_stress(), atoms.calc.results["forces_std"]))
    for ours, theirs in zip(*found, strict=True):
        assert isinstance(ours, np.ndarray)
        assert_allclose(ours, theirs, rtol=0, atol=1e-6 * float(np.abs(theirs).max()))
