"""Seconds of a step of molecular dynamics on a GPU: of any calculator, and of MACE with random weights.

    python mace_step.py CELL.extxyz ...

mace-torch pins another e3nn than SevenNet needs, so this runs in a Python of its own and prints a JSON object a line. Two
sizes: 128 scalar channels (`small` of its foundation models), and 128 scalars and 128 vectors (`medium`); cutoff 5 Å, two
layers, float32, which is what its calculators use for dynamics; float64 for the small one besides. Where cuequivariance is
installed, with its kernels. Weights are random: they decide no time.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

TEMPERATURE, TIME_STEP, WARM_UP = 1000.0, 1.0, 3  # K, fs, steps
R_MAX = 5.0  # Å
HIDDEN = {"small": "128x0e", "medium": "128x0e + 128x1o"}
LONGEST = 5.0  # seconds of the steps of one size


def dynamics_seconds(atoms: Atoms, calculator: Any, n_steps: int) -> dict[str, Any]:
    """Seconds of a step of VelocityVerlet, the mean of n_steps (fewer where they are slow) after a few, from 1000 K.

    Where the positions come to rest on the host every step, the GPU has finished by the end of it.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    spread = np.sqrt(units.kB * TEMPERATURE * atoms.get_masses())[:, None]
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * spread)
    dynamics = VelocityVerlet(atoms, TIME_STEP * units.fs)
    dynamics.run(1)
    start = time.perf_counter()
    dynamics.run(WARM_UP - 1)
    one = (time.perf_counter() - start) / (WARM_UP - 1)
    n = max(2, min(n_steps, int(LONGEST / one)))
    start = time.perf_counter()
    dynamics.run(n)
    return {"atoms": len(atoms), "seconds": (time.perf_counter() - start) / n, "steps": n}


def random_mace(numbers: list[int], hidden: str, n_neighbors: float) -> Any:
    """A ScaleShiftMACE for these elements."""
    import torch
    from e3nn import o3
    from mace import modules

    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=R_MAX,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=n_neighbors,
        atomic_numbers=numbers,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=0.1,  # keeps the crystal together
        atomic_inter_shift=0.0,
    )


def main(paths: list[str]) -> None:
    """All sizes of both models."""
    import torch
    from mace.calculators import MACECalculator

    try:
        import cuequivariance_ops_torch  # noqa: F401

        kernels = True
    except ImportError:
        kernels = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size, hidden in HIDDEN.items():
        for dtype in ("float32", "float64") if size == "small" else ("float32",):
            for path in paths:
                atoms = ase.io.read(path)
                label = f"MACE {size}, {dtype}" + (", cuequivariance" if kernels else "")
                line: dict[str, Any] = {"model": label, "atoms": len(atoms)}
                try:
                    torch.set_default_dtype(getattr(torch, dtype))
                    model = random_mace(sorted(set(atoms.numbers.tolist())), hidden, 40.0).to(device)
                    options = {"device": device, "default_dtype": dtype, "enable_cueq": kernels}
                    line |= dynamics_seconds(atoms, MACECalculator(models=[model], **options), 20)
                except Exception as error:  # out of memory, or kernels that this card does not take: the table says so
                    line["error"] = f"{type(error).__name__}: {str(error)[:200]}"
                if device == "cuda":
                    line["peak_bytes"] = torch.cuda.max_memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                    torch.cuda.empty_cache()
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
