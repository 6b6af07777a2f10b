"""`mfgp predict` and `mfgp evaluate`: what they write and say, and what they refuse."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from command_line import leftovers, ok, refused
from conftest import alloy
from numpy.testing import assert_allclose

from mfgp import MultiFidelityGP
from mfgp.report import PLOTS


def test_predictions_never_replace_their_input_nor_keep_its_level(model_file: Path, data_folder: Path, tmp_path: Path):
    copy = tmp_path / "copy.extxyz"
    copy.write_bytes((data_folder / "low.extxyz").read_bytes())
    assert "is an input" in refused("predict", model_file, copy, "-o", copy)
    assert copy.read_bytes() == (data_folder / "low.extxyz").read_bytes()
    frames = ase.io.read(copy, ":")
    for atoms in frames:
        atoms.info["fidelity"] = "low"
    ase.io.write(copy, frames)
    ok("predict", model_file, copy, "-o", tmp_path / "p.extxyz", "--fidelity", "high")
    info = ase.io.read(tmp_path / "p.extxyz").info
    assert "fidelity" not in info
    assert info["predicted_fidelity"] == "high"


def test_evaluate_writes_the_contract(model_file: Path, data_folder: Path, tmp_path: Path, model: MultiFidelityGP):
    out, plots = tmp_path / "scores.json", tmp_path / "plots"
    result = ok(
        "evaluate", model_file, data_folder / "high.extxyz", "--fidelity", "high", "--json", out, "--plots", plots
    )
    assert "4 held-out frames at level high; left out 5 not held out (--all takes them)" in result.stderr
    assert "high: 4 structures, 16 atoms" in result.stdout
    assert "in p %: share of labels inside the p % interval" in result.stdout
    assert "Of 4 energies, an honest 95 % interval holds 3 to 4 (75 - 100 %)" in " ".join(result.stdout.split())
    scores = json.loads(out.read_text())
    assert set(scores) == {"fidelity", "n_structures", "n_atoms", "energy", "forces", "stress"}
    assert scores["fidelity"] == "high"
    frames = ase.io.read(data_folder / "high.extxyz", "5:")
    errors = [model.predict(a, "high").forces - a.arrays["REF_forces"] for a in frames]
    assert_allclose(scores["forces"]["mae"], np.abs(errors).mean(), rtol=0, atol=1e-7)
    assert {p.name for p in plots.iterdir()} == {f"high_{name}.png" for name in PLOTS}
    assert leftovers(tmp_path) == []


def test_evaluate_takes_all_or_another_level(model_file: Path, data_folder: Path, tmp_path: Path):
    out = tmp_path / "scores.json"
    ok("evaluate", model_file, data_folder / "high.extxyz", "--all", "--json", out)
    assert json.loads(out.read_text())["n_structures"] == 9
    result = ok("evaluate", model_file, data_folder / "low.extxyz", "-f", "low", "--json", out)
    assert json.loads(out.read_text())["fidelity"] == "low"
    assert "12 labelled frames at level low" in result.stderr


def test_evaluate_takes_frames_tagged_for_bookkeeping_where_the_level_is_named(
    model_file: Path, data_folder: Path, tmp_path: Path
):
    frames = ase.io.read(data_folder / "high.extxyz", ":")
    for atoms in frames:
        atoms.info["head"] = "Default"
        atoms.info.pop("fidelity", None)
    ase.io.write(tmp_path / "head.extxyz", frames)
    assert "tagged with Default" in refused("evaluate", model_file, tmp_path / "head.extxyz")
    result = ok("evaluate", model_file, tmp_path / "head.extxyz", "--fidelity", "high")
    assert "4 held-out frames (tagged with Default (9 frames)) at level high" in result.stderr


def test_evaluate_reads_other_keys_and_one_split(model_file: Path, data_folder: Path, tmp_path: Path):
    frames = ase.io.read(data_folder / "high.extxyz", ":")
    ok("evaluate", model_file, data_folder / "high.extxyz", "--json", tmp_path / "expected.json")
    for atoms in frames:
        atoms.info["dft_energy"] = atoms.info.pop("REF_energy")
        atoms.arrays["dft_forces"] = atoms.arrays.pop("REF_forces")
        del atoms.info["fidelity"]
    ase.io.write(tmp_path / "vasp.extxyz", frames)
    names = ("--key", "energy=dft_energy", "--key", "forces=dft_forces")
    out = tmp_path / "scores.json"
    result = ok("evaluate", model_file, tmp_path / "vasp.extxyz", *names, "--split", "test", "--json", out)
    assert "4 frames of split test at level high; left out 5 of other splits" in result.stderr
    assert json.loads(out.read_text()) == json.loads((tmp_path / "expected.json").read_text())


def test_stress_without_stress_labels_is_said_once(data_folder: Path, tmp_path: Path):
    for level in ("low", "high"):
        frames = ase.io.read(data_folder / f"{level}.extxyz", ":")
        for atoms in frames:
            del atoms.info["REF_stress"]
        ase.io.write(tmp_path / f"{level}.extxyz", frames)
    (tmp_path / "config.yaml").write_text((data_folder / "config.yaml").read_text())
    model = tmp_path / "m.mfgp"
    ok("fit", tmp_path / "config.yaml", "-o", model, "--set", "training.optimise=false")
    note = "has no stress labels"
    out = tmp_path / "p.extxyz"
    assert ok("predict", model, data_folder / "high.extxyz", "-o", out).stderr.count(note) == 1
    assert "stress" in ase.io.read(out).calc.results
    assert ok("evaluate", model, data_folder / "high.extxyz").stderr.count(note) == 1
    assert note not in ok("evaluate", model, tmp_path / "high.extxyz").stderr  # no stress to compare
    ase.io.write(tmp_path / "in.xyz", Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.4]]))
    assert note not in ok("predict", model, tmp_path / "in.xyz", "-o", out).stderr
    atoms = ase.io.read(data_folder / "high.extxyz")
    atoms.calc = MultiFidelityGP.load(model).calculator(uncertainty="none")
    atoms.get_forces()
    with pytest.warns(UserWarning, match="has no stress labels"):
        atoms.get_stress()
    atoms.rattle(0.01, seed=1)
    atoms.get_stress()  # said already: a second warning would be an error here


def test_no_word_about_stress_where_there_are_labels(model_file: Path, data_folder: Path, tmp_path: Path):
    assert "note:" not in ok("predict", model_file, data_folder / "high.extxyz", "-o", tmp_path / "p.extxyz").stderr


def test_evaluate_refuses_bad_input(model_file: Path, data_folder: Path, tmp_path: Path):
    high = data_folder / "high.extxyz"
    assert "unknown level 'medium'; this model has low, high" in refused("evaluate", model_file, high, "-f", "medium")
    assert "no such file" in refused("evaluate", model_file, tmp_path / "absent.extxyz")
    message = refused("evaluate", model_file, data_folder / "low.extxyz", "-f", "high")
    assert "tagged with low (12 frames); the model's levels are low, high" in message
    assert "found no split (5 frames), test (4 frames)" in refused("evaluate", model_file, high, "--split", "test_ood")
    assert "contradict" in refused("evaluate", model_file, high, "--split", "test", "--all")
    assert "LABEL=NAME" in refused("evaluate", model_file, high, "--key", "charge=q")
    assert "no directory" in refused("evaluate", model_file, high, "--json", tmp_path / "absent" / "s.json")
    assert "is a file" in refused("evaluate", model_file, high, "--plots", high)
    strange = Atoms("Al2", positions=[[0, 0, 0], [0, 0, 2.5]], info={"REF_energy": 1.0})
    ase.io.write(tmp_path / "al.extxyz", strange)
    message = refused("evaluate", model_file, tmp_path / "al.extxyz")
    assert "al.extxyz frame 0" in message
    assert "has not seen Al; it knows Cu, Au" in message


def test_predict_writes_what_the_model_says(
    model_file: Path, data_folder: Path, tmp_path: Path, model: MultiFidelityGP
):
    out = tmp_path / "out.extxyz"
    result = ok("predict", model_file, data_folder / "high.extxyz", "-o", out, "--fidelity", "low")
    assert "wrote 9 structures at level low" in result.stderr
    given = ase.io.read(data_folder / "high.extxyz", ":")
    written = ase.io.read(out, ":")
    for before, after in zip(given, written, strict=True):
        p = model.predict(before, "low")
        tight = {"rtol": 0, "atol": 2e-8}  # digits of the file
        assert_allclose(after.get_potential_energy(), p.energy, **tight)
        assert_allclose(after.get_forces(), p.forces, **tight)
        assert_allclose(after.get_stress(), p.stress, **tight)
        assert_allclose(after.calc.results["energies"], p.energies, **tight)
        assert_allclose(after.info["energy_std"], p.energy_std, **tight)
        assert_allclose(after.info["stress_std"], p.stress_std, **tight)
        assert_allclose(after.arrays["forces_std"], p.forces_std, **tight)
        assert_allclose(after.arrays["energies_std"], p.energies_std, **tight)
        assert after.info["predicted_fidelity"] == "low"
        assert_allclose(after.info["REF_energy"], before.info["REF_energy"], **tight)
    assert np.abs(written[0].get_forces() - written[0].arrays["REF_forces"]).max() > 1e-3


def test_predict_by_level_writes_the_parts_and_sums_them_up(
    model_file: Path, data_folder: Path, tmp_path: Path, model: MultiFidelityGP
):
    out, again = tmp_path / "out.extxyz", tmp_path / "again.extxyz"
    result = ok("predict", model_file, data_folder / "high.extxyz", "-o", out, "--by-level")
    structures = ase.io.read(data_folder / "high.extxyz", ":")
    energies, forces = Counter(), Counter()
    for atoms, after in zip(structures, ase.io.read(out, ":"), strict=True):
        parts = model.predict(atoms, uncertainty="by_level").std_by_level
        assert list(parts) == ["low", "high"]
        for name, part in parts.items():
            rms = np.sqrt(np.mean(part.forces_std**2))
            assert after.info["energy_std_by_level"][name] == pytest.approx(part.energy_std, rel=1e-6)
            assert after.info["forces_std_by_level"][name] == pytest.approx(rms, rel=1e-6)
            energies[name] += (part.energy_std / len(atoms)) ** 2
            forces[name] += np.sum(part.forces_std**2)
    for name in ("low", "high"):
        shown = [100 * of[name] / of.total() for of in (energies, forces)]
        assert re.search(rf"^{name} +{shown[0]:.0f} +{shown[1]:.0f}$", result.stdout, re.MULTILINE), result.stdout
    ok("predict", model_file, out, "-o", again)  # whose parts these are, it does not say
    assert not {"energy_std_by_level", "forces_std_by_level"} & ase.io.read(again).info.keys()
    assert "leave --no-uncertainty out" in refused(
        "predict", model_file, out, "-o", again, "--by-level", "--no-uncertainty"
    )


def test_predict_by_level_of_isolated_atoms_has_no_share_of_forces(model_file: Path, tmp_path: Path):
    ase.io.write(tmp_path / "in.xyz", Atoms("Cu"))
    out = ok(
        "predict", model_file, tmp_path / "in.xyz", "-o", tmp_path / "out.extxyz", "--by-level", "--raw-std"
    ).stdout
    assert re.search(r"^low +\d+ +–$", out, re.MULTILINE), out


def test_predict_means_only_over_an_older_prediction(model_file: Path, data_folder: Path, tmp_path: Path):
    first, second = tmp_path / "first.extxyz", tmp_path / "second.extxyz"
    ok("predict", model_file, data_folder / "high.extxyz", "-o", first)
    ok("predict", model_file, first, "-o", second, "--no-uncertainty")
    one, two = ase.io.read(first), ase.io.read(second)
    assert_allclose(two.get_forces(), one.get_forces(), rtol=0, atol=1e-6)
    stds = {"energy_std", "stress_std", "forces_std", "energies_std"}
    assert stds <= {*one.info, *one.arrays}
    assert not stds & {*two.info, *two.arrays}


def test_predict_of_a_molecule_has_no_stress(model_file: Path, tmp_path: Path):
    ase.io.write(tmp_path / "in.xyz", Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.4]]))
    ok("predict", model_file, tmp_path / "in.xyz", "-o", tmp_path / "out.extxyz")
    out = ase.io.read(tmp_path / "out.extxyz")
    assert "stress" not in out.calc.results
    assert "stress_std" not in out.info
    assert_allclose(out.get_forces().sum(axis=0), 0.0, rtol=0, atol=1e-7)


def test_predict_refuses_bad_input(model_file: Path, data_folder: Path, tmp_path: Path):
    high, out = data_folder / "high.extxyz", tmp_path / "out.extxyz"
    out.write_text("older results")
    assert "unknown level" in refused("predict", model_file, high, "-o", out, "-f", "top")
    assert "no such file" in refused("predict", model_file, tmp_path / "absent.extxyz", "-o", out)
    assert "is a directory" in refused("predict", model_file, high, "-o", tmp_path)
    whole = high.read_text()
    (tmp_path / "cut.extxyz").write_text(whole[: int(0.8 * len(whole))])
    assert "truncated" in refused("predict", model_file, tmp_path / "cut.extxyz", "-o", out)
    mixed = [ase.io.read(high), Atoms("CuAl", positions=[[0, 0, 0], [0, 0, 2.5]])]
    ase.io.write(tmp_path / "mixed.extxyz", mixed)
    message = refused("predict", model_file, tmp_path / "mixed.extxyz", "-o", out)
    assert "mixed.extxyz frame 1" in message
    assert "has not seen Al" in message
    assert out.read_text() == "older results"


def test_costs_and_moments_of_the_calculation_are_not_those_of_a_prediction(model_file: Path, tmp_path: Path) -> None:
    atoms = alloy(3)
    atoms.info |= {"wall_seconds": 60.0, "cpu_seconds": 59.0, "total_magmom": 4.0, "name": "kept"}
    ase.io.write(tmp_path / "with@sign.extxyz", atoms)
    ok("predict", model_file, tmp_path / "with@sign.extxyz", "-o", tmp_path / "p.extxyz")
    info = ase.io.read(tmp_path / "p.extxyz").info
    assert info["name"] == "kept"
    assert not {"wall_seconds", "cpu_seconds", "total_magmom"} & set(info)
