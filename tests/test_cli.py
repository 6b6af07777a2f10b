"""The command line: what it writes, and one clean line and an exit code for every mistake of a user."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from conftest import alloy
from numpy.testing import assert_allclose
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

import mfgp
from mfgp import FitConfig, FrameSet, ModelFileError, MultiFidelityGP
from mfgp.cli import app
from mfgp.frames import to_atoms
from mfgp.model_file import read_header
from mfgp.report import PLOTS

MEMORY = r"estimate: ([\d.]+) (.)B of memory \(([\d.]+) (.)B that Python, .* already, ([\d.]+) MB for the fit\)"
MEGABYTES = {"M": 1.0, "G": 1000.0}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def ok(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object, code: int = 1) -> str:
    """The error message of a command that must fail cleanly."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)  # no traceback
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, two_levels: FrameSet, config: FitConfig) -> Path:
    """low.extxyz, high.extxyz (its held-out frames marked), config.yaml."""
    path = tmp_path_factory.mktemp("data")
    for level in two_levels.levels:
        frames = []
        for frame in two_levels.of(level):
            frames.append(to_atoms(frame))
            if frame.split is not None:
                frames[-1].info["split"] = frame.split
        ase.io.write(path / f"{level}.extxyz", frames)
    settings = config.model_dump(mode="json", include={"descriptor", "model", "training"})
    settings["fidelities"] = [{"name": level, "train": f"{level}.extxyz"} for level in two_levels.levels]
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def model_file(folder: Path, model: MultiFidelityGP) -> Path:
    model.save(folder / "ready.mfgp")
    return folder / "ready.mfgp"


def leftovers(path: Path) -> list[str]:
    return [p.name for p in path.iterdir() if p.name.startswith(".")]


@pytest.mark.filterwarnings("default:repeated")
def test_a_dry_run_counts_what_a_fit_takes(folder: Path, tmp_path: Path):
    frames = ase.io.read(folder / "low.extxyz", ":")
    ase.io.write(tmp_path / "low.extxyz", [*frames, *frames[:5]])
    level = f"fidelities=[{{name: low, train: {tmp_path / 'low.extxyz'}}}]"
    results = [
        ok("fit", folder / "config.yaml", *options, "--set", level, "--set", "training.optimise=false")
        for options in (("--dry-run",), ("-o", tmp_path / "m.mfgp"))
    ]
    for result in results:
        assert result.stderr.count("repeated (same structure and labels) and skipped: 5 frames") == 1
        assert re.search(r"low +12 +48 +12 +12 +12", result.stdout)
    assert MultiFidelityGP.load(tmp_path / "m.mfgp").data["low"]["frames"] == 12


def test_help_is_quick_and_complete():
    code = "import sys; from mfgp.cli import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(command in out for command in ("fit", "evaluate", "predict", "info", "doctor"))
    assert not any(f"'{name}'" in out for name in ("torch", "scipy", "matplotlib", "pydantic"))
    assert ok("--version").output == f"mfgp {mfgp.__version__}\n"


def test_modules_are_attributes_of_the_package():
    """Without an import of their own, and torch only where it is needed."""
    lines = (
        "import sys, mfgp",
        "print(mfgp.errors.__name__, hasattr(mfgp, 'filings'), hasattr(mfgp, '__wrapped__'), 'torch' in sys.modules)",
        "print(mfgp.datasets.load_lmfp.__name__, mfgp.evaluation.evaluate.__name__)",
    )
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["mfgp.errors", "False", "False", "False", "load_lmfp", "evaluate"]


def test_fit_writes_the_model_of_the_python_interface(folder: Path, tmp_path: Path, model: MultiFidelityGP):
    result = ok("fit", folder / "config.yaml", "-o", tmp_path / "m.mfgp")
    for text in ("estimate:", "GFLOP/s", "rho, one for all elements", "low → high", "e0 (eV)", "training residuals"):
        assert text in result.stdout
    fitted = MultiFidelityGP.load(tmp_path / "m.mfgp")
    atoms = ase.io.read(folder / "high.extxyz")
    assert_allclose(fitted.predict(atoms).forces, model.predict(atoms).forces, rtol=0, atol=1e-4)
    assert leftovers(tmp_path) == []


