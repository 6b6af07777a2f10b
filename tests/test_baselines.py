"""Baselines: the ZBL calculator, the cache of labels, and the registry of names."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from mfgp.baselines.columns import Baseline, make_baselines
from mfgp.baselines.registry import known_baselines, make_calculator
from mfgp.baselines.zbl import ZBLCalculator, pair_repulsion, screening, switch
from mfgp.config import BaselineConfig
from mfgp.data.single_point import structure_hash
from mfgp.errors import ConfigError, DataError

STEP = 1e-4  # Å, or strain
NETWORKS = ("chgnet", "chgnet-0.2.0", "chgnet-r2scan", "sevennet", "sevennet-l3i5", "sevennet-mf-0")


def systems() -> dict[str, Atoms]:
    rng = np.random.default_rng(7)
    found = {
        "molecule": molecule("CH3CH2OH"),
        "crystal": bulk("NiO", "rocksalt", a=3.6, cubic=True),
        "slab": fcc111("Al", (2, 2, 2), a=3.4, vacuum=4.0),
        "skewed": Atoms("PO2", [[0, 0, 0], [1.2, 0.2, 0.1], [0.2, 1.4, 1.0]], pbc=True,
                        cell=[[2.2, 0.1, 0], [0.7, 2.3, 0], [0.3, 0.6, 2.1]]),
    }  # fmt: skip
    for atoms in found.values():
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return found


def numerical_forces(atoms: Atoms) -> NDArray[np.float64]:
    forces = np.zeros((len(atoms), 3))  # eV/Å
    for index in np.ndindex(*forces.shape):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[index] += sign * STEP
            energies.append(moved.get_potential_energy())
        forces[index] = -(energies[0] - energies[1]) / (2 * STEP)
    return forces


def numerical_stress(atoms: Atoms) -> NDArray[np.float64]:
    stress = np.zeros(6)  # eV/Å^3
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * sign * STEP
            strain[j, i] += 0.5 * sign * STEP
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(strained.get_potential_energy())
        stress[k] = (energies[0] - energies[1]) / (2 * STEP) / atoms.get_volume()
    return stress


# ZBL


@pytest.mark.parametrize("name", systems())
def test_zbl_forces_and_stress_are_derivatives_of_its_energy(name: str) -> None:
    atoms = systems()[name]
    atoms.calc = ZBLCalculator(r_inner=0.8, r_outer=2.9)
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.1  # eV/Å
    assert_allclose(forces, numerical_forces(atoms), rtol=0, atol=2e-5)
    assert_allclose(forces.sum(axis=0), 0, atol=1e-10)
    assert_allclose(atoms.get_potential_energies().sum(), atoms.get_potential_energy(), atol=1e-10)
    if atoms.cell.rank == 3:
        stress = atoms.get_stress()
        assert np.abs(stress).max() > 1e-3  # eV/Å^3
        assert_allclose(stress, numerical_stress(atoms), rtol=0, atol=2e-6)


def test_zbl_formula_at_one_distance() -> None:
    r, zi, zj = 0.7, 8, 15  # Å; O and P
    a = 0.8854 * 0.529177210903 / (8**0.23 + 15**0.23)
    weights, decays = [0.18175, 0.50986, 0.28022, 0.02817], [3.19980, 0.94229, 0.40290, 0.20162]
    phi = sum(w * np.exp(-d * r / a) for w, d in zip(weights, decays, strict=True))
    atoms = Atoms("OP", [[0, 0, 0], [0, 0, r]], calculator=ZBLCalculator(r_inner=1.0, r_outer=2.5))
    assert atoms.get_potential_energy() == pytest.approx(14.3996454784 * zi * zj / r * phi, rel=1e-6)
    assert screening(np.zeros(1))[0] == pytest.approx(1.0, abs=1e-9)  # the bare nuclei


def test_zbl_switch_is_smooth_and_ends_at_the_cutoff() -> None:
    r = np.array([0.5, 1.0, 1.75, 2.5 - 1e-4, 2.5, 3.0])
    value, slope = switch(r, 1.0, 2.5)
    assert_allclose(value, [1, 1, 0.5, 0, 0, 0], atol=1e-10)
    assert_allclose(slope[[0, 1, 3, 4, 5]], 0, atol=1e-6)
    energy, _ = pair_repulsion(np.array([2.4999, 2.5001]), np.full(2, 14.0), np.full(2, 14.0), 1.0, 2.5)
    assert 0 < energy[0] < 1e-8
    assert energy[1] == 0


def test_zbl_is_extensive_and_has_no_stress_without_a_cell() -> None:
    crystal = systems()["skewed"]
    calculator = ZBLCalculator(r_outer=2.9)
    crystal.calc = calculator
    energy, stress = crystal.get_potential_energy(), crystal.get_stress()
    double = crystal.repeat((2, 1, 1))
    double.calc = calculator
    assert double.get_potential_energy() == pytest.approx(2 * energy, rel=1e-12)
    assert_allclose(double.get_stress(), stress, atol=1e-12)
    assert Baseline("zbl", calculator).labels(molecule("H2O")).stress is None
    with pytest.raises(ValueError, match="r_inner < r_outer"):
        ZBLCalculator(r_inner=2.0, r_outer=1.0)


# Labels and cache


class Counting(Calculator):
    """Counts its calculations; a stress in 3x3 form, an energy besides the free energy."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's own form)

    def __init__(self, forces: float = 1.0) -> None:
        super().__init__()
        self.count = 0
        self.force = forces

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)) -> None:  # type: ignore[no-untyped-def]
        super().calculate(atoms, properties, system_changes)
        self.count += 1
        stress = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]], dtype=np.float32)
        forces = np.full((len(self.atoms), 3), self.force, dtype=np.float32)
        self.results = {"energy": -1.0, "free_energy": -2.0, "forces": forces, "stress": stress}


