"""SOAP: structures -> normalised power spectra q, and dE/dq -> dE/dr.

    pair vectors -> density coefficients c (density.py) -> contracted channels (contraction.py)
                 -> power spectrum p -> q = p / |p| (power_spectrum.py)

`expand` keeps what the reverse pass `pullback` needs; both are written out by hand, without autograd: compiled loops on a
CPU (compiled_pass.py), and tensors that take the pairs a few at a time elsewhere (streamed.py). Derivatives of the features
need all terms of the pairs: `expand_environments`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor

from descriptors.compiled_pass import by_degree, compiled_coefficients, compiled_pass
from descriptors.config import SOAPConfig
from descriptors.contraction import Contraction, contract
from descriptors.density import (
    PADDING,
    Environments,
    PairSlopes,
    PairTerms,
    Slots,
    density_coefficients,
    lay_out,
    pair_terms_with_slopes,
)
from descriptors.neighbors import Neighborhoods, neighborhoods
from descriptors.power_spectrum import normalised, power_spectrum, spectrum_layout
from descriptors.radial import radial_basis
from descriptors.streamed import (
    Primitives,
    RadialSlots,
    streamed_coefficients,
    streamed_pass,
    with_primitives,
)
from descriptors.table import RadialTable, tabulated


class ForwardPass(Protocol):
    """The forward pass, with what the reverse pass needs of it."""

    @property
    def slots(self) -> Slots:
        """Where the pairs are."""

    @property
    def features(self) -> Tensor:
        """q [centre, D]."""

    @property
    def shortest(self) -> float:
        """The shortest distance in Å; infinite without pairs, NaN where one is not a number."""

    def pullback(self, gradient: Tensor) -> Tensor:
        """dE/dr of each slot, [slot, xyz], from dE/dq [centre, D]."""


@dataclass(frozen=True)
class Expansion:
    """Values of the forward pass that the derivatives of the features need."""

    environments: Environments
    slots: Slots
    terms: PairTerms
    slopes: PairSlopes
    coefficients: list[Tensor]  # [l] of [centre, K_l, 2l+1], after the contraction
    norm: Tensor  # [centre] |p|
    features: Tensor  # [centre, D] q


class SOAP:
    """The descriptor for a fixed set of species.

    species: atomic numbers in any order. Constants are held in float64 on the CPU; what is computed has the dtype and
    device of the inputs. Raises ValueError for an empty or repeated set of species, for a contraction that does not fit,
    and where the radial basis cannot be orthonormalised.
    """

    def __init__(self, config: SOAPConfig, species: Sequence[int], contraction: Contraction | None = None) -> None:
        self.config = config
        self.species = tuple(sorted(int(z) for z in species))
        if not self.species or len(set(self.species)) < len(self.species) or self.species[0] < 1:
            raise ValueError(f"species = {list(species)}: give each atomic number once, at least one.")
        self.contraction = contraction
        self.basis = radial_basis(config)
        self.primitives = Primitives.of(self.basis)
        n_channels = len(self.species) * config.n_max
        widths = [n_channels] * (config.l_max + 1)
        if contraction is not None:
            shapes = [tuple(u.shape) for u in contraction.matrices]
            if [s[0] for s in shapes] != widths:
                raise ValueError(
                    f"the contraction has matrices of shapes {shapes}; {len(self.species)} species, n_max = "
                    f"{config.n_max} and l_max = {config.l_max} need {len(widths)} with {n_channels} rows each."
                )
            widths = [s[1] for s in shapes]
        self.layout = spectrum_layout(widths)

    @property
    def n_features(self) -> int:
        """D, the length of a feature vector."""
        return self.layout.n_features

    @property
    def neighbor_cutoff(self) -> float:
        """Largest distance in Å at which a neighbour counts."""
        return self.config.neighbor_cutoff

    def neighborhoods(
        self, structures: Sequence[Atoms], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Neighborhoods:
        """Pairs of the structures within this descriptor's cutoff."""
        return neighborhoods(structures, self.neighbor_cutoff, dtype=dtype, device=device)

    def features(self, structures: Sequence[Atoms]) -> Tensor:
        """q of every atom of the structures, [centre, D] float64."""
        return self.values(self.neighborhoods(structures))

    def values(self, nb: Neighborhoods) -> Tensor:
        """q [centre, D], |q| = 1. Raises ValueError for vectors that are not numbers."""
        forward = self.expand(nb)
        if math.isnan(forward.shortest):
            raise ValueError("the distance of a pair is not a number.")
        return forward.features

    def coefficients(self, nb: Neighborhoods) -> list[Tensor]:
        """Density coefficients before any contraction: for each l [centre, channel, 2l+1]."""
        env = environments(self, nb)
        slots = lay_out(env, len(self.species))
        if env.species.device.type == "cpu":
            c, widths, _ = compiled_coefficients(slots, env.species, len(self.species), self.table)
            return [x.to(nb.vectors.dtype) for x in by_degree(c, widths)]
        return streamed_coefficients(self.radial_slots(slots), env.species, len(self.species))

    def expand(self, nb: Neighborhoods, table: RadialTable | None = None) -> ForwardPass:
        """q with everything the reverse pass needs; table as in `expand_slots`."""
        env = environments(self, nb)
        return self.expand_slots(lay_out(env, len(self.species)), env.species, table)

    def expand_slots(self, slots: Slots, species: Tensor, table: RadialTable | None = None) -> ForwardPass:
        """q of centres [centre] of the given species (indices into self.species), whose pairs are laid out already.

        Compiled loops on a CPU, tensors elsewhere. With a table of this descriptor's radial functions in float32, what
        belongs to pairs is float32.
        """
        if species.device.type == "cpu":
            return compiled_pass(slots, species, len(self.species), table or self.table, self.layout, self.contraction)
        pairs = self.radial_slots(slots, table)
        return streamed_pass(pairs, species, len(self.species), self.layout, self.contraction)

    @cached_property
    def table(self) -> RadialTable:
        """The radial functions for compiled loops, float64."""
        return RadialTable.of(self.basis, self.config)

    def radial_slots(self, slots: Slots, table: RadialTable | None = None) -> RadialSlots:
        """Slots with their primitives, or with what a table gives in their place."""
        if table is not None:
            return tabulated(slots, table)
        return with_primitives(slots, self.config, self.primitives.to(slots.vectors.device))

    def pullback(self, forward: ForwardPass, gradient: Tensor) -> Tensor:
        """dE/dr of each pair's vector, [pair, 3], in the order of the neighbourhoods; gradient = dE/dq [centre, D]."""
        return forward.pullback(gradient).index_select(0, forward.slots.of_pair)

    def centre_blocks(self, nb: Neighborhoods, max_bytes: float) -> list[Tensor]:
        """All centres in ascending blocks. Each block's Jacobian needs at most max_bytes, or is of a single centre."""
        return blocks_within(jacobian_bytes(self, nb), max_bytes)


