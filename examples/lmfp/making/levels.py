"""The three levels of theory as ASE calculators, for GPAW 22.8 and tblite.

gfn1  GFN1-xTB (Grimme et al., J. Chem. Theory Comput. 13, 1989 (2017)), periodic, with stress
nm    spin-paired PBE, Gamma point
mag   ferromagnetic high-spin PBE+U (Dudarev, Fe 3d 5.3 eV, Mn 3d 3.9 eV), k-point (0, 1/4, 1/4)

One grid and one cutoff for every cell, so energies of different volumes can be compared; twice the points, and twice
the phase, along c for two cells along c.
"""

from __future__ import annotations

import numpy as np
import planewaves
from ase import Atoms
from ase.calculators.calculator import Calculator
from cells import formal_moments, starting_moments, states_of_moments
from starts import Occupations

GRID = (54, 32, 25)  # about 0.19 Å
CUTOFF = 500.0  # eV
SMEARING = {"nm": 0.2, "mag": 0.1}  # eV, Fermi
SETUPS = {"nm": {"Mn": "7"}, "mag": {"Fe": ":d,5.3", "Mn": "7:d,3.9"}}
BANDS = {"nm": 88, "mag": 96}
LEVELS = ("gfn1", "nm", "mag")  # cheapest first
SHARED_ELECTRON = "electron shared"
LOST, SHARED = 0.9, 0.05  # Bohr magnetons that a metal and the whole cell may be off their high-spin moments


def calculator(
    level: str, atoms: Atoms, start: str, attempt: int, about: dict | None = None, hold_moment: bool = False
) -> Calculator:
    """The calculator of a level for a structure; `start` matters to mag only, see starts.py. attempt 1, 2, ...

    about: the structure's info, of which `cutoff` (eV) and `basis_cell` (Å, see strain.py) count, at nm and mag.
    hold_moment: mag with the total moment held at its high-spin value.
    """
    if level == "gfn1":
        from tblite.ase import TBLite

        return TBLite(method="GFN1-xTB", verbosity=0, max_iterations=1000)  # test0208 needs more than the 250 of tblite
    return gpaw_calculator(level, atoms, start, attempt, about or {}, hold_moment)


def gpaw_calculator(level: str, atoms: Atoms, start: str, attempt: int, about: dict, hold_moment: bool) -> Calculator:
    from gpaw import GPAW, PW, FermiDirac
    from gpaw.mixer import Mixer, MixerSum

    cells = round(atoms.cell.lengths()[2] / 4.75)  # formula cells along c
    cutoff = float(about.get("cutoff", CUTOFF))
    planewaves.release()
    if "basis_cell" in about:
        planewaves.hold(np.reshape(about["basis_cell"], (3, 3)), cutoff)
    settings = {
        "mode": PW(cutoff),
        "xc": "PBE",
        "gpts": (GRID[0], GRID[1], GRID[2] * cells),
        "setups": SETUPS[level],
        "nbands": BANDS[level] * cells,
        "occupations": FermiDirac(SMEARING[level], fixmagmom=hold_moment),
        "txt": None,
        "convergence": {"density": 1e-4 if level == "nm" else 5e-5, "energy": 5e-4, "eigenstates": 1e-5},
    }
    if level == "nm":
        return GPAW(
            **settings,
            symmetry="off",
            spinpol=False,
            kpts=(1, 1, 1),
            maxiter=(70, 120)[attempt - 1],
            mixer=(Mixer(0.05, 8, 50), Mixer(0.02, 5, 100))[attempt - 1],
        )
    atoms.set_initial_magnetic_moments(starting_moments(atoms))
    occupations = Occupations(atoms, start)
    if start == "free":
        attempt = 2
    out = GPAW(
        **settings,
        symmetry={"point_group": False},
        kpts=[(0.0, 0.25, 0.25 * cells)],
        maxiter=(45, 90)[attempt - 1],
        mixer=(MixerSum(0.8, 5, 1), MixerSum(0.2, 8, 20))[attempt - 1],
    )
    out.attach(occupations.next_step, 1)
    return out


def attempts(level: str, start: str) -> int:
    """How often a structure is tried, with another mixer each time; from start `free` only the slow one converges."""
    return 2 if level == "nm" or (level == "mag" and start != "free") else 1


def lost_spin(atoms: Atoms, magmoms: np.ndarray) -> str | None:
    """What is wrong with the spin state, if anything is: a metal more than LOST below its high-spin moment.

    Which of several equal metals is the oxidised one is for the calculation to say.
    """
    wanted = formal_moments(atoms, states_of_moments(atoms, magmoms))
    low = [i for i in np.flatnonzero(wanted) if abs(magmoms[i]) < wanted[i] - LOST]
    if not low:
        return None
    found = ", ".join(f"{atoms.symbols[i]}{i} {magmoms[i]:.2f} (formally {wanted[i]:.0f})" for i in low)
    return f"not high spin: {found}"


def shared_electron(atoms: Atoms, total: float) -> str | None:
    """Whether the smearing has left an electron between Mn2+ and Fe3+: a total moment that is off the high-spin one.

    Two charge states are nearly degenerate there, and the entropy of the smearing pays for a mixture of both, whose energy
    and forces belong to neither.
    """
    wanted = float(starting_moments(atoms).sum())
    if abs(total - wanted) <= SHARED:
        return None
    return f"{SHARED_ELECTRON}: total moment {total:.3f} (formally {wanted:.0f})"
