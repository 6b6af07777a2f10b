"""Which elemental references e0 the energies of each level determine, and which isolated atoms are missing.

The energies of a level fix e0 as far as its compositions (shares of the elements, [frame, element]) have full rank. Levels
that lack the same share one finding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from ase.data import chemical_symbols

from mfgp.doctor.report import Finding, about, composition, enumerated, of_levels
from mfgp.frames import Frame, FrameSet, disagreeing_atoms

Energies: TypeAlias = Mapping[str, Sequence[Frame]]  # training frames with an energy, by level


def reference_checks(frames: FrameSet) -> list[Finding]:
    """Levels without energies, with compositions that do not separate the elements, without isolated atoms or with several
    that disagree."""
    energies = {
        level: [f for f in frames.of(level) if f.energy is not None and not f.held_out] for level in frames.levels
    }
    findings = []
    if bare := [level for level, own in energies.items() if not own]:
        message = f"{of_levels(bare)}: no training energies; energies are known up to a constant for each element."
        findings.append(about("warning", "composition", message + " Add energies, or isolated atoms."))
    elements = {
        level: sorted({int(z) for frame in frames.of(level) for z in frame.atoms.numbers})
        for level, own in energies.items()
        if own
    }
    return [*findings, *_inseparable(energies, elements), *_disagreeing(energies), *_not_alone(energies, elements)]


def _inseparable(energies: Energies, elements: Mapping[str, list[int]]) -> Iterator[Finding]:
    """Of levels whose compositions do not determine the references of all their elements."""
    found: dict[tuple[int, int, str], list[str]] = defaultdict(list)
    for level, numbers in elements.items():
        rank, loose = _determined(energies[level], numbers)
        found[rank, len(numbers), _symbols(loose)].append(level)
    for (rank, total, names), levels in found.items():
        if rank < total:
            counts = enumerated(str(len(energies[level])) for level in levels)
            message = f"{of_levels(levels)}: the compositions of {counts} energies determine {rank} combinations of "
            message += f"{total} elemental references; {names} cannot be separated. Energies of other compositions "
            message += "will rest on the prior: add isolated atoms or other compositions."
            yield about("warning", "composition", message)


def _disagreeing(energies: Energies) -> Iterator[Finding]:
    """Of isolated atoms of one element and level that have several energies."""
    for level, own in energies.items():
        for z, found in disagreeing_atoms(own).items():
            values = sorted(f.energy for f in found if f.energy is not None)
            message = f"fidelity {level!r}: energies of isolated {chemical_symbols[z]} atoms from {values[0]:.4f} to "
            message += (
                f"{values[-1]:.4f} eV; a fit takes their mean for e0. Keep the one of the ground state (its spin, "
            )
            message += "its box) and remove the others."
            yield about("warning", "isolated atoms", message, found)


def _not_alone(energies: Energies, elements: Mapping[str, list[int]]) -> Iterator[Finding]:
    """Of elements without an isolated atom."""
    missing: dict[str, list[str]] = defaultdict(list)
    for level, numbers in elements.items():
        alone = {int(frame.atoms.numbers[0]) for frame in energies[level] if frame.isolated_atom}
        missing[_symbols([z for z in numbers if z not in alone])].append(level)
    for names, levels in missing.items():
        if names:
            message = f"{of_levels(levels)}: no isolated atom of {names}; e0 of these elements is fitted to the "
            message += "structures. Add single-atom frames (config_type=IsolatedAtom) if dissociation or new "
            message += "compositions matter."
            yield about("info", "isolated atoms", message)


def _determined(frames: Sequence[Frame], numbers: Sequence[int]) -> tuple[int, list[int]]:
    """Rank of the compositions, and the elements that their null space touches."""
    counts = composition(frames, numbers)
    fractions = counts / counts.sum(axis=1, keepdims=True)  # [frame, element]
    _, singular, rows = np.linalg.svd(fractions, full_matrices=True)
    rank = int((singular > 1e-6 * singular[0]).sum())
    loose = (rows[rank:] ** 2).sum(axis=0) > 1e-6  # [element]
    return rank, [z for z, free in zip(numbers, loose, strict=True) if free]


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)
