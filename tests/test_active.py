"""Learning on the fly with EMT: calls where the model is unsure, and dynamics that go on with what was learned."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.emt import EMT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from conftest import alloy, label

from mfgp import ConfigError, DataError, FrameSet, MultiFidelityGP, read_frames
from mfgp.active import OnTheFly
from mfgp.frames import to_atoms


class High(Calculator):
    """The `high` level of conftest."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012
    calls = 0

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        done = label(Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc), "high")
        energy = done.info["REF_energy"]
        self.results = {"energy": energy, "free_energy": energy, "forces": done.arrays["REF_forces"]}
        self.results["stress"] = done.info["REF_stress"]
        self.calls += 1


class Broken(EMT):
    def calculate(self, *args: Any, **kwargs: Any) -> None:
        raise CalculationFailed("no convergence")


@pytest.fixture
def own(model: MultiFidelityGP, tmp_path: Path) -> MultiFidelityGP:
    """A copy that may be updated."""
    model.save(tmp_path / "model.mfgp")
    return MultiFidelityGP.load(tmp_path / "model.mfgp")


def start(otf: OnTheFly, rattle: float = 0.25) -> tuple[Atoms, VelocityVerlet]:
    atoms = alloy(400, rattle=rattle)
    atoms.calc = otf.calculator
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(0))
    return atoms, VelocityVerlet(atoms, timestep=2 * units.fs)


def largest(model: MultiFidelityGP, atoms: Atoms, level: str) -> float:
    return float(model.predict(atoms, level).forces_std.max())


def test_dynamics_label_where_the_model_is_unsure(own: MultiFidelityGP, model: MultiFidelityGP, tmp_path: Path) -> None:
    first = alloy(400, rattle=0.25)
    threshold = 0.8 * largest(own, first, "high")
    calculator = High()
    otf = OnTheFly(own, {"high": calculator}, threshold, directory=tmp_path / "otf")
    atoms, dynamics = start(otf)
    otf.attach(dynamics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stay above the threshold
        dynamics.run(12)
    assert len(otf.log) == 13
    assert 0 < len(otf.calls) == calculator.calls < 13
    assert all(call["std"] > threshold > 0 for call in otf.calls)
    assert otf.calls[0]["std_after"] < otf.calls[0]["std"]
    error = model.predict(first, "high").forces - label(first, "high").arrays["REF_forces"]
    assert otf.calls[0]["force_rmse"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-9)  # before it was learned
    np.testing.assert_allclose(atoms.get_forces(), own.predict(atoms, "high").forces, rtol=0, atol=1e-9)
    assert len(own.seen) == len(model.seen) + len(otf.calls)
    labels = read_frames(tmp_path / "otf" / "labels.extxyz")
    assert len(labels) == len(otf.labels)
    np.testing.assert_allclose(to_atoms(labels.frames[0]).positions, first.positions, rtol=0, atol=1e-7)
    steps = [json.loads(line) for line in (tmp_path / "otf" / "log.jsonl").read_text().splitlines()]
    assert steps == otf.log
    assert otf.plot().read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("cheap", "chosen"), [("low", "low"), ("high", "high")])
def test_the_level_is_chosen_by_gain_per_cost(own: MultiFidelityGP, cheap: str, chosen: str) -> None:
    costs = {"low": 1.0, "high": 1.0, cheap: 1e-6}
    threshold = 0.999 * largest(own, alloy(400, rattle=0.25), "high")  # any label helps that much
    otf = OnTheFly(own, {"low": EMT(), "high": High}, threshold, costs=costs)
    atoms, _ = start(otf)
    atoms.get_forces()
    otf()
    assert otf.calls[0]["level"] == chosen
    assert len(otf.calls) == 1


def test_a_failing_calculation_is_written_down_and_the_dynamics_go_on(own: MultiFidelityGP) -> None:
    otf = OnTheFly(own, {"high": Broken()}, threshold=1e-6, patience=3)
    _, dynamics = start(otf)
    otf.attach(dynamics)
    with pytest.warns(
        UserWarning, match=r"calculation at high failed: CalculationFailed: no convergence.*3 steps"
    ) as caught:
        dynamics.run(5)
    assert len(caught) == 1
    assert [(c["step"], c["outcome"]) for c in otf.calls] == [(0, "failed"), (3, "failed")]
    assert "CalculationFailed: no convergence" in otf.calls[0]["why"]
    assert len(otf.log) == 6


def test_an_optimiser_and_local_energies(own: MultiFidelityGP) -> None:
    otf = OnTheFly(own, {"low": EMT()}, threshold=1e-3, target="low", uncertainty="energies", max_calls=2, patience=1)
    atoms = alloy(401, rattle=0.2)
    atoms.calc = otf.calculator
    optimiser = BFGS(atoms, logfile=None)
    otf.attach(optimiser)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimiser.run(fmax=0.05, steps=5)
    assert len(otf.calls) == 2  # max_calls
    assert otf.quantity == "energies_std"
    assert otf.log[0]["std_after"] < otf.log[0]["std"]


