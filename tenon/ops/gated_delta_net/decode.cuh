// The recurrence of one token in one kernel, from the rows of the projection to the outputs:
// convolution, norms, gates, delta rule, gated norm, quantisation, new states. Bits are those of
// conv_kernel, recurrent_kernel and finish_kernel one after another.
//
// A block has one v head of one sequence, a thread one column of S. The state is what costs time: S
// is on its way into shared memory while the convolution and the norms are computed, and is read
// there twice and written out once. Where shared memory is too small, it is read from global
// memory. Blocks whose v heads share a k head all compute its convolution. None of them may write
// what another one reads: that is why a slot keeps one input more than the convolution looks back,
// so that the place of the new one holds an input that nobody reads any more.
#pragma once

#include "tenon/device/copy.cuh"
#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kDecodeThreads = kDim;
// Rows of S that decode_kernel holds in shared memory: all on CUDA, none where a block has 64 KiB
// of it, as on HIP; and half of them on emu32, which has no more but shall meet both ways.
inline constexpr int kHeldRows = kWave != 32 ? 0 : kKernelsAreOrdered ? kDim : kDim / 2;
constexpr std::size_t decode_shared(int held_rows) { return held_rows * kDim * sizeof(float); }

// The channels of a thread in a row of qkv: one of q, one of k, one of v.
struct Channels {
  int of[3];
};
TENON_DEVICE Channels channels_of(const KernelArgs& args, int v_head) {
  const int k_head = v_head / (args.v_heads / args.k_heads);
  return {{k_head * kDim + thread_id(), (args.k_heads + k_head) * kDim + thread_id(),
           (2 * args.k_heads + v_head) * kDim + thread_id()}};
}

// Asks for S while earlier kernels still run. The slot may be another one by then: it is read again
// afterwards, and nothing but time depends on this.
TENON_DEVICE void ask_for_state(const KernelArgs& args, int index, int v_head) {
  if (index >= args.sequences) return;
  const std::int32_t slot = args.from[index];
  if (slot < 0 || slot >= args.num_slots) return;
  const float* state = state_of(args, slot, v_head);
  for (int at = thread_id() * 32; at < kDim * kDim; at += kDecodeThreads * 32) prefetch(state + at);
}

// Of the convolution, for these channels.
struct Weights {
  bf16 of[3][4];
};
TENON_DEVICE Weights load_weights(const KernelArgs& args, const Channels& channels) {
  Weights weights;
  TENON_UNROLL
  for (int c = 0; c < 3; ++c)
    __builtin_memcpy(weights.of[c], args.conv_weight + std::int64_t{channels.of[c]} * 4, 8);
  return weights;
}

// What the convolution reads of a thread's channels, by lag.
struct Inputs {
  bf16 of[kHistory + 1][3];
};
TENON_DEVICE Inputs load_inputs(const KernelArgs& args, const Sequence& sequence,
                                const Channels& channels) {
  Inputs inputs;
  TENON_UNROLL
  for (int lag = 0; lag <= kHistory; ++lag) {
    const bf16* row = input_row(args, sequence, -lag);
    TENON_UNROLL
    for (int c = 0; c < 3; ++c) inputs.of[lag][c] = row == nullptr ? bf16{0} : row[channels.of[c]];
  }
  return inputs;
}
// The new input goes to its place; the others too where the sequence moves to another slot. One
// block of those that share a k head writes its channels.
TENON_DEVICE void keep_own_inputs(const KernelArgs& args, const Sequence& sequence, int v_head,
                                  const Channels& channels, const Inputs& inputs) {
  if (sequence.to < 0) return;
  const bool writes_key = v_head % (args.v_heads / args.k_heads) == 0;
  TENON_UNROLL
  for (int lag = 0; lag <= kHistory; ++lag) {
    if (lag > 0 && sequence.from == sequence.to) return;
    bf16* kept = kept_row(args, sequence.to, sequence.position - lag);
    TENON_UNROLL
    for (int c = 0; c < 3; ++c)
      if (c == 2 || writes_key) kept[channels.of[c]] = inputs.of[lag][c];
  }
}

// A token's q and k, normalised, in shared memory, and its gates.
struct DecodedToken {
  const float *q, *k;
  float beta, decay, k_dot_q, v;
};

