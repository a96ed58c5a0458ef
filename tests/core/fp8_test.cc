// Codecs and scales against one plain oracle: the list of all finite values of a format, in
// doubles, and the nearest of them. It knows nothing of bits beyond what decoding needs.
#include "tenon/core/fp8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace tenon {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A small float as its definition says it.
struct Format {
  int exponent_bits, mantissa_bits, bias;
  bool has_infinity;  // the highest exponent is for infinity and NaN
  bool fnuz;          // no infinity, no −0; NaN is the code of −0
  bool saturates;
  int num_codes() const { return 1 << (exponent_bits + mantissa_bits); }  // without the sign
};
constexpr Format kE4M3Format{4, 3, 7, false, false, true};
constexpr Format kE4M3FnuzFormat{4, 3, 8, false, true, true};
constexpr Format kE5M2Format{5, 2, 15, true, false, true};
constexpr Format kBf16Format{8, 7, 127, true, false, false};
constexpr Format kF16Format{5, 10, 15, true, false, false};

// The magnitude that a code without its sign stands for; NaN and infinity included.
double decode(const Format& format, int code) {
  const int exponent = code >> format.mantissa_bits;
  const int mantissa = code & ((1 << format.mantissa_bits) - 1);
  const int top = (1 << format.exponent_bits) - 1;
  if (format.has_infinity && exponent == top) return mantissa == 0 ? INFINITY : NAN;
  if (!format.has_infinity && !format.fnuz && code == format.num_codes() - 1) return NAN;
  const double fraction = std::ldexp(mantissa, -format.mantissa_bits);
  if (exponent == 0) return std::ldexp(fraction, 1 - format.bias);
  return std::ldexp(1.0 + fraction, exponent - format.bias);
}

// Finite magnitudes in order: index is the code.
std::vector<double> magnitudes(const Format& format) {
  std::vector<double> found;
  for (int code = 0; code < format.num_codes(); ++code) {
    const double value = decode(format, code);
    if (!std::isfinite(value)) break;
    found.push_back(value);
  }
  return found;
}

// The nearest code, ties to the even one; past the last one, saturates or returns its successor
// (infinity) from half a step on.
int nearest(const Format& format, const std::vector<double>& values, double magnitude) {
  const int last = static_cast<int>(values.size()) - 1;
  const double step =
      values[static_cast<std::size_t>(last)] - values[static_cast<std::size_t>(last - 1)];
  if (magnitude >= values[static_cast<std::size_t>(last)]) {
    if (format.saturates) return last;
    return magnitude >= values[static_cast<std::size_t>(last)] + step / 2 ? last + 1 : last;
  }
  const auto above = std::upper_bound(values.begin(), values.end(), magnitude);
  const int high = static_cast<int>(above - values.begin()), low = high - 1;
  const double to_low = magnitude - values[static_cast<std::size_t>(low)];
  const double to_high = values[static_cast<std::size_t>(high)] - magnitude;
  if (to_low != to_high) return to_low < to_high ? low : high;
  return low % 2 == 0 ? low : high;
}

// Values worth trying: every representable one, every midpoint, and their fp32 neighbours; the ends
// of fp32; and a lattice of bit patterns.
std::vector<float> interesting(const std::vector<double>& values, std::uint32_t lattice_step) {
  std::vector<float> found;
  const auto add = [&](double value) {
    const auto single = static_cast<float>(value);
    for (float each : {single, std::nextafter(single, kInf), std::nextafter(single, -kInf)})
      found.insert(found.end(), {each, -each});
  };
  for (std::size_t i = 0; i < values.size(); ++i) {
    add(values[i]);
    if (i + 1 < values.size()) add((values[i] + values[i + 1]) / 2);
  }
  const double last = values.back(), step = last - values[values.size() - 2];
  for (double beyond : {last + step / 2, last + step, 2 * last, 1e30}) add(beyond);
  add(std::numeric_limits<float>::denorm_min());
  add(std::numeric_limits<float>::min());
  add(std::numeric_limits<float>::max());
  found.insert(found.end(), {kInf, -kInf, 0.0f, -0.0f});
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += lattice_step) {
    const float value = bits_float(static_cast<std::uint32_t>(bits));
    if (!std::isnan(value)) found.push_back(value);
  }
  return found;
}

