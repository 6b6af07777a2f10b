"""Baselines by name: tight binding and dispersion that are really calculated, and networks whose weights are elsewhere."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from numpy.testing import assert_allclose

from mfgp import ConfigError, FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.baselines.columns import make_baselines
from mfgp.baselines.registry import make_calculator
from mfgp.config import BaselineConfig, Setting

STEP = 1e-3  # Å


def water(method: str, n: int, seed: int) -> FrameSet:
    """Displaced water molecules with tight-binding labels."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(0, 0.08, (3, 3))
        calculated = atoms.copy()
        calculated.calc = make_calculator("tblite", {"method": method})
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = (
            calculated.get_potential_energy(),
            calculated.get_forces(),
        )
        out.append(atoms)
    return read_frames({"xtb": out})


def test_tight_binding_below_another_tight_binding(tmp_path: Path) -> None:
    """The correction from GFN1 to GFN2 is smaller than GFN2; the file of the model knows what it is over."""
    plain = FitConfig(
        descriptor={"r_cut": 4.0, "n_max": 4, "l_max": 3, "sigma": 0.5},
        model={"zeta": 2, "n_inducing": 60},
        training={"calibrate": False},
    )
    over = plain.model_copy(update={"baselines": (BaselineConfig(name="tblite"),)})
    frames, others = water("GFN2-xTB", 5, 0), water("GFN2-xTB", 6, 1)
    errors = {}
    for config in (plain, over):
        model = MultiFidelityGP.fit(frames, config, progress=False)
        predicted = [model.predict(f.atoms, "xtb", uncertainty="none").forces for f in others]
        errors[bool(config.baselines)] = np.mean(
            [np.abs(p - f.forces).mean() for p, f in zip(predicted, others, strict=True)]
        )
    assert errors[True] < 0.5 * errors[False], errors
    model.save(tmp_path / "model.mfgp")
    again = MultiFidelityGP.load(tmp_path / "model.mfgp")
    first = next(iter(others)).atoms
    assert_allclose(again.predict(first, "xtb").forces, model.predict(first, "xtb").forces, rtol=0, atol=1e-6)  # eV/Å


@pytest.mark.parametrize(
    ("name", "atoms"),
    [("tblite", molecule("CH3OH")), ("tblite", bulk("Si")), ("d3", molecule("C6H6")), ("d3", bulk("Cu", cubic=True))],
    ids=["tblite-methanol", "tblite-silicon", "d3-benzene", "d3-copper"],
)
def test_forces_and_stress_are_those_of_the_energy(name: str, atoms: Atoms) -> None:
    (baseline,) = make_baselines([BaselineConfig(name=name)])
    atoms = atoms.copy()
    atoms.rattle(0.2, seed=0)
    labels = baseline.labels(atoms)
    atom, axis = np.unravel_index(np.abs(labels.forces).argmax(), labels.forces.shape)
    energies = []
    for step in (STEP, -STEP):
        moved = atoms.copy()
        moved.positions[atom, axis] += step
        energies.append(baseline.labels(moved).energy)
    assert abs(labels.forces[atom, axis]) > 1e-3  # eV/Å
    assert labels.forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / (2 * STEP), rel=1e-2, abs=1e-4)
    assert (labels.stress is None) == (not atoms.pbc.any())
    if labels.stress is not None:
        energies = []
        for strain in (STEP, -STEP):
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
            energies.append(baseline.labels(strained).energy)
        expected = (energies[0] - energies[1]) / (2 * STEP) / atoms.get_volume()  # eV/Å^3, xx + yy + zz
        assert labels.stress[:3].sum() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", ["tblite", "d3"])
def test_the_box_around_a_slab_is_no_matter(name: str) -> None:
    """tblite would repeat it along its normal, whatever is periodic."""
    (baseline,) = make_baselines([BaselineConfig(name=name)])
    found = []
    for vacuum in (1.0, 6.0):
        slab = fcc111("Al", (1, 1, 2), vacuum=vacuum, periodic=False)
        slab.pbc = (True, True, False)
        found.append(baseline.labels(slab))
    assert found[0].energy == pytest.approx(found[1].energy, abs=1e-5)  # eV
    assert_allclose(found[0].forces, found[1].forces, rtol=0, atol=1e-4)  # eV/Å
    assert np.abs(found[0].forces).max() > 0.005  # eV/Å
    crystal = slab.copy()
    crystal.center(vacuum=1.0, axis=2)
    crystal.pbc = True
    assert abs(baseline.labels(crystal).energy - found[0].energy) > 0.1  # eV


