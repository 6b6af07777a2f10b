"""The structures that a campaign chooses from: read when it is made, and more of them later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ase import Atoms

from mfgp.campaign.inputs import record_again
from mfgp.campaign.records import bare
from mfgp.campaign.store import Store
from mfgp.data.reading import geometry_problems, raise_problems, read_structures
from mfgp.data.same_structure import keys
from mfgp.data.single_point import geometry
from mfgp.errors import DataError
from mfgp.frames import is_held_out
from mfgp.model import MultiFidelityGP

HELD_OUT = "held_out"  # keys of the structures that the fit's data hold out, as JSON


def candidates(sources: Sequence[Path | Atoms], held_out: set[str], notices: list[str]) -> list[Atoms]:
    """Structures without their labels, each geometry once; info['source'] says where one came from. Notices tell of those
    left out: held out themselves (`split`), or the same as one whose key is in `held_out` (same_structure), in whatever
    description. DataError where none is left."""
    given = list(_given(sources))
    out: dict[str, Atoms] = {}
    repeated = dropped = 0
    for (source, atoms), (own, near) in zip(given, keys([atoms for _, atoms in given]), strict=True):
        place = geometry(atoms)
        if is_held_out(atoms.info.get("split")) or not held_out.isdisjoint((own, *near)):
            dropped += 1
        elif place in out:
            repeated += 1
        else:
            out[place] = bare(atoms)
            out[place].info["source"] = source
    names = ", ".join(dict.fromkeys("structures given" if isinstance(s, Atoms) else s.name for s in sources))
    if not out:
        why = f": of {len(given)} all are held out (info['split'], or in the fit's data)" if dropped else ""
        raise DataError(f"{names or 'no structures given'}: no structure to choose from is left{why}.")
    if dropped:
        notices.append(
            f"{names}: held out (info['split'], or in the fit's data) and left out: {dropped} of {len(given)}."
        )
    if repeated:
        notices.append(f"{names}: repeated, and taken once: {repeated} of {len(given)}.")
    return list(out.values())


def extend(store: Store, model: MultiFidelityGP, sources: Sequence[Path | Atoms]) -> tuple[int, list[str]]:
    """Put structures that are not in the pool at its end, all or none; how many, and notices as of `candidates`."""
    notices: list[str] = []
    recorded = store.meta(HELD_OUT)
    if recorded is None and store.meta("fit") is not None:
        notices.append(
            "an earlier version made this campaign and did not write down which structures the fit's data hold out; those "
            "among these that have no `split` of their own are taken."
        )
    found = candidates(sources, set(json.loads(recorded or "[]")), notices)
    check_elements(model, found)
    with store.transaction():
        there = store.structures("pool_index")
        known = {geometry(atoms) for _, atoms in there}
        new = [atoms for atoms in found if geometry(atoms) not in known]
        rows = [store.add_structure(atoms, atoms.info.pop("source")) for atoms in new]
        store.number_structures("pool_index", rows, first=len(there))
        record_again(store, [s for s in sources if not isinstance(s, Atoms)])
        store.event("extend", f"{len(new)} structures added to the pool, {len(there)} were there")
    if len(new) < len(found):
        notices.append(f"in the pool already: {len(found) - len(new)} of {len(found)}.")
    return len(new), notices


def check_elements(model: MultiFidelityGP, structures: Sequence[Atoms]) -> None:
    """DataError for elements that the model does not know."""
    predictor = model.predictor()
    for atoms in structures:
        predictor.check_elements(atoms, atoms.info["source"])


def _given(sources: Sequence[Path | Atoms]) -> Iterator[tuple[str, Atoms]]:
    for n, source in enumerate(sources):
        if isinstance(source, Atoms):
            name = f"structure {n} of those given"
            raise_problems([f"{name} ({source.symbols}): {problem}" for problem in geometry_problems(source)])
            yield name, source
        else:
            yield from ((f"{source.name} frame {i}", atoms) for i, atoms in enumerate(read_structures(source)))
