// bf16_gemm for processors (ops/common/host_gemm.cuh): a kernel per instruction set. Included for
// the cpu target only.
#pragma once

#include "tenon/ops/common/host_gemm.cuh"

namespace tenon::TENON_TARGET::bf16_gemm {

TENON_KERNEL lanes_kernel(GemmCall call) {
  run_host_block(call, GemmScales{}, lanes::run_tile<std::uint16_t>);
}
#if defined(__x86_64__)
TENON_KERNEL avx2_kernel(GemmCall call) {
  run_host_block(call, GemmScales{}, avx2::run_tile<std::uint16_t>);
}
TENON_KERNEL avx512_kernel(GemmCall call) {
  run_host_block(call, GemmScales{}, avx512::run_tile<std::uint16_t>);
}
#endif

}  // namespace tenon::TENON_TARGET::bf16_gemm
