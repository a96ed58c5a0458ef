"""The boundary behind the signatures that layers of other engines call (docs/drop-in.md). For torch.

    norms = tenon.adapters.Norms(tenon.torch.communicator(group), hidden=4096, max_rows=8192)
    rows, residual = norms.norm(x, residual, weight, eps)
    (codes, scales), residual = norms.norm_quant(x, residual, weight, eps)
"""

from __future__ import annotations

from typing import Any, Optional, Union

from .. import torch as _torch
from .._arrays import Array
from .._boundary import Channel
from .._communicator import Communicator
from .._errors import InvalidArgumentError

_LAYOUTS = {"row": "row", "column": "mn_major", "ue8m0": "ue8m0_packed"}

Quantised = Union[tuple[Array, Array], tuple[Array, Array, Array]]


class Norms:
    """Sum over ranks, residual, RMSNorm and, where asked, group quantisation: one boundary for each combination of
    arguments, made when it is first asked for, all on one channel. A boundary is made by all ranks together: they
    ask for the same in the same order, and for each for the first time outside of a captured graph and of compiled
    code (prepare()).

    communicator: the tensor-parallel ranks
    hidden:       elements of a row
    max_rows:     the most rows of a call; with more the methods return None, on all ranks alike, and the caller
                  takes the way that it had before
    dtype:        of rows: "bf16" or "f16"
    """

    def __init__(self, communicator: Communicator, *, hidden: int, max_rows: int, dtype: str = "bf16") -> None:
        self.hidden, self.max_rows, self.dtype = hidden, max_rows, dtype
        self._channel = Channel(communicator, hidden=hidden, max_rows=max_rows, dtype=dtype, label="norms")
        self._made: dict[Any, _torch.Boundary] = {}

    def _boundary(self, **spec: Any) -> _torch.Boundary:
        key = tuple(spec.items())
        found = self._made.get(key)
        if found is None:
            found = _torch.Boundary(
                self._channel, hidden=self.hidden, max_rows=self.max_rows, dtype=self.dtype, **spec
            )
            self._made[key] = found
        return found

    def prepare(
        self,
        eps: float,
        *,
        offset: float = 0.0,
        weight_dtype: Optional[str] = None,
        group: int = 128,
        layout: str = "row",
        fp8: str = "e4m3",
        rows: bool = True,
        quant: bool = True,
    ) -> _torch.Boundary:
        """Makes the boundary of calls with these arguments, or finds it. Collective where it is new."""
        if layout not in _LAYOUTS:
            raise InvalidArgumentError(f'layout is "{layout}"; accepted: {", ".join(_LAYOUTS)}')
        shared = dict(eps=eps, offset=offset, weight_dtype=weight_dtype, want_rows=rows, want_fp8=quant)
        return self._boundary(**shared, **(dict(group=group, layout=_LAYOUTS[layout], fp8=fp8) if quant else {}))

    def norm(
        self, x: Array, residual: Array, weight: Array, eps: float, *, offset: float = 0.0
    ) -> Optional[tuple[Array, Array]]:
        """(rows, residual). `residual` is overwritten and returned. offset is added to the weight: 1 for the
        zero-centred norms of Gemma and Qwen3.5, in fp32, so that 1 + weight is never rounded."""
        if not self._serves(x):
            return None
        boundary = self.prepare(eps, offset=offset, weight_dtype=self._dtype_of(weight), quant=False)
        flat = x.view(-1, self.hidden)
        out = boundary(flat, residual.view(-1, self.hidden), weight)
        assert out.rows is not None
        return out.rows.view(x.shape), residual

    def norm_quant(
        self,
        x: Array,
        residual: Array,
        weight: Array,
        eps: float,
        *,
        offset: float = 0.0,
        group: int = 128,
        layout: str = "row",
        fp8: str = "e4m3",
        keep_rows: bool = False,
    ) -> Optional[tuple[Quantised, Array]]:
        """((codes, scales), residual), and with keep_rows ((rows, codes, scales), residual), for 2-dimensional x.

        layout of scales: "row" f32 [rows, groups] without gaps; "column" f32 [rows, groups] with strides
        (1, round_up(rows, 4)), as TMA and so DeepGEMM want them; "ue8m0" i32 [rows, ceil(groups / 4)], four
        exponents a word, with the same strides.
        """
        if not self._serves(x):
            return None
        boundary = self.prepare(
            eps, offset=offset, weight_dtype=self._dtype_of(weight), group=group, layout=layout, fp8=fp8, rows=keep_rows
        )
        out = boundary(x, residual, weight)
        scales = out.scales
        assert scales is not None
        if layout != "row":
            scales = scales.t()[: x.shape[0]]
        return ((out.rows, out.codes, scales) if keep_rows else (out.codes, scales)), residual

    def _serves(self, x: Array) -> bool:
        return bool(x.numel() // self.hidden <= self.max_rows)

    def _dtype_of(self, weight: Array) -> Optional[str]:
        return "f32" if weight.dtype.itemsize == 4 else None
