"""CHGNets fine-tuned on the magnetic frames, each without one fold of them, and the Gaussian process on top.

A network is no baseline for the frames that it was trained on: what it leaves there is too small. So, as in cross-fitting
(Chernozhukov et al., Econometrics Journal 21, C1 (2018)), the column of a training frame comes from the network that has not
seen it, and that of any other structure is the mean over all:

    B(S) = B_k(S) for S in fold k,        B(S) = 1/K sum_k B_k(S) for S in none

The mean by itself is a method too: the committee that the same training gives without a Gaussian process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import chgnet_rivals as chgnet
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from chgnet_rivals import Training
from ours import FINE_TUNED
from task import Predicted, Task

from mfgp.baselines import Baseline
from mfgp.single_point import structure_hash

FOLDS = 4
TRAINING = Training(epochs=50, learning_rate=1e-3)


@dataclass(frozen=True)
class Member:
    """A network that has not seen its fold, and the references (eV) that its energies lack."""

    model: Any
    shift: dict[int, float]
    fold: frozenset[str]  # structure hashes

    def predict(self, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Energies (eV a cell), forces (eV/Å), moments (Bohr magnetons)."""
        energies, forces, magmoms = chgnet.predict(self.model, structures)
        return energies + [chgnet.shift_of(a, self.shift) for a in structures], forces, magmoms


class CrossFitted(Calculator):
    """B of the module docstring: energy and forces."""

    implemented_properties = ("energy", "forces")

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.members = members

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """See ASE."""
        super().calculate(atoms, properties, system_changes)
        key = structure_hash(self.atoms)
        used = [m for m in self.members if key in m.fold] or self.members
        found = [m.predict([self.atoms]) for m in used]
        self.results = {
            "energy": float(np.mean([energies[0] for energies, _, _ in found])),
            "forces": np.mean([forces[0] for _, forces, _ in found], axis=0),
        }


class FoldNetworks:
    """The networks of a task, trained once for the methods that use them."""

    def __init__(self) -> None:
        self._trained: dict[tuple[int, int], tuple[list[Member], float]] = {}

    def members(self, task: Task) -> tuple[list[Member], float]:
        """The networks, and the CPU seconds that they took."""
        key = (task.n, task.order)
        if key not in self._trained:
            start, top = time.process_time(), task.training.of(task.top)
            order = np.random.default_rng(task.order).permutation(len(top))
            members = []
            for k in range(FOLDS):
                left = {int(i) for i in order[k::FOLDS]}
                model = chgnet.load()
                data, shift = chgnet.labelled(model, [f for i, f in enumerate(top) if i not in left])
                chgnet.fine_tune(model, data, TRAINING, k)
                members.append(Member(model, shift, frozenset(structure_hash(top[i].atoms) for i in left)))
            self._trained[key] = members, time.process_time() - start
        return self._trained[key]

    def committee(self, task: Task) -> Predicted:
        """The mean of the networks, without a Gaussian process."""
        members, seconds = self.members(task)
        found = [m.predict([f.atoms for f in task.held_out]) for m in members]
        energies = np.mean([e for e, _, _ in found], axis=0)
        forces = [np.mean(of_frame, axis=0) for of_frame in zip(*(f for _, f, _ in found), strict=True)]
        magmoms = [np.mean(of_frame, axis=0) for of_frame in zip(*(m for _, _, m in found), strict=True)]
        return Predicted(energies, forces, magmoms, seconds, note={"folds": FOLDS, **asdict(TRAINING)})

    def baseline(self, task: Task) -> tuple[Baseline, float]:
        """The same as a column below the Gaussian process, and what its training took."""
        members, seconds = self.members(task)
        return Baseline(FINE_TUNED, CrossFitted(members)), seconds
