"""DPA-3 as a level below: a frozen model of DeePMD-kit as an ASE calculator, without DeePMD-kit.

Zhang et al., "A Graph Neural Network for the Era of Large Atomistic Models", arXiv:2506.01686. DeePMD-kit's wheels are built
for one version of PyTorch each, not ours; a frozen model is a TorchScript program that needs nothing of it but the name of
one operator, which exchanges atoms between the processes of LAMMPS and is never called here. The weights
2025-03-14-dpa3-openlam.pth (28 MB) come with the source distribution of matcalc (pip download --no-deps --no-binary :all:
matcalc==0.7.0; tests/pes/DPA3-LAM-2025.3.14-PES), as do those of the same network trained on MPtrj alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

NAME = "dpa3-openlam"  # as a baseline
WEIGHTS = "2025-03-14-dpa3-openlam.pth"
SHA256 = "ec764d927f57b1d20912bba845c5cee1c1905f15c1df18b80903fcf69c5c07e2"
BORDER_OP = (
    "border_op(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, Tensor g, Tensor h, Tensor i) -> Tensor[]"
)


OPERATORS = torch.library.Library("deepmd", "DEF")  # for as long as the process lives
OPERATORS.define(BORDER_OP)


class FrozenModel(Calculator):
    """Energy (eV a cell), forces (eV/Å) and stress (eV/Å^3, ASE's sign) of a frozen model."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, file: Path) -> None:
        if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{file} is not {WEIGHTS} of matcalc 0.7.0: labels and runs are kept under that name.")
        super().__init__()
        self.model = torch.jit.load(str(file), map_location="cpu")
        self.types = {symbol: i for i, symbol in enumerate(self.model.get_type_map())}

    def calculate(self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """Of a crystal."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        positions = torch.from_numpy(self.atoms.positions)[None]  # [1, N, 3] Å
        types = torch.tensor([[self.types[symbol] for symbol in self.atoms.symbols]])  # [1, N]
        cell = torch.from_numpy(self.atoms.cell.array.reshape(1, 9))  # Å
        found = {name: value.detach().numpy() for name, value in self.model(positions, types, cell).items()}
        energy = float(found["energy"].item())
        virial = found["virial"].reshape(3, 3)  # eV; minus the derivative of the energy by the strain
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": found["force"][0],
            "stress": full_3x3_to_voigt_6_stress(-0.5 * (virial + virial.T) / self.atoms.get_volume()),
        }
