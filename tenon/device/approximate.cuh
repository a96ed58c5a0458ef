// Functions by the approximations of the device's special units, for variants whose bits are their
// own; where there are none, those of device/math.cuh. e^x is within 2 + |x| units of the last
// place and never denormal, silu within 5 + |x|.
#pragma once

#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"

namespace tenon::TENON_TARGET {

#if defined(__CUDACC__)
TENON_DEVICE float approximate_exp(float x) {
  float found;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x * 0x1.715476p+0f));
  return found;
}
TENON_DEVICE float approximate_silu(float x) {
  float found;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(1.0f + approximate_exp(-x)));
  return x * found;
}
#else
TENON_DEVICE float approximate_exp(float x) { return exp_f(x); }
TENON_DEVICE float approximate_silu(float x) { return silu_f(x); }
#endif

}  // namespace tenon::TENON_TARGET
