"""Whether the inducing points of a fit carry structures that are learned later.

An update keeps the inducing points and takes its labels as if these carried them, with no more than the noise of labels. Let

    v_sz = mean over the force components on the atoms of element z of S_t (prior - |Phi|^2)       (predict/residual.py)

in a structure s, and m_z its mean over the structures that were left out when these inducing points were first calibrated.
The n structures of an update that hold z are not carried where

    [USUAL + sum_s (v_sz / m_z)^(1/2)] / (USUAL + n) > BEYOND        and        r_z sum_s v_sz / n > b_z noise^2,

r and b the factors of the calibration: what is left open has, in the mean, more than BEYOND times its usual standard
deviation, and is more than the noise that the labels are learned with. USUAL structures that have the usual one are counted
in: of small sets of data one new structure of a hundred is 15 times as far off in variance by chance, of strongly rattled
cells 60. Forces, since what is left of the energies of training data can be nothing at all: where all of their environments
are inducing points, those of others like them have 10^9 times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mfgp.calibration.leave_one_out import LeftOut

BEYOND = 3.0  # times the usual standard deviation
USUAL = 2  # structures


@dataclass(frozen=True)
class Left:
    """v_sz of one new structure by atomic number, (eV/Å)^2, and where it comes from."""

    of_element: Mapping[int, float]
    source: str

    @staticmethod
    def of(variances: NDArray[np.float64], numbers: NDArray[np.int64], source: str) -> Left:
        """From S_t (prior - |Phi|^2) of the forces on all atoms [3N]; numbers [N]."""
        each = variances.reshape(-1, 3)
        return Left({int(z): float(each[numbers == z].mean()) for z in np.unique(numbers)}, source)


@dataclass(frozen=True)
class Carried:
    """m_z of a level by atomic number, (eV/Å)^2; how many structures that the inducing points do not carry updates have
    brought, as far as they were looked at, for which elements, and where the worst of the first such update comes from.
    """

    level: str
    usual: Mapping[int, float]
    beyond: int = 0
    elements: tuple[int, ...] = ()
    worst: str = ""

    def plus(self, update: Sequence[Left], least: Mapping[int, float]) -> Carried:
        """With the structures of an update; least: b_z noise^2 / r_z by atomic number, (eV/Å)^2."""
        missed = []
        for z, usual in self.usual.items():
            found = np.array([left.of_element[z] for left in update if z in left.of_element])
            mean = (USUAL + np.sqrt(found / usual).sum()) / (USUAL + len(found))
            if mean > BEYOND and found.mean() > least[z]:
                missed.append(z)
        if not missed:
            return self
        largest = [max(s.of_element.get(z, 0.0) / self.usual[z] for z in missed) for s in update]
        return replace(
            self,
            beyond=self.beyond + sum(x > BEYOND**2 for x in largest),
            elements=tuple(sorted({*self.elements, *missed})),
            worst=self.worst or update[int(np.argmax(largest))].source,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, elements by symbol."""
        usual = {chemical_symbols[z]: v for z, v in self.usual.items()}
        return {**asdict(self), "usual": usual, "elements": [chemical_symbols[z] for z in self.elements]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Carried:
        """What `to_json` gave."""
        usual = {atomic_numbers[z]: v for z, v in data["usual"].items()}
        return Carried(**{**data, "usual": usual, "elements": tuple(atomic_numbers[z] for z in data["elements"])})


def usually_carried(left_out: Sequence[LeftOut], levels: Sequence[str]) -> tuple[Carried, ...]:
    """m_z of each level, from its left-out forces."""
    out = []
    for level in levels:
        forces = [p for p in left_out if p.frame.fidelity == level and p.kind == "forces"]
        species = np.concatenate([p.species for p in forces] or [np.zeros(0, dtype=np.int64)])
        residual = np.concatenate([p.residual_variance for p in forces] or [np.zeros(0)])
        mean = {int(z): float(residual[species == z].mean()) for z in np.unique(species)}
        out.append(Carried(level, {z: v for z, v in mean.items() if v > 0}))
    return tuple(out)
