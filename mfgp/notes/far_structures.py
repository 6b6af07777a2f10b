"""What a user is told of structures whose energies a model knows far less well than those it was trained on.

Told are those with FAR times the usual standard deviation of the energy per atom (Prediction.novelty: of what the weights
leave open, the median of left-out training structures is the usual one) and more than LEAST altogether: where labels are
nearly exact, structures of one kind differ by more than the former. Figures: docs/theory.md#far-structures.
"""

from __future__ import annotations

from collections.abc import Sequence

from ase import Atoms

from mfgp.predict.prediction import Prediction

FAR = 10.0  # times the usual standard deviation
LEAST = 0.05  # eV/atom


def far_structures(structures: Sequence[Atoms], predictions: Sequence[Prediction]) -> str | None:
    """How many of these are told, and which the furthest is; None where there is none, or nothing usual is known."""
    known = {i: (p.energy_std or 0.0) / len(p.forces) for i, p in enumerate(predictions) if (p.novelty or 0.0) > FAR}
    far = {i: std for i, std in known.items() if std > LEAST}  # eV/atom
    if not far:
        return None
    worst = max(far, key=lambda i: far[i])
    return (
        f"{len(far)} of {len(predictions)} structures are far from all that the model was trained on (another phase, "
        f"composition or molecule?): their energies are known {FAR:g} times as badly as those of left-out training "
        f"structures, or worse, frame {worst} ({structures[worst].symbols}) to {far[worst]:.2g} eV/atom. What their "
        "forces are worth their standard deviations say. Label a few such structures, and fit again with them."
    )
