"""Checks of one level's labels: outliers, zero or unbalanced forces, units and sign of the stress.

The stress is checked against the energies where the data allow it: for two frames whose fractional coordinates are
equal and whose cells differ by a small strain eps,

    E_b - E_a = 1/2 (V_a sigma_a + V_b sigma_b) : eps + O(eps^3),    eps = sym(C_a^-1 C_b - 1), rows of C the cell vectors

so the slope of the left side over the right one is 1, or -1 for the other sign, or eV/Å^3 over the unit in use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from ase import units
from ase.stress import voigt_6_to_full_3x3_stress

from mfgp.data.same_structure import groups
from mfgp.doctor.report import Array, Finding, Severity, about, composition, examples, robust_z
from mfgp.frames import Frame

_OUTLIER = 8.0  # robust standard deviations
_SPARE = 8  # energies beside those that fix the elements' references, for a spread that means something
_ENERGY_OUTLIER = 0.05  # eV/atom, smaller deviations are no outliers whatever their z
_LARGE_FORCE = 50.0  # eV/Å
_NET_FORCE = 0.02  # eV/Å and atom
_FEW = 0.1  # share of the frames
_LARGE_STRESS = 1.0  # eV/Å^3 = 160 GPa
_MAX_STRAIN = 0.06
_REWEIGHTINGS = 30


def energy_checks(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Energies per atom far from what their composition says, and a hydrogen atom that gives Hartree away."""
    findings = []
    bulk = [frame for frame in frames if frame.energy is not None and not frame.isolated_atom]
    residual = composition_residual(bulk)  # [frame] eV/atom
    z = robust_z(residual)
    far = [i for i in np.argsort(-np.abs(z)) if abs(z[i]) > _OUTLIER and abs(residual[i]) > _ENERGY_OUTLIER]
    elements = {int(number) for frame in bulk for number in frame.atoms.numbers}
    severity: Severity = "warning" if len(bulk) >= len(elements) + _SPARE else "info"
    if far:
        out = [bulk[i] for i in far]
        message = f"fidelity {level!r}: {len(far)} energies lie far from the others after a fit of the composition, "
        message += (
            f"{examples(out)}, the first by {residual[far[0]]:+.3f} eV/atom ({abs(z[far[0]]):.0f} robust standard "
        )
        message += "deviations); check these calculations, or remove them."
        findings.append(about(severity, "energy outliers", message, out))
    for frame in frames:
        hydrogen = frame.isolated_atom and frame.atoms.numbers.tolist() == [1]
        if hydrogen and frame.energy is not None and -0.51 < frame.energy < -0.45:
            message = (
                f"{frame.source} (H), fidelity {level!r}: an isolated hydrogen atom of {frame.energy:.4f} eV looks "
            )
            message += "like Hartree; multiply all energies by 27.2114, and check the unit of the forces."
            findings.append(about("warning", "units", message, [frame]))
    return findings


def composition_residual(frames: Sequence[Frame]) -> Array:
    """E/N minus the composition's share, [frame] eV/atom; zeros when there are too few frames to tell.

    Least absolute deviations by reweighted least squares, so that an outlier does not pull the fit to itself.
    """
    numbers = sorted({int(z) for frame in frames for z in frame.atoms.numbers})
    if len(frames) < len(numbers) + 4:
        return np.zeros(len(frames))
    counts = composition(frames, numbers)
    fractions = counts / counts.sum(axis=1, keepdims=True)  # [frame, element]
    energy = np.array([float(frame.energy or 0.0) / len(frame.atoms) for frame in frames])  # [frame] eV/atom
    weight = np.ones(len(frames))
    residual = energy
    for _ in range(_REWEIGHTINGS):
        solution = np.linalg.lstsq(fractions * weight[:, None], energy * weight, rcond=1e-9)[0]
        residual = energy - fractions @ solution
        weight = 1.0 / np.sqrt(np.maximum(np.abs(residual), 1e-6))
    return residual


