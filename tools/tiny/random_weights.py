"""Random checkpoints that are a pure function of tensor names: tests in any language regenerate them bit for bit.

The rule is written down in tests/data/goldens/README.md.
"""

import math

import numpy as np
import torch

from checkpoint import build_model, release_tensors
from quantize import quantise_checkpoint


def fnv1a64(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def splitmix64(x):
    """Elementwise on a uint64 array; all arithmetic wraps."""
    z = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draws(name, count, modulus):
    """u % modulus for the elements 0 .. count - 1 of the named tensor."""
    index = np.uint64(fnv1a64(name)) + np.arange(count, dtype=np.uint64)
    return (splitmix64(index) >> np.uint64(32)).astype(np.int64) % modulus


def scale_exponent(fan_in):
    return 7 + round(math.log2(1.5 * 8.94 * math.sqrt(fan_in)))


def matrix_exponent(fan_in):
    return round(math.log2(73.6 * math.sqrt(fan_in)))


def values(name, shape, dtype, weight_shape=None):
    """The tensor's values in float64; `weight_shape` is the shape of the weight a `weight_scale_inv` belongs to."""
    count = math.prod(shape)
    if name.endswith(".weight_scale_inv"):
        return (128 + draws(name, count, 128)) * 2.0 ** -scale_exponent(weight_shape[-1])
    if dtype == torch.float8_e4m3fn:
        return (draws(name, count, 31) - 15).astype(np.float64)
    centred = (draws(name, count, 255) - 127).astype(np.float64)
    if name.endswith("linear_attn.norm.weight"):
        return 1 + centred * 2.0 ** -9
    if name.endswith(("linear_attn.A_log", "linear_attn.dt_bias")):
        return centred * 2.0 ** -6
    if len(shape) == 1:
        return centred * 2.0 ** -9
    fan_in = 1 if name.endswith("embed_tokens.weight") else shape[-1]
    return centred * 2.0 ** -matrix_exponent(fan_in)


def random_tensors(config):
    """All tensors of a checkpoint of this shape, under the names and dtypes of the Qwen releases."""
    torch.manual_seed(0)
    shapes = release_tensors(build_model(config, None, torch.float32), config)
    if "quantization_config" in config:
        shapes = quantise_checkpoint(shapes)
    tensors = {}
    for name, like in shapes.items():
        weight = shapes.get(name.removesuffix("_scale_inv"))
        exact = torch.from_numpy(values(name, like.shape, like.dtype, weight.shape)).reshape(like.shape)
        tensors[name] = exact.to(like.dtype)
        assert torch.equal(tensors[name].double(), exact), f"{name} is not exact in {like.dtype}"
    return tensors
