// What the tensor cores of Hopper make of e4m3 and of bf16, in integers: bit for bit the sums of
// wgmma, for every width of the instruction and whichever operand is called A. Finite operands, no
// overflow.
//
// One instruction adds 32 products of e4m3, or 16 of bf16, to an accumulator, all at once:
// 1. The exponent of a product is the sum of its operands' exponents (subnormal operands have the
//    smallest normal exponent); its significand, in [0, 4), is not normalised first.
// 2. `top` is the largest exponent of the nonzero products and of the accumulator.
// 3. Each product, and the accumulator, is cut towards zero to a multiple of 2^(top - 13), of bf16
//    2^(top - 25). The cut values are added exactly: no order matters.
// 4. The sum is cut towards zero to 13 bits behind the leading one, of bf16 23.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace tenon::test {

// What differs between the two kinds of operands.
struct WgmmaKind {
  int depth;         // elements of k of one instruction
  int fractions;     // bits behind the point of a significand
  int min_exponent;  // of an operand
  int term_bits;     // that are kept behind the largest exponent
  int sum_bits;      // that are kept behind the leading one of the sum
};
inline constexpr WgmmaKind kWgmmaE4m3{32, 3, -6, 13, 13};
inline constexpr WgmmaKind kWgmmaBf16{16, 7, -126, 25, 23};

// value · 2^(exponent - fractions).
struct NumberParts {
  std::int64_t value = 0;
  int exponent = 0;
};
inline NumberParts parts_of(float number, const WgmmaKind& kind) {
  if (number == 0.0f) return {};
  const int exponent = std::max(std::ilogb(number), kind.min_exponent);
  return {static_cast<std::int64_t>(std::ldexp(number, kind.fractions - exponent)), exponent};
}

// value · 2^-by, cut towards zero.
inline std::int64_t cut_towards_zero(std::int64_t value, int by) {
  if (by <= 0) return value * (std::int64_t{1} << -by);
  if (by > 62) return 0;
  return value / (std::int64_t{1} << by);
}

// x, w: the operands, kind.depth numbers of its type each. sum: that of an earlier instruction, or
// zero.
inline float wgmma(const float* x, const float* w, float sum, const WgmmaKind& kind) {
  constexpr int kNone = -1000;
  int top = sum == 0.0f ? kNone : std::ilogb(sum);
  const int sum_exponent = top;
  for (int k = 0; k < kind.depth; ++k)
    if (x[k] != 0.0f && w[k] != 0.0f)
      top = std::max(top, parts_of(x[k], kind).exponent + parts_of(w[k], kind).exponent);
  if (top == kNone) return 0.0f;
  const int unit = top - kind.term_bits;  // everything becomes a multiple of 2^unit
  std::int64_t total = 0;
  if (sum != 0.0f)
    total = cut_towards_zero(static_cast<std::int64_t>(std::ldexp(sum, 23 - sum_exponent)),
                             unit - (sum_exponent - 23));
  for (int k = 0; k < kind.depth; ++k) {
    const NumberParts a = parts_of(x[k], kind), b = parts_of(w[k], kind);
    if (a.value == 0 || b.value == 0) continue;
    total +=
        cut_towards_zero(a.value * b.value, unit - (a.exponent + b.exponent - 2 * kind.fractions));
  }
  const auto size = static_cast<std::uint64_t>(total < 0 ? -total : total);
  const int drop = std::max(static_cast<int>(std::bit_width(size)) - 1 - kind.sum_bits, 0);
  total = cut_towards_zero(total, drop) * (std::int64_t{1} << drop);
  return std::ldexp(static_cast<float>(total), unit);
}

// The block sum of 128 of k: one chain of instructions, from zero.
inline float wgmma_block(const float* x, const float* w, const WgmmaKind& kind) {
  float sum = 0.0f;
  for (int k = 0; k < 128; k += kind.depth) sum = wgmma(x + k, w + k, sum, kind);
  return sum;
}

// How far a block sum of e4m3 may be from the exact one, as a part of the sum of its terms'
// magnitudes: an instruction cuts 33 terms and their sum, each by less than 2^-13 of the largest.
inline constexpr double kWgmmaBlockError = 128 / kWgmmaE4m3.depth * 34 * 0x1p-13;

}  // namespace tenon::test
