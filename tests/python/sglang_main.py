"""One rank that a launcher started: decoder layers of SGLang's release as they are (Qwen3.5's layer with attention: its
norms, stage boundaries, residual stream, linear layers and MLP), by SGLang's own chain and with the plugin in it.

    sglang_main.py FOLDER_WITH_SGLANG [cpu|cuda] [quant]

Every call of the plugin is judged beside what SGLang gives for the same arguments. Left out is attention itself: o_proj
takes a part of what qkv_proj gives. What stands for an installed FlashInfer, without which SGLang asks for no fused
sums, is one function, which declines. quant: with the change to SGLang's code of docs/drop-in.md, so that codes and
scales come out of the boundary too; the layer makes rows of them again, since its products for these want GPUs.
"""
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
import types

sys.path.insert(0, sys.argv[1])
DEVICE = sys.argv[2]
QUANT = "quant" in sys.argv

# What SGLang imports and these layers never call.
ABSENT = """IPython aiohttp compressed_tensors einops gguf numba orjson partial_json_parser PIL psutil pybase64 requests
            sentencepiece sgl_kernel sglang.srt.entrypoints.openai starlette torchvision tvm_ffi""".split()


class Inert(type):
    """Of classes that give themselves for every name and index."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, key):
        return cls

    def __or__(cls, other):
        return object

    __ror__ = __or__


class Anything(metaclass=Inert):
    def __new__(cls, *given, **named):
        decorates = len(given) == 1 and not named and callable(given[0]) and not isinstance(given[0], type)
        return given[0] if decorates else Anything

    def __init_subclass__(cls, **named):
        pass


class AbsentModule(types.ModuleType):
    __path__ = []
    __version__ = "0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in ABSENT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Absent())
os.environ["SGLANG_PLUGINS"] = "tenon"

import torch  # noqa: E402
from sglang.srt.configs.qwen3_5 import Qwen3_5TextConfig  # noqa: E402
from sglang.srt.distributed import attention_tensor_model_parallel_all_reduce, parallel_state  # noqa: E402
from sglang.srt.distributed.device_communicators import pynccl  # noqa: E402
from sglang.srt.layers import flashinfer_comm_fusion, layernorm  # noqa: E402
from sglang.srt.layers.dp_attention import initialize_dp_attention  # noqa: E402
from sglang.srt.layers.layer_boundary import exit as boundary_exit  # noqa: E402
from sglang.srt.layers.layer_boundary import layer_stack  # noqa: E402
from sglang.srt.layers.layer_boundary.fusions import allreduce  # noqa: E402
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import ForwardMode  # noqa: E402
from sglang.srt.models import qwen3_5  # noqa: E402
from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402
from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish  # noqa: E402
from sglang.srt.server_args import ServerArgs  # noqa: E402

from tenon.adapters import sglang as plugin  # noqa: E402

HIDDEN, LAYERS, ROWS, GROUP = 512, 3, (1, 3, 16, 64), 128
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def begin():
    """The ranks of SGLang, as its server makes them."""
    on_gpus = DEVICE == "cuda"
    parallel_state.set_custom_all_reduce(False)  # its kernels are compiled, or absent
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        pynccl.PyNcclCommunicator = lambda **named: types.SimpleNamespace(disabled=True)
    parallel_state.init_distributed_environment(
        world_size=world, rank=rank, local_rank=int(os.environ["LOCAL_RANK"]), backend="nccl" if on_gpus else "gloo")
    options = ServerArgs(model_path="dummy", device=DEVICE, tp_size=world)
    publish(options, role="test", ranks=SpawnRanks(world_rank=rank))
    get_parallel().override_permanently(world_group=parallel_state.get_world_group())
    parallel_state.initialize_model_parallel()
    initialize_dp_attention(options)


def quantised(rows):
    groups = rows.float().view(rows.shape[0], -1, GROUP)
    most = groups.abs().amax(-1, keepdim=True)
    return (groups * (448 / most)).to(torch.float8_e4m3fn).view_as(rows), (most * (1 / 448)).squeeze(-1)


def rows_of(codes, scales):
    return (codes.float().view(*scales.shape, GROUP) * scales.unsqueeze(-1)).view(codes.shape).bfloat16()


def attention(layer, *, positions, hidden_states, forward_batch):
    if QUANT:
        given = isinstance(hidden_states, tuple)
        hidden_states = rows_of(*(hidden_states if given else quantised(hidden_states)))
    qkv, _ = layer.qkv_proj(hidden_states)
    return layer.o_proj(qkv[:, : layer.o_proj.input_size_per_partition].contiguous())[0]


def make_layers():
    """Layers and the last norm; norms and the rest of the seeds are those of all ranks, products this rank's own."""
    config = Qwen3_5TextConfig(
        hidden_size=HIDDEN, intermediate_size=1024, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=2, head_dim=64, vocab_size=512, full_attention_interval=1,
        layer_types=["full_attention"] * LAYERS)
    config.model_type = "qwen3_5_text"
    qwen3_5.get_rope = lambda **named: None
    qwen3_5.Qwen3_5AttentionDecoderLayer.self_attention = attention
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE), layer_stack():
        layers = [qwen3_5.Qwen3_5AttentionDecoderLayer(config, index) for index in range(LAYERS)]
        last = layernorm.GemmaRMSNorm(HIDDEN, eps=config.rms_norm_eps)
    torch.set_default_dtype(torch.float32)
    own, shared = torch.Generator().manual_seed(77 + rank), torch.Generator().manual_seed(3)
    for module in [each for layer in layers for each in layer.modules()] + [last]:
        is_norm = isinstance(module, layernorm.GemmaRMSNorm)
        for parameter in module.parameters(recurse=False):
            drawn = torch.randn(parameter.shape, generator=shared if is_norm else own)
            parameter.data.copy_(drawn * (0.2 if is_norm else 0.04))
        if is_norm:
            module.refresh_gemma_weight()
        if hasattr(module, "forward_native"):
            module._forward_method = module.forward_native
    return layers, last


