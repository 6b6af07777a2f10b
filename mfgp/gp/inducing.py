"""Inducing environments Z: greedy pivoted Cholesky of the environment kernel.

Each step takes the environment with the largest conditional variance given those already taken,

    d_i = k(x_i, x_i) - sum_m A_im^2,      A_im = (k(x_i, z_m) - sum_{l<m} A_il A_ml) / sqrt(d_m),

which is the pivoted (partial) Cholesky factorisation of the kernel matrix (Harbrecht et al., Appl. Numer. Math. 62, 428
(2012)). The kernel is block diagonal in species, so the greedy choice runs over all species at once while every
factorisation stays inside its species. The order of selection is kept: a prefix of it is the inducing set that a smaller
M would have given, and, since the whitening is triangular, its whitened rows are a subset of the columns of the larger one.

Conditional variances only fall. So pivots are chosen among the BLOCK candidates of largest variance, whose kernel matrix is
small, as long as the best of them beats what any other candidate had when the block began; then all candidates are
updated by the block's pivots in matrix products. The choice is that of one pivot at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfgp.errors import NumericalError
from mfgp.gp.kernels import kernel

# conditional variance (k(x, x) = 1) under which an environment adds nothing that float64 can hold
RESIDUAL_FLOOR = 1e-12
BLOCK = 192  # candidates that pivots are chosen from before all are updated
JITTERS = (0.0, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)


@dataclass(frozen=True)
class InducingBasis:
    """Inducing points by species, with the factors L of K_MM = L L^T that whiten the features phi = L^-1 k(Z, x).

    The M features are ordered by species (in the order of `species`), and within one by selection.
    """

    species: tuple[int, ...]  # atomic numbers
    points: tuple[Tensor, ...]  # [M_s, D] of each species
    factors: tuple[Tensor, ...]  # [M_s, M_s] lower triangular
    rank: Tensor  # [M] place of each feature in the order of selection
    zeta: int
    jitter: float  # the largest added to a diagonal of K_MM

    @property
    def size(self) -> int:
        """M, the number of inducing points."""
        return len(self.rank)

    def blocks(self) -> list[tuple[int, slice]]:
        """(index of the species, its columns among the M features)."""
        out, start = [], 0
        for index, points in enumerate(self.points):
            out.append((index, slice(start, start + len(points))))
            start += len(points)
        return out

    def species_index(self) -> Tensor:
        """[M] index into `species` of each feature."""
        counts = torch.tensor([len(p) for p in self.points], device=self.rank.device)
        return torch.repeat_interleave(torch.arange(len(self.points), device=self.rank.device), counts)


def build_basis(species: tuple[int, ...], points: tuple[Tensor, ...], rank: Tensor, zeta: int) -> InducingBasis:
    """Factorise K_MM of given inducing points (float64)."""
    factors, jitter = [], 0.0
    for z, block in zip(species, points, strict=True):
        factor, added = cholesky(kernel(block, block, zeta), f"K_MM of element {z}")
        factors.append(factor)
        jitter = max(jitter, added)
    return InducingBasis(species, points, tuple(factors), rank, zeta, jitter)


def cholesky(matrix: Tensor, name: str) -> tuple[Tensor, float]:
    """Lower factor of a positive semi-definite matrix with a mean diagonal of about 1, and the jitter that it took.

    Raises NumericalError when the largest jitter of the ladder is not enough.
    """
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for jitter in JITTERS:
        factor, info = torch.linalg.cholesky_ex(matrix + jitter * eye)
        if int(info) == 0:
            return factor, jitter
    raise NumericalError(
        f"{name} ({len(matrix)} x {len(matrix)}) is not positive definite even with {JITTERS[-1]:g} on its diagonal; "
        "use fewer inducing points or a larger zeta."
    )


def select_inducing(
    features: Tensor,
    numbers: Tensor,
    n_inducing: int,
    zeta: int,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> InducingBasis:
    """Choose up to `n_inducing` environments and build their basis.

    features [candidate, D] float64 normalised descriptors, numbers [candidate] atomic numbers. Fewer than asked for are
    returned where the candidates, or their distinct ones (conditional variance above 1e-12), run out; at least one is
    taken of every species. Ties (the first choice always is one) are broken by `seed`. `on_step` is called with the
    number selected so far.
    """
    species = tuple(sorted(set(numbers.tolist())))
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).to(numbers.device)
    pools = [_Pool(features[order[numbers[order] == z]], zeta, n_inducing) for z in species]
    picked: list[int] = []  # index of the species of each selected point
    while len(picked) < n_inducing:
        unseen = [i for i, pool in enumerate(pools) if not pool.chosen]
        best = unseen[0] if unseen else max(range(len(pools)), key=lambda i: pools[i].largest)
        if pools[best].largest < RESIDUAL_FLOOR:
            break
        pools[best].take()
        picked.append(best)
        if on_step is not None:
            on_step(len(picked))
    of = torch.tensor(picked)
    rank = torch.cat([torch.nonzero(of == i).squeeze(1) for i in range(len(species))]).to(numbers.device)
    kept = [i for i, pool in enumerate(pools) if pool.chosen]
    points = tuple(pools[i].features[torch.tensor(pools[i].chosen, device=numbers.device)] for i in kept)
    return build_basis(tuple(species[i] for i in kept), points, rank, zeta)


class _Pool:
    """The candidates of one species and their partial factor A, extended by a block of pivots at a time."""

    def __init__(self, features: Tensor, zeta: int, limit: int) -> None:
        self.features, self.zeta = features, zeta
        self.residual = features.new_ones(len(features))  # conditional variances d_i given the pivots of past blocks
        self.factor = features.new_empty(min(limit, len(features)), len(features))  # A^T [selected, candidate]
        self.chosen: list[int] = []
        self.largest, self.place = 1.0, 0
        self._start(torch.zeros(1, dtype=torch.long, device=features.device), 1.0)  # all are alike: the first it is

    def take(self) -> None:
        """Take the candidate of largest conditional variance and update the others'."""
        column = self.schur[self.place] - self.columns[: self.done, self.place] @ self.columns[: self.done]
        column /= self.inside[self.place].sqrt()
        self.columns[self.done] = column
        self.pivots.append(self.place)
        self.chosen.append(int(self.block[self.place]))
        self.inside -= column**2
        self.inside[self.place] = 0.0
        self._find()
        if self.largest < self.outside or self.done == len(self.block):
            self._finish()
            value, index = self.residual.topk(min(BLOCK + 1, len(self.residual)))
            self._start(index[:BLOCK].sort().values, float(value[BLOCK]) if len(value) > BLOCK else 0.0)
            self._find()

    @property
    def done(self) -> int:
        """Pivots of this block."""
        return len(self.pivots)

    def _find(self) -> None:
        value, index = self.inside.max(0)
        self.largest, self.place = float(value), int(index)

    def _start(self, block: Tensor, outside: float) -> None:
        """A block of candidates, ascending; `outside` bounds the conditional variances of all others."""
        m = len(self.chosen)
        self.block, self.outside, self.pivots = block, outside, list[int]()
        self.inside = self.residual[block]
        self.columns = self.features.new_empty(len(block), len(block))  # A^T of the block [pivot, candidate]
        known = self.factor[:m, block]
        self.schur = kernel(self.features[block], self.features[block], self.zeta).addmm_(known.T, known, alpha=-1)

    def _finish(self) -> None:
        """Extend A by the pivots of the block, for all candidates."""
        stop = len(self.chosen)
        if stop == len(self.factor):  # nothing left to choose from, or enough
            self.residual.zero_()
            return
        new = torch.tensor(self.chosen[stop - self.done :], device=self.features.device)
        triangle = self.columns[: self.done, self.pivots].T  # [pivot, pivot] lower triangular but for rounding
        past = self.factor[: stop - self.done]
        rows = kernel(self.features[new], self.features, self.zeta).addmm_(past[:, new].T, past, alpha=-1)
        rows = torch.linalg.solve_triangular(triangle, rows, upper=False)
        self.factor[stop - self.done : stop] = rows
        self.residual -= (rows**2).sum(0)
        self.residual[self.chosen] = 0.0
