"""The passes of the descriptor on a CPU, in compiled loops: density_kernels.py and spectrum_kernels.py.

Results are those of streamed.py but for what the table of the radial functions is off (table.py): forces of silicon and LMFP
models change by 1e-9 eV/Å. With a table in float32 the sums over neighbours are float32, all else is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from descriptors import density_kernels, spectrum_kernels
from descriptors.contraction import Contraction, contract, expand_channels
from descriptors.density import Slots
from descriptors.power_spectrum import SpectrumLayout, require_direction
from descriptors.table import RadialTable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CompiledPass:
    """What the reverse pass needs of the forward pass, and its results."""

    slots: Slots
    n_species: int
    table: RadialTable
    layout: SpectrumLayout
    contraction: Contraction | None
    coefficients: Array  # [centre, l m channel] after the contraction
    norm: Array  # [centre] |p|
    features: Tensor  # [centre, D] q
    shortest: float  # Å; infinite without pairs

    def pullback(self, gradient: Tensor) -> Tensor:
        """dE/dr of each slot, [slot, xyz], from dE/dq [centre, D]."""
        dc = np.empty_like(self.coefficients)
        spectrum_kernels.spectrum_pullback(
            self.coefficients, *self.layout.arrays, _array(self.features), self.norm, _array(gradient), dc
        )
        k = self.table.constants
        if self.contraction is not None:
            dc = _flat(expand_channels(by_degree(dc, self.layout.widths), self.contraction))
        dc = dc.reshape(len(dc), len(k.recursion) ** 2, self.n_species * len(k.own))
        out = np.empty((len(self.slots.vectors), 3))
        where = _array(self.slots.vectors), self.slots.first.numpy(), self.slots.count.numpy()
        density_kernels.pullback(*where, k.knots, k.radial, len(k.own), k.recursion, dc, out)
        return torch.from_numpy(out).to(gradient.dtype)


def compiled_pass(
    slots: Slots,
    species: Tensor,
    n_species: int,
    table: RadialTable,
    layout: SpectrumLayout,
    contraction: Contraction | None,
) -> CompiledPass:
    """q of centres [centre] of the given species, whose pairs are laid out already. Raises ValueError where p vanishes."""
    c, widths, shortest = compiled_coefficients(slots, species, n_species, table)
    if contraction is not None:
        c = _flat(contract(by_degree(c, widths), contraction))
    q, norm = np.empty((len(c), layout.n_features)), np.empty(len(c))
    spectrum_kernels.spectrum(c, *layout.arrays, q, norm)
    require_direction(torch.from_numpy(norm))
    features = torch.from_numpy(q).to(slots.vectors.dtype)
    return CompiledPass(slots, n_species, table, layout, contraction, c, norm, features, shortest)


def compiled_coefficients(
    slots: Slots, species: Tensor, n_species: int, table: RadialTable
) -> tuple[Array, tuple[int, ...], float]:
    """c before any contraction [centre, l m channel], channels of each l, and the shortest distance in Å or NaN."""
    k, n_centres = table.constants, len(species)
    out = np.empty((n_centres, len(k.recursion) ** 2, n_species * len(k.own)))
    where = _array(slots.vectors), slots.first.numpy(), slots.count.numpy()
    density_kernels.coefficients(*where, species.numpy(), k.knots, k.radial, k.own, k.recursion, out)
    shortest = density_kernels.shortest_distance(*where)
    return out.reshape(n_centres, out.shape[1] * out.shape[2]), (out.shape[2],) * len(k.recursion), shortest


def by_degree(flat: Array, widths: tuple[int, ...]) -> list[Tensor]:
    """[centre, l m channel] as for each l [centre, channel, 2l+1]."""
    out, start = [], 0
    for l, width in enumerate(widths):  # noqa: E741
        stop = start + (2 * l + 1) * width
        out.append(torch.from_numpy(flat[:, start:stop].reshape(len(flat), 2 * l + 1, width).transpose(0, 2, 1)))
        start = stop
    return out


def _flat(coefficients: list[Tensor]) -> Array:
    """For each l [centre, channel, 2l+1] as [centre, l m channel]."""
    return torch.cat([c.transpose(1, 2).flatten(1) for c in coefficients], dim=1).numpy()


def _array(tensor: Tensor) -> Array:
    return tensor.double().contiguous().numpy()