template <DType kType>
void check_fp8(const Format& format, float largest) {
  const std::vector<double> values = magnitudes(format);
  EXPECT_EQ(values.back(), static_cast<double>(largest));
  EXPECT_EQ(fp8_max(kType), largest);

  // All 256 codes, both ways.
  int num_nans = 0;
  for (int code = 0; code < 256; ++code) {
    const float value = from_fp8<kType>(static_cast<std::uint8_t>(code));
    const bool negative = code >= 128;
    const double magnitude = decode(format, code & 127);
    if (std::isnan(magnitude) || (format.fnuz && code == 128)) {
      EXPECT_TRUE(std::isnan(value)) << code;
      ++num_nans;
      continue;
    }
    EXPECT_EQ(static_cast<double>(value), negative ? -magnitude : magnitude) << code;
    EXPECT_EQ(std::signbit(value), negative) << code;
    if (std::isfinite(value))
      EXPECT_EQ(to_fp8<kType>(value), code);
    else
      EXPECT_EQ(from_fp8<kType>(to_fp8<kType>(value)), negative ? -largest : largest);
  }
  EXPECT_EQ(num_nans, format.fnuz ? 1 : format.has_infinity ? 6 : 2);

  for (float value : interesting(values, 997)) {
    const int magnitude = nearest(format, values, std::fabs(static_cast<double>(value)));
    int want = magnitude | (std::signbit(value) ? 128 : 0);
    if (format.fnuz && magnitude == 0) want = 0;
    ASSERT_EQ(to_fp8<kType>(value), want) << value;
  }
  for (std::uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu})
    EXPECT_TRUE(std::isnan(from_fp8<kType>(to_fp8<kType>(bits_float(bits))))) << bits;
}

TEST(Fp8, E4m3MatchesTheListOfItsValues) { check_fp8<DType::kE4M3>(kE4M3Format, 448.0f); }
TEST(Fp8, E4m3FnuzMatchesTheListOfItsValues) {
  check_fp8<DType::kE4M3Fnuz>(kE4M3FnuzFormat, 240.0f);
}
TEST(Fp8, E5m2MatchesTheListOfItsValues) { check_fp8<DType::kE5M2>(kE5M2Format, 57344.0f); }

TEST(Fp8, KnownCodes) {
  EXPECT_EQ(to_fp8<DType::kE4M3>(448.0f), 0x7e);
  EXPECT_EQ(to_fp8<DType::kE4M3>(1.0f), 0x38);
  EXPECT_EQ(to_fp8<DType::kE4M3>(-0.0f), 0x80);
  EXPECT_EQ(to_fp8<DType::kE4M3>(kNan), 0x7f);
  EXPECT_EQ(to_fp8<DType::kE4M3Fnuz>(240.0f), 0x7f);
  EXPECT_EQ(to_fp8<DType::kE4M3Fnuz>(1.0f), 0x40);
  EXPECT_EQ(to_fp8<DType::kE4M3Fnuz>(-0.0f), 0x00);
  EXPECT_EQ(to_fp8<DType::kE4M3Fnuz>(kNan), 0x80);
  EXPECT_EQ(to_fp8<DType::kE5M2>(1.0f), 0x3c);
  EXPECT_EQ(to_fp8<DType::kE5M2>(kInf), 0x7b);
}

template <class T, class Encode>
void check_16_bit(const Format& format, Encode encode, std::uint32_t step) {
  const std::vector<double> values = magnitudes(format);
  for (int code = 0; code < 65536; ++code) {
    const float value = to_float(T{static_cast<std::uint16_t>(code)});
    const double magnitude = decode(format, code & 0x7fff);
    if (std::isnan(magnitude)) {
      ASSERT_TRUE(std::isnan(value)) << code;
      ASSERT_TRUE(std::isnan(to_float(encode(value)))) << code;
      ASSERT_EQ(encode(value).bits >> 15, code >> 15) << "a NaN keeps its sign";
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), code >= 32768 ? -magnitude : magnitude) << code;
    ASSERT_EQ(std::signbit(value), code >= 32768) << code;
    ASSERT_EQ(encode(value).bits, code);
  }
  for (float value : interesting(values, step)) {
    const int magnitude = nearest(format, values, std::fabs(static_cast<double>(value)));
    const int want = magnitude | (std::signbit(value) ? 0x8000 : 0);
    ASSERT_EQ(encode(value).bits, want) << value;
  }
  for (std::uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu, 0x7fffffffu})
    EXPECT_TRUE(std::isnan(to_float(encode(bits_float(bits))))) << bits;
}

