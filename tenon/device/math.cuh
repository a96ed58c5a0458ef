// Scalar fp32 functions for kernels. They are built from +, −, ·, / and bits only, so one call
// gives the same bits on every target, and loops over them vectorise on the cpu target. Not here:
// anything in a lower precision than fp32 (core/fp8.h), reductions (reduce.cuh).
//
// Errors in units of the last place, denormal results included: exp_f and log_f below 1.1, log1p_f,
// softplus_f, sigmoid_f and silu_f below 3 (silu_f: or 2^-142); sqrt_f, fma_f and abs_f are
// correctly rounded. NaN in, NaN out; infinities as in the C library.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET {

TENON_DEVICE float abs_f(float x) { return bits_float(float_bits(x) & 0x7fffffffu); }

// The larger or smaller one; a NaN on either side wins, so that damage stays visible.
TENON_DEVICE float max_f(float a, float b) { return ((a > b) | (a != a)) ? a : b; }
TENON_DEVICE float min_f(float a, float b) { return ((a < b) | (a != a)) ? a : b; }

// Correctly rounded square root, and one over it: the two roundings of docs/boundary.md step 7.
TENON_DEVICE float sqrt_f(float x) { return __builtin_sqrtf(x); }
TENON_DEVICE float rsqrt_f(float x) { return 1.0f / sqrt_f(x); }

// a · b + c with one rounding. Nothing is fused unless it is written with this.
TENON_DEVICE float fma_f(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

inline constexpr float kInfinity = __builtin_inff();

// e^x. x = n·ln2 + r with |r| <= ln2/2; a polynomial in r; then 2^n in two exact steps, so that
// only a denormal result is rounded again.
TENON_DEVICE float exp_f(float x) {
  const float low = x < -104.0f ? -104.0f : x;      // e^-104 rounds to 0
  const float bounded = low > 89.0f ? 89.0f : low;  // e^89 rounds to infinity
  constexpr float kRounder = 0x1.8p23f;             // adding it rounds to an integer
  const float shifted = bounded * 0x1.715476p0f + kRounder;
  const float n = shifted - kRounder;
  const float r = (bounded - n * 0x1.63p-1f) + n * 0x1.bd0106p-13f;  // ln2, split: n·high is exact
  float p = 0x1.a0d2cep-13f;
  p = p * r + 0x1.6e879cp-10f;
  p = p * r + 0x1.1112fap-7f;
  p = p * r + 0x1.555502p-5f;
  p = p * r + 0x1.555554p-3f;
  p = p * r + 0.5f;
  p = 1.0f + (r + r * r * p);
  const auto exponent = static_cast<std::int32_t>(float_bits(shifted) - float_bits(kRounder));
  const std::int32_t half = exponent >> 1;
  const float first = bits_float(static_cast<std::uint32_t>(127 + half) << 23);
  const float second = bits_float(static_cast<std::uint32_t>(127 + exponent - half) << 23);
  return p * first * second;
}

// Natural logarithm. x = 2^n·m with m in [√½, √2); a polynomial in m − 1.
TENON_DEVICE float log_f(float x) {
  const bool tiny = x < 0x1p-126f;
  const std::uint32_t bits = float_bits(tiny ? x * 0x1p23f : x);
  const std::uint32_t offset = bits - 0x3f3504f3u;  // √½: the mantissa's split point
  const auto exponent = static_cast<std::int32_t>(offset) >> 23;
  const float n = static_cast<float>(exponent - (tiny ? 23 : 0));
  const float f = bits_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  const float small = f * square * p - n * 0x1.bd0106p-13f - 0.5f * square;
  const float found = (f + small) + n * 0x1.63p-1f;
  const float edge = x == 0.0f ? -kInfinity : x < 0.0f ? bits_float(0x7fc00000u) : x;
  return ((x > 0.0f) & (x < kInfinity)) ? found : edge;  // the edge keeps NaN and +infinity
}

// log(1 + x) without the loss of small x: the rounding error of 1 + x is divided out.
TENON_DEVICE float log1p_f(float x) {
  const float w = 1.0f + x;
  const float d = w - 1.0f;
  const float corrected = log_f(w) * (x / d);
  return d == 0.0f ? x : (w < kInfinity ? corrected : log_f(w));
}

// log(1 + e^x), never overflowing.
TENON_DEVICE float softplus_f(float x) { return max_f(x, 0.0f) + log1p_f(exp_f(-abs_f(x))); }

// 1 / (1 + e^-x), and x times it. Through e^-|x|, which cannot overflow.
TENON_DEVICE float sigmoid_f(float x) {
  const float e = exp_f(-abs_f(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}
TENON_DEVICE float silu_f(float x) { return x * sigmoid_f(x); }

}  // namespace tenon::TENON_TARGET