def test_labels_are_the_calculators_own() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    labels = Baseline("emt", EMT()).labels(atoms)
    atoms.calc = EMT()
    assert labels.energy == atoms.get_potential_energy(force_consistent=True)
    assert_allclose(labels.forces, atoms.get_forces(), atol=1e-12)
    assert labels.stress is not None
    assert_allclose(labels.stress, atoms.get_stress(), atol=1e-12)


def test_free_energy_float64_and_voigt_order() -> None:
    labels = Baseline("c", Counting()).labels(bulk("Cu", cubic=True))
    assert labels.energy == -2.0
    assert labels.forces.dtype == np.float64
    assert labels.stress is not None
    assert labels.stress.tolist() == [1, 2, 3, 4, 5, 6]


def test_constraints_and_info_play_no_part() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    free = Baseline("emt", EMT()).labels(atoms)
    fixed = atoms.copy()
    fixed.set_constraint(FixAtoms([0, 1]))
    fixed.info["x"] = 1
    baseline = Baseline("emt", EMT())
    assert_allclose(baseline.labels(fixed).forces, free.forces, atol=1e-12)
    assert np.abs(free.forces[:2]).max() > 0.1
    assert structure_hash(fixed) == structure_hash(atoms)


def test_the_cache_computes_once_and_is_bounded() -> None:
    calculator = Counting()
    baseline = Baseline("c", calculator, cache_size=2)
    a, b, c = (Atoms("H2", [[0, 0, 0], [0, 0, d]]) for d in (0.7, 0.8, 0.9))
    for atoms in (a, b, a, b, a.copy()):
        baseline.labels(atoms)
    assert calculator.count == 2
    baseline.labels(c)  # drops b, used longer ago than a
    baseline.labels(a)
    assert calculator.count == 3
    baseline.labels(b)
    assert calculator.count == 4


