"""SOAP: structures -> normalised power spectra q, and dE/dq -> dE/dr.

    pair vectors -> density coefficients c (density.py) -> contracted channels (contraction.py)
                 -> power spectrum p -> q = p / |p| (power_spectrum.py)

`expand` keeps what the reverse pass `pullback` needs; both are written out by hand, without autograd, and take the pairs
a few at a time (streamed.py). Derivatives of the features need all terms of the pairs: `expand_environments`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor

from descriptors.config import SOAPConfig
from descriptors.contraction import Contraction, contract, expand_channels
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
from descriptors.power_spectrum import (
    normalised,
    normalised_pullback,
    power_spectrum,
    power_spectrum_pullback,
    spectrum_layout,
)
from descriptors.radial import radial_basis
from descriptors.streamed import (
    Primitives,
    RadialSlots,
    streamed_coefficients,
    streamed_pullback,
    with_primitives,
)
from descriptors.table import RadialTable, tabulated


@dataclass(frozen=True)
class ForwardPass:
    """Values of the forward pass that the reverse pass needs."""

    pairs: RadialSlots
    coefficients: list[Tensor]  # [l] of [centre, K_l, 2l+1], after the contraction
    norm: Tensor  # [centre] |p|
    features: Tensor  # [centre, D] q


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
        """q [centre, D], |q| = 1."""
        return self.expand(nb).features

    def coefficients(self, nb: Neighborhoods) -> list[Tensor]:
        """Density coefficients before any contraction: for each l [centre, channel, 2l+1]."""
        env = environments(self, nb)
        slots = lay_out(env, len(self.species))
        pairs = with_primitives(slots, self.config, self.primitives.to(nb.vectors.device))
        return streamed_coefficients(pairs, env.species, len(self.species))

    def expand(self, nb: Neighborhoods) -> ForwardPass:
        """q with everything `pullback` needs."""
        env = environments(self, nb)
        return self.expand_slots(lay_out(env, len(self.species)), env.species)

    def expand_slots(self, slots: Slots, species: Tensor, table: RadialTable | None = None) -> ForwardPass:
        """q of centres [centre] of the given species (indices into self.species), whose pairs are laid out already.

        With a table of this descriptor's radial functions, what belongs to pairs is float32.
        """
        pairs: RadialSlots
        if table is None:
            pairs = with_primitives(slots, self.config, self.primitives.to(species.device))
        else:
            pairs = tabulated(slots, table)
        c = streamed_coefficients(pairs, species, len(self.species))
        if self.contraction is not None:
            c = contract(c, self.contraction)
        q, norm = normalised(power_spectrum(c, self.layout.to(c[0].device, c[0].dtype)))
        return ForwardPass(pairs, c, norm, q)

    def pullback(self, forward: ForwardPass, gradient: Tensor) -> Tensor:
        """dE/dr of each pair's vector, [pair, 3], in the order of the neighbourhoods; gradient = dE/dq [centre, D]."""
        dc = self.gradient_of_coefficients(forward, gradient)
        if self.contraction is not None:
            dc = expand_channels(dc, self.contraction)
        per_slot = streamed_pullback(forward.pairs, dc)
        return per_slot.index_select(0, forward.pairs.slots.of_pair)

    def gradient_of_coefficients(self, forward: ForwardPass, gradient: Tensor) -> list[Tensor]:
        """dE/dc of the contracted channels, for each l [centre, K_l, 2l+1], from dE/dq [centre, D]."""
        dp = normalised_pullback(forward.features, forward.norm, gradient)
        return power_spectrum_pullback(forward.coefficients, self.layout.to(dp.device, dp.dtype), dp)

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
