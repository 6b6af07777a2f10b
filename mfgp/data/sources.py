"""Where structures come from, and which level of theory each belongs to.

A level is the mapping key that a source was given under, or a frame's own tag (`info["fidelity"]`, aliases `head`,
`data_modality`), or the name of the file it came from. A tag that names another of the given levels than the mapping
key is an error; a tag that names none of them is the label of some other bookkeeping, and the mapping key holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, Union

from ase import Atoms

from mfgp.data.labels import FIDELITY_TAGS
from mfgp.data.reading import load, raise_problems
from mfgp.errors import DataError

Source: TypeAlias = Union[str, "os.PathLike[str]", Atoms, Sequence[Union[str, "os.PathLike[str]", Atoms]]]
Sources: TypeAlias = Source | Mapping[str, Source]
COMPRESSIONS = (".gz", ".bz2", ".xz")
NOISE = "noise"  # what std_by_level calls the label noise, beside the names of levels
LIKE_NOISE = f"a level is named {NOISE!r}, as the label noise is in std_by_level; give it another name"


@dataclass(frozen=True)
class Entry:
    """A structure as it was given: its level when that is known already, and the file's stem."""

    atoms: Atoms
    source: str
    stem: str | None
    level: str | None = None


def gather(sources: Sources, levels: Sequence[str] | None, problems: list[str]) -> tuple[list[Entry], tuple[str, ...]]:
    """Every structure with its level, and the levels in order."""
    wanted = None if levels is None else checked_levels(levels)
    if isinstance(sources, Mapping):
        names = checked_levels(list(sources))
        if wanted is not None and set(wanted) != set(names):
            raise DataError(f"levels = {', '.join(wanted)}, but the sources are for {', '.join(names)}; name the same.")
        names = wanted or names
        return from_mapping(sources, names, problems), names
    if wanted is None:
        entries = _load(sources, problems)
        raise_problems(problems)
        wanted = _levels_of(entries)
        return [replace(entry, level=_tag(entry.atoms) or entry.stem) for entry in entries], wanted
    entries = tagged(sources, wanted, problems)
    for level in wanted:
        if not problems and all(entry.level != level for entry in entries):
            found = _counts(entry.level or "" for entry in entries)
            problems.append(f"fidelity {level!r}: no frame carries it; found {found}")
    return entries, wanted


def checked_levels(levels: Sequence[str]) -> tuple[str, ...]:
    names = (levels,) if isinstance(levels, str) else tuple(levels)
    if not names:
        raise DataError("no level of theory given; name at least one, cheapest first.")
    for name in names:
        if not isinstance(name, str) or not name:
            raise DataError(f"a level is named {name!r}; names are non-empty text.")
        if name == NOISE:
            raise DataError(f"{LIKE_NOISE}.")
        if names.count(name) > 1:
            raise DataError(
                f"level {name!r} is named {names.count(name)} times in {list(names)}; name each level once."
            )
    return names


def from_mapping(sources: Mapping[str, Source], known: Sequence[str], problems: list[str]) -> list[Entry]:
    entries: list[Entry] = []
    for level, source in sources.items():
        if level not in known:
            problems.append(f"unknown fidelity {level!r}; known are {', '.join(known)}")
            continue
        for entry in _load(source, problems):
            for name in FIDELITY_TAGS:
                tag = str(entry.atoms.info.get(name, level))
                if tag != level and tag in known:
                    problems.append(
                        f"{named(entry)} is given for fidelity {level!r}, but its own info says {name}={tag!r}; "
                        "give it under its own level, or correct the tag"
                    )
            entries.append(replace(entry, level=level))
    return entries


def tagged(sources: Source, known: Sequence[str], problems: list[str]) -> list[Entry]:
    """Frames that carry one of the `known` levels in info, or come from a file of that name; an only level needs neither."""
    given, entries, unnamed = _load(sources, problems), list[Entry](), list[Entry]()
    unknown: dict[str, list[Entry]] = {}
    for entry in given:
        level = _tag(entry.atoms) or (known[0] if len(known) == 1 else None)
        if level is None and entry.stem in known:
            level = entry.stem
        if level is None:
            unnamed.append(entry)
        elif level not in known:
            unknown.setdefault(level, []).append(entry)
        else:
            entries.append(replace(entry, level=level))
    if unnamed:
        problems.append(
            f"{_first_of(unnamed, given)} with no level in info ({', '.join(FIDELITY_TAGS)}); tag with "
            f"info['fidelity'], one of {', '.join(known)}, name the file so, or pass {{{known[-1]!r}: frames}}"
        )
    for level, own in unknown.items():
        problems.append(f"{_first_of(own, given)}: unknown fidelity {level!r}; known are {', '.join(known)}")
    return entries


def _first_of(found: Sequence[Entry], given: Sequence[Entry]) -> str:
    """'list of Atoms frame 0 (Cu4) and 5 more of 6 frames'."""
    return named(found[0]) if len(found) == 1 else f"{named(found[0])} and {len(found) - 1} more of {len(given)} frames"


def _levels_of(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The one level of tagged (or stemmed) entries, when nobody has named the levels."""
    untagged = [entry for entry in entries if _tag(entry.atoms) is None]
    if untagged and (len(untagged) < len(entries) or any(entry.stem is None for entry in entries)):
        raise DataError(
            f"{named(untagged[0])} carries no level in info ({', '.join(FIDELITY_TAGS)}), as do {len(untagged)} of "
            f"{len(entries)} frames; tag them with info['fidelity'], or pass {{level: frames}}."
        )
    found = [_tag(entry.atoms) or entry.stem or "" for entry in entries]
    names = checked_levels(tuple(dict.fromkeys(found)))
    if len(names) > 1:
        raise DataError(
            f"{len(names)} levels found: {_counts(found)}; say their order, cheapest first, with levels=, "
            f"for example levels={names}."
        )
    return names


def _tag(atoms: Atoms) -> str | None:
    return next((str(atoms.info[name]) for name in FIDELITY_TAGS if atoms.info.get(name) is not None), None)


def _counts(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(f"{name} ({found.count(name)} frames)" for name in dict.fromkeys(found)) or "none"


def _load(source: Source, problems: list[str]) -> list[Entry]:
    """Structures of a path, an Atoms, or a sequence of either; files that cannot be read become problems."""
    if not isinstance(source, (str, os.PathLike, Iterable)) or isinstance(source, Mapping):
        raise DataError(f"a source is a {type(source).__name__}; give paths or ase.Atoms.")
    parts = [source] if isinstance(source, (str, os.PathLike, Atoms)) else list(source)
    entries: list[Entry] = []
    for i, part in enumerate(parts):
        if isinstance(part, Atoms):
            entries.append(Entry(part, f"list of Atoms frame {i}", None))
        elif isinstance(part, (str, os.PathLike)):
            path = Path(part)
            try:
                read = load(path)
            except DataError as error:
                problems.append(str(error).rstrip("."))
                continue
            entries.extend(Entry(atoms, f"{path} frame {k}", stem_of(path)) for k, atoms in enumerate(read))
        else:
            raise DataError(f"a source is a {type(part).__name__}; give paths or ase.Atoms.")
    if not parts:
        problems.append("an empty list of frames was given; give at least one path or ase.Atoms")
    return entries


def stem_of(path: Path) -> str:
    """The name of a file without its suffix, and without that of a compression: lmfp.nm of lmfp.nm.extxyz.xz."""
    name = Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path
    return name.stem


def named(entry: Entry) -> str:
    return f"{entry.source} ({entry.atoms.symbols})"
