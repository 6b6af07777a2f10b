"""Which frames of a file are scored at a level: of that level, labelled, held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from ase import Atoms

from mfgp.base.words import counted
from mfgp.data.labels import FIDELITY_TAGS
from mfgp.errors import DataError
from mfgp.frames import Frame, FrameSet


def frames_to_score(
    frames: FrameSet,
    fidelity: str,
    levels: Sequence[str],
    everything: bool = False,
    *,
    split: str | None = None,
    tag: str | None = None,
    named: bool = False,
) -> tuple[list[Frame], str]:
    """The labelled frames of a file to score at a level, and a sentence that says which they are.

    Frames whose own tag names another level are left out, whether it is one of `levels` or not; frames without a tag are
    taken for that level, and those whose tag is `tag`; `named`, where the user said which level it is, those whose tag is
    bookkeeping (`_bookkeeping`). Where frames carry split marks the held-out ones are taken when there are any, all others
    are left out; `everything` takes all, `split` those of one split. Raises DataError, naming the tags, splits and levels
    there are, when none is left.
    """
    tags = [level_tag(f.atoms, levels) for f in frames]
    bookkeeping = _bookkeeping(tags, levels) if named and tag is None else set[str]()
    taken = {None, fidelity, tag, *bookkeeping}
    own = [f for f, found in zip(frames, tags, strict=True) if found in taken]
    if not own:
        raise DataError(
            f"no frame of level {fidelity!r} to evaluate: the {len(frames)} frames are tagged with "
            f"{_by_name(tags)}; the model's levels are {', '.join(levels)}. Name their level with --fidelity; where the tag "
            f"is only another name of {fidelity!r}, say so with --tag."
        )
    labelled = [f for f in own if f.labelled]
    if not labelled:
        raise DataError(
            f"no labelled frame of level {fidelity!r} to evaluate: the {len(own)} frames are without labels."
        )
    chosen, what, rest = _of_split(labelled, split) if split is not None else _held_out(labelled, everything)
    others = [found for found in tags if found not in taken]
    left_out = {
        f"{len(others)} of other levels ({_by_name(others)})": len(others),
        f"{len(own) - len(labelled)} without labels": len(own) - len(labelled),
        f"{len(labelled) - len(chosen)} {rest}": len(labelled) - len(chosen),
    }
    notes = [text for text, count in left_out.items() if count]
    if bookkeeping:
        what += f" (tagged with {_by_name(found for found in tags if found in bookkeeping)})"
    return chosen, f"{len(chosen)} {what} at level {fidelity}" + (f"; left out {', '.join(notes)}" if notes else "")


def _bookkeeping(tags: Sequence[str | None], levels: Sequence[str]) -> set[str]:
    """Tags that say nothing of the level (head=Default): all, where none of a file's is one of the model's levels."""
    found = {tag for tag in tags if tag is not None}
    return set() if found & set(levels) else found


def _held_out(labelled: list[Frame], everything: bool) -> tuple[list[Frame], str, str]:
    """The held-out frames if there are any, what they are, and what the others are."""
    test = [f for f in labelled if f.held_out]
    chosen = test if test and not everything else labelled
    what = "held-out frames" if len(test) == len(chosen) else "labelled frames"
    return chosen, what, "not held out (--all takes them)"


def _of_split(labelled: list[Frame], split: str) -> tuple[list[Frame], str, str]:
    chosen = [f for f in labelled if f.split == split]
    if not chosen:
        found = _by_name("no split" if f.split is None else f.split for f in labelled)
        raise DataError(f"no labelled frame of split {split!r}; found {found}.")
    return chosen, f"frames of split {split}", "of other splits"


def _by_name(names: Iterable[str | None]) -> str:
    """'gfn1 (28 frames), nm (3 frames)'."""
    counts = Counter(map(str, names)).items()
    return ", ".join(f"{name} ({counted(count, 'frame')})" for name, count in counts)


def level_tag(atoms: Atoms, known: Collection[str] = ()) -> str | None:
    """The level that a structure names itself (info fidelity, head or data_modality): the first that is known, if one is."""
    tags = [str(atoms.info[key]) for key in FIDELITY_TAGS if atoms.info.get(key) is not None]
    return next((tag for tag in tags if tag in known), tags[0] if tags else None)
