"""Ranks that work together."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Optional, Type, TypedDict

from . import _tenon
from ._arrays import Array
from ._errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Unpack


def device_count(target: str) -> int:
    """The devices that this build and machine have for a target; UnsupportedError where it is not built."""
    return _tenon.device_count(target)


def default_target() -> str:
    """ "cuda" or "hip" where this build and machine have one, else "cpu"."""
    for target in ("cuda", "hip"):
        try:
            if device_count(target) > 0:
                return target
        except UnsupportedError:
            pass
    return "cpu"


def unique_id(address: Optional[str] = None) -> bytes:
    """Where ranks meet: rank 0 makes it and hands it to the others by any means. It holds a secret.

    `address` is the name or IP address by which the other ranks reach this host; None: 127.0.0.1.
    """
    return _tenon.unique_id(address)


class Team:
    """Ranks that are threads of this process; each takes another rank, once. 1 to 8 ranks."""

    def __init__(self, num_ranks: int) -> None:
        self._raw = _tenon.Team.make(num_ranks)

    def close(self) -> None:
        """Ranks that nobody took have left then. The team may go before its communicators."""
        self._raw.close()


class CommunicatorInfo(NamedTuple):
    """What a communicator is; the fields are those of tenon_communicator_info."""

    rank: int
    num_ranks: int
    target: str
    transport: str
    device: int
    peer_pointers: bool
    capturable: bool
    shares_device: bool
    starts_early: bool
    deadline_ms: int


class Options(TypedDict, total=False):
    """How a communicator is made: keywords of the three class methods of Communicator."""

    target: Optional[str]
    device: int
    transport: Optional[str]
    concurrent: int
    only_exchanges: bool
    deadline: Optional[float]


_DEFAULTS: Options = {
    "target": None,
    "device": -1,
    "transport": None,
    "concurrent": 1,
    "only_exchanges": False,
    "deadline": None,
}


class Communicator:
    """One rank of a team. Made by one of the three class methods, which are collective: every rank calls, in
    the same order, with equal arguments. One thread at a time uses it; the GIL is released while it waits.
    The options of all three:

    target:     "cuda", "hip" or "cpu"; None: default_target()
    device:     number of the device; -1: what the launcher says, else the rank
    transport:  None: the best one; "threads", "shm", "ipc", "ccl"
    concurrent: the most channels in flight at once, 1 to 16
    only_exchanges: nothing else runs on devices that ranks share
    deadline:   the longest that any wait may last, in seconds; None: TENON_DEADLINE_MS
    """

    def __init__(self, raw: _tenon.Communicator) -> None:
        self._raw = raw
        self.info = CommunicatorInfo(**raw.query())

    @classmethod
    def from_environment(cls, **options: Unpack[Options]) -> Communicator:
        """Ranks that a launcher started: torchrun, Slurm or Open MPI; a lone rank where there is none."""
        return cls(_tenon.Communicator.from_environment(_raw(options)))

    @classmethod
    def from_id(cls, id: bytes, rank: int, num_ranks: int, **options: Unpack[Options]) -> Communicator:
        """Ranks that know the unique_id() of rank 0, whose process made it. An id serves once."""
        return cls(_tenon.Communicator.from_id(_raw(options), id, rank, num_ranks))

    @classmethod
    def from_team(cls, team: Team, rank: int, **options: Unpack[Options]) -> Communicator:
        """Ranks that are threads of this process."""
        return cls(_tenon.Communicator.from_team(_raw(options), team._raw, rank))

    @property
    def rank(self) -> int:
        return self.info.rank

    @property
    def num_ranks(self) -> int:
        return self.info.num_ranks

    def all_reduce(self, array: Array, out: Optional[Array] = None, *, stream: Optional[int] = None) -> Array:
        """Sum over ranks, in rank order in fp32, rounded once; bf16 or f16 without gaps. Without `out` in
        place. Returns where the sum is. Collective."""
        out = array if out is None else out
        self._raw.all_reduce(array, out, stream)
        return out

    def all_gather(self, array: Array, out: Array, *, stream: Optional[int] = None) -> Array:
        """out[r] = rank r's array: `out` has the shape [num_ranks, *array.shape]. Collective."""
        self._raw.all_gather(array, out, stream)
        return out

    def barrier(self) -> None:
        """Returns when every rank has called it. Streams are not waited for. Collective."""
        self._raw.barrier()

    def health(self) -> None:
        """Raises the first fault of this rank. On devices this is where a failed call shows."""
        self._raw.health()

    def abort(self, why: str = "") -> None:
        """Tells every rank to give up: their waits raise PeerLostError with this text. From any thread."""
        self._raw.abort(why)

    def suspend(self) -> None:
        """Gives the memory of mailboxes back until resume(). Collective, with idle streams."""
        self._raw.suspend()

    def resume(self) -> None:
        """Maps mailboxes anew; graphs captured before are void. Collective."""
        self._raw.resume()

    def refusals(self) -> str:
        """One line for each transport that was passed over, with the reason."""
        return self._raw.refusals()

    def explain(self, hidden: int, max_rows: int) -> str:
        """How boundaries of this size would run, as tables. Collective."""
        return self._raw.explain(hidden, max_rows)

    def close(self) -> None:
        """Nothing can be asked any more. Channels and boundaries that were made of it live on."""
        if not self._raw.closed():
            self._raw.close()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def _raw(options: Options) -> _tenon.Options:
    unknown = ", ".join(sorted(options.keys() - _DEFAULTS.keys()))
    if unknown:
        raise InvalidArgumentError(f"no option is called {unknown}; accepted: {', '.join(_DEFAULTS)}")
    asked: Options = {**_DEFAULTS, **options}
    target, deadline = asked["target"], asked["deadline"]
    return _tenon.Options(
        default_target() if target is None else target,
        asked["transport"],
        asked["device"],
        asked["concurrent"],
        asked["only_exchanges"],
        0 if deadline is None else max(1, round(deadline * 1000)),
    )
