// The host side that variants of gated_delta_net share: a call as kernels see it, and the launches
// of the kernels before and after the delta rule.
#pragma once

#include "tenon/device/variant.h"
#include "tenon/ops/gated_delta_net/gated_delta_net.h"
#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

using Args = tenon::gated_delta_net::Args;
static_assert(kDim == tenon::gated_delta_net::kHeadDim);
static_assert(kHistory + 1 == tenon::gated_delta_net::kTaps);
static_assert(kRing == tenon::gated_delta_net::kKeptInputs);

inline KernelArgs kernel_args(const Args& args) {
  KernelArgs to{};
  to.qkv = args.qkv.as<const bf16>();
  to.z = args.z.as<const bf16>();
  to.b = args.b.as<const bf16>();
  to.a = args.a.as<const bf16>();
  to.qkv_stride = args.qkv.stride[0];
  to.z_stride = args.z.stride[0];
  to.b_stride = args.b.stride[0];
  to.a_stride = args.a.stride[0];
  to.conv_weight = args.conv_weight.as<const bf16>();
  to.a_log = args.a_log.as<const float>();
  to.dt_bias = args.dt_bias.as<const float>();
  to.norm = args.norm.as<const float>();
  to.starts = args.sequence_starts.as<const std::int32_t>();
  to.lengths = args.sequence_lengths.as<const std::int32_t>();
  to.from = args.state_from.as<const std::int32_t>();
  to.to = args.state_to.as<const std::int32_t>();
  to.fresh = args.fresh.as<const std::int32_t>();
  to.conv_state = args.conv_state.as<bf16>();
  to.state = args.state.as<float>();
  to.scratch = args.scratch.as<bf16>();
  to.scratch_stride = args.scratch.stride[0];
  if (args.out.bf16) {
    to.out = args.out.bf16->as<bf16>();
    to.out_stride = args.out.bf16->stride[0];
  }
  to.quant = quant_spec(args.out.fp8);
  to.eps = args.eps;
  to.tokens = static_cast<int>(args.qkv.shape[0]);
  to.sequences = static_cast<int>(args.state_from.shape[0]);
  to.k_heads = args.k_heads;
  to.v_heads = args.v_heads;
  to.conv_dim = static_cast<int>(args.qkv.shape[1]);
  to.num_slots = static_cast<int>(args.state.shape[0]);
  to.is_settled = args.state_is_settled;
  return to;
}

// Threads of the kernels before and after the delta rule.
inline constexpr int kRowThreads = kWave == 1 ? 1 : kDim;
inline LaunchShape shape_of(const PlanContext& where, std::int64_t blocks, int threads) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(blocks);
  shape.threads = threads;
  shape.early = where.may_start_early;
  return shape;
}
inline std::int64_t conv_runs(const Args& args) {
  return (args.qkv.shape[1] + kChannels - 1) / kChannels;
}

inline void add_finish(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t blocks =
      args.qkv.shape[0] * args.v_heads + args.state_from.shape[0] * conv_runs(args);
  recipe->launch("finish_kernel", shape_of(where, blocks, kRowThreads));
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
