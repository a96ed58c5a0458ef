// The delta rule in chunks of 64 tokens (the WY form). With G the running sum of g in a chunk:
//   A[i,j] = beta_i · (k_i·k_j) · e^(G_i − G_j), j < i
//   P[i,j] = (q_i·k_j) · e^(G_i − G_j), j <= i
//   d = (1 + A)⁻¹ · beta · (v − e^G · K·S)
//   o = e^G · Q·S + P·d
//   S ← e^(G_last) · S + (e^(G_last − G) · K)ᵀ · d
// d holds the same values as the recurrent form's d. No exponent is positive. The last chunk of a
// sequence is as short as it is: nothing is padded. d and o of a token need no later token: A and P
// are lower triangular, G is summed in order.
// A sequence of one token is left to the recurrent kernel, so its bits do not depend on the batch.
#pragma once

#include "tenon/ops/gated_delta_net/recurrent.cuh"
#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kChunk = 64;
inline constexpr int kPartColumns = kWave == 1 ? kDim : 32;  // of S, in a block
inline constexpr int kChunkedThreads = kWave == 1 ? 1 : 128;
inline constexpr int kRunSimds = kWave == 1 ? 32 / kSimd : 1;  // that a thread works on at once
inline constexpr int kPartRun = kWave == 1 ? kRunSimds * kSimd : kPartColumns;

// What a block knows about the tokens of its chunk. k_i is k_scale[i] times the bf16 k of u's row
// i.
struct Chunk {
  const bf16 *q, *k, *v;  // of the first token: its heads within u
  std::int64_t stride;    // between tokens
  int count;
  float *q_scale, *k_scale, *beta;  // [kChunk]
  float* sum;                       // G
  float *grown, *left;              // e^G, e^(G_last − G)
  float* matrix;                    // [kChunk, kChunk]: A, then P
};

// Scales and gates of a chunk. Every thread of the block must call it.
TENON_DEVICE void prepare_chunk(const KernelArgs& args, int first, int v_head, const Chunk& chunk) {
  for (int base = 0; base < chunk.count; base += num_slot_groups()) {
    const int wanted = base + slot_group();
    const int t =
        wanted < chunk.count ? wanted : chunk.count - 1;  // surplus groups repeat the last
    const bf16* q = chunk.q + t * chunk.stride;
    const bf16* k = chunk.k + t * chunk.stride;
    const float of_q = query_scale(dot(q, q, kDim)), of_k = key_scale(dot(k, k, kDim));
    if (wanted < chunk.count && (kWave == 1 || thread_id() % kSlots == 0)) {
      const Gates gates = gates_of(args, first + t, v_head);
      chunk.q_scale[t] = of_q;
      chunk.k_scale[t] = of_k;
      chunk.beta[t] = gates.beta;
      chunk.sum[t] = gates.log_decay;
    }
  }
  sync_block();
  if (thread_id() == 0)
    for (int t = 1; t < chunk.count; ++t) chunk.sum[t] = chunk.sum[t] + chunk.sum[t - 1];
  sync_block();
  for (int t = thread_id(); t < chunk.count; t += block_threads()) {
    chunk.grown[t] = exp_f(chunk.sum[t]);
    chunk.left[t] = exp_f(chunk.sum[chunk.count - 1] - chunk.sum[t]);
  }
  sync_block();
}

