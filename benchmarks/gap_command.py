"""The command of `gap_fit` (quippy-ase): train.extxyz to gap.xml in the folder that it runs in, energies and forces only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def gap_command(terms: Sequence[str], e0: str, sigma_energy: str, sigma_force: str) -> list[str | Path]:
    """terms: of `gap={...}`, e0: the argument of the reference energies, sigmas in eV/atom and eV/Å."""
    return [
        Path(sys.executable).with_name("gap_fit"),
        "at_file=train.extxyz",
        "energy_parameter_name=REF_energy",
        "force_parameter_name=REF_forces",
        "virial_parameter_name=none",
        e0,
        f"default_sigma={{{sigma_energy} {sigma_force} 0 0}}",
        "do_copy_at_file=F",
        "sparse_separate_file=F",
        "gp_file=gap.xml",
        "gap={" + " : ".join(terms) + "}",
    ]
