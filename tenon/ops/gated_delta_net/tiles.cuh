// Chunks of 64 tokens by tensor cores, first kernel: what of a chunk does not depend on S. With the
// formulas of chunked.cuh:
//   T = (1 + A)⁻¹, P, and four factors of each token
// One block per chunk and k head makes them for the v heads that share it. A row of T, of P and of
// the factors depends on its own and on earlier tokens only. K·Kᵀ and Q·Kᵀ are products of bf16
// with fp32 sums; what is fp32 is multiplied in two parts of bf16 each.
#pragma once

#include "tenon/device/copy.cuh"
#include "tenon/device/mma.cuh"
#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kTile = 64;  // tokens of a chunk
inline constexpr int kTileThreads = 128;
inline constexpr int kKeyStride = kDim + 8;      // of rows of q and k in shared memory, in bf16
inline constexpr int kSquareStride = kTile + 8;  // of rows of T, P and v there
inline constexpr int kFloatStride = kTile + 4;   // of rows of A there, in floats

// What the first kernel leaves for the second of a token and v head, behind u and o in scratch:
// rows of T and of P, each as high and as low parts, [4, kTile] bf16.
inline constexpr int kSquares = 4 * kTile;
TENON_DEVICE bf16* squares_of(const KernelArgs& args, int token, int v_head) {
  return o_of(args, token, args.v_heads) + v_head * kSquares;
}
// And eight floats: beta; e^G · k_scale; e^G · q_scale; e^(G_last − G) · k_scale; e^G; nothing.
inline constexpr int kFactors = 8;
TENON_DEVICE float* factors_of(const KernelArgs& args, int token, int v_head) {
  bf16* first = squares_of(args, token, args.v_heads);
  return reinterpret_cast<float*>(first) + v_head * kFactors;
}

// Up to kTile tokens of a sequence.
struct TileChunk {
  int first, count;
};
// Chunks are numbered with gaps, so that each finds its tokens without a list: those of sequence i
// begin at start / kTile + i. There are at most tokens / kTile + sequences numbers.
TENON_DEVICE TileChunk chunk_at(const KernelArgs& args, int number) {
  int low = 0, high = args.sequences;  // the answer is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (args.starts[middle] / kTile + middle <= number) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int begin = args.starts[low], end = args.starts[low + 1];
  const int first = begin + (number - begin / kTile - low) * kTile;
  if (end - begin <= 1 || first >= end) return {0, 0};
  return {first, end - first < kTile ? end - first : kTile};
}

// kTile rows of `pieces` times 16 bytes into shared memory; rows behind `count` become zeros.
TENON_DEVICE void copy_rows(const bf16* from, std::int64_t from_stride, int count, int pieces,
                            bf16* to, int to_stride) {
  for (int at = thread_id(); at < kTile * pieces; at += kTileThreads) {
    const int row = at / pieces, piece = at % pieces;
    bf16* const place = to + row * to_stride + piece * 8;
    if (row < count) {
      copy_async16(place, from + row * from_stride + piece * 8);
    } else {
      store16(place, Word4{});
    }
  }
}

// Shared memory of the first kernel.
struct PrepareShared {
  bf16 *q, *k;    // [kTile, kKeyStride]
  float* matrix;  // [kTile, kFloatStride]: A, whose blocks on the diagonal become those of T
  float *q_scale, *k_scale, *beta, *sum;  // [kTile]; sum: G
};
inline constexpr std::size_t kPrepareShared =
    2 * kTile * kKeyStride * sizeof(bf16) + (kTile * kFloatStride + 4 * kTile) * sizeof(float);
TENON_DEVICE PrepareShared prepare_shared(std::byte* from) {
  PrepareShared shared{};
  shared.q = reinterpret_cast<bf16*>(from);
  shared.k = shared.q + kTile * kKeyStride;
  shared.matrix = reinterpret_cast<float*>(shared.k + kTile * kKeyStride);
  shared.q_scale = shared.matrix + kTile * kFloatStride;
  shared.k_scale = shared.q_scale + kTile;
  shared.beta = shared.k_scale + kTile;
  shared.sum = shared.beta + kTile;
  return shared;
}

// Tiles of D that cover a wave's 16 rows of a [kTile, kTile] matrix.
using TileRow = float[kTile / 8][4];

