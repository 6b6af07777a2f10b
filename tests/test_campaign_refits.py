"""Campaigns that have the data of their model: refits, calibrations, and what follows where a refit fails."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.io import write
from conftest import alloy
from test_campaign import N_POOL, client, folder, in_process, label_as, rows, run, start, states, with_a_fit  # noqa: F401
from typer.testing import CliRunner

from mfgp import MultiFidelityGP
from mfgp.calibration.calibration import Calibration
from mfgp.cli import app
from mfgp.errors import NumericalError
from mfgp.frames import FrameSet


@pytest.mark.usefixtures("in_process")
def test_a_refit_learns_hyperparameters_from_all_labels(folder: Path, two_levels: Any, config: Any) -> None:
    with_a_fit(folder, two_levels, config, refit_every=1, stop={"steps": 1})
    start(folder)
    run(folder)
    assert rows(folder, "SELECT kind, n_labels FROM models") == [("initial", 17), ("refit", 19)]
    first, last = (MultiFidelityGP.load(folder / "run" / "models" / f"model_000{i}.mfgp") for i in (0, 1))
    assert len(last.seen) == len(first.seen) + 2
    assert last.hyperparameters()["noise"] != first.hyperparameters()["noise"]
    command = ["campaign", "export", "-d", str(folder / "run"), "-o", str(folder / "low.extxyz")]
    assert "low.extxyz is an input" in CliRunner().invoke(app, command).output.replace("\n", "")


@pytest.mark.usefixtures("in_process")
def test_an_update_of_a_campaign_that_has_its_data_calibrates_on_all(
    folder: Path, two_levels: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_fit(folder, two_levels, config, stop={"steps": 1})
    fit = yaml.safe_load((folder / "fit.yaml").read_text())
    fit["training"]["calibrate"] = True
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit))
    write(folder / "pool.extxyz", [alloy(200 + i) for i in range(N_POOL)])  # like the first data
    start(folder)
    calibrated_on = []
    calibrate = MultiFidelityGP.calibrate
    monkeypatch.setattr(
        MultiFidelityGP,
        "calibrate",
        lambda self, frames, *a: (calibrated_on.append(len(frames)), calibrate(self, frames, *a)),
    )
    run(folder)
    assert rows(folder, "SELECT kind, why FROM models")[1] == ("update", "2 low labels learned; calibrated on all")
    assert calibrated_on == [19]
    first, last = (MultiFidelityGP.load(folder / "run" / "models" / f"model_000{i}.mfgp") for i in (0, 1))
    assert last.calibration is not None
    assert last.calibration != first.calibration
    assert not last.calibration.tested  # it is of all labels


@pytest.mark.usefixtures("in_process")
def test_structures_that_the_inducing_points_do_not_carry_are_followed_by_a_refit(
    folder: Path, two_levels: Any, config: Any
) -> None:
    """Copper alone, where alloys were trained on; and once, since the new inducing points carry it."""
    with_a_fit(folder, two_levels, config, stop={"steps": 2})
    fit = yaml.safe_load((folder / "fit.yaml").read_text())
    fit["training"]["calibrate"] = True
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit))
    pool = [alloy(200 + i) for i in range(N_POOL)]
    for atoms in pool:
        atoms.symbols[:] = "Cu"
        atoms.set_cell(0.9 * atoms.cell, scale_atoms=True)
    write(folder / "pool.extxyz", pool)
    start(folder)
    with pytest.warns(UserWarning, match="cannot describe 2 of the structures"):
        run(folder)
    (_, first, second) = rows(folder, "SELECT kind, why FROM models")
    assert first == (
        "refit",
        "2 low labels learned; the inducing points do not carry them, so all is fitted again",
    )
    assert second == ("update", "2 low labels learned; calibrated on all")
    versions = [MultiFidelityGP.load(folder / "run" / "models" / f"model_000{i}.mfgp") for i in range(3)]
    points = [len(model.basis.points[0]) for model in versions]
    assert points[1] > points[0]  # of copper
    assert versions[1].calibration is not None
    assert versions[1].calibration.carries


@pytest.mark.usefixtures("in_process")
def test_a_refit_that_failed_is_tried_again_with_more_labels_alone(
    folder: Path, two_levels: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_fit(folder, two_levels, config, stop={"steps": 3})
    fit = yaml.safe_load((folder / "fit.yaml").read_text())
    fit["training"]["calibrate"] = True
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit))
    write(folder / "pool.extxyz", [alloy(200 + i) for i in range(6)])
    start(folder)
    tried = []

    def failing(frames: FrameSet, *args: Any, **kwargs: Any) -> MultiFidelityGP:
        tried.append(len(frames))
        raise NumericalError("float64 does not do")

    monkeypatch.setattr(MultiFidelityGP, "fit", failing)
    monkeypatch.setattr(Calibration, "carries", False)
    run(folder)
    assert tried == [19, 23]  # not with 21
    whys = [why for (why,) in rows(folder, "SELECT why FROM models ORDER BY version")]
    assert "the refit failed (float64 does not do)" in whys[1]
    assert "but a refit failed before: another one is tried with 23 labels" in whys[2]
    assert "the refit failed" in whys[3]
