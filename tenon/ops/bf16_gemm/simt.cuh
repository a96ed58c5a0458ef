// bf16_gemm through the portable tile (ops/common/gemm_tile.cuh): every target.
#pragma once

#include "tenon/ops/common/gemm_tile.cuh"

namespace tenon::TENON_TARGET::bf16_gemm {

struct Bf16Product {
  static constexpr bool kScaled = false;
  const GemmCall& call;
};

// Sixteen elements of a row from k on; those past the end of the row stay 0.
TENON_DEVICE void load_elements(const GemmCall& call, const bf16* row, int k,
                                float (&values)[kPartSize]) {
  TENON_UNROLL
  for (int i = 0; i < kPartSize; i += 8) {
    if (k + i >= call.k) break;  // k is a multiple of 8
    float eight[8];
    load8(row + k + i, eight);
    TENON_UNROLL
    for (int j = 0; j < 8; ++j) values[i + j] = eight[j];
  }
}
TENON_DEVICE void load_x(const Bf16Product& product, std::int64_t token, int k,
                         float (&values)[kPartSize]) {
  const GemmCall& call = product.call;
  load_elements(call, static_cast<const bf16*>(call.x) + token * call.x_stride, k, values);
}
TENON_DEVICE void load_weight(const Bf16Product& product, int expert, int column, int k,
                              float (&values)[kPartSize]) {
  const GemmCall& call = product.call;
  const bf16* weight = static_cast<const bf16*>(call.weight) + expert * call.expert_stride;
  load_elements(call, weight + column * call.weight_stride, k, values);
}

TENON_KERNEL simt_kernel(GemmCall call) { run_gemm_block(Bf16Product{call}, call); }

}  // namespace tenon::TENON_TARGET::bf16_gemm
