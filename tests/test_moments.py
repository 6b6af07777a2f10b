"""Magnetic moments on the way to the user: fits, files, updates, calculators, commands; and iron of LMFP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import alloy, label
from magnetic_frames import features, magnetic, moments_of, training_frames
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from mfgp import DataError, FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.calibration import Calibration
from mfgp.calibration.moments import leave_moments_out
from mfgp.cli import app
from mfgp.data.trajectories import relatives
from mfgp.datasets import load_lmfp
from mfgp.frames import to_atoms
from mfgp.gp.observations import local_features
from mfgp.gp.site_moments import (
    SiteStatistics,
    site_posterior,
)


@pytest.fixture(scope="module")
def fitted(config: FitConfig) -> MultiFidelityGP:
    return MultiFidelityGP.fit(training_frames(), config, progress=False)


@pytest.fixture(scope="module")
def calibrated(fitted: MultiFidelityGP, tmp_path_factory: pytest.TempPathFactory) -> MultiFidelityGP:
    path = tmp_path_factory.mktemp("site_moments") / "m.mfgp"
    fitted.save(path)
    model = MultiFidelityGP.load(path)
    model.calibrate(training_frames())
    return model


def test_moments_are_left_out_by_whole_structures(fitted: MultiFidelityGP) -> None:
    """Both coppers of a structure together, against the statistics without them; a rounded copy goes with its structure."""
    frames = training_frames()
    found = [part for part in leave_moments_out(fitted, frames, frames, relatives(frames)) if part.species == 29]
    assert [part.level for part in found] == ["high"] * 14
    numbers, q = features(fitted, alloy(3))
    phi, columns = local_features(fitted.basis, q, numbers)[numbers == 29], dict(fitted.basis.blocks())
    phi = phi[:, columns[list(fitted.basis.species).index(29)]]
    without = SiteStatistics()
    for seed in set(range(14)) - {3}:
        atoms = alloy(seed)
        without.add(fitted.basis, 1, *features(fitted, atoms), torch.from_numpy(moments_of(atoms)))
    posterior = fitted.sites[1, 29]
    mean, std = site_posterior(without.moments[1, 29], posterior.amplitude, posterior.noise).predict(phi)
    error = mean.numpy() - moments_of(alloy(3))[:2]
    assert np.abs(error).max() > 0.01  # Bohr magnetons: something to get wrong
    assert_allclose(found[3].error, error, rtol=0, atol=1e-6)
    assert_allclose(found[3].std, std, rtol=0, atol=1e-6)
    copy = magnetic(3, "high")
    copy.positions += 1e-7
    both = FrameSet(frames.levels, (*frames.frames, *read_frames({"high": [copy]}).frames))
    assert [
        len(part.error) for part in leave_moments_out(fitted, both, both, relatives(both)) if part.species == 29
    ].count(4) == 1


def test_calibrated_standard_deviations_of_moments(calibrated: MultiFidelityGP, tmp_path: Path) -> None:
    """They are the posterior's own times the factor, are kept in the file, and old files have none."""
    calibration, atoms, copper = calibrated.calibration, alloy(735), alloy(735).numbers == 29
    assert calibration is not None
    factor = calibration.moment_factors(1, np.array([29]))[0]
    assert abs(factor - 1.0) > 0.02
    raw, scaled = (calibrated.predict(atoms, "high", calibrated=c) for c in (False, True))
    assert_allclose(scaled.magmoms_std[copper], factor**0.5 * raw.magmoms_std[copper], rtol=1e-12)
    assert_allclose(scaled.magmoms, raw.magmoms, rtol=0, atol=0)
    assert_allclose(calibrated.predictor("high").magnetic_moments(atoms)[1], scaled.magmoms_std, rtol=0, atol=1e-9)
    calibrated.save(tmp_path / "m.mfgp")
    again = MultiFidelityGP.load(tmp_path / "m.mfgp")
    assert_allclose(again.predict(atoms, "high").magmoms_std, scaled.magmoms_std, rtol=1e-9)
    old = {name: value for name, value in calibration.to_json().items() if name != "moments"}
    assert Calibration.from_json(old).moments == ()
    assert calibrated.predictor("high").raw_moments == []
    assert calibrated.predictor("high", calibrated=False).raw_moments == ["Cu", "Au"]


