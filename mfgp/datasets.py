"""The data set that comes with the project: LiMn(x)Fe(1-x)PO4 at three levels of theory, in examples/lmfp of a checkout.

    frames = load_lmfp("mag", "train")        # ase.Atoms with energy, forces and magmoms on their calculator

The data are not part of an installed package: without a checkout name their folder, with `folder=` or with MFGP_LMFP in the
environment.
What the levels and splits are, and what the labels are worth, is in the data card, examples/lmfp/README.md.
"""

from __future__ import annotations

import os
from pathlib import Path

from ase import Atoms

from mfgp.data.reading import read_structures
from mfgp.errors import DataError

VARIABLE = "MFGP_LMFP"  # environment variable: the folder with the data, where there is no checkout
LMFP = Path(__file__).resolve().parent.parent / "examples" / "lmfp"
LEVELS = ("gfn1", "nm", "mag")  # cheapest first
# split -> end of the file's name; no file that holds a training frame holds a test frame
SPLITS = {"train": "", "validation": "", "test": "_test", "test_second": "_test", "test_ood": "_test"}


def load_lmfp(level: str, split: str = "train", folder: str | os.PathLike[str] | None = None) -> list[Atoms]:
    """Labelled LMFP structures of one level and split, in the order of their ids.

    level: gfn1 (GFN1-xTB, with stress), nm (spin-paired PBE) or mag (spin-polarised PBE+U, with magmoms).
    split: train, validation (held out, looked at while settings are chosen), test (like the training structures),
    test_second (the same again, made after the settings of the project had been chosen) or test_ood (1000 K at +-4 %
    linear strain, lithium contents and Mn:Fe ratios that no training structure has).
    folder: where the files are; by default the one that MFGP_LMFP names, else examples/lmfp of the checkout.
    Energies in eV (the free energy that the forces belong to), forces in eV/Å, stress in eV/Å^3, magmoms in Bohr
    magnetons; `info` says composition, temperature, strain, cost and more (the data card lists it).

    Raises DataError for an unknown level or split, and where the data are not there.
    """
    if level not in LEVELS:
        raise DataError(f"LMFP has no level {level!r}; there are {', '.join(LEVELS)}.")
    if split not in SPLITS:
        raise DataError(f"LMFP has no split {split!r}; there are {', '.join(SPLITS)}.")
    name = f"lmfp_{level}{SPLITS[split]}.extxyz"
    place = Path(folder or os.environ.get(VARIABLE) or LMFP)
    found = [path for path in (place / name, place / f"{name}.xz") if path.exists()]
    if not found:
        raise DataError(
            f"the LMFP data are not in {place} ({name} is missing). They come with the source of mfgp, in examples/lmfp, "
            "not with an installed package: get the source (a clone or a source archive) and name that folder with folder=, "
            f"or with {VARIABLE} in the environment."
        )
    return [atoms for atoms in read_structures(found[0]) if atoms.info.get("split") == split]
