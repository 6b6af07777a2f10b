"""Features of a data set: the descriptor and the inducing points chosen from its structures, and the rows they give.

Candidates for inducing points are a capped, seeded sample of the environments, so memory does not grow with the number of
structures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from descriptors import SOAP, Neighborhoods, SOAPConfig, fit_contraction
from descriptors.soap import jacobian_bytes
from mfgp.base.devices import resolve_device
from mfgp.base.progress import Report, silent
from mfgp.base.threads import ordered_map
from mfgp.config import FitConfig
from mfgp.data.single_point import structure_hash
from mfgp.errors import ConfigError, DataError
from mfgp.fit.primitive import primitive
from mfgp.frames import Frame, FrameSet
from mfgp.gp.centring import mean_features
from mfgp.gp.functionals import Functionals, functionals
from mfgp.gp.inducing import InducingBasis, select_inducing
from mfgp.gp.kernels import n_functionals
from mfgp.gp.observations import functional_rows
from mfgp.gp.rows import InducingForms, energy_rows, inducing_forms, raw_rows

CANDIDATES_PER_POINT = 8  # environments that compete for one inducing point
COPIES, RATTLE = 3, 0.05  # rattled copies of a structure whose environments are offered, and by how much, Å
MIN_CANDIDATES = 4000
CONTRACTION_SAMPLE = 200  # structures
THREADS_BYTES = 2e9  # of the Jacobians that are held at once; larger structures come one after the other


@dataclass(frozen=True)
class RowStore:
    """Rows and functionals by structure, kept for many fits to, or predictions of, the same structures.

    Each takes (3N + 7) M floats, or (4N + 7) M for functionals.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    functionals: dict[str, Functionals] = field(default_factory=dict)