def test_threads_do_not_mix_their_labels() -> None:
    """An ASE calculator keeps what it computes in itself; a pickled baseline can be used again."""
    baseline = pickle.loads(pickle.dumps(Baseline("emt", EMT())))
    structures = [bulk("Cu", "fcc", a=3.4 + 0.01 * i, cubic=True) for i in range(48)]
    for i, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=i)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(baseline.labels, structures))
    for atoms, labels in zip(structures, found, strict=True):
        atoms.calc = EMT()
        assert labels.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert_allclose(labels.forces, atoms.get_forces(), atol=1e-9)


def test_every_part_of_the_geometry_is_in_the_hash() -> None:
    base = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], cell=[5, 5, 5])
    variants = [base.copy() for _ in range(5)]
    variants[1].positions[0, 0] = 1e-12
    variants[2].cell[0, 0] = 5.1
    variants[3].pbc = [True, False, False]
    variants[4].numbers[0] = 3
    assert len({structure_hash(atoms) for atoms in variants}) == 5
    variants[0].positions[0, 0] = -0.0
    assert structure_hash(variants[0]) == structure_hash(base)


def test_the_directory_outlives_the_process_and_survives_damage(tmp_path: Path) -> None:
    crystal, pair = bulk("Cu", cubic=True), Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    first = Counting()
    labels = [Baseline("c", first, {"x": 1}, cache_dir=tmp_path).labels(atoms) for atoms in (crystal, pair)]
    second = Counting()
    again = [Baseline("c", second, {"x": 1}, cache_dir=tmp_path).labels(atoms) for atoms in (crystal, pair)]
    assert second.count == 0
    assert again[1].stress is None
    assert again[0].energy == labels[0].energy
    assert_allclose(again[0].forces, labels[0].forces)
    assert_allclose(again[0].stress, labels[0].stress)
    files = sorted(tmp_path.rglob("*"))
    assert [file.suffix for file in files if file.is_file()] == [".npz", ".npz"]
    for file in files:
        if file.is_file():
            file.write_bytes(file.read_bytes()[:40])
    third, fourth = Counting(), Counting()
    assert Baseline("c", third, {"x": 1}, cache_dir=tmp_path).labels(crystal).energy == -2.0
    assert Baseline("c", fourth, {"x": 2}, cache_dir=tmp_path).labels(crystal).energy == -2.0  # other settings
    assert (third.count, fourth.count) == (1, 1)


def test_a_pickle_in_the_cache_is_not_loaded(tmp_path: Path) -> None:
    Baseline("c", Counting(), cache_dir=tmp_path).labels(bulk("Cu"))
    (file,) = tmp_path.rglob("*.npz")
    np.savez(file, energy=np.array({"a": 1}, dtype=object), forces=np.zeros((1, 3)), stress=np.zeros(0))
    calculator = Counting()
    assert Baseline("c", calculator, cache_dir=tmp_path).labels(bulk("Cu")).energy == -2.0
    assert calculator.count == 1


def test_calculators_get_cells_of_positive_volume() -> None:
    """CHGNet 0.4.2 divides its stress by the signed one."""
    calculator = Counting()
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.set_cell(np.diag([3.6, 3.6, 7.2])[[1, 0, 2]])
    atoms.pbc = (False, True, True)
    labels = Baseline("mine", calculator).labels(atoms)
    assert np.linalg.det(atoms.cell.array) < 0  # and the caller's stays as it is
    assert np.linalg.det(calculator.atoms.cell.array) > 0
    assert calculator.atoms.pbc.tolist() == [True, False, True]
    assert_allclose(calculator.atoms.positions, atoms.positions)
    assert np.isfinite(labels.energy)


def test_failures_name_baseline_and_structure() -> None:
    with pytest.raises(DataError, match=r"baseline 'emt' failed on Fe2: .*leave this baseline out"):
        Baseline("emt", EMT()).labels(bulk("Fe", cubic=True))
    with pytest.raises(DataError, match=r"baseline 'c': forces of Cu is not finite; leave"):
        Baseline("c", Counting(forces=np.nan)).labels(bulk("Cu"))