def test_a_fit_learns_moments(fitted: MultiFidelityGP) -> None:
    errors, spread, inside = [], [], []
    for seed in range(700, 712):
        atoms = alloy(seed)
        p, copper = fitted.predict(atoms, "high"), atoms.numbers == 29
        expected = moments_of(atoms)
        errors.append(np.abs(p.magmoms - expected)[copper])
        inside.append((np.abs(p.magmoms - expected) < 1.96 * p.magmoms_std)[copper])
        spread.append(expected[copper])
    assert np.std(spread) > 0.1
    constant = np.mean(np.abs(np.concatenate(spread) - np.mean(spread)))
    assert np.mean(errors) < 0.5 * constant
    assert np.mean(inside) > 0.85
    assert fitted.predict(alloy(1), "low").magmoms is None


def test_moments_are_kept_in_the_file_and_grow_by_updates(fitted: MultiFidelityGP, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m.mfgp")
    again, atoms = MultiFidelityGP.load(tmp_path / "m.mfgp"), alloy(720)
    before = fitted.predict(atoms, "high")
    after = again.predict(atoms, "high")
    assert_allclose(after.magmoms, before.magmoms, rtol=0, atol=1e-10)
    assert_allclose(after.magmoms_std, before.magmoms_std, rtol=0, atol=1e-10)
    again.update({"high": [magnetic(720, "high")]})
    assert again.site_statistics.moments[1, 29].count == fitted.site_statistics.moments[1, 29].count + 2
    updated = again.predict(atoms, "high")
    copper = atoms.numbers == 29
    error_before = np.abs(before.magmoms - moments_of(atoms))[copper].max()
    assert np.abs(updated.magmoms - moments_of(atoms))[copper].max() < error_before
    assert fitted.site_statistics.moments[1, 29].count == 28  # the model it was copied from is unchanged


@pytest.mark.parametrize("uncertainty", ["full", "energies", "none"])
def test_calculator(fitted: MultiFidelityGP, uncertainty: str) -> None:
    atoms = alloy(730)
    expected = fitted.predict(atoms, "high").magmoms
    atoms.calc = fitted.calculator("high", uncertainty=uncertainty)
    atoms.get_forces()
    assert ("magmoms" in atoms.calc.results) == (uncertainty == "full")  # otherwise not paid for until asked
    assert_allclose(atoms.get_magnetic_moments(), expected, rtol=0, atol=1e-9)
    assert_allclose(atoms.get_magnetic_moment(), expected.sum(), rtol=0, atol=1e-9)
    assert atoms.calc.results["magmoms_std"].shape == (4,)
    atoms.calc = fitted.calculator("low", uncertainty=uncertainty)
    with pytest.raises(PropertyNotImplementedError, match="no magnetic moments"):
        atoms.calc.get_property("magmoms", atoms)


def test_commands(fitted: MultiFidelityGP, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m.mfgp")
    ase.io.write(tmp_path / "data.extxyz", [magnetic(i, "high") for i in (740, 741)])
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "m.mfgp"), str(tmp_path / "data.extxyz")])
    assert result.exit_code == 0, result.output
    assert "moment of Cu" in result.stdout
    out = tmp_path / "predicted.extxyz"
    result = CliRunner().invoke(
        app, ["predict", str(tmp_path / "m.mfgp"), str(tmp_path / "data.extxyz"), "-o", str(out)]
    )
    assert result.exit_code == 0, result.output
    written = ase.io.read(out, 0)
    assert_allclose(written.calc.results["magmoms"], fitted.predict(magnetic(740, "high"), "high").magmoms, atol=1e-6)
    assert written.arrays["magmoms_std"].shape == (4,)