def environments(soap: SOAP, nb: Neighborhoods) -> Environments:
    """All centres of the neighbourhoods, with elements as indices into soap.species.

    Raises ValueError naming the elements that are not among soap.species.
    """
    species = species_index(nb.numbers, soap.species)
    return Environments(species, nb.centre, species[nb.neighbor], nb.vectors)


def species_index(numbers: Tensor, species: tuple[int, ...]) -> Tensor:
    """Position of each atomic number in the ascending `species`, [atom]. Raises ValueError for unknown elements."""
    known = torch.tensor(species, device=numbers.device)
    index = torch.searchsorted(known, numbers).clamp(max=len(species) - 1)
    missing = known[index] != numbers
    if bool(missing.any()):
        unknown = ", ".join(chemical_symbols[z] for z in torch.unique(numbers[missing]).tolist())
        names = ", ".join(chemical_symbols[z] for z in species)
        raise ValueError(f"the descriptor has not been set up for {unknown}; it knows {names}.")
    return index


def expand_environments(soap: SOAP, env: Environments) -> Expansion:
    """The forward pass with derivatives of the pair terms."""
    slots = lay_out(env, len(soap.species))
    terms, slopes = pair_terms_with_slopes(slots, soap.basis, soap.config)
    c = density_coefficients(env, slots, terms, soap.basis, len(soap.species))
    if soap.contraction is not None:
        c = contract(c, soap.contraction)
    q, norm = normalised(power_spectrum(c, soap.layout.to(c[0].device, c[0].dtype)))
    return Expansion(env, slots, terms, slopes, c, norm, q)


def blocks_within(needed: Tensor, max_bytes: float) -> list[Tensor]:
    """Centres 0, 1, .. in ascending blocks that need at most max_bytes, or are a single centre. needed [centre] bytes."""
    blocks: list[list[int]] = []
    used = 0.0
    for centre, size in enumerate(needed.tolist()):
        if not blocks or used + size > max_bytes:
            blocks.append([])
            used = 0.0
        blocks[-1].append(centre)
        used += size
    return [torch.tensor(block, device=needed.device) for block in blocks]


def jacobian_bytes(soap: SOAP, nb: Neighborhoods) -> Tensor:
    """Memory of each centre's share of a Jacobian and of what it is made from, [centre] bytes, with pairs of one atom's
    images counted as if they were different atoms: an upper estimate.
    """
    pairs = torch.bincount(nb.centre, minlength=len(nb.numbers)).to(torch.float64)  # [centre]
    n_degrees, n_features = soap.config.l_max + 1, soap.n_features
    per_slot = 8 * n_degrees**2 + 4 * soap.config.n_max * n_degrees  # harmonics and radial functions, with slopes
    per_pair = 20 * sum(soap.layout.widths)  # factors of the outer products: 2 + 2 * 3 + 2 * 6
    numbers = pairs * (per_pair + PADDING * per_slot) + 3 * n_features * (pairs + 1) + 9 * n_features
    return nb.vectors.element_size() * numbers