def test_fit_says_what_it_did_differently(folder: Path, tmp_path: Path):
    settings = ("--set", "model.n_inducing=500", "--set", "model.zeta=1", "--set", "training.max_iterations=1")
    notices = ok("fit", folder / "config.yaml", "-o", tmp_path / "m.mfgp", *settings).stderr
    fitted = MultiFidelityGP.load(tmp_path / "m.mfgp")
    assert fitted.config.model.zeta == 1
    assert fitted.basis.size < 500
    assert f"note: {fitted.basis.size} inducing points, not 500" in notices
    assert "training.n_optimise or max_iterations" in notices


def test_a_dry_run_makes_the_baselines(folder: Path):
    name, setting = "baselines=[zbll]", "baselines=[{name: zbl, settings: {r_in: 1.0}}]"
    fit = ("fit", folder / "config.yaml", "--dry-run", "--set")
    assert "no calculator for baseline 'zbll'" in refused(*fit, name)
    assert "has no setting 'r_in'" in refused(*fit, setting)
    assert "what the baselines take (emt)" in ok(*fit, "baselines=[emt]").stderr


def test_workers_with_baselines_are_refused_before_anything_is_done(folder: Path):
    for extra in (("--dry-run",), ("-o", folder / "m.mfgp")):
        for option in (("--workers", 2), ("--scheduler", "tcp://127.0.0.1:1")):
            result = run("fit", folder / "config.yaml", *extra, *option, "--set", "baselines=[zbl]")
            assert result.exit_code == 1
            assert "takes no baselines" in result.stderr
            assert "frames" not in result.stdout  # the table of the data
    both = ("--workers", 2, "--scheduler", "tcp://127.0.0.1:1")
    assert "give one of them" in refused("fit", folder / "config.yaml", "--dry-run", *both)


def test_fit_of_one_level_with_a_baseline(folder: Path, tmp_path: Path):
    settings = ("--set", "fidelities=[{name: low, train: low.extxyz}]", "--set", "baselines=[{name: zbl}]")
    for out in (
        ok("fit", folder / "config.yaml", "-o", tmp_path / "m.mfgp", *settings).stdout,
        ok("info", tmp_path / "m.mfgp").stdout,
    ):
        assert "baseline coefficients" in out
        assert "zbl" in out
        assert "rho by" not in out


def test_dry_run_estimates_and_writes_nothing(folder: Path, tmp_path: Path):
    result = ok("fit", folder / "config.yaml", "-o", tmp_path / "m.mfgp", "--dry-run")
    assert "estimate:" in result.stdout
    assert "rho" not in result.stdout
    assert list(tmp_path.iterdir()) == []
    again = ok("fit", folder / "config.yaml", "--dry-run").stdout
    total, unit, held, unit_held, fit = re.search(MEMORY, again).groups()  # type: ignore[union-attr]
    total, held, fit = float(total) * MEGABYTES[unit], float(held) * MEGABYTES[unit_held], float(fit)
    assert held > 100  # MB: Python and torch
    rounding = 0.05 * (MEGABYTES[unit] + MEGABYTES[unit_held]) if "G" in (unit, unit_held) else 0.0  # one digit
    assert total == pytest.approx(held + fit, rel=0.05, abs=rounding)


def test_fit_refuses_bad_settings(folder: Path, tmp_path: Path):
    config, out = folder / "config.yaml", tmp_path / "m.mfgp"
    message = refused("fit", config, "-o", out, "--set", "descriptor.rcut=4")
    assert message.startswith("error: ")
    assert "did you mean descriptor.r_cut?" in message
    assert "no such file" in refused("fit", tmp_path / "absent.yaml", "-o", out)
    assert "name one with -o MODEL" in refused("fit", config)
    assert "is a directory" in refused("fit", config, "-o", tmp_path)
    assert "there is no directory" in refused("fit", config, "-o", tmp_path / "absent" / "m.mfgp")
    assert "key=value" in refused("fit", config, "-o", out, "--set", "seed")
    (tmp_path / "bare.yaml").write_text("seed: 1\n")
    assert "no `fidelities:`" in refused("fit", tmp_path / "bare.yaml", "-o", out)
    assert leftovers(tmp_path) == []
    assert not out.exists()


