"""The doctor finds electrons between two atoms, spins set in two ways, and moments that are missing or odd."""

from __future__ import annotations

import numpy as np
from doctor_data import crystals, has, only, report_of, says


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
