"""sGDML trained and asked, in the environment of its package: sgdml_rival.py runs `python sgdml_run.py IN.npz OUT.npz`.

IN: z [N], r [n, N, 3] Å, e [n] eV, f [n, N, 3] eV/Å of the training molecules, asked [m, N, 3] Å, sigmas. The length scale
is the one of `sigmas` with the smallest force error on `valid` molecules that are left out of a first training.
OUT: energies [m] eV, forces [m, N, 3] eV/Å, sigma, its errors, and the number of permutations that the package found.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from sgdml.predict import GDMLPredict
from sgdml.train import GDMLTrain


def dataset(z: np.ndarray, r: np.ndarray, e: np.ndarray, f: np.ndarray) -> dict[str, Any]:
    """Molecules as its package wants them."""
    named = {"type": "d", "name": np.array("molecules"), "theory": np.array("labels")}
    units = {"r_unit": np.array("Ang"), "e_unit": np.array("eV")}
    return {**named, **units, "z": z.astype(np.uint8), "R": r, "E": e, "F": f}


def trained(data: dict[str, Any], sigma: int, perms: np.ndarray | None) -> tuple[GDMLPredict, np.ndarray]:
    """A force field of all molecules of `data`, and its permutations."""
    train = GDMLTrain(max_processes=1)
    task = train.create_task(data, len(data["E"]), data, 0, sigma, perms=perms)
    model = train.train(task)
    del train  # it is one at a time
    return GDMLPredict(model, max_processes=1), task["perms"]


def predicted(model: GDMLPredict, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies [m] and forces [m, N, 3]."""
    energies, forces = model.predict(r.reshape(len(r), -1))
    return energies, forces.reshape(r.shape)


def main(source: str, target: str) -> None:
    """Choose the length scale, train on everything, predict."""
    np.random.seed(0)  # noqa: NPY002 - the package draws and shuffles with numpy's global state
    given = np.load(source)
    z, r, e, f, sigmas, valid = (given[k] for k in ("z", "r", "e", "f", "sigmas", "valid"))
    rest = np.setdiff1d(np.arange(len(e)), valid)
    perms, errors = None, []
    for sigma in sigmas.tolist():
        model, perms = trained(dataset(z, r[rest], e[rest], f[rest]), sigma, perms)
        errors.append(float(np.sqrt(np.mean((predicted(model, r[valid])[1] - f[valid]) ** 2))))
        print(f"sigma {sigma}: {1e3 * errors[-1]:.2f} meV/Å on {len(valid)} molecules left out", flush=True)
    best = int(sigmas[int(np.argmin(errors))])
    model, perms = trained(dataset(z, r, e, f), best, perms)
    energies, forces = predicted(model, given["asked"])
    np.savez(target, energies=energies, forces=forces, sigma=best, errors=errors, permutations=len(perms))


if __name__ == "__main__":
    main(*sys.argv[1:])
