"""tenon: sum over ranks, residual, RMSNorm and FP8 quantisation as one operation, and a lean engine.

    communicator = tenon.Communicator.from_environment()
    boundary = tenon.Boundary(communicator, hidden=4096, max_rows=512)
    out = boundary(partial, residual, weight)    # arrays of NumPy, torch, CuPy

    with tenon.Engine("checkpoints/tiny", tp=2) as engine:
        print(engine.chat([{"role": "user", "content": "Hello"}]).text)

docs/python.md has the rest.
"""

from ._boundary import Boundary, Channel, Outputs, Plan
from ._communicator import (
    Communicator,
    CommunicatorInfo,
    Team,
    default_target,
    device_count,
    unique_id,
)
from ._engine_api import Completion, Engine, Outcome, Part, Reply, Sampling
from ._errors import (
    DeadlineError,
    DeviceError,
    Error,
    InternalError,
    InvalidArgumentError,
    IoError,
    OutOfMemoryError,
    PeerLostError,
    UnsupportedError,
)
from ._tenon import build_info, commit, env_text, version

__version__ = version()

__all__ = [
    "Boundary",
    "Channel",
    "Communicator",
    "CommunicatorInfo",
    "Completion",
    "DeadlineError",
    "DeviceError",
    "Engine",
    "Error",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "Outcome",
    "OutOfMemoryError",
    "Outputs",
    "Part",
    "PeerLostError",
    "Plan",
    "Reply",
    "Sampling",
    "Team",
    "UnsupportedError",
    "build_info",
    "commit",
    "default_target",
    "device_count",
    "env_text",
    "unique_id",
    "version",
]
