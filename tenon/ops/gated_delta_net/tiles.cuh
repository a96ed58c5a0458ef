// Chunks of 64 tokens by tensor cores, first kernel: what of a chunk does not depend on S. With the
// formulas of chunked.cuh:
//   T = (1 + A)⁻¹, P, and four factors of each token
// One block per chunk and k head makes them for the v heads that share it. A row of T, of P and of
// the factors depends on its own and on earlier tokens only. K·Kᵀ and Q·Kᵀ are products of bf16
// with fp32 sums; what is fp32 is multiplied in two parts of bf16 each.
#pragma once

#include "tenon/device/approximate.cuh"
#include "tenon/device/copy.cuh"
#include "tenon/device/mma.cuh"
#include "tenon/device/reduce.cuh"
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

// kTile rows of kPieces times 16 bytes into shared memory by the first kTileThreads threads of the
// block or by those behind them; rows behind `count` become zeros.
template <int kPieces>
TENON_DEVICE void copy_rows(const bf16* from, std::int64_t from_stride, int count, bf16* to,
                            int to_stride) {
  constexpr int kStep = kTileThreads / kPieces;  // rows at a time
  static_assert(kTile % kStep == 0);
  const int first = thread_id() % kTileThreads / kPieces, piece = thread_id() % kPieces;
  const bf16* source = from + first * from_stride + piece * 8;
  bf16* const place = to + first * to_stride + piece * 8;
  if (count == kTile) {
    TENON_UNROLL
    for (int row = 0; row < kTile; row += kStep) {
      copy_async16(place + row * to_stride, source);
      source += kStep * from_stride;
    }
    return;
  }
  TENON_NO_UNROLL
  for (int row = 0; row < kTile; row += kStep) {
    if (first + row < count) {
      copy_async16(place + row * to_stride, source + row * from_stride);
    } else {
      store16(place + row * to_stride, Word4{});
    }
  }
}

// Shared memory of the block: two squares of kTile rows that hold q and k first, then in their
// places Q·Kᵀ and K·Kᵀ in fp32, and rows of one number a token.
struct PrepareShared {
  bf16 *q, *k;                            // [kTile, kKeyStride]
  float *qk, *kk;                         // [kTile, kFloatStride]
  float *q_scale, *k_scale, *beta, *sum;  // [kTile]; sum: G
};
static_assert(kKeyStride * sizeof(bf16) == kFloatStride * sizeof(float));
inline constexpr std::size_t kPrepareShared =
    (2 * kTile * kFloatStride + 4 * kTile) * sizeof(float);
TENON_DEVICE PrepareShared prepare_shared(std::byte* memory) {
  PrepareShared shared{};
  shared.qk = reinterpret_cast<float*>(memory);
  shared.kk = shared.qk + kTile * kFloatStride;
  shared.q_scale = shared.kk + kTile * kFloatStride;
  shared.k_scale = shared.q_scale + kTile;
  shared.beta = shared.k_scale + kTile;
  shared.sum = shared.beta + kTile;
  shared.q = reinterpret_cast<bf16*>(shared.qk);
  shared.k = reinterpret_cast<bf16*>(shared.kk);
  return shared;
}

// Tiles of D that cover a wave's 16 rows of a [kTile, kTile] matrix.
using TileRow = float[kTile / 8][4];

// Loops that run once or twice for a block are not unrolled here: fetching the instructions would
// take longer than running them.

// The scales of q. Two threads a token.
TENON_DEVICE void scale_queries(const PrepareShared& shared) {
  const int t = thread_id() / 2;
  const bf16* row = shared.q + t * kKeyStride + thread_id() % 2 * (kDim / 2);
  float sum = 0.0f;
  TENON_NO_UNROLL
  for (int at = 0; at < kDim / 2; at += 8) {
    float q[8];
    load8(row + at, q);
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) sum = sum + q[i] * q[i];
  }
  sum = sum + shuffle_xor(sum, 1);
  if (thread_id() % 2 == 0) shared.q_scale[t] = query_scale(sum);
}

// Q·Kᵀ and K·Kᵀ up to the diagonal's blocks, over q and k; and the scales of both.
TENON_DEVICE void multiply_keys(const PrepareShared& shared) {
  const int wave = wave_id(), g = lane_id() / 4, q = lane_id() % 4;
  TileRow qk = {}, kk = {};
  scale_queries(shared);
  TENON_NO_UNROLL
  for (int step = 0; step < kDim / 16; ++step) {
    std::uint32_t of_q[4], of_k[4];
    load_a(shared.q + 16 * wave * kKeyStride + 16 * step, kKeyStride, of_q);
    load_a(shared.k + 16 * wave * kKeyStride + 16 * step, kKeyStride, of_k);
    TENON_UNROLL
    for (int pair = 0; pair < kTile / 16; ++pair) {
      if (pair > wave) break;
      std::uint32_t b[4];
      load_two_b(shared.k + 16 * pair * kKeyStride + 16 * step, kKeyStride, b);
      TENON_UNROLL
      for (int i = 0; i < 2; ++i) {
        add_product(qk[2 * pair + i], of_q, b[2 * i], b[2 * i + 1]);
        add_product(kk[2 * pair + i], of_k, b[2 * i], b[2 * i + 1]);
      }
    }
  }
  sync_block();  // q and k have been read
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    if (tile > 2 * wave + 1) break;
    TENON_UNROLL
    for (int at = 0; at < 4; ++at) {
      const int place = (16 * wave + g + 8 * (at / 2)) * kFloatStride + 8 * tile + 2 * q + at % 2;
      shared.qk[place] = qk[tile][at];
      shared.kk[place] = kk[tile][at];
    }
  }
  sync_block();
  if (thread_id() < kTile)
    shared.k_scale[thread_id()] = key_scale(shared.kk[thread_id() * (kFloatStride + 1)]);
}

