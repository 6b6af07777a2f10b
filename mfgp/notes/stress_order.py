"""Stress labels whose shear components are in another order than ASE's (yz xz xy), by what a fitted model says of them.

VASP writes xx yy zz xy yz zx, LAMMPS xx yy zz xy xz yz: six numbers either way. Energies, forces and the diagonal teach a
model the right shear even so, and most of what is in the wrong place is taken for noise. With labels L_f and predictions
P_f of frame f, [yz, xz, xy], the order o of the labels is the permutation with the smallest

    R(o)^2 = mean over f of R_f(o)^2,        R_f(o)^2 = mean over k of (L_f[k] - P_f[o_k])^2

over all frames of a level, or, where two sources were mixed, over some: frames of which R_f(o) is far below R_f of the
order as read, and that one far above the median of min_o R_f(o), what the model is usually off by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mfgp.frames import Frame, FrameSet
from mfgp.predict.batched import predict_many

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

Array = NDArray[np.float64]
Order = tuple[int, ...]
NAMES = ("yz", "xz", "xy")  # ASE's order
AS_READ = (0, 1, 2)
PROGRAMS = {(2, 0, 1): "VASP", (2, 1, 0): "LAMMPS"}
MUCH_BETTER = 0.6  # R of another order over that of the labels as read
ENOUGH = 8  # frames
COMPARED = 100  # frames of a level that are predicted, at most
SHEAR = 1e-4  # eV/Å^3; largest shear component of a frame, from which on it says something
SOME, BETTER, FAR = (
    4,
    0.4,
    4.0,
)  # of single frames: how many, R_f(o) over that as read, that over the median of the least


@dataclass(frozen=True)
class OtherOrder:
    """What to say of frames whose shear labels are in another order."""

    text: str
    frames: tuple[Frame, ...]


def other_orders(model: MultiFidelityGP, frames: FrameSet) -> list[OtherOrder]:
    """Training frames, by level, whose shear labels agree far better with the model in another order."""
    out = []
    for level in frames.levels:
        own = sheared(frames.training().of(level))
        predicted = predict_many(model.predictor(level), [f.atoms for f in own], "none") if len(own) >= ENOUGH else []
        pairs = [(f, p.stress[3:]) for f, p in zip(own, predicted, strict=False) if p.stress is not None]
        out += _of_level(level, pairs)
    return out


def sheared(frames: Iterable[Frame], most: int = COMPARED) -> list[Frame]:
    """Those with a stress that has shear, so many at most."""
    found = [f for f in frames if f.stress is not None and np.abs(f.stress[3:]).max() > SHEAR]
    return [found[i] for i in np.linspace(0, len(found) - 1, min(len(found), most)).astype(int)]


def _of_level(level: str, pairs: Sequence[tuple[Frame, Array]]) -> list[OtherOrder]:
    """Of frames and predicted shears [yz, xz, xy]: all in another order, or some."""
    if len(pairs) < ENOUGH:
        return []
    labels = np.array([f.stress[3:] for f, _ in pairs if f.stress is not None])
    found = residuals(labels, np.array([p for _, p in pairs]))
    total = {order: float(np.sqrt(np.mean(r**2))) for order, r in found.items()}
    best = min(total, key=lambda order: total[order])
    everything = {best: np.ones(len(pairs), dtype=bool)} if total[best] < MUCH_BETTER * total[AS_READ] else {}
    return [_other_order(level, o, [f for f, _ in pairs], own, found) for o, own in (everything or some(found)).items()]


def _other_order(
    level: str, order: Order, frames: Sequence[Frame], own: NDArray[np.bool_], found: dict[Order, Array]
) -> OtherOrder:
    named = tuple(f for f, one in zip(frames, own, strict=True) if one)
    of = "the shear stresses agree" if own.all() else f"the shear stresses of {own.sum()} of {len(own)} frames agree"
    which = f"{len(own)} frames" if own.all() else f"{named[0].source} first"
    best, as_read = (1e3 * np.sqrt(np.mean(found[o][own] ** 2)) for o in (order, AS_READ))
    program = f", that of {PROGRAMS[order]}" if order in PROGRAMS else ""
    text = f"level {level}: {of} with the model far better in the order {' '.join(('xx yy zz', *(NAMES[k] for k in order)))}"
    text += (
        f"{program} (rms difference {best:.2g}, as read {as_read:.2g} meV/Å^3, {which}): write them in that of ASE, "
    )
    return OtherOrder(f"{text}xx yy zz yz xz xy, and fit again.", named)


def residuals(labels: Array, predictions: Array) -> dict[Order, Array]:
    """R_f by the order of the labels, [frame] each; both [frame, 3] eV/Å^3."""
    return {o: np.sqrt(np.mean((labels - predictions[:, o]) ** 2, axis=1)) for o in permutations(range(3))}


def some(found: dict[Order, Array]) -> dict[Order, NDArray[np.bool_]]:
    """Frames [frame] that are in another order, of the one that most are in, if SOME are; from their residuals.

    And if it explains most of those that are far off: of many stresses of another sign a few fit some order.
    """
    far = found[AS_READ] > FAR * np.median(np.min(list(found.values()), axis=0))
    own = {o: far & (r < BETTER * found[AS_READ]) for o, r in found.items() if o != AS_READ}
    best = max(own, key=lambda o: (own[o].sum(), -found[o][own[o]].sum()))  # a single shear fits two orders
    return {best: own[best]} if own[best].sum() >= max(SOME, 0.5 * far.sum()) else {}
