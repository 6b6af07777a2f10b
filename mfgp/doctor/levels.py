"""Checks of levels against each other: cost, units, and what the lower one says about the forces of the higher one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mfgp.base.units import ENERGY_UNITS, FORCE_UNITS
from mfgp.doctor.report import Array, Correlation, Finding, Severity, about, examples, shared_structures
from mfgp.frames import Frame, FrameSet, as_seconds

Pairs = Sequence[tuple[Frame, Frame]]

_PLAUSIBLE = 4.0  # levels of theory differ by less than this factor in forces and energy differences
_PLAUSIBLE_UNSHARED = 15.0  # and by less than this when their structures differ
_CORRELATED = 0.8
_WEAK = 0.5


def level_checks(frames: FrameSet) -> tuple[list[Finding], tuple[Correlation, ...]]:
    """Findings and force correlations for every level and the one above it."""
    findings: list[Finding] = []
    found: list[Correlation] = []
    for low, high in zip(frames.levels[:-1], frames.levels[1:], strict=True):
        findings.extend(_cost_order(frames, low, high))
        pairs = shared_structures(frames, low, high)
        if not pairs:
            message = f"fidelities {low!r} and {high!r} share no structure: how their forces relate is not checkable; "
            findings.append(about("info", "shared structures", message + "a few structures at both levels would tell."))
            findings.extend(_unshared_force_units(frames, low, high))
            continue
        message = f"fidelities {low!r} and {high!r} share {len(pairs)} structures."
        findings.append(about("info", "shared structures", message))
        own = force_correlations(low, high, pairs)
        found.extend(own)
        findings.extend(_identical(low, high, pairs))
        findings.extend(_force_units(low, high, pairs))
        findings.extend(_energy_units(low, high, pairs))
        findings.extend(_weak(correlation) for correlation in own if correlation.r < _WEAK and correlation.n_atoms > 5)
    return findings, tuple(found)


def _cost_order(frames: FrameSet, low: str, high: str) -> list[Finding]:
    """Whether labels of the level that is given as the higher one were cheaper, by what the frames say they took."""
    for key, unit in (
        ("cpu_seconds", "CPU seconds"),
        ("wall_seconds", "seconds"),
    ):  # CPU time depends less on the machine
        cost = [_seconds_per_atom(frames.of(level), key) for level in (low, high)]  # [frame] each
        if len(cost[0]) and len(cost[1]):
            below, above = (float(values.mean()) for values in cost)
            if above >= below:
                return []
            message = f"a label of {high!r} took {above:.2g} {unit} an atom on average, one of {low!r} {below:.2g} "
            message += (
                f"({len(cost[1])} and {len(cost[0])} frames), but {high!r} is given as the higher level; levels go "
            )
            message += "from the cheapest to the best: check the order (of the files, of `fidelities:`, of levels=)."
            return [about("warning", "order of levels", message)]
    return []


def _seconds_per_atom(frames: Sequence[Frame], key: str) -> Array:
    """What labels cost, of frames that say so, [frame] seconds per atom."""
    costs = []
    for frame in frames:
        seconds = frame.wall_seconds if key == "wall_seconds" else as_seconds(frame.atoms.info.get(key))
        if seconds is not None and not frame.isolated_atom:
            costs.append(seconds / len(frame.atoms))
    return np.array(costs)


def force_correlations(low: str, high: str, pairs: Pairs) -> list[Correlation]:
    """Correlation of the forces of two levels on shared structures, for each element with at least two atoms."""
    below: dict[int, list[Array]] = defaultdict(list)
    above: dict[int, list[Array]] = defaultdict(list)
    for a, b in pairs:
        used = _both(a, b)
        for z in np.unique(a.atoms.numbers[used]):
            chosen = used & (a.atoms.numbers == z)
            below[int(z)].append(_forces(a)[chosen])
            above[int(z)].append(_forces(b)[chosen])
    found = []
    for z in sorted(below):
        x, y = np.concatenate(below[z]).ravel(), np.concatenate(above[z]).ravel()  # [atom * 3] eV/Å
        if len(x) >= 6 and x.std() > 0 and y.std() > 0:
            slope, r = _slope(x, y), float(np.corrcoef(x, y)[0, 1])
            found.append(Correlation(low, high, chemical_symbols[z], len(x) // 3, r, slope))
    return found


def _forces(frame: Frame) -> Array:
    return frame.forces if frame.forces is not None else np.zeros((len(frame.atoms), 3))


def _both(a: Frame, b: Frame) -> NDArray[np.bool_]:
    """Atoms whose force both frames have, [atom] bool."""
    if a.forces is None or b.forces is None or a.isolated_atom:
        return np.zeros(len(a.atoms), dtype=bool)
    return a.force_mask & b.force_mask


def _slope(x: Array, y: Array) -> float:
    return float(x @ y / (x @ x))


def _identical(low: str, high: str, pairs: Pairs) -> list[Finding]:
    same = [
        b for a, b in pairs
        if _both(a, b).any() and np.array_equal(_forces(a)[_both(a, b)], _forces(b)[_both(a, b)])
        and np.any(_forces(a)[_both(a, b)])
    ]  # fmt: skip
    if not same:
        return []
    message = (
        f"fidelities {low!r} and {high!r} have identical forces on {len(same)} shared structures, {examples(same)}; "
    )
    return [about("error", "shared structures", message + "one of the two is mislabelled: name the right files.", same)]


def _force_units(low: str, high: str, pairs: Pairs) -> list[Finding]:
    used = [(a, b) for a, b in pairs if _both(a, b).any()]
    if not used:
        return []
    x = np.concatenate([_forces(a)[_both(a, b)].ravel() for a, b in used])  # eV/Å
    y = np.concatenate([_forces(b)[_both(a, b)].ravel() for a, b in used])
    if len(x) < 6 or x.std() == 0 or y.std() == 0 or np.corrcoef(x, y)[0, 1] < _CORRELATED:
        return []
    return _unit_finding("forces", low, high, _slope(x, y), f"{len(used)} shared structures", FORCE_UNITS, "error")


def _unshared_force_units(frames: FrameSet, low: str, high: str) -> list[Finding]:
    rms = []
    for level in (low, high):
        forces = [_forces(f)[f.force_mask] for f in frames.of(level) if f.forces is not None and not f.isolated_atom]
        rms.append(float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else 0.0)
    if not all(rms) or 1 / _PLAUSIBLE_UNSHARED < rms[1] / rms[0] < _PLAUSIBLE_UNSHARED:
        return []
    return _unit_finding("forces", low, high, rms[1] / rms[0], "root mean square", FORCE_UNITS, "warning")


def _energy_units(low: str, high: str, pairs: Pairs) -> list[Finding]:
    """Compare energy differences between structures of equal composition, which no e0 can explain."""
    groups: dict[bytes, list[tuple[float, float]]] = defaultdict(list)
    for a, b in pairs:
        if a.energy is not None and b.energy is not None and not a.isolated_atom:
            groups[np.sort(a.atoms.numbers).tobytes()].append((a.energy, b.energy))
    centred = [np.array(group) - np.mean(group, axis=0) for group in groups.values() if len(group) > 1]
    if sum(map(len, centred)) < 5:
        return []
    x, y = np.concatenate(centred).T  # [structure] eV
    if x.std() == 0 or y.std() == 0 or np.corrcoef(x, y)[0, 1] < _CORRELATED:
        return []
    where = f"{len(x)} shared structures"
    return _unit_finding("energy differences", low, high, _slope(x, y), where, ENERGY_UNITS, "error")


def _unit_finding(
    what: str, low: str, high: str, ratio: float, where: str, known: dict[float, str], severity: Severity
) -> list[Finding]:
    if 1 / _PLAUSIBLE < ratio < _PLAUSIBLE:
        return []
    guesses = [
        f"{unit} of {level!r} (multiply them by {factor:.5g})"
        for level, value in ((low, ratio), (high, 1 / ratio))
        for factor, unit in known.items()
        if 0.8 < value / factor < 1.25
    ]
    message = f"{what} of {high!r} are {ratio:.3g} times those of {low!r} ({where}); "
    message += f"this looks like {' or '.join(guesses)}" if guesses else "check that both are in eV and Å"
    return [about(severity, "units", f"{message}.")]


def _weak(correlation: Correlation) -> Finding:
    message = f"forces on {correlation.element} at {correlation.high!r} correlate with those at {correlation.low!r} by "
    message += (
        f"only {correlation.r:.2f} ({correlation.n_atoms} atoms); the lower level says little about this element: "
    )
    return about("warning", "correlation", message + "check the order of the atoms, and use rho: species.")
