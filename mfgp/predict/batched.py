"""Predictions of many structures: means a batch at a time, standard deviations on all threads.

Means of small structures are a few dozen operations each on little data. A batch is one expansion and two products with the
inducing points for all of its atoms; forces and virials are summed up by structure. What takes the rows of a structure (full
standard deviations) takes long enough by itself: rows of several structures are made at once (fit/features.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from ase import Atoms

from mfgp.base.progress import Report, late_bars, silent
from mfgp.data.closest_pairs import warn_of_close_pairs
from mfgp.data.reading import MIN_DISTANCE
from mfgp.data.structure_warnings import warn_of_structures
from mfgp.errors import DataError
from mfgp.predict.means import Mean, local_gradient, voigt
from mfgp.predict.prediction import Prediction
from mfgp.predict.predictor import Predictor

BATCH_ATOMS = 450  # expanded at a time
QUICK_ATOMS = 64  # that are predicted before a bar would be drawn


def predictions(
    predictor: Predictor, atoms: Atoms | Sequence[Atoms], uncertainty: str, progress: bool = True
) -> Prediction | list[Prediction]:
    """What `MultiFidelityGP.predict` returns, with its warnings and a bar of what takes long (progress.late_bars)."""
    structures: Sequence[Atoms] = [atoms] if isinstance(atoms, Atoms) else atoms
    if structures is atoms:
        checked_structures(predictor, structures, "predict takes ase.Atoms or a list of them")
    out: list[Prediction] = []
    with late_bars(progress and sum(map(len, structures)) > QUICK_ATOMS) as report:
        report("prediction", 0, len(structures), predictor.fidelity)
        if structures is not atoms:
            out.append(predictor(structures[0], uncertainty, report))
        else:
            for prediction in predict_many(predictor, structures, uncertainty, report):
                out.append(prediction)
                report("prediction", len(out), len(structures), predictor.fidelity)
    warn_of_structures(structures, stacklevel=3)
    if predictor.model.calibration is not None:
        warn_of_close_pairs(structures, predictor.model.calibration.closest, stacklevel=3)
    return out if structures is atoms else out[0]


def predict_many(
    predictor: Predictor, structures: Sequence[Atoms], uncertainty: str = "full", report: Report = silent
) -> Iterator[Prediction]:
    """predictor(atoms, uncertainty) of each structure, in order; the same to rounding. `report` is told of large structures.

    Raises ValueError as the predictor does, and DataError for a structure that cannot be predicted: in its turn, or, for
    `none`, in that of its batch.
    """
    predictor.check_uncertainty(uncertainty)
    if uncertainty == "none":
        for places in batches(structures, BATCH_ATOMS):
            batch = [structures[i] for i in places]
            means = batched_means(predictor, batch)
            yield from (predictor.from_mean(a, found) for a, found in zip(batch, means, strict=True))
        return
    if uncertainty in ("full", "by_level"):
        good, problem = _before_a_problem(predictor, structures)
        found = predictor.model.features.functionals_of_many(good, report=report)
        for atoms, functionals in zip(good, found, strict=True):
            yield predictor.from_functionals(atoms, functionals, uncertainty)
        if problem is not None:
            raise problem
        return
    yield from (predictor(atoms, uncertainty, report) for atoms in structures)


def _before_a_problem(predictor: Predictor, structures: Sequence[Atoms]) -> tuple[Sequence[Atoms], DataError | None]:
    """Those that come before the first that cannot be predicted, and what is wrong with that."""
    for i, atoms in enumerate(structures):
        try:
            predictor.check(atoms)
        except DataError as problem:
            return structures[:i], problem
    return structures, None


def checked_structures(predictor: Predictor, structures: Sequence[Atoms], takes: str) -> None:
    """DataError for what is no list of ase.Atoms (`takes`: what would be right), and for elements the model has not seen."""
    wrong = "single Atoms" if isinstance(structures, Atoms) else ""
    if isinstance(structures, str) or not isinstance(structures, Sequence):
        wrong = wrong or type(structures).__name__
    wrong = wrong or next((f"list with a {type(a).__name__}" for a in structures if not isinstance(a, Atoms)), "")
    if wrong:
        raise DataError(f"{takes}, not a {wrong}; read files with ase.io.read.")
    for i, structure in enumerate(structures):
        predictor.check_elements(structure, f"structure {i} of the list")


def batched_means(predictor: Predictor, structures: Sequence[Atoms]) -> list[Mean]:
    """The Gaussian process's part of the means of several structures, expanded together. Raises DataError as `check`."""
    for atoms in structures:
        predictor.check_elements(atoms, "the structure")
    soap, (basis, alpha) = predictor.model.soap, predictor.mean_terms
    with torch.inference_mode():
        try:
            nb = soap.neighborhoods(structures, device=predictor.weights.device)
        except ValueError:  # no numbers, or no cell
            _check_each(predictor, structures)
            raise
        forward = soap.expand(nb, predictor.table)
        if not forward.shortest >= MIN_DISTANCE or not all(map(len, structures)):
            _check_each(predictor, structures)
        q, members = forward.features, tuple(torch.nonzero(nb.numbers == z).squeeze(1) for z in basis.species)
        gradient, _ = local_gradient(basis, alpha, q, members)
        energies = (gradient * q).sum(1).div_(basis.zeta)  # [atom]
        slopes = soap.pullback(forward, gradient)  # [pair, 3] dE/d r_ij
        forces = slopes.new_zeros(len(q), 3)
        forces.index_add_(0, nb.centre, slopes).index_add_(0, nb.neighbor, slopes, alpha=-1)
        of_pair = slopes[:, :, None] * nb.vectors[:, None, :]  # [pair, 3, 3]
        strain = q.new_zeros(nb.n_structures, 3, 3).index_add_(0, nb.structure[nb.centre], of_pair)  # dE/d(strain)
        virials = [voigt(tensor + tensor.T).mul_(-0.5) for tensor in strain]
    sizes = [len(atoms) for atoms in structures]
    return [Mean(*parts) for parts in zip(energies.split(sizes), forces.split(sizes), virials, strict=True)]


def _check_each(predictor: Predictor, structures: Sequence[Atoms]) -> None:
    for atoms in structures:
        predictor.check(atoms)


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
