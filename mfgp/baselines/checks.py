"""Whether the calculator that a caller gives for a baseline on loading is the one that the model was fitted over.

A model file keeps no code. Of each baseline whose calculator a caller gave it keeps a training structure and the energy that
this had for it; loading computes that once more, also with the registry's calculator where it knows the name (a `mace` that
was fine-tuned, a `d3` of another functional). Another calculator under the same name would change every prediction without
a word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ase import Atoms

from mfgp.baselines.columns import Baseline, first_levels
from mfgp.config import BaselineConfig
from mfgp.errors import ConfigError
from mfgp.frames import FrameSet

SAME_ENERGY = 1e-3  # eV/atom; networks differ by less between machines

Check = dict[str, Any]  # numbers, positions (Å), cell (Å), pbc, energy (eV): plain JSON


def baseline_checks(
    frames: FrameSet, configs: Sequence[BaselineConfig], baselines: Sequence[Baseline], given: Collection[str]
) -> dict[str, Check]:
    """A check by name of each `given` baseline, one that a caller gave; of its smallest structure, isolated atoms aside.

    Only frames of levels that use a baseline count; one without any has no check.
    """
    out: dict[str, Check] = {}
    for baseline, first in zip(baselines, first_levels(configs, frames.levels), strict=True):
        used = [f.atoms for f in frames if frames.levels.index(f.fidelity) >= first and not f.isolated_atom]
        if baseline.name in given and used:
            atoms = min(used, key=len)
            out[baseline.name] = {
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.array.tolist(),
                "pbc": atoms.pbc.tolist(),
                "energy": float(baseline.labels(atoms).energy),
            }
    return out


def verify(checks: Mapping[str, Check], baselines: Sequence[Baseline]) -> None:
    """ConfigError for a baseline whose energy is another one now; DataError where its calculator fails."""
    for baseline in baselines:
        if (check := checks.get(baseline.name)) is None:
            continue
        atoms = Atoms(check["numbers"], check["positions"], cell=check["cell"], pbc=check["pbc"])
        found = float(baseline.labels(atoms).energy)
        if not abs(found - check["energy"]) <= SAME_ENERGY * len(atoms):
            raise ConfigError(
                f"baseline {baseline.name!r}: this calculator gives {atoms.symbols}, a training structure, {found:.4f} eV, "
                f"the one that the model was fitted with gave {check['energy']:.4f} eV; give that one, with the same "
                "parameters, or fit again."
            )
