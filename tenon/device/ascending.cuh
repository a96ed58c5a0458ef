// Floats as unsigned integers in the same order, and back: −0 stands before 0, and a NaN before or
// behind all numbers, as its sign says.
#pragma once

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET {

TENON_DEVICE std::uint32_t ascending_bits(float x) {
  const std::uint32_t bits = float_bits(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
TENON_DEVICE float ascending_float(std::uint32_t bits) {
  return bits_float((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}

}  // namespace tenon::TENON_TARGET