def forward(layers, last, rows):
    x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(rows)).bfloat16().to(DEVICE)
    batch = types.SimpleNamespace(forward_mode=ForwardMode.DECODE, residual_stream=None, can_run_tbo=False,
                                  input_ids=torch.zeros(rows, dtype=torch.int64, device=DEVICE))
    residual_batch.start(batch)
    with torch.no_grad():
        for layer in layers:
            x = layer(positions=None, hidden_states=x, forward_batch=batch)
        return residual_batch.final_norm(x, batch, last)


def same(a, b):
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


def apart(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


calls = {"norm": 0, "norm_quant": 0}


def judged_norm(original, norm, x, residual, addition, weight, use_attn_tp_group=True):
    calls["norm"] += 1
    wanted, sum_wanted = original(norm, x.clone(), residual.clone(), addition, weight, use_attn_tp_group)
    rows, kept = all_reduce_norm(original, norm, x, residual, addition, weight, use_attn_tp_group)
    assert same(kept, sum_wanted), "the residual has other bits than SGLang's"
    assert apart(rows, wanted) < 1e-3, apart(rows, wanted)
    return rows, kept


def judged_norm_quant(original, norm, x, residual, weight, group_size=GROUP, use_attn_tp_group=True, keep_bf16=False):
    calls["norm_quant"] += 1
    assert group_size == GROUP and not keep_bf16
    wanted, sum_wanted = norm.forward(attention_tensor_model_parallel_all_reduce(x.clone()), residual.clone())
    (codes, scales), kept = all_reduce_norm_quant(original, norm, x, residual, weight, group_size, use_attn_tp_group)
    assert same(kept, sum_wanted), "the residual has other bits than SGLang's"
    off = apart(rows_of(codes, scales), rows_of(*quantised(wanted)))
    assert off < 1e-2, off  # of few codes: squares are added up in another order than torch's
    return (codes, scales), kept


def let_sglang_fuse():
    """As with FlashInfer and its option, whose function declines: SGLang then sums and calls the norm."""
    for module in (allreduce, boundary_exit):
        module.flashinfer_ar_fusion_applies = lambda rows: 0 < rows <= 2048
    flashinfer_comm_fusion.flashinfer_allreduce_residual_rmsnorm = lambda **named: (None, None)


def edit():
    """The change of docs/drop-in.md, in every module that has the function."""
    before = allreduce.attn_input_fusions
    source = inspect.getsource(before)
    for line in ("and _use_aiter\n", "and get_exec().comm.enable_aiter_allreduce_fusion\n"):
        assert source.count(line) == 1, source
        source = source.replace(line, "\n")
    exec(compile(source, allreduce.__file__, "exec"), allreduce.__dict__)
    for name, module in list(sys.modules.items()):
        if name.startswith("sglang.srt.layers") and getattr(module, "attn_input_fusions", None) is before:
            module.attn_input_fusions = allreduce.attn_input_fusions
    qwen3_5._linear_accepts_fp8_tuple = lambda linear: True  # as of block FP8


begin()
alone = make_layers()
plain = [forward(*alone, rows) for rows in ROWS]
let_sglang_fuse()
if QUANT:
    edit()
own = make_layers()
for rows, wanted in zip(ROWS, plain):
    assert same(forward(*own, rows), wanted), "SGLang's two ways differ"
all_reduce_norm, all_reduce_norm_quant = plugin.all_reduce_norm, plugin.all_reduce_norm_quant
plugin.all_reduce_norm, plugin.all_reduce_norm_quant = judged_norm, judged_norm_quant
plugin.register()
HookRegistry.apply_hooks()
ours = make_layers()
found = [forward(*ours, rows) for rows in ROWS]
sums = 2 * LAYERS - 1  # the first layer's input has none, the last one's output meets its norm without a hook
quants = LAYERS - 1 if QUANT else 0
assert calls == {"norm": len(ROWS) * (sums - quants), "norm_quant": len(ROWS) * quants}, calls
for rows, wanted in zip(found, plain):
    assert apart(rows, wanted) < 2e-2, apart(rows, wanted)
torch.distributed.barrier()
if rank == 0:
    print("apart", *[f"{apart(rows, wanted):.1e}" for rows, wanted in zip(found, plain)], calls)
print("as SGLang's own", flush=True)