@dataclass(frozen=True)
class Features:
    """Descriptor and inducing basis, fixed before the labels are looked at.

    `store`, where there is one, keeps what is computed: learning curves and cross-validation, which fit parts of one data
    set many times, then cost no descriptors.
    """

    soap: SOAP
    basis: InducingBasis
    device: torch.device
    store: RowStore | None = field(default=None, repr=False)
    forms: InducingForms = field(init=False, repr=False)  # of basis and soap
    centre: Tensor = field(init=False, repr=False)  # [S, M] mean features of the basis (centring)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forms", inducing_forms(self.basis, self.soap))
        object.__setattr__(self, "centre", mean_features(self.basis))

    @staticmethod
    def build(frames: FrameSet, config: FitConfig, report: Report = silent, keep_rows: bool = False) -> Features:
        """Choose descriptor and inducing points from the structures of `frames`; their labels are not used."""
        device = resolve_device(config.device)
        species = tuple(sorted({int(z) for f in frames for z in f.atoms.numbers}))
        if config.model.n_inducing < len(species):
            raise ConfigError(
                f"model.n_inducing: {config.model.n_inducing} inducing points for {len(species)} elements; at least one for "
                "each is needed, a thousand in all is usual."
            )
        soap = build_soap(frames, species, config.descriptor, config.seed, device)
        basis = _choose_basis(frames, soap, config, device, report)
        return Features(soap, basis, device, RowStore() if keep_rows else None)

    def to(self, device: torch.device) -> Features:
        """The same features on another device, without a store."""
        basis = self.basis
        points, factors = (tuple(x.to(device) for x in part) for part in (basis.points, basis.factors))
        moved = InducingBasis(basis.species, points, factors, basis.rank.to(device), basis.zeta, basis.jitter)
        return Features(self.soap, moved, device)

    def check(self, frames: FrameSet, config: FitConfig) -> None:
        """Raise ConfigError where they are not what `config` describes, DataError for elements that they do not cover."""
        if self.basis.zeta != config.model.zeta or self.soap.config != config.descriptor:
            raise ConfigError(
                "these features were built with another descriptor or zeta; build them with this configuration."
            )
        for frame in frames:
            unknown = sorted({chemical_symbols[z] for z in frame.atoms.numbers if z not in self.basis.species})
            if unknown:
                raise DataError(
                    f"{frame.source} ({frame.atoms.symbols}): no inducing point for {', '.join(unknown)}; build the "
                    "features from structures that contain them."
                )

    def rows(self, atoms: Atoms) -> Tensor:
        """Whitened rows of all functionals of a structure, [1+3N+6, M]."""
        if self.store is None:
            return self._rows(atoms)
        key = structure_hash(atoms)
        if key not in self.store.rows:
            self.store.rows[key] = self._rows(atoms)
        return self.store.rows[key]

    def raw(self, structures: Sequence[Atoms], derivatives: bool = True, virial: bool = True) -> list[Tensor]:
        """Rows of structures before whitening, [1+3N+6, M] each; NaN where they are not wanted."""
        smallest = [primitive(atoms) for atoms in structures]
        rows = self._raw([p.cell for p in smallest], derivatives, virial)
        return [p.rows_of_all(of_cell) for p, of_cell in zip(smallest, rows, strict=True)]

    def _raw(self, structures: Sequence[Atoms], derivatives: bool, virial: bool) -> list[Tensor]:
        nb = self.soap.neighborhoods(structures, device=self.device)
        if not derivatives:
            energies = energy_rows(self.basis, self.soap, nb)
            out = [
                e.new_full((n_functionals(len(a)), len(e)), torch.nan)
                for e, a in zip(energies, structures, strict=True)
            ]
            for rows, energy in zip(out, energies, strict=True):
                rows[0] = energy
            return out
        every = raw_rows(self.basis, self.forms, self.soap, nb, virial=virial)
        stops = np.cumsum([len(a) for a in structures]).tolist()
        return [every.of_structure(i, stop - len(structures[i]), stop) for i, stop in enumerate(stops)]

    def functionals(self, atoms: Atoms, report: Report = silent, virial: bool = True) -> Functionals:
        """Rows and prior variances of all functionals, and the features of every environment; a store keeps virials, too."""
        if self.store is None:
            return functionals(self.basis, self.forms, self.soap, atoms, self.device, report, virial)
        key = structure_hash(atoms)
        if key not in self.store.functionals:
            found = functionals(self.basis, self.forms, self.soap, atoms, self.device, report)
            self.store.functionals[key] = found
        return self.store.functionals[key]

    def functionals_of_many(
        self, structures: Sequence[Atoms], virial: bool = True, report: Report = silent
    ) -> Iterator[Functionals]:
        """Those of each structure, in order, on all threads where memory allows; else `report` is told of large ones."""
        if self.fits_threads(structures):
            yield from ordered_map(partial(self.functionals, virial=virial), structures, self.device)
        else:
            yield from map(partial(self.functionals, report=report, virial=virial), structures)

    def fits_threads(self, structures: Sequence[Atoms]) -> bool:
        """Whether the Jacobians of structures as large as the largest fit into THREADS_BYTES, one for each thread."""
        if len(structures) < 2:
            return False
        nb = self.soap.neighborhoods([max(structures, key=len)])
        return torch.get_num_threads() * float(jacobian_bytes(self.soap, nb).sum()) <= THREADS_BYTES

    def pairs(self, atoms: Atoms) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Centre and neighbour of every pair of atoms within the cutoff, images included."""
        nb = self.soap.neighborhoods([atoms])
        return nb.centre.numpy(), nb.neighbor.numpy()

    def _rows(self, atoms: Atoms) -> Tensor:
        return functional_rows(self.basis, self.forms, self.soap, self.soap.neighborhoods([atoms], device=self.device))


def _batches(frames: list[Frame], soap: SOAP, device: torch.device, size: int = 1) -> Iterator[Neighborhoods]:
    """Neighbourhoods of the frames' structures, `size` structures at a time."""
    for start in range(0, len(frames), size):
        yield soap.neighborhoods([f.atoms for f in frames[start : start + size]], device=device)