TEST(Bf16, EveryCodeAndTheNearestOne) {
  check_16_bit<bf16>(
      kBf16Format, [](float value) { return to_bf16(value); }, 4'999);
}
TEST(F16, EveryCodeAndTheNearestOne) {
  check_16_bit<f16>(
      kF16Format, [](float value) { return to_f16(value); }, 4'999);
}

TEST(Oracle, TiesGoToTheEvenCode) {  // the oracle itself, on values one can check by hand
  const std::vector<double> values = magnitudes(kE4M3Format);
  EXPECT_EQ(nearest(kE4M3Format, values, 17.0), 0x58);  // between 16 (0x58) and 18 (0x59)
  EXPECT_EQ(nearest(kE4M3Format, values, 19.0), 0x5a);  // between 18 (0x59) and 20 (0x5a)
  EXPECT_EQ(nearest(kE4M3Format, values, 17.1), 0x59);
  EXPECT_EQ(nearest(kE4M3Format, values, 1e9), 0x7e);
}

// --- scales -----------------------------------------------------------------------------------

std::vector<float> absmaxes() {
  std::vector<float> found = {0.0f,   1e-12f, 1e-10f, 1.1e-10f, 1.0f,
                              447.0f, 448.0f, 449.0f, 3e38f,    kInf};
  std::mt19937 random(4);
  for (int i = 0; i < 20'000; ++i) found.push_back(bits_float(random() & 0x7f7fffffu));
  for (int e = -40; e < 40; ++e)  // where log2(a / FMAX) is whole, or almost
    for (float fmax : {448.0f, 240.0f}) {
      const float exact = std::ldexp(fmax, e);
      found.insert(found.end(), {exact, std::nextafter(exact, 0.0f), std::nextafter(exact, kInf)});
    }
  return found;
}

TEST(GroupScale, IsTheFormulaInSinglePrecision) {
  for (const DType fp8 : {DType::kE4M3, DType::kE4M3Fnuz}) {
    const float fmax = fp8_max(fp8);
    for (float absmax : absmaxes()) {
      const GroupScale found = group_scale(absmax, fp8);
      const float floored = std::fmax(absmax, 1e-10f);
      // Through doubles, rounded once each: the reciprocal, the product, the quotient.
      const auto reciprocal = static_cast<float>(1.0 / static_cast<double>(fmax));
      const auto scale =
          static_cast<float>(static_cast<double>(floored) * static_cast<double>(reciprocal));
      const auto multiplier =
          static_cast<float>(static_cast<double>(fmax) / static_cast<double>(floored));
      ASSERT_EQ(found.scale, scale) << absmax;
      ASSERT_EQ(found.multiplier, multiplier) << absmax;
    }
    EXPECT_TRUE(std::isnan(group_scale(kNan, fp8).scale));
    EXPECT_TRUE(std::isnan(group_scale(kNan, fp8).multiplier));
  }
}

TEST(GroupScale, LargestElementBecomesTheLargestCode) {
  for (float absmax : absmaxes()) {
    if (!(absmax >= 1e-10f) || absmax > 1e37f) continue;
    const GroupScale found = group_scale(absmax, DType::kE4M3);
    ASSERT_EQ(to_fp8<DType::kE4M3>(absmax * found.multiplier), 0x7e) << absmax;
  }
}

TEST(Ue8m0Scale, IsTheNextPowerOfTwo) {
  for (const DType fp8 : {DType::kE4M3, DType::kE4M3Fnuz}) {
    for (float absmax : absmaxes()) {
      const Ue8m0Scale found = ue8m0_scale(absmax, fp8);
      const float scale = group_scale(absmax, fp8).scale;
      if (std::isinf(scale)) {
        EXPECT_EQ(found.biased, 255u);
        continue;
      }
      int exponent = -200;  // the smallest e with 2^e >= scale, by search
      while (std::ldexp(1.0, exponent) < static_cast<double>(scale)) ++exponent;
      ASSERT_EQ(static_cast<int>(found.biased), exponent + 127) << absmax;
      ASSERT_EQ(static_cast<double>(found.multiplier), std::ldexp(1.0, -exponent)) << absmax;
    }
    const Ue8m0Scale nan = ue8m0_scale(kNan, fp8);
    EXPECT_EQ(nan.biased, 255u);
    EXPECT_TRUE(std::isnan(nan.multiplier));
  }
}

TEST(Ue8m0Scale, CodesNeverSaturate) {
  for (float absmax : absmaxes()) {
    if (absmax > 1e37f) continue;
    const float scaled = absmax * ue8m0_scale(absmax, DType::kE4M3).multiplier;
    ASSERT_LE(scaled, 448.0f * (1.0f + 0x1p-20f)) << absmax;
  }
}

}  // namespace
}  // namespace tenon
