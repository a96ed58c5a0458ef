// What all variants of gated_delta_net share: the kernels' argument struct, the convolution before
// the delta rule, the gated norm and the new convolution state after it.
// Not here: the delta rule (recurrent.cuh, chunked.cuh).
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/ops/common/simd.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kDim = 128;                           // of a head: dk and dv
inline constexpr int kHistory = 3;                         // earlier inputs the convolution sees
inline constexpr int kChannels = kWave == 1 ? 2048 : 512;  // of a block of the convolution

struct KernelArgs {
  const bf16 *qkv, *z, *b, *a;
  std::int64_t qkv_stride, z_stride, b_stride, a_stride;  // of rows
  const bf16* conv_weight;
  const float *a_log, *dt_bias, *norm;
  const std::int32_t *starts, *from, *to, *fresh;
  bf16* conv_state;
  float* state;
  bf16 *scratch, *out;
  float eps;
  int tokens, sequences, k_heads, v_heads, conv_dim, num_slots;
  int recurrent_limit;  // longer sequences are the chunked kernel's
};

// One sequence of this step: its rows, and the slots of its state.
struct Sequence {
  int begin, end;
  int from;  // −1: it starts from zero
  int to;    // −1: no state is written
};

TENON_DEVICE Sequence sequence_at(const KernelArgs& args, int index) {
  const auto usable = [&](std::int32_t slot) { return slot >= 0 && slot < args.num_slots; };
  const std::int32_t from = args.from[index], to = args.to[index];
  const bool continues = args.fresh[index] == 0 && usable(from);
  return {args.starts[index], args.starts[index + 1], continues ? from : -1, usable(to) ? to : -1};
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

// The convolution's input `lag` tokens before local row `local` of a sequence, or null for zeros.
TENON_DEVICE const bf16* input_row(const KernelArgs& args, const Sequence& sequence, int local,
                                   int lag) {
  const int row = local - lag;
  if (row >= 0) return args.qkv + (sequence.begin + row) * args.qkv_stride;
  if (sequence.from < 0 || row < -kHistory) return nullptr;
  const std::int64_t at = std::int64_t{sequence.from} * kHistory + kHistory + row;
  return args.conv_state + at * args.conv_dim;
}

// u = silu(Σ weight · input) for n channels, oldest input first. Pointers start at the channels.
TENON_DEVICE void convolve(const bf16* __restrict__ oldest, const bf16* __restrict__ older,
                           const bf16* __restrict__ old, const bf16* __restrict__ now,
                           const bf16* __restrict__ weight, int n, bf16* __restrict__ out) {
  for (int c = thread_id(); c < n; c += block_threads()) {
    float sum = to_float(weight[4 * c]) * to_float(oldest[c]);
    sum = sum + to_float(weight[4 * c + 1]) * to_float(older[c]);
    sum = sum + to_float(weight[4 * c + 2]) * to_float(old[c]);
    sum = sum + to_float(weight[4 * c + 3]) * to_float(now[c]);
    out[c] = to_bf16(silu_f(sum));
  }
}

// One block per token and run of kChannels channels.
TENON_KERNEL_MAX(kDim) conv_kernel(KernelArgs args) {
  TENON_SHARED(bf16, zeros, kChannels);
  const int runs = (args.conv_dim + kChannels - 1) / kChannels;
  const int token = block_id() / runs;
  const int first = block_id() % runs * kChannels;
  const int n = args.conv_dim - first < kChannels ? args.conv_dim - first : kChannels;
  const int index = sequence_of(args, token);
  if (index < 0) return;
  const Sequence sequence = sequence_at(args, index);
  const int local = token - sequence.begin;

  const bf16* inputs[kHistory + 1];  // by lag
  bool missing = false;
  for (int lag = 0; lag <= kHistory; ++lag) {
    const bf16* row = input_row(args, sequence, local, lag);
    inputs[lag] = row == nullptr ? zeros : row + first;
    missing = missing || row == nullptr;
  }
  if (missing) {  // the whole block agrees: it is one token
    for (int c = thread_id(); c < n; c += block_threads()) zeros[c] = bf16{0};
    sync_block();
  }
  convolve(inputs[3], inputs[2], inputs[1], inputs[0], args.conv_weight + std::int64_t{first} * 4,
           n, args.scratch + std::int64_t{token} * args.conv_dim + first);
}

// beta = sigmoid(b) and decay = exp(g), g = −exp(a_log) · softplus(a + dt_bias), of one v head.
struct Gates {
  float beta, log_decay;
};
TENON_DEVICE Gates gates_of(const KernelArgs& args, int token, int v_head) {
  const float a = to_float(args.a[token * args.a_stride + v_head]);
  const float b = to_float(args.b[token * args.b_stride + v_head]);
  return {sigmoid_f(b), -exp_f(args.a_log[v_head]) * softplus_f(a + args.dt_bias[v_head])};
}

// What q and k of a head are multiplied by, from their sums of squares.
TENON_DEVICE float key_scale(float squares) { return rsqrt_f(squares + 1e-6f); }
TENON_DEVICE float query_scale(float squares) {
  return rsqrt_f(squares + 1e-6f) * 0x1.6a09e6p-4f;  // 128^-½
}

// out = rne(((o · rstd) · norm) · silu(z)), in place on the bf16 o that the delta rule left in out.
TENON_DEVICE void gated_norm(const KernelArgs& args, int token, int v_head) {
  TENON_SHARED(float, values, kDim);
  bf16* out = args.out + (std::int64_t{token} * args.v_heads + v_head) * kDim;
  if (token >= args.starts[args.sequences]) {
    for (int i = thread_id(); i < kDim; i += block_threads()) out[i] = bf16{0};
    return;
  }
  load_row(out, values, kDim, kDim);
  sync_block();
  const float rstd = rsqrt_f(dot(values, values, kDim) / static_cast<float>(kDim) + args.eps);
  const bf16* __restrict__ z = args.z + token * args.z_stride + v_head * kDim;
  for (int i = thread_id(); i < kDim; i += block_threads())
    out[i] = to_bf16(values[i] * rstd * args.norm[i] * silu_f(to_float(z[i])));
}

// The last three inputs of a sequence become its convolution state, for one run of channels.
TENON_DEVICE void keep_inputs(const KernelArgs& args, const Sequence& sequence, int run) {
  const int n = sequence.end - sequence.begin;
  if (n <= 0 || sequence.to < 0) return;
  bf16* kept = args.conv_state + std::int64_t{sequence.to} * kHistory * args.conv_dim;
  const int first = run * kChannels;
  const int last = first + kChannels < args.conv_dim ? first + kChannels : args.conv_dim;
  const bf16* inputs[kHistory];
  for (int i = 0; i < kHistory; ++i) inputs[i] = input_row(args, sequence, n - 1, kHistory - 1 - i);
  // A channel is one thread's, and its rows move towards older places: no row is lost.
  for (int c = first + thread_id(); c < last; c += block_threads())
    for (int i = 0; i < kHistory; ++i)
      kept[i * args.conv_dim + c] = inputs[i] == nullptr ? bf16{0} : inputs[i][c];
}

// One block per (token, v head), then one per sequence and run of channels.
TENON_KERNEL_MAX(kDim) finish_kernel(KernelArgs args) {
  const int heads = args.tokens * args.v_heads;
  if (block_id() < heads) {
    gated_norm(args, block_id() / args.v_heads, block_id() % args.v_heads);
    return;
  }
  const int runs = (args.conv_dim + kChannels - 1) / kChannels;
  const int at = block_id() - heads;
  if (at / runs >= args.sequences) return;  // the plan was made for more
  keep_inputs(args, sequence_at(args, at / runs), at % runs);
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
