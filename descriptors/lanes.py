"""Eight numbers at a time in compiled (numba) code: a vector type with loads, stores and multiply-adds.

numba leaves short inner loops scalar, since it cannot know that arrays do not overlap. `Lanes` is a vector of LANES numbers
that lives in registers (one AVX-512 register in float64; LLVM splits it on other processors). Arrays are flat and
contiguous, indices count numbers; bounds are the caller's concern.

Machine code is kept beside the modules (__pycache__), and made anew when the file of a function changes. numba does not see
that what a function calls in another file has changed: who changes this one removes the __pycache__ of those that use it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit as untyped_njit
from numba import types
from numba.core.datamodel import register_default
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic as untyped_intrinsic

intrinsic: Any = untyped_intrinsic  # as declared by numba, a call would take the compiler's arguments
njit: Any = untyped_njit
LANES = 8
# _nrt=False: otherwise every use of an array in a loop counts a reference. Code so compiled cannot make arrays.
compiled = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)


class Lanes(types.Type):
    """LANES numbers of one dtype (float32 or float64)."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")


@register_default(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        element = ir.DoubleType() if fe_type.dtype == types.float64 else ir.FloatType()
        super().__init__(dmm, fe_type, ir.VectorType(element, LANES))


def _pointer(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(data.type.pointee, LANES).as_pointer())


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    """The vector itself, or a number in every lane."""
    if isinstance(value.type, ir.VectorType):
        return value
    undefined, i32 = ir.Constant(vector, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(undefined, value, ir.Constant(i32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(i32, LANES), [0] * LANES))


@intrinsic
def load(_typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = signature.args[0].dtype.bitwidth // 8
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=size)

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
def store(_typing: Any, array: Any, index: Any, value: Lanes) -> Any:
    """array[index : index + LANES] = value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = signature.args[0].dtype.bitwidth // 8
        builder.store(args[2], _pointer(context, builder, signature.args[0], *args[:2]), align=size)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def zeros(_typing: Any, array: Any) -> Any:
    """Zeros of an array's dtype."""

    def generate(context: Any, _builder: Any, signature: Any, _args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return Lanes(array.dtype)(array), generate


@intrinsic
def add(_typing: Any, a: Lanes, b: Lanes) -> Any:
    """a + b."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return a(a, b), generate


@intrinsic
def multiply(_typing: Any, a: types.Type, b: Lanes) -> Any:
    """a * b; a is a number or Lanes."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fmul(_splat(builder, args[0], args[1].type), args[1], flags=("contract",))

    return b(a if isinstance(a, Lanes) else b.dtype, b), generate


@intrinsic
def multiply_add(_typing: Any, total: Lanes, a: types.Type, b: Lanes) -> Any:
    """total + a * b, rounded once where the processor can; a is a number or Lanes."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        product = builder.fmul(_splat(builder, args[1], args[2].type), args[2], flags=("contract",))
        return builder.fadd(args[0], product, flags=("contract",))

    return total(total, a if isinstance(a, Lanes) else total.dtype, b), generate


@intrinsic
def without_first(_typing: Any, a: Lanes) -> Any:
    """a with 0 in its first lane."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type.element, 0.0)
        return builder.insert_element(args[0], zero, ir.Constant(ir.IntType(32), 0))

    return a(a), generate


@intrinsic
def total(_typing: Any, a: Lanes) -> Any:
    """Sum of the lanes."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        parts = [builder.extract_element(args[0], ir.Constant(ir.IntType(32), i)) for i in range(LANES)]
        while len(parts) > 1:
            parts = [builder.fadd(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return a.dtype(a), generate
