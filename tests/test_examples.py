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
