// fp8_gemm for processors (ops/common/host_gemm.cuh): a kernel per instruction set. Included for
// the cpu target only.
#pragma once

#include "tenon/ops/common/host_gemm.cuh"
#include "tenon/ops/fp8_gemm/call.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {

TENON_KERNEL lanes_kernel(Fp8Call call) {
  run_host_block(call.gemm, call.scales, lanes::run_tile<std::uint8_t>);
}
#if defined(__x86_64__)
TENON_KERNEL avx2_kernel(Fp8Call call) {
  run_host_block(call.gemm, call.scales, avx2::run_tile<std::uint8_t>);
}
TENON_KERNEL avx512_kernel(Fp8Call call) {
  run_host_block(call.gemm, call.scales, avx512::run_tile<std::uint8_t>);
}
#endif

}  // namespace tenon::TENON_TARGET::fp8_gemm
