"""The candidates of a selection: every structure of a pool at every level, with an estimate of what each would teach.

For all candidates the gain of gains.py is estimated from k random directions of the forces (directional.py). With the traces
tau = tr(A C A^T) and g = |A X|^2 over the 3N force rows in units of their noise,

    gain ~ g / (1 + tau / 3N)          exact where all rows are alike;     the row of the energy is taken by itself

When a calculation is taken as done, C_uu -> C_uu - Q_u^T Q_u and X_u -> X_u - Q_u^T (Q_t R^T), so with w = A Q_u^T

    tau -> tau - |w|^2,                A X -> A X - w (Q_t R^T)

and no structure is expanded twice. Virials are left out of the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mfgp.model import MultiFidelityGP
from mfgp.predict.predictor import Predictor
from mfgp.selection.directional import DirectionalRows


def offered_noises(model: MultiFidelityGP) -> Tensor:
    """Noise of the labels that a calculation at each level gives, [T, 3]: energies, forces, virials; infinite for none.

    What a level gives is what its training frames have. Kinds whose labels all carry a sigma of their own have no learned
    noise; they are taken with the rms of those (of earlier model files, with the initial noise of the configuration).
    """
    training = model.config.training
    initial = (training.noise_energy, training.noise_force, training.noise_virial)
    out = torch.stack([model.label_noise(t) for t in range(len(model.levels))])
    for t, level in enumerate(model.levels):
        for k, count in enumerate(("energies", "forces", "stresses")):
            if not model.data[level].get(count):
                out[t, k] = torch.inf
            elif out[t, k] == 0.0:
                out[t, k] = initial[k]
    return out


@dataclass
class Candidates:
    """P structures at L levels; every tensor has the structures first."""

    index: Tensor  # [P] place in the pool
    sizes: Tensor  # [P] atoms
    hours: Tensor  # [P, L] cost; infinite for what is not to be chosen
    forces: Tensor  # [P, k, M'] rows along random directions
    energy: Tensor  # [P, M'] row of the energy
    force_trace: Tensor  # [P, L] tau over force rows, not divided by the noise
    force_gain: Tensor  # [P, k, L, b] A X of force rows
    energy_trace: Tensor  # [P, L]
    energy_gain: Tensor  # [P, L, b]

    @staticmethod
    def of(
        predictor: Predictor,
        pool: Sequence[Atoms],
        expanded: Sequence[tuple[range, Tensor, DirectionalRows]],
        hours: np.ndarray,
        levels: Sequence[int],
        state: tuple[Tensor, Tensor],
    ) -> Candidates:
        """Of the structures of some batches of directional.batched_rows.

        hours [structure of the pool, L]; state: covariance C [T, T, M', M'] and projected X [T, M', b].
        """
        covariance, projected = state
        index = [i for places, _, _ in expanded for i in places]
        columns = [predictor.columns_of(pool[i]) for i in index]  # of each [1+3N+6, column]
        sizes = [len(pool[i]) for i in index]
        v = torch.cat([v for _, v, _ in expanded]).split(sizes)
        moved = [d.flatten(0, 1).T.to(c) @ c[1:-6] for c, d in zip(columns, v, strict=True)]  # [k, column]
        forces = torch.cat([torch.cat([rows.forces for _, _, rows in expanded]), torch.stack(moved)], dim=2)
        energy = torch.cat([rows.energy for _, _, rows in expanded])
        energy = torch.cat([energy, torch.stack([c[0] for c in columns])], dim=1)
        force_trace, force_gain, energy_trace, energy_gain = [], [], [], []
        for u in levels:
            force_trace.append(((forces @ covariance[u, u]) * forces).sum(2).mean(1))
            energy_trace.append(((energy @ covariance[u, u]) * energy).sum(1))
            force_gain.append(forces @ projected[u])
            energy_gain.append(energy @ projected[u])
        return Candidates(
            torch.tensor(index, device=energy.device),
            energy.new_tensor(sizes),
            energy.new_tensor(hours[index]),
            forces,
            energy,
            torch.stack(force_trace, dim=1),
            torch.stack(force_gain, dim=2),
            torch.stack(energy_trace, dim=1),
            torch.stack(energy_gain, dim=1),
        )

    def subset(self, chosen: Tensor) -> Candidates:
        """Some of the structures."""
        return Candidates(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Candidates]) -> Candidates:
        """All structures of several sets."""
        return Candidates(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Candidates)))

    def estimated_gains(self, noise: Tensor) -> Tensor:
        """Estimated fall of the target's variance, [P, L]. noise [L, >= 2]: energies (eV per sqrt(atom)), forces (eV/Å)."""
        n = self.sizes[:, None]
        energy, force = noise[:, 0] ** 2 * n, noise[:, 1] ** 2  # [P, L], [L]
        of_forces = (
            (self.force_gain**2).sum(3).mean(1) / force / (1.0 + self.force_trace.clamp(min=0.0) / (3 * n * force))
        )
        of_energy = (self.energy_gain**2).sum(2) / energy / (1.0 + self.energy_trace.clamp(min=0.0) / energy)
        return of_forces + of_energy

    def condition(self, q: Tensor, target: Tensor, levels: Sequence[int]) -> None:
        """Take a calculation as done, in place. q [T, r, M'] of gains.condition, target [r, b] = Q_t R^T."""
        of_levels = q[list(levels)].flatten(0, 1).T  # [M', L r]: one product reads the rows once
        forces, energy = (x @ of_levels for x in (self.forces, self.energy))  # [P, k, L r], [P, L r]
        r = q.shape[1]
        for place in range(len(levels)):
            w = forces[:, :, place * r : (place + 1) * r]
            self.force_trace[:, place] -= (w**2).sum(2).mean(1)
            self.force_gain[:, :, place] -= w @ target
            w = energy[:, place * r : (place + 1) * r]
            self.energy_trace[:, place] -= (w**2).sum(1)
            self.energy_gain[:, place] -= w @ target
