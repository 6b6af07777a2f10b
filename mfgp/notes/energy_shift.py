"""What a user is told of an evaluation whose energies are off by much the same amount per atom.

That is what labels of another reference of energies or another level look like, and nothing that the errors of left-out
structures can tell: a score of the energies says little then, unlike those of the forces and what is left without the
shift. Told is a mean error of more than CLEAR times both the scatter of the errors and the standard deviation that the
model gives them (where this is as wide, as for another composition, the model says by itself that it does not know).
"""

from __future__ import annotations

import numpy as np

from mfgp.evaluation import Evaluation

CLEAR = 3.0
ENOUGH = 4  # structures; of three, errors about zero have such a mean and scatter by chance in 4 %


def energy_shift(result: Evaluation) -> str | None:
    """The mean error of the energies per atom and the RMSE that is left without it, where it is most of all errors."""
    error, expected = result.energy.error, result.energy.std  # [n] eV/atom
    if len(error) < ENOUGH:
        return None
    shift, scatter = float(error.mean()), float(error.std(ddof=1))
    if abs(shift) <= CLEAR * max(scatter, float(np.sqrt((expected**2).mean()))):
        return None
    return (
        f"the energies of {len(error)} structures are predicted {1e3 * abs(shift):.3g} meV/atom too "
        f"{'high' if shift > 0 else 'low'} in the mean; without this shift an RMSE of {1e3 * float(error.std()):.3g} "
        "meV/atom is left. Are these labels of another reference of energies, other settings or another level than those "
        "that the model was trained on? Forces do not know of it."
    )
