"""What it costs to take the mean over fewer terms (reduction.py): changes of energies and forces on given structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from mfgp.errors import DataError
from mfgp.model import MultiFidelityGP


@dataclass(frozen=True)
class CompressionError:
    """Changes of a mean by its compression, over n structures."""

    n: int
    terms: int  # that the mean is summed over
    inducing_points: int  # terms without compression
    energy: float  # largest, eV per atom
    force_rms: float  # root mean square over components, eV/Å
    force: float  # largest of a component, eV/Å


def compression_error(
    model: MultiFidelityGP, structures: Sequence[Atoms], compression: float, fidelity: str | None = None
) -> CompressionError:
    """How far `calculator(fidelity, compression=...)` (eV) is from the mean with all terms, on `structures`.

    Raises DataError where there is none, ConfigError for a model whose mean cannot be compressed.
    """
    if not structures:
        raise DataError("no structure to compare a compressed mean on.")
    whole, fewer = model.predictor(fidelity), model.predictor(fidelity, compression=compression)
    energies, forces = [], []
    for atoms in structures:
        a, b = whole(atoms, "none"), fewer(atoms, "none")
        energies.append(abs(b.energy - a.energy) / len(atoms))
        forces.append((b.forces - a.forces).ravel())
    change = np.concatenate(forces)
    return CompressionError(
        len(structures),
        sum(len(points) for points in fewer.mean_terms[0].points),
        model.basis.size,
        max(energies),
        float(np.sqrt(np.mean(change**2))),
        float(np.abs(change).max()),
    )
