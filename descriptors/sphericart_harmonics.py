"""Solid harmonics of sphericart on any device.

The part of sphericart-torch that runs on CUDA (2.0.4) asks the system for CUDA 12's nvrtc by its name and uses nothing of
it. A torch built for CUDA 13 brings another; then the package nvidia-cuda-nvrtc-cu12 has it, where it is installed.

Bigi, Fraux, Browning & Ceriotti, J. Chem. Phys. 159, 064802 (2023).
"""

from __future__ import annotations

import ctypes
import functools
from importlib.util import find_spec
from pathlib import Path

import torch
from sphericart.torch import SolidHarmonics
from torch import Tensor


def solid_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """S_lm = R^l Y_lm of vectors [pair, xyz], [pair, lm]."""
    if len(vectors) == 0:  # no grid of CUDA is that small
        return vectors.new_empty(0, (l_max + 1) ** 2)
    return _calculator(vectors, l_max).compute(vectors)


def solid_harmonics_with_gradients(vectors: Tensor, l_max: int) -> tuple[Tensor, Tensor]:
    """S_lm [pair, lm] and its gradients [pair, xyz, lm]."""
    if len(vectors) == 0:
        return solid_harmonics(vectors, l_max), vectors.new_empty(0, 3, (l_max + 1) ** 2)
    return _calculator(vectors, l_max).compute_with_gradients(vectors)


def missing_on(device: torch.device) -> str | None:
    """What keeps the harmonics from being computed on a CUDA device, and the way out; None where nothing does."""
    try:
        solid_harmonics(torch.zeros(1, 3, dtype=torch.float64, device=device), 0)
    except (RuntimeError, OSError) as error:  # OSError: nvrtc itself does not load
        hint = "; pip install nvidia-cuda-nvrtc-cu12" if "libnvrtc" in str(error) else ""
        return f"sphericart-torch does not run on it ({error}){hint}"
    return None


def _calculator(vectors: Tensor, l_max: int) -> SolidHarmonics:
    if vectors.device.type == "cuda":
        _load_nvrtc()
    return SolidHarmonics(l_max)


@functools.cache  # a library is loaded once in the life of a process, by whoever comes first
def _load_nvrtc() -> None:
    """Load CUDA 12's nvrtc where its package is installed: a library that is loaded is found by its name."""
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.12")):
            ctypes.CDLL(str(path))
            return