// matrix[i,j] = row_scale_i · (rows_i · k_j) · k_scale_j · e^(G_i − G_j) for j <= i. `rows` are the
// q or the k of the chunk. Every thread of the block must call it; sync before and after.
TENON_DEVICE void fill_matrix(const Chunk& chunk, const bf16* rows, const float* row_scale,
                              const float* row_factor) {
  for (int i = 0; i < chunk.count; ++i)
    for (int base = 0; base <= i; base += num_slot_groups()) {
      const int wanted = base + slot_group();
      const int j = wanted <= i ? wanted : i;
      const float found = dot(rows + i * chunk.stride, chunk.k + j * chunk.stride, kDim);
      if (wanted <= i && (kWave == 1 || thread_id() % kSlots == 0))
        chunk.matrix[i * kChunk + j] = found;
    }
  sync_block();
  for (int i = 0; i < chunk.count; ++i) {
    const float scale = row_scale[i] * (row_factor == nullptr ? 1.0f : row_factor[i]);
    for (int j = thread_id(); j <= i; j += block_threads())
      chunk.matrix[i * kChunk + j] = chunk.matrix[i * kChunk + j] * (scale * chunk.k_scale[j]) *
                                     exp_f(chunk.sum[i] - chunk.sum[j]);
  }
}

using RunColumns = Columns<kRunSimds>;

// to += factor · from
TENON_DEVICE void add_scaled(float factor, const RunColumns& from, RunColumns& to) {
  TENON_UNROLL
  for (int p = 0; p < kRunSimds; ++p) to.simd[p] = to.simd[p] + factor * from.simd[p];
}
TENON_DEVICE void add_row(float factor, const float* from, RunColumns& to) {
  RunColumns row;
  load_columns(from, row);
  add_scaled(factor, row, to);
}

// rows · S for the thread's columns.
TENON_DEVICE RunColumns project(const bf16* row, const StateRows& state) {
  RunColumns sum{};
  for (int i = 0; i < kDim; ++i) add_row(to_float(row[i]), state.data + i * state.stride, sum);
  return sum;
}

// d of every token for the thread's columns, by forward substitution with matrix = A.
TENON_DEVICE void solve(const Chunk& chunk, int column, const StateRows& state,
                        const StateRows& d) {
  for (int t = 0; t < chunk.count; ++t) {
    const RunColumns projected = project(chunk.k + t * chunk.stride, state);
    const float factor = chunk.grown[t] * chunk.k_scale[t];
    RunColumns sum;
    TENON_UNROLL
    for (int p = 0; p < kRunSimds; ++p) {
      const Simd v = load_simd(chunk.v + t * chunk.stride + column + p * kSimd);
      sum.simd[p] = chunk.beta[t] * (v - factor * projected.simd[p]);
    }
    for (int j = 0; j < t; ++j) add_row(-chunk.matrix[t * kChunk + j], d.data + j * d.stride, sum);
    store_columns(d.data + t * d.stride, sum);
  }
}

// o of every token for the thread's columns, with matrix = P; then S moves past the chunk.
TENON_DEVICE void apply(const Chunk& chunk, const StateRows& state, const StateRows& d, bf16* out,
                        std::int64_t out_stride) {
  for (int t = 0; t < chunk.count; ++t) {
    const RunColumns projected = project(chunk.q + t * chunk.stride, state);
    RunColumns sum{};
    add_scaled(chunk.grown[t] * chunk.q_scale[t], projected, sum);
    for (int j = 0; j <= t; ++j) add_row(chunk.matrix[t * kChunk + j], d.data + j * d.stride, sum);
    float o[kRunSimds * kSimd];
    store_columns(o, sum);
    for (int i = 0; i < kRunSimds * kSimd; ++i) out[t * out_stride + i] = to_bf16(o[i]);
  }
  const float decay = chunk.grown[chunk.count - 1];
  for (int i = 0; i < kDim; ++i) {
    RunColumns sum{};
    add_row(decay, state.data + i * state.stride, sum);
    for (int t = 0; t < chunk.count; ++t) {
      const float k = to_float(chunk.k[t * chunk.stride + i]) * chunk.k_scale[t];
      add_row(k * chunk.left[t], d.data + t * d.stride, sum);
    }
    store_columns(state.data + i * state.stride, sum);
  }
}

