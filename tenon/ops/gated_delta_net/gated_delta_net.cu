// The variants of gated_delta_net. "recurrent": rows, recurrence, outputs. "decode": all of that
// for sequences of one token in one launch. "chunked": as "recurrent" with chunks for sequences of
// more tokens; those of one token are left to the decode kernel, on cpu to the recurrent one. Not
// here: the kernels (rows.cuh, recurrent.cuh, decode.cuh, chunked.cuh).
#include "tenon/ops/gated_delta_net/gated_delta_net.h"

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/gated_delta_net/chunked.cuh"
#include "tenon/ops/gated_delta_net/decode.cuh"
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
  return to;
}

// Threads of the kernels before and after the delta rule.
inline constexpr int kRowThreads = kWave == 1 ? 1 : kDim;
// On cpu a thread has no column of its own.
inline constexpr bool kHasDecode = kWave > 1;

LaunchShape shape_of(const PlanContext& where, std::int64_t blocks, int threads) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(blocks);
  shape.threads = threads;
  shape.early = where.may_start_early;
  return shape;
}
std::int64_t conv_runs(const Args& args) { return (args.qkv.shape[1] + kChannels - 1) / kChannels; }

void add_conv(const Args& args, const PlanContext& where, Recipe* recipe) {
  recipe->launch("conv_kernel", shape_of(where, args.qkv.shape[0] * conv_runs(args), kRowThreads));
}
void add_recurrent(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t blocks = args.state_from.shape[0] * args.v_heads * (kDim / kColumns);
  recipe->launch("recurrent_kernel", shape_of(where, blocks, kRecurrentThreads));
}
void add_decode(const Args& args, const PlanContext& where, std::int64_t rows, Recipe* recipe) {
  LaunchShape shape = shape_of(where, rows * args.v_heads, kDecodeThreads);
  shape.shared_bytes = kDecodeShared;
  recipe->launch("decode_kernel", shape);
}
void add_finish(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t blocks =
      args.qkv.shape[0] * args.v_heads + args.state_from.shape[0] * conv_runs(args);
  recipe->launch("finish_kernel", shape_of(where, blocks, kRowThreads));
}

Status supports_recurrent(const Args& args, const PlanContext& where, Recipe* recipe) {
  add_conv(args, where, recipe);
  add_recurrent(args, where, recipe);
  add_finish(args, where, recipe);
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

Status supports_decode(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (args.max_tokens_per_sequence > 1)
    return Status::error(Code::kUnsupported, "a sequence may have more than one token");
  const std::int64_t tokens = args.qkv.shape[0], sequences = args.state_from.shape[0];
  add_decode(args, where, tokens > sequences ? tokens : sequences, recipe);
  return Status::ok();
}
Status launch_decode(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(stream, recipe.launches[0].shape, decode_kernel, kernel_args(args));
}

Status supports_chunked(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (args.max_tokens_per_sequence <= 1)
    return Status::error(Code::kUnsupported, "every sequence has one token: there is no chunk");
  const std::int64_t sequences = args.state_from.shape[0];
  add_conv(args, where, recipe);
  if constexpr (kHasDecode) {
    add_decode(args, where, sequences, recipe);
  } else {
    add_recurrent(args, where, recipe);
  }
  recipe->launch("chunked_kernel", shape_of(where, sequences * args.v_heads * (kDim / kPartColumns),
                                            kChunkedThreads));
  add_finish(args, where, recipe);
  return Status::ok();
}
Status launch_chunked(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  KernelArgs to = kernel_args(args);
  to.recurrent_limit = 1;
  to.decodes_apart = kHasDecode;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape, conv_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[1].shape,
                          kHasDecode ? decode_kernel : recurrent_kernel, to));
  TENON_TRY(tenon::launch(stream, recipe.launches[2].shape, chunked_kernel, to));
  return tenon::launch(stream, recipe.launches[3].shape, finish_kernel, to);
}

}  // namespace

TENON_DEFINE_VARIANT(decode, Args, supports_decode, launch_decode);
TENON_DEFINE_VARIANT(recurrent, Args, supports_recurrent, launch_recurrent);
TENON_DEFINE_VARIANT(chunked, Args, supports_chunked, launch_chunked);

}  // namespace tenon::TENON_TARGET::gated_delta_net
