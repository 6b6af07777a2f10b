"""The command line: one clean line and an exit code for every mistake of a user; `mfgp info` and `doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
from command_line import ok, refused, run
from safetensors.numpy import save_file

import mfgp
from mfgp import MultiFidelityGP
from mfgp.model_file import read_header


def test_help_is_quick_and_complete():
    code = "import sys; from mfgp.cli import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(command in out for command in ("fit", "evaluate", "predict", "info", "doctor"))
    assert not any(f"'{name}'" in out for name in ("torch", "scipy", "matplotlib", "pydantic"))
    assert ok("--version").output == f"mfgp {mfgp.__version__}\n"
    module = subprocess.run([sys.executable, "-m", "mfgp", "--version"], check=True, capture_output=True, text=True)
    assert module.stdout == f"mfgp {mfgp.__version__}\n"


def test_modules_are_attributes_of_the_package():
    """Without an import of their own, and torch only where it is needed."""
    lines = (
        "import sys, mfgp",
        "print(mfgp.errors.__name__, hasattr(mfgp, 'filings'), hasattr(mfgp, '__wrapped__'), 'torch' in sys.modules)",
        "print(mfgp.datasets.load_lmfp.__name__, mfgp.evaluation.evaluate.__name__)",
    )
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["mfgp.errors", "False", "False", "False", "load_lmfp", "evaluate"]


def test_a_mistake_of_ours_is_not_hidden(model_file: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(path: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("mfgp.model_file.read_header", broken)
    assert isinstance(run("info", model_file).exception, RuntimeError)


def test_no_command_replaces_its_inputs(model_file: Path, data_folder: Path, tmp_path: Path):
    for name in ("low.extxyz", "high.extxyz", "config.yaml"):
        (tmp_path / name).write_bytes((data_folder / name).read_bytes())
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


def test_doctor_has_no_scores_for_held_out_frames(model_file: Path, data_folder: Path, tmp_path: Path):
    """It says so, and the rest; held-out frames beside training ones may be of a level that the model does not have."""
    held_out = [a for a in ase.io.read(data_folder / "high.extxyz", ":") if a.info.get("split") == "test"]
    ase.io.write(tmp_path / "high.extxyz", held_out)
    done = ok("doctor", tmp_path / "high.extxyz", "--model", model_file, "--json", tmp_path / "report.json")
    assert "info: leave-one-out: every frame is held out" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["labels"] == []
    assert {"split", "leave-one-out"} <= {finding["check"] for finding in report["findings"]}
    refused("doctor", tmp_path / "high.extxyz", "--model", tmp_path / "high.extxyz")
    for atoms in held_out:
        atoms.info["fidelity"] = "another"
    ase.io.write(tmp_path / "another.extxyz", held_out)
    files = (data_folder / "low.extxyz", data_folder / "high.extxyz", tmp_path / "another.extxyz")
    assert "error: --model" not in run("doctor", *files, "--model", model_file, "--rounds", 0).stderr


@pytest.mark.parametrize("command", ["evaluate", "predict", "info"])
def test_what_is_not_a_model_is_refused(command: str, model_file: Path, data_folder: Path, tmp_path: Path):
    rest = {
        "evaluate": [data_folder / "high.extxyz"],
        "predict": [data_folder / "high.extxyz", "-o", tmp_path / "o.extxyz"],
    }
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


def test_streams_without_the_characters_of_units_do_not_end_a_command(
    model_file: Path, data_folder: Path, tmp_path: Path
):
    """A process of its own: the encoding of its streams is set before Python starts."""
    command = [
        "-c",
        "from mfgp.cli import app; app()",
        "evaluate",
        model_file,
        data_folder / "high.extxyz",
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


def test_info_reads_the_header_alone(model_file: Path, tmp_path: Path, model: MultiFidelityGP):
    out = ok("info", model_file).stdout
    for text in ("low → high (cheapest first)", "Cu, Au", "r_cut 4.5 Å", "zeta 2", "none", model.data_hash()):
        assert text in out
    rows = [line.split()[0] for line in out.splitlines() if line.startswith(("low", "high"))]
    assert rows == ["low", "high", "low", "high", "low", "low", "high"]  # data, amplitudes, rho, e0: cheapest first
    e0 = model.hyperparameters()["e0"]["high"]
    assert f"{e0['Cu']:.4f}" in out


@pytest.mark.filterwarnings("default:.*exactly zero")
def test_doctor_passes_good_data_and_fails_bad(data_folder: Path, tmp_path: Path):
    good = ok("doctor", data_folder / "low.extxyz", data_folder / "high.extxyz")
    assert "low → high" in good.stdout
    frames = ase.io.read(data_folder / "low.extxyz", ":")
    for atoms in frames:
        atoms.arrays["REF_forces"] *= 0.0
    ase.io.write(tmp_path / "zero.extxyz", frames)
    result = run("doctor", tmp_path / "zero.extxyz", "--fidelity", "low")
    assert result.exit_code == 1
    assert "error: " in result.stdout
    assert "error" in result.stdout.splitlines()[-1]


def test_doctor_names_levels_and_labels(data_folder: Path, tmp_path: Path):
    frames = ase.io.read(data_folder / "low.extxyz", ":4")
    for atoms in frames:
        del atoms.info["fidelity"]
        atoms.info["dft_energy"] = atoms.info.pop("REF_energy")
    ase.io.write(tmp_path / "cheap.extxyz", frames)
    assert "cheap " in ok("doctor", tmp_path / "cheap.extxyz", "--key", "energy=dft_energy").stdout
    named = ok("doctor", tmp_path / "cheap.extxyz", "-f", "nm", "--key", "energy=dft_energy").stdout
    assert "nm " in named
    assert "LABEL=NAME" in refused("doctor", tmp_path / "cheap.extxyz", "--key", "charge=q")
    assert "2 names with --fidelity for 1 files" in refused("doctor", data_folder / "low.extxyz", "-f", "a", "-f", "b")
    assert "no such file" in refused("doctor", tmp_path / "absent.extxyz")


def test_doctor_reads_files_of_mixed_levels(data_folder: Path, tmp_path: Path):
    frames = [*ase.io.read(data_folder / "low.extxyz", ":"), *ase.io.read(data_folder / "high.extxyz", ":")]
    ase.io.write(tmp_path / "both.extxyz", frames)
    lines = ok("doctor", tmp_path / "both.extxyz").stdout.splitlines()
    counts = [line.split()[:2] for line in lines if line.startswith(("low ", "high ")) and "→" not in line]
    assert counts == [["low", "12"], ["high", "9"]]


def test_warnings_are_one_line(model_file: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def warned(*args: object) -> dict:
        warnings.warn("something to know", stacklevel=2)
        return header

    header = read_header(model_file)
    monkeypatch.setattr("mfgp.model_file.read_header", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert ok("info", model_file).stderr == "warning: something to know\n"


def test_outputs_are_what_their_names_say(model_file: Path, data_folder: Path, tmp_path: Path) -> None:
    """Compressed where the name ends so; refused where it belongs to another format, before anything is computed."""
    data = data_folder / "low.extxyz"
    for name in ("p.extxyz.gz", "p.extxyz.xz"):
        ok("predict", model_file, data, "-o", tmp_path / name)
        assert len(ase.io.read(tmp_path / name, ":", format="extxyz")) == len(ase.io.read(data, ":"))
    assert (tmp_path / "p.extxyz.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert "extxyz, not .traj" in refused("predict", model_file, data, "-o", tmp_path / "p.traj")
    assert "extxyz, not .json" in refused("select", model_file, data, "-n", 1, "-o", tmp_path / "p.json")
    assert not (tmp_path / "p.traj").exists()
    (tmp_path / "plots").write_text("")
    assert "plots is a file" in refused("evaluate", model_file, data, "-f", "low", "--plots", tmp_path / "plots")


def test_a_doctor_whose_model_has_other_levels_still_says_the_rest(
    model_file: Path, data_folder: Path, tmp_path: Path
) -> None:
    """The level of a file is its name where the frames say none."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for path, source in (("emt.extxyz", "low"), ("a/run.extxyz", "low"), ("b/run.extxyz", "high")):
        frames = ase.io.read(data_folder / f"{source}.extxyz", ":")
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
    assert "for one level" not in run("doctor", data_folder / "low.extxyz", data_folder / "high.extxyz").stderr


def test_numbers_out_of_range_are_refused(model_file: Path, data_folder: Path, tmp_path: Path) -> None:
    data, out = data_folder / "low.extxyz", tmp_path / "out"
    assert "--seed" in refused("select", model_file, data, "-n", 1, "--seed", -5, "-o", out, code=2)
    assert "seed" in refused("fit", data_folder / "config.yaml", "-o", out, "--set", "seed=99999999999999999999")
    assert "--trials" in refused("tune", data_folder / "config.yaml", "-o", out, "--trials", 0, code=2)
    both = ("--workers", 2, "--scheduler", "tcp://127.0.0.1:1")
    assert "give one of them" in refused("fit", data_folder / "config.yaml", "-o", out, *both)
