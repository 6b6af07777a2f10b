"""Eight numbers at a time in compiled loops.

`load(array, i)` takes array[i : i + 8] of a contiguous one-dimensional array into a register, `store(array, i, x)` puts them
back; +, - and * work between such registers and with plain numbers of the same dtype, products and sums contracted to fused
ones. numba by itself does not make vector instructions of the short inner loops over channels that the descriptor has.
No index is checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic as untyped_intrinsic
from numba.extending import overload

from descriptors.compiled import compiled

intrinsic: Any = untyped_intrinsic  # as declared by numba, a call would take the arguments of the compiler
WIDTH = 8
FLAGS = ("contract",)


class LanesType(types.Type):
    """Eight float64 or float32."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")


@register_default(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, _vector(kind.dtype))


def _vector(dtype: types.Float) -> ir.VectorType:
    return ir.VectorType(ir.DoubleType() if dtype.bitwidth == 64 else ir.FloatType(), WIDTH)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    place = builder.gep(data, [index], inbounds=True)
    return builder.bitcast(place, _vector(array_type.dtype).as_pointer())


@intrinsic
def load(typing_context, array, index):  # type: ignore[no-untyped-def]
    """array[index : index + 8]."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = _address(context, builder, signature.args[0], *arguments)
        return builder.load(address, align=signature.args[0].dtype.bitwidth // 8)

    return LanesType(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing_context, array, index, lanes):  # type: ignore[no-untyped-def]
    """array[index : index + 8] = lanes."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = _address(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], address, align=signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


def _repeat(builder: Any, number: Any, vector: ir.VectorType) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), None))


@intrinsic
def spread(typing_context, number):  # type: ignore[no-untyped-def]
    """Eight times a number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return _repeat(builder, arguments[0], _vector(signature.args[0]))

    return LanesType(number)(number), generate


@intrinsic
def spread_from(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Eight times array[index]."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        number = builder.load(builder.gep(data, [arguments[1]], inbounds=True))
        return _repeat(builder, number, _vector(signature.args[0].dtype))

    return LanesType(array.dtype)(array, types.intp), generate


@intrinsic
def zeros(typing_context, array):  # type: ignore[no-untyped-def]
    """Eight zeros of an array's dtype."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return LanesType(array.dtype)(array), generate


@intrinsic
def without_first(typing_context, lanes):  # type: ignore[no-untyped-def]
    """The eight with 0 for the first."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(arguments[0].type.element, 0.0)
        return builder.insert_element(arguments[0], zero, ir.Constant(ir.IntType(32), 0))

    return lanes(lanes), generate


@intrinsic
def total(typing_context, lanes):  # type: ignore[no-untyped-def]
    """The sum of the eight, as ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        x = arguments[0]
        for half in (4, 2, 1):
            low, high = (
                ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(start, start + half)))
                for start in (0, half)
            )
            x = builder.fadd(builder.shuffle_vector(x, x, low), builder.shuffle_vector(x, x, high))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return lanes.dtype(lanes), generate


def _operation(name: str) -> Callable[..., Any]:
    @intrinsic
    def apply(typing_context, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return getattr(builder, name)(*arguments, flags=FLAGS)

        return a(a, b), generate

    return apply


_ADD, _SUBTRACT, _MULTIPLY = _operation("fadd"), _operation("fsub"), _operation("fmul")


def _overload(symbol: Callable[..., Any], apply: Callable[..., Any]) -> None:
    @overload(symbol)
    def chosen(a, b):  # type: ignore[no-untyped-def]
        if isinstance(a, LanesType) and isinstance(b, LanesType):
            return lambda a, b: apply(a, b)
        if isinstance(a, LanesType) and isinstance(b, types.Float):
            return lambda a, b: apply(a, spread(b))
        if isinstance(b, LanesType) and isinstance(a, types.Float):
            return lambda a, b: apply(spread(a), b)
        return None


_overload(operator.add, _ADD)
_overload(operator.sub, _SUBTRACT)
_overload(operator.mul, _MULTIPLY)


@compiled
def workspace(size, like):  # type: ignore[no-untyped-def]
    """An array of `size` entries of the dtype of `like`, aligned to the 64 bytes of a cache line; its entries are 0."""
    out = np.zeros(size + 64 // like.itemsize, like.dtype)
    return out[(-out.ctypes.data) % 64 // like.itemsize :][:size]
