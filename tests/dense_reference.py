"""The posterior without inducing points, from all covariances, for tests of the sparse one."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from conftest import label

from descriptors import jacobian
from mfgp import FrameSet, MultiFidelityGP, read_frames
from mfgp.gp.kernels import functional_covariance


def dense_posterior(
    model: MultiFidelityGP, frames: FrameSet, atoms: Atoms, labelled: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of all functionals of `atoms` at the top level by the dense two-level formula.

    Energies are those against as many mean environments (centring), whose kernels with a functional are its features times
    their mean.
    `labelled` picks the functionals of each frame that carry a label.
    """
    structures = [(f.atoms, frames.levels.index(f.fidelity)) for f in frames] + [(atoms, 1)]
    jacs = [jacobian(model.soap, model.soap.neighborhoods([a])) for a, _ in structures]
    numbers = [torch.from_numpy(a.numbers.astype(np.int64)) for a, _ in structures]
    extra = [model.columns.rows(a.numbers, [], a.get_volume()) for a, _ in structures]
    scale, rho = model.prior.scale.tolist(), model.prior.rho[0].tolist()
    species, zeta, centre = model.basis.species, model.basis.zeta, model.features.centre
    phi = [model.features.rows(a) for a, _ in structures]
    counts = [e[:, : len(species)] for e in extra]  # of atoms: 0 for derivatives

    def block(i: int, j: int) -> np.ndarray:
        (_, t), (_, u) = structures[i], structures[j]
        weight = {z: scale[0] ** 2 * rho[k] ** (t + u) + scale[1] ** 2 * t * u for k, z in enumerate(species)}
        cov = functional_covariance(jacs[i], numbers[i], jacs[j], numbers[j], weight, zeta)
        w = torch.tensor([weight[z] for z in species], dtype=torch.float64)[model.basis.species_index()]
        mean_i, mean_j = counts[i] @ centre, counts[j] @ centre
        cov = cov - (phi[i] * w) @ mean_j.T - (mean_i * w) @ phi[j].T + (mean_i * w) @ mean_j.T
        for level in range(min(t, u) + 1):
            cov = cov + (extra[i] * model.column_std[level] ** 2) @ extra[j].T
        return cov.numpy()

    def pick(i: int) -> slice:
        return labelled if i < len(frames) else slice(None)

    n = len(structures)
    full = np.block([[block(i, j)[pick(i), pick(j)] for j in range(n)] for i in range(n)])
    y, noise = [], []
    for i, f in enumerate(frames):
        mean = model.columns.mean(extra[i], structures[i][1]).numpy()
        assert f.forces is not None
        assert f.stress is not None
        values = np.concatenate([[f.energy], f.forces.reshape(-1), -f.atoms.get_volume() * f.stress])
        y.append((values - mean)[labelled])
        sigma = model.noise.noise[structures[i][1]].tolist()
        root = len(f.atoms) ** 0.5
        of_virial = [sigma[2] * root] * 3 + [sigma[2] * root / 2**0.5] * 3
        sigmas = [sigma[0] * root, *[sigma[1]] * (3 * len(f.atoms)), *of_virial]
        noise.append(np.array(sigmas)[labelled] ** 2)
    m = sum(len(v) for v in y)
    k = full[:m, :m] + np.diag(np.concatenate(noise))
    mean = full[m:, :m] @ np.linalg.solve(k, np.concatenate(y)) + model.columns.mean(extra[-1], 1).numpy()
    return mean, full[m:, m:] - full[m:, :m] @ np.linalg.solve(k, full[:m, m:])


def strip(frames: FrameSet, keep: tuple[str, ...]) -> FrameSet:
    """The same training frames with only some labels."""
    data: dict[str, list[Atoms]] = {level: [] for level in frames.levels}
    for f in frames.training():
        atoms = label(f.atoms, f.fidelity)
        for name, store in (("energy", atoms.info), ("forces", atoms.arrays), ("stress", atoms.info)):
            if name not in keep:
                store.pop(f"REF_{name}")
        data[f.fidelity].append(atoms)
    return read_frames(data)
