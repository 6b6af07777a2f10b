"""How far structures repeat, and what that says of larger cells.

Where a cell repeats after less than twice r_cut two neighbours of an atom can be images of one another, or of the atom
itself: they move together, and a model of such cells alone has never seen them apart. Errors of larger cells then have a
part that is the same for every atom, and that left-out cells of the same size say nothing of (docs/theory.md#larger-cells).
The width of a structure is the shortest vector of its lattice of translations, that of the training data at a level what
three of its structures have: so few are enough to show what larger cells do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from mfgp.fit.primitive import shortest_translation
from mfgp.frames import FrameSet

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

ENOUGH = 3  # structures
LARGER_CELLS = "docs/theory.md#larger-cells"
STRAIN = 1.1  # of a cell that is no larger one


def width(atoms: Atoms, reach: float) -> float:
    """Å after which a structure repeats; `reach` where it does not within that."""
    own = _cell_width(atoms, reach)
    return min(own, shortest_translation(atoms, own)) if atoms.pbc.all() else own


def _cell_width(atoms: Atoms, reach: float) -> float:
    """Å after which its cell does."""
    if not atoms.pbc.any():
        return reach
    reduced, _ = minkowski_reduce(atoms.cell, pbc=atoms.pbc)
    return min(reach, float(np.linalg.norm(np.asarray(reduced)[atoms.pbc], axis=1).min()))


def widths(frames: FrameSet, levels: Sequence[str], reach: float) -> tuple[float, ...]:
    """Of the training data at each level, Å, `reach` (twice r_cut) at most."""
    found = {
        level: sorted((width(f.atoms, reach) for f in frames.of(level) if not f.isolated_atom), reverse=True)
        for level in levels
    }
    return tuple(min([reach, *found[level][:ENOUGH]]) for level in levels)


def narrow_cells(model: MultiFidelityGP) -> list[str]:
    """A note on the levels whose standard deviations rest on cells that repeat after less than twice r_cut."""
    reach = 2 * model.soap.config.r_cut
    known = () if model.calibration is None else model.calibration.widths
    narrow = [f"{level} ({found:.1f} Å)" for level, found in zip(model.levels, known, strict=False) if found < reach]
    if not narrow:
        return []
    return [
        f"note: training cells of {', '.join(narrow)} repeat after so many Å or less, so that neighbours of an atom are "
        "images of each other. In larger cells, where these move apart, errors can be several times the standard "
        f"deviations: label three structures that repeat after {reach:g} Å (twice r_cut) or more, {LARGER_CELLS}."
    ]


def wider(model: MultiFidelityGP, level: int, structures: Iterable[Atoms]) -> int:
    """How many structures repeat later than the cells that the standard deviations of a level rest on, or not at all.

    Single atoms are none of them, as in `widths`.
    """
    if model.calibration is None or not model.calibration.widths:
        return 0
    known, reach = STRAIN * model.calibration.widths[level], 2 * model.soap.config.r_cut
    if known >= reach:
        return 0
    several = (atoms for atoms in structures if len(atoms) > 1)
    return sum(_cell_width(atoms, reach) > known and width(atoms, reach) > known for atoms in several)


def warn_of_larger_cells(model: MultiFidelityGP, level: int, structures: Iterable[Atoms], stacklevel: int) -> None:
    """Warn of the first structure that `wider` counts, once for a model and a level; stacklevel as in the caller."""
    if level not in model.larger_told and any(wider(model, level, [atoms]) for atoms in structures):
        model.larger_told.add(level)
        assert model.calibration is not None  # `wider` has found something
        warnings.warn(
            f"a structure repeats later than the training cells of {model.levels[level]} (after "
            f"{model.calibration.widths[level]:.1f} Å), or not at all: errors can be several times the standard deviations "
            f"there. Labels of three such structures mend that ({LARGER_CELLS}). This is said once for a model and a level.",
            stacklevel=stacklevel + 1,
        )
