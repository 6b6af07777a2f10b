"""How many new labels lay in their 95 % intervals before a model learned them, and whether that can be chance.

A calibration is made from errors of left-out structures of the fit. What an update learns later is predicted first, by the
model that does not know it: its errors are those of a test that needs no more labels (prequential; Dawid, J. R. Stat. Soc. A
147, 278 (1984)). The components of one structure are far from independent, so that a structure counts as one: with h_s the
share of its labels of one kind that lie in their intervals (0 or 1 for an energy), of n new structures, and c structures
that the calibration was fitted to,

    p = P(|t_c| < 1.96),    v = [sum_s (h_s - mean h)^2 + p (1 - p)] / n,    t = (mean h - p) / sqrt(v (1 / n + 1 / c))

is taken as Student's t of n degrees of freedom, one-sided: too few, not too many. p is what intervals hold whose width comes
from c errors, 1 / c is for the errors that these themselves have, and p (1 - p), the variance of a label that lies inside or
outside, stands for one more structure, so that one or two that are alike do not look certain. n, sum h and sum h^2 are all
that is kept, and they go on from update to update, until a fit or `calibrate` makes another calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtr

from mfgp.calibration.scores import coverage_of_few


@dataclass(frozen=True)
class NewLabels:
    """New structures with labels of one kind (energy, forces, virial) at a level, sum h and sum h^2."""

    level: str
    kind: str
    structures: int = 0
    inside: float = 0.0
    squares: float = 0.0

    @property
    def share(self) -> float:
        """Mean h, of one structure or more."""
        return self.inside / self.structures

    def plus(self, shares: Sequence[float]) -> NewLabels:
        """With h of more structures."""
        n, inside, squares = self.structures + len(shares), sum(shares), sum(h * h for h in shares)
        return replace(self, structures=n, inside=self.inside + inside, squares=self.squares + squares)

    def chance(self, calibrated_on: int) -> float:
        """Probability of so few inside, with a calibration from the errors of c > 0 structures."""
        n, p = self.structures, coverage_of_few(calibrated_on)
        variance = (self.squares - n * self.share**2 + p * (1.0 - p)) / n
        return float(stdtr(n, (self.share - p) / (variance * (1.0 / n + 1.0 / calibrated_on)) ** 0.5))