// beta and G of the chunk, and the factors of its tokens. Sync afterwards.
TENON_DEVICE void sum_gates(const KernelArgs& args, const TileChunk& chunk, int v_head,
                            const PrepareShared& shared) {
  const int t = thread_id(), lane = lane_id();
  const Gates gates = t < chunk.count ? gates_of(args, chunk.first + t, v_head) : Gates{0, 0};
  float sum = gates.log_decay;
  TENON_UNROLL
  for (int lag = 1; lag < 32; lag *= 2) {
    const float before = shuffle_from(sum, lane >= lag ? lane - lag : lane);
    if (lane >= lag) sum = before + sum;
  }
  if (t < kTile) shared.sum[t] = sum;
  sync_block();
  if (t >= 32 && t < kTile) sum = shared.sum[31] + sum;
  sync_block();  // the reader of the first half's sum is done
  if (t < kTile) {
    shared.sum[t] = sum;
    shared.beta[t] = gates.beta;
  }
  sync_block();
  if (t >= chunk.count) return;
  const float grown = exp_f(sum), left = exp_f(shared.sum[chunk.count - 1] - sum);
  const float q_scale = shared.q_scale[t], k_scale = shared.k_scale[t];
  float* factors = factors_of(args, chunk.first + t, v_head);
  store16(factors, Word4{float_bits(gates.beta), float_bits(grown * k_scale),
                         float_bits(grown * q_scale), float_bits(left * k_scale)});
  store16(factors + 4, Word4{float_bits(grown), 0, 0, 0});
}

// A row of a square of scratch, a pair of elements each lane, in two parts.
TENON_DEVICE void store_pair(bf16* row, float first, float second) {
  const SplitPair parts = split_pair(first, second);
  __builtin_memcpy(row + 2 * lane_id(), &parts.high, 4);
  __builtin_memcpy(row + kTile + 2 * lane_id(), &parts.low, 4);
}

// Rows of a square of a wave, and of one pass of its loops: rows that do not wait for each other.
inline constexpr int kOwnRows = kTile / (kTileThreads / 32), kRowsAtOnce = 4;

// A in the place of K·Kᵀ, zeros on the diagonal; P to scratch, zeros behind the diagonal.
// Everything that could carry a later token in is chosen away, not multiplied by zero. A wave has
// rows, a lane two elements of them.
TENON_DEVICE void scale_matrices(const KernelArgs& args, const TileChunk& chunk, int v_head,
                                 const PrepareShared& shared) {
  const int j = 2 * lane_id();
  const float sum_j[2] = {shared.sum[j], shared.sum[j + 1]};
  const float scale_j[2] = {shared.k_scale[j], shared.k_scale[j + 1]};
  bf16* to = squares_of(args, chunk.first + wave_id() * kOwnRows, v_head) + 2 * kTile;
  TENON_NO_UNROLL
  for (int first = wave_id() * kOwnRows; first < (wave_id() + 1) * kOwnRows; first += kRowsAtOnce) {
    TENON_UNROLL
    for (int row = 0; row < kRowsAtOnce; ++row) {
      const int i = first + row;
      const float q_scale = shared.q_scale[i], k_scale = shared.k_scale[i] * shared.beta[i];
      float p[2];
      TENON_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int place = i * kFloatStride + j + c;
        const float decay = approximate_exp(shared.sum[i] - sum_j[c]) * scale_j[c];
        const float qk = shared.qk[place], kk = shared.kk[place];
        p[c] = j + c <= i ? qk * q_scale * decay : 0.0f;
        if (j + c <= (i | 15)) shared.kk[place] = j + c < i ? kk * k_scale * decay : 0.0f;
      }
      if (i < chunk.count) store_pair(to, p[0], p[1]);
      to += args.scratch_stride;
    }
  }
}

// The inverse of 1 + A of the wave's block on the diagonal, in place, zeros behind the diagonal.
TENON_DEVICE void invert_diagonal(const PrepareShared& shared) {
  float* block = shared.kk + 16 * wave_id() * (kFloatStride + 1);
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
  if (lane_id() < 16) {
    TENON_UNROLL
    for (int i = 0; i < 16; ++i) block[i * kFloatStride + column] = x[i];
  }
}

// A block of 16 × 16 as two tiles of D.
using Block = float[2][4];

