// What both kernels of Hopper share: the call, where a tile of the cache lies, the end of a row.
//
// The bits of this variant. Scores are taken times log2 e, and exponentials are powers of two of
// the instruction (fast_exp2), within partials and where they join. Weights are rounded to bf16 for
// the products with v; their sum l takes them in fp32. A sequence with one token in the step is
// worked on by decode (sm90_decode.cuh, sm90_stream.cuh): the weighted values of a tile are summed
// from zero, then o = fma(o, r, sum). One with more is a prompt (sm90_prefill.cuh): the tensor core
// adds a tile's values to o · r.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/cuda_hip/sm90/mma.cuh"
#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/vec.cuh"
#include "tenon/ops/attention/workspace.h"
#include "tenon/ops/common/quantize.cuh"

namespace tenon::TENON_TARGET::attention {

using namespace sm90;
using tenon::attention::kClusterRanks;
using tenon::attention::kMostSequences;
using tenon::attention::rank_bytes;

inline constexpr int kHeadDim = 256;
inline constexpr int kTile = 64;
inline constexpr int kPartial = 256;
inline constexpr int kSlabBytes = kTile * 128;     // 64 positions, 64 components of each
inline constexpr int kTileBytes = 4 * kSlabBytes;  // a tile of k or v

inline constexpr int kRotaryDim = 64;

// For calls that do the work of rope (attention.h). k is null where rope has been there before.
struct NewHeads {
  const bf16 *k, *v;
  const void *q_norm, *k_norm;  // bf16, or f32 if wide_norms
  const std::int32_t *positions, *slots;
  const float* cos_sin;  // [max_positions, kRotaryDim]
  bf16 *k_cache, *v_cache;
  std::int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride;
  float eps, norm_offset;
  int max_positions;
  bool wide_norms;
};

struct Sm90Call {
  TensorMap k, v;  // [positions of the cache, kv_heads · 256], in tiles of 64
  NewHeads heads;
  const bf16 *q, *gate;  // gate may be null
  const std::int32_t *block_table, *starts, *lengths;
  bf16* out;  // null where nobody wants bf16 rows
  std::byte* slots;
  std::int64_t q_token_stride, q_head_stride, gate_token_stride, gate_head_stride, out_stride;
  QuantSpec quant;  // scales by rows, groups of 128
  float scale;      // times log2 e
  int tokens, sequences, q_heads, kv_heads, group;
  int num_blocks, block_tokens, max_blocks, num_slots;
  bool streams;  // stream_kernel runs, not decode_kernel
};

TENON_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
// Of a sequence with one token.
TENON_DEVICE int partials_of(int context) {
  return context > kPartial ? ceil_div(context, kPartial) : 1;
}

// The sequence's block of the cache where `position` lies; −1: it has none. Here as below the
// arrays of a step are its input, which no kernel of it writes, so they are read before the wait
// too.
TENON_DEVICE int block_at(const Sm90Call& call, int sequence, int position) {
  const int column = position / call.block_tokens;
  return column < call.max_blocks
             ? load_constant(call.block_table + std::int64_t{sequence} * call.max_blocks + column)
             : -1;
}
// The row of the cache where `position`, a multiple of 64, lies in that block; one behind the
// cache, which is read as zeros, where there is none.
TENON_DEVICE int row_in(const Sm90Call& call, int block, int position) {
  return block < 0 || block >= call.num_blocks
             ? call.num_blocks * call.block_tokens
             : block * call.block_tokens + position % call.block_tokens;
}
TENON_DEVICE int cache_row(const Sm90Call& call, int sequence, int position) {
  return row_in(call, block_at(call, sequence, position), position);
}

// Chunk `chunk` (16 bytes of 8) of row `row` of a slab, in bytes.
TENON_DEVICE int slab_place(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

// Positions [from, 64) of a tile of v become zeros in its first `slabs` slabs: what lies behind a
// context may be anything, and 0 · NaN is NaN. Of `threads` threads, this is number `thread`.
TENON_DEVICE void clear_tail(std::byte* tile, int slabs, int from, int thread, int threads) {
  const int chunks = (kTile - from) * 8;
  for (int i = thread; i < chunks * slabs; i += threads) {
    const int slab = i / chunks, at = i % chunks;
    store16(tile + slab * kSlabBytes + (from + at / 8) * 128 + at % 8 * 16, Word4{});
  }
  fence_async();
}

// The gates of a head of a token, two neighbours in a word; none where `row` is null.
struct Gates {
  const bf16* row;
};
TENON_DEVICE Gates gates_of(const Sm90Call& call, int token, int head) {
  return {call.gate == nullptr
              ? nullptr
              : call.gate + token * call.gate_token_stride + head * call.gate_head_stride};
}
TENON_DEVICE std::uint32_t read_gates(const Gates& gate, int column) {
  return gate.row == nullptr ? 0u : *reinterpret_cast<const std::uint32_t*>(gate.row + column);
}
// The same for a kernel that has not waited yet, where the gates are older than the kernel before.
TENON_DEVICE std::uint32_t read_gates_early(const Gates& gate, int column) {
  return gate.row == nullptr
             ? 0u
             : load_constant(reinterpret_cast<const std::uint32_t*>(gate.row + column));
}

// rne(rne(sum / total) · sigmoid(gate)) of two neighbours in a word. A row that saw nothing is
// zero.
TENON_DEVICE std::uint32_t finish_pair(float total, float inverse, float a, float b,
                                       const Gates& gate, std::uint32_t gates) {
  if (total == 0.0f) return 0;
  const std::uint32_t both = convert_bf16x2(a * inverse, b * inverse);
  if (gate.row == nullptr) return both;
  return convert_bf16x2(low_half<bf16>(both) * sigmoid_f(low_half<bf16>(gates)),
                        high_half<bf16>(both) * sigmoid_f(high_half<bf16>(gates)));
}
TENON_DEVICE std::uint32_t larger_half(std::uint32_t word) {
  return larger(word & 0x7fffu, word >> 16 & 0x7fffu);
}

// Two words of two neighbours each, in columns [column, column + 2) and [column + 8, column + 10).
TENON_DEVICE void store_bf16(const Sm90Call& call, int token, int column, std::uint32_t low,
                             std::uint32_t high) {
  if (call.out == nullptr) return;
  auto* to = reinterpret_cast<std::uint32_t*>(call.out + token * call.out_stride + column);
  to[0] = low;
  to[4] = high;
}
TENON_DEVICE void store_codes(const Sm90Call& call, int token, int column, std::uint32_t low,
                              std::uint32_t high, float multiplier) {
  const std::uint32_t codes = pack_fp8x4<DType::kE4M3>(
      low_half<bf16>(low) * multiplier, high_half<bf16>(low) * multiplier,
      low_half<bf16>(high) * multiplier, high_half<bf16>(high) * multiplier);
  auto* to =
      reinterpret_cast<std::uint16_t*>(call.quant.codes + token * call.quant.codes_stride + column);
  to[0] = static_cast<std::uint16_t>(codes);
  to[4] = static_cast<std::uint16_t>(codes >> 16);
}

}  // namespace tenon::TENON_TARGET::attention
