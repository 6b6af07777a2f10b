"""The LMFP data set: what is in it, and the scripts that made it."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from numpy.testing import assert_allclose

from mfgp import DataError
from mfgp.datasets import LEVELS, LMFP, SPLITS, load_lmfp

MAKING = LMFP / "making"


def load(name: str) -> ModuleType:
    """A script of the folder, which imports its neighbours by their plain names."""
    sys.path.insert(0, str(MAKING))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(MAKING))


@pytest.mark.parametrize("level", LEVELS)
def test_training_structures_have_their_labels(level: str) -> None:
    frames = load_lmfp(level, "train")
    assert len(frames) > 40
    for a in frames[:50]:
        assert a.info["fidelity"] == level
        assert np.isfinite(a.get_potential_energy())
        assert 0.1 < np.sqrt((a.get_forces() ** 2).mean()) < 5.0  # eV/Å
        assert ("stress" in a.calc.results) == (level == "gfn1")
        if level == "mag":
            assert np.abs(a.get_magnetic_moments()).max() > 3.5


def test_no_structure_is_in_two_splits_and_none_of_training_in_a_test_file() -> None:
    for level in LEVELS:
        splits = {split: {a.info["structure_id"] for a in load_lmfp(level, split)} for split in SPLITS}
        assert len(set.union(*splits.values())) == sum(map(len, splits.values()))
        assert splits["test"]
        assert splits["test_second"]
        assert splits["test_ood"]
    geometries = {a.positions.tobytes() for level in LEVELS for a in load_lmfp(level, "train")}
    for split in ("test", "test_second", "test_ood", "validation"):
        assert not geometries & {a.positions.tobytes() for a in load_lmfp("mag", split)}


def test_out_of_range_is_out_of_range() -> None:
    """Every test_ood structure has a strain, or a share of lithium or manganese, that no training structure has."""

    def shares(a: Atoms) -> tuple[float, float]:
        n = {s: a.get_chemical_symbols().count(s) for s in ("Li", "Mn", "Fe")}
        metals = n["Mn"] + n["Fe"]
        return n["Li"] / metals, n["Mn"] / metals

    training = [a for level in LEVELS for a in load_lmfp(level, "train")]
    lithium, manganese = ({round(shares(a)[k], 3) for a in training} for k in (0, 1))
    largest = max(abs(a.info["strain"]) for a in training)
    for a in load_lmfp("mag", "test_ood"):
        li, mn = shares(a)
        assert abs(a.info["strain"]) > 1.5 * largest or round(li, 3) not in lithium or round(mn, 3) not in manganese


def test_levels_with_the_gamma_point_alone_have_one_size_of_cell() -> None:
    """Twice the cell would be twice the k-points, and another level: 6 to 17 meV/atom and 0.15 eV/Å."""
    for level in ("gfn1", "nm"):
        assert max(len(a) for split in SPLITS for a in load_lmfp(level, split)) == 28
    one = {a.info["structure_id"]: a for a in load_lmfp("nm", "train")}
    twice = [a for a in read(LMFP / "doubled.extxyz", ":") if a.info["fidelity"] == "nm"]
    assert twice
    for a in twice:
        single = one[a.info["of"]]
        assert_allclose(a.positions[:28], single.positions, rtol=0, atol=1e-6)
        assert abs(a.get_potential_energy() / 2 - single.get_potential_energy()) > 0.1  # eV a cell


def test_no_label_shares_an_electron_between_metals() -> None:
    """The moment of a cell is the high-spin one; where a calculation ended elsewhere, the label has the moment held."""
    levels = load("levels")
    good = {a.info["structure_id"]: a for split in SPLITS for a in load_lmfp("mag", split)}
    assert not [name for name, a in good.items() if levels.shared_electron(a, a.info["total_magmom"])]
    apart = [a for a in read(LMFP / "lmfp_mag_other_spin.extxyz", ":") if "shared" in a.info["spin_state"]]
    assert apart
    for a in apart:
        assert levels.lost_spin(a, a.get_magnetic_moments()) is None
        assert levels.shared_electron(a, a.info["total_magmom"])
        label = good[a.info["structure_id"]]
        assert label.info["total_moment_held"]
        assert_allclose(label.positions, a.positions, rtol=0, atol=1e-6)


def test_unknown_levels_and_splits_and_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gfn1, nm, mag"):
        load_lmfp("pbe", "train")
    with pytest.raises(DataError, match="validation"):
        load_lmfp("nm", "holdout")
    with pytest.raises(DataError, match=r"get the source.*folder=.*MFGP_LMFP"):
        load_lmfp("nm", "train", folder=tmp_path)


def test_the_folder_of_the_data_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lmfp_mag.extxyz").write_bytes((LMFP / "lmfp_mag.extxyz").read_bytes())
    monkeypatch.setattr("mfgp.datasets.LMFP", tmp_path / "no checkout")
    with pytest.raises(DataError, match="no checkout"):
        load_lmfp("mag")
    assert len(load_lmfp("mag", folder=tmp_path)) > 40
    monkeypatch.setenv("MFGP_LMFP", str(tmp_path))
    assert len(load_lmfp("mag")) > 40


def test_cells_are_neutral_with_the_metals_that_their_names_say() -> None:
    cells = load("cells")
    for name in cells.VARIANTS:
        atoms = cells.cell(name)
        states = cells.oxidation_states(atoms)
        assert states.sum() == 0
        metals = [(s, int(q)) for s, q in zip(atoms.symbols, states, strict=True) if s in ("Fe", "Mn")]
        assert len(metals) == atoms.get_chemical_symbols().count("P")
        if ("Mn", 3) in metals:
            assert ("Fe", 2) not in metals  # iron is oxidised first
        assert cells.starting_moments(atoms).sum() == sum(cells.MOMENTS[m] for m in metals)


def test_the_metal_with_the_nearest_oxygens_is_oxidised() -> None:
    cells = load("cells")
    atoms = cells.cell("L75FP")
    iron = [i for i, s in enumerate(atoms.symbols) if s == "Fe"]
    for site in iron:
        squeezed = atoms.copy()
        oxygen = [i for i, s in enumerate(atoms.symbols) if s == "O"]
        near = sorted(oxygen, key=lambda o, i=site: atoms.get_distance(i, o, mic=True))[:4]
        for o in near:
            squeezed.positions[o] -= 0.1 * atoms.get_distance(site, o, mic=True, vector=True)
        states = cells.oxidation_states(squeezed)
        assert [i for i in iron if states[i] == 3] == [site]


def test_states_follow_the_moments_that_came_out() -> None:
    cells = load("cells")
    atoms = cells.cell("L50FP")
    iron = [i for i, s in enumerate(atoms.symbols) if s == "Fe"]
    moments = np.zeros(len(atoms))
    moments[iron] = [3.75, 4.39, 3.76, 4.38]
    assert cells.states_of_moments(atoms, moments)[iron].tolist() == [2, 3, 2, 3]
    levels = load("levels")
    assert levels.lost_spin(atoms, moments) is None
    moments[iron[0]] = 0.4
    assert "Fe" in levels.lost_spin(atoms, moments)


def test_crystal_field_of_an_octahedron() -> None:
    """Three levels at 4 e_pi, two at 3 e_sigma; longer bonds along z leave xz and yz lowest."""
    starts = load("starts")
    octahedron = starts.R0 * np.vstack([np.eye(3), -np.eye(3)])
    values = np.linalg.eigvalsh(starts.crystal_field(octahedron))
    assert_allclose(values, [4 * starts.E_PI] * 3 + [3 * starts.E_SIGMA] * 2, rtol=0, atol=1e-12)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert_allclose(np.linalg.eigvalsh(starts.crystal_field(octahedron @ turn.T)), values, rtol=0, atol=1e-12)
    values, vectors = np.linalg.eigh(starts.crystal_field(octahedron * [1.0, 1.0, 1.1]))
    assert_allclose((vectors[[1, 3], :2] ** 2).sum(), 2.0, rtol=0, atol=1e-12)  # GPAW's order: xy yz z2 xz x2-y2


def test_the_count_of_plane_waves_and_its_correction() -> None:
    """On average over cells the count is the volume of a sphere; too few waves leave the energy too high."""
    basis, cells = load("basis"), load("cells")
    atoms, ratios = cells.cell("LFP"), []
    for strain in np.linspace(-0.02, 0.02, 21):
        copy = atoms.copy()
        copy.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
        found, smooth = basis.plane_waves(copy, "mag")
        ratios.append(found / smooth)
        assert np.sign(basis.correction(copy, "mag")) == np.sign(found - smooth)
    assert abs(np.mean(ratios) - 1) < 1e-3
    assert 1e-4 < np.std(ratios) < 1e-2
    folded, one = basis.plane_waves(atoms.repeat((1, 1, 2)), "mag"), basis.plane_waves(atoms, "mag")
    assert_allclose(folded, np.multiply(2, one), rtol=1e-12)


def test_the_correction_by_plane_waves_makes_energies_of_strained_cells_smooth() -> None:
    """Over strains corrected energies agree with GPAW's analytic stress and its Pulay part, raw ones less."""
    basis = load("basis")
    frames = {a.info["structure_id"]: a for a in read(LMFP / "strained.extxyz", ":") if a.info["fidelity"] == "mag"}
    off, raw = [], []
    for name in sorted({a.info["of"] for a in frames.values()}):
        still, ends = frames.get(f"{name}_cutoff500"), [frames.get(f"{name}_volume{s}") for s in ("plus", "minus")]
        if still is None or None in ends:
            continue
        volume = still.get_volume()
        slope = basis.SLOPE["mag"] * still.get_chemical_symbols().count("O")
        expected = still.info["stress_held"][:3].sum() + 2 * basis.CUTOFF * slope / volume  # trace, eV/Å^3
        energies, added = [a.get_potential_energy() for a in ends], [a.info["basis_correction"] for a in ends]
        off.append((energies[0] - energies[1]) / (0.01 * volume) - expected)
        raw.append(off[-1] - (added[0] - added[1]) / (0.01 * volume))
    assert np.abs(off).max() < 0.02
    assert np.square(off).mean() < 0.5 * np.square(raw).mean()