// Rows of Q·Kᵀ and K·Kᵀ of the wave, up to the diagonal.
TENON_DEVICE void multiply_keys(const PrepareShared& shared, int wave, TileRow& qk, TileRow& kk) {
  TENON_UNROLL
  for (int step = 0; step < kDim / 16; ++step) {
    std::uint32_t q[4], k[4];
    load_a(shared.q + 16 * wave * kKeyStride + 16 * step, kKeyStride, q);
    load_a(shared.k + 16 * wave * kKeyStride + 16 * step, kKeyStride, k);
    TENON_UNROLL
    for (int pair = 0; pair < kTile / 16; ++pair) {
      if (pair > wave) break;
      std::uint32_t b[4];
      load_two_b(shared.k + 16 * pair * kKeyStride + 16 * step, kKeyStride, b);
      TENON_UNROLL
      for (int i = 0; i < 2; ++i) {
        add_product(qk[2 * pair + i], q, b[2 * i], b[2 * i + 1]);
        add_product(kk[2 * pair + i], k, b[2 * i], b[2 * i + 1]);
      }
    }
  }
}

// beta and G of the chunk, and the factors of its tokens. One wave's work; sync afterwards.
TENON_DEVICE void sum_gates(const KernelArgs& args, const TileChunk& chunk, int v_head,
                            const PrepareShared& shared) {
  const int lane = lane_id();
  float beta[2], sum[2];
  TENON_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int t = lane + half * 32;
    const Gates gates = t < chunk.count ? gates_of(args, chunk.first + t, v_head) : Gates{0, 0};
    beta[half] = gates.beta;
    sum[half] = gates.log_decay;
    TENON_UNROLL
    for (int lag = 1; lag < 32; lag *= 2) {
      const float before = shuffle_from(sum[half], lane >= lag ? lane - lag : lane);
      if (lane >= lag) sum[half] = before + sum[half];
    }
  }
  sum[1] = shuffle_from(sum[0], 31) + sum[1];
  const int last_lane = (chunk.count - 1) % 32;
  const float last_of_each[2] = {shuffle_from(sum[0], last_lane), shuffle_from(sum[1], last_lane)};
  const float last = last_of_each[chunk.count > 32 ? 1 : 0];
  TENON_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int t = lane + half * 32;
    shared.beta[t] = beta[half];
    shared.sum[t] = sum[half];
    if (t >= chunk.count) continue;
    const float grown = exp_f(sum[half]), left = exp_f(last - sum[half]);
    const float q_scale = shared.q_scale[t], k_scale = shared.k_scale[t];
    float* factors = factors_of(args, chunk.first + t, v_head);
    store16(factors, Word4{float_bits(beta[half]), float_bits(grown * k_scale),
                           float_bits(grown * q_scale), float_bits(left * k_scale)});
    store16(factors + 4, Word4{float_bits(grown), 0, 0, 0});
  }
}

// A of the wave's rows into shared memory, P of them to scratch. Everything that could carry a
// later token in is chosen away, not multiplied by zero.
TENON_DEVICE void scale_matrices(const KernelArgs& args, const TileChunk& chunk, int v_head,
                                 const PrepareShared& shared, int wave, const TileRow& qk,
                                 const TileRow& kk) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    if (tile > 2 * wave + 1) break;
    TENON_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int i = 16 * wave + g + 8 * half, j = 8 * tile + 2 * q;
      const float q_scale = shared.q_scale[i], k_scale = shared.k_scale[i] * shared.beta[i];
      float p[2];
      TENON_UNROLL
      for (int c = 0; c < 2; ++c) {
        const float decay = exp_f(shared.sum[i] - shared.sum[j + c]) * shared.k_scale[j + c];
        const int at = 2 * half + c;
        p[c] = j + c <= i ? qk[tile][at] * q_scale * decay : 0.0f;
        shared.matrix[i * kFloatStride + j + c] = j + c < i ? kk[tile][at] * k_scale * decay : 0.0f;
      }
      if (i >= chunk.count) continue;
      const SplitPair parts = split_pair(p[0], p[1]);
      bf16* row = squares_of(args, chunk.first + i, v_head) + 2 * kTile + j;
      __builtin_memcpy(row, &parts.high, 4);
      __builtin_memcpy(row + kTile, &parts.low, 4);
    }
  }
}

// The inverse of 1 + A of the wave's block on the diagonal, in place, zeros above the diagonal too.
TENON_DEVICE void invert_diagonal(const PrepareShared& shared, int wave) {
  float* block = shared.matrix + 16 * wave * (kFloatStride + 1);
  const int column = lane_id() % 16;
  float x[16];
  TENON_UNROLL
  for (int i = 0; i < 16; ++i) {
    float sum = 0.0f;
    TENON_UNROLL
    for (int j = 0; j < i; ++j) sum = sum + block[i * kFloatStride + j] * x[j];
    x[i] = (i == column ? 1.0f : 0.0f) - sum;
  }
  sync_wave();  // all have read
  if (lane_id() < 16)
    for (int i = 0; i < 16; ++i) block[i * kFloatStride + column] = x[i];
}

