// Head norm and rotary embedding of single components, for every kernel that does them: the
// roundings are those of ops/rope/rope.h. Not here: the sum of squares, whose order is that of
// dot() (ops/common/simd.cuh).
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"

namespace tenon::TENON_TARGET {

TENON_DEVICE float head_rstd(float squares, int head_dim, float eps) {
  return rsqrt_f(squares / static_cast<float>(head_dim) + eps);
}

// rne(x · rstd · (offset + weight)).
TENON_DEVICE float normed_component(float x, float rstd, float offset, float weight) {
  return to_float(to_bf16(x * rstd * (offset + weight)));
}

struct RotatedPair {
  bf16 first, second;
};
TENON_DEVICE RotatedPair rotate_pair(float first, float second, float cosine, float sine) {
  return {to_bf16(first * cosine - second * sine), to_bf16(second * cosine + first * sine)};
}

}  // namespace tenon::TENON_TARGET
