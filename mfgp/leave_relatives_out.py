"""Left-out predictions of structures of trajectories, without the frames before and after them (trajectories.py).

What a calibration needs is how far a structure is predicted off that has no near relatives among the data. In closed form
as in leave_one_out, with the labels of the relatives taken from the posterior first (`leave_one_out.without`). Structures
without relatives are left out alone, with what is the same in another description.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mfgp.frames import Frame, FrameSet
from mfgp.leave_one_out import LabelledRows, LeftOut, Smoother, left_out, structure_parts
from mfgp.progress import Report, silent
from mfgp.trajectories import Relatives

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP


def leave_relatives_out(
    model: MultiFidelityGP, frames: FrameSet, sample: FrameSet, related: Relatives, report: Report = silent
) -> Iterator[LeftOut]:
    """Predictions of the labels of `sample`, each structure left out with its relatives among `frames`.

    frames: all that the model was trained on; sample: some of them, the same objects; related: of `frames`. What
    leave_one_out passes over is passed over here, too.
    """
    smoother, members = Smoother.of(model), dict[int, list[Frame]]()
    for frame in frames:
        if not frame.isolated_atom:
            members.setdefault(related.same[id(frame)], []).append(frame)
    chosen = list(dict.fromkeys(related.same[id(frame)] for frame in sample if not frame.isolated_atom))
    parts: dict[int, list[LabelledRows]] = {}  # of the present structure and its relatives
    for i, number in enumerate(chosen):
        near = sorted(related.related.get(number, ()))
        parts = {k: parts.get(k) or structure_parts(model, smoother, members[k]) for k in (number, *near)}
        yield from left_out(smoother, parts[number], [part for k in near for part in parts[k]])
        report("leave one out", i + 1, len(chosen), "")
