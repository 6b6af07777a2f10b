"""`mfgp campaign ...` from init to report, with EMT."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ase.io import read, write
from command_line import ok, refused
from conftest import alloy, label
from test_campaign import client, in_process  # noqa: F401 (fixtures)

from mfgp import MultiFidelityGP, read_frames


@pytest.fixture
def folder(tmp_path: Path, model: MultiFidelityGP, monkeypatch: pytest.MonkeyPatch) -> Path:
    model.save(tmp_path / "model.mfgp")
    write(tmp_path / "pool<b>.extxyz", [alloy(500 + i, rattle=0.2) for i in range(4)])
    values = {
        "target": "low",
        "model": "model.mfgp",
        "pool": "pool<b>.extxyz",
        "stop": {"steps": 5},
        "batch": {"n": 2},
        "levels": {"low": {"calculator": "emt", "hours": 0.001, "max_force": 1e-9}},
    }
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default:1 frames are of calculations that the model has already")
@pytest.mark.usefixtures("in_process")
def test_from_init_to_report(folder: Path) -> None:
    assert "no campaign" in refused("campaign", "status")
    assert "mfgp campaign run" in ok("campaign", "init", "campaign.yaml").output
    assert "holds a campaign already" in refused("campaign", "init", "campaign.yaml")
    dry = ok("campaign", "run", "--dry-run").output
    assert "the next step: 2 calculations, 7.2 s" in dry
    assert "pool<b>.extxyz frame" in dry
    assert "0 steps" in ok("campaign", "status").output  # nothing was begun
    failed = ok("campaign", "step").output  # forces are above max_force
    assert "1 step done" in failed
    assert "above max_force" in ok("campaign", "status").output
    assert "3 calculations failed, and none has gone through yet" in refused("campaign", "run").replace("\n", " ")
    assert "3 calculations failed" in ok("campaign", "status").output
    path = folder / "campaign" / "campaign.yaml"
    path.write_text(path.read_text().replace("max_force: 1.0e-09", "max_force: 100.0"))
    assert "is no level" in refused("campaign", "retry", "--level", "best")
    assert "3 failed calculations may be chosen again" in ok("campaign", "retry", "--level", "low").output
    assert "nothing to try again" in ok("campaign", "retry").output
    assert "nothing left to choose" in ok("campaign", "run").output
    outside = label(alloy(600), "high")
    write("labels.extxyz", outside)
    assert "1 new labels" in ok("campaign", "add", "labels.extxyz").output
    assert "0 new labels" in ok("campaign", "add", "labels.extxyz", "-f", "high").output
    assert "unknown" in refused("campaign", "add", "labels.extxyz", "-f", "best")
    assert "learn" not in ok("campaign", "run").output
    again = ok("campaign", "add", "labels.extxyz")  # the model was trained on it by now
    assert "0 new labels" in again.output
    assert "the model has already" in again.stderr.replace("\n", " ")
    pool = (folder / "pool<b>.extxyz").read_bytes()
    assert "is an input" in refused("campaign", "export", "-o", "pool<b>.extxyz")
    assert "is an input" in refused("campaign", "report", "-o", "model.mfgp")
    assert "HTML" in refused("campaign", "report", "-o", "campaign.yaml")
    assert (folder / "pool<b>.extxyz").read_bytes() == pool
    ok("campaign", "export", "-o", "out.extxyz")
    frames = read_frames("out.extxyz", levels=["low", "high"])
    assert {level: len(frames.of(level)) for level in frames.levels} == {"low": 4, "high": 1}
    assert read("out.extxyz", ":")[-1].info["origin"] == "added"
    ok("campaign", "report")
    page = (folder / "campaign" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "pool&lt;b&gt;.extxyz frame" in page
    assert "<b>" not in page
    assert "above max_force" in page
    assert "the largest gain per hour left" in page
    outside_of_it = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|https?://|@import|url\(""", page)
    assert not outside_of_it


def test_an_init_that_fails_leaves_nothing(folder: Path) -> None:
    text = (folder / "campaign.yaml").read_text()
    (folder / "campaign.yaml").write_text(text.replace("target: low", "target: best"))
    before = sorted(path.name for path in folder.iterdir())
    assert "'best' is no level of the model" in refused("campaign", "init", "campaign.yaml")
    assert sorted(path.name for path in folder.iterdir()) == before
    assert "no campaign" in refused("campaign", "status")
    (folder / "campaign").mkdir()
    (folder / "campaign" / "notes.txt").write_text("mine")
    refused("campaign", "init", "campaign.yaml")
    assert (folder / "campaign" / "notes.txt").read_text() == "mine"
    assert not list((folder / "campaign").glob("*.sqlite*"))
    (folder / "campaign.yaml").write_text(text)
    ok("campaign", "init", "campaign.yaml")
    assert "holds a campaign already" in refused("campaign", "init", "campaign.yaml")
    assert "0 steps" in ok("campaign", "status").output