def test_another_spin_state_is_told_and_a_directory_holds_one_run(own: MultiFidelityGP, tmp_path: Path) -> None:
    otf = OnTheFly(own, {"low": EMT()}, 1e-6, target="low", spin={"Cu": [4.0]}, directory=tmp_path / "otf")
    atoms, _ = start(otf)
    atoms.get_forces()
    with pytest.warns(UserWarning, match="calculation at low was rejected: the calculator gives no magnetic moments"):
        otf()
    with pytest.raises(ConfigError, match=r"otf holds an earlier run \(log\.jsonl, calls\.jsonl\)"):
        OnTheFly(own, {"low": EMT()}, 0.1, directory=tmp_path / "otf")


def test_mistakes_are_told(own: MultiFidelityGP) -> None:
    with pytest.raises(ConfigError, match="costs: nothing says what low costs"):
        OnTheFly(own, {"low": EMT(), "high": High()}, 0.1)
    with pytest.raises(ValueError, match="unknown level 'best'"):
        OnTheFly(own, {"best": EMT()}, 0.1)
    for threshold in (0.0, -0.1, float("nan"), float("inf"), "0.1"):
        with pytest.raises(ConfigError, match=r"threshold is .* give a positive number of eV/Å"):
            OnTheFly(own, {"low": EMT()}, threshold)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nothing computed yet"):
        OnTheFly(own, {"low": EMT()}, 0.1)()


def test_while_it_looks_away_a_rising_std_is_still_seen(own: MultiFidelityGP) -> None:
    otf = OnTheFly(own, {"low": EMT()}, threshold=1e-6, target="low", patience=1000)
    atoms = alloy(402, rattle=0.02)
    atoms.calc = otf.calculator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels do not help
        for rattle in (0.02, 0.02, 0.35):
            atoms.positions = alloy(402, rattle=rattle).positions
            atoms.get_forces()
            otf()
    assert otf.log[2]["std"] > 1.1 * otf.log[0]["std_after"]
    assert [c["step"] for c in otf.calls] == [0, 2]


@pytest.mark.filterwarnings("ignore:too few structures to calibrate")
def test_a_refit_takes_inducing_points_from_the_labels(own: MultiFidelityGP, two_levels: FrameSet) -> None:
    otf = OnTheFly(own, {"low": EMT()}, threshold=1e-6, target="low", frames=two_levels, refit_every=1, max_calls=1)
    atoms, _ = start(otf, rattle=0.35)
    first = atoms.get_forces()
    with pytest.warns(UserWarning, match="labels do not make the model surer"):
        otf()
    assert otf.model is not own
    assert len(otf.model.seen) == len(own.seen)  # which was updated first
    assert not np.array_equal(otf.model.basis.points[0], own.basis.points[0])
    np.testing.assert_allclose(atoms.get_forces(), otf.model.predict(atoms, "low").forces, rtol=0, atol=1e-9)
    assert np.abs(atoms.get_forces() - first).max() > 1e-3  # eV/Å
    with pytest.raises(ConfigError, match="refit_every needs frames"):
        OnTheFly(own, {"low": EMT()}, 0.1, refit_every=2)


@pytest.mark.filterwarnings("ignore:too few structures to calibrate", "ignore:forces of", "ignore:forces_std is")
def test_a_label_that_inducing_points_do_not_carry_is_followed_by_a_refit(
    own: MultiFidelityGP, two_levels: FrameSet
) -> None:
    own.calibrate(two_levels.training())
    otf = OnTheFly(own, {"low": EMT()}, threshold=1e-6, target="low", frames=two_levels, refit_every=50, max_calls=1)
    atoms = alloy(400)
    atoms.symbols[:] = "Cu"
    atoms.set_cell(0.85 * atoms.cell, scale_atoms=True)
    atoms.calc = otf.calculator
    atoms.get_forces()
    with pytest.warns(UserWarning, match="cannot describe 1 of the structures"):
        otf()
    assert otf.model is not own
    assert len(otf.model.basis.points[0]) > len(own.basis.points[0])


@pytest.mark.filterwarnings("ignore:too few structures to calibrate", "ignore:forces of")
def test_with_the_first_data_a_label_is_followed_by_a_calibration_on_all(
    own: MultiFidelityGP, two_levels: FrameSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.calibrate(two_levels.training())
    before, calibrated_on = own.calibration, []
    calibrate = MultiFidelityGP.calibrate
    monkeypatch.setattr(
        MultiFidelityGP, "calibrate", lambda m, frames: (calibrated_on.append(len(frames)), calibrate(m, frames))
    )
    otf = OnTheFly(own, {"low": EMT()}, threshold=1e-6, target="low", frames=two_levels, max_calls=1)
    start(otf, rattle=0.2)[0].get_forces()
    with pytest.warns(UserWarning, match="labels do not make the model surer"):
        otf()
    assert calibrated_on == [len(two_levels.training().frames) + 1]
    assert otf.model is own
    assert own.calibration != before
    other = read_frames({t: [label(alloy(977), t)] for t in ("low", "high")})
    with pytest.raises(DataError, match="frames are not in the training data"):
        OnTheFly(own, {"low": EMT()}, 0.1, frames=other)