@pytest.mark.parametrize("length", [0.0, 9.0])  # Å, of the cell where it is not periodic; none and some
@pytest.mark.parametrize("pbc", [(1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_dispersion_of_slabs_and_wires_is_that_of_open_space(pbc: tuple[int, int, int], length: float) -> None:
    """Whichever direction is open; dftd3 is right in three periodic directions, and with 80 Å the others are open."""
    (baseline,) = make_baselines([BaselineConfig(name="d3")])
    positions = [[0.0, 0.0, 0.1], [0.78, 0.05, 0.61], [-0.74, 0.02, 0.55]]
    atoms = Atoms("OHH", positions, cell=np.where(pbc, 4.0, length), pbc=pbc)
    labels = baseline.labels(atoms)
    apart = atoms.copy()
    apart.set_cell(np.where(pbc, 4.0, 80.0))
    apart.pbc = True
    expected = baseline.labels(apart)
    assert abs(baseline.labels(Atoms("OHH", positions)).energy - expected.energy) > 1e-3  # eV: neighbours tell
    assert labels.energy == pytest.approx(expected.energy, abs=1e-7)  # eV
    assert_allclose(labels.forces, expected.forces, rtol=0, atol=1e-7)  # eV/Å
    assert labels.stress is None


def test_dispersion_reaches_beyond_the_cutoff() -> None:
    """Two argon atoms 8 Å apart attract each other by what D3 says, with a cutoff of 4 Å and a coefficient held at 1."""
    frames = []
    for r in np.linspace(3.4, 4.6, 8):
        pair = Atoms("Ar2", [[0, 0, 0], [0, 0, r]])
        pair.calc = make_calculator("d3")
        labelled = pair.copy()
        labelled.info["REF_energy"], labelled.arrays["REF_forces"] = pair.get_potential_energy(), pair.get_forces()
        frames.append(labelled)
    config = FitConfig(
        baselines=[{"name": "d3", "coefficient": {"mean": 1.0, "std": 0.001}, "settings": {"method": "pbe"}}],
        descriptor={"r_cut": 4.0, "n_max": 4, "l_max": 2, "sigma": 0.5},
        model={"n_inducing": 10},
        training={"calibrate": False},
    )
    model = MultiFidelityGP.fit(read_frames({"dft": frames}), config, progress=False)
    far = Atoms("Ar2", [[0, 0, 0], [0, 0, 8.0]])
    far.calc = make_calculator("d3")
    assert far.get_forces()[1, 2] < -1e-5  # eV/Å
    assert model.predict(far.copy(), "dft").forces[1, 2] == pytest.approx(far.get_forces()[1, 2], rel=0.01)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tblite", {"method": "GFN7"}, "setting method should be 'GFN1-xTB' or 'GFN2-xTB', found 'GFN7'."),
        ("tblite", {"solvation": "water"}, "no setting 'solvation'. Known are method, charge"),
        ("tblite", {"charge": "a"}, "setting charge should be a valid number, found 'a'."),
        ("tblite", {"charge": 0.5}, "setting charge should be a multiple of 1, found 0.5."),
        ("tblite", {"charge": True}, "setting charge should be a number, found True."),
        ("tblite", {"max_iterations": 0}, "setting max_iterations should be greater than or equal to 1, found 0."),
        ("tblite", {"accuracy": float("nan")}, "setting accuracy should be a finite number, found nan."),
        ("d3", {"damping": "bj"}, "setting damping should be 'd3bj', 'd3zero'"),
        ("d3", {"method": 3}, "setting method should be a valid string, found 3."),
        ("coulomb", {"Fe": "x"}, "setting Fe should be a valid number, found 'x'."),
        ("zbl", {"r_iner": 1.0}, "no setting 'r_iner'; did you mean 'r_inner'? Known are r_inner, r_outer."),
        ("emt", {"asap_cutoff": "no"}, "setting asap_cutoff should be a valid boolean, found 'no'."),
        ("sevennet", {"model_name": "7net"}, "setting model_name should be '7net-0', '7net-l3i5' or '7net-mf-0'"),
    ],
)
def test_settings_that_a_name_does_not_take(name: str, settings: dict[str, Setting], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_baselines([BaselineConfig(name=name, settings=settings)])
    assert str(refused.value).startswith(f"baseline {name!r}: {message}")


def test_a_charge_may_be_a_whole_number_of_either_kind() -> None:
    energies = []
    for charge in (0, 0.0, 1):
        ion = molecule("H2O")
        ion.calc = make_calculator("tblite", {"charge": charge})
        energies.append(ion.get_potential_energy())
    assert energies[0] == energies[1]
    assert energies[2] > energies[0] + 5.0  # eV


def test_an_unknown_functional_is_named_and_where_the_known_ones_are() -> None:
    with pytest.raises(
        ConfigError, match=r"knows no functional 'pbf' with the damping d3bj .*; (\S+) lists those"
    ) as no:
        make_calculator("d3", {"method": "pbf"})
    (listed,) = re.findall(r"; (\S+) lists", str(no.value))
    assert "[parameter.pbe]" in Path(listed).read_text()


def test_the_nearest_name_is_offered() -> None:
    for name, hint in (("sevenet", "; did you mean 'sevennet'? Pass"), ("own", ". Pass")):
        with pytest.raises(ConfigError, match=rf"^no calculator for baseline '{name}'{re.escape(hint)}"):
            make_baselines([BaselineConfig(name=name)])
    with pytest.raises(ConfigError, match=r"^no baseline named 'tbllite'; did you mean 'tblite'\? Known are chgnet"):
        make_calculator("tbllite")


@pytest.mark.parametrize(
    ("name", "extra"), [("mace", "mace"), ("mace-off", "mace"), ("tblite", "tblite"), ("d3", "d3")]
)
def test_a_missing_package_is_said_once(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mace", "mace.calculators", "tblite", "tblite.ase", "dftd3", "dftd3.ase"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"^baseline '{name}' needs a package .*pip install -e '\.\[{extra}\]'"):
        make_calculator(name)


def test_mace_by_the_name_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its package is asked for names alone, what it says is no output, and PyTorch's default dtype is put back."""
    asked: list[dict[str, Any]] = []
    failed = "Model download failed and no local model found"
    failures = {"smal": FileNotFoundError("smal not found locally"), "large": OSError("no route to host")}

    def pretrained(**settings: Any) -> EMT:
        asked.append(settings)
        if (failure := failures.get(settings["model"])) is not None:
            raise RuntimeError(failed) from failure
        if settings["device"] == "cuda":
            raise RuntimeError("no CUDA here")
        torch.set_default_dtype(torch.float64)
        print("Using Materials Project MACE for MACECalculator")
        return EMT()

    package = types.ModuleType("mace.calculators")
    package.mace_mp = package.mace_off = pretrained  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mace", types.ModuleType("mace"))
    monkeypatch.setitem(sys.modules, "mace.calculators", package)
    assert isinstance(make_calculator("mace", {"model": "small"}), EMT)
    assert isinstance(make_calculator("mace-off"), EMT)
    assert [(a["model"], a["default_dtype"]) for a in asked] == [("small", "float32"), ("medium", "float32")]
    assert torch.get_default_dtype() == torch.float32
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Using Materials Project MACE" in printed.err
    hint = "; is 'smal' one of mace-torch's names (small, medium, medium-mpa-0, ...)?"
    for settings, said in (
        ({"model": "smal"}, f"{failed} (smal not found locally){hint}"),
        ({"model": "large"}, f"{failed} (no route to host)."),
        ({"device": "cuda"}, "no CUDA here."),
    ):
        with pytest.raises(ConfigError) as refused:
            make_calculator("mace", settings)
        assert str(refused.value) == f"baseline 'mace' with settings {settings}: {said}"
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()  # a folder is no file of weights
    assert isinstance(make_calculator("mace", {"model": "small"}), EMT)
    assert len(asked) == 6


@pytest.mark.parametrize("name", ["mace", "mace-off"])
def test_files_of_weights_are_refused_before_a_package_is_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mace", None)
    monkeypatch.chdir(tmp_path)
    for model in ("/tmp/weights.model", "https:x"):
        with pytest.raises(ConfigError, match=r"is no name of pretrained weights; pass a calculator"):
            make_calculator(name, {"model": model})
    Path("weights").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"model 'weights' is a file in this folder, too, which mace-torch could load"
    ):
        make_calculator(name, {"model": "weights"})
