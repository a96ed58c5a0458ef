"""The oracle for tests in Python: inputs from tenon/reference and its judgement, through tests/c/oracle.h."""
import ctypes
import os

import numpy as np

LAYOUTS = ("row", "mn_major", "ue8m0_packed")
_oracle = ctypes.CDLL(os.environ["ORACLE_LIBRARY"])


class Case(ctypes.Structure):
    """oracle_case of tests/c/oracle.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("rows", "hidden", "team", "group", "layout", "fresh_residual")]
    _fields_ += [("eps", ctypes.c_float), ("offset", ctypes.c_float), ("seed", ctypes.c_uint64)]


def case(rows, hidden, team, *, group=128, layout="row", fresh_residual=False, eps=1e-6, offset=0.0, seed=1):
    return Case(rows, hidden, team, group, LAYOUTS.index(layout), fresh_residual, eps, offset, seed)


def spec(shape):
    """The keywords with which tenon.Boundary gives what the oracle expects of `shape`."""
    return dict(hidden=shape.hidden, group=shape.group, layout=LAYOUTS[shape.layout], eps=shape.eps,
                offset=shape.offset, fresh_residual=bool(shape.fresh_residual))


def inputs(shape, rank):
    """(partial, residual, weight) of a rank, as bits of bf16."""
    found = [np.empty(size, np.uint16) for size in ((shape.rows, shape.hidden),) * 2 + (shape.hidden,)]
    _oracle.oracle_inputs(ctypes.byref(shape), rank, *[_address(each) for each in found])
    return tuple(found)


def difference(shape, out):
    """Of what a call gave, arrays in host memory: "" where every bit is the reference's, else the first that
    is not."""
    why = ctypes.create_string_buffer(512)
    scale_bytes = 4 * int(np.prod(tuple(out.scales.shape)))
    _oracle.oracle_judge(ctypes.byref(shape), *[_address(each) for each in out],
                         ctypes.c_uint64(scale_bytes), why)
    return why.value.decode()


def _address(array):
    return ctypes.c_void_p(array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data)
