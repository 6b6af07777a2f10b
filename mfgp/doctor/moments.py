"""What magnetic moments say of the charges: electrons between two atoms, charges between two states.

The cell of an insulator has a whole number of electrons of each spin, so a total moment that is no whole number tells of an
electron between two atoms of other spin. Between atoms of one kind it leaves the total whole; there the atoms' own moments
tell. An element in two charge states (high-spin Fe2+ and Fe3+, say) has two values of |m| with a gap between them,

    |m| = m_low or m_high,        t = (|m| - m_low) / (m_high - m_low)

and an atom with 1/4 < t < 3/4 carries a part of a charge, or is in a third state that few others are in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols

from mfgp.doctor.report import Array, Finding, about, examples
from mfgp.frames import Frame

_WHOLE, _SHARED = 0.02, 0.05  # Bohr magnetons from a whole number
_INSULATORS = 0.8  # share of the frames of a level whose moments are whole
_FEWEST = 8  # frames whose moments are whole
_EACH = 8  # atoms in each state
_MAGNETIC = 1.0  # Bohr magnetons, median of an element
_GAP = 0.3  # Bohr magnetons between two charge states
_APART = 5.0  # the same in robust standard deviations within a state
_BETWEEN = (0.25, 0.75)  # t
_RARE = 0.1  # share of an element's atoms between its states; more of them, and there are no two states


def moment_checks(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Electrons between two atoms of other spin, charges between two states, atoms without the moment of their element.

    Also frames without moments where others have them, and spins that are parallel here and antiparallel there.
    """
    checks = (_shared_electron, _between_states, _lost_moments, _mixed_orders, _missing_moments)
    return [finding for check in checks for finding in check(level, frames)]


