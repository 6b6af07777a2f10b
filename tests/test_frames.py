"""Reading labelled structures: keys, levels, and what is read of a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from frame_cases import FORCES, LMFP, altered, contains, crystal, dimer, error_of
from numpy.testing import assert_allclose

from mfgp.data.reading import read_structures
from mfgp.errors import DataError
from mfgp.frames import LabelKeys, read_frames

# What is read


def test_labels_are_read_with_their_meaning(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    first = dimer(1.1, structure_id="s1", split="test_ood", wall_seconds=12.5, energy_sigma=0.01, force_sigma=0.2)
    first.set_array("force_mask", np.array([1, 0]))
    write(path, [first, dimer(1.2)])
    frames = read_frames({"low": path})
    frame, other = frames
    assert frames.levels == ("low",)
    assert frame.source == f"{path} frame 0"
    assert frame.fidelity == "low"
    assert frame.energy == pytest.approx(-11.1, abs=1e-9)
    assert_allclose(frame.forces, FORCES, rtol=0, atol=1e-8)
    assert frame.force_mask.tolist() == [True, False]
    assert (frame.energy_sigma, frame.force_sigma, frame.wall_seconds) == (0.01, 0.2, 12.5)
    assert frame.held_out
    assert frame.split == "test_ood"
    assert frame.atoms.calc is None
    assert set(frame.atoms.arrays) == {"numbers", "positions"}
    assert frame.atoms.info == {"structure_id": "s1", "split": "test_ood", "wall_seconds": 12.5}
    assert not other.held_out
    assert other.force_mask.all()
    assert (other.stress, other.energy_sigma, other.split) == (None, None, None)


def test_ref_keys_come_before_the_calculator_and_free_energy_before_energy() -> None:
    atoms = dimer(1.0)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, free_energy=-2.0, forces=FORCES)
    assert read_frames({"a": [atoms]}).frames[0].energy == -11.0
    del atoms.info["REF_energy"]
    frame = read_frames({"a": [atoms]}).frames[0]
    assert frame.energy == -2.0
    assert_allclose(frame.forces, FORCES)  # label by label: the forces are still REF_forces
    assert read_frames({"a": [atoms]}, keys=LabelKeys(energy="energy")).frames[0].energy == -1.0


def test_results_of_a_live_calculator_are_labels() -> None:
    atoms = crystal()
    del atoms.info["REF_energy"]
    atoms.calc = EMT()
    energy, stress = atoms.get_potential_energy(), atoms.get_stress()
    frame = read_frames({"emt": [atoms]}).frames[0]
    assert frame.energy == energy
    assert_allclose(frame.stress, stress, rtol=0, atol=1e-12)
    assert np.abs(stress).max() > 1e-3


def test_virial_is_minus_volume_times_stress() -> None:
    stress = np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])  # eV/Å^3
    full = np.array([[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]])
    volume = crystal().get_volume()
    for key, value in (
        ("REF_stress", stress),
        ("REF_stress", full),
        ("REF_stress", full.ravel()),
        ("REF_virial", -volume * stress),
        ("REF_virial", -volume * full),
    ):
        frame = read_frames({"a": [crystal(**{key: value})]}).frames[0]
        assert_allclose(frame.stress, stress, rtol=0, atol=1e-14)
    both = crystal(REF_stress=stress, REF_virial=-volume * full)
    assert_allclose(read_frames({"a": [both]}).frames[0].stress, stress)


def test_subsets_of_labels_and_isolated_atoms() -> None:
    only_energy = altered(lambda a: a.arrays.pop("REF_forces"))
    alone = Atoms("H", info={"REF_energy": -13.6})
    tagged = Atoms("H", cell=[9, 9, 9], pbc=True, info={"REF_energy": -13.6, "config_type": "IsolatedAtom"})
    in_crystal = Atoms("Cu", cell=[2.5, 2.5, 2.5], pbc=True, info={"REF_energy": -3.0})
    frames = read_frames({"a": [only_energy, alone, tagged, in_crystal]})
    assert frames.frames[0].forces is None
    assert [frame.isolated_atom for frame in frames] == [False, True, True, False]


def test_an_atom_alone_in_a_box_is_isolated() -> None:
    skewed = [[5.0, 0, 0], [40.0, 9.0, 0], [0, 0, 9.0]]  # nearest images 5 Å away
    boxes = {
        "box": ([12, 12, 12], True),
        "skewed": (skewed, True),
        "crystal": (bulk("Cs", "bcc", a=6.14).cell, True),
        "wire": ([0, 0, 8.0], (False, False, True)),
        "chain": ([0, 0, 4.0], (False, False, True)),
    }
    atoms = [Atoms("Cs", cell=cell, pbc=pbc, info={"REF_energy": -1.0}) for cell, pbc in boxes.values()]
    found = dict(zip(boxes, (f.isolated_atom for f in read_frames({"a": atoms})), strict=True))
    assert found == {"box": True, "skewed": False, "crystal": False, "wire": True, "chain": False}


def test_masked_atoms_may_have_nan_forces() -> None:
    atoms = dimer()
    atoms.arrays["REF_forces"][1] = np.nan
    contains(error_of({"a": [atoms]}), "NaN force on atoms [1]", "force_mask=0")
    atoms.set_array("force_mask", np.array([True, False]))
    assert read_frames({"a": [atoms]}).frames[0].force_mask.tolist() == [True, False]


# Levels


def test_levels_come_from_tags_and_aliases_in_the_order_given() -> None:
    tagged = [dimer(1.0, fidelity="high"), dimer(1.1, head="low"), dimer(1.2, data_modality="low")]
    frames = read_frames(tagged, levels=("low", "high"))
    assert [frame.fidelity for frame in frames] == ["low", "low", "high"]
    contains(error_of(tagged), "2 levels found", "high (1 frames)", "low (2 frames)", "levels=")
    contains(error_of(tagged, levels=("low", "top")), "frame 0 (CO)", "unknown fidelity 'high'", "low, top")
    contains(error_of(tagged, levels=("low", "high", "top")), "fidelity 'top'", "no frame", "low (2 frames)")


def test_a_single_untagged_source_needs_no_levels(tmp_path: Path) -> None:
    write(tmp_path / "silicon.v1.extxyz", [dimer()])
    assert read_frames(tmp_path / "silicon.v1.extxyz").levels == ("silicon.v1",)
    assert read_frames([dimer()], levels=["only"]).frames[0].fidelity == "only"
    contains(error_of([dimer()]), "frame 0 (CO)", "no level in info", "info['fidelity']")
    contains(error_of([dimer(), dimer(1.2, fidelity="x")], levels=("x", "y")), "frame 0 (CO)", "x, y")


def test_a_tag_of_another_level_is_an_error_of_none_is_not() -> None:
    swapped = {"low": [dimer(1.0, fidelity="high")], "high": [dimer(1.1)]}
    contains(error_of(swapped), "frame 0 (CO)", "fidelity 'low'", "fidelity='high'")
    assert read_frames({"low": [dimer(1.0, fidelity="gfn1")]}).frames[0].fidelity == "low"
    contains(error_of({"low": [dimer(1.0, head="high")], "high": [dimer(1.1)]}), "fidelity 'low'", "head='high'")
    assert read_frames({"low": [dimer(1.0, head="Default")]}).frames[0].fidelity == "low"


def test_files_are_levels_by_their_names(tmp_path: Path) -> None:
    files = [tmp_path / "lmfp.nm.extxyz", tmp_path / "lmfp.mag.extxyz"]
    for k, file in enumerate(files):
        write(file, [dimer(1.0 + 0.1 * k)])
    contains(error_of(files), "2 levels found", "levels=('lmfp.nm', 'lmfp.mag')")
    frames = read_frames(files, levels=("lmfp.nm", "lmfp.mag"))
    assert [f.fidelity for f in frames] == ["lmfp.nm", "lmfp.mag"]


def test_a_key_that_one_level_alone_has(tmp_path: Path) -> None:
    own = dimer(1.1)
    own.info["dft_energy"] = own.info.pop("REF_energy")
    sources = {"low": [dimer(1.0)], "high": [own]}
    with pytest.raises(DataError, match=r"fidelity 'low': key 'dft_energy' for energy is in none.*'REF_energy' is"):
        read_frames(sources, keys=LabelKeys(energy="dft_energy"))


def test_levels_named_twice_or_not_at_all() -> None:
    contains(error_of([dimer()], levels=("a", "b", "a")), "'a'", "2 times", "once")
    contains(error_of({}), "no level", "at least one")
    contains(error_of({"a": [dimer()]}, levels=("a", "b")), "a, b", "the sources are for a")
    contains(error_of({"a": []}), "empty list of frames")
    contains(error_of({"a": [3]}), "int", "paths or ase.Atoms")


def test_levels_argument_reorders_a_mapping() -> None:
    frames = read_frames({"b": [dimer(1.0)], "a": [dimer(1.1)]}, levels=("a", "b"))
    assert [frame.fidelity for frame in frames] == ["a", "b"]


# Structures without labels, and real data


def test_read_structures_needs_no_labels_but_checks_geometry(tmp_path: Path) -> None:
    write(tmp_path / "pool.extxyz", [Atoms("CO", [[0, 0, 0], [0, 0, d]]) for d in (1.1, 0.1)])
    with pytest.raises(DataError, match=r"pool\.extxyz frame 1 \(CO\): atoms 0 \(C\) and 1 \(O\) are 0\.100"):
        read_structures(tmp_path / "pool.extxyz")
    write(tmp_path / "pool.extxyz", [Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])])
    assert len(read_structures(tmp_path / "pool.extxyz")) == 1


def test_real_data_of_two_levels() -> None:
    paths = {"nm": LMFP / "lmfp_nm.extxyz", "mag": LMFP / "lmfp_mag.extxyz"}
    frames = read_frames(paths)
    for level, path in paths.items():
        raw = read(path, ":")
        own = frames.of(level)
        assert len(own) == len(raw) > 20
        assert own[3].energy == raw[3].calc.results["energy"]
        assert_allclose(own[3].forces, raw[3].calc.results["forces"])
        assert own[3].source == f"{path} frame 3"
        assert own[3].wall_seconds == raw[3].info["wall_seconds"]
    summary = frames.summary()
    assert summary["nm"]["held_out"] > 0
    assert summary["mag"]["forces"] == summary["mag"]["frames"]
    assert read_frames([paths["mag"], paths["nm"]], levels=("nm", "mag")).data_hash() == frames.data_hash()
    contains(error_of({"nm": paths["mag"], "mag": paths["nm"]}), "lmfp_mag.extxyz frame 0", "'nm'", "'mag'")
