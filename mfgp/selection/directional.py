"""Rows of forces along random directions: what many structures could teach, without the Jacobian of each.

For displacements v of all atoms of a structure, with v ~ N(0, 1) component by component,

    Phi_v = sum_a v_a . Phi_{F_a} = - d/d eps sum_i phi(x_i(r + eps v)),        E[ Phi_v^T Phi_v ] = Phi_F^T Phi_F

so a few directions estimate traces over all 3N forces (Hutchinson, Commun. Stat. Simul. Comput. 18, 1059 (1989)). The
descriptors' derivative along v is a forward difference of the values, one evaluation a direction, with the pairs of the
undisplaced structure: what enters or leaves the cutoff in between has weight zero there. Its error is of order EPS, 1e-6 of
the derivative, which an estimate from a few random directions can bear; it is tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from descriptors import Neighborhoods
from mfgp.base.threads import ordered_map
from mfgp.fit.features import Features
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import kernel_curvature, kernel_slope
from mfgp.gp.observations import whiten
from mfgp.predict.batched import BATCH_ATOMS, batches

EPS = 1e-7  # Å per unit of v


@dataclass(frozen=True)
class DirectionalRows:
    """Whitened rows of a batch of structures."""

    energy: Tensor  # [structure, M] Phi_E
    forces: Tensor  # [structure, k, M] Phi_v
    prior: (
        Tensor | None
    )  # [structure, 1+k, S] prior variances of energy and forces at unit amplitude, by central species


def directional_rows(
    features: Features, structures: Sequence[Atoms], directions: Tensor, with_prior: bool = False
) -> DirectionalRows:
    """Energy rows and force rows along `directions` [atom of the batch, 3, k] of several structures.

    with_prior: the exact prior variances of the rows too, which take the pairs of environments of a structure.
    """
    nb = features.soap.neighborhoods(list(structures), device=features.device)
    directions = directions.to(nb.vectors)
    q = features.soap.values(nb)
    along = [_slope(features, nb, q, directions[:, :, k]) for k in range(directions.shape[2])]  # k of [atom, D]
    basis = features.basis
    energy = q.new_zeros(nb.n_structures, basis.size)
    forces = q.new_zeros(nb.n_structures, len(along), basis.size)
    for index, columns in basis.blocks():
        centres = torch.nonzero(nb.numbers == basis.species[index]).squeeze(1)
        of = nb.structure[centres]
        dot = q[centres] @ basis.points[index].T  # [centre, M_s]
        slope = kernel_slope(dot, basis.zeta)
        raw = [dot**basis.zeta, *(-slope * (t[centres] @ basis.points[index].T) for t in along)]
        summed = [x.new_zeros(nb.n_structures, x.shape[1]).index_add_(0, of, x) for x in raw]
        white = [whiten(basis, index, x) for x in summed]
        energy[:, columns] = white[0]
        forces[:, :, columns] = torch.stack(white[1:], dim=1)
    prior = _priors(basis, nb, q, along) if with_prior else None
    return DirectionalRows(energy, forces, prior)


def batched_rows(
    features: Features, structures: Sequence[Atoms], k: int, rng: np.random.Generator
) -> Iterator[tuple[range, Tensor, DirectionalRows]]:
    """Rows of many structures along k random directions each, a batch at a time: places, directions [atom, 3, k], rows."""

    def drawn() -> Iterator[tuple[range, Tensor]]:
        for places in batches(structures, BATCH_ATOMS):
            n_atoms = sum(len(structures[i]) for i in places)
            yield places, torch.from_numpy(rng.standard_normal((n_atoms, 3, k)))

    def expanded(of_batch: tuple[range, Tensor]) -> tuple[range, Tensor, DirectionalRows]:
        places, v = of_batch
        return places, v, directional_rows(features, [structures[i] for i in places], v)

    yield from ordered_map(expanded, drawn(), features.device)


def _slope(features: Features, nb: Neighborhoods, q: Tensor, v: Tensor) -> Tensor:
    """dq/d eps of every environment, of values q, when the atoms move along v [atom, 3]: [atom, D]."""
    moved = EPS * (v[nb.neighbor] - v[nb.centre])  # [pair, 3] Å
    return (features.soap.values(replace(nb, vectors=nb.vectors + moved)) - q) / EPS


def _priors(basis: InducingBasis, nb: Neighborhoods, q: Tensor, along: list[Tensor]) -> Tensor:
    """Var[ sum_i f(q_i) ], then Var[ sum_i t_i . df/dq_i ] with t = dq along each direction, [structure, 1+k, S]."""
    out = q.new_zeros(nb.n_structures, 1 + len(along), len(basis.species))
    for s in range(nb.n_structures):
        for index, z in enumerate(basis.species):
            centres = torch.nonzero((nb.structure == s) & (nb.numbers == z)).squeeze(1)
            own = q[centres]
            dot = own @ own.T
            out[s, 0, index] = (dot**basis.zeta).sum()
            for k, slopes in enumerate(along):
                t = slopes[centres]
                cross = t @ own.T  # t_i . q_j
                terms = kernel_slope(dot, basis.zeta) * (t @ t.T) + kernel_curvature(dot, basis.zeta) * cross * cross.T
                out[s, 1 + k, index] = terms.sum()
    return out
