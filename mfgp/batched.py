"""Predictions of many structures: means a batch at a time, standard deviations on all threads.

Means of small structures are a few dozen operations each on little data. A batch is one expansion and two products with the
inducing points for all of its atoms; forces and virials are summed up by structure. What takes the rows of a structure (full
standard deviations) takes long enough by itself: rows of several structures are made at once (threads.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ase import Atoms

from mfgp.features import Functionals
from mfgp.means import Mean, inner_products, local_gradient, voigt
from mfgp.prediction import Prediction
from mfgp.predictor import Predictor
from mfgp.reading import MIN_DISTANCE
from mfgp.threads import ordered_map

BATCH_ATOMS = 450  # expanded at a time


def predict_many(predictor: Predictor, structures: Sequence[Atoms], uncertainty: str = "full") -> Iterator[Prediction]:
    """predictor(atoms, uncertainty) of each structure, in order; the same to rounding. Raises DataError in its turn."""
    if uncertainty == "none":
        for places in batches(structures, BATCH_ATOMS):
            batch = [structures[i] for i in places]
            means = batched_means(predictor, batch)
            yield from (predictor.from_mean(a, found) for a, found in zip(batch, means, strict=True))
        return
    if uncertainty in ("full", "by_level"):
        features = predictor.model.features

        def functionals(atoms: Atoms) -> Functionals:
            predictor.check(atoms)
            return features.functionals(atoms)

        rows = ordered_map(functionals, structures, features.device)
        for atoms, found in zip(structures, rows, strict=True):
            yield predictor.from_functionals(atoms, found, uncertainty)
        return
    yield from (predictor(atoms, uncertainty) for atoms in structures)


def batched_means(predictor: Predictor, structures: Sequence[Atoms]) -> list[Mean]:
    """The Gaussian process's part of the means of several structures, expanded together. Raises DataError as `check`."""
    for atoms in structures:
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            predictor.check(atoms)
        predictor.check_elements(atoms, "the structure")
    soap, (basis, alpha) = predictor.model.soap, predictor.mean_terms
    with torch.inference_mode():
        nb = soap.neighborhoods(structures, device=predictor.weights.device)
        forward = soap.expand(nb)
        if not forward.shortest >= MIN_DISTANCE:
            for atoms in structures:
                predictor.check(atoms)
        q, members = forward.features, tuple(torch.nonzero(nb.numbers == z).squeeze(1) for z in basis.species)
        gradient = local_gradient(basis, alpha, q, members, inner_products(basis, q, members))
        energies = (gradient * q).sum(1).div_(basis.zeta)  # [atom]
        slopes = soap.pullback(forward, gradient)  # [pair, 3] dE/d r_ij
        forces = slopes.new_zeros(len(q), 3)
        forces.index_add_(0, nb.centre, slopes).index_add_(0, nb.neighbor, slopes, alpha=-1)
        of_pair = slopes[:, :, None] * nb.vectors[:, None, :]  # [pair, 3, 3]
        strain = q.new_zeros(nb.n_structures, 3, 3).index_add_(0, nb.structure[nb.centre], of_pair)  # dE/d(strain)
        virials = [voigt(tensor + tensor.T).mul_(-0.5) for tensor in strain]
    sizes = [len(atoms) for atoms in structures]
    return [Mean(*parts) for parts in zip(energies.split(sizes), forces.split(sizes), virials, strict=True)]


def batches(structures: Sequence[Atoms], max_atoms: int) -> Iterator[range]:
    """Consecutive structures with about max_atoms atoms together, or single ones: places in the sequence."""
    start, atoms = 0, 0
    for i, structure in enumerate(structures):
        if i > start and atoms + len(structure) > max_atoms:
            yield range(start, i)
            start, atoms = i, 0
        atoms += len(structure)
    if start < len(structures):
        yield range(start, len(structures))