// The block's columns of S between global memory and the tile of runs; zeros for a fresh sequence.
TENON_DEVICE void load_part(const float* state, bool fresh, float* tile) {
  for (int at = thread_id(); at < kPartColumns * kDim; at += block_threads()) {
    const int row = at / kPartColumns, column = at % kPartColumns;
    tile[column / kPartRun * kPartRun * kDim + row * kPartRun + column % kPartRun] =
        fresh ? 0.0f : state[row * kDim + column];
  }
}
TENON_DEVICE void store_part(const float* tile, float* state) {
  for (int at = thread_id(); at < kPartColumns * kDim; at += block_threads()) {
    const int row = at / kPartColumns, column = at % kPartColumns;
    state[row * kDim + column] =
        tile[column / kPartRun * kPartRun * kDim + row * kPartRun + column % kPartRun];
  }
}

// All tokens of one sequence, for the block's columns of one v head.
TENON_DEVICE void run_chunked(const KernelArgs& args, const Sequence& sequence, int v_head,
                              int first_column) {
  TENON_SHARED(float, tile, kPartColumns* kDim);      // runs of columns, each [kDim, kPartRun]
  TENON_SHARED(float, values, kPartColumns* kChunk);  // d: runs, each [kChunk, kPartRun]
  TENON_SHARED(float, matrix, kChunk* kChunk);
  TENON_SHARED(float, of_tokens, 6 * kChunk);
  const float* from = state_of(args, sequence.from, v_head);
  float* to = state_of(args, sequence.to, v_head);
  load_part(from == nullptr ? nullptr : from + first_column, from == nullptr, tile);

  const int k_head = v_head / (args.v_heads / args.k_heads);
  const int my_column = thread_id() * kRunSimds * kSimd;  // within a run; some threads have none
  for (int first = sequence.begin; first < sequence.end; first += kChunk) {
    const int left = sequence.end - first;
    const bf16* u = u_of(args, first);
    const Chunk chunk{u + k_head * kDim,
                      u + (args.k_heads + k_head) * kDim,
                      u + (2 * args.k_heads + v_head) * kDim,
                      args.scratch_stride,
                      left < kChunk ? left : kChunk,
                      of_tokens,
                      of_tokens + kChunk,
                      of_tokens + 2 * kChunk,
                      of_tokens + 3 * kChunk,
                      of_tokens + 4 * kChunk,
                      of_tokens + 5 * kChunk,
                      matrix};
    prepare_chunk(args, first, v_head, chunk);
    fill_matrix(chunk, chunk.k, chunk.k_scale, chunk.beta);
    sync_block();
    for (int run = 0; run < kPartColumns && my_column < kPartRun; run += kPartRun)
      solve(chunk, first_column + run + my_column,
            StateRows{tile + run * kDim + my_column, kPartRun},
            StateRows{values + run * kChunk + my_column, kPartRun});
    sync_block();
    fill_matrix(chunk, chunk.q, chunk.q_scale, nullptr);
    sync_block();
    bf16* o = o_of(args, first, v_head) + first_column;
    for (int run = 0; run < kPartColumns && my_column < kPartRun; run += kPartRun)
      apply(chunk, StateRows{tile + run * kDim + my_column, kPartRun},
            StateRows{values + run * kChunk + my_column, kPartRun}, o + run + my_column,
            args.scratch_stride);
    sync_block();
  }
  if (to != nullptr) store_part(tile, to + first_column);
}

// One block per (sequence, v head, kPartColumns columns).
TENON_KERNEL_MAX(kChunkedThreads) chunked_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  constexpr int kParts = kDim / kPartColumns;
  const int part = block_id() % kParts;
  const int v_head = block_id() / kParts % args.v_heads;
  const int index = block_id() / kParts / args.v_heads;
  if (index >= args.sequences) return;  // the plan was made for more
  const Sequence sequence = sequence_at(args, index);
  if (sequence.end - sequence.begin <= args.recurrent_limit) return;
  run_chunked(args, sequence, v_head, part * kPartColumns);
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
