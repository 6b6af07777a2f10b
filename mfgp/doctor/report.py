"""What the doctor's checks return, and the few tools that they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mfgp.data.single_point import geometry
from mfgp.frames import Frame, FrameSet

Array = NDArray[np.float64]
Severity: TypeAlias = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

_SHOWN = 8
SEE_ALL = "mfgp doctor --json OUT lists all"


@dataclass(frozen=True)
class Finding:
    """One thing to know about the data. `check` names the check; `frames` are the sources of the frames concerned."""

    severity: Severity
    check: str
    message: str
    frames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Correlation:
    """Forces of two levels on the structures they share, for one element.

    r: Pearson's coefficient over components. slope: least-squares factor from low to high. n_atoms: atoms compared.
    """

    low: str
    high: str
    element: str
    n_atoms: int
    r: float
    slope: float


@dataclass(frozen=True)
class Report:
    """Counts for each level (as FrameSet.summary), findings, errors first, and force correlations between levels."""

    summary: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    correlations: tuple[Correlation, ...]

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def with_findings(self, more: Iterable[Finding]) -> Report:
        """The report with more findings, errors still first."""
        everything = sorted((*self.findings, *more), key=lambda finding: SEVERITIES.index(finding.severity))
        return replace(self, findings=tuple(everything))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and text; every finding with all of its frames."""
        return {
            "data": self.summary,
            "correlations": [asdict(c) for c in self.correlations],
            "findings": [{**asdict(f), "frames": list(f.frames)} for f in self.findings],
        }

    @property
    def ok(self) -> bool:
        """Whether there is no error among the findings."""
        return not self.of("error")


def examples(frames: Sequence[Frame], most: int = _SHOWN) -> str:
    """'nm.extxyz frame 3 (Li4Fe4P4O16), nm.extxyz frame 7 (Li4P4O16)', of many the first few, and how to see all."""
    shown = ", ".join(f"{frame.source} ({frame.atoms.symbols})" for frame in frames[:most])
    return shown if len(frames) <= most else f"{shown} and {len(frames) - most} more ({SEE_ALL})"


def enumerated(words: Iterable[str], last_by: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    *most, last = words
    return f"{', '.join(most)} {last_by} {last}" if most else last


def of_levels(levels: Sequence[str]) -> str:
    """ "fidelity 'nm'", "fidelities 'nm' and 'mag'"."""
    return f"{'fidelity' if len(levels) == 1 else 'fidelities'} {enumerated(repr(level) for level in levels)}"


def about(severity: Severity, check: str, message: str, frames: Sequence[Frame] = ()) -> Finding:
    return Finding(severity, check, message, tuple(frame.source for frame in frames))


def by_structure(frames: Iterable[Frame]) -> dict[str, list[Frame]]:
    groups: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[geometry(frame.atoms)].append(frame)
    return groups


def shared_structures(frames: FrameSet, low: str, high: str) -> list[tuple[Frame, Frame]]:
    """Pairs (low, high) of frames of two levels on the same structure."""
    below = by_structure(frames.of(low))
    return [(below[key][0], frame) for frame in frames.of(high) if (key := geometry(frame.atoms)) in below]


def robust_z(values: Array) -> Array:
    """(x - median) / (1.4826 MAD), the robust z-score: [n] -> [n], 0 where the spread is 0."""
    if not len(values):
        return values
    deviation = values - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(deviation)))
    return deviation / spread if spread > 0 else np.zeros_like(deviation)


def composition(frames: Sequence[Frame], numbers: Sequence[int]) -> Array:
    """Number of atoms of each element: [frame, element]."""
    return np.array([[np.count_nonzero(frame.atoms.numbers == z) for z in numbers] for frame in frames], dtype=float)
