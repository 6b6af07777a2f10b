"""The pretended device takes what CUDA takes, and refuses what CUDA refuses: the same tests hold on a real one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

pytestmark = pytest.mark.gpu
F64 = torch.float64

REFUSED: dict[str, Callable[[Tensor], object]] = {
    "numpy": lambda a: a.numpy(),
    "as an array": np.asarray,
    "sum of two devices": lambda a: a + torch.ones(3, 3),
    "CPU by a device index": lambda a: torch.ones(3)[torch.tensor([0], device=a.device)],
    "device by a CPU mask of index_select": lambda a: a.index_select(0, torch.tensor([1])),
    "cat": lambda a: torch.cat([a, torch.ones(3, 3, dtype=F64)]),
    "stack of scalars": lambda a: torch.stack([a[0, 0], torch.tensor(1.0, dtype=F64)]),
    "into the CPU": lambda a: torch.ones(3, dtype=F64).add_(a[0]),
    "into a scalar of the CPU": lambda a: torch.tensor(1.0, dtype=F64).add_(a[0, 0]),
    "product of two devices": lambda a: a @ torch.ones(3, 3, dtype=F64),
    "product of whole numbers": lambda a: a.long() @ a.long(),
    "a generator of the CPU": lambda a: torch.randn(3, generator=torch.Generator(), device=a.device),
    "sorted on the CPU": lambda a: torch.searchsorted(torch.arange(3.0, dtype=F64), a[0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(name: str, cuda: torch.device) -> None:
    a = torch.ones(3, 3, dtype=F64, device=cuda)
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[name](a)


def test_what_it_takes(cuda: torch.device) -> None:
    a = torch.arange(9.0, dtype=F64).view(3, 3).to("cuda")
    made = [
        a[torch.tensor([0, 2])],
        a + torch.tensor(1.0, dtype=F64),
        a[[0, 1], [1, 2]],
        a.new_zeros(2),
        a.new_tensor([1.0]),
        torch.zeros_like(a),
        torch.tensor([1.0], device=cuda),
        torch.as_tensor(2.0, device=cuda),
        a.flatten()[1:4] @ a[:, 0],
    ]
    assert {x.device for x in made} == {cuda}
    assert a.cpu().device.type == torch.zeros_like(a, device="cpu").device.type == "cpu"
    assert a.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert float(made[-1]) == 24.0
    a[0, 1] = 7.0
    a[1:].T.add_(1.0)  # through a view
    assert a[1, 0].item() == 4.0
    with torch.inference_mode():
        assert float((a[:1] @ a[0]).square_().sum()) == 53.0**2
    host = torch.empty(3, 3)
    assert float(host.copy_(a)[0, 1]) == 7.0


def test_derivatives(cuda: torch.device) -> None:
    """Of a layer whose bias is broadcast, with a parameter that enters twice."""
    layer = torch.nn.Linear(3, 2).double()
    x, slopes = torch.linspace(-1, 1, 12, dtype=F64).view(4, 3), []
    for device in (torch.device("cpu"), cuda):
        layer = layer.to(device)
        layer.zero_grad()
        y = layer(x.to(device))
        (y.exp().sum() + layer.bias.square().sum()).backward()
        slopes.append([p.grad.clone().cpu() for p in layer.parameters()])  # `to` moves the gradients too
    for ours, theirs in zip(*slopes, strict=True):
        assert_allclose(ours, theirs, rtol=1e-13)
