"""Checkpoints in the format of the Qwen3.5 releases, and `transformers` models made from them.

Tensors are handled under the names of the releases (prefix `model.language_model.`).  Two layouts exist: bf16 with fused
3-D experts, and block-FP8 with one tensor per expert projection and a `weight_scale_inv` beside each FP8 weight.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3_5TextConfig)

PREFIX = "model.language_model."
BLOCK = 128
STORED_AS_F32 = ("linear_attn.A_log", "linear_attn.norm.weight")
EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")


# Files -----------------------------------------------------------------------------------------------------------

def read_config(folder):
    return json.loads((Path(folder) / "config.json").read_text())


def read_tensors(folder):
    """Every tensor of the checkpoint, exactly as stored."""
    folder = Path(folder)
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        with safe_open(folder / shard, "pt") as opened:
            for name in opened.keys():
                assert weight_map[name] == shard, name
                tensors[name] = opened.get_tensor(name)
    assert tensors.keys() == weight_map.keys()
    return tensors


def write_tensors(folder, tensors, shard_bytes):
    """Shards of at most `shard_bytes` of tensor data, and their index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, room = [], 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        if size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# Release layout <-> transformers -----------------------------------------------------------------------------------

def to_release_name(name):
    return PREFIX + name.removeprefix("model.") if name.startswith("model.") else name


def to_transformers_name(name):
    return "model." + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name


def release_tensors(model, config):
    """The bf16 release of a trained model."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        dtype = torch.float32 if name.endswith(STORED_AS_F32) else torch.bfloat16
        tensors[to_release_name(name)] = value.detach().to("cpu", dtype)
    return tensors


def block_scales(scale_inv, shape):
    """Spreads [out/128, in/128] block scales over a matrix of `shape`."""
    return scale_inv.float().repeat_interleave(BLOCK, 0)[:shape[0]].repeat_interleave(BLOCK, 1)[:, :shape[1]]


def dequantise(tensors):
    """FP8 weights times their block scales in float32; other tensors unchanged; no `weight_scale_inv` left."""
    plain = {}
    for name, value in tensors.items():
        if name.endswith(".weight_scale_inv"):
            assert tensors[name.removesuffix("_scale_inv")].dtype == torch.float8_e4m3fn, name
        elif value.dtype == torch.float8_e4m3fn:
            plain[name] = value.float() * block_scales(tensors[name + "_scale_inv"], value.shape)
        else:
            plain[name] = value
    return plain


def fuse_experts(tensors):
    """Per-expert projections -> `experts.gate_up_proj` [E, 2I, H] and `experts.down_proj` [E, H, I]."""
    fused, experts = {}, {}
    for name, value in tensors.items():
        if match := EXPERT.match(name):
            base, number, projection = match.groups()
            experts.setdefault(base, {})[int(number), projection] = value
        else:
            fused[name] = value
    for base, parts in experts.items():
        count = 1 + max(number for number, _ in parts)
        assert len(parts) == 3 * count, base
        fused[base + ".gate_up_proj"] = torch.stack(
            [torch.cat([parts[e, "gate"], parts[e, "up"]]) for e in range(count)])
        fused[base + ".down_proj"] = torch.stack([parts[e, "down"] for e in range(count)])
    return fused


def quantised_modules(tensors):
    """The `transformers` names of the modules whose weights are FP8; all experts of a layer count as one module."""
    names = set()
    for name, value in tensors.items():
        if value.dtype == torch.float8_e4m3fn:
            match = EXPERT.match(name)
            names.add(to_transformers_name(match[1] if match else name.removesuffix(".weight")))
    return names


def build_model(config, tensors, dtype, device="cpu"):
    """The `transformers` causal model with exactly these weights.

    `A_log` and the gated norm's weight stay float32 as they are stored, everything else becomes `dtype`.
    """
    text = {key: value for key, value in config["text_config"].items() if key not in ("model_type", "dtype")}
    is_moe = config["model_type"] == "qwen3_5_moe"
    text_config = (Qwen3_5MoeTextConfig if is_moe else Qwen3_5TextConfig)(**text)
    assert text_config.rope_parameters["rope_theta"] == 10_000_000
    text_config._attn_implementation = "eager"
    text_config._experts_implementation = "eager"
    model = (Qwen3_5MoeForCausalLM if is_moe else Qwen3_5ForCausalLM)(text_config).eval()
    if tensors is not None:
        state = {to_transformers_name(name): value for name, value in fuse_experts(dequantise(tensors)).items()}
        if config["tie_word_embeddings"]:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    model.to(device)
    for name, parameter in model.named_parameters():
        if not name.endswith(STORED_AS_F32):
            parameter.data = parameter.data.to(dtype)
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == config["tie_word_embeddings"]
    return model
