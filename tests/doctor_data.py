"""Data for tests of the doctor, and what they ask of its report."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from numpy.typing import NDArray

from mfgp.doctor import examine
from mfgp.doctor.report import Finding, Report
from mfgp.frames import read_frames

Array = NDArray[np.float64]


def labelled(atoms: Atoms, scale: float = 1.0, **info: object) -> Atoms:
    """EMT labels times `scale`, under REF_ keys."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    atoms.info.update({"REF_energy": scale * atoms.get_potential_energy(), **info})
    atoms.set_array("REF_forces", scale * atoms.get_forces())
    atoms.info["REF_stress"] = atoms.get_stress()
    atoms.calc = None
    return atoms


def crystals(n: int = 12, seed: int = 0, **info: object) -> list[Atoms]:
    """Rattled Cu/Au cells of several compositions."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        atoms = bulk("Cu", cubic=True, a=3.7)
        atoms.numbers[: i % 4] = 79
        atoms.positions += rng.normal(scale=0.08, size=(4, 3))
        found.append(labelled(atoms, **info))
    return found


def report_of(*levels: list[Atoms]) -> Report:
    return examine(read_frames({name: list(own) for name, own in zip(("low", "high", "top"), levels, strict=False)}))


def only(report: Report, severity: str, check: str) -> Finding:
    found = [finding for finding in report.findings if (finding.severity, finding.check) == (severity, check)]
    assert len(found) == 1, f"{severity} {check}: {[(f.severity, f.check, f.message) for f in report.findings]}"
    return found[0]


def has(report: Report, severity: str, check: str) -> bool:
    return any((finding.severity, finding.check) == (severity, check) for finding in report.findings)


def says(finding: Finding, *parts: str) -> None:
    missing = [part for part in parts if part not in finding.message]
    assert not missing, f"{missing} not in {finding.message!r}"
