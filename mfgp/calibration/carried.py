"""Whether the inducing points of a fit carry structures that are learned later.

An update keeps the inducing points and takes its labels as if these carried them, with no more than the noise of labels. Let

    v_sz = mean over the force components on the atoms of element z of S_t (prior - |Phi|^2)       (predict/residual.py)

in a structure s, and m_z that over all structures that were left out when these inducing points were first calibrated, both
without the components that symmetry makes zero: of those nothing is open in any structure, and they say nothing of others.
Structures that hold z are told, with r and b the factors of the calibration, once

    C_z = max(0, C_z + sum_s [(v_sz / max(m_z, b_z noise^2 / (BEYOND^2 r_z)))^(1/2) - BEYOND]),    s of one update,

is above USUAL (BEYOND - 1), a cumulative sum (Page, Biometrika 41, 100 (1954)): what is left open of n structures has, in
the mean over them and USUAL usual ones, more than BEYOND times the usual standard deviation, and is more than the noise
that their labels are learned with. The usual ones are there since of small sets of data one new structure of a hundred is
15 times as far off in variance by chance, of strongly rattled cells 60. Forces, since what is left of the energies of
training data can be nothing at all: where all of their environments are inducing points, those of others like them have
10^9 times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    def of(variances: NDArray[np.float64], told: NDArray[np.bool_], numbers: NDArray[np.int64], source: str) -> Left:
        """From S_t (prior - |Phi|^2) of the forces on all atoms [3N], and which of these symmetry does not make zero [3N];
        numbers [N].
        """
        each, species = variances[told], np.repeat(numbers, 3)[told]
        return Left({int(z): float(each[species == z].mean()) for z in np.unique(species)}, source)


@dataclass(frozen=True)
class Carried:
    """m_z of a level by atomic number, (eV/Å)^2, and C_z; how many structures of updates, as far as they were looked at,
    have more than BEYOND times the usual standard deviation, where the first comes from, and the elements to be told of.
    """

    level: str
    usual: Mapping[int, float]
    sums: Mapping[int, float] = field(default_factory=dict)
    beyond: int = 0
    first: str = ""
    elements: tuple[int, ...] = ()

    def plus(self, update: Sequence[Left], least: Mapping[int, float]) -> Carried:
        """With the structures of an update; least: b_z noise^2 / r_z by atomic number, (eV/Å)^2."""
        scale = {z: max(usual, least[z] / BEYOND**2) for z, usual in self.usual.items()}
        excess = [{z: (v / scale[z]) ** 0.5 - BEYOND for z, v in s.of_element.items() if z in scale} for s in update]
        sums = {z: max(0.0, self.sums.get(z, 0.0) + sum(e.get(z, 0.0) for e in excess)) for z in scale}
        far = [s.source for s, e in zip(update, excess, strict=True) if max(e.values(), default=0.0) > 0.0]
        told = {z for z, total in sums.items() if total > USUAL * (BEYOND - 1)}
        return replace(
            self,
            sums=sums,
            beyond=self.beyond + len(far),
            first=self.first or next(iter(far), ""),
            elements=tuple(sorted(told.union(self.elements))),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, elements by symbol."""
        usual, sums = ({chemical_symbols[z]: v for z, v in x.items()} for x in (self.usual, self.sums))
        elements = [chemical_symbols[z] for z in self.elements]
        return {**asdict(self), "usual": usual, "sums": sums, "elements": elements}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Carried:
        """What `to_json` gave."""
        usual, sums = ({atomic_numbers[z]: v for z, v in data[x].items()} for x in ("usual", "sums"))
        elements = tuple(atomic_numbers[z] for z in data["elements"])
        return Carried(**{**data, "usual": usual, "sums": sums, "elements": elements})


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
