// The activation of an mlp, silu(gate) · up: the same bits wherever it is computed.
#pragma once

#include "tenon/device/math.cuh"
#include "tenon/ops/common/wide.cuh"

namespace tenon::TENON_TARGET {

TENON_DEVICE float silu_mul_f(float gate, float up) { return gate / (1.0f + exp_f(-gate)) * up; }

// rne(silu(gate) · up) of 16-bit elements.
template <class T, int kVectors>
TENON_DEVICE void silu_mul(const std::byte* gate_at, const std::byte* up_at, Word4* to) {
  float gate[kVectors * kVector], up[kVectors * kVector];
  load_floats<T, kVectors>(reinterpret_cast<const T*>(gate_at), gate);
  load_floats<T, kVectors>(reinterpret_cast<const T*>(up_at), up);
  for (int k = 0; k < kVectors * kVector; ++k) gate[k] = silu_mul_f(gate[k], up[k]);
  round_pack<T, kVectors>(gate, to);
}

}  // namespace tenon::TENON_TARGET
