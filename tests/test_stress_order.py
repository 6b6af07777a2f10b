"""Shear stresses in the order of another program are named after a fit, right ones never."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.io import write
from conftest import DESCRIPTOR, alloy, label
from typer.testing import CliRunner

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.cli import app
from mfgp.notes.stress_order import other_orders, residuals, some

SETTINGS = {
    "descriptor": DESCRIPTOR,
    "model": {"zeta": 2, "n_inducing": 60},
    "training": {"max_iterations": 20, "calibrate": False},
}


def ordered(n: int, order: tuple[int, ...] = (0, 1, 2), level: str = "low") -> list[Atoms]:
    """Alloys whose shear labels yz xz xy are written in another order."""
    out = [label(alloy(i), level) for i in range(n)]
    for atoms in out:
        atoms.info["REF_stress"][3:] = atoms.info["REF_stress"][3:][list(order)]
    return out


def test_the_order_of_the_labels_has_the_smallest_residual() -> None:
    predictions = np.random.default_rng(0).normal(size=(8, 3))
    for order in permutations(range(3)):
        found = residuals(predictions[:, order], predictions)
        assert not found[order].any()
        assert min(value.mean() for other, value in found.items() if other != order) > 0.5


@pytest.mark.filterwarnings("ignore:level low. the shear")  # of the fit
@pytest.mark.parametrize(
    ("order", "name"),
    [((2, 0, 1), "xx yy zz xy yz xz, that of VASP"), ((2, 1, 0), "xx yy zz xy xz yz, that of LAMMPS")],
)
def test_other_orders_are_named(order: tuple[int, ...], name: str) -> None:
    frames = read_frames({"low": ordered(12, order), "high": ordered(12, level="high")})
    (found,) = other_orders(MultiFidelityGP.fit(frames, FitConfig(**SETTINGS), progress=False), frames)
    assert found.text.startswith(f"level low: the shear stresses agree with the model far better in the order {name}")
    assert found.frames == tuple(frames.of("low"))


def test_the_right_order_and_few_frames_are_no_news() -> None:
    for frames in (read_frames({"low": ordered(12)}), read_frames({"low": ordered(7, (2, 0, 1))})):
        assert other_orders(MultiFidelityGP.fit(frames, FitConfig(**SETTINGS), progress=False), frames) == []


@pytest.mark.filterwarnings("ignore:level low. the shear")  # of the fit
def test_some_frames_in_another_order_are_named() -> None:
    """None of the others; and fewer are no news."""
    every = ordered(24)
    for k, other in enumerate(ordered(7, (2, 1, 0))):
        every[3 * k] = other
    frames = read_frames({"low": every})
    model = MultiFidelityGP.fit(frames, FitConfig(**SETTINGS), progress=False)
    (found,) = other_orders(model, frames)
    low = frames.of("low")
    assert re.match(
        r"level low: the shear stresses of [4-7] of 24 frames agree .* in the order xx yy zz xy xz yz", found.text
    )
    assert f"{found.frames[0].source} first" in found.text
    assert {f.source for f in found.frames} <= {low[3 * k].source for k in range(7)}
    predictions = np.random.default_rng(1).normal(size=(24, 3))
    labels = predictions + 0.05 * np.random.default_rng(2).normal(size=(24, 3))
    assert not some(residuals(labels, predictions))
    labels[:3] = labels[:3, [2, 1, 0]]
    assert some(residuals(labels, predictions)) == {}
    labels[3:5] = labels[3:5, [2, 1, 0]]
    (order,) = some(residuals(labels, predictions))
    assert order == (2, 1, 0)
    labels = predictions + 0.5 * np.random.default_rng(2).standard_cauchy(size=(24, 3))  # wrong otherwise
    assert some(residuals(labels, predictions)) == {}


def test_other_mistakes_are_no_order() -> None:
    """Of signs that are wrong and stresses of other frames, 40 of 100, some fit an order by chance."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        predictions = rng.normal(size=(100, 3))
        good = predictions + 0.05 * rng.normal(size=(100, 3))
        for wrong in (-good[:40], good[40:80]):
            assert not some(residuals(np.concatenate([wrong, good[40:]]), predictions))


def test_a_fit_in_python_warns() -> None:
    """Once; right ones are fitted without a warning (which would be an error here)."""
    calibrated = FitConfig(**{**SETTINGS, "training": {"max_iterations": 20}})
    frames = read_frames({"low": ordered(12, (2, 0, 1)), "high": ordered(12, level="high")})
    with pytest.warns(UserWarning, match="shear") as told:
        MultiFidelityGP.fit(frames, calibrated, progress=False)
    (message,) = [str(w.message) for w in told if "shear" in str(w.message)]
    assert message.startswith(
        "level low: the shear stresses agree with the model far better in the order xx yy zz xy yz xz"
    )
    assert told[0].filename == __file__
    MultiFidelityGP.fit(
        read_frames({"low": ordered(12), "high": ordered(12, level="high")}), calibrated, progress=False
    )


@pytest.mark.filterwarnings("default:level low. the shear")  # of the fit
@pytest.mark.parametrize("calibrate", [False, True])
def test_fit_and_doctor_say_so(tmp_path: Path, calibrate: bool) -> None:
    write(tmp_path / "low.extxyz", ordered(12, (2, 0, 1)))
    training = {"max_iterations": 20, "calibrate": calibrate}
    settings = {**SETTINGS, "training": training, "fidelities": [{"name": "low", "train": "low.extxyz"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    model = str(tmp_path / "m.mfgp")
    fit = CliRunner().invoke(app, ["fit", str(tmp_path / "config.yaml"), "-o", model])
    assert fit.stderr.replace("\n", " ").count("level low: the shear stresses agree") == 1
    doctor = CliRunner().invoke(app, ["doctor", str(tmp_path / "low.extxyz"), "--model", model, "--rounds", "0"])
    assert "warning: stress order: level low: the shear stresses agree" in doctor.stdout
