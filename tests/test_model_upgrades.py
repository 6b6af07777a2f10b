"""Files of earlier versions are read, and know what those knew."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import alloy
from model_files import as_written, less, rewrite
from numpy.testing import assert_allclose
from test_model_file import path  # noqa: F401

from mfgp import FrameSet, ModelFileError, MultiFidelityGP
from mfgp.calibration.composition_scatter import Composition, CompositionScatter, fractions
from mfgp.gp.centring import centred_statistics
from mfgp.model_file import read_header
from mfgp.model_upgrades import SCHEMA


def test_a_file_of_schema_6_knows_no_calculations(model: MultiFidelityGP, path: Path) -> None:
    assert MultiFidelityGP.load(path).calculated == model.calculated
    assert len(model.calculated) == 17
    as_written(path, {"schema": 6}, ("calculated",))
    assert MultiFidelityGP.load(path).calculated == frozenset()


def test_a_file_of_schema_5_knows_no_novelty_of_energies(
    model: MultiFidelityGP, two_levels: FrameSet, path: Path
) -> None:
    loaded = MultiFidelityGP.load(path)
    loaded.calibrate(two_levels.training())
    loaded.save(path)
    old = less(read_header(path)["calibration"], "energy_novelty", "energy_scatter", "force_scatter")
    as_written(path, {"schema": 5, "calibration": old})
    again = MultiFidelityGP.load(path)
    assert again.calibration == replace(loaded.calibration, energy_novelty=(), energy_scatter=(), force_scatter=())
    assert again.predict(alloy(80)).energy_std > 0


@pytest.mark.filterwarnings("ignore:.*in the training data at least")  # atoms are that close
def test_files_without_a_novelty_of_virials_have_none(model: MultiFidelityGP, two_levels: FrameSet, path: Path) -> None:
    """As written before it: their virials are calibrated with the factors of their scales alone."""
    loaded = MultiFidelityGP.load(path)
    loaded.calibrate(two_levels.training())
    loaded.save(path)
    assert loaded.calibration is not None
    assert loaded.calibration.novelty[1].virial_exponent > 0
    calibration = read_header(path)["calibration"]
    novelty = [less(n, "virial_exponent") for n in calibration["novelty"]]
    as_written(path, {"calibration": {**calibration, "novelty": novelty}})
    again = MultiFidelityGP.load(path)
    kept = tuple(replace(n, virial_exponent=0.0) for n in loaded.calibration.novelty)
    assert again.calibration == replace(loaded.calibration, novelty=kept)
    old, new = (m.predict(alloy(80, rattle=0.35)) for m in (again, loaded))
    assert_allclose(old.forces_std, new.forces_std, rtol=0, atol=1e-9)  # eV/Å
    assert (new.stress_std > 1.02 * old.stress_std).all()  # type: ignore[operator]


def test_files_of_schemas_7_and_8_know_less_of_scatter(
    model: MultiFidelityGP, two_levels: FrameSet, path: Path
) -> None:
    loaded = MultiFidelityGP.load(path)
    loaded.calibrate(two_levels.training())
    assert loaded.calibration is not None
    known = (CompositionScatter(0.5, (Composition(fractions(alloy(0).numbers), 4, 2.0),)),) * 2
    narrow = tuple(replace(s, least=0.25) for s in known)
    loaded.calibration = replace(loaded.calibration, energy_scatter=known, force_scatter=narrow)
    loaded.save(path)
    assert MultiFidelityGP.load(path).calibration == loaded.calibration
    calibration = read_header(path)["calibration"]
    without_both = less(calibration, "energy_scatter", "force_scatter")
    scatter = [less(s, "least") for s in calibration["energy_scatter"]]
    as_written(path, {"schema": 8, "calibration": {**without_both, "scatter": scatter}})
    assert MultiFidelityGP.load(path).calibration == replace(loaded.calibration, force_scatter=())
    as_written(path, {"schema": 7, "calibration": without_both})
    assert MultiFidelityGP.load(path).calibration == replace(loaded.calibration, energy_scatter=(), force_scatter=())


def test_a_file_of_schema_3_keeps_its_costs(model: MultiFidelityGP, path: Path) -> None:
    """Costs were sums over log N and log hours alone."""
    x, y = math.log(4), math.log(0.5)
    as_written(
        path, {"schema": 3, "costs": {"sums": {"low": [9, 9 * x, 9 * x * x, 9 * y, 9 * x * y, 9 * y * y]}, "given": {}}}
    )
    costs = MultiFidelityGP.load(path).costs
    assert costs.sums["low"].count == 9
    assert 0.5 < costs.hours("low", [alloy(80)[:4]])[0] < 0.55


def test_a_file_of_schema_1_is_upgraded(model: MultiFidelityGP, path: Path) -> None:
    """As it was written then: no calibration in the header, and a checksum over that."""
    as_written(path, {"schema": 1}, ("calibration",))
    loaded = MultiFidelityGP.load(path)
    assert loaded.calibration is None
    assert loaded.predict(alloy(80)).energy == pytest.approx(model.predict(alloy(80)).energy, abs=1e-9)


@pytest.mark.parametrize("schema", [0, -1, "3", True, 2.0])
def test_a_schema_that_never_was(path: Path, schema: object) -> None:
    rewrite(path, {"schema": schema})
    with pytest.raises(ModelFileError, match="which no version of mfgp wrote"):
        read_header(path)


def test_files_of_early_versions_say_so(model: MultiFidelityGP, two_levels: FrameSet, path: Path) -> None:
    """The first headers of schema 1 had no number of inducing points, those of schema 2 another calibration."""
    loaded = MultiFidelityGP.load(path)
    loaded.calibrate(two_levels.training())
    loaded.save(path)
    calibration = read_header(path)["calibration"]
    renamed = {**calibration, "energy": [{**s, "function": 1.0} for s in calibration["energy"]]}
    as_written(path, {"schema": 2, "calibration": renamed})
    with pytest.raises(ModelFileError, match=r"alloy\.mfgp \(schema 2, mfgp .*an early version .*; fit again"):
        MultiFidelityGP.load(path)
    as_written(path, {"schema": 1}, ("n_inducing",))
    for read in (MultiFidelityGP.load, read_header):
        with pytest.raises(ModelFileError, match=r"\(schema 1, .*an early version .*; fit again"):
            read(path)
    as_written(path, {"schema": SCHEMA}, ("n_inducing",))
    with pytest.raises(ModelFileError, match="damaged: its header has no n_inducing"):
        read_header(path)


def test_statistics_of_schema_10_are_turned_into_the_present_ones(model: MultiFidelityGP, tmp_path: Path) -> None:
    """They were in terms of w and e0; what is learned from them later is the same."""
    old = tmp_path / "old.mfgp"
    model.save(old)
    earlier = MultiFidelityGP.load(old)
    earlier.statistics = centred_statistics(model.statistics, -model.features.centre)
    earlier.save(old)
    as_written(old, {"schema": 10}, ("baseline_checks", "own_sigmas", "centred"))
    loaded = MultiFidelityGP.load(old)
    for key, m in model.statistics.moments.items():
        found = loaded.statistics.moments[key]
        scale = float(m.gram.diagonal().abs().max())
        np.testing.assert_allclose(found.gram, m.gram, rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(found.projection, m.projection, rtol=0, atol=1e-9 * float(m.projection.abs().max()))
    assert any(
        float((m.gram - earlier.statistics.moments[key].gram).abs().max()) > 0.1
        for key, m in model.statistics.moments.items()
    )
    loaded.refresh()
    assert loaded.predict(alloy(60)).energy == pytest.approx(model.predict(alloy(60)).energy, abs=1e-6)
