"""The olivine cells of the data set: which metal and which lithium sites, and which metals are oxidised.

Pnma, four formula units LiMPO4: lithium on 4a, the metals on four 4c sites. Every lithium that is missing leaves one
metal M3+ behind. Fe2+ is oxidised before Mn2+ (3.4 against 4.1 V, Padhi et al., J. Electrochem. Soc. 144, 1188 (1997)),
and among equals the metal whose oxygens are nearest: the one of the largest bond valence sum (Brown & Altermatt, Acta
Cryst. B 41, 244 (1985)), since the snapshot has a small polaron around every M2+.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.spacegroup import crystal

ONE_CELL = 28  # atoms
VOLTAGE_ORDER = ("Fe", "Mn")  # who gives its electron up first
BOND_VALENCE_LENGTH = 0.37  # Å
MOMENTS = {("Fe", 2): 4.0, ("Mn", 2): 5.0, ("Fe", 3): 5.0, ("Mn", 3): 4.0}  # high spin, Bohr magnetons

# name: (metals on the four 4c sites, lithium sites kept)
LITHIATED = {
    "LFP": ("FFFF", (0, 1, 2, 3)),
    "LMP": ("MMMM", (0, 1, 2, 3)),
    "LM25F75P": ("MFFF", (0, 1, 2, 3)),
    "LM75F25P": ("FMMM", (0, 1, 2, 3)),
    "LM50F50P-a": ("MMFF", (0, 1, 2, 3)),
    "LM50F50P-b": ("MFMF", (0, 1, 2, 3)),
    "LM50F50P-c": ("MFFM", (0, 1, 2, 3)),
}
DELITHIATED = {
    "FP": ("FFFF", ()),
    "MP": ("MMMM", ()),
    "M50F50P": ("MFMF", ()),
    "L50FP": ("FFFF", (0, 1)),
    "L50MP": ("MMMM", (0, 2)),
    "L50M50F50P-a": ("MFMF", (0, 1)),
    "L50M50F50P-b": ("MMFF", (0, 2)),
}
# Lithium contents (1/4 and 3/4) that no training structure has.
UNSEEN_LITHIUM = {
    "L25FP": ("FFFF", (0,)),
    "L75FP": ("FFFF", (0, 1, 2)),
    "L25MP": ("MMMM", (1,)),
    "L75MP": ("MMMM", (0, 2, 3)),
    "L25M50F50P": ("MFFM", (2,)),
    "L75M50F50P": ("MMFF", (0, 1, 3)),
}
# Mn:Fe ratios (3:5 and 5:3) that no training structure has: two cells along c, eight metals.
UNSEEN_RATIO = {
    "LM37F63P": ("MFFMFFMF", tuple(range(8))),
    "LM63F37P": ("FMMFMMFM", tuple(range(8))),
}
VARIANTS = {**LITHIATED, **DELITHIATED, **UNSEEN_LITHIUM, **UNSEEN_RATIO}


def cell(name: str) -> Atoms:
    """The ideal cell of a variant (experimental LiFePO4 positions), 28 atoms less the missing lithium (56 for two cells).

    A KeyError names an unknown variant.
    """
    metals, lithium_kept = VARIANTS[name]
    atoms = crystal(
        ["Li", "Fe", "P", "O", "O", "O"],
        [
            (0, 0, 0),
            (0.2822, 0.25, 0.9747),
            (0.0948, 0.25, 0.4182),
            (0.0968, 0.25, 0.7428),
            (0.4571, 0.25, 0.2060),
            (0.1656, 0.0465, 0.2848),
        ],
        spacegroup=62,
        cellpar=[10.42, 6.07, 4.74, 90, 90, 90],
    )
    atoms = atoms.repeat((1, 1, len(metals) // 4))
    symbols = np.array(atoms.get_chemical_symbols(), dtype=object)
    symbols[symbols == "Fe"] = [{"F": "Fe", "M": "Mn"}[m] for m in metals]
    lithium = np.flatnonzero(symbols == "Li")
    kept = np.ones(len(symbols), dtype=bool)
    kept[np.delete(lithium, list(lithium_kept))] = False
    return Atoms(list(symbols[kept]), atoms.positions[kept], cell=atoms.cell.array, pbc=True)


def oxidation_states(atoms: Atoms) -> np.ndarray:
    """Formal charge of each atom: Li +1, P +5, O -2, metals +2, or +3 where the lithium is missing. [atom], integers."""
    symbols = np.array(atoms.get_chemical_symbols())
    states = np.array([{"Li": 1, "P": 5, "O": -2}.get(s, 2) for s in symbols])
    missing = -int(states.sum())  # electrons too many with every metal at +2: O 2- wins
    if missing < 0:
        raise ValueError(f"{atoms.symbols}: more lithium than metals can balance.")
    for species in VOLTAGE_ORDER:
        sites = np.flatnonzero(symbols == species)
        if 0 < missing < len(sites):
            sites = sites[np.argsort(-bond_valences(atoms, sites), kind="stable")]
        oxidised = sites[:missing]
        states[oxidised] = 3
        missing -= len(oxidised)
    if missing:
        raise ValueError(f"{atoms.symbols}: {missing} electron(s) that no Fe or Mn can give.")
    return states


def bond_valences(atoms: Atoms, sites: np.ndarray) -> np.ndarray:
    """Bond valence sums of sites of one species, to a common factor, [site]: sum over oxygens of exp(-r / 0.37 Å)."""
    oxygen = np.flatnonzero(np.array(atoms.get_chemical_symbols()) == "O")
    r = atoms.get_all_distances(mic=True)[np.ix_(sites, oxygen)]  # [site, oxygen] Å
    return np.exp(-r / BOND_VALENCE_LENGTH).sum(axis=1)


def states_of_moments(atoms: Atoms, moments: np.ndarray) -> np.ndarray:
    """As `oxidation_states`, but the sites that a calculation oxidised: Fe3+ has the larger moment, Mn3+ the smaller."""
    states, symbols = oxidation_states(atoms), np.array(atoms.get_chemical_symbols())
    for species, sign in (("Fe", 1), ("Mn", -1)):
        sites = np.flatnonzero(symbols == species)
        order = sites[np.argsort(sign * np.abs(moments[sites]), kind="stable")]
        states[order] = np.sort(states[sites])
    return states


def starting_moments(atoms: Atoms) -> np.ndarray:
    """High-spin moments of the metals, ferromagnetic, 0 elsewhere. [atom], Bohr magnetons."""
    return formal_moments(atoms, oxidation_states(atoms))


def formal_moments(atoms: Atoms, states: np.ndarray) -> np.ndarray:
    """High-spin moments for given charges, 0 where there is no metal. [atom], Bohr magnetons."""
    return np.array([MOMENTS.get((s, int(q)), 0.0) for s, q in zip(atoms.symbols, states)])  # noqa: B905
