"""Plans, and the commands `mfgp select` and `mfgp plan`."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import alloy, label
from numpy.testing import assert_allclose
from typer.testing import CliRunner, Result

from mfgp import ConfigError, FrameSet, MultiFidelityGP
from mfgp.cli import app
from mfgp.data.costs import CostModel
from mfgp.data.training_frames import calculation_key
from mfgp.selection.greedy import known_calculations, select
from mfgp.selection.plan import plan, std_at

COSTS = CostModel.fixed({"low": 0.01, "high": 0.03})
GIVEN = ("--cost", "low=0.01", "--cost", "high=0.03")


@pytest.fixture(scope="module")
def pool() -> list[Atoms]:
    return [alloy(400 + i, rattle=0.1) for i in range(8)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, model: MultiFidelityGP, pool: list[Atoms]) -> tuple[Path, Path]:
    """Model and pool; its structures carry labels of their own, and what they cost."""
    folder = tmp_path_factory.mktemp("select")
    model.save(folder / "model.mfgp")
    frames = [label(a, "low") for a in pool]
    for i, atoms in enumerate(frames):
        atoms.info.update(structure_id=f"s{i}", wall_seconds=5.0)
    ase.io.write(folder / "pool.extxyz", frames)
    return folder / "model.mfgp", folder / "pool.extxyz"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_plan_is_a_selection_cut_at_the_hours(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    found = plan(model, pool, "high", COSTS, 0.12)
    assert found.joint == select(model, pool, "high", COSTS, budget_hours=0.12)
    assert set(found.alone) == {"low", "high"}
    assert {c.level for c in found.alone["low"].choices} == {"low"}
    rows = found.rows()
    assert_allclose([row["hours"] for row in rows], [0.012, 0.03, 0.06, 0.09, 0.12])
    assert all(b["std"] <= a["std"] for a, b in pairwise(rows))
    assert rows[-1]["std"] == found.joint.choices[-1].std_after
    last = rows[-1]["levels"]
    assert_allclose(sum(level["hours"] for level in last.values()), found.joint.hours)
    assert sum(level["n"] for level in last.values()) == len(found.joint.choices)
    assert std_at(found.joint, 0.0) == found.joint.std_before


def test_each_selection_of_a_plan_has_bars_of_its_own(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    stages: list[str] = []
    plan(model, pool, "high", COSTS, 0.12, report=lambda stage, *rest: stages.append(stage))
    what = ("structures of the target", "structures of the pool", "budget spent, %")
    assert list(dict.fromkeys(stages)) == [
        f"{of}: {w}" for of in ("all levels", "low alone", "high alone") for w in what
    ]


def test_choosing_among_levels_is_no_worse_than_the_best_of_them_here(
    model: MultiFidelityGP, pool: list[Atoms]
) -> None:
    row = plan(model, pool, "high", COSTS, 0.12).rows()[-1]
    assert row["std"] <= min(row["std_alone"].values()) * 1.01  # greedy: not a theorem


def test_select_writes_what_to_calculate(files: tuple[Path, Path], tmp_path: Path, pool: list[Atoms]) -> None:
    out, report = tmp_path / "chosen.extxyz", tmp_path / "chosen.json"
    result = run("select", *files, "--target", "high", "-n", 4, *GIVEN, "-o", out, "--json", report)
    assert result.exit_code == 0, result.output
    assert "selected for high" in result.stdout
    assert "cost of low: 0.01 hours a calculation (given)" in result.stderr
    frames, values = ase.io.read(out, ":"), json.loads(report.read_text())
    assert [a.info["rank"] for a in frames] == [1, 2, 3, 4]
    for atoms, choice in zip(frames, values["choices"], strict=True):
        assert atoms.calc is None  # no label of the pool's level
        assert not {"REF_energy", "REF_stress", "wall_seconds"} & set(atoms.info)
        assert "REF_forces" not in atoms.arrays
        assert atoms.info["structure_id"] == f"s{choice['pool_index']}"
        assert_allclose(atoms.positions, pool[choice["pool_index"]].positions, atol=1e-6)
        for key in ("fidelity", "gain", "expected_std_after", "cost_hours", "pool_index"):
            assert atoms.info[key] == choice[key] or abs(atoms.info[key] - choice[key]) < 1e-9
    assert values["hours"] == pytest.approx(sum(c["cost_hours"] for c in values["choices"]))
    assert values["std_after"] < values["std_before"]


@pytest.mark.filterwarnings("default:no cost known for")
def test_a_number_of_calculations_needs_no_costs(
    model: MultiFidelityGP, files: tuple[Path, Path], tmp_path: Path, pool: list[Atoms]
) -> None:
    out, report = tmp_path / "chosen.extxyz", tmp_path / "chosen.json"
    result = run("select", *files, "--target", "high", "-n", 3, "-o", out, "--json", report)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("no cost known for low, high: chosen by gain alone") == 1
    assert "--cost low=HOURS --cost high=HOURS changes that" in result.stderr
    assert "; – hours;" in result.stdout
    values = json.loads(report.read_text())
    assert [values["hours"], *(c["cost_hours"] for c in values["choices"])] == [None] * 4
    assert not any("cost_hours" in a.info for a in ase.io.read(out, ":"))
    equal = select(model, pool, "high", CostModel.fixed({"low": 1.0, "high": 1.0}), n=3)
    assert [c["gain"] for c in values["choices"]] == pytest.approx([c.gain for c in equal.choices])


def test_select_by_budget_targets_and_weights(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "chosen.extxyz"
    options = ("--budget-hours", 0.05, "--targets", files[1], "--weight", "energy=1", "--level", "high")
    result = run("select", *files, *options, *GIVEN, "-o", out)
    assert result.exit_code == 0, result.output
    assert "eV/atom" in result.stdout
    assert [a.info["fidelity"] for a in ase.io.read(out, ":")] == ["high"]


def test_held_out_structures_are_not_offered_where_there_are_others(files: tuple[Path, Path], tmp_path: Path) -> None:
    frames = ase.io.read(files[1], ":")
    out, part = tmp_path / "chosen.extxyz", tmp_path / "part.extxyz"
    for n_held_out, expected in ((len(frames) - 2, {len(frames) - 2, len(frames) - 1}), (len(frames), None)):
        for atoms in frames[:n_held_out]:
            atoms.info["split"] = "test"
        ase.io.write(part, frames)
        result = run("select", files[0], part, "-n", 4, *GIVEN, "-o", out)
        assert result.exit_code == 0, result.output
        found = {a.info["pool_index"] for a in ase.io.read(out, ":")}
        if expected is None:
            assert "all structures of the pool are held out" in result.stderr
        else:
            assert found == expected
            assert f"not offered, since they are held out (info['split']): {n_held_out} of" in result.stderr
    forecast = run("plan", files[0], files[1], "--budget-hours", 0.1, *GIVEN)
    assert "held out" not in forecast.stderr


def test_plan_writes_a_forecast(files: tuple[Path, Path], tmp_path: Path) -> None:
    out, plot = tmp_path / "plan.json", tmp_path / "plan.png"
    result = run("plan", *files, "--hours", 0.1, *GIVEN, "--json", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    assert "low alone" in result.stdout
    values = json.loads(out.read_text())
    assert values["rows"][-1]["std"] == pytest.approx(values["joint"]["std_after"])
    assert plot.stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget-hours", 1), "--cost low=HOURS --cost high=HOURS"),
        (("--budget-hours", 1, "-n", 1), "--cost low=HOURS --cost high=HOURS"),
        (("-n", 1, "--cost", "low=1"), "no cost known for high"),
        (GIVEN, "no limit"),
        (("-n", 1, "--cost", "mag=1"), "unknown level; this model has low, high"),
        (("-n", 1, "--cost", "low"), "expected F=HOURS"),
        (("-n", 1, "--cost", "1"), "expected F=HOURS"),
        (("-n", 1, "--cost", "U=4 eV=1"), "--cost U=4 eV: unknown level"),
        (("-n", 1, "--cost", "low=-1"), "positive"),
        (("-n", 1, "--cost", "low=1", "--cost", "low=2"), "given twice"),
        (("-n", 1, *GIVEN, "--weight", "stress=1"), "forces or energy"),
        (("-n", 1, *GIVEN, "--target", "best"), "unknown level 'best'"),
    ],
)
def test_mistakes_are_one_line(files: tuple[Path, Path], tmp_path: Path, options: tuple, message: str) -> None:  # type: ignore
    result = run("select", *files, *options, "-o", tmp_path / "x.extxyz")
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert not (tmp_path / "x.extxyz").exists()


def test_what_the_model_was_trained_on_is_not_offered(
    model: MultiFidelityGP, two_levels: FrameSet, files: tuple[Path, Path], pool: list[Atoms], tmp_path: Path
) -> None:
    known = [f.atoms for f in two_levels.of("high")[:2]]  # at both levels
    mixed = [*known, *pool[:2]]
    assert known_calculations(model, mixed, model.levels) == [(0, "low"), (0, "high"), (1, "low"), (1, "high")]
    chosen = select(model, mixed, "high", COSTS, n=20)
    assert {(c.index, c.level) for c in chosen.choices} == {(i, level) for i in (2, 3) for level in model.levels}
    ase.io.write(tmp_path / "pool.extxyz", mixed)
    result = run("select", files[0], tmp_path / "pool.extxyz", "-n", 1, *GIVEN, "-o", tmp_path / "x.extxyz")
    assert result.exit_code == 0, result.output
    assert "not offered, since the model was trained on them: 2 at low, 2 at high" in result.stderr
    assert "nothing is on offer" not in result.stderr
    ase.io.write(tmp_path / "pool.extxyz", known)
    result = run("select", files[0], tmp_path / "pool.extxyz", "-n", 1, *GIVEN, "-o", tmp_path / "y.extxyz")
    assert "nothing is on offer at low: the model was trained on all" in result.stderr
    assert "is left to choose" in result.stderr
    assert not (tmp_path / "y.extxyz").exists()


@pytest.mark.parametrize("limit", [("-n", 1), ("--budget-hours", 1.0)])
def test_costs_are_asked_only_for_what_is_on_offer(
    two_levels: FrameSet, files: tuple[Path, Path], pool: list[Atoms], tmp_path: Path, limit: tuple[str, float]
) -> None:
    known = [f.atoms for f in two_levels.of("high")[:2]]  # at both levels
    ase.io.write(tmp_path / "known.extxyz", known)
    result = run("select", files[0], tmp_path / "known.extxyz", *limit, "-o", tmp_path / "x.extxyz")
    assert result.exit_code == 0, result.output
    assert "nothing is on offer at high" in result.stderr
    assert "is left to choose" in result.stderr
    assert "no cost known" not in result.stderr
    lower = [f.atoms for f in two_levels.of("low") if f.atoms not in [g.atoms for g in two_levels.of("high")]][:2]
    ase.io.write(tmp_path / "lower.extxyz", lower)
    options = (tmp_path / "lower.extxyz", *limit, "--cost", "high=0.03", "-o", tmp_path / "x.extxyz")
    result = run("select", files[0], *options)
    assert result.exit_code == 0, result.output
    assert {a.info["fidelity"] for a in ase.io.read(tmp_path / "x.extxyz", ":")} == {"high"}


def test_structures_in_another_description_are_passed_over(
    files: tuple[Path, Path], pool: list[Atoms], tmp_path: Path
) -> None:
    ase.io.write(tmp_path / "pool.extxyz", [*pool[:2], *(atoms[[2, 0, 3, 1]] for atoms in pool[:2])])
    options = ("--level", "high", "-n", 4, *GIVEN, "-o", tmp_path / "x.extxyz")
    result = run("select", files[0], tmp_path / "pool.extxyz", *options)
    assert result.exit_code == 0, result.output
    assert len(ase.io.read(tmp_path / "x.extxyz", ":")) == 2
    assert "2 structures of the pool were passed over as others of it in another description" in result.stderr


def test_a_crystal_is_known_when_it_comes_back_from_a_file(tmp_path: Path) -> None:
    for a in (2.8665, 3.615, 4.05, 5.431, 5.6533):
        crystal = bulk("Si", "diamond", a=a, cubic=True) * (2, 2, 2)
        ase.io.write(tmp_path / "crystal.extxyz", crystal)
        assert calculation_key("pbe", ase.io.read(tmp_path / "crystal.extxyz")) == calculation_key("pbe", crystal)


def test_missing_costs_name_what_they_are_learned_from(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    assert not model.costs.sums
    with pytest.raises(ConfigError, match="`cpu_seconds` or `wall_seconds`"):
        select(model, pool, "high", budget_hours=3)
    with pytest.warns(UserWarning, match="no cost known for low: chosen by gain alone, so larger structures"):
        assert len(select(model, pool, "high", n=3, levels=["low"]).choices) == 3


def test_a_budget_for_nothing_writes_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("select", *files, "--budget-hours", 0.001, *GIVEN, "-o", tmp_path / "x.extxyz")
    assert result.exit_code == 0
    assert "nothing fits the budget" in result.stderr
    assert not (tmp_path / "x.extxyz").exists()
    (tmp_path / "x.extxyz").write_text("")
    again = run("select", *files, "--budget-hours", 0.001, *GIVEN, "-o", tmp_path / "x.extxyz")
    assert "is an earlier selection" in again.stderr.replace("\n", " ")
