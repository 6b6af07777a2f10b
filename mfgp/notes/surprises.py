"""Labels that look like a slip (another unit, reference or code, a calculation that went wrong): those that a model is
about to learn, against what it expects.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from mfgp.frames import Frame, FrameSet
from mfgp.predict.prediction import Prediction

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

LEARNED = "They are learned nevertheless; the model from before is in its file"
DEVIATIONS, LEAST = 8.0, 0.1  # standard deviations and eV/atom, both of which an energy has to be off by
COMPONENTS, ALIKE, USUAL = 10, 0.8, (0.6, 15.0)  # of forces: how many, their cosine, factors that are no surprise
CERTAIN, USUAL_THEN = 0.999, 1.7  # cosine where the model knows such structures, and the upper factor there
UNITS = {"Hartree/Bohr": 51.422, "Ry/Bohr": 25.711, "eV/Bohr": 1.8897, "kcal/mol/Å": 0.043364}  # in eV/Å


def warn_of_surprises(model: MultiFidelityGP, frames: FrameSet, then: str = LEARNED) -> None:
    """Warn of energies that `model` would not have thought possible, before it learns them, and of forces that are a factor
    times what it expects; and of isolated atoms that it has no term for. then: what comes of the former."""
    _warn_of_isolated(model, frames)
    own = [f for f in frames if not f.isolated_atom and (f.energy is not None or f.forces is not None)]
    predictors = {level: model.predictor(level) for level in {f.fidelity for f in own}}
    expected = [(f, predictors[f.fidelity](f.atoms, "none")) for f in own]
    energies = sum(f.energy is not None for f in own)
    found = []
    for frame, p in expected:
        if frame.energy is None or (off := abs(p.energy - frame.energy)) <= LEAST * (n := len(frame.atoms)):
            continue
        std = predictors[frame.fidelity](frame.atoms, "energies").energy_std or 0.0
        std = float(np.hypot(std, frame.energy_sigma or 0.0))
        if off > DEVIATIONS * std:
            found.append((off / n, std / n, frame))
    if found:
        off, std, frame = max(found, key=lambda x: x[0])
        warnings.warn(
            f"{len(found)} of {energies} new energies are far from what the model expects, most {frame.source} "
            f"({frame.atoms.symbols}, {frame.fidelity}): {_energy(frame) / len(frame.atoms):.3f} eV/atom, "
            f"{off:.2f} off where {std:.3f} was expected. Is it a total energy in eV, of the reference and settings of the "
            f"others? {then}",
            stacklevel=3,
        )
    for level in model.levels:
        _warn_of_factor(level, force_factor([(f, p) for f, p in expected if f.fidelity == level]), then)


def _warn_of_isolated(model: MultiFidelityGP, frames: FrameSet) -> None:
    """Isolated atoms of elements without a column in the vacuum term, which only a fit makes."""
    term = model.columns.vacuum
    known = set() if term is None else set(term.species)
    new = {int(f.atoms.numbers[0]) for f in frames if f.isolated_atom and f.energy is not None} - known
    if new:
        names = ", ".join(chemical_symbols[z] for z in sorted(new))
        warnings.warn(
            f"isolated atoms of {names}: the fit had none of them (or an earlier version made it), so they change e0 alone "
            "and are not predicted as labelled. Energies of atoms that leave, and atomisation energies, need a new fit with "
            "these frames",
            stacklevel=4,
        )


def _warn_of_factor(level: str, factor: float | None, then: str) -> None:
    if factor is None:
        return
    unit = next((name for name, size in UNITS.items() if abs(factor * size - 1.0) < 0.1), None)
    like = f", as those in {unit} are" if unit is not None else ", as gradients of the energy are" if factor < 0 else ""
    warnings.warn(
        f"the new forces at {level} are {factor:.3g} times what the model expects{like}. Are they forces, in eV/Å? {then}",
        stacklevel=4,
    )


def force_factor(pairs: Sequence[tuple[Frame, Prediction]]) -> float | None:
    """sum F.F' / sum F'^2 of forces F and expected ones F', where it is far from 1 and they are alike but for it.

    Far from its data a model expects too little, never too much: EMT alloys have factors of 2 - 10 there, cosines of 0.8 -
    0.996, so that between USUAL_THEN and USUAL[1] the cosine has to be above CERTAIN.
    """
    given = [(f.forces[f.force_mask], p.forces[f.force_mask]) for f, p in pairs if f.forces is not None]
    if not given:
        return None
    label, model = (np.concatenate([pair[k].ravel() for pair in given]) for k in (0, 1))
    lengths = float(np.linalg.norm(label) * np.linalg.norm(model))
    if np.count_nonzero(label) < COMPONENTS or lengths == 0.0:
        return None
    cosine, factor = float(label @ model / lengths), float(label @ model / (model @ model))
    most = USUAL_THEN if cosine > CERTAIN else USUAL[1]
    return factor if abs(cosine) > ALIKE and not USUAL[0] <= factor <= most else None


def _energy(frame: Frame) -> float:
    assert frame.energy is not None
    return frame.energy
