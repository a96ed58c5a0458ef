// What all variants of gated_delta_net share: the kernels' argument struct, the convolution before
// the delta rule, the gated norm, its outputs, and the new convolution state after it.
// Not here: the delta rule (recurrent.cuh, decode.cuh, chunked.cuh).
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/simd.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kDim = 128;                           // of a head: dk and dv
inline constexpr int kHistory = 3;                         // earlier inputs the convolution sees
inline constexpr int kRing = 4;                            // inputs that a slot keeps
inline constexpr int kChannels = kWave == 1 ? 2048 : 512;  // of a block of the convolution
static_assert(kRing > kHistory && (kRing & (kRing - 1)) == 0);

struct KernelArgs {
  const bf16 *qkv, *z, *b, *a;
  std::int64_t qkv_stride, z_stride, b_stride, a_stride;  // of rows
  const bf16* conv_weight;
  const float *a_log, *dt_bias, *norm;
  const std::int32_t *starts, *lengths, *from, *to, *fresh;
  bf16* conv_state;
  float* state;
  bf16* scratch;  // of each token: u, then o
  std::int64_t scratch_stride;
  bf16* out;  // null where nobody wants bf16
  std::int64_t out_stride;
  QuantSpec quant;  // no codes where nobody wants fp8
  float eps;
  int tokens, sequences, k_heads, v_heads, conv_dim, num_slots;
  int recurrent_limit;  // longer sequences are the chunked kernel's
  bool decodes_apart;   // sequences of one token are the decode kernel's from end to end
  bool is_settled;      // Args::state_is_settled
};

// One sequence of this step: its rows, and the slots of its state.
struct Sequence {
  int begin, end;
  int position;  // of its first row
  int from;      // −1: it starts from zero
  int to;        // −1: no state is written
};

template <class Load>
TENON_DEVICE Sequence sequence_by(const KernelArgs& args, int index, Load load) {
  const auto usable = [&](std::int32_t slot) { return slot >= 0 && slot < args.num_slots; };
  const std::int32_t from = load(args.from + index), to = load(args.to + index);
  const bool continues = load(args.fresh + index) == 0 && usable(from);
  const std::int32_t begin = load(args.starts + index), end = load(args.starts + index + 1);
  return {begin, end, load(args.lengths + index) - (end - begin), continues ? from : -1,
          usable(to) ? to : -1};
}
TENON_DEVICE Sequence sequence_at(const KernelArgs& args, int index) {
  return sequence_by(args, index, [](const std::int32_t* at) { return *at; });
}
TENON_DEVICE bool decodes_apart(const KernelArgs& args, const Sequence& sequence) {
  return args.decodes_apart && sequence.end - sequence.begin == 1;
}

// u of a token, and o of one of its v heads.
TENON_DEVICE bf16* u_of(const KernelArgs& args, int token) {
  return args.scratch + token * args.scratch_stride;
}
TENON_DEVICE bf16* o_of(const KernelArgs& args, int token, int v_head) {
  return u_of(args, token) + args.conv_dim + v_head * kDim;
}

// S of one v head in a slot, [kDim, kDim], or null for slot −1.
TENON_DEVICE float* state_of(const KernelArgs& args, int slot, int v_head) {
  if (slot < 0) return nullptr;
  return args.state + (std::int64_t{slot} * args.v_heads + v_head) * kDim * kDim;
}

