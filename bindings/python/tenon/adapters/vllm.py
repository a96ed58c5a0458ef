"""For vLLM (docs/drop-in.md): a general plugin that makes torch.ops.tenon.boundary known in every process of it, and
the ranks of its tensor-parallel group. Which lines of vLLM call it then is on that page."""

from __future__ import annotations

import importlib

from . import Norms
from ..torch import communicator


def register() -> None:
    """What vLLM calls in every process, through the entry point group vllm.general_plugins. Importing this module
    has defined the operator; nothing of vLLM is changed."""


def norms(*, hidden: int, max_rows: int, dtype: str = "bf16", target: str = "cuda") -> Norms:
    """Norms over vLLM's tensor-parallel group. Collective in it."""
    group = importlib.import_module("vllm.distributed").get_tp_group()
    return Norms(communicator(group.cpu_group, target=target), hidden=hidden, max_rows=max_rows, dtype=dtype)
