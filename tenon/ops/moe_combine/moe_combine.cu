// The combination: one block per token, a thread per eight elements.
#include "tenon/ops/moe_combine/moe_combine.h"

#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/variant.h"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET::moe_combine {
namespace {

using Args = tenon::moe_combine::Args;

struct Combine {
  const bf16* routed = nullptr;
  const bf16* shared = nullptr;
  const float* weights = nullptr;
  const std::int32_t* slot = nullptr;
  const void* gate = nullptr;
  bf16* out = nullptr;
  std::int64_t routed_stride = 0, shared_stride = 0, gate_stride = 0, out_stride = 0;  // elements
  std::int32_t hidden = 0, top_k = 0, tokens = 0;
  bool gate_is_f32 = false;
};

TENON_DEVICE float gate_of(const Combine& combine, std::int64_t token) {
  const std::int64_t at = token * combine.gate_stride;
  return sigmoid_f(combine.gate_is_f32 ? static_cast<const float*>(combine.gate)[at]
                                       : to_float(static_cast<const bf16*>(combine.gate)[at]));
}

// sum[i] += weight · row[i], eight neighbours.
TENON_DEVICE void add_scaled(const bf16* row, float weight, float (&sum)[8]) {
  float values[8];
  load8(row, values);
  TENON_UNROLL
  for (int j = 0; j < 8; ++j) sum[j] = sum[j] + weight * values[j];
}

TENON_KERNEL combine_kernel(Combine combine) {
  const std::int64_t token = block_id();
  if (token >= combine.tokens) return;  // the plan was made for more
  const float gate = gate_of(combine, token);
  const std::int32_t* slot = combine.slot + token * combine.top_k;
  const float* weights = combine.weights + token * combine.top_k;
  for (int i = thread_id() * 8; i < combine.hidden; i += block_threads() * 8) {
    float sum[8] = {};
    for (int k = 0; k < combine.top_k; ++k) {
      if (slot[k] < 0) continue;  // another rank's expert
      add_scaled(combine.routed + slot[k] * combine.routed_stride + i, weights[k], sum);
    }
    add_scaled(combine.shared + token * combine.shared_stride + i, gate, sum);
    store8(combine.out + token * combine.out_stride + i, sum);
  }
}

Status supports_rows(const Args& args, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.out.addend.shape[0]);
  shape.threads = kWave == 1 ? 1 : 128;
  recipe->launch("combine_kernel", shape);
  return Status::ok();
}

Status launch_rows(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const TensorView& out = args.out.addend;
  Combine combine;
  combine.routed = args.routed.as<const bf16>();
  combine.shared = args.shared.as<const bf16>();
  combine.weights = args.weights.as<const float>();
  combine.slot = args.slot.as<const std::int32_t>();
  combine.gate = args.shared_gate.data;
  combine.out = out.as<bf16>();
  combine.routed_stride = args.routed.stride[0];
  combine.shared_stride = args.shared.stride[0];
  combine.gate_stride = args.shared_gate.stride[0];
  combine.out_stride = out.stride[0];
  combine.hidden = static_cast<std::int32_t>(out.shape[1]);
  combine.tokens = static_cast<std::int32_t>(out.shape[0]);
  combine.top_k = static_cast<std::int32_t>(args.slot.shape[1]);
  combine.gate_is_f32 = args.shared_gate.dtype == DType::kF32;
  return tenon::launch(stream, recipe.launches.front().shape, combine_kernel, combine);
}

}  // namespace

TENON_DEFINE_VARIANT(rows, Args, supports_rows, launch_rows);

}  // namespace tenon::TENON_TARGET::moe_combine
