"""Matrix products in kernels: torch's own, called by its C interface, so that a kernel need not come back to Python,
and to the lock that threads share there, before and after each. torch's FLOP counter and profiler see them.

Shapes: G matrices, M rows, K columns of the left and rows of the right, N columns.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import types
from numba.extending import overload

from model.network.kernels.numbers import routine

_LIBRARY = ctypes.CDLL(torch._C.__file__)  # finds what is in the libraries that it needs, too


def _function(name: str, *arguments: Any) -> Any:
    """Known by its name and not by where it lies, so that machine code that calls it can be kept."""
    binding.add_symbol(name, ctypes.cast(getattr(_LIBRARY, name), ctypes.c_void_p).value)
    return types.ExternalFunction(name, types.int32(*arguments))


_WORD, _SIZE, _CODE = types.uintp, types.int64, types.int32
# memory, dimensions, sizes, strides, offset, dtype, device, its index, where the handle goes
_borrow = _function("aoti_torch_create_tensor_from_blob", _WORD, _SIZE, _WORD, _WORD, _SIZE, _CODE, _CODE, _CODE, _WORD)
_release = _function("aoti_torch_delete_tensor_object", _WORD)
_mm = _function("aoti_torch_mm_out", _WORD, _WORD, _WORD)
_bmm = _function("aoti_torch_bmm_out", _WORD, _WORD, _WORD)


def _dtype(x: Any) -> Any:
    """torch's number of an array's dtype."""
    raise NotImplementedError("for kernels only")


@overload(_dtype, inline="always")
def _number_of_dtype(x):
    number = {types.uint16: 15, types.float32: 6, types.float64: 7}[x.dtype]
    return lambda x: number


@routine
def _handle(x: Any) -> Any:
    """A tensor in the array's memory."""
    # Sizes, strides and the handle in one array, which is read after the call: its memory lives until then.
    words = np.zeros(2 * x.ndim + 1, np.int64)
    for d in range(x.ndim):
        words[d], words[x.ndim + d] = x.shape[d], x.strides[d] // x.itemsize
    sizes, size = words.ctypes.data, words.itemsize
    strides, handle = sizes + x.ndim * size, sizes + 2 * x.ndim * size
    if _borrow(x.ctypes.data, x.ndim, sizes, strides, 0, _dtype(x), 0, 0, handle):
        raise RuntimeError("torch takes no array of these sizes; it printed why")
    return words[2 * x.ndim]


@routine
def product(left_MK: Any, right_KN: Any, out_MN: Any) -> None:
    """out = left @ right. A routine, for its arguments live until it is done: those of a piece go after their last use,
    which is when the handles are made."""
    (rows, inner), (right_rows, columns) = left_MK.shape, right_KN.shape
    if inner != right_rows or out_MN.shape != (rows, columns):
        raise ValueError("a matrix product of shapes that do not fit")
    left, right, out = _handle(left_MK), _handle(right_KN), _handle(out_MN)
    _free(_mm(out, left, right), left, right, out)


@routine
def products(left_GMK: Any, right_GKN: Any, out_GMN: Any) -> None:
    """out[g] = left[g] @ right[g]."""
    (count, rows, inner), (right_count, right_rows, columns) = left_GMK.shape, right_GKN.shape
    if inner != right_rows or count != right_count or out_GMN.shape != (count, rows, columns):
        raise ValueError("matrix products of shapes that do not fit")
    left, right, out = _handle(left_GMK), _handle(right_GKN), _handle(out_GMN)
    _free(_bmm(out, left, right), left, right, out)


@routine
def _free(failed: int, left: int, right: int, out: int) -> None:
    _release(left)
    _release(right)
    _release(out)
    if failed:
        raise RuntimeError("a matrix product failed; torch printed why")