def test_vacuum_makes_a_crystal_of_a_molecule() -> None:
    seen: list[Atoms] = []

    class Seeing(Counting):
        def calculate(self, atoms=None, *rest) -> None:  # type: ignore[no-untyped-def]
            seen.append(atoms.copy())
            super().calculate(atoms, *rest)

    slab = fcc111("Al", (1, 1, 2), vacuum=2.0)
    labels = [Baseline("c", Seeing(), vacuum=15.0).labels(atoms) for atoms in (Atoms("H"), slab, bulk("Cu"))]
    assert all(atoms.pbc.all() for atoms in seen)
    assert_allclose(seen[0].cell.lengths(), 30)
    assert_allclose(seen[1].cell.array[:2], slab.cell.array[:2])
    assert seen[1].cell.lengths()[2] > 30
    assert [label.stress is None for label in labels] == [True, True, False]
    known = Baseline("c", Seeing(), vacuum=15.0, open_space=True)
    known.labels(Atoms("H"))
    known.labels(slab)
    assert [atoms.pbc.all() for atoms in seen[3:]] == [False, True]


# Names


def test_names_come_from_the_caller_then_from_the_registry() -> None:
    assert known_baselines() == (
        *NETWORKS[:3],
        "coulomb",
        "d3",
        "emt",
        "mace",
        "mace-off",
        *NETWORKS[3:],
        "tblite",
        "zbl",
    )
    own = Counting()
    configs = [BaselineConfig(name="mine"), BaselineConfig(name="zbl", settings={"r_outer": 2.0})]
    mine, zbl = make_baselines(configs, {"mine": own}, ("nm", "mag"))
    assert (mine.name, zbl.name) == ("mine", "zbl")
    assert mine.calculator is own
    assert isinstance(zbl.calculator, ZBLCalculator)
    assert zbl.calculator.r_outer == 2.0
    assert zbl.settings == {"r_outer": 2.0}
    assert make_baselines([BaselineConfig(name="emt")], {"emt": own})[0].calculator is own


def test_errors_of_names_levels_and_settings() -> None:
    configs = [BaselineConfig(name=name) for name in ("xtb", "zbl", "dftd3")]
    with pytest.raises(ConfigError) as caught:
        make_baselines(configs)
    for part in (
        "'xtb', 'dftd3'",
        "baselines={'xtb': calculator, 'dftd3': calculator}",
        "chgnet, chgnet-0.2.0, chgnet-r2scan, coulomb, d3, emt, mace, mace-off, sevennet, sevennet-l3i5, ",
        "sevennet-mf-0, tblite, zbl",
    ):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="'lj': the configuration names none"):
        make_baselines([BaselineConfig(name="emt")], {"lj": EMT()})
    with pytest.raises(ConfigError, match="'emt' is a str; give an ASE calculator"):
        make_baselines([BaselineConfig(name="emt")], {"emt": "emt"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="from_level 'nn' is no level; known are nm, mag"):
        make_baselines([BaselineConfig(name="zbl", from_level="nn")], None, ("nm", "mag"))
    with pytest.raises(ConfigError, match=r"'zbl': no setting 'r_cut'.*Known are r_inner, r_outer"):
        make_calculator("zbl", {"r_cut": 2.0})
    with pytest.raises(ConfigError, match=r"'zbl' with settings .*r_inner < r_outer"):
        make_calculator("zbl", {"r_inner": 3.0})
    with pytest.raises(
        ConfigError, match=r"no baseline named 'os\.system'\. Known are chgnet, chgnet-0\.2\.0, .*emt, .*zbl"
    ):
        make_calculator("os.system")
    with pytest.raises(ConfigError, match="should be '7net-0', '7net-l3i5' or '7net-mf-0', found '7net-omni'"):
        make_calculator("sevennet", {"model_name": "7net-omni"})  # would be downloaded


@pytest.mark.parametrize(("name", "module"), [("chgnet", "chgnet.model.dynamics"), ("sevennet", "sevenn.calculator")])
def test_a_missing_package_says_how_to_install_it(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install -e '\.\[{name}\]', or pass a calculator"):
        make_calculator(name)
