// The variants of gated_delta_net: three launches each, of which the middle one differs (the
// chunked one also launches the recurrent kernel, for sequences of one token).
// Not here: the kernels (rows.cuh, recurrent.cuh, chunked.cuh).
#include "tenon/ops/gated_delta_net/gated_delta_net.h"

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/gated_delta_net/chunked.cuh"
#include "tenon/ops/gated_delta_net/recurrent.cuh"
#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {
namespace {

using Args = tenon::gated_delta_net::Args;
static_assert(kDim == tenon::gated_delta_net::kHeadDim);
static_assert(kHistory + 1 == tenon::gated_delta_net::kTaps);
static_assert(kChunk == tenon::gated_delta_net::kChunkTokens);

KernelArgs kernel_args(const Args& args) {
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
  to.slots = args.state_slots.as<const std::int32_t>();
  to.fresh = args.fresh.as<const std::int32_t>();
  to.conv_state = args.conv_state.as<bf16>();
  to.state = args.state.as<float>();
  to.scratch = args.scratch.as<bf16>();
  to.out = args.out.as<bf16>();
  to.eps = args.eps;
  to.tokens = static_cast<int>(args.qkv.shape[0]);
  to.sequences = static_cast<int>(args.state_slots.shape[0]);
  to.k_heads = args.k_heads;
  to.v_heads = args.v_heads;
  to.conv_dim = static_cast<int>(args.qkv.shape[1]);
  to.num_slots = static_cast<int>(args.state.shape[0]);
  return to;
}

// Threads of the kernels before and after the delta rule.
inline constexpr int kRowThreads = kWave == 1 ? 1 : kDim;

LaunchShape shape_of(std::int64_t blocks, int threads) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(blocks);
  shape.threads = threads;
  return shape;
}
std::int64_t conv_runs(const Args& args) { return (args.qkv.shape[1] + kChannels - 1) / kChannels; }

void add_conv(const Args& args, Recipe* recipe) {
  recipe->launch("conv_kernel", shape_of(args.qkv.shape[0] * conv_runs(args), kRowThreads));
}
void add_recurrent(const Args& args, Recipe* recipe) {
  const std::int64_t blocks = args.state_slots.shape[0] * args.v_heads * (kDim / kColumns);
  recipe->launch("recurrent_kernel", shape_of(blocks, kRecurrentThreads));
}
void add_finish(const Args& args, Recipe* recipe) {
  const std::int64_t blocks =
      args.qkv.shape[0] * args.v_heads + args.state_slots.shape[0] * conv_runs(args);
  recipe->launch("finish_kernel", shape_of(blocks, kRowThreads));
}

Status supports_recurrent(const Args& args, const PlanContext&, Recipe* recipe) {
  add_conv(args, recipe);
  add_recurrent(args, recipe);
  add_finish(args, recipe);
  return Status::ok();
}
Status launch_recurrent(const Recipe& recipe, const Args& args, const ChannelView*,
                        Stream& stream) {
  KernelArgs to = kernel_args(args);
  to.recurrent_limit = to.tokens;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape, conv_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[1].shape, recurrent_kernel, to));
  return tenon::launch(stream, recipe.launches[2].shape, finish_kernel, to);
}

Status supports_chunked(const Args& args, const PlanContext&, Recipe* recipe) {
  if (args.max_tokens_per_sequence <= 1)
    return Status::error(Code::kUnsupported, "every sequence has one token: there is no chunk");
  const std::int64_t blocks = args.state_slots.shape[0] * args.v_heads * (kDim / kPartColumns);
  add_conv(args, recipe);
  add_recurrent(args, recipe);
  recipe->launch("chunked_kernel", shape_of(blocks, kChunkedThreads));
  add_finish(args, recipe);
  return Status::ok();
}
// The recurrent kernel takes the sequences of one token, the chunked one all others.
Status launch_chunked(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  KernelArgs to = kernel_args(args);
  to.recurrent_limit = 1;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape, conv_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[1].shape, recurrent_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[2].shape, chunked_kernel, to));
  return tenon::launch(stream, recipe.launches[3].shape, finish_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(recurrent, Args, supports_recurrent, launch_recurrent);
TENON_DEFINE_VARIANT(chunked, Args, supports_chunked, launch_chunked);

}  // namespace tenon::TENON_TARGET::gated_delta_net
