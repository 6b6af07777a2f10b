"""Steps from one structure to a like one: what energies differ by, without differences of large numbers.

Of structures that hardly differ the energies' covariance K is nearly singular, and c^T K c of a difference is rounding: of
32 atoms 2e-6 to 5e-5 eV where the standard deviation should be 1e-8. So K is made of steps. Each structure i follows a like
one, r(i), or none; with d_i = E_i - E_r(i), or E_i,

    E_i = sum of d_j over i and all that it follows = (U d)_i,        K = U D U^T,        c^T K c = (U^T c)^T D (U^T c)

and like energies cancel in U^T c. With q_k and q_0k the descriptors of an atom in i and in r(i) (0 without one) and
e_k = q_k - q_0k, a step's kernel with x is a sum over its atoms of

    (q_k . x)^zeta - (q_0k . x)^zeta = (e_k . x) sum_{m < zeta} (q_k . x)^m (q_0k . x)^(zeta-1-m)

whose rounding is relative to the step. Phi_i of a step is L^-1 times this sum with x = Z. The prior covariance of the steps
of i and j is the sum of that of j over the atoms x of i, less the same over those of r(i), for i before j or j itself.

Steps are short by the features of the energy, |Phi_i - Phi_r(i)| < SHORT |Phi_i|, and come from a structure before i of the
same atoms in the same order. Longer ones lose too little as differences of large numbers to be worth a second product for
each pair of atoms. i follows the nearest; where that follows another which is nearly as near, that one, and so on. So steps
become shorter by a factor along a path: paths are short, and rounding does not add up along them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from ase import Atoms
from torch import Tensor

from mfgp.gp.kernels import power
from mfgp.predict.batched import BATCH_ATOMS, batches
from mfgp.predict.predictor import Predictor

SHORT = 1e-3  # squares of longer steps lose 6 of 16 digits at most
NEARLY = 10.0  # a distance less than so many times another is nearly as near
NONE = -1  # r(i) of a structure that follows none


def followed(structures: Sequence[Atoms], phi: Tensor) -> list[int]:
    """r(i) of each structure, NONE where it follows none; phi [n, M] of the energies."""
    same: dict[bytes, list[int]] = defaultdict(list)
    out: list[int] = []
    for i, atoms in enumerate(structures):
        before, limit = same[atoms.numbers.tobytes()], SHORT * float(phi[i].norm())
        distances = zip(before, (phi[before] - phi[i]).norm(dim=1).tolist(), strict=True)
        near = {j: distance for j, distance in distances if distance < limit}
        found = min(near, key=near.__getitem__, default=NONE)
        while found != NONE and near.get(out[found], math.inf) < NEARLY * near[found]:
            found = out[found]
        out.append(found)
        before.append(i)
    return out


def paths(follows: Sequence[int], like: Tensor) -> Tensor:
    """U [n, n]."""
    out = torch.eye(len(follows)).to(like)
    for i, j in enumerate(follows):
        if j != NONE:
            out[i] += out[j]
    return out


def steps(values: Tensor, follows: Sequence[int]) -> Tensor:
    """Rows of structures [n, column] as those of their steps."""
    of = torch.tensor(follows, device=values.device)
    return values - torch.where((of == NONE)[:, None], 0.0, values[of.clamp(min=0)])


@dataclass(frozen=True)
class Environments:
    """Of a block of n structures, by species of the basis."""

    n: int
    q: tuple[Tensor, ...]  # [atom, D] of each species
    structure: tuple[Tensor, ...]  # [atom] in the block, of the same

    @staticmethod
    def of(predictor: Predictor, structures: Sequence[Atoms]) -> Environments:
        """Descriptors of a block, expanded a batch at a time."""
        model, device = predictor.model, predictor.weights.device
        found = []
        for places in batches(structures, BATCH_ATOMS):
            nb = model.soap.neighborhoods([structures[i] for i in places], device=device)
            found.append((model.soap.values(nb), nb.numbers, nb.structure + places.start))
        q, numbers, structure = (torch.cat(parts) for parts in zip(*found, strict=True))
        members = [torch.nonzero(numbers == z).squeeze(1) for z in model.basis.species]
        return Environments(len(structures), tuple(q[m] for m in members), tuple(structure[m] for m in members))


@dataclass(frozen=True)
class Steps:
    """The steps of a block of structures: from the atoms of those that they follow, by species of the basis."""

    to: Environments
    start: tuple[Tensor, ...]  # [atom, D] q_0 of the atoms that have one
    moved: tuple[Tensor, ...]  # [atom] of `to`, whether it has

    @staticmethod
    def of(predictor: Predictor, structures: Sequence[Atoms], block: slice, follows: Sequence[int]) -> Steps:
        """Those of the structures of a block, which may follow some outside of it."""
        to = Environments.of(predictor, structures[block])
        earlier = [structures[j] for j in follows[block] if j != NONE]
        start = Environments.of(predictor, earlier).q if earlier else tuple(q[:0] for q in to.q)
        steps = torch.tensor([j != NONE for j in follows[block]], device=predictor.weights.device)
        return Steps(to, start, tuple(steps[structure] for structure in to.structure))

    def kernel(self, x: Tensor, index: int, zeta: int) -> Tensor:
        """Of each step with environments x [m, D] of one species, [n, m] at unit amplitude."""
        q, start, moved, structure = (parts[index] for parts in (self.to.q, self.start, self.moved, self.to.structure))
        out = x.new_zeros(self.to.n, len(x))
        out.index_add_(0, structure[~moved], power(q[~moved] @ x.T, zeta))
        if len(start):
            out.index_add_(0, structure[moved], power_step(start @ x.T, (q[moved] - start) @ x.T, zeta)[1])
        return out

    def prior(self, other: Environments, index: int, zeta: int) -> Tensor:
        """The same with the sum over each of other structures, [n, other.n]."""
        k = self.kernel(other.q[index], index, zeta)
        return k.new_zeros(len(k), other.n).index_add_(1, other.structure[index], k)


def power_step(x: Tensor, step: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """x^n and (x + step)^n - x^n for an integer n > 0, the rounding of the latter relative to step."""
    if n == 1:
        return x, step
    half, change = power_step(x, step, n // 2)
    whole, change = half * half, torch.add(change, half, alpha=2).mul_(change)
    if n % 2:
        change = change * (x + step) + whole * step
        whole = whole * x
    return whole, change
