"""One rank that a launcher started: the adapters, and the plugin for SGLang behind stand-ins of its modules."""
import os
import sys
import types

import tenon
import torch
from tenon import adapters
from tenon.adapters import sglang, vllm

from oracle import case, difference, inputs

EPS = 1e-6


def tensors(shape):
    return [torch.from_numpy(bits).view(torch.bfloat16) for bits in inputs(shape, torch.distributed.get_rank())]


def aligned(scales):
    """Scales of TMA's strides as the memory under them, padding included."""
    return scales.t().as_strided((scales.shape[1], (scales.shape[0] + 3) // 4 * 4), (scales.stride(1), 1))


def check_norms(norms, world):
    for layout, named in (("row", "row"), ("column", "mn_major"), ("ue8m0", "ue8m0_packed")):
        shape = case(5, 512, world, layout=named, offset=1.0)
        x, residual, weight = tensors(shape)
        (rows, codes, scales), residual = norms.norm_quant(x, residual, weight, EPS, offset=1.0, layout=layout,
                                                           keep_rows=True)
        if layout != "row":
            assert scales.shape[0] == 5 and scales.stride() == (1, 8), scales.stride()
            scales = aligned(scales)
        out = tenon.Outputs(residual, rows, codes, scales)
        assert difference(shape, out) == "", difference(shape, out)

        x, fresh, weight = tensors(shape)
        (alone, _), _ = norms.norm_quant(x, fresh.clone(), weight, EPS, offset=1.0, layout=layout)
        assert torch.equal(alone.view(torch.uint8), codes.view(torch.uint8))
        plain, kept = norms.norm(x.view(1, 5, 512), fresh.view(1, 5, 512), weight, EPS, offset=1.0)
        assert plain.shape == (1, 5, 512) and torch.equal(plain.view(torch.int16)[0], rows.view(torch.int16))
        assert torch.equal(kept.view(torch.int16)[0], residual.view(torch.int16))
    many = torch.zeros(9, 512, dtype=torch.bfloat16)
    assert norms.norm(many, many, many[0], EPS) is None and norms.norm_quant(many, many, many[0], EPS) is None


class Group:
    """What the plugins use of GroupCoordinator, of both engines."""

    cpu_group = None

    def __init__(self, world_size):
        self.world_size = world_size


class Registry:
    """HookRegistry of sglang.srt.plugins, as its documentation says that hooks AROUND a function are called."""

    hooks = {}

    @classmethod
    def register(cls, target, hook, kind):
        assert kind == "around"
        cls.hooks[target] = hook

    @classmethod
    def around(cls, name, original):
        hook = cls.hooks[f"sglang.srt.layers.{name}"]
        return lambda *given, **named: hook(original, *given, **named)


def check_sglang(world):
    modules = {
        "sglang.srt.plugins.hook_registry": {"HookRegistry": Registry, "HookType": types.SimpleNamespace(AROUND="around")},
        "sglang.srt.distributed.parallel_state": {"get_attn_tp_group": lambda: whole, "get_moe_ep_group": lambda: one,
                                                  "get_moe_tp_group": lambda: whole},
    }
    whole, one = Group(world), Group(1)
    for name, holds in modules.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(holds)
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins", "sglang.srt.distributed"):
        sys.modules[name] = types.ModuleType(name)
    sglang.register()
    assert not Registry.hooks, "it was not asked for"
    os.environ["SGLANG_PLUGINS"] = "other, tenon"
    sglang.register()

    shape = case(5, 512, world, offset=1.0)
    x, residual, weight = tensors(shape)
    norm = types.SimpleNamespace(variance_epsilon=EPS, weight=weight, gemma_weight=weight + 1)
    run = Registry.around("layernorm._forward_with_allreduce_fusion_quant_per_group", lambda *of: ("own way", of[1].shape[0]))
    (rows, codes, scales), kept = run(norm, x, residual.clone(), norm.gemma_weight, 128, False, keep_bf16=True)
    out = tenon.Outputs(kept, rows, codes, scales)
    assert difference(shape, out) == "", difference(shape, out)
    (codes, scales), _ = run(norm, x, residual.clone(), norm.gemma_weight)
    assert torch.equal(codes.view(torch.uint8), out.codes.view(torch.uint8))
    plain = Registry.around("layernorm._forward_with_allreduce_fusion", lambda *of: ("own way", of[1].shape[0]))
    assert torch.equal(plain(norm, x, residual.clone(), None, norm.gemma_weight)[0].view(torch.int16),
                       rows.view(torch.int16))
    assert plain(norm, x, None, None, weight) == ("own way", 5)
    assert plain(norm, x, residual, residual, weight) == ("own way", 5)
    assert run(norm, x.float(), residual, weight) == ("own way", 5)
    keeps = Registry.around("layer_boundary.fusions.allreduce.flashinfer_preserves_residual", lambda *of: True)
    assert not keeps(residual, None), "a boundary overwrites the residual"


def check_vllm(world):
    sys.modules["vllm"] = types.ModuleType("vllm")
    sys.modules["vllm.distributed"] = types.ModuleType("vllm.distributed")
    sys.modules["vllm.distributed"].get_tp_group = lambda: Group(world)
    vllm.register()
    check_norms(vllm.norms(hidden=512, max_rows=8, target="cpu"), world)


torch.distributed.init_process_group("gloo")
count = torch.distributed.get_world_size()
check_norms(adapters.Norms(tenon.torch.communicator(target="cpu"), hidden=512, max_rows=8), count)
check_sglang(count)
check_vllm(count)
torch.distributed.destroy_process_group()
print("equal")
