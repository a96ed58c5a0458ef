// The delta rule token by token: any number of tokens, the same bits however they are split.
//   m = Sᵀk, r = Sᵀq before the decay;  d = beta · (v − decay · m);  o = decay · r + (k·q) · d
//   S ← decay · S + k ⊗ d
// which is the rule of the header with the decay taken out of the sums, so that the state is read
// once for m and r and written once, and the write of one token is the read of the next.
#pragma once

#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

// Columns of S are independent. A thread owns packs of neighbouring columns: one float on targets
// with waves. On the cpu target a batch of tokens works through runs of 16 columns (a cache line
// wide, so that a run of S stays in the first-level cache), a single token through runs as wide as
// the registers hold (so that S streams by). A block has kColumns columns of one v head.
inline constexpr int kPacks = kWave == 1 ? 16 / kSimd : 1;
inline constexpr int kStreamPacks = kWave == 1 ? (kSimd == 16 ? 8 : 4) : 1;
inline constexpr int kColumns = kWave == 1 ? kDim : 64;
inline constexpr int kRecurrentThreads = kWave == 1 ? 1 : kColumns;
inline constexpr int kBatch = 8;  // tokens whose q and k are prepared together

struct PreparedToken {
  float beta, decay, k_dot_q;
};

// q and k of a batch of tokens, normalised, and the gates.
struct Batch {
  float *q, *k;  // [kBatch, kDim]
  PreparedToken* tokens;
};

// Every thread of the block must call it; the batch is ready when it returns.
TENON_DEVICE void prepare(const KernelArgs& args, int first, int count, int v_head,
                          const Batch& batch) {
  TENON_SHARED(float, q_scale, kBatch);
  TENON_SHARED(float, k_scale, kBatch);
  const int k_head = v_head / (args.v_heads / args.k_heads);
  for (int t = 0; t < count; ++t) {
    const bf16* u = u_of(args, first + t);
    load_row(u + k_head * kDim, batch.q + t * kDim, kDim, kDim);
    load_row(u + (args.k_heads + k_head) * kDim, batch.k + t * kDim, kDim, kDim);
  }
  sync_block();
  for (int base = 0; base < count; base += num_slot_groups()) {
    const int wanted = base + slot_group();
    const int t = wanted < count ? wanted : count - 1;  // surplus groups repeat the last one
    const float* q = batch.q + t * kDim;
    const float* k = batch.k + t * kDim;
    const float of_q = query_scale(dot(q, q, kDim));
    const float of_k = key_scale(dot(k, k, kDim));
    const float k_dot_q = dot(k, q, kDim) * of_k * of_q;
    if (wanted < count && (kWave == 1 || thread_id() % kSlots == 0)) {
      const Gates gates = gates_of(args, first + t, v_head);
      batch.tokens[t] = {gates.beta, exp_f(gates.log_decay), k_dot_q};
      q_scale[t] = of_q;
      k_scale[t] = of_k;
    }
  }
  sync_block();
  for (int at = thread_id(); at < count * kDim; at += block_threads()) {
    batch.q[at] = batch.q[at] * q_scale[at / kDim];
    batch.k[at] = batch.k[at] * k_scale[at / kDim];
  }
  sync_block();
}

// What a thread holds of a row of S or of a vector over dv.
template <int kCount>
struct Columns {
  Simd simd[kCount];
};

template <int kCount>
TENON_DEVICE void load_columns(const float* at, Columns<kCount>& to) {
  TENON_UNROLL
  for (int p = 0; p < kCount; ++p) to.simd[p] = load_simd(at + p * kSimd);
}
template <int kCount>
TENON_DEVICE void store_columns(float* at, const Columns<kCount>& from) {
  TENON_UNROLL
  for (int p = 0; p < kCount; ++p) store_simd(at + p * kSimd, from.simd[p]);
}

// What a token reads from S: m = Sᵀk and r = Sᵀq.
template <int kCount>
struct Reading {
  Columns<kCount> m, r;
};

template <int kCount>
TENON_DEVICE void add_reading(const Columns<kCount>& row, float k, float q,
                              Reading<kCount>& reading) {
  TENON_UNROLL
  for (int p = 0; p < kCount; ++p) {
    reading.m.simd[p] = reading.m.simd[p] + k * row.simd[p];
    reading.r.simd[p] = reading.r.simd[p] + q * row.simd[p];
  }
}
template <int kCount>
TENON_DEVICE void decay_and_add(float decay, float k, const Columns<kCount>& d,
                                Columns<kCount>& row) {
  TENON_UNROLL
  for (int p = 0; p < kCount; ++p) row.simd[p] = decay * row.simd[p] + k * d.simd[p];
}

// S as a thread sees it: rows of its own columns.
struct StateRows {
  float* data;
  std::int64_t stride;  // between rows, in floats
};

template <int kCount>
TENON_DEVICE Reading<kCount> read_state(const StateRows& from, const float* k, const float* q) {
  Reading<kCount> reading{};
  for (int i = 0; i < kDim; ++i) {
    Columns<kCount> row;
    load_columns(from.data + i * from.stride, row);
    add_reading(row, k[i], q[i], reading);
  }
  return reading;
}

// S ← decay · S + k ⊗ d, and what the next token reads from the new S.
template <int kCount>
TENON_DEVICE Reading<kCount> write_and_read(const StateRows& from, const StateRows& to, float decay,
                                            const float* k, const Columns<kCount>& d,
                                            const float* next_k, const float* next_q) {
  Reading<kCount> reading{};
  for (int i = 0; i < kDim; ++i) {
    Columns<kCount> row;
    load_columns(from.data + i * from.stride, row);
    decay_and_add(decay, k[i], d, row);
    store_columns(to.data + i * to.stride, row);
    add_reading(row, next_k[i], next_q[i], reading);
  }
  return reading;
}