// to += X · Yᵀ for blocks in shared memory; the elements of X lie `down` and `right` apart.
TENON_DEVICE void add_block_product(const float* x, int down, int right, const float* y,
                                    Block& to) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  Block left;
  TENON_UNROLL
  for (int at = 0; at < 8; ++at)
    left[at / 4][at % 4] =
        x[(g + 8 * (at / 2 % 2)) * down + (8 * (at / 4) + 2 * q + at % 2) * right];
  const SplitA a = split_a(left[0], left[1]);
  SplitPair b[2][2];
  TENON_UNROLL
  for (int tile = 0; tile < 2; ++tile) {
    const float* row = y + (8 * tile + g) * kFloatStride + 2 * q;
    b[tile][0] = split_pair(row[0], row[1]);
    b[tile][1] = split_pair(row[8], row[9]);
  }
  TENON_UNROLL
  for (int tile = 0; tile < 2; ++tile)
    add_product(to[tile], a.high, b[tile][0].high, b[tile][1].high);
  TENON_UNROLL
  for (int tile = 0; tile < 2; ++tile)
    add_product(to[tile], a.high, b[tile][0].low, b[tile][1].low);
  TENON_UNROLL
  for (int tile = 0; tile < 2; ++tile)
    add_product(to[tile], a.low, b[tile][0].high, b[tile][1].high);
}
TENON_DEVICE void store_block(const Block& from, float sign, float* to) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  TENON_UNROLL
  for (int at = 0; at < 8; ++at)
    to[(g + 8 * (at / 2 % 2)) * kFloatStride + 8 * (at / 4) + 2 * q + at % 2] =
        sign * from[at / 4][at % 4];
}

// T's 16 columns from 16 · wave on, block by block downwards: with X_k the transposed block of row
// k, X of the diagonal is known and X_i = −(Σ_k X_k · A_ikᵀ) · X_ii, k from the diagonal to i − 1.
// X_i comes to lie over the diagonal, where nothing was: at rows of the wave and columns of i.
// `spare` is a block of the wave's own.
TENON_DEVICE void solve_columns(const PrepareShared& shared, float* spare) {
  constexpr int kBlocks = kTile / 16;
  const int wave = wave_id();
  const auto block_at = [&](int i, int k) { return shared.kk + 16 * i * kFloatStride + 16 * k; };
  TENON_NO_UNROLL
  for (int i = wave + 1; i < kBlocks; ++i) {
    Block sum = {}, found = {};
    TENON_NO_UNROLL
    for (int k = wave; k < i; ++k)
      add_block_product(block_at(wave, k), k == wave ? 1 : kFloatStride,
                        k == wave ? kFloatStride : 1, block_at(i, k), sum);
    store_block(sum, 1.0f, spare);
    sync_wave();
    add_block_product(spare, kFloatStride, 1, block_at(i, i), found);
    store_block(found, -1.0f, block_at(wave, i));
    sync_wave();
  }
}

// T to scratch.
TENON_DEVICE void store_inverse(const KernelArgs& args, const TileChunk& chunk, int v_head,
                                const PrepareShared& shared) {
  const int j = 2 * lane_id();
  bf16* to = squares_of(args, chunk.first + wave_id() * kOwnRows, v_head);
  TENON_NO_UNROLL
  for (int first = wave_id() * kOwnRows; first < (wave_id() + 1) * kOwnRows; first += kRowsAtOnce) {
    TENON_UNROLL
    for (int row = 0; row < kRowsAtOnce; ++row) {
      const int i = first + row;
      float t[2];
      TENON_UNROLL
      for (int c = 0; c < 2; ++c)
        t[c] = j / 16 == i / 16 ? shared.kk[i * kFloatStride + j + c]
               : j < i          ? shared.kk[(j + c) * kFloatStride + i]
                                : 0.0f;
      if (i < chunk.count) store_pair(to, t[0], t[1]);
      to += args.scratch_stride;
    }
  }
}

// One chunk of one v head.
TENON_DEVICE void prepare_tiles(const KernelArgs& args, const TileChunk& chunk, int v_head,
                                std::byte* memory) {
  const PrepareShared shared = prepare_shared(memory);
  const int k_head = v_head / (args.v_heads / args.k_heads);
  const bf16* u = u_of(args, chunk.first);
  copy_rows<kDim / 8>(u + k_head * kDim, args.scratch_stride, chunk.count, shared.q, kKeyStride);
  copy_rows<kDim / 8>(u + (args.k_heads + k_head) * kDim, args.scratch_stride, chunk.count,
                      shared.k, kKeyStride);
  await_copies();
  sync_block();
  multiply_keys(shared);
  sum_gates(args, chunk, v_head, shared);
  sync_block();
  scale_matrices(args, chunk, v_head, shared);
  sync_block();
  invert_diagonal(shared);
  sync_block();
  solve_columns(shared, shared.qk + 16 * wave_id() * kFloatStride);  // Q·Kᵀ is used up
  sync_block();
  store_inverse(args, chunk, v_head, shared);
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
