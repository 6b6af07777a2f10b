"""Every example runs, at a reduced size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mfgp import MultiFidelityGP

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_lmfp_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "lmfp" / "demo.py"), "--out", str(tmp_path)]
    command += ["--sizes", "3,6", "--n-inducing", "60", "--steps", "5", "--n-nm", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("estimate", "joint", "magnetic only", "delta-learning", "drift", "largest std"):
        assert text in done.stdout
    assert len(re.findall(r"meV/atom", done.stdout)) >= 6
    for name in ("learning_curve.png", "mag_parity.png", "mag_calibration.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert MultiFidelityGP.load(tmp_path / "lmfp.mfgp").levels == ("nm", "mag")


@pytest.mark.slow
def test_on_the_fly(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "on_the_fly.py"), "--out", str(tmp_path)]
    command += ["--steps", "1", "--n-start", "3", "--n-inducing", "40", "--n-test", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "with what it learned: force RMSE" in done.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_campaign_example_is_prepared_and_read(tmp_path: Path) -> None:
    from mfgp.campaign.config import load_campaign_config

    folder = ROOT / "examples" / "campaign"
    command = [sys.executable, str(folder / "prepare.py"), "--out", str(tmp_path), "--n-pool", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "10 gfn1 and 10 mag labels, 3 structures in the pool" in done.stdout, done.stderr
    for name in ("campaign.yaml", "fit.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    assert load_campaign_config(tmp_path / "campaign.yaml").levels["gfn1"].calculator == "tblite"
