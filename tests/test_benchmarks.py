"""Benchmarks of scale and speed at a small size: what they record, and that the guard can fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import write


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks can be imported, and leave torch's threads alone."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "benchmarks"), *sys.path])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_scale_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels, time and memory of a fit, and its progress while it runs; ethanol stands in for the data."""
    import scale

    molecules = []
    for seed in range(6):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=seed)
        atoms.info["REF_energy"] = float(seed)
        atoms.arrays["REF_forces"] = np.random.default_rng(seed).normal(size=(len(atoms), 3))
        molecules.append(atoms)
    write(tmp_path / "train_300K_gfn1.extxyz", molecules)
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(scale, "write_result", lambda name, result: written.append(result))
    monkeypatch.setattr(scale, "TEACHER_POINTS", 20)
    rows = [scale.fit_and_measure(tmp_path, n, 20, "scale", {}) for n in (54, 216)]
    assert [r["n_force_labels"] for r in rows] == [54, 216]
    assert [r["progress"][-1][0] for r in rows] == [2, 8]
    assert all(0 < r["pass_cpu_seconds"] < r["fit_cpu_seconds"] for r in rows)
    assert written[-1]["running"]["n_structures"] == 8
    assert scale.exponent([{"n_structures": n, "pass_cpu_seconds": 3e-2 * n} for n in (10, 100)]) == pytest.approx(1.0)


@pytest.mark.slow
def test_the_guard_measures_every_stage() -> None:
    """Bounds are for M = 1000; here only that ratios are those of work done, above what is possible."""
    import guard

    found = guard.ratios(100, 4, 1)
    assert set(found) == set(guard.BOUNDS)
    for stages in found.values():
        assert set(stages) == {"rows", "whitening", "Gram", "all"}
        assert stages["all"] > 0.2
