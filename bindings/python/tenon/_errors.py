"""Exceptions. Each says what was asked, what was found and what is accepted."""

from __future__ import annotations


class Error(RuntimeError):
    """Whatever tenon refuses or finds wrong. `code` is that of bindings/c/tenon.h."""

    code: int = 8


class InvalidArgumentError(Error, ValueError):
    """The caller asked for something that cannot be: wrong dtype, shape, device, use after close, ..."""

    code = 1


class UnsupportedError(Error):
    """Sensible, but not on this build, device or variant, or not after fork()."""

    code = 2


class OutOfMemoryError(Error, MemoryError):
    """Memory of the host or of a device ran out."""

    code = 3


class DeadlineError(Error, TimeoutError):
    """A wait passed its deadline; the text says who waited for whom."""

    code = 4


class PeerLostError(Error):
    """Another rank died, left or gave up."""

    code = 5


class DeviceError(Error):
    """The device or its driver failed."""

    code = 6


class IoError(Error):
    """A file or socket failed, or held something malformed."""

    code = 7


class InternalError(Error):
    """tenon is wrong."""

    code = 8


_BY_CODE: dict[int, type[Error]] = {
    kind.code: kind
    for kind in (
        InvalidArgumentError,
        UnsupportedError,
        OutOfMemoryError,
        DeadlineError,
        PeerLostError,
        DeviceError,
        IoError,
        InternalError,
    )
}


def make(code: int, text: str) -> Error:
    """The exception of a code; the extensions raise what this gives."""
    return _BY_CODE.get(code, InternalError)(text)
