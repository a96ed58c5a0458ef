// An element of a made weight, by its place: what hosts and devices compute alike. Integers, one
// multiplication and one addition in fp32; nothing is contracted.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tenon/core/dtype.h"
#include "tenon/core/fp8.h"

namespace tenon::make_weights {

// A tensor that is made. Elements are uniform between center − spread and center + spread; those of
// e4m3 are codes of random sign and exponent below 2.
struct Made {
  std::uint64_t key = 0;       // of its name and of the seed
  DType dtype = DType::kBF16;  // bf16, f32 or e4m3
  float center = 0, spread = 1;
  bool skewed_rows = false;  // row r is row_factor(key, r) times as spread
};

constexpr std::size_t kWordBytes = 8;  // elements are made so many bytes at a time
constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15u;
// Of eight codes: no exponent of 8 and more, so never NaN.
constexpr std::uint64_t kCodeBits = 0xbfbfbfbfbfbfbfbfu;
constexpr float kLeastRow = 0.5f, kRowRange = 3.5f;  // sizes of skewed rows

// splitmix64's output: every bit depends on every bit.
TENON_HD constexpr std::uint64_t mixed(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// The random bits of the eight bytes with this number in the whole tensor.
TENON_HD constexpr std::uint64_t bits_of(std::uint64_t key, std::uint64_t word) {
  return mixed(key + (word + 1) * kStep);
}

// The size of a skewed row.
TENON_HD inline float row_factor(std::uint64_t key, std::uint64_t row) {
  const std::uint64_t bits = mixed(~key + (row + 1) * kStep);
  const float unit = static_cast<float>(bits >> 40) * 0x1p-24f;
  const float square = unit * unit;
  return kLeastRow + kRowRange * (square * square);
}

// Eight codes.
TENON_HD constexpr std::uint64_t codes(std::uint64_t bits) { return bits & kCodeBits; }

// Lane 0 to 3 of a word of bf16.
TENON_HD inline bf16 bf16_of(std::uint64_t bits, int lane, float center, float spread) {
  const auto number = static_cast<std::int16_t>(bits >> (16 * lane));
  return to_bf16(center + static_cast<float>(number) * (spread * 0x1p-15f));
}

// Lane 0 or 1 of a word of f32.
TENON_HD inline float f32_of(std::uint64_t bits, int lane, float center, float spread) {
  const auto number = static_cast<std::int32_t>(bits >> (32 * lane)) >> 8;  // exact as f32
  return center + static_cast<float>(number) * (spread * 0x1p-23f);
}

}  // namespace tenon::make_weights
