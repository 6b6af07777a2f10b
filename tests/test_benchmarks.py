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

from mfgp.datasets import load_lmfp


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


def test_faults_are_what_the_doctor_benchmark_says() -> None:
    """Spoiled labels differ from the stored ones by the fault alone; every other label is as stored."""
    import doctor

    stored = {level: load_lmfp(level, "train") for level in ("nm", "mag")}
    spoiled, faults = doctor.spoil(stored, doctor.KINDS, np.random.default_rng(0))
    before, after = ({level: {a.info["structure_id"]: a for a in f[level]} for level in f} for f in (stored, spoiled))
    assert len({f["structure"] for f in faults}) == len(faults) == 6 * doctor.EACH
    touched = {f["structure"] for f in faults}
    for f in faults:
        new, name = after[f["level"]][f["structure"]], f["structure"]
        other = "mag" if f["level"] == "nm" else "nm"
        old = before[other if f["kind"] == "level" else f["level"]][name]
        moved = new.get_potential_energy() - old.get_potential_energy()
        assert abs(moved) == pytest.approx(0.2 if f["kind"] == "energy" else 0.0, abs=1e-9)
        forces = old.get_forces()
        if f["kind"] == "force sign":
            assert np.linalg.norm(forces[f["atom"]]) > 0.5
            forces[f["atom"]] *= -1
        assert (new.get_forces() == forces).all()
        assert new.info["fidelity"] == f["level"]
        assert (name in after[other]) == (f["kind"] != "level" and name in before[other])
    for level, found in after.items():
        for name in found.keys() - touched:
            assert found[name].get_potential_energy() == before[level][name].get_potential_energy()
            assert (found[name].get_forces() == before[level][name].get_forces()).all()


def test_ranks_of_scores() -> None:
    import doctor

    assert doctor.ranked_above([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert doctor.ranked_above([1.0, 4.0], [2.0, 3.0]) == 0.5


def test_pooled_predictions_are_those_of_all_folds() -> None:
    from rivals import Labels, pooled

    from mfgp.evaluation import Comparison

    def of(n: int) -> Labels:
        energy, forces = (Comparison(*np.arange(3.0 * k).reshape(3, k)) for k in (n, 6 * n))
        return Labels(energy, forces, np.full(6 * n, n), np.full(n, 2))

    whole = pooled([of(2), of(3)])
    assert whole.energy.label.tolist() == [0, 1, 0, 1, 2]
    assert whole.forces.std.tolist() == [*range(24, 36), *range(36, 54)]
    assert whole.species.tolist() == [2] * 12 + [3] * 18
    assert whole.stress is None


def test_figures_show_what_the_results_hold(tmp_path: Path) -> None:
    """Every method with the errors of its runs, every test set of the uncertainties, and files that a browser reads."""
    import figures

    forces, energies, cost = figures.accuracy().axes
    runs = [r for r in figures.results("accuracy_lmfp")["runs"] if r["order"] == 0]
    for ax, key, unit in ((forces, "force_mae", 1e3), (energies, "energy_mae", 1e3)):
        for line, (method, *_) in zip(ax.lines, figures.ACCURACY, strict=True):
            drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
            assert len(drawn) >= 3, method
            for n, value in drawn.items():
                last = [r for r in runs if (r["method"], r["n"]) == (method, n)][-1]
                assert value == pytest.approx(unit * last[key]), (method, n)
    assert all(np.array_equal(a.get_ydata(), b.get_ydata()) for a, b in zip(forces.lines, cost.lines, strict=True))
    covered = figures.uncertainty().axes[1]
    assert [len(line.get_xdata()) for line in covered.lines] == [len(figures.UNCERTAINTY)] * len(figures.METHODS)
    figures.main(tmp_path)
    for name in ("accuracy.svg", "uncertainty.svg"):
        assert (tmp_path / name).read_text(encoding="utf-8").endswith("</svg>\n")
        assert (figures.OUT / name).exists()
