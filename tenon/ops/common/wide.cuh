// Several neighbouring vectors of a row as one array of floats. On the targets with waves a thread
// takes one vector of 16 bytes at a time; on cpu it takes kWide of them, in plain loops over many
// elements that the compiler vectorises. The arithmetic of an element is the same either way.
// Not here: single vectors (device/vec.cuh), what is done with a row (row.cuh, quantize.cuh).
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET {

inline constexpr int kVector = 8;  // elements of a 16-bit type in 16 bytes
inline constexpr int kWide = kWave == 1 ? 8 : 1;

// step.operator()<kVectors>(first) for [0, count) in steps of kWide vectors, then one by one.
// kMaxSpan up to 4: a loop of constant length, so that what is indexed by it stays in registers.
template <int kMaxSpan, class Step>
TENON_DEVICE void for_vectors(int count, Step step) {
  if constexpr (kWave == 1) {
    int i = 0;
    for (; i + kWide <= count; i += kWide) step.template operator()<kWide>(i);
    for (; i < count; ++i) step.template operator()<1>(i);
  } else if constexpr (kMaxSpan <= 4) {
    TENON_UNROLL
    for (int i = 0; i < kMaxSpan; ++i)
      if (i < count) step.template operator()<1>(i);
  } else {
    for (int i = 0; i < count; ++i) step.template operator()<1>(i);
  }
}

// Moves are one copy on cpu: what is stored in small pieces cannot be loaded at once soon after.
template <int kVectors>
TENON_DEVICE void load_vectors(const void* from, Word4* to) {
  if constexpr (kVectors == 1) {
    *to = load16(from);
  } else {
    __builtin_memcpy(to, from, kVectors * sizeof(Word4));
  }
}
template <int kVectors>
TENON_DEVICE void store_vectors(void* to, const Word4* from) {
  if constexpr (kVectors == 1) {
    store16(to, *from);
  } else {
    __builtin_memcpy(to, from, kVectors * sizeof(Word4));
  }
}

// 16-bit elements ↔ floats.
template <class T, int kVectors>
TENON_DEVICE void unpack(const void* from, float (&to)[kVectors * kVector]) {
  if constexpr (kVectors == 1) {
    unpack8<T>(load16(from), to);
  } else {
    std::uint16_t bits[kVectors * kVector];
    __builtin_memcpy(bits, from, sizeof bits);
    for (int k = 0; k < kVectors * kVector; ++k) to[k] = to_float(T{bits[k]});
  }
}
template <class T, int kVectors>
TENON_DEVICE void round_pack(const float (&from)[kVectors * kVector], Word4* to) {
  if constexpr (kVectors == 1) {
    *to = round_pack8<T>(from);
  } else {
    std::uint16_t bits[kVectors * kVector];
    for (int k = 0; k < kVectors * kVector; ++k) bits[k] = round_to<T>(from[k]).bits;
    __builtin_memcpy(to, bits, sizeof bits);
  }
}

// Rounds every element to T and back.
template <class T, int kSize>
TENON_DEVICE void round_through(float (&values)[kSize]) {
  if constexpr (kConvertsInHardware) {
    TENON_UNROLL
    for (int k = 0; k < kSize; k += 2) {
      const std::uint32_t both = pack_halves<T>(values[k], values[k + 1]);
      values[k] = low_half<T>(both);
      values[k + 1] = high_half<T>(both);
    }
  } else {
    for (int k = 0; k < kSize; ++k) values[k] = to_float(round_to<T>(values[k]));
  }
}

// Elements [at, at + 8 · kVectors) of T or float.
template <class T, int kVectors>
TENON_DEVICE void load_floats(const T* at, float (&to)[kVectors * kVector]) {
  if constexpr (sizeof(T) == 2) {
    unpack<T, kVectors>(at, to);
  } else if constexpr (kVectors == 1) {
    load8(at, to);
  } else {
    __builtin_memcpy(to, at, sizeof to);
  }
}

// The largest magnitude, as bits of T. NaN patterns lie above infinity: an integer maximum keeps
// them.
TENON_DEVICE std::uint32_t larger(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }
template <int kVectors>
TENON_DEVICE std::uint32_t absmax_bits(const Word4* from) {
  if constexpr (kVectors == 1) {
    const std::uint32_t words[4] = {from->x, from->y, from->z, from->w};
    std::uint32_t most = 0;
    TENON_UNROLL
    for (int i = 0; i < 4; ++i)
      most = larger(most, larger(words[i] & 0x7fffu, words[i] >> 16 & 0x7fffu));
    return most;
  } else {
    std::uint16_t bits[kVectors * kVector];
    __builtin_memcpy(bits, from, sizeof bits);
    std::uint16_t most = 0;
    for (int k = 0; k < kVectors * kVector; ++k) {
      const auto magnitude = static_cast<std::uint16_t>(bits[k] & 0x7fffu);
      most = magnitude > most ? magnitude : most;
    }
    return most;
  }
}

// Codes of element · multiplier, to `at`.
template <class T, DType kFp8, int kVectors>
TENON_DEVICE void encode(const Word4* from, float multiplier, void* at) {
  float n[kVectors * kVector];
  unpack<T, kVectors>(from, n);
  if constexpr (kVectors == 1) {
    TENON_UNROLL
    for (int k = 0; k < kVector; ++k) n[k] = n[k] * multiplier;
    store_fp8x8<kFp8>(at, n);
  } else {
    std::uint8_t codes[kVectors * kVector];
    for (int k = 0; k < kVectors * kVector; ++k) codes[k] = to_fp8<kFp8>(n[k] * multiplier);
    __builtin_memcpy(at, codes, sizeof codes);
  }
}

}  // namespace tenon::TENON_TARGET
