"""Rows and prior variances of all functionals of one structure, in a memory that grows no faster than its atoms.

Rows come as in a fit (rows.py), but for the virial's, which dq/d(strain) of all centres gives. Prior variances need the
Jacobian: of all centres, where it fits into BYTES; in a larger structure those of energy and virial come from dq/d(strain),
and the forces' from Jacobians of a few atoms at a time, neighbours together: what sees them is most of what a part needs.
Where virials are not wanted dq/d(strain) is not made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from descriptors import SOAP, Neighborhoods, jacobian, jacobian_of_atoms, strain_jacobian
from descriptors.soap import blocks_within, jacobian_bytes
from mfgp.base.progress import Report, silent
from mfgp.gp.inducing import InducingBasis
from mfgp.gp.kernels import collective_variances, force_variances, functional_variances
from mfgp.gp.observations import local_features, virial_rows, whiten_all
from mfgp.gp.rows import InducingForms, raw_rows

BYTES = 1e9  # of Jacobians held at a time
HALO = 4.0  # a part, with the centres that see its atoms, needs about so many times what its atoms alone would


@dataclass(frozen=True)
class Functionals:
    """What every prediction for a structure starts from, whatever the level and the hyperparameters."""

    phi: Tensor  # [1+3N+6, M] whitened rows of energy, forces, virial; NaN where virials are not wanted
    prior: Tensor  # [1+3N+6, S] their prior variances at unit amplitude, by central species; NaN as phi
    local: Tensor  # [N, M] whitened features of each environment


def functionals(
    basis: InducingBasis,
    forms: InducingForms,
    soap: SOAP,
    atoms: Atoms,
    device: torch.device,
    report: Report = silent,
    virial: bool = True,
) -> Functionals:
    """Those of one structure; `report` is told of structures that are taken in parts."""
    nb = soap.neighborhoods([atoms], device=device)
    if float(jacobian_bytes(soap, nb).sum()) > BYTES:
        return _in_parts(basis, forms, soap, nb, list(_parts(soap, atoms, nb, BYTES / HALO)), report, virial)
    jac = jacobian(soap, nb, strain=virial)
    return Functionals(
        phi=_rows(basis, forms, soap, nb, jac.features, jac.d_strain),
        prior=functional_variances(jac, nb.numbers, basis.species, basis.zeta),
        local=local_features(basis, jac.features, nb.numbers),
    )


def _in_parts(
    basis: InducingBasis,
    forms: InducingForms,
    soap: SOAP,
    nb: Neighborhoods,
    parts: Sequence[Tensor],
    report: Report,
    virial: bool,
) -> Functionals:
    n, done = len(nb.numbers), 0
    report("atoms of a structure", done, n, "")
    q, strain = _by_strain(soap, nb) if virial else (soap.values(nb), nb.vectors.new_empty(0, 6, soap.n_features))
    phi = _rows(basis, forms, soap, nb, q, strain)
    whole = collective_variances(q, strain, nb.numbers, basis.species, basis.zeta)
    del strain
    forces = phi.new_zeros(3 * n, len(basis.species))
    for atoms in parts:
        forces += force_variances(jacobian_of_atoms(soap, nb, atoms), nb.numbers, basis.species, basis.zeta)
        done += len(atoms)
        report("atoms of a structure", done, n, "")
    return Functionals(phi, torch.cat([whole[:1], forces, whole[1:]]), local_features(basis, q, nb.numbers))


def _by_strain(soap: SOAP, nb: Neighborhoods) -> tuple[Tensor, Tensor]:
    """Features [N, D] and dq/d(strain) [N, 6, D] of all centres, in blocks."""
    q = nb.vectors.new_empty(len(nb.numbers), soap.n_features)
    strain = q.new_empty(len(nb.numbers), 6, soap.n_features)
    for centres in soap.centre_blocks(nb, BYTES):
        q[centres], strain[centres] = strain_jacobian(soap, nb, centres)
    return q, strain


def _rows(
    basis: InducingBasis, forms: InducingForms, soap: SOAP, nb: Neighborhoods, features: Tensor, d_strain: Tensor
) -> Tensor:
    """Phi of one structure, [1+3N+6, M]; features [N, D] and d_strain [N, 6, D], or [0, 6, D], of all of its centres."""
    raw = raw_rows(basis, forms, soap, nb, virial=False).of_structure(0, 0, len(nb.numbers))
    if len(d_strain):
        raw[-6:] = virial_rows(basis, features, d_strain, nb.numbers)
    return whiten_all(basis, raw)


def _parts(soap: SOAP, atoms: Atoms, nb: Neighborhoods, max_bytes: float) -> Iterator[Tensor]:
    """Atoms that need at most max_bytes, box after box of the size of the cutoff: those of a part are near each other."""
    boxes = np.floor(atoms.get_positions(wrap=True) / soap.config.r_cut)
    order = torch.from_numpy(np.lexsort(boxes.T)).to(nb.numbers.device)
    for places in blocks_within(jacobian_bytes(soap, nb)[order], max_bytes):
        yield order[places].sort().values
