"""Where the self-consistent cycle of PBE+U starts: which 3d orbital the minority electron of Fe2+ takes.

Fe2+ (d6, high spin) has one minority electron. PBE+U has a self-consistent solution for each orbital it may sit in, 0.1 eV
apart, and the cycle ends in the one that its start is near to. The Hubbard potential of a site with occupation matrix N
is U (1/2 - N) (Dudarev et al., Phys. Rev. B 57, 1505 (1998)); in the first steps of the cycle a start replaces N.

held      N of every Fe2+ is that of fe2_occupation.json: the orbital of lowest energy in one LiFePO4 snapshot
crystal   N is 0.95 v v^T for the lowest orbital v of a crystal-field model of the snapshot itself
free      nothing is held (needs the slower mixer)

The crystal-field model is the angular overlap model (Schaeffer & Jorgensen, Mol. Phys. 9, 401 (1965)) of the six nearest
oxygens at distances r with directions n,

    V = sum_n (r0/r)^5 [ e_sigma s s^T + e_pi (p p^T + p' p'^T) ]  -  b h h^T

with s, p, p' the 3d orbitals of sigma and pi symmetry about n. Oxygen alone does not split t2g as the crystal does (Li and
P do the rest, alike in every snapshot): h, the orbital of `held`, is lowered by b.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from ase import Atoms
from cells import oxidation_states

HELD_STEPS = 5
STARTS = ("held", "crystal", "free")
E_SIGMA, E_PI, R0, BIAS = 1.0, 0.2, 2.15, 0.15  # only ratios matter, and R0 not at all
MAJORITY, MINORITY, EMPTY = 1.03, 0.95, 0.03  # occupations of 3d orbitals that PBE+U ends with


class Occupations:
    """Takes the place of GPAW's Hubbard term for one calculation; `next_step` is called after every step of the cycle."""

    def __init__(self, atoms: Atoms, start: str) -> None:
        import gpaw.hamiltonian
        from gpaw import hubbard

        if start not in STARTS:
            raise ValueError(f"no start {start!r}; there are {', '.join(STARTS)}.")
        states, symbols = oxidation_states(atoms), atoms.get_chemical_symbols()
        metals = [i for i, s in enumerate(symbols) if s in ("Fe", "Mn")]
        matrices = np.array(json.loads((Path(__file__).parent / "fe2_occupation.json").read_text())["sites"])
        self.held: dict[int, np.ndarray] = {}  # site -> [spin, 5, 5]
        for k, i in enumerate(metals):
            if symbols[i] == "Fe" and states[i] == 2 and start != "free":
                held = matrices[k % len(matrices)]
                self.held[k] = held if start == "held" else crystal_field_occupation(atoms, i, held[1])
        self.metals, self.calls, self.steps = len(metals), 0, 0
        self.plain, self.occupation_matrix = hubbard.hubbard, hubbard.aoom
        gpaw.hamiltonian.hubbard = self

    def next_step(self) -> None:
        self.steps += 1

    def __call__(self, setup, D_sp, l, U, scale):  # noqa: E741  (GPAW's own names)
        """Energy (Hartree) and packed potential of a site, as gpaw.hubbard.hubbard; sites come in the order of the atoms."""
        site = self.calls % self.metals
        self.calls += 1
        if self.steps >= HELD_STEPS or site not in self.held:
            return self.plain(setup, D_sp, l, U, scale)
        return self.with_matrix(self.held[site], setup, D_sp, l, U, scale)

    def with_matrix(self, held, setup, D_sp, l, U, scale):  # noqa: E741
        """The Hubbard term with the occupation matrices `held` [spin, 5, 5] in place of the site's own."""
        from gpaw.utilities import pack2, unpack2

        shells = np.where(np.equal(setup.l_j, l))[0]
        first = [(2 * np.array(setup.l_j) + 1)[:j].sum() for j in shells]
        energy, potentials = 0.0, []
        for N, D_p in zip(held, D_sp):  # noqa: B905
            _, V = self.occupation_matrix(setup, unpack2(D_p), l, scale)
            energy += U / 2 * (N - N @ N).trace()
            for x in first:
                for y in first:
                    V[x : x + 5, y : y + 5] *= U * (0.5 * np.eye(5) - N)
            potentials.append(pack2(V))
        return energy, potentials


def crystal_field_occupation(atoms: Atoms, site: int, held: np.ndarray) -> np.ndarray:
    """Occupation matrices [spin, 5, 5] of an Fe2+: its minority electron in the lowest orbital of the crystal field.

    held [5, 5]: minority matrix whose most occupied orbital the crystal as a whole prefers.
    """
    orbital = np.linalg.eigh(held)[1][:, -1]
    V = crystal_field(oxygens(atoms, site)) - BIAS * np.outer(orbital, orbital)
    lowest = np.linalg.eigh(V)[1][:, 0]
    return np.array([MAJORITY * np.eye(5), MINORITY * np.outer(lowest, lowest) + EMPTY * np.eye(5)])


def oxygens(atoms: Atoms, site: int, n: int = 6) -> np.ndarray:
    """Vectors to the n nearest oxygens. [n, 3] Å."""
    others = [j for j, s in enumerate(atoms.symbols) if s == "O"]
    vectors = atoms.get_distances(site, others, mic=True, vector=True)
    return vectors[np.argsort(np.linalg.norm(vectors, axis=1))[:n]]


def crystal_field(vectors: np.ndarray) -> np.ndarray:
    """Angular overlap energies of the 3d orbitals for ligands at `vectors` [n, 3] Å. [5, 5] in units of e_sigma at R0.

    Orbitals in GPAW's order xy, yz, 3z2-r2, xz, x2-y2, each a traceless symmetric tensor of unit norm.
    """
    basis = np.array([pair(0, 1), pair(1, 2), np.diag([-1, -1, 2]) / 6**0.5, pair(0, 2), np.diag([1, -1, 0]) / 2**0.5])
    V = np.zeros((5, 5))
    for vector in vectors:
        r = np.linalg.norm(vector)
        n = vector / r
        across = np.linalg.svd(n[None])[2][1:]  # two directions at right angles to n
        tensors = [(E_SIGMA, 1.5**0.5 * (np.outer(n, n) - np.eye(3) / 3))]
        tensors += [(E_PI, (np.outer(n, t) + np.outer(t, n)) / 2**0.5) for t in across]
        for strength, tensor in tensors:
            orbital = np.tensordot(basis, tensor, 2)
            V += (R0 / r) ** 5 * strength * np.outer(orbital, orbital)
    return V


def pair(i: int, j: int) -> np.ndarray:
    out = np.zeros((3, 3))
    out[i, j] = out[j, i] = 0.5**0.5
    return out
