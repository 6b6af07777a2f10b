"""`mfgp fit`: what it writes and says, what it refuses, and what it leaves when it is stopped."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from command_line import leftovers, ok, refused, run
from numpy.testing import assert_allclose

from mfgp import ModelFileError, MultiFidelityGP

MEMORY = r"estimate: ([\d.]+) (.)B of memory \(([\d.]+) (.)B that Python, .* already, ([\d.]+) MB for the fit\)"


MEGABYTES = {"M": 1.0, "G": 1000.0}


@pytest.mark.filterwarnings("default:repeated")
def test_a_dry_run_counts_what_a_fit_takes(data_folder: Path, tmp_path: Path):
    frames = ase.io.read(data_folder / "low.extxyz", ":")
    ase.io.write(tmp_path / "low.extxyz", [*frames, *frames[:5]])
    level = f"fidelities=[{{name: low, train: {tmp_path / 'low.extxyz'}}}]"
    results = [
        ok("fit", data_folder / "config.yaml", *options, "--set", level, "--set", "training.optimise=false")
        for options in (("--dry-run",), ("-o", tmp_path / "m.mfgp"))
    ]
    for result in results:
        assert result.stderr.count("repeated (same structure and labels) and skipped: 5 frames") == 1
        assert re.search(r"low +12 +48 +12 +12 +12", result.stdout)
    assert MultiFidelityGP.load(tmp_path / "m.mfgp").data["low"]["frames"] == 12


def test_fit_writes_the_model_of_the_python_interface(data_folder: Path, tmp_path: Path, model: MultiFidelityGP):
    result = ok("fit", data_folder / "config.yaml", "-o", tmp_path / "m.mfgp")
    for text in ("estimate:", "GFLOP/s", "rho, one for all elements", "low → high", "e0 (eV)", "training residuals"):
        assert text in result.stdout
    fitted = MultiFidelityGP.load(tmp_path / "m.mfgp")
    atoms = ase.io.read(data_folder / "high.extxyz")
    assert_allclose(fitted.predict(atoms).forces, model.predict(atoms).forces, rtol=0, atol=1e-4)
    assert leftovers(tmp_path) == []


def test_fit_says_what_it_did_differently(data_folder: Path, tmp_path: Path):
    settings = ("--set", "model.n_inducing=500", "--set", "model.zeta=1", "--set", "training.max_iterations=1")
    notices = ok("fit", data_folder / "config.yaml", "-o", tmp_path / "m.mfgp", *settings).stderr
    fitted = MultiFidelityGP.load(tmp_path / "m.mfgp")
    assert fitted.config.model.zeta == 1
    assert fitted.basis.size < 500
    assert f"note: {fitted.basis.size} inducing points, not 500" in notices
    assert "training.n_optimise or max_iterations" in notices


def test_a_dry_run_makes_the_baselines(data_folder: Path):
    name, setting = "baselines=[zbll]", "baselines=[{name: zbl, settings: {r_in: 1.0}}]"
    fit = ("fit", data_folder / "config.yaml", "--dry-run", "--set")
    assert "no calculator for baseline 'zbll'" in refused(*fit, name)
    assert "no setting 'r_in'; did you mean 'r_inner'?" in refused(*fit, setting)
    assert "what the baselines take (emt)" in ok(*fit, "baselines=[emt]").stderr


def test_workers_with_baselines_are_refused_before_anything_is_done(data_folder: Path):
    for extra in (("--dry-run",), ("-o", data_folder / "m.mfgp")):
        for option in (("--workers", 2), ("--scheduler", "tcp://127.0.0.1:1")):
            result = run("fit", data_folder / "config.yaml", *extra, *option, "--set", "baselines=[zbl]")
            assert result.exit_code == 1
            assert "takes no baselines" in result.stderr
            assert "frames" not in result.stdout  # the table of the data
    both = ("--workers", 2, "--scheduler", "tcp://127.0.0.1:1")
    assert "give one of them" in refused("fit", data_folder / "config.yaml", "--dry-run", *both)


def test_fit_of_one_level_with_a_baseline(data_folder: Path, tmp_path: Path):
    settings = ("--set", "fidelities=[{name: low, train: low.extxyz}]", "--set", "baselines=[{name: zbl}]")
    for out in (
        ok("fit", data_folder / "config.yaml", "-o", tmp_path / "m.mfgp", *settings).stdout,
        ok("info", tmp_path / "m.mfgp").stdout,
    ):
        assert "baseline coefficients" in out
        assert "zbl" in out
        assert "rho by" not in out


def test_dry_run_estimates_and_writes_nothing(data_folder: Path, tmp_path: Path):
    result = ok("fit", data_folder / "config.yaml", "-o", tmp_path / "m.mfgp", "--dry-run")
    assert "estimate:" in result.stdout
    assert "rho" not in result.stdout
    assert list(tmp_path.iterdir()) == []
    again = ok("fit", data_folder / "config.yaml", "--dry-run").stdout
    total, unit, held, unit_held, fit = re.search(MEMORY, again).groups()  # type: ignore[union-attr]
    total, held, fit = float(total) * MEGABYTES[unit], float(held) * MEGABYTES[unit_held], float(fit)
    assert held > 100  # MB: Python and torch
    rounding = 0.05 * (MEGABYTES[unit] + MEGABYTES[unit_held]) if "G" in (unit, unit_held) else 0.0  # one digit
    assert total == pytest.approx(held + fit, rel=0.05, abs=rounding)


def test_fit_refuses_bad_settings(data_folder: Path, tmp_path: Path):
    config, out = data_folder / "config.yaml", tmp_path / "m.mfgp"
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


def test_fit_refuses_bad_data(data_folder: Path, tmp_path: Path):
    config, out = data_folder / "config.yaml", tmp_path / "m.mfgp"
    assert "no file 'gone.extxyz'" in refused("fit", config, "-o", out, "--set", "fidelities.0.train=gone.extxyz")
    frames = ase.io.read(data_folder / "low.extxyz", ":3")
    frames[1].arrays["REF_forces"][2, 0] = np.nan
    ase.io.write(data_folder / "nan.extxyz", frames)
    message = refused("fit", config, "-o", out, "--set", "fidelities.0.train=nan.extxyz")
    assert "nan.extxyz frame 1" in message
    assert "NaN force on atoms [2]" in message
    for atoms in (frames := ase.io.read(data_folder / "low.extxyz", ":2")):
        atoms.info["split"] = "test"
    ase.io.write(data_folder / "held.extxyz", frames)
    assert "no training frame" in refused("fit", config, "-o", out, "--set", "fidelities.0.train=held.extxyz")
    message = refused("fit", config, "-o", out, "--set", "keys.energy=dft_energy")
    assert "'dft_energy'" in message
    assert "REF_energy" in message  # found instead
    assert not out.exists()


def test_an_interrupted_fit_keeps_the_old_model(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "m.mfgp"
    out.write_bytes(b"the old model")

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mfgp.fit.fitting.training_data", interrupted)
    assert "interrupted" in refused("fit", data_folder / "config.yaml", "-o", out, code=130)
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
    failure: BaseException, code: int, message: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "m.mfgp"
    out.write_bytes(b"the old model")

    def half(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half a mod")
        raise failure

    monkeypatch.setattr("mfgp.model_file.save_file", half)
    fast = ("--set", "training.optimise=false")
    assert message in refused("fit", data_folder / "config.yaml", "-o", out, *fast, code=code)
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


def test_calibrated_and_raw_standard_deviations(data_folder: Path, tmp_path: Path):
    """A fit shows its calibration, `info` too; --raw-std gives the posterior's own deviations and the same means."""
    fitted = ok("fit", data_folder / "config.yaml", "-o", tmp_path / "m.mfgp", "--set", "training.calibrate=true")
    assert "calibration" in fitted.stdout
    told = ok("info", tmp_path / "m.mfgp").stdout
    assert "forces on Cu" in told
    for out in (fitted.stdout, told):  # the words of the tables are explained under them
        assert "factors of the three parts of a standard deviation" in out
        assert "share of left-out labels inside the 95 % interval" in out.replace("\n", " ")
    results = []
    for flags in ((), ("--raw-std",)):
        ok("evaluate", tmp_path / "m.mfgp", data_folder / "high.extxyz", "--json", tmp_path / "s.json", *flags)
        ok("predict", tmp_path / "m.mfgp", data_folder / "high.extxyz", "-o", tmp_path / "p.extxyz", *flags)
        results.append((json.loads((tmp_path / "s.json").read_text()), ase.io.read(tmp_path / "p.extxyz")))
    (calibrated, p), (raw, q) = results
    assert calibrated["forces"]["mae"] == raw["forces"]["mae"]
    assert abs(calibrated["forces"]["sharpness"] / raw["forces"]["sharpness"] - 1) > 0.01
    assert_allclose(p.get_forces(), q.get_forces(), rtol=0, atol=1e-8)
    assert not np.allclose(p.arrays["forces_std"], q.arrays["forces_std"], rtol=0.01)


