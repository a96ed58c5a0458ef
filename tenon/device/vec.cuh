// Wide loads and stores: 16 bytes as 8 × bf16 or f16 (or 2 × 16 for f32) to and from float[8],
// and fp8 codes packed into words. Addresses are aligned to what is moved.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET {

// Two 16-bit elements of T in a word, the first in the low half.
template <class T>
TENON_DEVICE float low_half(std::uint32_t word) {
  if constexpr (kConvertsInHardware && __is_same(T, f16)) return convert_f16(word & 0xffffu);
  return to_float(T{static_cast<std::uint16_t>(word & 0xffffu)});
}
template <class T>
TENON_DEVICE float high_half(std::uint32_t word) {
  if constexpr (kConvertsInHardware && __is_same(T, f16)) return convert_f16(word >> 16);
  if constexpr (__is_same(T, bf16)) return bits_float(word & 0xffff0000u);
  return to_float(T{static_cast<std::uint16_t>(word >> 16)});
}

// Rounds to the 16-bit type T.
template <class T>
TENON_DEVICE T round_to(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (__is_same(T, bf16)) {
    return to_bf16(value);
  } else {
    return to_f16(value);
  }
}
TENON_DEVICE float to_float(float value) { return value; }
using tenon::to_float;

template <class T>
TENON_DEVICE std::uint32_t pack_halves(float low, float high) {
  if constexpr (kConvertsInHardware && __is_same(T, bf16)) return convert_bf16x2(low, high);
  if constexpr (kConvertsInHardware && __is_same(T, f16)) return convert_f16x2(low, high);
  return std::uint32_t{round_to<T>(low).bits} | std::uint32_t{round_to<T>(high).bits} << 16;
}

// Word4 ↔ eight floats.
template <class T>
TENON_DEVICE void unpack8(Word4 words, float (&out)[8]) {
  static_assert(sizeof(T) == 2);
  out[0] = low_half<T>(words.x);
  out[1] = high_half<T>(words.x);
  out[2] = low_half<T>(words.y);
  out[3] = high_half<T>(words.y);
  out[4] = low_half<T>(words.z);
  out[5] = high_half<T>(words.z);
  out[6] = low_half<T>(words.w);
  out[7] = high_half<T>(words.w);
}
template <class T>
TENON_DEVICE Word4 round_pack8(const float (&in)[8]) {
  static_assert(sizeof(T) == 2);
  return {pack_halves<T>(in[0], in[1]), pack_halves<T>(in[2], in[3]), pack_halves<T>(in[4], in[5]),
          pack_halves<T>(in[6], in[7])};
}

// Eight consecutive elements of bf16, f16 or float; stores round.
template <class T>
TENON_DEVICE void load8(const T* at, float (&out)[8]) {
  if constexpr (sizeof(T) == 4) {
    const Word4 low = load16(at), high = load16(at + 4);
    const std::uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = bits_float(words[i]);
  } else {
    unpack8<T>(load16(at), out);
  }
}
template <class T>
TENON_DEVICE void store8(T* at, const float (&in)[8]) {
  if constexpr (sizeof(T) == 4) {
    store16(at, Word4{float_bits(in[0]), float_bits(in[1]), float_bits(in[2]), float_bits(in[3])});
    store16(at + 4,
            Word4{float_bits(in[4]), float_bits(in[5]), float_bits(in[6]), float_bits(in[7])});
  } else {
    store16(at, round_pack8<T>(in));
  }
}

// e4m3fnuz where the device makes e4m3fn. The code of x in the one is that of 2x in the other, but
// at the upper end, where fnuz has one more number, and for NaN and negative zero.
TENON_DEVICE std::uint32_t fnuz_code(std::uint32_t code_of_twice, float value) {
  const float magnitude = bits_float(float_bits(value) & 0x7fffffffu);
  std::uint32_t code = magnitude > 232.0f ? code_of_twice | 0x7fu : code_of_twice;
  code = (code & 0x7fu) == 0 ? 0u : code;
  return value != value ? 0x80u : code;
}

// Four fp8 codes in a word, the first in the low byte.
template <DType kType>
TENON_DEVICE std::uint32_t pack_fp8x4(float a, float b, float c, float d) {
  if constexpr (kConvertsInHardware) {
    if constexpr (kType == kNativeFp8) return convert_fp8x4(a, b, c, d);
    if constexpr (kType == DType::kE4M3Fnuz && kNativeFp8 == DType::kE4M3) {
      const std::uint32_t twice = convert_fp8x4(a + a, b + b, c + c, d + d);
      return fnuz_code(twice & 0xffu, a) | fnuz_code(twice >> 8 & 0xffu, b) << 8 |
             fnuz_code(twice >> 16 & 0xffu, c) << 16 | fnuz_code(twice >> 24, d) << 24;
    }
  }
  return std::uint32_t{to_fp8<kType>(a)} | std::uint32_t{to_fp8<kType>(b)} << 8 |
         std::uint32_t{to_fp8<kType>(c)} << 16 | std::uint32_t{to_fp8<kType>(d)} << 24;
}
template <DType kType>
TENON_DEVICE void unpack_fp8x4(std::uint32_t word, float (&out)[4]) {
  TENON_UNROLL
  for (int i = 0; i < 4; ++i)
    out[i] = from_fp8<kType>(static_cast<std::uint8_t>(word >> (8 * i) & 0xffu));
}

// Eight values as fp8 codes: one 8-byte store.
template <DType kType>
TENON_DEVICE void store_fp8x8(void* at, const float (&in)[8]) {
  store8_bytes(at, pack_fp8x4<kType>(in[0], in[1], in[2], in[3]),
               pack_fp8x4<kType>(in[4], in[5], in[6], in[7]));
}
// Sixteen fp8 codes: one 16-byte load.
template <DType kType>
TENON_DEVICE void load_fp8x16(const void* at, float (&out)[16]) {
  const Word4 words = load16(at);
  const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
  TENON_UNROLL
  for (int i = 0; i < 16; ++i)
    out[i] = from_fp8<kType>(static_cast<std::uint8_t>(word[i / 4] >> (8 * (i % 4)) & 0xffu));
}

}  // namespace tenon::TENON_TARGET
