"""Fits, estimates, workers and commands on the CUDA branch against the CPU (test_device.py: what one model does there)."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import numpy as np
import pytest
import torch
import yaml
from ase.io import read, write
from conftest import DESCRIPTOR, alloy, label
from numpy.testing import assert_allclose
from test_device import CONFIG, LJ, ON_CUDA, agree, frames  # noqa: F401
from typer.testing import CliRunner

import mfgp.distributed
from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.base.devices import available_memory
from mfgp.cli import app
from mfgp.distributed import DistributedPass
from mfgp.estimate import estimate
from mfgp.fit.accumulation import accumulate
from mfgp.fit.features import Features
from mfgp.gp.statistics import Statistics
from mfgp.tuning import cross_validated_score

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:a structure repeats later")]


@pytest.mark.parametrize("objective", ["vfe", "cv"])
def test_other_objectives(frames: FrameSet, cuda: torch.device, objective: str) -> None:
    training = {"max_iterations": 2, "calibrate": False, "objective": objective}
    config = {"descriptor": DESCRIPTOR, "model": {"zeta": 2, "n_inducing": 10}, "training": training}
    ours, theirs = (
        MultiFidelityGP.fit(frames, FitConfig(**config, device=name), progress=False) for name in ("cuda", "cpu")
    )
    assert ours.weights.device == cuda
    assert ours.training.evidence == pytest.approx(theirs.training.evidence, rel=1e-6)  # type: ignore[union-attr]


def test_an_estimate_and_a_score(frames: FrameSet, cuda: torch.device) -> None:
    config = FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 10},
        training={"max_iterations": 2, "calibrate": False},
        device="cuda",
    )
    found = estimate(frames, config)
    assert found.seconds > 0
    assert available_memory(cuda) == torch.cuda.mem_get_info(cuda)[0]
    on_cpu = config.model_copy(update={"device": "cpu"})
    assert cross_validated_score(frames, config) == pytest.approx(cross_validated_score(frames, on_cpu), rel=1e-5)


class Workers:
    """A client whose tasks are done here, in the order in which they come, each by the next of two workers."""

    def __init__(self) -> None:
        self.tasks = 0

    def scheduler_info(self) -> dict[str, object]:
        return {"workers": {0: {}, 1: {}}}

    def submit(self, function: Callable[..., Any], *args: Any, pure: bool) -> Done:
        self.tasks += 1
        return Done(function(*(a.value if isinstance(a, Done) else a for a in args)))


@dataclass(frozen=True, eq=False)
class Done:
    value: Any

    def result(self) -> Any:
        return self.value


PLAIN = FitConfig(
    descriptor=DESCRIPTOR,
    model={"zeta": 2, "n_inducing": 20},
    training={"max_iterations": 2, "calibrate": False},
    device="cpu",
)


def test_workers_with_a_gpu_each(frames: FrameSet, cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of a pass on workers: features reach them through the CPU, each computes on its device."""
    host = MultiFidelityGP.fit(frames, PLAIN, progress=False)
    workers = Workers()
    monkeypatch.setattr(distributed, "as_completed", iter)
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=workers.tasks % 2))
    seen: list[torch.device] = []

    def watched(some: FrameSet, features: Features, *rest: Any) -> Statistics:
        seen.append(features.device)
        return accumulate(some, features, *rest)

    monkeypatch.setattr(mfgp.distributed, "accumulate", watched)
    arguments = ([], 0.005)
    found = DistributedPass(workers)(frames, host.features.to(cuda), host.columns.to(cuda), *arguments)  # type: ignore[arg-type]
    assert len(seen) == len(frames)
    assert set(seen) == {torch.device("cuda", i % torch.cuda.device_count()) for i in range(2)}
    expected = accumulate(frames, host.features, host.columns, *arguments)
    assert {m.gram.device for m in found.moments.values()} == {cuda}
    for key, m in found.to("cpu").moments.items():
        assert_allclose(m.gram, expected.moments[key].gram, rtol=0, atol=1e-9 * float(m.gram.abs().max()))


def test_the_command_line(tmp_path: Path, cuda: torch.device) -> None:
    """Fit, predict and evaluate with `device: cuda` in the configuration."""
    for level, n in (("low", 6), ("high", 4)):
        write(tmp_path / f"{level}.extxyz", [label(alloy(i), level) for i in range(n)])
    settings = PLAIN.model_dump(mode="json", include={"descriptor", "model", "training"})
    settings["fidelities"] = [{"name": level, "train": f"{level}.extxyz"} for level in ("low", "high")]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    high, fidelity = str(tmp_path / "high.extxyz"), ("--fidelity", "high")
    forces, scores = [], []
    for device in ("cpu", "cuda"):
        model, out, report = (str(tmp_path / f"{device}.{end}") for end in ("mfgp", "extxyz", "json"))
        for command in (
            ("fit", str(tmp_path / "config.yaml"), "-o", model, "--set", f"device={device}"),
            ("predict", model, high, "-o", out, *fidelity),
            ("evaluate", model, high, *fidelity, "--json", report),
        ):
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 0, done.output
        forces.append(read(out).get_forces())
        scores.append(json.loads(Path(report).read_text())["forces"])
    assert_allclose(forces[1], forces[0], rtol=0, atol=1e-3 * np.abs(forces[0]).max())  # two fits
    assert scores[1]["rmse"] == pytest.approx(scores[0]["rmse"], rel=1e-2)
