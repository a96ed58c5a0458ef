// The variants of gated_delta_net: three launches each, of which the middle one differs.
// Not here: the kernels (rows.cuh, recurrent.cuh).
#include "tenon/ops/gated_delta_net/gated_delta_net.h"

#include "tenon/core/fp8.h"
#include "tenon/gpu/gpu.h"
#include "tenon/ops/gated_delta_net/recurrent.cuh"
#include "tenon/ops/gated_delta_net/rows.cuh"
#include "tenon/ops/registry.h"

namespace tenon::TENON_TARGET::gated_delta_net {
namespace {

using Args = tenon::gated_delta_net::Args;
static_assert(kDim == tenon::gated_delta_net::kHeadDim);
static_assert(kHistory + 1 == tenon::gated_delta_net::kTaps);

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

// The kernels before and after the delta rule: a wave or more per row.
LaunchShape rows_shape(int blocks) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.threads = kWave == 1 ? 1 : kDim;
  return shape;
}

// Convolution, delta rule, norm and new convolution state. The stream orders them.
template <auto kDeltaRule>
Status launch_three(const LaunchShape& shape, const Args& args, const TeamView*, Stream& stream) {
  const KernelArgs to = kernel_args(args);
  const int runs = (to.conv_dim + kChannels - 1) / kChannels;
  TENON_TRY(tenon::launch(stream, rows_shape(to.tokens * runs), conv_kernel, to));
  TENON_TRY(tenon::launch(stream, shape, kDeltaRule, to));
  return tenon::launch(stream, rows_shape(to.tokens * to.v_heads + to.sequences * runs),
                       finish_kernel, to);
}

Status supports_recurrent(const Args& args, const Situation&, LaunchShape* shape) {
  shape->blocks = static_cast<int>(args.state_slots.shape[0]) * args.v_heads * (kDim / kColumns);
  shape->threads = kRecurrentThreads;
  return Status::ok();
}

constexpr Variant kVariants[] = {
    variant<Args, supports_recurrent, launch_three<recurrent_kernel>>("recurrent")};

}  // namespace

extern const VariantTable table;
const VariantTable table{kVariants};

}  // namespace tenon::TENON_TARGET::gated_delta_net
