"""A plugin for SGLang through its entry point group sglang.srt.plugins (docs/drop-in.md). It is loaded by itself, and
does something only where SGLANG_PLUGINS names it: SGLANG_PLUGINS=tenon."""

from __future__ import annotations

import importlib
import os
from typing import Any, Callable, Optional

from . import Norms
from ..torch import communicator

_LAYERS = "sglang.srt.layers"
_MOST_ROWS = 8192  # of a call; SGLang's own way takes larger ones
_DTYPES = {"torch.bfloat16": "bf16", "torch.float16": "f16"}
_norms: dict[Any, Norms] = {}


def register() -> None:
    """What SGLang calls in every process."""
    named = os.environ.get("SGLANG_PLUGINS", "").split(",")
    if "tenon" not in [name.strip() for name in named]:
        return
    hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
    for name, hook in (
        ("layernorm._forward_with_allreduce_fusion", all_reduce_norm),
        ("layernorm._forward_with_allreduce_fusion_quant_per_group", all_reduce_norm_quant),
        ("layer_boundary.fusions.allreduce.flashinfer_preserves_residual", preserves_residual),
    ):
        hooks.HookRegistry.register(f"{_LAYERS}.{name}", hook, hooks.HookType.AROUND)


def _group(use_attn_tp_group: bool) -> Any:
    """The ranks over which the sum is due, as SGLang's helpers choose them."""
    state = importlib.import_module("sglang.srt.distributed.parallel_state")
    if use_attn_tp_group:
        return state.get_attn_tp_group()
    experts = state.get_moe_ep_group()
    return experts if experts.world_size > 1 else state.get_moe_tp_group()


def _norms_for(x: Any, residual: Any, use_attn_tp_group: bool) -> Optional[Norms]:
    """None where SGLang's own way is to be taken: a choice that all ranks make alike."""
    dtype = _DTYPES.get(str(x.dtype))
    if residual is None or dtype is None or x.dim() != 2 or not 0 < x.shape[0] <= _MOST_ROWS:
        return None
    group = _group(use_attn_tp_group)
    if not 1 < group.world_size <= 8:
        return None
    key = id(group), x.shape[1], dtype
    if key not in _norms:
        joined = communicator(group.cpu_group, target=str(x.device.type))
        _norms[key] = Norms(joined, hidden=x.shape[1], max_rows=_MOST_ROWS, dtype=dtype)
    return _norms[key]


def _weight(norm: Any, weight: Any) -> tuple[Any, float]:
    """The weight and what is added to it: SGLang hands GemmaRMSNorm's 1 + weight over, rounded."""
    return (norm.weight, 1.0) if hasattr(norm, "gemma_weight") else (weight, 0.0)


def all_reduce_norm(
    original: Callable[..., Any],
    norm_module: Any,
    x: Any,
    residual: Any,
    post_residual_addition: Any,
    weight: Any,
    use_attn_tp_group: bool = True,
) -> Any:
    """Around _forward_with_allreduce_fusion: (rows, residual)."""
    norms = None if post_residual_addition is not None else _norms_for(x, residual, use_attn_tp_group)
    if norms is None:
        return original(norm_module, x, residual, post_residual_addition, weight, use_attn_tp_group)
    own, offset = _weight(norm_module, weight)
    return norms.norm(x, residual, own, norm_module.variance_epsilon, offset=offset)


def all_reduce_norm_quant(
    original: Callable[..., Any],
    norm_module: Any,
    x: Any,
    residual: Any,
    weight: Any,
    group_size: int = 128,
    use_attn_tp_group: bool = True,
    keep_bf16: bool = False,
) -> Any:
    """Around _forward_with_allreduce_fusion_quant_per_group: ((fp8, scale), residual) or ((bf16, fp8, scale),
    residual)."""
    norms = _norms_for(x, residual, use_attn_tp_group)
    if norms is None:
        return original(norm_module, x, residual, weight, group_size, use_attn_tp_group, keep_bf16)
    own, offset = _weight(norm_module, weight)
    return norms.norm_quant(
        x, residual, own, norm_module.variance_epsilon, offset=offset, group=group_size, keep_rows=keep_bf16
    )


def preserves_residual(original: Callable[..., Any], value: Any, forward_batch: Any) -> bool:
    """Around flashinfer_preserves_residual, which SGLang asks whether it may keep a residual (for a draft model)
    without copying it. A boundary overwrites it."""
    return False
