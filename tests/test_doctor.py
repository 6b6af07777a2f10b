"""The doctor: each finding is provoked on data made for it, and absent on data without the fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from doctor_data import crystals, has, labelled, only, report_of, says

from mfgp.doctor import examine
from mfgp.doctor.labels import composition_residual
from mfgp.frames import FrameSet, read_frames

LMFP = Path(__file__).parent.parent / "examples" / "lmfp"


def test_clean_data_has_no_errors_or_warnings() -> None:
    alone = [Atoms(symbol, info={"REF_energy": energy}) for symbol, energy in (("Cu", 3.5), ("Au", 3.8))]
    report = report_of(crystals() + alone)
    assert report.ok
    assert [finding.check for finding in report.findings] == ["stress sign"]
    assert report.summary["low"]["frames"] == 14
    assert report.correlations == ()


def test_composition_rank_names_the_elements() -> None:
    same = [labelled(atoms) for atoms in crystals() if (atoms.numbers == 79).sum() == 2]
    says(only(report_of(same), "warning", "composition"), "1 combinations of 2", "Cu, Au cannot be separated", "add")
    assert not has(report_of(crystals()), "warning", "composition")
    bare = crystals()
    for atoms in bare:
        del atoms.info["REF_energy"]
    says(only(report_of(bare), "warning", "composition"), "no training energies", "Add energies")
    # Cu and Au always together, H in other shares: only the first two cannot be separated
    mixed = [Atoms("CuAu" + "H" * n, [[2.0 * i, 0, 0] for i in range(n + 2)]) for n in (1, 2, 3)]
    for atoms in mixed:
        atoms.info["REF_energy"] = -1.0
    says(only(report_of(mixed), "warning", "composition"), "2 combinations of 3", "; Cu, Au cannot")


def test_levels_with_the_same_references_share_one_warning() -> None:
    same = [atoms for atoms in crystals() if (atoms.numbers == 79).sum() == 2]
    other = [atoms for atoms in crystals(16, seed=1) if (atoms.numbers == 79).sum() == 2]
    finding = only(report_of(same, other), "warning", "composition")
    says(finding, "fidelities 'low' and 'high': the compositions of 3 and 4 energies determine 1 combinations of 2")
    says(
        only(report_of(same, other), "info", "isolated atoms"),
        "fidelities 'low' and 'high': no isolated atom of Cu, Au",
    )
    finding = only(report_of(same, crystals(seed=2), other), "warning", "composition")
    says(finding, "fidelities 'low' and 'top': the compositions of 3 and 4 energies")


def test_levels_that_grow_cheaper_are_in_the_wrong_order() -> None:
    def costing(seconds: float, seed: int, key: str = "wall_seconds") -> list[Atoms]:
        return crystals(seed=seed, **{key: seconds})

    finding = only(report_of(costing(400.0, 1), costing(40.0, 2)), "warning", "order of levels")
    says(
        finding,
        "a label of 'high' took 10 seconds an atom",
        "one of 'low' 1e+02",
        "12 and 12 frames",
        "check the order",
    )
    assert not has(report_of(costing(40.0, 1), costing(400.0, 2)), "warning", "order of levels")
    assert not has(report_of(crystals(), costing(40.0, 2)), "warning", "order of levels")  # not known of both
    cpu = report_of(costing(400.0, 1, "cpu_seconds"), costing(40.0, 2, "cpu_seconds"))
    says(only(cpu, "warning", "order of levels"), "CPU seconds")
    supercells = [labelled(atoms * (2, 2, 2), wall_seconds=400.0) for atoms in crystals(3, seed=3)]
    assert has(report_of(costing(100.0, 1), supercells), "warning", "order of levels")  # 12.5 an atom against 25


def test_long_lists_say_where_the_rest_is() -> None:
    data = crystals(20)
    for atoms in data[:9]:
        atoms.arrays["REF_forces"] += 0.05
    finding = only(report_of(data), "warning", "net force")
    assert finding.message.count("frame ") == 8
    says(finding, "and 1 more (mfgp doctor --json OUT lists all)")
    assert len(finding.frames) == 9
    (written,) = [f for f in report_of(data).to_json()["findings"] if f["check"] == "net force"]
    assert written["frames"] == list(finding.frames)


def test_missing_isolated_atoms() -> None:
    alone = Atoms("Cu", info={"REF_energy": 3.5})
    finding = only(report_of([*crystals(), alone]), "info", "isolated atoms")
    says(finding, "no isolated atom of Au;", "config_type=IsolatedAtom")


def test_duplicates_with_equal_and_with_other_labels() -> None:
    data = crystals()
    equal = only(report_of([*data, data[3].copy()]), "warning", "duplicates")
    says(equal, "fidelity 'low'", "frame 3 (", "frame 12 (", "same labels", "keep one")
    assert equal.frames == ("list of Atoms frame 3", "list of Atoms frame 12")
    for key in ("energy", "forces"):
        other = data[5].copy()
        if key == "energy":
            other.info["REF_energy"] += 0.01
        else:
            other.arrays["REF_forces"][0, 0] += 0.01
        says(only(report_of([*data, other]), "error", "duplicates"), "frame 5 (", "frame 12 (", "other labels", "keep")
    assert not has(report_of(data), "warning", "duplicates")


def test_held_out_frames_and_leaks() -> None:
    train, test = crystals(seed=1), crystals(3, seed=2, split="test_ood")
    report = report_of(train + test)
    says(only(report, "info", "split"), "3 of 'low'", "test_ood")
    assert report.ok
    leaked = train[4].copy()
    leaked.info["split"] = "test"
    finding = only(report_of([*train, *test, leaked]), "error", "split")
    says(finding, "1 test structures", "same level", "frame 15 (", "hold them out")
    below = [atoms.copy() for atoms in test]
    for atoms in below:
        del atoms.info["split"]
    with pytest.warns(UserWarning, match="the same energies"):
        report = report_of(train + below, train + test)
    says(only(report, "warning", "split"), "'high'", "3 test", "another level")


def test_energy_outliers_after_the_composition_fit() -> None:
    data = crystals(16)
    assert not has(report_of(data), "warning", "energy outliers")
    data[6].info["REF_energy"] += 6.0  # 1.5 eV/atom
    finding = only(report_of(data), "warning", "energy outliers")
    says(finding, "1 energies", "frame 6 (", "by +1.", "check these calculations")
    assert finding.frames == ("list of Atoms frame 6",)


def test_composition_residual_finds_the_references_despite_outliers() -> None:
    data = crystals(16)
    for i, atoms in enumerate(data):
        gold = (atoms.numbers == 79).sum()
        atoms.info["REF_energy"] = -3.0 * (4 - gold) - 5.0 * gold + (40.0 if i in (2, 9) else 0.0)
    residual = composition_residual(read_frames({"a": data}).frames)
    expected = np.zeros(16)
    expected[[2, 9]] = 10.0  # eV/atom
    np.testing.assert_allclose(residual, expected, atol=1e-4)


def test_force_outliers_and_net_forces() -> None:
    data = crystals()
    data[7].arrays["REF_forces"][:2] += [[200.0, 0, 0], [-200.0, 0, 0]]
    report = report_of(data)
    says(only(report, "warning", "force outliers"), "frame 7 (", "eV/Å", "mask or remove")
    assert not has(report, "warning", "net force")
    data = crystals()
    data[2].arrays["REF_forces"] += 0.05
    says(only(report_of(data), "warning", "net force"), "1 of 12", "frame 2 (", "0.087 eV/Å an atom", "subtract")
    data[2].set_array("force_mask", np.array([1, 1, 1, 0]))
    assert not has(report_of(data), "warning", "net force")


def test_repeated_forces() -> None:
    data = crystals()
    assert not has(report_of(data), "error", "repeated forces")
    data[7].arrays["REF_forces"] = data[3].arrays["REF_forces"].copy()
    says(only(report_of(data), "error", "repeated forces"), "2 frames", "frame 3 (", "frame 7 (")
    moved = data[5].copy()
    moved.positions += 0.3  # the same structure has the same forces
    assert len(only(report_of([*data, moved]), "error", "repeated forces").frames) == 2


@pytest.mark.filterwarnings("ignore:.*exactly zero where no symmetry")
def test_zero_forces() -> None:
    data = crystals()
    data[4].arrays["REF_forces"][0] = 0.0
    says(only(report_of(data), "info", "zero forces"), "1 atoms of 1 of 12", "frame 4 (", "apply_constraint=False")
    data[4].arrays["REF_forces"][:] = 0.0
    says(only(report_of(data), "warning", "zero forces"), "1 of 12", "frame 4 (", "were not computed")
    for atoms in data:
        atoms.arrays["REF_forces"][:] = 0.0
    says(only(report_of(data), "error", "zero forces"), "12 of 12")
    one = [Atoms("Cu", cell=[2.5, 2.5, a], pbc=True, info={"REF_energy": -a}) for a in (2.5, 2.6)]
    for atoms in one:
        atoms.set_array("REF_forces", np.zeros((1, 3)))
    assert not any(has(report_of(one), severity, "zero forces") for severity in ("error", "warning", "info"))


def test_cross_level_correlation_by_element() -> None:
    low, high = crystals(16), crystals(16)
    rng = np.random.default_rng(6)
    for a, b in zip(low, high, strict=True):
        gold = b.numbers == 79
        b.arrays["REF_forces"] = 1.2 * a.arrays["REF_forces"]
        b.arrays["REF_forces"][gold] = rng.normal(size=(gold.sum(), 3))
    report = report_of(low, high)
    copper, gold = report.correlations
    assert (copper.element, gold.element) == ("Cu", "Au")
    assert copper.n_atoms == 40
    assert copper.r == pytest.approx(1.0, abs=1e-9)
    assert copper.slope == pytest.approx(1.2, abs=1e-9)
    assert abs(gold.r) < 0.5
    says(only(report, "warning", "correlation"), "forces on Au at 'high'", "24 atoms", "rho: species")
    says(only(report, "info", "shared structures"), "share 16 structures")


def test_identical_labels_at_two_levels() -> None:
    with pytest.warns(UserWarning, match="the same energies"):
        report = report_of(crystals(), crystals())
    says(only(report, "error", "shared structures"), "identical forces", "mislabelled")


def test_unlabelled_frames_tags_and_unread_keys() -> None:
    data = crystals()
    data.append(Atoms("Cu", cell=[2.5, 2.5, 2.5], pbc=True))
    data[0].info["fidelity"] = "pbe"
    data[1].info["dft_energy"] = -1.0
    report = report_of(data)
    says(only(report, "warning", "labels"), "1 of 13 frames carry no label", "frame 12 (Cu)", "remove")
    says(only(report, "warning", "tags"), "1 frames are tagged 'pbe'", "frame 0 (", "check")
    says(only(report, "info", "keys"), "dft_energy (1 frames)", "`keys`")


def test_errors_come_first() -> None:
    data = crystals()
    wrong = data[0].copy()
    wrong.info["REF_energy"] += 1.0
    report = report_of([*data, wrong, data[1].copy()])
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=("error", "warning", "info").index)
    assert severities[0] == "error"
    assert not report.ok
    assert len(report.of("info")) == severities.count("info")


def test_real_data_of_two_levels() -> None:
    frames: FrameSet = read_frames({"nm": LMFP / "lmfp_nm.extxyz", "mag": LMFP / "lmfp_mag.extxyz"})
    report = examine(frames)
    assert report.ok, report.of("error")
    assert {c.element for c in report.correlations} == {"Li", "O", "P", "Mn", "Fe"}
    phosphorus = next(c for c in report.correlations if c.element == "P")
    assert phosphorus.r == pytest.approx(0.97, abs=0.015)
    assert 0.9 < phosphorus.slope < 1.1
    says(only(report, "warning", "composition"), "'nm' and 'mag'", "3 combinations of 5", "O, P, Mn, Fe")
    assert not has(report, "warning", "order of levels")
    swapped = examine(read_frames({"mag": LMFP / "lmfp_mag.extxyz", "nm": LMFP / "lmfp_nm.extxyz"}))
    says(only(swapped, "warning", "order of levels"), "CPU seconds", "'nm' is given as the higher level")
    says(only(report, "info", "split"), "held out")
