"""What a user is told of new structures that the inducing points of the fit do not carry (calibration/carried.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ase.data import chemical_symbols

from mfgp.calibration.carried import BEYOND

if TYPE_CHECKING:
    from mfgp.calibration.calibration import Calibration
    from mfgp.model import MultiFidelityGP


def not_carried(calibration: Calibration, levels: Sequence[str]) -> Iterator[str]:
    """Of the levels among these with such structures."""
    for found in calibration.carried:
        if found.level in levels and found.elements:
            elements = ", ".join(chemical_symbols[z] for z in found.elements)
            yield (
                f"fidelity {found.level!r}: the model cannot describe {found.beyond} of the structures that updates "
                f"brought, such as {found.first}: no inducing points are like theirs (what these leave open of the forces "
                f"on {elements} is more than {BEYOND:g} times the usual). It learns such labels in part, and gets worse "
                "for the earlier data; `calibrate` would mend the standard deviations only. Fit again with all frames, "
                "which chooses new inducing points (a campaign with `fit` does so by itself)"
            )


def not_carried_notes(model: MultiFidelityGP) -> list[str]:
    """A warning for each level with such structures."""
    found = [] if model.calibration is None else not_carried(model.calibration, model.levels)
    return [f"warning: {text}" for text in found]
