"""Whitened rows: what energies, forces and virials of a structure are in terms of the model's weights.

    phi(x) = L^-1 k(Z, x)                                  features of one environment, [M_s] of its species
    energy     Phi_E = sum_i phi(x_i)
    forces     Phi_F = - sum_i dphi(x_i)/dr_a = - sum_i L^-1 [ zeta (Z.q_i)^(zeta-1) o (Z . dq_i/dr_a) ]
    virial     Phi_V = - sum_i dphi(x_i)/d(strain)

so a functional of level t is Phi W_t v plus its composition columns (the number of atoms of each element, for energies)
and its baseline columns. Rows are ordered: energy, forces (atom-major, x y z), virial (xx yy zz yz xz xy).

Noise of a virial V that knows no direction has the density exp(-sum_ij E_ij^2 / 2 sigma^2) of its error E, and

    sum_ij E_ij^2 = E_xx^2 + E_yy^2 + E_zz^2 + (sqrt(2) E_yz)^2 + (sqrt(2) E_xz)^2 + (sqrt(2) E_xy)^2

So labelled rows of shear are times sqrt(2), and all six have the same noise (Kelvin-Mandel components; Mehrabadi & Cowin,
Q. J. Mech. Appl. Math. 43, 15 (1990)): a model of cells that are turned, with their labels, is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from descriptors import SOAP, Jacobian, Neighborhoods
from mfgp.baselines.columns import Baseline
from mfgp.data.single_point import SinglePoint
from mfgp.errors import DataError
from mfgp.frames import Frame
from mfgp.gp.centring import centred
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import kernel_slope, n_functionals
from mfgp.gp.pair_term import PairTerm
from mfgp.gp.rows import InducingForms, raw_rows
from mfgp.gp.vacuum_term import VacuumTerm

# `given`: rows divided by a standard deviation that came with the data; `isolated`: those of isolated atoms, likewise
KINDS = ("energy", "forces", "virial", "given", "isolated")
VANISHING = 1e-5  # length of a row, 1/Å or eV/Å: below, symmetry makes the functional zero whatever the weights
SHEAR = math.sqrt(2.0)  # of the labelled rows of yz, xz and xy
ISOLATED_NOISE = 0.01  # of the initial energy noise: what the energy of an isolated atom is trusted to
WORKSPACE = {
    "cpu": 2**20,
    "cuda": 2**26,
}  # entries of their products with Z held at a time; few enough to stay in cache


def local_features(basis: InducingBasis, features: Tensor, numbers: Tensor) -> Tensor:
    """phi of every centre, [centre, M]; zero outside the block of its species."""
    out = features.new_zeros(len(numbers), basis.size)
    for index, columns in basis.blocks():
        centres = torch.nonzero(numbers == basis.species[index]).squeeze(1)
        k = (features[centres] @ basis.points[index].T) ** basis.zeta
        out[centres, columns] = whiten(basis, index, k)
    return out


def whiten(basis: InducingBasis, index: int, k: Tensor) -> Tensor:
    """k(., Z) L^-T: rows [row, M_s] of one species into whitened rows."""
    return torch.linalg.solve_triangular(basis.factors[index], k.T, upper=False).T


def functional_rows(basis: InducingBasis, forms: InducingForms, soap: SOAP, neighborhoods: Neighborhoods) -> Tensor:
    """Phi of one structure, [1+3N+6, M], in a bounded memory; `forms` from inducing_forms(basis, soap)."""
    raw = raw_rows(basis, forms, soap, neighborhoods).of_structure(0, 0, len(neighborhoods.numbers))
    return whiten_all(basis, raw)


def rows_of_jacobian(basis: InducingBasis, jac: Jacobian, numbers: Tensor) -> Tensor:
    """Phi of one structure from a Jacobian of all its centres, [1+3N+6, M]."""
    raw = jac.features.new_zeros(n_functionals(len(numbers)), basis.size)
    _add_rows(raw, basis, jac, numbers)
    return whiten_all(basis, raw)


def whiten_all(basis: InducingBasis, raw: Tensor) -> Tensor:
    """Whiten rows k(functional, Z) [row, M or more] in place; columns beyond M are left alone."""
    for index, columns in basis.blocks():
        raw[:, columns] = whiten(basis, index, raw[:, columns])
    return raw


def whitened_blocks(basis: InducingBasis, parts: list[Tensor]) -> list[Tensor]:
    """Rows k(functional, Z) [row, M and columns] below each other, whitened: [row, M_s] of each species, then the columns.

    Each block has memory of its own, so that the triangular solve is done in place.
    """
    out = []
    for index, columns in basis.blocks():
        k = torch.cat([part[:, columns] for part in parts]).T  # [M_s, row]
        out.append(torch.linalg.solve_triangular(basis.factors[index], k, upper=False, out=k).T)
    return [*out, torch.cat([part[:, basis.size :] for part in parts])]


def virial_rows(basis: InducingBasis, features: Tensor, d_strain: Tensor, numbers: Tensor) -> Tensor:
    """Unwhitened rows k(virial, Z), [6, M], of all centres: features [N, D], d_strain [N, 6, D]."""
    out = features.new_zeros(6, basis.size)
    for index, columns in basis.blocks():
        centres, z = torch.nonzero(numbers == basis.species[index]).squeeze(1), basis.points[index]
        slope = kernel_slope(features[centres] @ z.T, basis.zeta)
        strain = (d_strain[centres].flatten(0, 1) @ z.T).view(len(centres), 6, len(z))
        out[:, columns] = -torch.einsum("cvm,cm->vm", strain, slope)
    return out


def _add_rows(out: Tensor, basis: InducingBasis, jac: Jacobian, numbers: Tensor) -> None:
    """Add the centres of `jac` to the unwhitened rows k(functional, Z)."""
    n = len(numbers)
    out[1 + 3 * n :] += virial_rows(basis, jac.features, jac.d_strain, numbers[jac.centres])
    species_of_centre = numbers[jac.centres]
    position = torch.empty(n, dtype=torch.long, device=numbers.device)  # of an atom among the centres of `jac`
    position[jac.centres] = torch.arange(len(jac.centres), device=numbers.device)
    for index, columns in basis.blocks():
        centres = torch.nonzero(species_of_centre == basis.species[index]).squeeze(1)
        if len(centres) == 0:
            continue
        z = basis.points[index]
        dot = jac.features[centres] @ z.T  # [centre, M_s]
        slope = out.new_empty(len(species_of_centre), len(z))
        slope[centres] = kernel_slope(dot, basis.zeta)
        out[0, columns] += (dot**basis.zeta).sum(0)
        pairs = torch.nonzero(numbers[jac.centre] == basis.species[index]).squeeze(1)
        forces = out.new_zeros(n, 3, len(z))
        for part in pairs.split(max(1, WORKSPACE[out.device.type] // (3 * len(z)))):
            t = (jac.d_positions[part].flatten(0, 1) @ z.T).view(len(part), 3, -1)  # [pair, xyz, M_s]
            t *= slope[position[jac.centre[part]]][:, None, :]
            forces.index_add_(0, jac.atom[part], t)
        out[1 : 1 + 3 * n, columns] -= forces.flatten(0, 1)


FLAT = 1e-6  # Å^3; of a cell with a vector in the plane of the others rounding leaves less


def cell_volume(atoms: Atoms) -> float:
    """Volume in Å^3; 0 where the structure has no periodic direction or no full cell, so no stress."""
    if not atoms.pbc.any():
        return 0.0
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = atoms.cell.array.tolist()  # by hand: this is done in every step
    volume = abs(ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx))
    return volume if volume > FLAT else 0.0


@dataclass(frozen=True)
class Columns:
    """The columns of the design matrix beside Phi: one for each element, one for each baseline, those of the terms."""

    species: tuple[int, ...]
    reference: Tensor  # [level, species] eV: prior mean of e0, subtracted from the labels
    baselines: tuple[str, ...] = ()
    first: tuple[int, ...] = ()  # the lowest level that uses each baseline
    coefficients: Tensor | None = None  # [level, baseline] prior mean of each coefficient at each level
    pair: PairTerm | None = None
    vacuum: VacuumTerm | None = None
    shear: float = SHEAR  # factor of labelled rows of shear; 1 in models of earlier versions

    @property
    def terms(self) -> list[PairTerm | VacuumTerm]:
        """What depends on positions, in the order of its columns; coefficients have a prior mean of zero."""
        return [term for term in (self.pair, self.vacuum) if term is not None]

    def to(self, device: torch.device) -> Columns:
        """The same columns on a device."""
        coefficients = None if self.coefficients is None else self.coefficients.to(device)
        return replace(self, reference=self.reference.to(device), coefficients=coefficients)

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.of_baselines.stop + sum(term.size for term in self.terms)

    @property
    def of_baselines(self) -> slice:
        """Columns of the baselines."""
        return slice(len(self.species), len(self.species) + len(self.baselines))

    @property
    def of_vacuum(self) -> slice:
        """Columns of the vacuum term, the last; empty without one."""
        return slice(self.size - (0 if self.vacuum is None else self.vacuum.size), self.size)

    def composition(self, numbers: np.ndarray) -> Tensor:
        """Number of atoms of each species, [species]."""
        return torch.tensor([float((numbers == z).sum()) for z in self.species], dtype=torch.float64)

    def labels(self, baselines: Sequence[Baseline], atoms: Atoms, level: int) -> list[SinglePoint | None]:
        """What the baselines say of a structure; None of those that the level does not use."""
        return [b.labels(atoms) if first <= level else None for b, first in zip(baselines, self.first, strict=True)]

    def rows_of(self, atoms: Atoms, labels: Sequence[SinglePoint | None]) -> Tensor:
        """[1+3N+6, column] of a structure and the baselines' labels of it: `rows`, then those of the terms."""
        out = self.rows(atoms.numbers, labels, cell_volume(atoms))
        return torch.cat([out, *(term.rows(atoms) for term in self.terms)], dim=1) if self.terms else out

    def rows(self, numbers: np.ndarray, labels: Sequence[SinglePoint | None], volume: float) -> Tensor:
        """[1+3N+6, column]: counts for the energy, then what each baseline gives for every functional. No terms.

        Virials of a baseline without stress are NaN where there is a volume: unknown, not zero.
        """
        out = torch.zeros(n_functionals(len(numbers)), self.of_baselines.stop, dtype=torch.float64)
        out[0, : len(self.species)] = self.composition(numbers)
        for k, label in enumerate(labels):
            if label is None:
                continue
            column = len(self.species) + k
            out[0, column] = label.energy
            out[1:-6, column] = torch.from_numpy(np.asarray(label.forces, dtype=np.float64).reshape(-1))
            if label.stress is not None:
                out[-6:, column] = torch.from_numpy(-volume * np.asarray(label.stress, dtype=np.float64))
            elif volume > 0:
                out[-6:, column] = math.nan
        return out

    def mean(self, rows: Tensor, level: int) -> Tensor:
        """Prior mean of every functional at a level, from its `rows`: reference energies and baselines."""
        n = len(self.species)
        out = rows[:, :n] @ self.reference[level]
        if self.coefficients is not None:
            out = out + rows[:, self.of_baselines] @ self.coefficients[level]
        return out