def test_fit_refuses_bad_data(folder: Path, tmp_path: Path):
    config, out = folder / "config.yaml", tmp_path / "m.mfgp"
    assert "no file 'gone.extxyz'" in refused("fit", config, "-o", out, "--set", "fidelities.0.train=gone.extxyz")
    frames = ase.io.read(folder / "low.extxyz", ":3")
    frames[1].arrays["REF_forces"][2, 0] = np.nan
    ase.io.write(folder / "nan.extxyz", frames)
    message = refused("fit", config, "-o", out, "--set", "fidelities.0.train=nan.extxyz")
    assert "nan.extxyz frame 1" in message
    assert "NaN force on atoms [2]" in message
    for atoms in (frames := ase.io.read(folder / "low.extxyz", ":2")):
        atoms.info["split"] = "test"
    ase.io.write(folder / "held.extxyz", frames)
    assert "no training frame" in refused("fit", config, "-o", out, "--set", "fidelities.0.train=held.extxyz")
    message = refused("fit", config, "-o", out, "--set", "keys.energy=dft_energy")
    assert "'dft_energy'" in message
    assert "REF_energy" in message  # found instead
    assert not out.exists()


def test_an_interrupted_fit_keeps_the_old_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "m.mfgp"
    out.write_bytes(b"the old model")

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mfgp.fit.fitting.training_data", interrupted)
    assert "interrupted" in refused("fit", folder / "config.yaml", "-o", out, code=130)
    assert out.read_bytes() == b"the old model"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "error: out of memory"),
    ],
    ids=["interrupt", "disk full", "memory"],
)
def test_a_failed_write_keeps_the_old_model(
    failure: BaseException, code: int, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "m.mfgp"
    out.write_bytes(b"the old model")

    def half(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half a mod")
        raise failure

    monkeypatch.setattr("mfgp.model_file.save_file", half)
    fast = ("--set", "training.optimise=false")
    assert message in refused("fit", folder / "config.yaml", "-o", out, *fast, code=code)
    assert out.read_bytes() == b"the old model"
    assert leftovers(tmp_path) == []


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import mfgp.model_file as model_file
model = model_file.load(sys.argv[1])
def half(tensors, path, metadata):
    Path(path).write_bytes(b"half a mod")
    os.kill(os.getpid(), signal.SIGKILL)
model_file.save_file = half
model.save(sys.argv[1])
"""


def test_a_process_killed_while_writing_keeps_the_old_model(model_file: Path, tmp_path: Path):
    path = tmp_path / "m.mfgp"
    path.write_bytes(model_file.read_bytes())
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == model_file.read_bytes()
    assert MultiFidelityGP.load(path).levels == ("low", "high")


def test_a_mistake_of_ours_is_not_hidden(model_file: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(path: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("mfgp.model_file.read_header", broken)
    assert isinstance(run("info", model_file).exception, RuntimeError)


def test_calibrated_and_raw_standard_deviations(folder: Path, tmp_path: Path):
    """A fit shows its calibration, `info` too; --raw-std gives the posterior's own deviations and the same means."""
    fitted = ok("fit", folder / "config.yaml", "-o", tmp_path / "m.mfgp", "--set", "training.calibrate=true")
    assert "calibration" in fitted.stdout
    told = ok("info", tmp_path / "m.mfgp").stdout
    assert "forces on Cu" in told
    for out in (fitted.stdout, told):  # the words of the tables are explained under them
        assert "factors of the three parts of a standard deviation" in out
        assert "share of left-out labels inside the 95 % interval" in out.replace("\n", " ")
    results = []
    for flags in ((), ("--raw-std",)):
        ok("evaluate", tmp_path / "m.mfgp", folder / "high.extxyz", "--json", tmp_path / "s.json", *flags)
        ok("predict", tmp_path / "m.mfgp", folder / "high.extxyz", "-o", tmp_path / "p.extxyz", *flags)
        results.append((json.loads((tmp_path / "s.json").read_text()), ase.io.read(tmp_path / "p.extxyz")))
    (calibrated, p), (raw, q) = results
    assert calibrated["forces"]["mae"] == raw["forces"]["mae"]
    assert abs(calibrated["forces"]["sharpness"] / raw["forces"]["sharpness"] - 1) > 0.01
    assert_allclose(p.get_forces(), q.get_forces(), rtol=0, atol=1e-8)
    assert not np.allclose(p.arrays["forces_std"], q.arrays["forces_std"], rtol=0.01)


def test_no_command_replaces_its_inputs(model_file: Path, folder: Path, tmp_path: Path):
    for name in ("low.extxyz", "high.extxyz", "config.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    model, low, high = tmp_path / "model.mfgp", tmp_path / "low.extxyz", tmp_path / "high.extxyz"
    model.write_bytes(model_file.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    config, hours = tmp_path / "config.yaml", ("--cost", "low=1", "--cost", "high=1", "-n", 1)
    for command in (
        ("fit", config, "-o", high),
        ("fit", config, "-o", config),
        ("predict", model, low, "-o", model),
        ("evaluate", model, high, "--json", high),
        ("evaluate", model, high, "--json", tmp_path / "." / "model.mfgp"),
        ("doctor", low, high, "--json", high),
        ("select", model, low, *hours, "-o", low),
        ("select", model, low, *hours, "-o", tmp_path / "s", "--json", model),
        ("plan", model, low, "--hours", 1, *hours[:4], "--json", low),
        ("tune", config, "-o", low),
    ):
        assert "is an input" in refused(*command)
    twice = tmp_path / "s.extxyz"
    assert "is named for two outputs" in refused("select", model, low, *hours, "-o", twice, "--json", twice)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_predictions_never_replace_their_input_nor_keep_its_level(model_file: Path, folder: Path, tmp_path: Path):
    copy = tmp_path / "copy.extxyz"
    copy.write_bytes((folder / "low.extxyz").read_bytes())
    assert "is an input" in refused("predict", model_file, copy, "-o", copy)
    assert copy.read_bytes() == (folder / "low.extxyz").read_bytes()
    frames = ase.io.read(copy, ":")
    for atoms in frames:
        atoms.info["fidelity"] = "low"
    ase.io.write(copy, frames)
    ok("predict", model_file, copy, "-o", tmp_path / "p.extxyz", "--fidelity", "high")
    info = ase.io.read(tmp_path / "p.extxyz").info
    assert "fidelity" not in info
    assert info["predicted_fidelity"] == "high"


def test_doctor_has_no_scores_for_held_out_frames(model_file: Path, folder: Path, tmp_path: Path):
    held_out = [a for a in ase.io.read(folder / "high.extxyz", ":") if a.info.get("split") == "test"]
    ase.io.write(tmp_path / "high.extxyz", held_out)
    assert "every frame is held out" in refused("doctor", tmp_path / "high.extxyz", "--model", model_file)


def test_evaluate_writes_the_contract(model_file: Path, folder: Path, tmp_path: Path, model: MultiFidelityGP):
    out, plots = tmp_path / "scores.json", tmp_path / "plots"
    result = ok("evaluate", model_file, folder / "high.extxyz", "--fidelity", "high", "--json", out, "--plots", plots)
    assert "4 held-out frames at level high; left out 5 not held out (--all takes them)" in result.stderr
    assert "high: 4 structures, 16 atoms" in result.stdout
    assert "in p %: share of labels inside the p % interval" in result.stdout
    assert "Of 4 energies, an honest 95 % interval holds 3 to 4 (75 - 100 %)" in " ".join(result.stdout.split())
    scores = json.loads(out.read_text())
    assert set(scores) == {"fidelity", "n_structures", "n_atoms", "energy", "forces", "stress"}
    assert scores["fidelity"] == "high"
    frames = ase.io.read(folder / "high.extxyz", "5:")
    errors = [model.predict(a, "high").forces - a.arrays["REF_forces"] for a in frames]
    assert_allclose(scores["forces"]["mae"], np.abs(errors).mean(), rtol=0, atol=1e-7)
    assert {p.name for p in plots.iterdir()} == {f"high_{name}.png" for name in PLOTS}
    assert leftovers(tmp_path) == []


def test_evaluate_takes_all_or_another_level(model_file: Path, folder: Path, tmp_path: Path):
    out = tmp_path / "scores.json"
    ok("evaluate", model_file, folder / "high.extxyz", "--all", "--json", out)
    assert json.loads(out.read_text())["n_structures"] == 9
    result = ok("evaluate", model_file, folder / "low.extxyz", "-f", "low", "--json", out)
    assert json.loads(out.read_text())["fidelity"] == "low"
    assert "12 labelled frames at level low" in result.stderr


def test_evaluate_takes_frames_tagged_for_bookkeeping_where_the_level_is_named(
    model_file: Path, folder: Path, tmp_path: Path
):
    frames = ase.io.read(folder / "high.extxyz", ":")
    for atoms in frames:
        atoms.info["head"] = "Default"
        atoms.info.pop("fidelity", None)
    ase.io.write(tmp_path / "head.extxyz", frames)
    assert "tagged with Default" in refused("evaluate", model_file, tmp_path / "head.extxyz")
    result = ok("evaluate", model_file, tmp_path / "head.extxyz", "--fidelity", "high")
    assert "4 held-out frames (tagged with Default (9 frames)) at level high" in result.stderr


def test_evaluate_reads_other_keys_and_one_split(model_file: Path, folder: Path, tmp_path: Path):
    frames = ase.io.read(folder / "high.extxyz", ":")
    ok("evaluate", model_file, folder / "high.extxyz", "--json", tmp_path / "expected.json")
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


def test_stress_without_stress_labels_is_said_once(folder: Path, tmp_path: Path):
    for level in ("low", "high"):
        frames = ase.io.read(folder / f"{level}.extxyz", ":")
        for atoms in frames:
            del atoms.info["REF_stress"]
        ase.io.write(tmp_path / f"{level}.extxyz", frames)
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    model = tmp_path / "m.mfgp"
    ok("fit", tmp_path / "config.yaml", "-o", model, "--set", "training.optimise=false")
    note = "has no stress labels"
    out = tmp_path / "p.extxyz"
    assert ok("predict", model, folder / "high.extxyz", "-o", out).stderr.count(note) == 1
    assert "stress" in ase.io.read(out).calc.results
    assert ok("evaluate", model, folder / "high.extxyz").stderr.count(note) == 1
    assert note not in ok("evaluate", model, tmp_path / "high.extxyz").stderr  # no stress to compare
    ase.io.write(tmp_path / "in.xyz", Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.4]]))
    assert note not in ok("predict", model, tmp_path / "in.xyz", "-o", out).stderr
    atoms = ase.io.read(folder / "high.extxyz")
    atoms.calc = MultiFidelityGP.load(model).calculator(uncertainty="none")
    atoms.get_forces()
    with pytest.warns(UserWarning, match="has no stress labels"):
        atoms.get_stress()
    atoms.rattle(0.01, seed=1)
    atoms.get_stress()  # said already: a second warning would be an error here


def test_a_fit_tells_of_levels_without_energies(folder: Path, tmp_path: Path):
    frames = ase.io.read(folder / "high.extxyz", ":")
    for atoms in frames:
        del atoms.info["REF_energy"]
    ase.io.write(tmp_path / "high.extxyz", frames)
    (tmp_path / "low.extxyz").write_text((folder / "low.extxyz").read_text())
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    notices = ok("fit", tmp_path / "config.yaml", "-o", tmp_path / "m.mfgp", "--set", "training.optimise=false").stderr
    assert "note: no energies among the labels of high: total energies there" in notices
    assert "no energies among" not in ok("fit", folder / "config.yaml", "-o", tmp_path / "n.mfgp").stderr


def test_a_fit_tells_of_levels_without_forces_and_of_a_weak_repulsion(folder: Path, tmp_path: Path):
    frames = ase.io.read(folder / "high.extxyz", ":")
    for atoms in frames:
        del atoms.arrays["REF_forces"]
    ase.io.write(tmp_path / "high.extxyz", frames)
    (tmp_path / "low.extxyz").write_text((folder / "low.extxyz").read_text())
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    weak = {"name": "zbl", "coefficient": {"mean": 0.1, "std": 0.01}, "settings": {"r_outer": 2.4}}
    settings["baselines"] = [weak]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    notices = ok("fit", tmp_path / "config.yaml", "-o", tmp_path / "m.mfgp", "--set", "training.optimise=false").stderr
    assert "note: no forces among the labels of high: standard deviations" in notices
    assert notices.count("warning: the coefficient of zbl is 0.1") == 2  # a level each
    told = MultiFidelityGP.load(tmp_path / "m.mfgp").notes()
    assert len(told) >= 3
    assert all(notices.count(note) == 1 for note in told)
    assert "baselines    zbl (r_outer 2.4)" in ok("info", tmp_path / "m.mfgp").stdout


def test_a_baseline_has_no_weak_repulsion_where_it_is_not_used(folder: Path, tmp_path: Path):
    zbl = "baselines=[{name: zbl, from_level: high, coefficient: {mean: 1.0, std: 0.01}}]"
    options = ("--set", zbl, "--set", "training.optimise=false")
    assert "coefficient of zbl" not in ok("fit", folder / "config.yaml", "-o", tmp_path / "m.mfgp", *options).stderr


def test_no_word_about_stress_where_there_are_labels(model_file: Path, folder: Path, tmp_path: Path):
    assert "note:" not in ok("predict", model_file, folder / "high.extxyz", "-o", tmp_path / "p.extxyz").stderr


def test_evaluate_refuses_bad_input(model_file: Path, folder: Path, tmp_path: Path):
    high = folder / "high.extxyz"
    assert "unknown level 'medium'; this model has low, high" in refused("evaluate", model_file, high, "-f", "medium")
    assert "no such file" in refused("evaluate", model_file, tmp_path / "absent.extxyz")
    message = refused("evaluate", model_file, folder / "low.extxyz", "-f", "high")
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


@pytest.mark.parametrize("command", ["evaluate", "predict", "info"])
def test_what_is_not_a_model_is_refused(command: str, model_file: Path, folder: Path, tmp_path: Path):
    rest = {"evaluate": [folder / "high.extxyz"], "predict": [folder / "high.extxyz", "-o", tmp_path / "o.extxyz"]}
    arguments = rest.get(command, [])
    assert "no model file" in refused(command, tmp_path / "absent.mfgp", *arguments)
    (tmp_path / "text.mfgp").write_text("not a model, whatever its name says")
    expected = "expected what `mfgp fit CONFIG.yaml -o MODEL` or model.save(MODEL) wrote"
    message = refused(command, tmp_path / "text.mfgp", *arguments)
    assert (
        "text.mfgp is no model file: found a text file that begins with 'not a model, whatever its name says'"
        in message
    )
    assert expected in message
    assert message.count("\n") == 1
    whole = model_file.read_bytes()
    (tmp_path / "truncated.mfgp").write_bytes(whole[: len(whole) // 2])
    assert "is not a complete model file" in refused(command, tmp_path / "truncated.mfgp", *arguments)
    (tmp_path / "empty.mfgp").write_bytes(b"")
    assert "found an empty file" in refused(command, tmp_path / "empty.mfgp", *arguments)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert "found a zip archive" in refused(command, tmp_path / "other.npz", *arguments)
    save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    assert "found safetensors without" in (message := refused(command, tmp_path / "other.safetensors", *arguments))
    assert expected in message
    assert not (tmp_path / "o.extxyz").exists()


def test_streams_without_the_characters_of_units_do_not_end_a_command(model_file: Path, folder: Path, tmp_path: Path):
    """A process of its own: the encoding of its streams is set before Python starts."""
    command = [
        "-c",
        "from mfgp.cli import app; app()",
        "evaluate",
        model_file,
        folder / "high.extxyz",
        "-f",
        "high",
    ]
    done = subprocess.run(
        [sys.executable, *map(str, [*command, "--json", tmp_path / "s.json"])],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "force components (eV/?)" in done.stdout or "eV/?" in done.stdout
    assert json.loads((tmp_path / "s.json").read_text())["fidelity"] == "high"


def test_a_descriptor_that_cannot_be_built_is_one_line(folder: Path, tmp_path: Path):
    for dry in (["--dry-run"], ["-o", tmp_path / "m.mfgp"]):
        settings = ["--set", "descriptor.n_max=16", "--set", "descriptor.l_max=10"]
        assert "error: descriptor: the 16 radial functions" in refused("fit", folder / "config.yaml", *dry, *settings)


def test_predict_writes_what_the_model_says(model_file: Path, folder: Path, tmp_path: Path, model: MultiFidelityGP):
    out = tmp_path / "out.extxyz"
    result = ok("predict", model_file, folder / "high.extxyz", "-o", out, "--fidelity", "low")
    assert "wrote 9 structures at level low" in result.stderr
    given = ase.io.read(folder / "high.extxyz", ":")
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
    model_file: Path, folder: Path, tmp_path: Path, model: MultiFidelityGP
):
    out, again = tmp_path / "out.extxyz", tmp_path / "again.extxyz"
    result = ok("predict", model_file, folder / "high.extxyz", "-o", out, "--by-level")
    structures = ase.io.read(folder / "high.extxyz", ":")
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


def test_predict_means_only_over_an_older_prediction(model_file: Path, folder: Path, tmp_path: Path):
    first, second = tmp_path / "first.extxyz", tmp_path / "second.extxyz"
    ok("predict", model_file, folder / "high.extxyz", "-o", first)
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


def test_predict_refuses_bad_input(model_file: Path, folder: Path, tmp_path: Path):
    high, out = folder / "high.extxyz", tmp_path / "out.extxyz"
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


def test_info_reads_the_header_alone(model_file: Path, tmp_path: Path, model: MultiFidelityGP):
    out = ok("info", model_file).stdout
    for text in ("low → high (cheapest first)", "Cu, Au", "r_cut 4.5 Å", "zeta 2", "none", model.data_hash()):
        assert text in out
    rows = [line.split()[0] for line in out.splitlines() if line.startswith(("low", "high"))]
    assert rows == ["low", "high", "low", "high", "low", "low", "high"]  # data, amplitudes, rho, e0: cheapest first
    e0 = model.hyperparameters()["e0"]["high"]
    assert f"{e0['Cu']:.4f}" in out


@pytest.mark.filterwarnings("default:.*exactly zero")
def test_doctor_passes_good_data_and_fails_bad(folder: Path, tmp_path: Path):
    good = ok("doctor", folder / "low.extxyz", folder / "high.extxyz")
    assert "low → high" in good.stdout
    frames = ase.io.read(folder / "low.extxyz", ":")
    for atoms in frames:
        atoms.arrays["REF_forces"] *= 0.0
    ase.io.write(tmp_path / "zero.extxyz", frames)
    result = run("doctor", tmp_path / "zero.extxyz", "--fidelity", "low")
    assert result.exit_code == 1
    assert "error: " in result.stdout
    assert "error" in result.stdout.splitlines()[-1]


def test_doctor_names_levels_and_labels(folder: Path, tmp_path: Path):
    frames = ase.io.read(folder / "low.extxyz", ":4")
    for atoms in frames:
        del atoms.info["fidelity"]
        atoms.info["dft_energy"] = atoms.info.pop("REF_energy")
    ase.io.write(tmp_path / "cheap.extxyz", frames)
    assert "cheap " in ok("doctor", tmp_path / "cheap.extxyz", "--key", "energy=dft_energy").stdout
    named = ok("doctor", tmp_path / "cheap.extxyz", "-f", "nm", "--key", "energy=dft_energy").stdout
    assert "nm " in named
    assert "LABEL=NAME" in refused("doctor", tmp_path / "cheap.extxyz", "--key", "charge=q")
    assert "2 names with --fidelity for 1 files" in refused("doctor", folder / "low.extxyz", "-f", "a", "-f", "b")
    assert "no such file" in refused("doctor", tmp_path / "absent.extxyz")


def test_doctor_reads_files_of_mixed_levels(folder: Path, tmp_path: Path):
    frames = [*ase.io.read(folder / "low.extxyz", ":"), *ase.io.read(folder / "high.extxyz", ":")]
    ase.io.write(tmp_path / "both.extxyz", frames)
    lines = ok("doctor", tmp_path / "both.extxyz").stdout.splitlines()
    counts = [line.split()[:2] for line in lines if line.startswith(("low ", "high ")) and "→" not in line]
    assert counts == [["low", "12"], ["high", "9"]]


def test_warnings_are_one_line(model_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def warned(*args: object) -> dict:
        warnings.warn("something to know", stacklevel=2)
        return header

    header = read_header(model_file)
    monkeypatch.setattr("mfgp.model_file.read_header", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert ok("info", model_file).stderr == "warning: something to know\n"


def test_outputs_are_what_their_names_say(model_file: Path, folder: Path, tmp_path: Path) -> None:
    """Compressed where the name ends so; refused where it belongs to another format, before anything is computed."""
    data = folder / "low.extxyz"
    for name in ("p.extxyz.gz", "p.extxyz.xz"):
        ok("predict", model_file, data, "-o", tmp_path / name)
        assert len(ase.io.read(tmp_path / name, ":", format="extxyz")) == len(ase.io.read(data, ":"))
    assert (tmp_path / "p.extxyz.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert "extxyz, not .traj" in refused("predict", model_file, data, "-o", tmp_path / "p.traj")
    assert "extxyz, not .json" in refused("select", model_file, data, "-n", 1, "-o", tmp_path / "p.json")
    assert not (tmp_path / "p.traj").exists()
    (tmp_path / "plots").write_text("")
    assert "plots is a file" in refused("evaluate", model_file, data, "-f", "low", "--plots", tmp_path / "plots")


def test_costs_and_moments_of_the_calculation_are_not_those_of_a_prediction(model_file: Path, tmp_path: Path) -> None:
    atoms = alloy(3)
    atoms.info |= {"wall_seconds": 60.0, "cpu_seconds": 59.0, "total_magmom": 4.0, "name": "kept"}
    ase.io.write(tmp_path / "with@sign.extxyz", atoms)
    ok("predict", model_file, tmp_path / "with@sign.extxyz", "-o", tmp_path / "p.extxyz")
    info = ase.io.read(tmp_path / "p.extxyz").info
    assert info["name"] == "kept"
    assert not {"wall_seconds", "cpu_seconds", "total_magmom"} & set(info)


def test_a_doctor_whose_model_has_other_levels_still_says_the_rest(
    model_file: Path, folder: Path, tmp_path: Path
) -> None:
    """The level of a file is its name where the frames say none."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for path, source in (("emt.extxyz", "low"), ("a/run.extxyz", "low"), ("b/run.extxyz", "high")):
        frames = ase.io.read(folder / f"{source}.extxyz", ":")
        for atoms in frames:
            atoms.info.pop("fidelity", None)
        ase.io.write(tmp_path / path, frames)
    result = run("doctor", tmp_path / "emt.extxyz", "--model", model_file, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert "the model has the levels low, high" in result.stderr.replace("\n", " ")
    assert "--fidelity" in result.stderr
    assert "isolated atom" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["findings"]
    result = run("doctor", tmp_path / "a" / "run.extxyz", tmp_path / "b" / "run.extxyz")
    assert "2 files are taken for one level, 'run'" in result.stderr.replace("\n", " ")
    assert "for one level" not in run("doctor", folder / "low.extxyz", folder / "high.extxyz").stderr


def test_numbers_out_of_range_are_refused(model_file: Path, folder: Path, tmp_path: Path) -> None:
    data, out = folder / "low.extxyz", tmp_path / "out"
    assert "--seed" in refused("select", model_file, data, "-n", 1, "--seed", -5, "-o", out, code=2)
    assert "seed" in refused("fit", folder / "config.yaml", "-o", out, "--set", "seed=99999999999999999999")
    assert "--trials" in refused("tune", folder / "config.yaml", "-o", out, "--trials", 0, code=2)
    both = ("--workers", 2, "--scheduler", "tcp://127.0.0.1:1")
    assert "give one of them" in refused("fit", folder / "config.yaml", "-o", out, *both)


def test_a_model_is_not_written_over_a_folder(model: MultiFidelityGP, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="it is a folder"):
        model.save(tmp_path)
    with pytest.raises(ValueError, match="draws is -2"):
        model.predictor(draws=-2)
