"""What differs between the libraries that arrays come from. None of them is imported here: an array
of a library shows that it is loaded."""

from __future__ import annotations

import sys
from typing import Any

from ._errors import InvalidArgumentError

Array = Any  # of NumPy, torch, CuPy, JAX: anything with __dlpack__


def library(array: Array) -> str:
    """ "numpy", "torch", "cupy", "jax", ...: the first word of the module of its type."""
    return _library_of(type(array))


def _library_of(kind: type) -> str:
    name = kind.__module__.partition(".")[0]
    return "jax" if name.startswith("jax") else name


def is_of_jax(kind: type) -> bool:
    """Is this type of array JAX's? These never change, and are made on streams that JAX does not tell."""
    return _library_of(kind) == "jax"


def exportable(array: Array) -> Array:
    """An array that its library does not export as it is, seen so that it might: of torch without gradients,
    and fp8 as its bytes; of NumPy the types that only extensions name (bfloat16, float8) as unsigned
    integers of their size. Arrays of types with __dlpack_c_exchange_api__ do not come here."""
    kind = library(array)
    if kind == "torch":
        if array.requires_grad:
            array = array.detach()
        if array.dtype.itemsize == 1:
            array = array.view(sys.modules["torch"].uint8)
    elif kind == "numpy" and array.dtype.kind == "V" and array.dtype.itemsize <= 2:
        array = array.view(f"u{array.dtype.itemsize}")
    return array


def bound(what: str, array: Array) -> Array:
    """`array` for calls that are made again and again: of its memory, and what happens to `array` itself does not
    change it."""
    kind = library(array)
    if kind == "jax":
        raise InvalidArgumentError(
            f"{what} is an array of JAX, which never changes; accepted in a bound call: arrays of NumPy, torch or CuPy"
        )
    return array.detach() if kind == "torch" else array


# Element types that an output may have, as each library names them.
_NAMES = {
    "torch": {"bf16": "bfloat16", "f16": "float16", "e4m3": "float8_e4m3fn", "e4m3fnuz": "float8_e4m3fnuz",
              "f32": "float32", "i32": "int32"},
    "numpy": {"bf16": "uint16", "f16": "float16", "e4m3": "uint8", "e4m3fnuz": "uint8", "f32": "float32",
              "i32": "int32"},
}
_NAMES["cupy"] = _NAMES["numpy"]


def empty_like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """A new array without contents, of the library and on the device of `array`. Of NumPy and CuPy, which
    have no bf16 and fp8, unsigned integers that hold the bits."""
    kind = library(array)
    if kind not in _NAMES:
        raise InvalidArgumentError(
            f"outputs cannot be made beside an array of {kind}; accepted: arrays of NumPy, torch or CuPy, "
            "or rows=, codes= and scales= that exist"
        )
    named = getattr(sys.modules[kind], _NAMES[kind][dtype])
    if kind == "torch":
        return array.new_empty(shape, dtype=named)
    return sys.modules[kind].empty(shape, dtype=named)


def stream_of(array: Array) -> int:
    """The stream on which the library of `array` works now, as a number; 0: the default stream."""
    kind = library(array)
    if kind == "torch" and array.is_cuda:
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    if kind == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return 0
