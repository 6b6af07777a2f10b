"""Stress labels whose shear components are in another order than ASE's (yz xz xy), by what a fitted model says of them.

VASP writes xx yy zz xy yz zx, LAMMPS xx yy zz xy xz yz: six numbers either way. Energies, forces and the diagonal teach a
model the right shear even so, and most of what is in the wrong place is taken for noise. With labels L_f and predictions
P_f of frame f, [yz, xz, xy], the order o of the labels is the permutation with the smallest

    R(o)^2 = mean over f, k of (L_f[k] - P_f[o_k])^2
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mfgp.batched import predict_many
from mfgp.frames import Frame, FrameSet

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

NAMES = ("yz", "xz", "xy")  # ASE's order
PROGRAMS = {(2, 0, 1): "VASP", (2, 1, 0): "LAMMPS"}
MUCH_BETTER = 0.6  # R of another order over that of the labels as read
ENOUGH = 8  # frames
COMPARED = 100  # frames of a level that are predicted, at most
SHEAR = 1e-4  # eV/Å^3; largest shear component of a frame, from which on it says something


def stress_order_notes(model: MultiFidelityGP, frames: FrameSet) -> list[str]:
    """A sentence for each level of training frames whose shear labels agree far better with the model in another order."""
    return [note for level in frames.levels if (note := _note(model, level, sheared(frames.training().of(level))))]


def sheared(frames: Iterable[Frame]) -> list[Frame]:
    """Those with a stress that has shear, COMPARED at most."""
    found = [f for f in frames if f.stress is not None and np.abs(f.stress[3:]).max() > SHEAR]
    return [found[i] for i in np.linspace(0, len(found) - 1, min(len(found), COMPARED)).astype(int)]


def _note(model: MultiFidelityGP, level: str, frames: list[Frame]) -> str | None:
    if len(frames) < ENOUGH:
        return None
    predictions = predict_many(model.predictor(level), [f.atoms for f in frames], "none")
    pairs = zip(frames, predictions, strict=True)
    both = np.array([(f.stress[3:], p.stress[3:]) for f, p in pairs if f.stress is not None and p.stress is not None])
    found = residuals(both[:, 0], both[:, 1])  # both [frame, 2, 3]
    best, as_read = min(found, key=lambda order: found[order]), found[0, 1, 2]
    if found[best] >= MUCH_BETTER * as_read:
        return None
    order = " ".join(("xx yy zz", *(NAMES[k] for k in best)))
    program = f", that of {PROGRAMS[best]}" if best in PROGRAMS else ""
    return (
        f"level {level}: the shear stresses agree with the model far better in the order {order}{program} (rms difference "
        f"{1e3 * found[best]:.2g}, as read {1e3 * as_read:.2g} meV/Å^3, {len(frames)} frames): write them in that of ASE, "
        "xx yy zz yz xz xy, and fit again."
    )


def residuals(labels: NDArray[np.float64], predictions: NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    """R by the order of the labels; both [frame, 3] eV/Å^3."""
    return {o: float(np.sqrt(np.mean((labels - predictions[:, o]) ** 2))) for o in permutations(range(3))}