def test_a_fit_tells_of_levels_without_energies(data_folder: Path, tmp_path: Path):
    frames = ase.io.read(data_folder / "high.extxyz", ":")
    for atoms in frames:
        del atoms.info["REF_energy"]
    ase.io.write(tmp_path / "high.extxyz", frames)
    (tmp_path / "low.extxyz").write_text((data_folder / "low.extxyz").read_text())
    (tmp_path / "config.yaml").write_text((data_folder / "config.yaml").read_text())
    notices = ok("fit", tmp_path / "config.yaml", "-o", tmp_path / "m.mfgp", "--set", "training.optimise=false").stderr
    assert "note: no energies among the labels of high: total energies there" in notices
    assert "no energies among" not in ok("fit", data_folder / "config.yaml", "-o", tmp_path / "n.mfgp").stderr


def test_a_fit_tells_of_levels_without_forces_and_of_a_weak_repulsion(data_folder: Path, tmp_path: Path):
    frames = ase.io.read(data_folder / "high.extxyz", ":")
    for atoms in frames:
        del atoms.arrays["REF_forces"]
    ase.io.write(tmp_path / "high.extxyz", frames)
    (tmp_path / "low.extxyz").write_text((data_folder / "low.extxyz").read_text())
    settings = yaml.safe_load((data_folder / "config.yaml").read_text())
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


def test_a_baseline_has_no_weak_repulsion_where_it_is_not_used(data_folder: Path, tmp_path: Path):
    zbl = "baselines=[{name: zbl, from_level: high, coefficient: {mean: 1.0, std: 0.01}}]"
    options = ("--set", zbl, "--set", "training.optimise=false")
    assert (
        "coefficient of zbl" not in ok("fit", data_folder / "config.yaml", "-o", tmp_path / "m.mfgp", *options).stderr
    )


def test_a_descriptor_that_cannot_be_built_is_one_line(data_folder: Path, tmp_path: Path):
    for dry in (["--dry-run"], ["-o", tmp_path / "m.mfgp"]):
        settings = ["--set", "descriptor.n_max=16", "--set", "descriptor.l_max=10"]
        assert "error: descriptor: the 16 radial functions" in refused(
            "fit", data_folder / "config.yaml", *dry, *settings
        )


def test_a_model_is_not_written_over_a_folder(model: MultiFidelityGP, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="it is a folder"):
        model.save(tmp_path)
    with pytest.raises(ValueError, match="draws is -2"):
        model.predictor(draws=-2)