def springs(name: str = "L50M50F50P-a") -> Atoms:
    """A cell whose energy and forces are those of a pair potential."""
    atoms = load("cells").cell(name)
    atoms.rattle(0.05, seed=0)
    atoms.info = dict.fromkeys(("variant", "composition", "temperature", "strain", "split"), 0) | {
        "structure_id": "test0100"
    }
    atoms.calc = LennardJones(sigma=1.5, epsilon=0.1, rc=4.0, smooth=True)
    return atoms


def energy_of(copy: Atoms, calculator: LennardJones) -> float:
    copy.calc = calculator
    return float(copy.get_potential_energy())


def test_differences_over_displaced_copies_are_forces() -> None:
    atoms = springs()
    copies = load("displace").displaced(atoms)
    assert len(copies) == 4
    for plus, minus in pairwise(copies):
        if plus.info["step"] > 0:
            i = plus.info
            energies = [energy_of(c, atoms.calc) for c in (plus, minus)]
            found = -(energies[0] - energies[1]) / (2 * i["step"])
            assert_allclose(found, atoms.get_forces()[i["atom"], i["axis"]], rtol=0, atol=0.03)
            assert i["of"] == "test0100"


def test_differences_over_strained_copies_are_stresses(tmp_path: Path) -> None:
    atoms = springs()
    write(tmp_path / "copies.extxyz", load("strain").strained(atoms))
    copies = {a.info["structure_id"].removeprefix("test0100_"): a for a in read(tmp_path / "copies.extxyz", ":")}
    stress, volume = atoms.get_stress(), atoms.get_volume()
    for end in ("", "_held"):
        for name, expected in (("volume", stress[:3].sum()), ("xx", stress[0])):
            plus, minus = copies[f"{name}plus{end}"], copies[f"{name}minus{end}"]
            found = energy_of(plus, atoms.calc) - energy_of(minus, atoms.calc)
            assert_allclose(found / (2 * plus.info["step"] * volume), expected, rtol=0.01)
            assert ("basis_cell" in plus.info) == bool(end)
            if end:
                assert_allclose(plus.info["basis_cell"], atoms.cell.array, rtol=0, atol=1e-6)
    assert {copies[f"cutoff{c}"].info["cutoff"] for c in (475, 500, 525)} == {475, 500, 525}


