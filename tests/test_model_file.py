"""Model files: the same predictions after a round trip, and a sentence that helps for everything else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones
from conftest import DESCRIPTOR, alloy, label
from model_files import as_written, rewrite
from numpy.testing import assert_allclose
from safetensors.torch import save_file

from mfgp import ConfigError, FitConfig, FrameSet, ModelFileError, MultiFidelityGP, read_frames
from mfgp.frames import to_atoms
from mfgp.gp.hyperparameters import Evidence
from mfgp.model_file import read_header
from mfgp.model_upgrades import SCHEMA


@pytest.fixture
def path(model: MultiFidelityGP, tmp_path: Path) -> Path:
    target = tmp_path / "alloy.mfgp"
    model.save(target)
    return target


def test_round_trip_predicts_and_updates_alike(model: MultiFidelityGP, path: Path) -> None:
    loaded = MultiFidelityGP.load(path)
    for level in model.levels:
        p, q = model.predict(alloy(80), level), loaded.predict(alloy(80), level)
        assert p.energy == pytest.approx(q.energy, abs=1e-9)
        assert_allclose(p.forces, q.forces, rtol=0, atol=1e-9)
        assert_allclose(np.asarray(p.forces_std), np.asarray(q.forces_std), rtol=0, atol=1e-9)
        assert_allclose(np.asarray(p.stress_std), np.asarray(q.stress_std), rtol=0, atol=1e-9)
    assert loaded.levels == model.levels
    assert loaded.data_hash() == model.data_hash()
    before = loaded.predict(alloy(81)).energy
    loaded.update([label(alloy(81), "high")])
    assert loaded.predict(alloy(81)).energy != before


def test_header_is_plain_json_with_units_and_counts(path: Path) -> None:
    header = read_header(path)
    assert header["schema"] == SCHEMA
    assert header["units"]["forces"] == "eV/Å"
    assert header["data"]["high"]["frames"] == 5
    assert header["levels"] == ["low", "high"]


def test_contraction_survives(two_levels: FrameSet, tmp_path: Path) -> None:
    config = FitConfig(
        descriptor=DESCRIPTOR | {"contraction": 0.9999},
        model={"zeta": 2, "n_inducing": 20},
        training={"optimise": False},
    )
    model = MultiFidelityGP.fit(two_levels, config, progress=False)
    model.save(tmp_path / "m.mfgp")
    q = MultiFidelityGP.load(tmp_path / "m.mfgp").predict(alloy(82))
    assert_allclose(q.forces, model.predict(alloy(82)).forces, rtol=0, atol=1e-9)
    assert model.soap.contraction is not None


def test_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFileError, match=r"alloy\.mfgp is not a complete model file"):
        MultiFidelityGP.load(path)


def test_flipped_bytes(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match="damaged"):
        MultiFidelityGP.load(path)


@pytest.mark.parametrize(("old", "new"), [(b'\\"zeta\\": 2', b'\\"zeta\\": 4'), (b'\\"hash\\"', b'\\"hush\\"')])
def test_changed_header(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert raw.count(old) >= 1
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(ModelFileError, match="damaged"):
        MultiFidelityGP.load(path)


def test_evidence_is_the_same_after_loading(model: MultiFidelityGP, path: Path) -> None:
    def value(m: MultiFidelityGP) -> float:
        return Evidence(m.noise, m.prior)(m.statistics, m.basis.species_index(), m.column_std).item()

    assert value(MultiFidelityGP.load(path)) == pytest.approx(value(model), abs=1e-6)


def test_later_schema(path: Path) -> None:
    rewrite(path, {"schema": SCHEMA + 1, "mfgp_version": "9.9"})
    with pytest.raises(ModelFileError, match=r"written by mfgp 9\.9.*Upgrade mfgp"):
        MultiFidelityGP.load(path)


def test_not_a_model(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(ModelFileError, match=r"notes\.txt is no model file: found a text file"):
        MultiFidelityGP.load(text)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(ModelFileError, match="found safetensors without the header of mfgp"):
        MultiFidelityGP.load(other)
    with pytest.raises(ModelFileError, match=r"no model file .*missing\.mfgp"):
        MultiFidelityGP.load(tmp_path / "missing.mfgp")


def test_failed_save_leaves_the_old_model(path: Path, model: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def broken(*args: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("mfgp.model_file.save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        model.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_kill_nine_while_saving_leaves_a_whole_model(path: Path) -> None:
    """A process that saves over the model again and again is killed at several moments."""
    code = (
        "import sys; from mfgp import MultiFidelityGP; m = MultiFidelityGP.load(sys.argv[1]); print('go', flush=True)\n"
        "while True: m.save(sys.argv[1])"
    )
    for delay in (0.001, 0.004, 0.011):
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        MultiFidelityGP.load(path)


def test_calibration_is_stored(model: MultiFidelityGP, two_levels: FrameSet, path: Path) -> None:
    loaded = MultiFidelityGP.load(path)
    assert loaded.calibration is None
    loaded.calibrate(two_levels.training())
    loaded.save(path)
    again = MultiFidelityGP.load(path)
    assert again.calibration == loaded.calibration is not None
    # eV/Å: the posterior is solved again, the same to rounding
    assert_allclose(again.predict(alloy(80)).forces_std, loaded.predict(alloy(80)).forces_std, rtol=0, atol=1e-9)


def test_a_baseline_is_the_one_of_the_fit(two_levels: FrameSet, tmp_path: Path) -> None:
    """A structure of a level that uses it, and no isolated atom: those have the same energy whatever the parameters."""
    single = Atoms("Cu", info={"REF_energy": -3.0, "fidelity": "high"})
    small = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.4]], info={"REF_energy": -7.0, "fidelity": "low"})
    frames = read_frames([single, small, *map(to_atoms, two_levels.training())], levels=["low", "high"])
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 20},
        training={"optimise": False, "calibrate": False},
        baselines=[{"name": "mylj", "from_level": "high"}, {"name": "emt"}],
    )
    weak, strong = (LennardJones(sigma=2.3, epsilon=e, rc=6.0, smooth=True) for e in (0.05, 0.06))
    model = MultiFidelityGP.fit(frames, config, baselines={"mylj": weak}, progress=False)
    model.save(tmp_path / "m.mfgp")
    assert set(read_header(tmp_path / "m.mfgp")["baseline_checks"]) == {"mylj"}
    loaded = MultiFidelityGP.load(tmp_path / "m.mfgp", baselines={"mylj": weak})
    loaded.save(tmp_path / "again.mfgp")
    energies = [strong.get_potential_energy(alloy(0)), weak.get_potential_energy(alloy(0))]
    text = rf"'mylj': this calculator gives AuCuAuCu.* {energies[0]:.4f} eV, .* gave {energies[1]:.4f} eV"
    for name in ("m.mfgp", "again.mfgp"):
        with pytest.raises(ConfigError, match=text):
            MultiFidelityGP.load(tmp_path / name, baselines={"mylj": strong})
    as_written(tmp_path / "m.mfgp", {"schema": 10}, ("baseline_checks", "own_sigmas", "centred"))
    MultiFidelityGP.load(tmp_path / "m.mfgp", baselines={"mylj": strong})  # as files from before there was one


def test_a_calculator_of_ones_own_under_a_known_name(two_levels: FrameSet, tmp_path: Path) -> None:
    """The file does not load with the calculator that the name stands for."""
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 20},
        training={"optimise": False, "calibrate": False},
        baselines=["emt"],
    )
    own = LennardJones(sigma=2.3, epsilon=0.05, rc=6.0, smooth=True)
    model = MultiFidelityGP.fit(two_levels, config, baselines={"emt": own}, progress=False)
    model.save(tmp_path / "own.mfgp")
    with pytest.raises(ConfigError, match="'emt': this calculator gives"):
        MultiFidelityGP.load(tmp_path / "own.mfgp")
    loaded = MultiFidelityGP.load(tmp_path / "own.mfgp", baselines={"emt": own})
    assert loaded.predict(alloy(80)).energy == pytest.approx(model.predict(alloy(80)).energy, abs=1e-9)
    MultiFidelityGP.fit(two_levels, config, progress=False).save(tmp_path / "known.mfgp")
    assert MultiFidelityGP.load(tmp_path / "known.mfgp").baseline_checks == {}
