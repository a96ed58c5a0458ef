// The kernel arguments of a call, for every variant.
#pragma once

#include "tenon/ops/bf16_gemm/bf16_gemm.h"
#include "tenon/ops/common/gemm_tile.cuh"

namespace tenon::TENON_TARGET::bf16_gemm {

using Args = tenon::bf16_gemm::Args;

inline GemmCall call_of(const Args& args) {
  const auto& map = args.row_of ? args.row_of : args.row_index;
  return gemm_call(args.x, args.weight, args.out, map ? &*map : nullptr,
                   args.offsets ? &*args.offsets : nullptr);
}

}  // namespace tenon::TENON_TARGET::bf16_gemm
