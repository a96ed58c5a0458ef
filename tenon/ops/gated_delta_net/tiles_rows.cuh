// Chunks of 64 tokens by tensor cores: the convolution in front of the delta rule and the gated
// norm behind it, as rows.cuh has them, for many tokens at a time and with approximate
// exponentials.
#pragma once

#include "tenon/ops/gated_delta_net/tiles.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kConvTokens = 16;                  // of a pass
inline constexpr int kConvChannels = 2 * kTileThreads;  // of a block, two a thread

// u of two channels of a thread for the tokens of a chunk, some at a time. The last inputs stay in
// registers from token to token.
TENON_DEVICE void convolve_tokens(const KernelArgs& args, const TileChunk& chunk, int channel) {
  const int index = sequence_of(args, chunk.first);
  const Sequence sequence = sequence_at(args, index);
  const auto load = [&](const bf16* row) {
    std::uint32_t both = 0;
    if (row != nullptr) __builtin_memcpy(&both, row + channel, 4);
    return both;
  };
  bf16 weights[2][4];
  __builtin_memcpy(weights, args.conv_weight + std::int64_t{channel} * 4, sizeof weights);
  std::uint32_t inputs[kConvTokens + kHistory];
  TENON_UNROLL
  for (int i = 0; i < kHistory; ++i)
    inputs[i] = load(input_row(args, sequence, chunk.first - sequence.begin + i - kHistory));
  float taps[2][4];
  TENON_UNROLL
  for (int tap = 0; tap < 8; ++tap) taps[tap / 4][tap % 4] = to_float(weights[tap / 4][tap % 4]);
  const bf16* row = args.qkv + chunk.first * args.qkv_stride;
  bf16* to = u_of(args, chunk.first) + channel;
  TENON_NO_UNROLL
  for (int left = chunk.count; left > 0; left -= kConvTokens) {
    TENON_UNROLL
    for (int i = 0; i < kConvTokens; ++i) {
      inputs[kHistory + i] = load(i < left ? row : nullptr);
      row += args.qkv_stride;
    }
    TENON_UNROLL
    for (int i = 0; i < kConvTokens; ++i) {
      float sum[2] = {};
      TENON_UNROLL
      for (int tap = 0; tap <= kHistory; ++tap) {
        sum[0] = sum[0] + taps[0][tap] * low_half<bf16>(inputs[i + tap]);
        sum[1] = sum[1] + taps[1][tap] * high_half<bf16>(inputs[i + tap]);
      }
      const std::uint32_t u = pack_halves<bf16>(approximate_silu(sum[0]), approximate_silu(sum[1]));
      if (i < left) __builtin_memcpy(to, &u, 4);
      to += args.scratch_stride;
    }
    TENON_UNROLL
    for (int i = 0; i < kHistory; ++i) inputs[i] = inputs[kConvTokens + i];
  }
}

// One block per chunk and kConvChannels channels.
TENON_KERNEL_MAX(kTileThreads) convolve_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  const int runs = (args.conv_dim + kConvChannels - 1) / kConvChannels;
  const int channel = block_id() % runs * kConvChannels + 2 * thread_id();
  const TileChunk chunk = chunk_at(args, block_id() / runs);
  if (chunk.count > 0 && channel < args.conv_dim) convolve_tokens(args, chunk, channel);
}

inline constexpr int kWaveHeads = 4;  // of a token, whose outputs a wave makes
constexpr int wave_tasks(int v_heads) { return (v_heads + kWaveHeads - 1) / kWaveHeads; }

// Four elements of o and of z of a v head, a lane's.
struct OutputInputs {
  bf16 o[kDim / 32], z[kDim / 32];
};

// The outputs of one v head of a token by one wave, four elements a lane. Scales by rows only.
TENON_DEVICE void finish_row(const KernelArgs& args, const OutputInputs& from, int token,
                             int v_head) {
  constexpr int kOwn = kDim / 32;
  const int at = lane_id() * kOwn;
  float o[kOwn];
  float squares = 0.0f;
  TENON_UNROLL
  for (int i = 0; i < kOwn; ++i) {
    o[i] = to_float(from.o[i]);
    squares = squares + o[i] * o[i];
  }
  const float rstd = rsqrt_f(wave_sum(squares) / static_cast<float>(kDim) + args.eps);
  bf16 rounded[kOwn];
  std::uint32_t absmax = 0;
  TENON_UNROLL
  for (int i = 0; i < kOwn; ++i) {
    rounded[i] = to_bf16(o[i] * rstd * args.norm[at + i] * approximate_silu(to_float(from.z[i])));
    absmax = larger(absmax, rounded[i].bits & 0x7fffu);
  }
  const int column = v_head * kDim;
  if (args.out != nullptr)
    __builtin_memcpy(args.out + token * args.out_stride + column + at, rounded, sizeof rounded);
  if (args.quant.codes == nullptr) return;
  const QuantSpec row = at_row(args.quant, token);
  const ChosenScale chosen = choose_scale<bf16>(row, max_lane(absmax));
  float n[kOwn];
  TENON_UNROLL
  for (int i = 0; i < kOwn; ++i) n[i] = to_float(rounded[i]) * chosen.multiplier;
  const std::uint32_t codes = row.is_fnuz ? pack_fp8x4<DType::kE4M3Fnuz>(n[0], n[1], n[2], n[3])
                                          : pack_fp8x4<DType::kE4M3>(n[0], n[1], n[2], n[3]);
  __builtin_memcpy(row.codes + column + at, &codes, 4);
  if (lane_id() == 0) store_scale(row, 0, v_head, chosen.word);
}

// Those of kWaveHeads neighbours, or as many as there are. Rows of padding are made of zeros.
TENON_DEVICE void finish_rows(const KernelArgs& args, int token, int first_head, bool is_padding) {
  const int at = lane_id() * (kDim / 32);
  OutputInputs from[kWaveHeads] = {};
  TENON_UNROLL
  for (int i = 0; i < kWaveHeads; ++i) {
    const int v_head = first_head + i;
    if (is_padding || v_head >= args.v_heads) continue;
    __builtin_memcpy(from[i].o, o_of(args, token, v_head) + at, sizeof from[i].o);
    __builtin_memcpy(from[i].z, args.z + token * args.z_stride + v_head * kDim + at,
                     sizeof from[i].z);
  }
  TENON_UNROLL
  for (int i = 0; i < kWaveHeads; ++i)
    if (first_head + i < args.v_heads) finish_row(args, from[i], token, first_head + i);
}

// Waves for each (token, kWaveHeads v heads), then a block per sequence and run of channels.
TENON_KERNEL_MAX(kTileThreads) outputs_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  constexpr int kWaves = kTileThreads / 32;
  const int of_token = wave_tasks(args.v_heads), tasks = args.tokens * of_token;
  const int blocks = (tasks + kWaves - 1) / kWaves;
  if (block_id() < blocks) {
    const int task = block_id() * kWaves + wave_id();
    if (task >= tasks) return;
    const int token = task / of_token;
    const int index = sequence_of(args, token);
    if (index >= 0 && decodes_apart(args, sequence_at(args, index))) return;
    finish_rows(args, token, task % of_token * kWaveHeads, index < 0);
    return;
  }
  const int runs = (args.conv_dim + kChannels - 1) / kChannels;
  const int at = block_id() - blocks;
  if (at / runs < args.sequences) keep_inputs(args, sequence_at(args, at / runs), at % runs);
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
