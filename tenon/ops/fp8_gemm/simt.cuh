// fp8_gemm through the portable tile (ops/common/gemm_tile.cuh): every target.
#pragma once

#include "tenon/ops/common/gemm_tile.cuh"
#include "tenon/ops/fp8_gemm/call.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {

struct Fp8Product {
  static constexpr bool kScaled = true;
  const Fp8Call& call;
};

TENON_DEVICE void load_x(const Fp8Product& product, std::int64_t token, int k,
                         float (&values)[kPartSize]) {
  const GemmCall& call = product.call.gemm;
  const auto* codes = static_cast<const std::uint8_t*>(call.x);
  load_fp8x16<DType::kE4M3>(codes + token * call.x_stride + k, values);
}
TENON_DEVICE void load_weight(const Fp8Product& product, int expert, int column, int k,
                              float (&values)[kPartSize]) {
  const GemmCall& call = product.call.gemm;
  const auto* codes = static_cast<const std::uint8_t*>(call.weight);
  load_fp8x16<DType::kE4M3>(codes + expert * call.expert_stride + column * call.weight_stride + k,
                            values);
}
TENON_DEVICE float x_scale(const Fp8Product& product, std::int64_t token, int block) {
  const GemmScales& scales = product.call.scales;
  return scales.x[token * scales.x_row_stride + block * scales.x_block_stride];
}
TENON_DEVICE float weight_scale(const Fp8Product& product, int expert, int column, int block) {
  const GemmScales& scales = product.call.scales;
  return scales.weight[expert * scales.weight_expert_stride +
                       column / kGemmBlock * scales.weight_row_stride + block];
}

TENON_KERNEL simt_kernel(Fp8Call call) { run_gemm_block(Fp8Product{call}, call.gemm); }

}  // namespace tenon::TENON_TARGET::fp8_gemm
