"""Our model and `gap_fit` at one level, for peers.py. Settings of both were chosen on folds of the training sets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io import write
from common import run_measured, timed
from gap_command import gap_command
from ours import WIDTH_95
from task import Predicted, Task

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.evaluation import evaluate
from mfgp.predict.batched import predict_many


class GP:
    """Our model at the highest level alone, calibrated."""

    def __init__(self, config: FitConfig) -> None:
        self.config = config
        self.model: MultiFidelityGP | None = None  # of the last fit

    def __call__(self, task: Task) -> Predicted:
        """Fit, then predict the held-out frames; coverage is that of each set (`covered`)."""
        own = FrameSet((task.top,), tuple(task.training.of(task.top)))
        with timed() as timing:
            self.model = MultiFidelityGP.fit(own, self.config)
        found = list(predict_many(self.model.predictor(), [f.atoms for f in task.held_out], "none"))
        note = self.config.model_dump(mode="json", exclude={"fidelities", "keys"})
        return Predicted(np.array([p.energy for p in found]), [p.forces for p in found], None, timing.cpu, note=note)

    def covered(self, task: Task) -> dict[str, float]:
        """Shares of energies and force components in the 95 % intervals of the last fit."""
        assert self.model is not None
        found = evaluate(self.model, list(task.held_out), task.top)
        return {name: float(np.mean(np.abs(c.error) < WIDTH_95 * c.std)) for name, _, c in found.kinds()}


class GapFit:
    """`gap_fit` (quippy-ase): a SOAP for each element, and pairs where `pairs` names a number of sparse points."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)

    def __call__(self, task: Task) -> Predicted:
        """Fit by its command, then predict through quippy."""
        from quippy.potential import Potential

        training = task.training.of(task.top)
        with tempfile.TemporaryDirectory() as name:
            work, frames = Path(name), []
            for f in training:
                atoms = f.atoms.copy()
                atoms.calc = None
                atoms.info, atoms.arrays["REF_forces"] = {"REF_energy": float(f.energy)}, f.forces  # type: ignore
                if f.isolated_atom:
                    atoms.info["config_type"] = "isolated_atom"
                frames.append(_boxed(atoms))
            write(work / "train.extxyz", frames)
            usage = run_measured(self.command(training), work, threads=1)
            potential = Potential(param_filename=str(work / "gap.xml"))
            energies, forces = [], []
            for f in task.held_out:
                potential.calculate(_boxed(f.atoms.copy()), properties=["energy", "forces"])
                energies.append(potential.results["energy"])
                forces.append(potential.results["forces"].copy())
        return Predicted(np.array(energies), forces, None, usage.cpu, note=self.settings)

    def command(self, training: Sequence[Any]) -> list[str | Path]:
        """What is run."""
        s, species = self.settings, sorted({int(z) for f in training for z in f.atoms.numbers})
        numbers = " ".join(map(str, species))
        terms = [
            f"soap l_max={s['l_max']} n_max={s['n_max']} atom_sigma={s['atom_sigma']} zeta={s['zeta']} cutoff={s['cutoff']} "
            f"cutoff_transition_width=1.0 delta={s['delta']} n_sparse={s['n_sparse']} sparse_method=cur_points "
            f"covariance_type=dot_product add_species=F n_species={len(species)} species_Z={{{{{numbers}}}}} Z={z}"
            for z in species
        ]
        if int(s.get("pairs", "0")):
            terms += [
                f"distance_2b cutoff={s['cutoff']} cutoff_transition_width=1.0 n_sparse={s['pairs']} "
                f"delta={s['pair_delta']} theta_uniform=1.0 covariance_type=ard_se sparse_method=uniform add_species=F "
                f"Z1={a} Z2={b}"
                for a, b in combinations_with_replacement(species, 2)
            ]
        alone = {int(f.atoms.numbers[0]): float(f.energy) for f in training if f.isolated_atom}
        e0 = (
            "e0={" + ":".join(f"{chemical_symbols[z]}:{e!r}" for z, e in alone.items()) + "}"
            if alone
            else "e0_method=average"
        )
        return gap_command(terms, e0, s["sigma_energy"], s["sigma_force"])


def _boxed(atoms: Atoms) -> Atoms:
    """quippy wants a cell: a box far larger than the molecule where there is none."""
    if not atoms.cell.rank:
        atoms.set_cell(np.ptp(atoms.positions, axis=0) + 30.0)
    return atoms
