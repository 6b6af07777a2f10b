"""What may be wrong with a structure that is to be predicted, though it can be: disorder that was filled up, cells given as
columns. Nothing is known of labels here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mfgp.data.transposed_cells import FEW, columns_warning, transposed

_WHOLE = 0.99  # of a site; refinements give a full one 0.998 and the like
_SHOWN = 5


def warn_of_structures(structures: Sequence[Atoms], stacklevel: int) -> None:
    """Warn of the first disordered one among structures to be predicted, and of transposed cells; as in the caller."""
    names = [f"structure {i} of the list" for i in range(len(structures))] if len(structures) > 1 else ["the structure"]
    for name, atoms in zip(names, structures, strict=False):
        if said := disorder(atoms):
            warnings.warn(f"{name} ({atoms.symbols}): {said}", stacklevel=stacklevel + 1)
            break
    if found := transposed(structures, min(FEW, len(structures))):
        warnings.warn(columns_warning(len(found), names[found[0]]), stacklevel=stacklevel + 1)


def disorder(atoms: Atoms) -> str | None:
    """What to know of a structure from a CIF with disorder; None where there is nothing.

    ASE puts one element on each site, the most frequent one, and keeps what the file says in info, by kinds of sites. Where
    a shared site's atoms are of several elements somebody has drawn them since; of empty ones that cannot be seen.
    """
    occupancy, kinds = atoms.info.get("occupancy"), atoms.arrays.get("spacegroup_kinds")
    if not isinstance(occupancy, dict) or kinds is None:
        return None
    shares: dict[str, None] = {}
    for kind, site in occupancy.items():
        elements = np.unique(atoms.numbers[kinds.astype(str) == str(kind)])
        filled_up = len(elements) == 1 and any(not share > _WHOLE for share in site.values())
        if filled_up:
            shares[" ".join(f"{symbol} {share:g}" for symbol, share in sorted(site.items()))] = None
    if not shares:
        return None
    return (
        f"sites are shared or partly empty ({', '.join(list(shares)[:_SHOWN])}), and each is taken as full of its most "
        "frequent element. Make ordered structures of it, for example a few supercells with atoms drawn at random, and name "
        "these (where that is done, del atoms.info['occupancy'])"
    )