def telling(a: Tensor) -> Tensor:
    """Which rows of A [row, column] can say anything, [row] bool.

    In a perfect crystal, or off the mirror plane of a slab, symmetry makes forces and virials zero: their rows vanish, and
    that their labels do is no sign of small noise.
    """
    return torch.linalg.vector_norm(a, dim=1) > VANISHING


def components(shear: float) -> Tensor:
    """Factors of xx, yy, zz, yz, xz, xy, [6], where that of shear is `shear`."""
    return torch.tensor([1.0] * 3 + [shear] * 3, dtype=torch.float64)


def labelled_rows(frame: Frame, design: Tensor, mean: Tensor, shear: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The rows that a frame has labels for, by kind: {kind: (A [row, M + column], y [row])}.

    design [1+3N+6, M + column] and mean [1+3N+6] (prior mean, subtracted from the labels). Energies and virials are divided
    by sqrt(N), so that their noises are in eV per sqrt(atom), shear is times `shear` (Columns). Own `energy_sigma` (eV, of
    the total) or `force_sigma` (eV/Å) give rows of kind `given`, divided by it, whose noise is 1. Isolated atoms have
    `isolated_rows`. Rows may share the memory of `design`. DataError for a stress label where a baseline gives no stress.
    """
    n = len(frame.atoms)
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(kind: str, a: Tensor, y: np.ndarray, m: Tensor, scale: float) -> None:
        target = torch.from_numpy(np.ascontiguousarray(y, dtype=np.float64)).to(a) - m
        rows.setdefault(kind, []).append((a, target) if scale == 1 else (a * scale, target * scale))

    if frame.energy is not None:
        kind, scale = ("energy", n**-0.5) if frame.energy_sigma is None else ("given", 1.0 / frame.energy_sigma)
        add(kind, design[:1], np.array([frame.energy]), mean[:1], scale)
    if frame.forces is not None:
        a, m, y = design[1:-6], mean[1:-6], frame.forces.reshape(-1)
        if not frame.force_mask.all():
            mask = np.repeat(frame.force_mask, 3)
            used = torch.from_numpy(mask).to(design.device)
            a, m, y = a[used], m[used], y[mask]
        kind, scale = ("forces", 1.0) if frame.force_sigma is None else ("given", 1.0 / frame.force_sigma)
        if len(y):
            add(kind, a, y, m, scale)
    if frame.stress is not None:
        if not bool(torch.isfinite(design[-6:]).all()):
            raise DataError(
                f"{frame.source} ({frame.atoms.symbols}), fidelity {frame.fidelity!r}: a stress label, but no stress "
                "from a baseline (baseline gives no stress); leave out the label or the baseline."
            )
        k = components(shear) / n**0.5
        y, k = -frame.atoms.get_volume() * frame.stress * k.numpy(), k.to(design)
        add("virial", design[-6:] * k[:, None], y, mean[-6:] * k, 1.0)
    return {
        k: v[0] if len(v) == 1 else (torch.cat([a for a, _ in v]), torch.cat([y for _, y in v]))
        for k, v in rows.items()
    }


def frame_rows(
    frame: Frame, phi: Tensor, columns: Columns, extra: Tensor, level: int, default_sigma: float, centre: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """`isolated_rows` of isolated atoms, `labelled_rows` of other frames; in terms of w and e0' (centring).

    phi [1+3N+6, M], extra [1+3N+6, column], centre [S, M] of features like phi, whitened or not.
    """
    if frame.isolated_atom:
        return isolated_rows(frame, phi[0], columns, extra[0], level, default_sigma, centre)
    design = centred(torch.cat([phi, extra], dim=1), centre)
    return labelled_rows(frame, design, columns.mean(extra, level), columns.shear)


def isolated_rows(
    frame: Frame, phi: Tensor, columns: Columns, extra: Tensor, level: int, default_sigma: float, centre: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The rows of an isolated atom with an energy, both of kind `isolated`; none without.

    phi [M] of its local energy, extra [column] of its energy, default_sigma: of energies, eV. Its energy is that of e0 and
    the baselines, with its `energy_sigma` or ISOLATED_NOISE of the default; and, where its element has a column in the
    vacuum term, that of everything, with the same: the term takes up what the Gaussian process says. n atoms count n times
    in an atomisation energy, so that a larger sigma of the second would be most of its standard deviation.
    """
    if frame.energy is None:
        return {}
    sigma = frame.energy_sigma or ISOLATED_NOISE * default_sigma
    y = frame.energy - columns.mean(extra[None], level)  # [1]
    reference = torch.zeros_like(extra)
    reference[: columns.of_baselines.stop] = extra[: columns.of_baselines.stop]
    rows = [torch.cat([torch.zeros_like(phi), reference]) / sigma]
    labels = [y / sigma]
    if columns.vacuum is not None and int(frame.atoms.numbers[0]) in columns.vacuum.species:
        rows.append(torch.cat([phi, extra]) / sigma)
        labels.append(y / sigma)
    each = [centred(row[None], centre) for row in rows]
    return {"isolated": (torch.cat(each), torch.cat(labels))}
