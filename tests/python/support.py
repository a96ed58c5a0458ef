"""What tests of the Python package share: the arithmetic of docs/boundary.md once more, in NumPy."""
import numpy as np


def bf16_bits(values):
    """Round fp32 to bf16, nearest even; as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_inputs(rank, rows, hidden):
    """The addend of a rank, and residual and weight, which are the same on all; scales differ by row."""
    addends = np.random.default_rng([1, rank]).standard_normal((rows, hidden)) * 2.0 ** (np.arange(rows) % 7 - 3)[:, None]
    same = np.random.default_rng(2)
    return (bf16_bits(addends.astype(np.float32)), bf16_bits(same.standard_normal((rows, hidden)).astype(np.float32)),
            bf16_bits(same.standard_normal(hidden).astype(np.float32)))


def summed_residual(num_ranks, rows, hidden):
    """Steps 1 to 3: the sum in rank order in fp32, rounded, plus the residual, rounded."""
    total = from_bits(make_inputs(0, rows, hidden)[0])
    for rank in range(1, num_ranks):
        total = total + from_bits(make_inputs(rank, rows, hidden)[0])
    residual = from_bits(make_inputs(0, rows, hidden)[1])
    return bf16_bits(from_bits(bf16_bits(total)) + residual)


def normalized(residual_bits, weight_bits, eps, offset):
    """Steps 4 to 8, from bf16 bits to bf16 bits."""
    h = from_bits(residual_bits)
    squares = h * h
    partials = squares[:, 0::8]
    for k in range(1, 8):
        partials = partials + squares[:, k::8]
    width = 1 << (partials.shape[1] - 1).bit_length()
    partials = np.pad(partials, ((0, 0), (0, width - partials.shape[1])))
    while partials.shape[1] > 1:
        partials = partials[:, 0::2] + partials[:, 1::2]
    one = np.float32(1)
    rstd = one / np.sqrt(partials / np.float32(h.shape[1]) + np.float32(eps))
    return bf16_bits((h * rstd) * (np.float32(offset) + from_bits(weight_bits)))


def _e4m3_values():
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa * 2.0 ** -9, (8 + mantissa) * 2.0 ** (exponent - 10.0))


def quantized(norm_bits, group):
    """Steps 9 and 10 with fp32 scales for e4m3fn: codes [rows, hidden] and scales [rows, groups]."""
    n = from_bits(norm_bits)
    groups = n.reshape(n.shape[0], -1, group)
    most = np.maximum(np.abs(groups).max(axis=2), np.float32(1e-10))
    scaled = (groups * (np.float32(448) / most)[:, :, None]).reshape(n.shape)
    values = _e4m3_values()
    size = np.minimum(np.abs(scaled.astype(np.float64)), 448.0)
    below = np.clip(np.searchsorted(values, size, side="right") - 1, 0, 125)
    middle = (values[below] + values[below + 1]) / 2
    up = (size > middle) | ((size == middle) & (below % 2 == 1))
    codes = (below + up + 128 * np.signbit(scaled)).astype(np.uint8)
    return codes, most * (np.float32(1) / np.float32(448))