def test_commands_say_how_sure_moments_are(
    calibrated: MultiFidelityGP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ase.io.write(tmp_path / "data.extxyz", [magnetic(740, "high")])
    for factors, said in (
        (calibrated.calibration.moments, "deviations: calibrated\n"),
        ((), "of Cu, Au the posterior's"),
    ):
        monkeypatch.setattr(calibrated, "calibration", replace(calibrated.calibration, moments=factors))
        calibrated.save(tmp_path / "m.mfgp")
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "m.mfgp"), str(tmp_path / "data.extxyz")])
        assert result.exit_code == 0, result.output
        assert said in result.output
    result = CliRunner().invoke(app, ["info", str(tmp_path / "m.mfgp")])
    assert "moments on Cu" in result.stdout


def test_elements_without_moments_are_nan_in_what_predict_writes(
    calibrated: MultiFidelityGP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both arrays, on their atoms alone; neither where no atom has any. Such a file is read for its own labels."""
    monkeypatch.setattr(calibrated, "sites", {key: site for key, site in calibrated.sites.items() if key[1] == 29})
    monkeypatch.setattr(
        calibrated,
        "site_statistics",
        SiteStatistics({k: m for k, m in calibrated.site_statistics.moments.items() if k[1] == 29}),
    )
    calibrated.save(tmp_path / "m.mfgp")
    mixed, gold = label(alloy(750), "high"), label(alloy(751), "high")
    gold.symbols[:] = "Au"
    ase.io.write(tmp_path / "in.extxyz", [mixed, gold])
    command = ["predict", str(tmp_path / "m.mfgp"), str(tmp_path / "in.extxyz"), "-o", str(tmp_path / "out.extxyz")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    first, second = ase.io.read(tmp_path / "out.extxyz", ":")
    expected, copper = calibrated.predict(mixed, "high"), mixed.numbers == 29
    assert 0 < copper.sum() < 4
    for found, wanted in (
        (first.calc.results["magmoms"], expected.magmoms),
        (first.arrays["magmoms_std"], expected.magmoms_std),
    ):
        assert np.isnan(found[~copper]).all()
        assert_allclose(found[copper], wanted[copper], rtol=0, atol=1e-6)  # Bohr magnetons
    assert "magmoms" not in second.calc.results
    assert "magmoms_std" not in second.arrays
    assert [f.magmoms for f in read_frames({"high": tmp_path / "out.extxyz"})] == [None, None]


def test_reading() -> None:
    atoms = label(alloy(1), "high")
    atoms.calc = SinglePointCalculator(atoms, magmoms=np.arange(4.0))
    (frame,) = read_frames({"high": [atoms]})
    assert_allclose(frame.magmoms, np.arange(4.0))  # type: ignore[arg-type]
    assert_allclose(to_atoms(frame).arrays["REF_magmoms"], np.arange(4.0))
    atoms.set_array("REF_magmoms", np.array([1.0, np.nan, 0.0, 0.0]))
    with pytest.raises(DataError, match="NaN magmoms"):
        read_frames({"high": [atoms]})


@pytest.mark.slow
def test_iron_of_lmfp_tells_its_charge() -> None:
    """Validation structures, delithiated ones among them: Fe2+ (3.7) and Fe3+ (4.2 Bohr magnetons) are told apart."""
    data = {"mag": load_lmfp("mag", "train")}
    config = FitConfig(preset="oxide", model={"n_inducing": 300}, training={"optimise": False, "calibrate": False})
    model = MultiFidelityGP.fit(read_frames(data), config, progress=False)
    found, expected = [], []
    for atoms in load_lmfp("mag", "validation"):
        iron = atoms.numbers == 26
        found.append(model.predict(atoms, "mag").magmoms[iron])
        expected.append(atoms.calc.results["magmoms"][iron])
    m, y = np.concatenate(found), np.concatenate(expected)
    assert 0.1 < np.mean(y > 3.95) < 0.9  # both charges are there
    assert np.mean((m > 3.95) == (y > 3.95)) > 0.95
    assert np.abs(m - y).mean() < 0.1
