"""The boundary as an operator of torch, for torch.compile and torch.export; `import tenon.torch` makes it known.

    boundary = tenon.torch.Boundary(communicator, hidden=4096, max_rows=512)
    out = boundary(partial, residual, weight)

communicator() joins the ranks of a process group of torch.distributed. The operator is `torch.ops.tenon.boundary`. It has no gradient. Works with torch 2.4 and later.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import torch

from . import _boundary
from ._arrays import Array
from ._boundary import Channel, Outputs, _new
from ._communicator import Communicator, unique_id
from ._errors import InvalidArgumentError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._communicator import Options

# Operators take no objects: boundaries go by their names. Texts, since torch.compile may take a number for one that
# changes.
_runs: dict[str, Callable[..., None]] = {}  # of the boundaries that live
_numbers = itertools.count()
_is_compiling = torch.compiler.is_compiling

_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn,
           "e4m3fnuz": torch.float8_e4m3fnuz, "f32": torch.float32, "i32": torch.int32}


def _run(
    name: str,
    partial: Array,
    residual: Array,
    weight: Array,
    rows: Optional[Array],
    codes: Optional[Array],
    scales: Optional[Array],
) -> None:
    try:
        run = _runs[name]
    except KeyError:
        raise InvalidArgumentError(
            f"boundary {name} of torch.ops.tenon.boundary is gone; accepted: one whose tenon.torch.Boundary lives"
        ) from None
    run(partial, residual, weight, rows, codes, scales, None)


def _run_fake(*arguments: Any) -> None:
    """What tracing knows: nothing is returned, and the schema says what is written."""


_registry: Any = torch.library  # which torch types in part
_library = _registry.Library("tenon", "DEF")
_library.define(
    "boundary(str name, Tensor partial, Tensor(a!) residual, Tensor weight, "
    "Tensor(b!)? rows, Tensor(c!)? codes, Tensor(d!)? scales) -> ()"
)
for _device in ("CPU", "CUDA"):  # to torch, ROCm's devices are CUDA's
    _library.impl("boundary", _run, _device)
_registry.register_fake("tenon::boundary", _run_fake, lib=_library)


def communicator(group: Any = None, *, address: Optional[str] = None, **options: Unpack[Options]) -> Communicator:
    """The ranks of a process group of torch.distributed; None: the default group. Collective in it.

    address: the name or IP address by which the others reach the host of the group's first rank; None: 127.0.0.1,
             for groups of one host
    options: those of tenon.Communicator; without a device, on GPUs, torch's current one
    """
    distributed: Any = torch.distributed
    rank, num_ranks = distributed.get_rank(group), distributed.get_world_size(group)
    first = distributed.get_global_rank(group, 0) if group is not None else 0
    told = [unique_id(address) if rank == 0 else None]
    distributed.broadcast_object_list(told, src=first, group=group)
    if "device" not in options and options.get("target") != "cpu" and torch.cuda.is_available():
        options["device"] = torch.cuda.current_device()
    met = told[0]
    assert met is not None
    return Communicator.from_id(met, rank, num_ranks, **options)


class Boundary(_boundary.Boundary):
    """tenon.Boundary, whose calls torch.compile takes into its graph as one operator. Outside of compiled code they
    are those of tenon.Boundary, without the way through torch's dispatcher. `where` and `spec` are those of
    tenon.Boundary."""

    def __init__(self, where: Union[Channel, Communicator], **spec: Any) -> None:
        super().__init__(where, **spec)
        self.name = f"{next(_numbers)}"
        _runs[self.name] = self._run
        weakref.finalize(self, _runs.pop, self.name).atexit = False

    @staticmethod
    def _empty(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
        if shape == array.shape:  # takes torch half the time
            return torch.empty_like(array, dtype=_DTYPES[dtype])
        return torch.empty(*shape, dtype=_DTYPES[dtype], device=array.device)

    def __call__(
        self,
        partial: Array,
        residual: Array,
        weight: Array,
        *,
        rows: Optional[Array] = None,
        codes: Optional[Array] = None,
        scales: Optional[Array] = None,
        stream: Optional[int] = None,
    ) -> Outputs:
        """One call; the arguments are those of tenon.Boundary. Compiled code runs on torch's current stream."""
        if rows is None and codes is None and scales is None:
            rows, codes, scales = self.outputs_like(partial)
        if not _is_compiling():
            self._run(partial, residual, weight, rows, codes, scales, stream)
            return _new(Outputs, (residual, rows, codes, scales))
        if stream is not None:
            raise InvalidArgumentError(
                f"stream is {stream} in compiled code, which runs on torch's current stream; accepted: None"
            )
        torch.ops.tenon.boundary(self.name, partial, residual, weight, rows, codes, scales)
        return Outputs(residual, rows, codes, scales)
