"""The device that a fit or a model runs on, and the memory that it has left."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from descriptors.sphericart_harmonics import missing_on
from mfgp.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one that can be used; where it cannot, a warning says why.

    Raises ConfigError for `cuda` where there is none, or none that can be used.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device; set device: auto or cpu.")
    missing = missing_on(torch.device("cuda"))
    if missing is None:
        return torch.device("cuda")
    if name == "cuda":
        raise ConfigError(f"device: cuda, but {missing}; or set device: cpu.")
    warnings.warn(f"the GPU is not used: {missing}.", stacklevel=1)  # from one place: python shows it once
    return torch.device("cpu")


def resident_memory() -> float | None:
    """Bytes of memory that this process holds (`top`: RES), on other systems than Linux its peak so far; None if unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * float(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def available_memory(device: torch.device) -> float | None:
    """Bytes that a fit could still take: free on the GPU or the machine, or left by a container; None if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free: list[float] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [1024.0 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free.append(float(limit) - float(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return min(free, default=None)
