// The kernel arguments of a call, for every variant.
#pragma once

#include "tenon/core/status.h"
#include "tenon/ops/common/gemm_tile.cuh"
#include "tenon/ops/fp8_gemm/fp8_gemm.h"

namespace tenon::TENON_TARGET::fp8_gemm {

using Args = tenon::fp8_gemm::Args;
using Beside = tenon::fp8_gemm::Beside;

struct Fp8Call {
  GemmCall gemm;
  GemmScales scales;
};

inline Fp8Call call_of(const Args& args) {
  const bool grouped = args.weight.num_dims == 3;
  const bool by_row = args.x.layout == ScaleLayout::kRow;
  Fp8Call call;
  call.gemm = gemm_call(args.x.data, args.weight, args.out, args.row_of ? &*args.row_of : nullptr,
                        args.offsets ? &*args.offsets : nullptr);
  call.scales.x = args.x.scale.as<const float>();
  call.scales.weight = args.weight_scale.as<const float>();
  call.scales.x_row_stride = by_row ? args.x.scale.stride[0] : 1;
  call.scales.x_block_stride = by_row ? 1 : args.x.scale.stride[0];
  call.scales.weight_row_stride = args.weight_scale.stride[grouped ? 1 : 0];
  call.scales.weight_expert_stride = grouped ? args.weight_scale.stride[0] : 0;
  return call;
}

inline GemmCall call_of(const Beside& beside) {
  return gemm_call(beside.x, beside.weight, beside.out, nullptr, nullptr);
}

// For variants that make plain products only.
inline Status plain_only(const Args& args) {
  if (!args.activated && !args.beside) return Status::ok();
  return Status::error(Code::kUnsupported,
                       std::string(args.activated ? "activated" : "beside") +
                           " is asked for; it makes a plain product, and one at a time");
}

}  // namespace tenon::TENON_TARGET::fp8_gemm