def force_checks(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Forces that are zero and left out, repeated, very large, or do not add up to zero."""
    given = [f for f in frames if f.forces is not None and not f.isolated_atom]
    zero = _zero_forces(level, given)
    labelled = [f for f in given if f.force_mask.any()]
    if not labelled:
        return zero
    largest = np.array([np.linalg.norm(_used(frame), axis=1).max() for frame in labelled])  # [frame] eV/Å
    return (
        zero
        + _repeated_forces(level, labelled)
        + _large_forces(level, labelled, largest)
        + _net_forces(level, labelled)
    )


def _zero_forces(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Forces that are exactly zero and left out (held_atoms.py)."""
    out = [frame for frame in frames if frame.held]
    if not out:
        return []
    none_left = [frame for frame in out if not frame.force_mask.any()]
    severity: Severity = "error" if len(none_left) == len(frames) else "warning" if none_left else "info"
    message = f"fidelity {level!r}: forces on {sum(frame.held for frame in out)} atoms of {len(out)} of {len(frames)} "
    message += f"frames, {examples(none_left or out)}, are exactly zero where no symmetry makes them so, and left out: "
    message += "constraints (FixAtoms and its like) had set them to zero, "
    message += f"or, as it seems in {len(none_left)} frames without others, they" if none_left else "or they"
    message += " were not computed; to have them, write atoms.get_forces(apply_constraint=False)."
    return [about(severity, "zero forces", message, out)]


def _repeated_forces(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Forces that are equal to the last digit in different structures."""
    alike: dict[bytes, list[Frame]] = defaultdict(list)
    for frame in frames:
        if _used(frame).any():
            alike[_used(frame).tobytes()].append(frame)
    out = [
        f
        for found in alike.values()
        if len(found) > 1 and len(set(groups([f.atoms for f in found]))) > 1  # not of one structure moved or repeated
        for f in found
    ]
    if not out:
        return []
    message = f"fidelity {level!r}: {len(out)} frames of different structures have the same forces to the last digit, "
    message += f"{examples(out)}: those of an earlier step, kept when a calculation did not run? Calculate them again."
    return [about("error", "repeated forces", message, out)]


def _used(frame: Frame) -> Array:
    """Forces of the atoms that the mask keeps, [atom, 3] eV/Å."""
    forces = frame.forces if frame.forces is not None else np.zeros((len(frame.atoms), 3))
    return forces[frame.force_mask]


def _large_forces(level: str, frames: Sequence[Frame], largest: Array) -> list[Finding]:
    z = robust_z(np.log(np.maximum(largest, 1e-6)))
    far = [i for i in np.argsort(-largest) if largest[i] > _LARGE_FORCE or (z[i] > _OUTLIER and largest[i] > 1)]
    if not far:
        return []
    out = [frames[i] for i in far]
    message = f"fidelity {level!r}: {len(far)} frames have forces far larger than the rest, {examples(out)}, the first "
    message += f"{largest[far[0]]:.1f} eV/Å (median of the frames' largest {np.median(largest):.2f}); check that these "
    return [about("warning", "force outliers", message + "calculations converged, or mask or remove them.", out)]


def _net_forces(level: str, frames: Sequence[Frame]) -> list[Finding]:
    complete = [frame for frame in frames if frame.force_mask.all() and len(frame.atoms) > 1]
    net = np.array([np.linalg.norm(_used(frame).sum(axis=0)) / len(frame.atoms) for frame in complete])
    off = [i for i in np.argsort(-net) if net[i] > _NET_FORCE]
    if not off:
        return []
    out = [complete[i] for i in off]
    message = f"fidelity {level!r}: forces do not add up to zero in {len(off)} of {len(complete)} frames, "
    message += (
        f"{examples(out)}, the first {net[off[0]]:.3f} eV/Å an atom; an energy that does not depend on the origin "
    )
    message += "cannot fit that: tighten the calculation, subtract the mean, or mask fixed atoms"
    if len(off) < _FEW * len(complete):
        message += ". Where nearly all others do, one force of these frames may be wrong"
    message += "."
    return [about("warning", "net force", message, out)]


def stress_checks(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Unit and sign of the stress, by its size and by strained copies among the frames."""
    labelled = [frame for frame in frames if frame.stress is not None]
    if not labelled:
        return []
    findings = []
    size = np.array([np.abs(frame.stress).max() for frame in labelled if frame.stress is not None])  # [frame] eV/Å^3
    if np.median(size) > _LARGE_STRESS:
        out = [frame for frame, s in zip(labelled, size, strict=True) if s > _LARGE_STRESS]
        message = f"fidelity {level!r}: the median of the largest stress is {np.median(size):.1f} eV/Å^3 "
        message += f"({np.median(size) / units.GPa:.0f} GPa), {examples(out)}; it looks like GPa or kbar: convert "
        message += "to eV/Å^3 (1 GPa = 0.0062415, 1 kbar = 0.00062415)."
        findings.append(about("error", "stress unit", message, out))
    work, energy, out = _strain_work(labelled)
    return [*findings, _stress_against_energy(level, work, energy, out)]


def _strain_work(frames: Sequence[Frame]) -> tuple[Array, Array, list[Frame]]:
    """Work of the stress and difference of the energies over pairs of strained copies: [pair] eV, [pair] eV."""
    groups: dict[bytes, list[Frame]] = defaultdict(list)
    for frame in frames:
        if frame.energy is not None and frame.atoms.pbc.all() and frame.atoms.cell.rank == 3:
            scaled = np.round(frame.atoms.get_scaled_positions(wrap=False), 4) + 0.0
            groups[frame.atoms.numbers.tobytes() + scaled.tobytes()].append(frame)
    work, energy, used = [], [], []
    for group in groups.values():
        ordered = sorted(group, key=lambda frame: frame.atoms.get_volume())
        for a, b in pairwise(ordered):
            step = np.linalg.solve(a.atoms.cell.array, b.atoms.cell.array) - np.eye(3)
            strain = 0.5 * (step + step.T)  # [3, 3]
            if 1e-5 < np.abs(strain).max() < _MAX_STRAIN:
                work.append(float(np.sum(0.5 * (_virial(a) + _virial(b)) * strain)))
                energy.append(float(b.energy or 0.0) - float(a.energy or 0.0))
                used += [a, b]
    return np.array(work), np.array(energy), used


def _virial(frame: Frame) -> Array:
    """V sigma, [3, 3] eV."""
    stress = frame.stress if frame.stress is not None else np.zeros(6)
    return voigt_6_to_full_3x3_stress(stress) * frame.atoms.get_volume()


def _stress_against_energy(level: str, work: Array, energy: Array, frames: Sequence[Frame]) -> Finding:
    if not len(work) or not np.any(work):
        message = f"fidelity {level!r}: sign and unit of the stress are not checkable: no two frames with energies and "
        message += "stresses are strained copies of each other; add a few cells strained by 1 % to be sure."
        return about("info", "stress sign", message)
    slope = float(work @ energy / (work @ work))
    known = {1.0: "", units.GPa: "; it looks like GPa", 0.1 * units.GPa: "; it looks like kbar"}
    near = next((text for unit, text in known.items() if 0.75 < abs(slope) / unit < 1.33), None)
    if near == "" and slope > 0:
        message = f"fidelity {level!r}: the stress agrees with the energies of {len(work)} pairs of strained cells "
        return about("info", "stress sign", message + f"(slope {slope:.2f}).")
    message = (
        f"fidelity {level!r}: over {len(work)} pairs of strained cells the energy changes by {slope:.3g} times the "
    )
    message += f"work of the stress, {examples(frames)}"
    if near is None:
        message += (
            "; the stress is not the derivative of these energies (basis-set error, another level?): leave it out."
        )
        return about("warning", "stress sign", message, frames)
    sign = "; its sign is the opposite of ASE's (positive under tension): negate it" if slope < 0 else ""
    return about("error", "stress sign", f"{message}{near}{sign}. Convert to eV/Å^3 with ASE's sign.", frames)