def uncontracted(species: tuple[int, ...], config: SOAPConfig) -> SOAP:
    """The descriptor without a contraction. Raises ConfigError where its radial functions cannot be told apart."""
    try:
        return SOAP(config, species)
    except ValueError as error:
        raise ConfigError(f"descriptor: {error}") from None


def build_soap(frames: FrameSet, species: tuple[int, ...], config: SOAPConfig, seed: int, device: torch.device) -> SOAP:
    """The descriptor, with its channel contraction fitted on a seeded sample of structures where one is configured.

    Raises ConfigError where its radial functions cannot be told apart.
    """
    soap = uncontracted(species, config)
    if config.contraction is None:
        return soap
    order = np.random.default_rng(seed).permutation(len(frames.frames))[:CONTRACTION_SAMPLE]
    sample = [frames.frames[i] for i in sorted(order)]
    return SOAP(config, species, fit_contraction(soap, _batches(sample, soap, device), config.contraction))


def _choose_basis(
    frames: FrameSet, soap: SOAP, config: FitConfig, device: torch.device, report: Report = silent
) -> InducingBasis:
    """Inducing points from the environments of `candidates`, or of a seeded sample where there are very many.

    Each species competes with at most its share of `max(MIN_CANDIDATES, 8 M)` candidates, at least the rarest in full.
    """
    limit = max(MIN_CANDIDATES, CANDIDATES_PER_POINT * config.model.n_inducing)
    offered = candidates(frames, config)
    numbers = np.concatenate([atoms.numbers for atoms in offered])
    keep = _sample_environments(numbers, limit, config.seed)
    start, features = 0, []
    for i, atoms in enumerate(offered):
        mask = keep[start : start + len(atoms)]
        start += len(atoms)
        if mask.any():
            q = soap.values(soap.neighborhoods([atoms], device=device))
            features.append(q[torch.from_numpy(mask).to(device)])
        report("descriptors", i + 1, len(offered), "")
    kept = torch.from_numpy(numbers[keep].astype(np.int64)).to(device)
    total = min(config.model.n_inducing, len(kept))

    def on_step(done: int) -> None:
        if done % 50 == 0 or done == total:
            report("inducing points", done, total, "")

    return select_inducing(torch.cat(features), kept, config.model.n_inducing, config.model.zeta, config.seed, on_step)


def candidates(frames: FrameSet, config: FitConfig) -> list[Atoms]:
    """Structures whose environments may become inducing points: each geometry once, and rattled copies where these are few.

    Forces are three labels an atom, more than as many functions as there are atoms can follow. So where there are fewer
    environments than `n_inducing` (by up to COPIES) those of structures with forces are offered again, rattled.
    """
    seen: dict[str, Atoms] = {}
    with_forces: dict[str, Atoms] = {}
    for f in frames:
        key = structure_hash(f.atoms)
        seen.setdefault(key, f.atoms)
        if f.forces is not None and not f.isolated_atom:
            with_forces.setdefault(key, f.atoms)
    out, rng = list(seen.values()), np.random.default_rng(config.seed)
    for _ in range(COPIES):
        if sum(map(len, out)) >= config.model.n_inducing:
            break
        for atoms in with_forces.values():
            copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            copy.positions += rng.normal(0.0, RATTLE, copy.positions.shape)
            out.append(copy)
    return out


def _sample_environments(numbers: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Mask of at most `limit` environments; room that a rare species leaves goes to the others."""
    keep = np.zeros(len(numbers), dtype=bool)
    rng = np.random.default_rng(seed)
    species, counts = np.unique(numbers, return_counts=True)
    room = limit
    for rank, index in enumerate(np.argsort(counts)):
        quota = min(int(counts[index]), room // (len(species) - rank))
        where = np.flatnonzero(numbers == species[index])
        keep[rng.permutation(where)[:quota]] = True
        room -= quota
    return keep
