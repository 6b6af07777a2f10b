"""Electrostatics of ions beyond the cutoff of the descriptor, as an ASE calculator: Gaussian charges, Ewald's sum.

    E = (k / eps) 1/2 sum_ij q_i q_j erf(r_ij / sqrt(2) s) / r_ij,      k = e^2 / 4 pi eps0                 (molecules)
      = (k / eps) 2 pi / V sum_{K != 0} g |S(K)|^2                                                          (crystals)
    S(K) = sum_i q_i exp(i K.r_i),      g = exp(-s^2 K^2 / 2) / K^2
    F_i = (k / eps) 4 pi / V q_i sum_K g K Im[exp(i K.r_i) S*]
    stress = (k / eps) 2 pi / V^2 sum_K g |S|^2 [ (2 / K^2 + s^2) K K^T - 1 ]
    slabs, normal n: E + (k / eps) 2 pi / V (n . sum_i q_i r_i)^2, with vacuum between the images; layers as far apart as
    these, Q the charge below, A the area: (k / eps) 2 pi Q^2 / A for each further Å, as between the plates of a capacitor

Ewald, Ann. Phys. 369, 253 (1921); the slab term: Yeh, Berkowitz, J. Chem. Phys. 111, 3155 (1999). Each Gaussian has a
standard deviation of s / sqrt(2). They repel themselves, too (i = j): so a smooth density has no energy, and compositions
differ by less (LMFP without its lithium by half of what they do otherwise). What Gaussians lack of points is short-ranged,
and the Gaussian process sees it. The permittivity eps stands for the electrons that follow; the coefficient of the baseline
corrects it. A model file keeps settings, not charges: a change of FORMAL_CHARGES would change models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]

_COULOMB = units.Hartree * units.Bohr  # e^2 / 4 pi eps0, eV Å
_DAMPED = 6.0  # largest s K: exp(-18) = 1.5e-8 of the first terms
_VACUUM = 20.0  # Å between the images of a slab, at least
_LEAST_SMEARING = 0.3  # Å; the number of K grows as 1 / s^3
_BLOCK = 1 << 21  # numbers held at once
FORMAL_CHARGES: dict[str, float] = {
    **dict.fromkeys(("H", "Li", "Na", "K", "Rb", "Cs"), 1.0),
    **dict.fromkeys(("Be", "Mg", "Ca", "Sr", "Ba", "Zn", "Cd"), 2.0),
    **dict.fromkeys(("B", "Al", "Ga", "In", "Sc", "Y", "La"), 3.0),
    **dict.fromkeys(("Si", "Ge", "Zr", "Hf"), 4.0),
    **dict.fromkeys(("P", "Nb", "Ta"), 5.0),
    **dict.fromkeys(("F", "Cl", "Br", "I"), -1.0),
    "O": -2.0,
}  # of ions that have one charge in nearly all solids; other elements take what is missing to neutrality


def ion_charges(numbers: NDArray[np.integer], by_element: Mapping[int, float]) -> Array:
    """Charges of the ions, a neutral structure. numbers [N]; by_element: e, of atomic numbers -> [N] e.

    What is missing to neutrality is shared by the atoms of the other elements, the metals of an oxide; by all atoms where
    there are none.
    """
    charges = np.array([by_element.get(int(z), 0.0) for z in numbers])
    others = np.array([int(z) not in by_element for z in numbers])
    share = others if others.any() else np.ones(len(numbers), dtype=bool)
    charges[share] -= charges.sum() / share.sum()
    return charges


def cluster_sum(charges: Array, positions: Array, s: float) -> tuple[float, Array]:
    """Energy and forces of a cluster, of e^2 / 4 pi eps0 = 1. charges [N] e; positions [N, 3], s: Å -> 1/Å, [N, 3] 1/Å^2."""
    energy, forces = 0.0, np.zeros_like(positions)
    step = max(1, _BLOCK // (4 * len(charges)))
    for first in range(0, len(charges), step):
        d = positions[first : first + step, None] - positions  # [i, j, 3]
        r = np.linalg.norm(d, axis=-1)
        near = r < 1e-4 * s  # the atom itself
        safe = np.where(near, s, r)
        gauss = np.sqrt(2.0 / np.pi) / s  # v at r = 0
        v = np.where(near, gauss, erf(safe / (np.sqrt(2.0) * s)) / safe)
        slope = np.where(near, 0.0, (gauss * np.exp(-0.5 * (safe / s) ** 2) - v) / safe**2)  # (dv/dr) / r
        pair = charges[first : first + step, None] * charges
        energy += 0.5 * float((pair * v).sum())
        forces[first : first + step] = -np.einsum("ij,ijc->ic", pair * slope, d)
    return energy, forces


def ewald_sum(charges: Array, positions: Array, cell: Array, s: float) -> tuple[float, Array, Array]:
    """Energy, forces and stress of a neutral crystal, of e^2 / 4 pi eps0 = 1. charges [N] e; positions [N, 3], cell [3, 3],
    s: Å -> 1/Å, [N, 3] 1/Å^2, [3, 3] 1/Å^4.

    K = 2 pi (h, k, l) @ reciprocal. exp(i K.r) is a product of three factors, so that S(K) of all l of a block of (h, k) is
    one matrix product, and so are the forces. Of K and -K one is summed, twice: h >= 0.
    """
    volume, reciprocal = abs(np.linalg.det(cell)), 2.0 * np.pi * np.linalg.inv(cell).T
    n = np.floor(_DAMPED / s * np.linalg.norm(cell, axis=1) / (2.0 * np.pi)).astype(int)  # |K . a| <= |K| |a|
    h, k, l = np.arange(n[0] + 1), np.arange(-n[1], n[1] + 1), np.arange(-n[2], n[2] + 1)  # noqa: E741 (Miller's indices)
    angles = positions @ reciprocal.T  # [N, 3]
    x, y, z = (np.exp(1j * np.outer(m, angles[:, c])) for c, m in enumerate((h, k, l)))  # [h, N], [k, N], [l, N]
    plane = np.stack(np.meshgrid(h, k, indexing="ij"), axis=-1).reshape(-1, 2)  # [h k, 2]
    energy, slopes, tensor = 0.0, np.zeros_like(positions), np.zeros((3, 3))  # slopes: by angles
    step = max(1, _BLOCK // (2 * len(charges) + 8 * len(l)))
    for block in (plane[i : i + step] for i in range(0, len(plane), step)):
        K = (block @ reciprocal[:2])[:, None] + np.outer(l, reciprocal[2])  # [block, l, 3] 1/Å
        g, stiffness = _weights(K, s)
        g *= np.where(block[:, :1] > 0, 2.0, 1.0)
        phases = x[block[:, 0]] * y[block[:, 1] + n[1]]  # [block, N]
        structure = (phases * charges) @ z.T  # S(K), [block, l]
        power = g * np.abs(structure) ** 2
        energy += float(power.sum())
        tensor += np.einsum("bl,bli,blj->ij", power * stiffness, K, K) - power.sum() * np.eye(3)
        weights = g * structure.conj()
        slopes[:, :2] += np.imag(phases * (weights @ z)).T @ block
        slopes[:, 2] += np.imag(phases * ((weights * l) @ z)).sum(axis=0)
    factor = 2.0 * np.pi / volume
    return factor * energy, 2.0 * factor * charges[:, None] * (slopes @ reciprocal), factor / volume * tensor


def _weights(K: Array, s: float) -> tuple[Array, Array]:
    """g of reciprocal vectors, zero for K = 0 and where it is damped away, and 2 / K^2 + s^2. K [..., 3] 1/Å -> Å^2."""
    squares = (K**2).sum(axis=-1)
    inside = (squares > 0.0) & (squares <= (_DAMPED / s) ** 2)
    safe = np.where(inside, squares, 1.0)
    return np.where(inside, np.exp(-0.5 * s**2 * squares) / safe, 0.0), 2.0 / safe + s**2


def slab_sum(charges: Array, positions: Array, plane: Array, s: float) -> tuple[float, Array]:
    """Energy and forces of a slab. plane [2, 3] Å: its two cell vectors; else as `cluster_sum`.

    Gaps between layers are closed to the vacuum between images: an atom far away would need as many more reciprocal vectors.
    """
    normal = np.cross(plane[0], plane[1])
    area = np.linalg.norm(normal)
    normal /= area
    vacuum, along = max(_VACUUM, 2.0 * np.linalg.norm(plane, axis=1).max()), positions @ normal
    order = np.argsort(along)
    surplus = np.maximum(np.diff(along[order]) - vacuum, 0.0)  # [N - 1] Å
    near = positions.copy()
    near[order[1:]] -= surplus.cumsum()[:, None] * normal
    apart = 2.0 * np.pi / area * float(charges[order].cumsum()[:-1] ** 2 @ surplus)
    cell = np.vstack([plane, (np.ptp(near @ normal) + vacuum) * normal])
    energy, forces, _ = ewald_sum(charges, near, cell, s)
    dipole, factor = float(charges @ near @ normal), 2.0 * np.pi / np.linalg.det(cell)
    return energy + factor * dipole**2 + apart, forces - 2.0 * factor * dipole * np.outer(charges, normal)


class CoulombCalculator(Calculator):
    """ASE calculator of Gaussian ion charges; molecules, slabs and crystals, not wires.

    charges: e, by chemical symbol, over those of FORMAL_CHARGES (`ion_charges` makes structures neutral). smearing: s, Å.
    permittivity: eps, about that of the electrons alone. Raises ValueError for what is no element, no number or too small,
    and for one periodic direction.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's own form)

    def __init__(
        self,
        charges: Mapping[str, float] | None = None,
        smearing: float = 1.0,
        permittivity: float = 5.0,
        **kwargs: Any,
    ) -> None:
        merged = FORMAL_CHARGES | dict(charges or {})
        if unknown := [symbol for symbol in merged if symbol not in atomic_numbers]:
            raise ValueError(
                f"{', '.join(map(repr, unknown))} is no element; settings are smearing, permittivity and charges by element"
            )
        if not (_LEAST_SMEARING <= smearing < np.inf and 0 < permittivity < np.inf):
            raise ValueError(
                f"smearing is {_LEAST_SMEARING} Å at least and permittivity positive, not {smearing} and {permittivity}"
            )
        if wrong := [f"{s}: {q}" for s, q in merged.items() if isinstance(q, bool) or not np.isfinite(float(q))]:
            raise ValueError(f"charges are numbers (of e), not {', '.join(wrong)}")
        super().__init__(**kwargs)
        self.charges = {atomic_numbers[symbol]: float(charge) for symbol, charge in merged.items()}
        self.smearing, self.permittivity = float(smearing), float(permittivity)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms, s, scale = self.atoms, self.smearing, _COULOMB / self.permittivity
        q = ion_charges(atoms.numbers, self.charges)
        periodic, stress = int(atoms.pbc.sum()), None
        if periodic == 3:
            energy, forces, stress = ewald_sum(q, atoms.positions, atoms.cell.array, s)
        elif periodic == 2:
            energy, forces = slab_sum(q, atoms.positions, atoms.cell.array[atoms.pbc], s)
        elif periodic == 1:
            raise ValueError("one periodic direction is not covered; put the wire into a box that is periodic in all")
        else:
            energy, forces = cluster_sum(q, atoms.positions, s)
        self.results = {"energy": scale * energy, "free_energy": scale * energy, "forces": scale * forces}
        if stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(scale * stress)
