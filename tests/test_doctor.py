"""The doctor: each finding is provoked on data made for it, and absent on data without the fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from numpy.typing import NDArray

from mfgp.doctor import examine
from mfgp.doctor.labels import composition_residual
from mfgp.doctor.lengths import bond_ratios
from mfgp.doctor.report import Finding, Report
from mfgp.frames import FrameSet, read_frames

LMFP = Path(__file__).parent.parent / "examples" / "lmfp"
Array = NDArray[np.float64]


def labelled(atoms: Atoms, scale: float = 1.0, **info: object) -> Atoms:
    """EMT labels times `scale`, under REF_ keys."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    atoms.info.update({"REF_energy": scale * atoms.get_potential_energy(), **info})
    atoms.set_array("REF_forces", scale * atoms.get_forces())
    atoms.info["REF_stress"] = atoms.get_stress()
    atoms.calc = None
    return atoms


def crystals(n: int = 12, seed: int = 0, **info: object) -> list[Atoms]:
    """Rattled Cu/Au cells of several compositions."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        atoms = bulk("Cu", cubic=True, a=3.7)
        atoms.numbers[: i % 4] = 79
        atoms.positions += rng.normal(scale=0.08, size=(4, 3))
        found.append(labelled(atoms, **info))
    return found


def report_of(*levels: list[Atoms]) -> Report:
    return examine(read_frames({name: list(own) for name, own in zip(("low", "high", "top"), levels, strict=False)}))


def only(report: Report, severity: str, check: str) -> Finding:
    found = [finding for finding in report.findings if (finding.severity, finding.check) == (severity, check)]
    assert len(found) == 1, f"{severity} {check}: {[(f.severity, f.check, f.message) for f in report.findings]}"
    return found[0]


def has(report: Report, severity: str, check: str) -> bool:
    return any((finding.severity, finding.check) == (severity, check) for finding in report.findings)


def says(finding: Finding, *parts: str) -> None:
    missing = [part for part in parts if part not in finding.message]
    assert not missing, f"{missing} not in {finding.message!r}"


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


@pytest.mark.parametrize(
    ("factor", "unit"), [(51.422, "Ha/bohr"), (27.211, "Ha/Å"), (25.711, "Ry/bohr"), (1 / 23.061, "kcal/mol/Å")]
)
def test_force_units_between_levels(factor: float, unit: str) -> None:
    low, high = crystals(), crystals()
    for a, b in zip(low, high, strict=True):
        a.arrays["REF_forces"] *= 0.9
        b.arrays["REF_forces"] /= factor
    finding = only(report_of(low, high), "error", "units")
    says(finding, "forces of 'high'", "12 shared structures", f"{unit} of 'high' (multiply them by {factor:.5g})")
    finding = only(report_of(high, low), "error", "units")
    says(finding, "forces of 'high'", f"{unit} of 'low' (multiply them by {factor:.5g})")


def test_energy_units_between_levels() -> None:
    low, high = crystals(), crystals()
    for a, b in zip(low, high, strict=True):
        a.info["REF_energy"] += 3.0 * (a.numbers == 79).sum()
        a.arrays["REF_forces"] *= 1.1
        b.info["REF_energy"] /= 27.2114
    finding = only(report_of(low, high), "error", "units")
    says(finding, "energy differences of 'high'", "Hartree of 'high' (multiply them by 27.211)")


def test_force_units_of_levels_that_share_nothing() -> None:
    low, high = crystals(seed=3), crystals(seed=4)
    report = report_of(low, high)
    says(only(report, "info", "shared structures"), "share no structure", "not checkable")
    assert not has(report, "warning", "units")
    for atoms in high:
        atoms.arrays["REF_forces"] /= 51.422
    says(only(report_of(low, high), "warning", "units"), "forces of 'high'", "Ha/bohr")


def test_a_hydrogen_atom_in_hartree() -> None:
    data = [*crystals(), Atoms("H", info={"REF_energy": -0.4996})]
    says(only(report_of(data), "warning", "units"), "frame 12 (H)", "Hartree", "27.2114")


def strained(stress_factor: float = 1.0) -> list[Atoms]:
    rng = np.random.default_rng(5)
    base = bulk("Cu", cubic=True, a=3.7)
    base.positions += rng.normal(scale=0.05, size=(4, 3))
    found = []
    for _ in range(6):
        atoms = base.copy()
        shear = rng.normal(scale=0.01, size=(3, 3))
        atoms.set_cell(base.cell.array @ (np.eye(3) + shear + shear.T), scale_atoms=True)
        atoms = labelled(atoms)
        atoms.info["REF_stress"] *= stress_factor
        found.append(atoms)
    return found


def test_stress_sign_and_unit_from_strained_copies() -> None:
    says(only(report_of(strained()), "info", "stress sign"), "agrees", "5 pairs", "slope 1.0")
    says(only(report_of(strained(-1.0)), "error", "stress sign"), "opposite of ASE's", "negate", "frame ")
    says(only(report_of(strained(1 / units.GPa)), "error", "stress sign"), "looks like GPa")
    flipped = only(report_of(strained(-10 / units.GPa)), "error", "stress sign")
    says(flipped, "looks like kbar", "opposite of ASE's")
    says(only(report_of(strained(3.0)), "warning", "stress sign"), "not the derivative", "leave it out")
    says(only(report_of(crystals()), "info", "stress sign"), "not checkable", "strained by 1 %")


def test_stress_size_looks_like_gpa() -> None:
    data = crystals()
    assert not has(report_of(data), "error", "stress unit")
    for atoms in data:
        atoms.info["REF_stress"] /= units.GPa
    says(only(report_of(data), "error", "stress unit"), "GPa or kbar", "0.0062415", "frame ")


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


@pytest.mark.parametrize(("factor", "way"), [(1 / units.Bohr, "multiply"), (units.Bohr, "divide")])
def test_lengths_in_bohr(factor: float, way: str) -> None:
    scaled = [atoms.copy() for atoms in crystals()]
    for atoms in scaled:
        atoms.set_cell(atoms.cell.array * factor, scale_atoms=True)
    good = [*crystals(), molecule("H2O", vacuum=4.0, pbc=True, info={"REF_energy": -14.0})]
    assert not has(report_of(good), "warning", "units")
    says(only(report_of(scaled), "warning", "units"), way, "0.529177", "covalent radii", "frame 0")


def test_nearest_neighbours_of_usual_structures_are_as_far_as_bonds() -> None:
    for atoms in (
        bulk("NaCl", "rocksalt", a=5.64),
        bulk("Na"),
        bulk("W"),
        bulk("Si"),
        molecule("C6H6"),
        molecule("SiH4"),
    ):
        assert 0.8 < np.median(bond_ratios(atoms)) < 1.3
    argon = bulk("Ar", "fcc", a=5.3)
    assert not len(bond_ratios(argon))


def test_atoms_between_two_charge_states() -> None:
    rng = np.random.default_rng(0)
    frames = [atoms.copy() for atoms in crystals()]
    n = len(frames[0])
    for k, atoms in enumerate(frames):  # one half of the frames in each state, of either sign
        atoms.set_array("REF_magmoms", (-1) ** k * ((4.6 if k % 4 < 2 else 3.9) + rng.normal(0, 0.02, n)))
    assert not has(report_of(frames), "info", "charge state")
    frames[5].arrays["REF_magmoms"][3] = -4.3  # copper
    says(only(report_of(frames), "info", "charge state"), "moments of Cu", "frame 5", "near 3.9", "and 4.6")
    assert not has(report_of(frames), "warning", "lost moment")
    frames[6].arrays["REF_magmoms"][3] = 0.02
    says(
        only(report_of(frames), "warning", "lost moment"), "1 of 30 Cu", "4.60 Bohr magnetons", "least 0.02", "frame 6"
    )
    for k in range(0, 12, 3):
        frames[k].arrays["REF_magmoms"][frames[k].numbers == 29] = 0.0
    says(only(report_of(frames), "info", "lost moment"), "of 30 Cu", "frame 0", "frame 9")
    for k, atoms in enumerate(frames):
        atoms.arrays["REF_magmoms"][:] = (4.6 if k % 4 < 2 else 3.9) + rng.normal(0, 0.02, n)
    for k in (2, 4, 6):
        frames[k].arrays["REF_magmoms"][3] = 4.25
    assert not has(report_of(frames), "info", "charge state")  # a third state
    for atoms in frames:  # no gap: an element in one state, or a metal
        atoms.arrays["REF_magmoms"][:] = rng.uniform(3.9, 4.6, n)
    assert not has(report_of(frames), "info", "charge state")
    for atoms in frames:
        atoms.arrays["REF_magmoms"][:] = rng.choice([0.01, 0.05], n)  # a gap, but a small one
    assert not has(report_of(frames), "info", "charge state")


def test_spins_of_one_composition_that_are_parallel_here_and_antiparallel_there() -> None:
    frames = [atoms.copy() for atoms in crystals()]
    for k, atoms in enumerate(frames):  # each composition in one order
        atoms.set_array("REF_magmoms", np.array([4.0, -4.0 if k % 4 == 1 else 4.0, 4.0, 0.1]))
    assert not has(report_of(frames), "warning", "magnetic orders")
    frames[9].arrays["REF_magmoms"] = np.array([-4.0, -4.0, 4.0, 0.1])  # the antiparallel ones in another order
    says(only(report_of(frames), "info", "magnetic orders"), "up to 2 ways", "1 frames not in the usual one", "frame 9")
    frames[9].arrays["REF_magmoms"] = np.array([-4.0, 4.0, -4.0, 0.1])  # the same, turned round
    assert not has(report_of(frames), "info", "magnetic orders")
    frames[6].arrays["REF_magmoms"][1] *= -1
    frames[7].arrays["REF_magmoms"] *= -1  # all of them: the same order
    says(only(report_of(frames), "warning", "magnetic orders"), "2 frames have parallel", "1 have not", "frame 6")


def test_frames_without_the_moments_that_others_have() -> None:
    frames = [atoms.copy() for atoms in crystals()]
    assert not has(report_of(frames), "info", "magnetic moments")
    frames[3].set_initial_magnetic_moments([2.0] * 4)
    says(only(report_of(frames), "info", "magnetic moments"), "12 of 12", "1 of them", "initial_magmoms", "REF_magmoms")
    frames[3].set_initial_magnetic_moments([0.0] * 4)
    for atoms in frames[:-1]:
        atoms.set_array("REF_magmoms", np.full(4, 4.0))
    finding = only(report_of(frames), "info", "magnetic moments")
    says(finding, "1 of 12", "frame 11")
    assert "initial" not in finding.message


def test_a_moment_that_is_no_whole_number_among_many_that_are() -> None:
    moments = [20.0, 19.99, 16.01, 0.0, -18.0, 20.0, 18.002, 16.0, 20.0, 19.633, 19.995, 20.06]
    with_moments = [atoms.copy() for atoms in crystals()]
    for atoms, moment in zip(with_moments, moments, strict=True):
        atoms.info["total_magmom"] = moment
    says(only(report_of(with_moments), "warning", "shared electron"), "2 of 12", "frame 9", "19.633", "NUPDOWN")
    for atoms, moment in zip(with_moments, moments, strict=True):
        atoms.info["total_magmom"] = 1.1 * moment  # a metal
    assert not has(report_of(with_moments), "warning", "shared electron")
    assert not has(report_of(with_moments[9:]), "warning", "shared electron")


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
