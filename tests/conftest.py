"""Small labelled data sets at two levels that every test can afford."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from pretended_device import pretended_device

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.frames import to_atoms

DESCRIPTOR = {"r_cut": 4.5, "n_max": 4, "l_max": 3, "sigma": 0.5}


def alloy(seed: int, repeat: int = 1, rattle: float = 0.12) -> Atoms:
    """A rattled, strained CuAu cell of 4 repeat^3 atoms."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * (repeat, repeat, repeat)
    symbols = np.array(["Cu"] * len(atoms))
    symbols[rng.permutation(len(atoms))[: len(atoms) // 2]] = "Au"
    atoms.set_chemical_symbols(list(symbols))
    strain = np.eye(3) + rng.normal(0, 0.02, (3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
    return atoms


def label(atoms: Atoms, level: str) -> Atoms:
    """EMT (`low`), or EMT and a Lennard-Jones term with shifted elements (`high`)."""
    out = atoms.copy()
    calc = (
        EMT() if level == "low" else SumCalculator([EMT(), LennardJones(sigma=2.3, epsilon=0.05, rc=6.0, smooth=True)])
    )
    work = atoms.copy()
    work.calc = calc
    shift = (
        0.0 if level == "low" else 1.5 * float((atoms.numbers == 29).sum()) - 0.7 * float((atoms.numbers == 79).sum())
    )
    out.info["REF_energy"] = float(work.get_potential_energy()) + shift
    out.arrays["REF_forces"] = work.get_forces()
    out.info["REF_stress"] = work.get_stress()
    out.info["fidelity"] = level
    return out


def molecules(name: str, n: int, seed: int) -> FrameSet:
    """Displaced molecules with EMT's labels, which have no noise."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = molecule(name)
        atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
        atoms.calc = EMT()
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        out.append(atoms)
    return read_frames({"emt": out})


@pytest.fixture(scope="session")
def two_levels() -> FrameSet:
    """12 low, 5 high training frames, and 4 high frames marked as test."""
    low = [label(alloy(i), "low") for i in range(12)]
    high = [label(alloy(i), "high") for i in range(5)]
    test = [label(alloy(100 + i), "high") for i in range(4)]
    for atoms in test:
        atoms.info["split"] = "test"
    return read_frames({"low": low, "high": high + test})


@pytest.fixture(scope="session")
def config() -> FitConfig:
    return FitConfig(
        descriptor=DESCRIPTOR,
        model={"zeta": 2, "n_inducing": 40},
        training={"max_iterations": 30, "calibrate": False},
        device="cpu",
    )


@pytest.fixture(scope="session")
def model(two_levels: FrameSet, config: FitConfig) -> MultiFidelityGP:
    return MultiFidelityGP.fit(two_levels, config, progress=False)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory, two_levels: FrameSet, config: FitConfig) -> Path:
    """low.extxyz, high.extxyz (its held-out frames marked), config.yaml."""
    path = tmp_path_factory.mktemp("data")
    for level in two_levels.levels:
        frames = []
        for frame in two_levels.of(level):
            frames.append(to_atoms(frame))
            if frame.split is not None:
                frames[-1].info["split"] = frame.split
        ase.io.write(path / f"{level}.extxyz", frames)
    settings = config.model_dump(mode="json", include={"descriptor", "model", "training"})
    settings["fidelities"] = [{"name": level, "train": f"{level}.extxyz"} for level in two_levels.levels]
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def model_file(data_folder: Path, model: MultiFidelityGP) -> Path:
    model.save(data_folder / "ready.mfgp")
    return data_folder / "ready.mfgp"


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """The first CUDA device, or a pretended one where there is none."""
    if torch.cuda.is_available():
        yield torch.device("cuda", 0)
        return
    with pytest.MonkeyPatch.context() as patch, pretended_device(patch) as device:
        yield device
