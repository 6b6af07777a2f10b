"""Networks that are trained further on magnetic frames: what each kind has to offer, and where the trained ones are kept.

A training is known by its kind, settings, seed and frames. Its weights and the CPU seconds that it took are kept on disk, so
that the methods and the splits that need the same network share it, and a run that was killed goes on after its last one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from ase import Atoms
from chgnet_rivals import Training
from safetensors import safe_open
from safetensors.torch import save_file
from task import Predicted, Task

from mfgp import FrameSet
from mfgp.base.files import replacing
from mfgp.frames import Frame

Predictions = tuple[np.ndarray, list[np.ndarray], list[np.ndarray] | None]


class Network(Protocol):
    """A network, and the references of the elements (eV) that its energies lack."""

    module: torch.nn.Module
    shift: dict[int, float]

    def train(self, frames: Sequence[Frame], training: Training, seed: int) -> None:
        """Train in place."""

    def predict(self, structures: Sequence[Atoms]) -> Predictions:
        """Energies (eV a cell), forces (eV/Å), moments (Bohr magnetons) of a network that has them."""


@dataclass(frozen=True)
class Kind:
    """make: a network as its package brings it. training: how all are trained. name: of their folder in the cache."""

    name: str
    make: Callable[[], Network]
    training: Training
    cache: Path

    def trained(self, frames: Sequence[Frame], seed: int) -> tuple[Network, float]:
        """A network trained on the frames, and the CPU seconds that it took when it was trained."""
        network, path = self.make(), self.cache / self.name / f"{self._key(frames, seed)}.safetensors"
        if path.exists():
            with safe_open(path, "pt") as kept:
                network.module.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118
                about = json.loads(kept.metadata()["about"])
            network.shift = {int(z): shift for z, shift in about["shift"].items()}
            return network, about["cpu_seconds"]
        start = time.process_time()
        network.train(frames, self.training, seed)
        seconds = time.process_time() - start
        path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"shift": network.shift, "cpu_seconds": seconds})
        state = {name: value.contiguous() for name, value in network.module.state_dict().items()}
        with replacing(path) as new:
            save_file(state, new, {"about": about})
        return network, seconds

    def fine_tuned(self, task: Task) -> Predicted:
        """A method: one network trained on all n magnetic frames."""
        network, seconds = self.trained(task.training.of(task.top), task.order)
        return Predicted(*network.predict([f.atoms for f in task.held_out]), seconds, note=asdict(self.training))

    def _key(self, frames: Sequence[Frame], seed: int) -> str:
        """The order of the frames counts: batches are drawn from it."""
        hashes = FrameSet(tuple({f.fidelity: 0 for f in frames}), tuple(frames)).frame_hashes()
        seen = (sorted(asdict(self.training).items()), seed, hashes)
        return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
