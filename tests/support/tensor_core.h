// What the tensor cores of Hopper make of e4m3, in integers: bit for bit the sums of wgmma, for
// every width of the instruction and whichever operand is called A. Finite operands, no overflow.
//
// One instruction adds 32 products to an accumulator, all at once:
// 1. The exponent of a product is the sum of its operands' exponents (subnormal operands have the
//    smallest normal exponent); its significand, in [0, 4), is not normalised first.
// 2. `top` is the largest exponent of the nonzero products and of the accumulator.
// 3. Each product, and the accumulator, is cut towards zero to a multiple of 2^(top - 13). The cut
//    values are added exactly: no order matters.
// 4. The sum is cut towards zero to 13 bits behind the leading one.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace tenon::test {

inline constexpr int kWgmmaDepth = 32;  // elements of k
inline constexpr int kWgmmaBits = 13;   // that are kept, of terms and of the sum

// value · 2^(exponent - 3), |value| below 16.
struct E4m3Parts {
  std::int64_t value = 0;
  int exponent = 0;
};
inline E4m3Parts parts_of_e4m3(float number) {
  if (number == 0.0f) return {};
  const int exponent = std::max(std::ilogb(number), -6);
  return {static_cast<std::int64_t>(std::ldexp(number, 3 - exponent)), exponent};
}

// value · 2^-by, cut towards zero.
inline std::int64_t cut_towards_zero(std::int64_t value, int by) {
  if (by <= 0) return value * (std::int64_t{1} << -by);
  if (by > 62) return 0;
  return value / (std::int64_t{1} << by);
}

// x, w: 32 numbers of e4m3. sum: that of an earlier instruction, or zero.
inline float wgmma_e4m3(const float* x, const float* w, float sum) {
  constexpr int kNone = -1000;
  int top = sum == 0.0f ? kNone : std::ilogb(sum);
  const int sum_exponent = top;
  for (int k = 0; k < kWgmmaDepth; ++k)
    if (x[k] != 0.0f && w[k] != 0.0f)
      top = std::max(top, parts_of_e4m3(x[k]).exponent + parts_of_e4m3(w[k]).exponent);
  if (top == kNone) return 0.0f;
  const int unit = top - kWgmmaBits;  // everything becomes a multiple of 2^unit
  std::int64_t total = 0;
  if (sum != 0.0f)
    total = cut_towards_zero(static_cast<std::int64_t>(std::ldexp(sum, 23 - sum_exponent)),
                             unit - (sum_exponent - 23));
  for (int k = 0; k < kWgmmaDepth; ++k) {
    const E4m3Parts a = parts_of_e4m3(x[k]), b = parts_of_e4m3(w[k]);
    total += cut_towards_zero(a.value * b.value, unit - (a.exponent + b.exponent - 6));
  }
  const auto size = static_cast<std::uint64_t>(total < 0 ? -total : total);
  const int drop = std::max(static_cast<int>(std::bit_width(size)) - 1 - kWgmmaBits, 0);
  total = cut_towards_zero(total, drop) * (std::int64_t{1} << drop);
  return std::ldexp(static_cast<float>(total), unit);
}

// The block sum of fp8_gemm: four instructions in one chain, from zero.
inline float wgmma_block(const float* x, const float* w) {
  float sum = 0.0f;
  for (int k = 0; k < 128; k += kWgmmaDepth) sum = wgmma_e4m3(x + k, w + k, sum);
  return sum;
}

// How far a block sum may be from the exact one, as a part of the sum of its terms' magnitudes: an
// instruction cuts 33 terms and their sum, each by less than 2^-13 of the largest.
inline constexpr double kWgmmaBlockError = 128 / kWgmmaDepth * 34 * 0x1p-13;

}  // namespace tenon::test
