"""Short distances, where there are no data: with the ZBL baseline atoms repel each other, in pairs and in hot dynamics."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.md.langevin import Langevin
from conftest import DESCRIPTOR, alloy

from mfgp import FitConfig, FrameSet, MultiFidelityGP

ZBL = {"name": "zbl", "coefficient": {"mean": 1.0, "std": 0.01}, "settings": {"r_inner": 0.8, "r_outer": 1.9}}


def _fit(frames: FrameSet, baselines: list[dict[str, object]]) -> MultiFidelityGP:
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 40},
        baselines=baselines,
        training={"max_iterations": 30, "calibrate": False},
    )
    return MultiFidelityGP.fit(frames, config, progress=False)


@pytest.fixture(scope="module")
def safe(two_levels: FrameSet) -> MultiFidelityGP:
    return _fit(two_levels, [ZBL])


def _push(model: MultiFidelityGP, symbols: str, r: float) -> float:
    """Force that drives a pair apart, eV/Å."""
    pair = Atoms(symbols, [[0, 0, 0], [0, 0, r]])
    return float(model.predict(pair, "high", uncertainty="none").forces[1, 2])


@pytest.mark.parametrize("symbols", ["CuCu", "CuAu", "AuAu"])
def test_compressed_pairs_repel_each_other(safe: MultiFidelityGP, symbols: str) -> None:
    pushes = [_push(safe, symbols, r) for r in np.arange(1.3, 0.35, -0.05)]
    assert min(pushes) > 5.0  # eV/Å
    assert np.all(np.diff(pushes) > 0)


def test_without_it_they_do_not(model: MultiFidelityGP) -> None:
    pushes = [_push(model, s, r) for s in ("CuCu", "CuAu", "AuAu") for r in np.arange(1.3, 0.35, -0.05)]
    assert min(pushes) < 5.0  # eV/Å


def test_hot_dynamics_finds_no_hole(safe: MultiFidelityGP) -> None:
    atoms = alloy(70, repeat=2)
    atoms.calc = safe.calculator("high", uncertainty="none")
    dynamics = Langevin(
        atoms, 2 * units.fs, temperature_K=3000, friction=0.05 / units.fs, fixcm=False, rng=np.random.default_rng(0)
    )
    shortest = np.inf
    for _ in dynamics.irun(150):
        distances = atoms.get_all_distances(mic=True)
        shortest = min(shortest, float(distances[~np.eye(len(atoms), dtype=bool)].min()))
    assert 1.0 < shortest < 2.3  # Å: closer than in the crystal (2.7), no collapse
    assert np.isfinite(atoms.get_potential_energy())
    assert 1500 < atoms.get_temperature() < 5000  # K