// A block of 16 × 16 as two tiles of D.
using Block = float[2][4];

// to += X · Yᵀ, Y a block of fp32 in shared memory.
TENON_DEVICE void add_block_product(const Block& x, const float* y, Block& to) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  const SplitA a = split_a(x[0], x[1]);
  TENON_UNROLL
  for (int tile = 0; tile < 2; ++tile) {
    const float* row = y + (8 * tile + g) * kFloatStride + 2 * q;
    const SplitPair b0 = split_pair(row[0], row[1]), b1 = split_pair(row[8], row[9]);
    add_split_product(to[tile], a, b0.high, b1.high, b0.low, b1.low);
  }
}

// T's 16 columns from 16 · wave on: with X_k the transposed block of row k, X of the diagonal is
// known and X_i = −(Σ_k X_k · A_ikᵀ) · X_ii, k from the diagonal to i − 1. To scratch.
TENON_DEVICE void solve_columns(const KernelArgs& args, const TileChunk& chunk, int v_head,
                                const PrepareShared& shared, int wave) {
  constexpr int kBlocks = kTile / 16;
  const int g = lane_id() / 4, q = lane_id() % 4;
  const auto block_at = [&](int i, int k) {
    return shared.matrix + 16 * i * kFloatStride + 16 * k;
  };
  Block x[kBlocks];
  TENON_UNROLL
  for (int below = 0; below < kBlocks; ++below) {
    const int i = wave + below;
    if (i >= kBlocks) break;
    if (below == 0) {
      TENON_UNROLL
      for (int at = 0; at < 8; ++at)
        x[0][at / 4][at % 4] =
            block_at(i, i)[(8 * (at / 4) + 2 * q + at % 2) * kFloatStride + g + 8 * (at / 2 % 2)];
    } else {
      Block sum = {}, found = {};
      TENON_UNROLL
      for (int k = 0; k < below; ++k) add_block_product(x[k], block_at(i, wave + k), sum);
      add_block_product(sum, block_at(i, i), found);
      TENON_UNROLL
      for (int at = 0; at < 8; ++at) x[below][at / 4][at % 4] = -found[at / 4][at % 4];
    }
    TENON_UNROLL
    for (int at = 0; at < 8; ++at) {
      const int t = 16 * i + 8 * (at / 4) + 2 * q + at % 2;
      if (t >= chunk.count) continue;
      const float value = x[below][at / 4][at % 4];
      const bf16 high = to_bf16(value);
      bf16* place = squares_of(args, chunk.first + t, v_head) + 16 * wave + g + 8 * (at / 2 % 2);
      place[0] = high;
      place[kTile] = to_bf16(value - to_float(high));
    }
  }
}

// One chunk for the v heads of one k head.
TENON_DEVICE void prepare_tiles(const KernelArgs& args, const TileChunk& chunk, int k_head,
                                std::byte* memory) {
  const PrepareShared shared = prepare_shared(memory);
  const int wave = wave_id(), heads = args.v_heads / args.k_heads;
  const bf16* u = u_of(args, chunk.first);
  copy_rows(u + k_head * kDim, args.scratch_stride, chunk.count, kDim / 8, shared.q, kKeyStride);
  copy_rows(u + (args.k_heads + k_head) * kDim, args.scratch_stride, chunk.count, kDim / 8,
            shared.k, kKeyStride);
  await_copies();
  sync_block();
  for (int t = wave; t < kTile; t += kTileThreads / kWave) {
    const bf16 *q = shared.q + t * kKeyStride, *k = shared.k + t * kKeyStride;
    const float of_q = query_scale(dot(q, q, kDim)), of_k = key_scale(dot(k, k, kDim));
    if (lane_id() == 0) {
      shared.q_scale[t] = of_q;
      shared.k_scale[t] = of_k;
    }
  }
  TileRow qk = {}, kk = {};
  multiply_keys(shared, wave, qk, kk);
  sync_block();
  for (int v_head = k_head * heads; v_head < (k_head + 1) * heads; ++v_head) {
    if (wave == 0) sum_gates(args, chunk, v_head, shared);
    sync_block();
    scale_matrices(args, chunk, v_head, shared, wave, qk, kk);
    sync_wave();
    invert_diagonal(shared, wave);
    sync_block();
    solve_columns(args, chunk, v_head, shared, wave);
    sync_block();
  }
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
