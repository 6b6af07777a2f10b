"""Labels from outside against those that a campaign has: new ones, known ones, and others of the same structure and level.

A campaign holds one accepted label of a structure at a level. Another is refused, or takes its place when that is asked for;
what a model has learned it forgets in a refit alone, so that a campaign without data to fit cannot replace it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mfgp.campaign.records import LabelRow, frames_of
from mfgp.data.training_frames import calculation_key
from mfgp.errors import ConfigError, DataError
from mfgp.frames import Frame, FrameSet

SAME = 1e-4  # eV, eV/Å, eV/Å^3, Bohr magnetons: labels that differ by less were rounded by a file
SHOWN = 3  # frames named in an error


@dataclass(frozen=True)
class Arrivals:
    """Frames by what the campaign has of their structure and level: nothing, the same label, or others (which these are)."""

    fresh: tuple[Frame, ...]
    known: tuple[Frame, ...]
    changed: tuple[tuple[Frame, tuple[LabelRow, ...]], ...]


def arrivals(given: FrameSet, accepted: Sequence[LabelRow]) -> Arrivals:
    """Sort frames that were given. Raises DataError for two labels of one structure and level among them."""
    own = _once(given)
    held = defaultdict[str, list[LabelRow]](list)
    for row in accepted:
        if (key := calculation_key(row.level, row.atoms)) in own:
            held[key].append(row)
    fresh, known, changed = [], [], []
    for key, frame in own.items():
        rows = held.get(key, [])
        if not rows:
            fresh.append(frame)
        elif all(same_labels(frame, frames_of([row], given.levels).frames[0]) for row in rows):
            known.append(frame)
        else:
            changed.append((frame, tuple(rows)))
    return Arrivals(tuple(fresh), tuple(known), tuple(changed))


def check_changed(found: Arrivals, replace: bool, can_refit: bool) -> None:
    """DataError for labels that contradict others where these are not to be replaced, ConfigError where they cannot be."""
    if not found.changed:
        return
    n, total = len(found.changed), len(found.changed) + len(found.fresh) + len(found.known)
    some = "; ".join(
        f"{frame.source} ({frame.atoms.symbols}, {frame.fidelity}) has {_energy(frame.energy)} where label {rows[0].id} "
        f"({rows[0].origin}) has {_energy(rows[0].atoms.info.get('REF_energy'))}"
        for frame, rows in found.changed[:SHOWN]
    )
    more = "" if n <= SHOWN else f"; and {n - SHOWN} more"
    if not replace:
        raise DataError(
            f"{n} of {total} labels are of structures that have another label at that level: {some}{more}. Nothing was "
            "added; leave them out, or give --replace (replace=True) to take them in place of those."
        )
    learned = [rows for _, rows in found.changed if any(row.learned_in is not None for row in rows)]
    if learned and not can_refit:
        raise ConfigError(
            f"{len(learned)} labels to replace have been learned, and a model forgets in a refit alone, for which this "
            f"campaign has no data (it began with `model`, not with `fit`): {some}{more}. Nothing was added; `campaign "
            "export` the labels, put these in place of those, and begin a campaign with a `fit` that names them."
        )


def same_labels(frame: Frame, other: Frame) -> bool:
    """Whether each label of `frame` is that of `other` to SAME."""
    for name in ("energy", "forces", "stress", "magmoms"):
        a, b = getattr(frame, name), getattr(other, name)
        if a is not None and (b is None or np.abs(np.asarray(a) - b).max() > SAME):
            return False
    return True


def _once(given: FrameSet) -> dict[str, Frame]:
    """Each calculation once, by its key; DataError where two frames have different results of one."""
    out: dict[str, Frame] = {}
    for frame in given:
        first = out.setdefault(calculation_key(frame.fidelity, frame.atoms), frame)
        if not same_labels(frame, first):
            raise DataError(
                f"{first.source} and {frame.source} are one structure ({frame.atoms.symbols}) with different labels at "
                f"{frame.fidelity}: {_energy(first.energy)} and {_energy(frame.energy)}. Nothing was added; keep one."
            )
    return out


def _energy(value: float | None) -> str:
    return "no energy" if value is None else f"{value:.6f} eV"