template <int kCount>
TENON_DEVICE void write_state(const StateRows& from, const StateRows& to, float decay,
                              const float* k, const Columns<kCount>& d) {
  for (int i = 0; i < kDim; ++i) {
    Columns<kCount> row;
    load_columns(from.data + i * from.stride, row);
    decay_and_add(decay, k[i], d, row);
    store_columns(to.data + i * to.stride, row);
  }
}

// d and o of one token for the thread's columns; o goes out as bf16.
template <int kCount>
TENON_DEVICE void value_step(const PreparedToken& token, const Reading<kCount>& reading,
                             const bf16* v, bf16* out, Columns<kCount>& d) {
  float o[kCount * kSimd];
  TENON_UNROLL
  for (int p = 0; p < kCount; ++p) {
    const Simd value = load_simd(v + p * kSimd);
    d.simd[p] = token.beta * (value - token.decay * reading.m.simd[p]);
    store_simd(o + p * kSimd, token.decay * reading.r.simd[p] + token.k_dot_q * d.simd[p]);
  }
  for (int i = 0; i < kCount * kSimd; ++i) out[i] = to_bf16(o[i]);
}

// A batch of tokens on the thread's columns. S comes from `from`, stays in `tile` between tokens
// and ends in `to`; the three may be one.
template <int kCount>
TENON_DEVICE void run_batch(const KernelArgs& args, int first, int count, int column,
                            const Batch& batch, const StateRows& from, const StateRows& tile,
                            const StateRows& to) {
  const int values = 2 * args.k_heads * kDim + column;  // of v in a row of u
  Reading<kCount> reading = read_state<kCount>(from, batch.k, batch.q);
  for (int t = 0; t < count; ++t) {
    const int token = first + t;
    const float* k = batch.k + t * kDim;
    Columns<kCount> d;
    value_step(batch.tokens[t], reading, u_of(args, token) + values, o_of(args, token, 0) + column,
               d);
    const StateRows& source = t == 0 ? from : tile;
    if (t + 1 < count) {
      reading = write_and_read(source, tile, batch.tokens[t].decay, k, d, k + kDim,
                               batch.q + (t + 1) * kDim);
    } else {
      write_state(source, to, batch.tokens[t].decay, k, d);
    }
  }
}

// All tokens of one sequence, for the block's columns of one v head.
TENON_DEVICE void run_recurrent(const KernelArgs& args, const Sequence& sequence, int v_head,
                                int first_column) {
  constexpr int kRun = kWave == 1 ? kPacks * kSimd : kColumns;  // columns of a run of the tile
  TENON_SHARED(float, tile, kColumns* kDim);                    // runs, each [kDim, kRun]
  TENON_SHARED(float, q, kBatch* kDim);
  TENON_SHARED(float, k, kBatch* kDim);
  TENON_SHARED(PreparedToken, tokens, kBatch);
  const Batch batch{q, k, tokens};
  float* from = state_of(args, sequence.from, v_head);
  float* to = state_of(args, sequence.to, v_head);

  // Decode: no tile in between.
  if (sequence.end - sequence.begin == 1 && from != nullptr && to != nullptr) {
    constexpr int kStride = kStreamPacks * kSimd;
    prepare(args, sequence.begin, 1, v_head, batch);
    for (int at = thread_id() * kStride; at < kColumns; at += block_threads() * kStride) {
      const StateRows read{from + first_column + at, kDim}, written{to + first_column + at, kDim};
      run_batch<kStreamPacks>(args, sequence.begin, 1, v_head * kDim + first_column + at, batch,
                              read, written, written);
    }
    return;
  }

  if (from == nullptr)
    for (int at = thread_id(); at < kColumns * kDim; at += block_threads()) tile[at] = 0.0f;
  for (int first = sequence.begin; first < sequence.end; first += kBatch) {
    const int left = sequence.end - first;
    const int count = left < kBatch ? left : kBatch;
    prepare(args, first, count, v_head, batch);
    const bool from_slot = first == sequence.begin && from != nullptr;
    const bool to_slot = left <= kBatch && to != nullptr;
    for (int run = 0; run < kColumns; run += kRun) {
      const int mine = thread_id() * kPacks * kSimd;  // within the run
      const int column = first_column + run + mine;
      const StateRows kept{tile + run * kDim + mine, kRun};
      const StateRows read = from_slot ? StateRows{from + column, kDim} : kept;
      const StateRows written = to_slot ? StateRows{to + column, kDim} : kept;
      run_batch<kPacks>(args, first, count, v_head * kDim + column, batch, read, kept, written);
    }
    sync_block();  // the readers of this batch are done
  }
}

// One block per (sequence, v head, kColumns columns).
TENON_KERNEL_MAX(kColumns) recurrent_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  constexpr int kParts = kDim / kColumns;
  const int part = block_id() % kParts;
  const int v_head = block_id() / kParts % args.v_heads;
  const int index = block_id() / kParts / args.v_heads;
  if (index >= args.sequences) return;  // the plan was made for more
  const Sequence sequence = sequence_at(args, index);
  const int tokens = sequence.end - sequence.begin;
  if (tokens < 1 || tokens > args.recurrent_limit) return;
  run_recurrent(args, sequence, v_head, part * kColumns);
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