def labelled(energy: float, start: str) -> Atoms:
    atoms = Atoms("Fe", cell=[3, 3, 3], pbc=True)
    atoms.info = {"structure_id": "lmfp0001", "split": "train", "start": start, "wall_seconds": 2.0, "cpu_seconds": 1.0}
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)), magmoms=np.ones(1))
    return atoms


@pytest.mark.parametrize(("gap", "replaced"), [(0.07, True), (0.001, False), (-0.07, False)])
def test_the_lowest_branch_is_kept_and_the_first_answer_beside_it(tmp_path: Path, gap: float, replaced: bool) -> None:
    assemble = load("assemble")
    write(tmp_path / "mag_held.extxyz", labelled(-1.0, "held"))
    write(tmp_path / "mag_crystal.extxyz", labelled(-1.0 - gap, "crystal"))
    chosen, first = assemble.lowest(tmp_path)
    (label,) = chosen.values()
    assert label.info["start"] == ("crystal" if replaced else "held")
    assert label.info["branch_starts"] == "held,crystal"
    assert_allclose(label.info["branch_energies"], [-1.0, -1.0 - gap], rtol=0, atol=1e-9)
    assert label.info["cpu_seconds"] == 2.0
    assert [a.info["start"] for a in first] == (["held"] if replaced else [])


def test_new_labels_take_the_place_of_old_ones_and_leave_the_others(tmp_path: Path) -> None:
    assemble, path = load("assemble"), tmp_path / "labels.extxyz"
    old, other = labelled(-1.0, "held"), labelled(-2.0, "held")
    other.info["structure_id"] = "lmfp0000"
    assert len(assemble.save([old, other], path)) == 2
    assemble.save([labelled(-3.0, "free")], path)
    assert [a.get_potential_energy() for a in read(path, ":")] == [-2.0, -3.0]
    before = path.read_bytes()
    assemble.save([], path)
    assert path.read_bytes() == before
    assemble.save([], path, replaced=["lmfp0001"])
    assert [a.info["structure_id"] for a in read(path, ":")] == ["lmfp0000"]


def test_a_frame_that_a_kill_cut_short_is_cut_off(tmp_path: Path) -> None:
    script = load("label")
    path = tmp_path / "raw.extxyz"
    for _ in range(2):
        script.append(path, labelled(-1.0, "held"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 3])
    assert script.labelled(path) == ["lmfp0001", "lmfp0001"]
    assert path.read_bytes() == whole
    assert len(read(path, ":")) == 2
