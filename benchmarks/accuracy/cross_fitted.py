"""Networks fine-tuned on the magnetic frames, each without one fold of them, and the Gaussian process on top.

A network is no baseline for the frames that it was trained on: what it leaves there is too small. So, as in cross-fitting
(Chernozhukov et al., Econometrics Journal 21, C1 (2018)), the column of a training frame comes from the network that has not
seen it, and that of any other structure is the mean over all:

    B(S) = B_k(S) for S in fold k,        B(S) = 1/K sum_k B_k(S) for S in none

The mean is the nearer one, so what is left out errs on the side of too large. It is a method too: the committee that the
same training gives without a Gaussian process. K networks on (K - 1) / K of the frames each cost K - 1 times a fine-tuning.

For one fine-tuning more, the column of a structure in none is the network trained on all frames, as in stacking (Wolpert,
Neural Networks 5, 241 (1992)): nearer again, so the same holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from networks import Kind, Network, Predictions
from task import Predicted, Task

from mfgp.baselines.columns import Baseline
from mfgp.data.single_point import structure_hash
from mfgp.frames import Frame


@dataclass(frozen=True)
class Member:
    """A network that has not seen its fold (structure hashes)."""

    network: Network
    fold: frozenset[str]


class CrossFitted(Calculator):
    """B of the module docstring: energy and forces. for_new: the networks whose mean is B(S) for S in no fold."""

    implemented_properties = ("energy", "forces")

    def __init__(self, members: Sequence[Member], for_new: Sequence[Network]) -> None:
        super().__init__()
        self.members, self.for_new = members, for_new

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """See ASE."""
        super().calculate(atoms, properties, system_changes)
        key = structure_hash(self.atoms)
        unseen = [m.network for m in self.members if key in m.fold] or self.for_new
        energies, forces, _ = mean_of(unseen, [self.atoms])
        self.results = {"energy": float(energies[0]), "forces": forces[0]}


def mean_of(networks: Sequence[Network], structures: Sequence[Atoms]) -> Predictions:
    """Means over the networks."""
    energies, forces, magmoms = zip(*(network.predict(structures) for network in networks), strict=True)
    moments = None if magmoms[0] is None else _means(magmoms)
    return np.mean(energies, axis=0), _means(forces), moments


def _means(of_networks: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """[network][structure] -> [structure]."""
    return [np.mean(of_structure, axis=0) for of_structure in zip(*of_networks, strict=True)]


def train_members(kind: Kind, folds: int, frames: Sequence[Frame], order: int) -> tuple[list[Member], float]:
    """The networks, and the CPU seconds that they took. order: seed of the folds."""
    drawn, members, seconds = np.random.default_rng(order).permutation(len(frames)), [], 0.0
    for k in range(folds):
        left = {int(i) for i in drawn[k::folds]}
        network, taken = kind.trained([f for i, f in enumerate(frames) if i not in left], seed=k)
        members.append(Member(network, frozenset(structure_hash(frames[i].atoms) for i in left)))
        seconds += taken
    return members, seconds


class FoldNetworks:
    """The networks of a kind for a task, trained once for the methods that use them."""

    def __init__(self, kind: Kind, folds: int) -> None:
        self.kind, self.folds = kind, folds
        self._trained: dict[tuple[int, int], tuple[list[Member], float]] = {}

    def members(self, task: Task) -> tuple[list[Member], float]:
        """See `train_members`."""
        key = (task.n, task.order)
        if key not in self._trained:
            self._trained[key] = train_members(self.kind, self.folds, task.training.of(task.top), task.order)
        return self._trained[key]

    def committee(self, task: Task) -> Predicted:
        """The mean of the networks, without a Gaussian process."""
        members, seconds = self.members(task)
        found = mean_of([m.network for m in members], [f.atoms for f in task.held_out])
        return Predicted(*found, seconds, note={"folds": self.folds, **asdict(self.kind.training)})

    def baseline(self, task: Task) -> tuple[Baseline, float]:
        """The same as a column below the Gaussian process, and what its training took."""
        members, seconds = self.members(task)
        return Baseline(self.kind.name, CrossFitted(members, [m.network for m in members])), seconds

    def stacked(self, task: Task) -> tuple[Baseline, float]:
        """The same with the network trained on all frames for new structures."""
        members, seconds = self.members(task)
        of_all, more = self.kind.trained(task.training.of(task.top), task.order)
        return Baseline(self.kind.name, CrossFitted(members, [of_all])), seconds + more