def _shared_electron(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Total moments that are no whole number where nearly all others are.

    Near a crossing of two charge states the smearing can leave an electron spread over two atoms of other spin, by its
    entropy: a state that is neither.
    """
    known = [(f, abs(f.total_magmom - round(f.total_magmom))) for f in frames if f.total_magmom is not None]
    if sum(off < _WHOLE for _, off in known) < max(_INSULATORS * len(known), _FEWEST):
        return []
    out = [f for f, off in sorted(known, key=lambda pair: -pair[1]) if off > _SHARED]
    if not out:
        return []
    message = (
        f"fidelity {level!r}: the cell's magnetic moment is no whole number in {len(out)} of {len(known)} frames, "
    )
    message += (
        f"{examples(out)}, the first {out[0].total_magmom:.3f}, though it is in nearly all others: the smearing has "
    )
    message += (
        "left an electron between two atoms, so these energies and forces are of neither charge state. Compute them "
    )
    message += (
        "again with the total moment held (VASP: NUPDOWN; GPAW: FermiDirac(width, fixmagmom=True)) or less smearing."
    )
    return [about("warning", "shared electron", message, out)]


def _between_states(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Atoms whose moment lies between those of the two charge states of their element."""
    findings = []
    for number, (low, high, out) in between_charge_states(frames).items():
        symbol, n = chemical_symbols[number], len(out)
        message = (
            f"fidelity {level!r}: moments of {symbol} lie between those of its two charge states (near {low:.2f} and "
        )
        message += (
            f"{high:.2f} Bohr magnetons) in {n} of {len(frames)} frames, {examples(out)}. A charge spread over several "
        )
        message += (
            "atoms or a third state can be right; a start with the moments of one charge order may also end lower."
        )
        findings.append(about("info", "charge state", message, out))
    return findings


def _lost_moments(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Atoms of a magnetic element with less than half of its usual moment."""
    findings = []
    for number, (size, owners) in _moments_by_element(frames).items():
        usual = float(np.median(size))
        lost = np.flatnonzero(size < 0.5 * usual)
        if usual > _MAGNETIC and len(lost):
            out, symbol = list({id(owners[i]): owners[i] for i in lost}.values()), chemical_symbols[number]
            message = (
                f"fidelity {level!r}: {len(lost)} of {len(size)} {symbol} have less than half of the usual moment "
            )
            message += (
                f"({usual:.2f} Bohr magnetons), the least {size[lost].min():.2f}, in {examples(out)}: another spin "
            )
            message += "state, or a calculation that lost its moments; compute these again from high initial moments."
            rare = len(lost) < _RARE * len(size)  # many may be a spin state of their own
            findings.append(about("warning" if rare else "info", "lost moment", message, out))
    return findings


def _mixed_orders(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Compositions of which some frames have all spins parallel, and others have not."""
    orders: dict[str, dict[bool, list[Frame]]] = defaultdict(lambda: {True: [], False: []})
    for frame in frames:
        moments = np.zeros(0) if frame.magmoms is None else frame.magmoms
        signs = np.sign(moments[np.abs(moments) > _MAGNETIC])
        if len(signs) > 1:
            orders[frame.atoms.get_chemical_formula()][bool(np.all(signs == signs[0]))].append(frame)
    mixed = [order for order in orders.values() if order[True] and order[False]]
    if not mixed:
        return _antiparallel_arrangements(level, [f for order in orders.values() for f in order[False]])
    parallel, not_parallel = ([f for order in mixed for f in order[key]] for key in (True, False))
    message = f"fidelity {level!r}: of the same compositions {len(parallel)} frames have parallel spins and "
    message += f"{len(not_parallel)} have not, {examples(min(parallel, not_parallel, key=len))}: a level is one energy "
    message += (
        "surface, and the model does not see the spins. Unless each is the lowest order of its structure, hold one "
    )
    message += "order, or give the other one a level of its own."
    return [about("warning", "magnetic orders", message, min(parallel, not_parallel, key=len))]


def _antiparallel_arrangements(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Cells with the same atoms in the same order whose spins, all turned round or not, are arranged in several ways."""
    found: dict[bytes, dict[bytes, list[Frame]]] = defaultdict(lambda: defaultdict(list))
    for frame in frames:
        assert frame.magmoms is not None
        signs = np.where(np.abs(frame.magmoms) > _MAGNETIC, np.sign(frame.magmoms), 0.0)
        signs = signs * signs[np.flatnonzero(signs)[0]] + 0.0  # no -0
        found[frame.atoms.numbers.tobytes()][signs.tobytes()].append(frame)
    several = [arrangements for arrangements in found.values() if len(arrangements) > 1]
    if not several:
        return []
    rare = [f for arrangements in several for own in sorted(arrangements.values(), key=len)[:-1] for f in own]
    message = (
        f"fidelity {level!r}: antiparallel spins are arranged in up to {max(map(len, several))} ways in cells of the "
    )
    message += (
        f"same atoms, {len(rare)} frames not in the usual one, {examples(rare)}. If they are not the same order by "
    )
    message += "symmetry, a level holds several energy surfaces: hold one order, or give each a level of its own."
    return [about("info", "magnetic orders", message, rare)]


def _missing_moments(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Frames without moments where others have them, and moments that a calculation only started from."""
    bulk = [f for f in frames if not f.isolated_atom]
    bare = [f for f in bulk if f.magmoms is None]
    started = [f for f in bare if np.any(f.atoms.get_initial_magnetic_moments())]
    if not bare or (len(bare) == len(bulk) and not started):
        return []
    message = f"fidelity {level!r}: {len(bare)} of {len(bulk)} frames have no magnetic moments; "
    if started:
        message += (
            f"initial_magmoms, which {len(started)} of them have, are what a calculation started from and not read; "
        )
    message += f"{examples(bare)}. Energies and forces train all the same; write the moments as REF_magmoms (`keys: "
    message += "{magmoms: ...}`) to learn them and to check the charge states."
    return [about("info", "magnetic moments", message, bare)]


def between_charge_states(frames: Sequence[Frame]) -> dict[int, tuple[float, float, list[Frame]]]:
    """Of elements in two charge states, by atomic number: their moments (Bohr magnetons), frames with atoms in between."""
    out = {}
    for number, (size, owners) in _moments_by_element(frames).items():
        states = charge_states(size)
        if states is None:
            continue
        t = (size - states[0]) / (states[1] - states[0])
        between = np.flatnonzero((t > _BETWEEN[0]) & (t < _BETWEEN[1]))
        if 0 < len(between) < _RARE * len(size):
            out[number] = (*states, list({id(owners[i]): owners[i] for i in between}.values()))
    return out


def _moments_by_element(frames: Sequence[Frame]) -> dict[int, tuple[Array, list[Frame]]]:
    """|m| [atom] in Bohr magnetons by atomic number, and the frame of each; isolated atoms left out."""
    moments, owners = defaultdict(list), defaultdict(list)
    for frame in frames:
        if frame.magmoms is not None and not frame.isolated_atom:
            for number, moment in zip(frame.atoms.numbers.tolist(), np.abs(frame.magmoms), strict=True):
                moments[number].append(moment)
                owners[number].append(frame)
    return {number: (np.array(values), owners[number]) for number, values in moments.items()}


def charge_states(moments: Array) -> tuple[float, float] | None:
    """Medians of the two groups that |m| [atom] falls into, in Bohr magnetons; None where there are no two.

    The groups are those of least squared distance from their means.
    """
    m = np.sort(moments)
    if len(m) < 2 * _EACH:
        return None
    n = np.arange(1, len(m))  # of the lower group
    total, low = m.sum(), np.cumsum(m)[:-1]
    split = int(n[np.argmax(low**2 / n + (total - low) ** 2 / (len(m) - n))])
    groups = m[:split], m[split:]
    medians = [float(np.median(g)) for g in groups]
    spread = max(1.4826 * float(np.median(np.abs(g - c))) for g, c in zip(groups, medians, strict=True))
    gap = medians[1] - medians[0]
    if min(map(len, groups)) < _EACH or gap < max(_GAP, _APART * spread):
        return None
    return medians[0], medians[1]
