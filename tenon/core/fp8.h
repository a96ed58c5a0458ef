// The only rounding rules in the house: bf16, fp16, e4m3 (fn and fnuz) and e5m2 codecs and the
// scale of a quantisation group (design: docs/boundary.md, steps 9 and 10). Host and device,
// integer arithmetic only, so that every target produces the same bits. Not here: loads, stores,
// groups spread over lanes (ops/common/quantize.cuh).
#pragma once

#include <bit>
#include <cstdint>

#include "tenon/core/dtype.h"

namespace tenon {

struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

TENON_HD inline std::uint32_t float_bits(float value) {
  return __builtin_bit_cast(std::uint32_t, value);
}
TENON_HD inline float bits_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
TENON_HD inline bool is_nan(float value) { return (float_bits(value) & 0x7fffffffu) > 0x7f800000u; }

// --- bf16 -----------------------------------------------------------------------------------

TENON_HD inline float to_float(bf16 value) { return bits_float(std::uint32_t{value.bits} << 16); }

// Round to nearest even; NaN becomes the quiet NaN 0x7fc0 with the sign kept.
TENON_HD inline bf16 to_bf16(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = ((bits >> 16) & 0x8000u) | 0x7fc0u;
  return bf16{static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}

// --- fp16 -----------------------------------------------------------------------------------

TENON_HD inline float to_float(f16 value) {
  const std::uint32_t sign = std::uint32_t{value.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x0400u) {  // zero and subnormals: magnitude · 2^-24, exact in fp32
    const float scaled = static_cast<float>(magnitude) * 0x1p-24f;
    return bits_float(sign | float_bits(scaled));
  }
  return bits_float(sign | ((magnitude << 13) + (112u << 23)));
}

// Round to nearest even; overflow becomes infinity; NaN becomes a quiet NaN with the sign kept.
TENON_HD inline f16 to_f16(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t out;
  if (magnitude > 0x7f800000u) {
    out = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    out = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, unit 2^-24
    // Adding 0.5 aligns the unit with bit 0 of the fp32 significand; the hardware add rounds to
    // even.
    const float aligned = bits_float(magnitude) + 0.5f;
    out = float_bits(aligned) - 0x3f000000u;
  } else {
    out = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return f16{static_cast<std::uint16_t>(sign | out)};
}

// --- 8-bit floats ---------------------------------------------------------------------------

// Largest finite magnitude a code can hold (docs/boundary.md step 10: FMAX).
TENON_HD constexpr float fp8_max(DType dtype) {
  switch (dtype) {
    case DType::kE4M3Fnuz: return 240.0f;
    case DType::kE5M2: return 57344.0f;
    default: return 448.0f;
  }
}

// Its reciprocal, rounded: the unit of fp32 scales.
TENON_HD constexpr float fp8_unit(DType dtype) {
  switch (dtype) {
    case DType::kE4M3Fnuz: return 1.0f / 240.0f;
    case DType::kE5M2: return 1.0f / 57344.0f;
    default: return 1.0f / 448.0f;
  }
}

// Rounds |value| to a float8 with kMantissa bits whose smallest normal is 2^kMinExponent; returns
// the code without its sign, where code 0 is zero and (1 << kMantissa) the smallest normal.
// Saturates at kMaxCode. |value| must not be NaN.
template <int kMantissa, int kMinExponent, std::uint32_t kMaxCode>
TENON_HD inline std::uint32_t round_magnitude(std::uint32_t magnitude) {
  constexpr int kShift = 23 - kMantissa;
  constexpr std::uint32_t kSmallestNormal = static_cast<std::uint32_t>(127 + kMinExponent) << 23;
  std::uint32_t code;
  if (magnitude < kSmallestNormal) {
    // Unit of the subnormals is 2^(kMinExponent - kMantissa); adding 2^(that + 23) rounds to it.
    constexpr std::uint32_t kAligner =
        static_cast<std::uint32_t>(127 + kMinExponent - kMantissa + 23) << 23;
    code = float_bits(bits_float(magnitude) + bits_float(kAligner)) - kAligner;
  } else {
    const std::uint32_t odd = (magnitude >> kShift) & 1u;
    const std::uint32_t rounded = magnitude + ((1u << (kShift - 1)) - 1u) + odd;
    code = (rounded - (kSmallestNormal - (1u << 23))) >> kShift;
  }
  return code < kMaxCode ? code : kMaxCode;
}

// Round to nearest even, saturating (±infinity included); NaN becomes the format's NaN.
// kE4M3: OCP e4m3fn. kE4M3Fnuz: no negative zero, NaN is 0x80. kE5M2: saturates to ±57344.
template <DType kType>
TENON_HD inline std::uint8_t to_fp8(float value) {
  static_assert(is_fp8(kType));
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const bool nan = magnitude > 0x7f800000u;
  if constexpr (kType == DType::kE4M3) {
    const std::uint32_t code = nan ? 0x7fu : round_magnitude<3, -6, 0x7eu>(magnitude);
    return static_cast<std::uint8_t>(sign | code);
  } else if constexpr (kType == DType::kE4M3Fnuz) {
    const std::uint32_t code = round_magnitude<3, -7, 0x7fu>(magnitude);
    return static_cast<std::uint8_t>(nan ? 0x80u : code == 0 ? 0u : (sign | code));
  } else {
    const std::uint32_t code = nan ? 0x7fu : round_magnitude<2, -14, 0x7bu>(magnitude);
    return static_cast<std::uint8_t>(sign | code);
  }
}

template <DType kType>
TENON_HD inline float from_fp8(std::uint8_t code) {
  static_assert(is_fp8(kType));
  const std::uint32_t sign = (std::uint32_t{code} & 0x80u) << 24;
  const std::uint32_t magnitude = code & 0x7fu;
  if constexpr (kType == DType::kE4M3) {
    if (magnitude == 0x7fu) return bits_float(sign | 0x7fc00000u);
    if (magnitude < 8u)
      return bits_float(sign | float_bits(static_cast<float>(magnitude) * 0x1p-9f));
    return bits_float(sign | ((magnitude << 20) + (120u << 23)));
  } else if constexpr (kType == DType::kE4M3Fnuz) {
    if (code == 0x80u) return bits_float(0x7fc00000u);
    if (magnitude < 8u)
      return bits_float(sign | float_bits(static_cast<float>(magnitude) * 0x1p-10f));
    return bits_float(sign | ((magnitude << 20) + (119u << 23)));
  } else {
    return to_float(f16{static_cast<std::uint16_t>(std::uint32_t{code} << 8)});
  }
}

// --- the scale of one group (docs/boundary.md step 10) -------------------------------------------

// `scale` multiplies codes back to values; `multiplier` is applied before rounding to a code.
struct GroupScale {
  float scale;
  float multiplier;
};

// absmax: the group's max |n|, NaN if any element is NaN. fp32 scales.
TENON_HD inline GroupScale group_scale(float absmax, DType fp8) {
  const float floored = absmax < 1e-10f ? 1e-10f : absmax;  // a NaN fails the test and stays
  return {floored * fp8_unit(fp8), fp8_max(fp8) / floored};
}

// A power-of-two scale: the exponent biased by 127, as stored, and the factor applied to values.
struct Ue8m0Scale {
  std::uint32_t biased;
  float multiplier;
};

// UE8M0 scales: e = ceil(log2(floored absmax / fmax)) from the float's bits. NaN gives 255 and NaN;
// an infinite absmax gives e = 128, whose byte is 255 too, with finite codes.
TENON_HD inline Ue8m0Scale ue8m0_scale(float absmax, DType fp8) {
  const std::uint32_t bits = float_bits(group_scale(absmax, fp8).scale);
  if (bits > 0x7f800000u) return {255u, bits_float(0x7fc00000u)};
  const std::uint32_t biased = (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1u : 0u);
  if (biased >= 254u) return {biased, biased == 254u ? 0x1p-127f : 0x1p-128f};
  return {biased, bits_float((254u - biased) << 23)};
}

}  // namespace tenon
