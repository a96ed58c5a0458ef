"""The boundary: sum over ranks, residual, RMSNorm and group quantisation (docs/boundary.md)."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Optional, Protocol, Type, Union

from . import _tenon
from ._arrays import Array, bound, empty_like
from ._communicator import Communicator
from ._errors import InvalidArgumentError

# As in bindings/c/tenon.h.
DTYPES = {"f32": 0, "bf16": 1, "f16": 2, "e4m3": 3, "e4m3fnuz": 4}
LAYOUTS = {"row": 0, "mn_major": 1, "ue8m0_packed": 2}


def _number(what: str, name: str, numbers: dict[str, int], accepted: tuple[str, ...]) -> int:
    if name not in accepted:
        raise InvalidArgumentError(f'{what} is "{name}"; accepted: {", ".join(accepted)}')
    return numbers[name]


class Outputs(NamedTuple):
    """What a call gives. `residual` is the array that was handed in. What the spec does not form is None."""

    residual: Array
    rows: Optional[Array]
    codes: Optional[Array]
    scales: Optional[Array]


_new = tuple.__new__  # the constructors of named tuples take their fields one by one, which is slower


class BoundCall(Protocol):
    """What Boundary.bind() gives. `stream` is that of a call of the boundary."""

    def __call__(self, stream: Optional[int] = None, /) -> None: ...


class Plan(NamedTuple):
    """How calls with up to max_rows rows run; the fields are those of tenon_plan."""

    max_rows: int
    stage: int
    variant: str
    reason: str
    blocks: int
    threads: int
    mailbox_bytes: int
    calls: int


class Channel:
    """Mailboxes and scratch rows that boundaries of one stream share, one call after the other. Collective.

    With `sharded_residual` the residual of a row is current on the row's owner only after variant two_shot;
    then all boundaries of the channel must run alike.
    """

    def __init__(
        self,
        communicator: Communicator,
        *,
        hidden: int,
        max_rows: int,
        dtype: str = "bf16",
        sharded_residual: bool = False,
        label: Optional[str] = None,
    ) -> None:
        number = _number("dtype", dtype, DTYPES, ("bf16", "f16"))
        self._raw = _tenon.Channel.make(communicator._raw, hidden, max_rows, number, sharded_residual, label)

    @property
    def num_bytes(self) -> int:
        """The memory of the device that it holds."""
        return self._raw.num_bytes()

    def close(self) -> None:
        self._raw.close()


class Boundary:
    """One boundary between a row-parallel product and the next column-parallel one. Making and calling it are
    collective: every rank, in the same order, with equal specs and equal numbers of rows.

    where:          a Channel, or a Communicator to make a channel of its own
    hidden:         elements of a row
    max_rows:       the most rows of a call
    dtype:          of rows: "bf16" or "f16"
    weight_dtype:   that of rows, or "f32"; None: that of rows
    eps, offset:    of the norm; offset is added to the weight: 1 for zero-centred (Gemma) norms
    fresh_residual: the residual is written, not read
    want_rows, want_fp8: what is formed
    fp8:            "e4m3" or "e4m3fnuz"
    group:          elements that share a scale: 32, 64, 128 or 256
    layout:         of scales: "row" f32 [rows, groups], "mn_major" f32 [groups, round_up(rows, 4)],
                    "ue8m0_packed" i32 [ceil(groups / 4), round_up(rows, 4)]
    force_stage, max_stage, force_variant: 0, or the one stage that is taken; the most fused one allowed; the
                    variant of stage 1
    site:           names it in tables and messages
    """

    def __init__(
        self,
        where: Union[Channel, Communicator],
        *,
        hidden: int,
        max_rows: int,
        dtype: str = "bf16",
        weight_dtype: Optional[str] = None,
        eps: float = 1e-6,
        offset: float = 0.0,
        fresh_residual: bool = False,
        want_rows: bool = True,
        want_fp8: bool = True,
        fp8: str = "e4m3",
        group: int = 128,
        layout: str = "row",
        force_stage: int = 0,
        max_stage: int = 1,
        force_variant: Optional[str] = None,
        site: Optional[str] = None,
    ) -> None:
        number = _number("dtype", dtype, DTYPES, ("bf16", "f16"))
        weight = -1 if weight_dtype is None else _number("weight_dtype", weight_dtype, DTYPES, (dtype, "f32"))
        code = _number("fp8", fp8, DTYPES, ("e4m3", "e4m3fnuz"))
        number_of_layout = _number("layout", layout, LAYOUTS, tuple(LAYOUTS))
        if isinstance(where, Communicator):
            where = Channel(where, hidden=hidden, max_rows=max_rows, dtype=dtype)
        self.hidden, self.max_rows, self.group = hidden, max_rows, group
        self.dtype, self.fp8, self.layout = dtype, fp8, layout
        self.want_rows, self.want_fp8 = want_rows, want_fp8
        self._raw = _tenon.Boundary.make(
            where._raw, hidden, max_rows, number, weight, eps, offset, fresh_residual, want_rows, want_fp8,
            code, group, number_of_layout, force_stage, max_stage, force_variant, site,
        )
        self._run = self._raw.run
        # Texts, since torch.compile may take a number for one that changes.
        self._sizes = f"{hidden}", f"{group}"

    def scale_shape(self, rows: int) -> tuple[int, int]:
        """The shape of the scales of a call with `rows` rows."""
        hidden, group = (int(size) for size in self._sizes)
        groups, padded = hidden // group, (rows + 3) // 4 * 4
        if self.layout == "row":
            return rows, groups
        return groups if self.layout == "mn_major" else (groups + 3) // 4, padded

    _empty = staticmethod(empty_like)

    def outputs_like(self, partial: Array) -> tuple[Optional[Array], Optional[Array], Optional[Array]]:
        """New (rows, codes, scales) for a call with this addend, of its library and on its device."""
        rows = partial.shape[0]
        shape = rows, int(self._sizes[0])
        made = self._empty(partial, shape, self.dtype) if self.want_rows else None
        if not self.want_fp8:
            return made, None, None
        kind = "i32" if self.layout == "ue8m0_packed" else "f32"
        scales = self._empty(partial, self.scale_shape(rows), kind)
        return made, self._empty(partial, shape, self.fp8), scales

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
        """One call.

        partial:  [rows, hidden], this rank's addend, without gaps
        residual: [rows, hidden], read and overwritten
        weight:   [hidden]
        rows, codes, scales: where results go; without any of them, new arrays of the library of `partial`
        stream:   number of a stream of the communicator's device; None: the one on which the library of
                  `partial` works now. On devices the call launches only, and arrays must stay until the
                  stream got there.
        """
        if rows is None and codes is None and scales is None:
            rows, codes, scales = self.outputs_like(partial)
        self._run(partial, residual, weight, rows, codes, scales, stream)
        return _new(Outputs, (residual, rows, codes, scales))

    def bind(
        self,
        partial: Array,
        residual: Array,
        weight: Array,
        *,
        rows: Optional[Array] = None,
        codes: Optional[Array] = None,
        scales: Optional[Array] = None,
    ) -> BoundCall:
        """The call with these arrays, to be made again and again: `run = boundary.bind(...)`, then `run()` or
        `run(stream)` instead of `boundary(...)`. Arrays are looked at once, and their memory is kept for as long
        as the bound call lives: what is written into it later counts. The outputs that the boundary forms are given. Not for arrays of JAX, which never change.
        """
        names = "partial", "residual", "weight", "rows", "codes", "scales"
        given = map(bound, names, (partial, residual, weight, rows, codes, scales))
        return _tenon.BoundCall(self._raw, *given).run

    def plan(self, rows: int) -> Plan:
        """How a call with so many rows runs."""
        return Plan(**self._raw.plan(rows))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Calls so far in stages 1, 2 and 3; a replayed graph makes none."""
        return self._raw.counts()

    def explain(self) -> str:
        """A table of all row buckets: stage, variant, launch shape, calls, why not a more fused stage."""
        return self._raw.explain()

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> Boundary:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
