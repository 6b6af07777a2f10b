"""Left-out predictions of structures, without those that tell of them (trajectories.py).

What a calibration needs is how far a structure is predicted off that has no near relatives among the data. In closed form
as in leave_one_out, with the labels of the relatives taken from the posterior first (`leave_one_out.without`). Structures
without relatives are left out alone, with what is the same in another description.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from mfgp.base.progress import Report, silent
from mfgp.calibration.leave_one_out import LabelledRows, LeftOut, Smoother, left_out, structure_parts
from mfgp.data.trajectories import Relatives
from mfgp.frames import Frame, FrameSet

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

EACH = 4  # structures of a stretch that are looked at


def leave_relatives_out(
    model: MultiFidelityGP, frames: FrameSet, sample: FrameSet, related: Relatives, report: Report = silent
) -> Iterator[LeftOut]:
    """Predictions of the labels of `sample`, each structure left out with its stretch, else with its relatives.

    frames: all that the model was trained on; sample: some of them, the same objects; related: of `frames`. What
    leave_one_out passes over is passed over here, too.
    """
    smoother, members = Smoother.of(model), dict[int, list[Frame]]()
    for frame in frames:
        if not frame.isolated_atom:
            members.setdefault(related.same[id(frame)], []).append(frame)
    chosen = list(dict.fromkeys(related.same[id(frame)] for frame in sample if not frame.isolated_atom))
    together = {k: (k, *sorted(related.left_out_with(k))) for k in chosen if k not in related.stretch_of}
    made = structure_parts(model, smoother, [members[k] for k in _in_turn(together.values())])
    parts: dict[int, list[LabelledRows]] = {}  # of the present structure and its relatives
    done = 0
    for number, every in together.items():
        parts = {k: parts[k] if k in parts else next(made) for k in every}
        yield from left_out(smoother, parts[number], [part for k in every[1:] for part in parts[k]])
        report("leave one out", done := done + 1, len(chosen), "")
    for stretch in related.stretches:
        own = [k for k in chosen if k in stretch]
        if own:
            made = structure_parts(model, smoother, [members[k] for k in (*own, *sorted(stretch - set(own)))])
            of_own = [part for of_structure in islice(made, len(own)) for part in of_structure]
            yield from left_out(smoother, of_own, chain.from_iterable(made))
            report("leave one out", done := done + len(own), len(chosen), "")


def _in_turn(together: Iterable[tuple[int, ...]]) -> Iterator[int]:
    """Which structures are to be made, where those of one set are kept until the next."""
    before: tuple[int, ...] = ()
    for every in together:
        yield from (k for k in every if k not in before)
        before = every


def thinned(sample: FrameSet, related: Relatives) -> FrameSet:
    """A sample with EACH structures of a stretch and a level, spread over it; those of higher levels count for the lower."""
    of_level = {
        level: {related.same[id(frame)] for frame in sample.of(level) if not frame.isolated_atom}
        for level in sample.levels
    }
    dropped: set[int] = set()
    for stretch in related.stretches:
        kept: set[int] = set()
        for level in reversed(sample.levels):
            own = sorted(of_level[level] & stretch)
            rest = [k for k in own if k not in kept]
            wanted = EACH - (len(own) - len(rest))
            if wanted > 0:
                kept |= set(rest[:: max(1, -(-len(rest) // wanted))])
        dropped |= stretch - kept
    return FrameSet(sample.levels, tuple(f for f in sample if related.same.get(id(f)) not in dropped))