// The thread's column of S: its first kHeld rows in shared memory, all rows in global memory.
struct StateColumn {
  const float* held;
  const float* data;  // null: zeros
};
// Rows [row, row + kRows) of it.
inline constexpr int kRows = 16;
template <int kHeld>
TENON_DEVICE void load_rows(const StateColumn& column, int row, float (&to)[kRows]) {
  static_assert(kHeld % kRows == 0);
  if (kHeld == kDim || row < kHeld) {
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i) to[i] = column.held[(row + i) * kDim];
  } else {
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i)
      to[i] = column.data == nullptr ? 0.0f : column.data[(row + i) * kDim];
  }
}
TENON_DEVICE void load_keys(const float* of_rows, int row, float (&to)[kRows]) {
  TENON_UNROLL
  for (int i = 0; i < kRows; i += 4) {
    const Word4 four = load16(of_rows + row + i);
    to[i] = bits_float(four.x);
    to[i + 1] = bits_float(four.y);
    to[i + 2] = bits_float(four.z);
    to[i + 3] = bits_float(four.w);
  }
}

// o of the thread's column, and S moves on, to the column `to`; null: nowhere.
template <int kHeld>
TENON_DEVICE float step_column(const DecodedToken& token, const StateColumn& from, float* to) {
  float m = 0.0f, r = 0.0f;
  for (int row = 0; row < kDim; row += kRows) {
    float s[kRows], k[kRows], q[kRows];
    load_rows<kHeld>(from, row, s);
    load_keys(token.k, row, k);
    load_keys(token.q, row, q);
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i) {
      m = m + k[i] * s[i];
      r = r + q[i] * s[i];
    }
  }
  const float d = token.beta * (token.v - token.decay * m);
  for (int row = 0; row < kDim && to != nullptr; row += kRows) {
    float s[kRows], k[kRows];
    load_rows<kHeld>(from, row, s);
    load_keys(token.k, row, k);
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i) to[(row + i) * kDim] = token.decay * s[i] + k[i] * d;
  }
  return token.decay * r + token.k_dot_q * d;
}

// All of one token of one v head, with kHeld rows of S in dynamic shared memory.
template <int kHeld>
TENON_DEVICE void decode_head(const KernelArgs& args, const Sequence& sequence, int v_head,
                              const Channels& channels, const Weights& weights) {
  TENON_SHARED(float, q, kDim);
  TENON_SHARED(float, k, kDim);
  TENON_SHARED(float, o, kDim);
  const int mine = thread_id();
  const float* from = state_of(args, sequence.from, v_head);
  float* to = state_of(args, sequence.to, v_head);

  const int token = sequence.begin;
  const Inputs inputs = load_inputs(args, sequence, channels);
  const GateInputs gate_inputs = load_gates(args, token, v_head);
  const bf16 z = args.z[token * args.z_stride + v_head * kDim + mine];
  StateColumn column{nullptr, from == nullptr ? nullptr : from + mine};
  if constexpr (kHeld > 0) {
    TENON_DYNAMIC_SHARED(float, tile);
    for (int at = mine * 4; at < kHeld * kDim; at += kDecodeThreads * 4) {
      if (from != nullptr) {
        copy_async16(tile + at, from + at);
      } else {
        store16(tile + at, Word4{});
      }
    }
    column.held = tile + mine;
  }
  bf16 u[3];
  TENON_UNROLL
  for (int c = 0; c < 3; ++c)
    u[c] = convolve_channel(weights.of[c], inputs.of[3][c], inputs.of[2][c], inputs.of[1][c],
                            inputs.of[0][c]);
  q[mine] = to_float(u[0]);
  k[mine] = to_float(u[1]);
  sync_block();
  const float of_q = query_scale(dot(q, q, kDim)), of_k = key_scale(dot(k, k, kDim));
  const float k_dot_q = dot(k, q, kDim) * of_k * of_q;
  sync_block();  // the readers are done
  q[mine] = q[mine] * of_q;
  k[mine] = k[mine] * of_k;
  // S is still on its way.
  keep_own_inputs(args, sequence, v_head, channels, inputs);
  const Gates gates = gates_of(gate_inputs);
  const DecodedToken now{q, k, gates.beta, exp_f(gates.log_decay), k_dot_q, to_float(u[2])};
  const OutputGate gate{args.norm[mine], silu_f(to_float(z))};
  await_copies();
  sync_block();

  const float found = step_column<kHeld>(now, column, to == nullptr ? nullptr : to + mine);
  o[mine] = to_float(to_bf16(found));
  finish_head(args, token, v_head, o, [&](int) { return gate; });
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
