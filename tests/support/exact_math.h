// The functions of device/math.cuh that oracles need to the bit, in plain C++.
#pragma once

#include <algorithm>
#include <cmath>

namespace tenon::test {

// For numbers: a NaN is not one.
inline float exact_exp(float x) {
  const float bounded = std::min(std::max(x, -104.0f), 89.0f);
  const float n = (bounded * 0x1.715476p0f + 0x1.8p23f) - 0x1.8p23f;
  const float r = (bounded - n * 0x1.63p-1f) + n * 0x1.bd0106p-13f;
  float p = 0x1.a0d2cep-13f;
  for (const float next : {0x1.6e879cp-10f, 0x1.1112fap-7f, 0x1.555502p-5f, 0x1.555554p-3f, 0.5f})
    p = p * r + next;
  return std::ldexp(1.0f + (r + r * r * p), static_cast<int>(n));
}

inline float exact_sigmoid(float x) {
  const float e = exact_exp(-std::abs(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

}  // namespace tenon::test
