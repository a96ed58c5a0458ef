#include "tenon/reference/formats.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tenon::reference {
namespace {

constexpr Grid kBf16Grid{7, -126, 127, 0x1.fep127, false};
constexpr Grid kF16Grid{10, -14, 15, 65504.0, false};
constexpr Grid kE4M3Grid{3, -6, 7, 448.0, true};
constexpr Grid kFnuzGrid{3, -7, 8, 240.0, true};

// Bits of a finite value of the grid, without the sign.
unsigned grid_bits(const Grid& grid, double magnitude) {
  if (magnitude == 0) return 0;
  const int exponent = std::max(std::ilogb(magnitude), grid.min_exponent);
  const auto steps = static_cast<unsigned>(std::ldexp(magnitude, grid.mantissa_bits - exponent));
  const auto field = static_cast<unsigned>(exponent + grid.bias);
  const unsigned one = 1u << grid.mantissa_bits;
  return steps < one ? steps : (field << grid.mantissa_bits) + (steps - one);
}

double grid_value(const Grid& grid, unsigned magnitude) {
  const unsigned one = 1u << grid.mantissa_bits;
  const unsigned field = magnitude >> grid.mantissa_bits, rest = magnitude & (one - 1);
  if (field == 0) return std::ldexp(rest, grid.min_exponent - grid.mantissa_bits);
  return std::ldexp(one + rest, static_cast<int>(field) - grid.bias - grid.mantissa_bits);
}

}  // namespace

const Grid& grid_of(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return kBf16Grid;
    case DType::kF16: return kF16Grid;
    case DType::kE4M3: return kE4M3Grid;
    default: return kFnuzGrid;
  }
}

// Exact: quantum is a power of two.
double to_grid(const Grid& grid, double value) {
  if (std::isnan(value) || value == 0) return value;
  const double most = grid.saturates ? grid.largest : std::numeric_limits<double>::infinity();
  if (std::isinf(value)) return std::copysign(most, value);
  const double quantum =
      std::ldexp(1.0, std::max(std::ilogb(value), grid.min_exponent) - grid.mantissa_bits);
  const double rounded = std::nearbyint(value / quantum) * quantum;
  return std::fabs(rounded) > grid.largest ? std::copysign(most, value) : rounded;
}

float value16(DType dtype, std::uint16_t bits) {
  const unsigned infinity = dtype == DType::kBF16 ? 0x7f80u : 0x7c00u;
  const unsigned magnitude = bits & 0x7fffu;
  double value = magnitude > infinity    ? std::numeric_limits<double>::quiet_NaN()
                 : magnitude == infinity ? std::numeric_limits<double>::infinity()
                                         : grid_value(grid_of(dtype), magnitude);
  return static_cast<float>((bits & 0x8000u) != 0 ? -value : value);
}

std::uint16_t bits16(DType dtype, double value) {  // of a value of the grid
  const unsigned infinity = dtype == DType::kBF16 ? 0x7f80u : 0x7c00u;
  const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
  if (std::isnan(value)) return static_cast<std::uint16_t>(infinity | 1u | sign);
  if (std::isinf(value)) return static_cast<std::uint16_t>(infinity | sign);
  return static_cast<std::uint16_t>(grid_bits(grid_of(dtype), std::fabs(value)) | sign);
}

std::uint8_t code8(DType fp8, double value) {
  const bool fnuz = fp8 == DType::kE4M3Fnuz;
  if (std::isnan(value)) return fnuz ? 0x80 : 0x7f;
  const double rounded = to_grid(grid_of(fp8), value);
  const unsigned magnitude = grid_bits(grid_of(fp8), std::fabs(rounded));
  const unsigned sign = std::signbit(value) && !(fnuz && magnitude == 0) ? 0x80u : 0u;
  return static_cast<std::uint8_t>(magnitude | sign);
}

float round16(DType dtype, float value) {
  return static_cast<float>(to_grid(grid_of(dtype), value));
}

bool is_nan16(DType dtype, std::uint16_t bits) {
  return (bits & 0x7fffu) > (dtype == DType::kBF16 ? 0x7f80u : 0x7c00u);
}
bool is_nan8(DType fp8, std::uint8_t bits) {
  return fp8 == DType::kE4M3Fnuz ? bits == 0x80 : (bits & 0x7fu) == 0x7fu;
}

}  // namespace tenon::reference
