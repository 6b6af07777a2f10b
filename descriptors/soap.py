"""SOAP: structures -> normalised power spectra q, and dE/dq -> dE/dr.

    pair vectors -> density coefficients c (density.py) -> contracted channels (contraction.py)
                 -> power spectrum p -> q = p / |p| (power_spectrum.py)

`expand` keeps what the reverse pass `pullback` needs; both are written out by hand, without autograd.
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
    density_pullback,
    lay_out,
    pair_terms,
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


@dataclass(frozen=True)
class Expansion:
    """Values of the forward pass that the derivatives need."""

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
        c = self.coefficients(nb)
        contracted = c if self.contraction is None else contract(c, self.contraction)
        return normalised(power_spectrum(contracted, self.layout.to(c[0].device, c[0].dtype)))[0]

    def coefficients(self, nb: Neighborhoods) -> list[Tensor]:
        """Density coefficients before any contraction: for each l [centre, channel, 2l+1]."""
        env = environments(self, nb)
        slots = lay_out(env, len(self.species))
        terms = pair_terms(slots, self.basis, self.config)
        return density_coefficients(env, slots, terms, self.basis, len(self.species))

    def expand(self, nb: Neighborhoods) -> Expansion:
        """q with everything `pullback` needs."""
        return expand_environments(self, environments(self, nb))

    def pullback(self, expansion: Expansion, gradient: Tensor) -> Tensor:
        """dE/dr of each pair's vector, [pair, 3], in the order of the neighbourhoods; gradient = dE/dq [centre, D]."""
        dc = self.gradient_of_coefficients(expansion, gradient)
        if self.contraction is not None:
            dc = expand_channels(dc, self.contraction)
        return density_pullback(expansion.slots, expansion.terms, expansion.slopes, dc)

    def gradient_of_coefficients(self, expansion: Expansion, gradient: Tensor) -> list[Tensor]:
        """dE/dc of the contracted channels, for each l [centre, K_l, 2l+1], from dE/dq [centre, D]."""
        dp = normalised_pullback(expansion.features, expansion.norm, gradient)
        return power_spectrum_pullback(expansion.coefficients, self.layout.to(dp.device, dp.dtype), dp)

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
