"""A CUDA device where there is none: tensors that say cuda:0, whose numbers are in CPU tensors.

Every operation is computed on the CPU, after a check of what CUDA would refuse: tensors on different devices (but for CPU
scalars in pointwise operations, and CPU indices), a conversion to numpy, operations without a CUDA kernel, matrix products
of whole numbers, a generator of the wrong device. So the CUDA branch of a program runs, with its numbers, on any machine.

It cannot show speed, memory, the rounding and the order of sums of CUDA's kernels, nor limits of their launches.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
BETWEEN_DEVICES = {"copy_", "_to_copy"}
CPU_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
WITH_VALUE = ("fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "index_put", "index_put_")
CPU_VALUES = set(WITH_VALUE)  # where they have no dimension
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul", "mv", "dot", "addmv", "addr", "addbmm"}
COMPOSITE = torch._C._dispatch_has_kernel_for_dispatch_key
MEMORY = 8 * 2**30  # bytes, of those that are free and in all


class PretendedTensor(torch.Tensor):
    """A tensor on cuda:0 whose numbers are those of `inner`."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> PretendedTensor:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
        )
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=CUDA)

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def backward(self, *args: Any, **kwargs: Any) -> None:
        """The derivatives of a scalar. torch's own pass asks for streams of the device, so the graph is walked here."""
        if args or kwargs or self.dim():
            raise NotImplementedError("backward of anything but a scalar is not pretended")
        later: list[Any] = []

        def visit(node: Any) -> None:
            if node not in seen:
                seen.add(node)
                for before, _ in node.next_functions:
                    if before is not None:
                        visit(before)
                later.append(node)

        seen: set[Any] = set()
        visit(self.grad_fn)
        found: dict[Any, dict[int, torch.Tensor]] = {self.grad_fn: {self.output_nr: torch.ones_like(self)}}
        with torch.no_grad():
            for node in reversed(later):
                given = [found.get(node, {}).get(i) for i in range(len(node._input_metadata))]
                if hasattr(node, "variable"):
                    into, own = node.variable, given[0]
                    assert own is None or own.device == into.device, f"gradient of {into.device} on {own.device}"
                    into.grad = own if into.grad is None or own is None else into.grad + own
                    continue
                own = (
                    node.apply(*given) if isinstance(node, torch.autograd.function.BackwardCFunction) else node(*given)
                )
                for (before, i), x in zip(node.next_functions, own if isinstance(own, tuple) else (own,), strict=False):
                    if before is not None and x is not None:
                        sums, x = found.setdefault(before, {}), x.sum_to_size(before._input_metadata[i].shape)
                        sums[i] = sums[i] + x if i in sums else x

    def __repr__(self) -> str:
        return f"Pretended({self.cpu()!r})"


class PretendedDevice(TorchDispatchMode):
    """While it is active, factories and copies know of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = [x for x in (kwargs.get("device"), *args[1:2]) if isinstance(x, torch.device)]
        if PretendedTensor not in types and CUDA not in asked:
            return func(*args, **kwargs)
        if func.overloadpacket.__name__ != "matmul" and COMPOSITE(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode they come whole
                return func.decompose(*args, **kwargs)
        return computed(func, args, kwargs)


class Indexed(TorchFunctionMode):
    """`cuda` is cuda:0 in every call: torch would ask the device for its present index."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device and len(args) + len(kwargs or {}) > 1:  # type and index
            return func(*args, **(kwargs or {}))
        kwargs = {k: CUDA if k == "device" and str(v) == "cuda" else v for k, v in (kwargs or {}).items()}
        return func(*(CUDA if isinstance(x, str | torch.device) and str(x) == "cuda" else x for x in args), **kwargs)


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on the inner tensors, after the checks; results are on the device where CUDA's are."""
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, PretendedTensor)]
    asked = kwargs.get("device")
    if name == "copy_":
        on_device = isinstance(args[0], PretendedTensor)
    elif asked is not None:
        on_device, kwargs = asked.type == "cuda", {**kwargs, "device": torch.device("cpu")}
    else:
        on_device = bool(there)
        check_devices(func, name, args, kwargs, tensors)
    if on_device:
        check_kernel(func, name, tensors, kwargs)
    inner_args, inner_kwargs = tree_map_only(PretendedTensor, lambda x: x.inner, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    for x in there:
        if x.shape != x.inner.shape or x.stride() != x.inner.stride():  # squeeze_ and the like
            moved = PretendedTensor(x.inner)
            with torch._C._DisableTorchDispatch():
                x.data = moved
    own = {id(x.inner): x for x in there}

    def back(x: torch.Tensor) -> torch.Tensor:
        return own[id(x)] if id(x) in own else PretendedTensor(x) if on_device else x

    # A view is an inference tensor where what it is a view of is one.
    view = there and any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    with torch.inference_mode(args[0].is_inference()) if view else nullcontext():
        return tree_map_only(torch.Tensor, back, result)


def check_devices(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Any]) -> None:
    """RuntimeError for tensors on the CPU that CUDA would not take beside those on the device."""
    here = [x for x in tensors if not isinstance(x, PretendedTensor)]
    pairs = [*zip(args, func._schema.arguments, strict=False)]
    pairs += [(kwargs.get(a.name), a) for a in func._schema.arguments]
    written = [x for x, a in pairs if a.alias_info is not None and a.alias_info.is_write]
    indices = [*args[1]] if name in CPU_INDICES and isinstance(args[0], PretendedTensor) else []
    scalars = torch.Tag.pointwise in func.tags or name in CPU_VALUES
    for x in here:
        read = scalars and x.dim() == 0 and not any(x is w for w in written)
        if not read and not any(x is i for i in indices):
            found = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in tensors)
            raise RuntimeError(f"expected all tensors of {name} to be on the same device, found {found}")


def check_kernel(func: Any, name: str, tensors: list[torch.Tensor], kwargs: dict[str, Any]) -> None:
    """RuntimeError for what CUDA has no kernel for."""
    if func.namespace == "aten" and name not in with_cuda_kernel():
        raise RuntimeError(f"{func} has no CUDA kernel")
    if name in PRODUCTS and any(not x.is_floating_point() for x in tensors):
        raise RuntimeError(f"{name} is not implemented for whole numbers on CUDA")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: expected a generator of the device, found one of {kwargs['generator'].device}")


@functools.cache
def with_cuda_kernel() -> frozenset[str]:
    """Names of the operations with an overload for CUDA, as torch's own table has them."""
    import torchgen

    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.load(table.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    out = set()
    for entry in entries:
        keys = {k.strip() for key in entry.get("dispatch", {"Composite": ""}) for k in key.split(",")}
        if "structured_delegate" in entry or any(k == "CUDA" or k.startswith("Composite") for k in keys):
            out.add(entry["func"].split("(")[0].split(".")[0])
    return frozenset(out)


@contextmanager
def device_guard() -> Iterator[None]:
    """torch in C++ asks a `guard` for the present CUDA device at every index; without CUDA it has none. That of `meta`,
    which does nothing, stands in its place.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 16).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")  # by device type
    before, guards[1] = guards[1], guards[14]
    try:
        yield
    finally:
        guards[1] = before


@contextmanager
def known_here() -> Iterator[None]:
    """Make the device known in the thread that calls this."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(data, device=...) makes it on the CPU first
    try:
        with PretendedDevice(), Indexed():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@contextmanager
def pretended_device(patch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, and a torch.cuda that has it."""
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (MEMORY, MEMORY))
    # no tensor changes its device in place
    patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    with device_guard(), known_here():
        yield CUDA