// The sequence that holds the token, or −1 for rows behind the last one.
TENON_DEVICE int sequence_of(const KernelArgs& args, int token) {
  if (token >= args.starts[args.sequences]) return -1;
  int low = 0, high = args.sequences;  // the answer is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (args.starts[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The row of a slot that keeps the input of this position, which may be below 0.
TENON_DEVICE bf16* kept_row(const KernelArgs& args, int slot, int position) {
  return args.conv_state + (std::int64_t{slot} * kRing + (position & (kRing - 1))) * args.conv_dim;
}
// The convolution's input of local row `row`, from −kHistory on, or null for zeros.
TENON_DEVICE const bf16* input_row(const KernelArgs& args, const Sequence& sequence, int row) {
  if (row >= 0) return args.qkv + (sequence.begin + row) * args.qkv_stride;
  if (sequence.from < 0) return nullptr;
  return kept_row(args, sequence.from, sequence.position + row);
}

// u of one channel: silu(Σ weight · input), oldest input first.
TENON_DEVICE bf16 convolve_channel(const bf16* weight, bf16 oldest, bf16 older, bf16 old,
                                   bf16 now) {
  float sum = to_float(weight[0]) * to_float(oldest);
  sum = sum + to_float(weight[1]) * to_float(older);
  sum = sum + to_float(weight[2]) * to_float(old);
  sum = sum + to_float(weight[3]) * to_float(now);
  return to_bf16(silu_f(sum));
}
// The same for n channels, at which the pointers start.
TENON_DEVICE void convolve(const bf16* __restrict__ oldest, const bf16* __restrict__ older,
                           const bf16* __restrict__ old, const bf16* __restrict__ now,
                           const bf16* __restrict__ weight, int n, bf16* __restrict__ out) {
  for (int c = thread_id(); c < n; c += block_threads())
    out[c] = convolve_channel(weight + 4 * c, oldest[c], older[c], old[c], now[c]);
}

// What the gates of one v head of a token are made of, and they: beta = sigmoid(b), and
// g = −exp(a_log) · softplus(a + dt_bias), decay being exp(g).
struct GateInputs {
  float a, b, a_log, dt_bias;
};
struct Gates {
  float beta, log_decay;
};
TENON_DEVICE GateInputs load_gates(const KernelArgs& args, int token, int v_head, float a_log,
                                   float dt_bias) {
  return {to_float(args.a[token * args.a_stride + v_head]),
          to_float(args.b[token * args.b_stride + v_head]), a_log, dt_bias};
}
TENON_DEVICE Gates gates_of(const GateInputs& inputs) {
  return {sigmoid_f(inputs.b), -exp_f(inputs.a_log) * softplus_f(inputs.a + inputs.dt_bias)};
}
TENON_DEVICE Gates gates_of(const KernelArgs& args, int token, int v_head) {
  return gates_of(load_gates(args, token, v_head, args.a_log[v_head], args.dt_bias[v_head]));
}

// What q and k of a head are multiplied by, from their sums of squares.
TENON_DEVICE float key_scale(float squares) { return rsqrt_f(squares + 1e-6f); }
inline constexpr float kQueryFactor = 0x1.6a09e6p-4f;  // 128^-½
TENON_DEVICE float query_scale(float squares) { return key_scale(squares) * kQueryFactor; }

// What a call wants of one v head of a token: t = rne(((o · rstd) · norm) · silu(z)) as bf16, and t
// quantised as fp8_quant does it, the head being the group. `o` is in shared memory; null: the row
// belongs to no sequence, and t is zero. Every thread of the block must call it.
TENON_DEVICE void finish_head(const KernelArgs& args, int token, int v_head, const float* o) {
  constexpr int kVectors = kDim / kVector;
  constexpr int kSpan = kWave == 1 ? kVectors : 2;  // that a thread has room for
  TENON_SHARED(bf16, rounded, kDim);
  sync_block();  // the readers of an earlier call are done
  const float rstd =
      o == nullptr ? 0.0f : rsqrt_f(dot(o, o, kDim) / static_cast<float>(kDim) + args.eps);
  const bf16* __restrict__ z = args.z + token * args.z_stride + v_head * kDim;
  for (int i = thread_id(); i < kDim; i += block_threads())
    rounded[i] =
        o == nullptr ? bf16{0} : to_bf16(o[i] * rstd * args.norm[i] * silu_f(to_float(z[i])));
  sync_block();
  const int column = v_head * kDim;
  if (args.out != nullptr)
    for (int i = thread_id(); i < kVectors; i += block_threads())
      store16(args.out + token * args.out_stride + column + i * kVector,
              load16(rounded + i * kVector));
  if (args.quant.codes == nullptr) return;
  Word4 held[kSpan];
  const ThreadSpan span = own_span<kSpan>(args.quant.group_vectors);
  for_vectors<kSpan>(span.count, [&]<int kCount>(int i) {
    load_vectors<kCount>(rounded + (span.first + i) * kVector, &held[i]);
  });
  quantize_to_tensors<bf16>(at_row(args.quant, token), column, span, held);
  if (v_head == 0) pad_scales(args.quant, token);
}
TENON_DEVICE void finish_token(const KernelArgs& args, int token, int v_head) {
  TENON_SHARED(float, values, kDim);
  const int index = sequence_of(args, token);
  if (index >= 0) {
    if (decodes_apart(args, sequence_at(args, index))) return;
    load_row(o_of(args, token, v_head), values, kDim, kDim);
    sync_block();
  }
  finish_head(args, token, v_head, index >= 0 ? values : nullptr);
}

// The last inputs of a sequence become its convolution state, for one run of channels.
TENON_DEVICE void keep_inputs(const KernelArgs& args, const Sequence& sequence, int run) {
  const int n = sequence.end - sequence.begin;
  if (n <= 0 || sequence.to < 0 || decodes_apart(args, sequence)) return;
  const int first = run * kChannels;
  const int last = first + kChannels < args.conv_dim ? first + kChannels : args.conv_dim;
  for (int row = n - 1; row > n - 1 - kRing; --row) {
    if (row < 0 && sequence.from == sequence.to) return;  // they lie there
    const bf16* input = input_row(args, sequence, row);
    bf16* kept = kept_row(args, sequence.to, sequence.position + row);
    for (int c = first + thread_id(); c < last; c += block_threads())
      kept[c] = input == nullptr ? bf16{0} : input[c];
  }
}

// One block per (token, v head), then one per sequence and run of channels.
TENON_KERNEL_MAX(kDim) finish_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  const int heads = args.tokens * args.v_heads;
  if (block_id() < heads) {
    finish_token(args, block_id() / args.v_heads, block_id() % args.v_heads);
    return;
  }
  const int runs = (args.conv_dim + kChannels - 1) / kChannels;
  const int at = block_id() - heads;
  if (at / runs >= args.sequences) return;  // the plan was made for more
  keep_inputs(args, sequence_at(args, at / runs), at % runs);
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
