"""Turns a bf16 checkpoint into a block-FP8 one in the format of Qwen's FP8 releases.

    python tools/tiny/quantize.py BF16_FOLDER checkpoints/tiny

Blocks of 128 x 128, scale = amax / 448 rounded to bf16 and stored as `weight_scale_inv`; codes are e4m3 of weight / scale
with that rounded scale.
"""

import argparse

import torch

from checkpoint import BLOCK, block_scales, read_tensors, write_tensors
from fakequant import FP8_MAX

SHARD_BYTES = 5_500_000
FP8_LINEARS = ("in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
               "down_proj")


def quantise(weight):
    """e4m3 codes and bf16 block scales of one matrix whose sides are multiples of 128."""
    rows, columns = weight.shape
    blocks = weight.float().reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = (blocks.abs().amax(dim=(1, 3)) / FP8_MAX).to(torch.bfloat16)
    codes = weight.float() / block_scales(scale, weight.shape)
    return codes.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def split_experts(tensors):
    """Fused 3-D experts -> one `gate_proj`, `up_proj`, `down_proj` weight for each expert."""
    split = {}
    for name, value in tensors.items():
        base, _, last = name.rpartition(".")
        if not base.endswith(".mlp.experts"):
            split[name] = value
            continue
        for number, expert in enumerate(value):
            projections = {"down_proj": expert}
            if last == "gate_up_proj":
                projections = dict(zip(("gate_proj", "up_proj"), expert.chunk(2)))
            for projection, weight in projections.items():
                split[f"{base}.{number}.{projection}.weight"] = weight
    return split


def quantise_checkpoint(tensors):
    quantised = {}
    for name, value in split_experts(tensors).items():
        if name.endswith(".weight") and name.split(".")[-2] in FP8_LINEARS:
            quantised[name], quantised[name + "_scale_inv"] = quantise(value)
        else:
            quantised[name] = value
    return quantised


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    args = parser.parse_args()
    write_tensors(args.target, quantise_checkpoint(read_tensors(args.source)), SHARD_BYTES)


if __name__ == "__main__":
    main()
