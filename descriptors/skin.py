"""Pairs that are searched once and serve many steps of a structure's dynamics.

All pairs within r_cut + skin of the positions r0 at the search hold every pair within r_cut as long as no atom has moved by
more than skin / 2: of two atoms that were farther apart than r_cut + skin, neither pair of moves makes up the skin (Verlet,
Phys. Rev. 159, 98 (1967)). Between searches the vectors are r_j - r_i + shift, in slots that are laid out once; pairs beyond
r_cut have weight 0 (density.py, streamed.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from descriptors.compiled import compiled
from descriptors.density import Slots, lay_out
from descriptors.neighbors import neighborhoods
from descriptors.soap import SOAP, environments


@dataclass(frozen=True)
class SlotPairs:
    """The pairs of one structure in slots. An empty slot is a pair of atom 0 with itself, of vector 0."""

    numbers: Tensor  # [atom] atomic numbers
    species: Tensor  # [atom] index into the descriptor's species
    centre: Tensor  # [slot] atom
    neighbor: Tensor  # [slot] atom
    slots: Slots  # with their vectors; of_pair is the identity
    members: tuple[Tensor, ...]  # [species of the descriptor] of [atom of it] ascending

    def vectors(self, positions: Tensor, shifts: Tensor) -> Tensor:
        """r_j - r_i + shift, [slot, xyz] Å, from positions [atom, xyz] and shifts [slot, xyz]."""
        if positions.device.type == "cpu":
            out = torch.empty_like(shifts)
            _between(positions.numpy(), self.centre.numpy(), self.neighbor.numpy(), shifts.numpy(), out.numpy())
            return out
        return positions.index_select(0, self.neighbor).sub_(positions.index_select(0, self.centre)).add_(shifts)

    def forces(self, slopes: Tensor) -> Tensor:
        """F_a = sum dE/dr of the pairs with a as centre, less those with a as neighbour, [atom, xyz], from [slot, xyz]."""
        out = slopes.new_zeros(len(self.numbers), 3)
        if slopes.device.type == "cpu":
            _scatter(slopes.numpy(), self.centre.numpy(), self.neighbor.numpy(), out.numpy())
            return out
        return out.index_add_(0, self.centre, slopes).index_add_(0, self.neighbor, slopes, alpha=-1)


@compiled
def _between(positions, centre, neighbor, shifts, out):  # type: ignore[no-untyped-def]
    for slot in range(len(out)):
        for axis in range(3):
            out[slot, axis] = positions[neighbor[slot], axis] - positions[centre[slot], axis] + shifts[slot, axis]


@compiled
def _scatter(slopes, centre, neighbor, out):  # type: ignore[no-untyped-def]
    for slot in range(len(slopes)):
        for axis in range(3):
            out[centre[slot], axis] += slopes[slot, axis]
            out[neighbor[slot], axis] -= slopes[slot, axis]


@dataclass(frozen=True)
class _Search:
    """What a search found, and the structure it was made for."""

    atoms: Atoms
    pairs: SlotPairs
    shifts: Tensor  # [slot, xyz] Å, by which cells the neighbour is away


class SkinPairs:
    """Pairs within a descriptor's cutoff for one structure after another; see the module.

    skin: Å. A search is made for other elements, another cell or other periodic directions, and when an atom has moved by
    more than skin / 2; before it `check` is called with the structure. `searches` counts them.
    """

    def __init__(
        self,
        soap: SOAP,
        skin: float = 0.0,
        check: Callable[[Atoms], None] = lambda atoms: None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not (np.isfinite(skin) and skin >= 0):
            raise ValueError(f"skin = {skin} Å: give a length of zero or more")
        self.soap, self.skin, self.check, self.device = soap, float(skin), check, device
        self.searches = 0
        self._last: _Search | None = None

    def __call__(self, atoms: Atoms) -> SlotPairs:
        """The pairs of `atoms`. Raises ValueError as `neighborhoods` does."""
        last = self._last
        if last is None or not self._serves(last, atoms):
            last = self._last = self._search(atoms)
            return last.pairs
        positions = torch.from_numpy(atoms.positions.astype(np.float64, copy=False)).to(self.device)
        old = last.pairs
        vectors = old.vectors(positions, last.shifts)
        return replace(old, slots=replace(old.slots, vectors=vectors))

    def _serves(self, last: _Search, atoms: Atoms) -> bool:
        """Whether the last search holds all pairs of `atoms` within the cutoff."""
        if len(atoms) != len(last.atoms) or not np.array_equal(atoms.numbers, last.atoms.numbers):
            return False
        if not (np.array_equal(atoms.pbc, last.atoms.pbc) and np.array_equal(atoms.cell.array, last.atoms.cell.array)):
            return False
        moved = atoms.positions - last.atoms.positions
        return bool(np.einsum("ax,ax->a", moved, moved).max(initial=0.0) <= 0.25 * self.skin**2)

    def _search(self, atoms: Atoms) -> _Search:
        self.check(atoms)
        self.searches += 1
        nb = neighborhoods([atoms], self.soap.neighbor_cutoff + self.skin, device=self.device)
        env = environments(self.soap, nb)
        slots = lay_out(env, len(self.soap.species))
        positions = torch.from_numpy(atoms.positions.astype(np.float64)).to(self.device)
        between = positions.index_select(0, nb.neighbor) - positions.index_select(0, nb.centre)
        shifts = torch.zeros_like(slots.vectors).index_copy_(0, slots.of_pair, nb.vectors - between)
        n_slots = len(slots.vectors)
        centre, neighbor = (
            nb.centre.new_zeros(n_slots).index_copy_(0, slots.of_pair, of_pair) for of_pair in (nb.centre, nb.neighbor)
        )
        identity = torch.arange(n_slots, device=self.device)
        kept = replace(slots, of_pair=identity)
        members = tuple(torch.nonzero(env.species == s).squeeze(1) for s in range(len(self.soap.species)))
        pairs = SlotPairs(nb.numbers, env.species, centre, neighbor, kept, members)
        return _Search(atoms.copy(), pairs, shifts)
