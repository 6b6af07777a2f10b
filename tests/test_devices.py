"""Which device is used, and what is said where a GPU cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mfgp.base.devices
from mfgp.base.devices import resident_memory, resolve_device
from mfgp.errors import ConfigError


@pytest.fixture
def without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose CUDA is not that of sphericart."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        mfgp.base.devices, "missing_on", lambda device: "sphericart-torch does not run on it (libnvrtc)"
    )


def test_a_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cpu") == resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds no CUDA device; set device: auto or cpu"):
        resolve_device("cuda")


@pytest.mark.usefixtures("without_nvrtc")
def test_a_gpu_that_cannot_be_used() -> None:
    """`auto` says so and takes the CPU; who asks for CUDA by name is told why it is refused."""
    with pytest.warns(UserWarning, match=r"the GPU is not used: .*libnvrtc"):
        assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device: cuda, but .*libnvrtc.*or set device: cpu"):
        resolve_device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
def test_a_gpu_that_can(cuda: torch.device) -> None:
    assert resolve_device("auto").type == resolve_device("cuda").type == cuda.type


def test_memory_that_the_process_holds() -> None:
    before = resident_memory()
    block = np.ones(25_000_000)  # 200 MB
    after = resident_memory()
    assert before is not None
    assert after is not None
    assert after - before > 0.5 * block.nbytes
