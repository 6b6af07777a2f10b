"""Calculators for the tests of campaigns: EMT that leaves a trace of every calculation, and ones that misbehave.

Importable from worker processes; each factory takes plain settings, as a campaign passes them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones


class TracedEMT(EMT):
    """EMT that appends a line to a file for each calculation, and may be slow or fail. `mode` says how."""

    def __init__(self, trace: str, mode: str = "", seconds: float = 0.0) -> None:
        super().__init__()
        self.trace, self.mode, self.seconds = Path(trace), mode, seconds
        self.converged: bool | None = None

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        key = f"{np.abs(atoms.positions).sum():.8f}"  # tells the structures of a pool apart
        mode = self.mode if self.mode.endswith("all") or int(key[-1]) % 2 else ""
        _line(self.trace, f"begin {key} {self.mode}")
        time.sleep(self.seconds)
        if mode.startswith("raise"):
            raise CalculationFailed("SCF did not\nconverge")
        if mode.startswith("die"):
            os._exit(9)
        if mode.startswith("hang"):
            time.sleep(3600)
        super().calculate(atoms, properties, system_changes)
        if mode.startswith("nan"):
            self.results["forces"] = np.full((len(atoms), 3), np.nan)
        if mode.startswith("huge"):
            self.results["forces"] = 1e3 + np.zeros((len(atoms), 3))
        if mode.startswith("unconverged"):
            self.converged = False
        if mode.startswith("no stress"):
            self.results["stress"] = None
        if mode.startswith("relax"):
            atoms.positions[0, 0] += 0.0 if "cell" in mode else 0.02
            atoms.cell[0, 0] += 0.01 if "cell" in mode else 0.0
            self.atoms = atoms.copy()
        if mode.startswith("spin"):
            self.results["magmoms"] = np.where(atoms.numbers == 29, 3.9, 0.0)
            if mode.startswith("spin_zero"):
                self.results["magmoms"] = np.zeros(len(atoms))
            if mode.startswith("spin_low"):
                self.results["magmoms"][np.flatnonzero(atoms.numbers == 29)[0]] = -0.1
        _line(self.trace, f"end {key}")


def traced(trace: str, mode: str = "", seconds: float = 0.0) -> TracedEMT:
    return TracedEMT(trace, mode, seconds)


def high() -> Any:
    """EMT and a Lennard-Jones term: the `high` level of conftest, without its shift of elements."""
    from ase.calculators.mixing import SumCalculator

    return SumCalculator([EMT(), LennardJones(sigma=2.3, epsilon=0.05, rc=6.0, smooth=True)])


def _line(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
