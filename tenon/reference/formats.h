// The 16-bit and 8-bit float formats as grids of real numbers: every conversion by its definition,
// in double. Slow and plain on purpose; kernels have codecs of their own (core/fp8.h).
#pragma once

#include <cstdint>

#include "tenon/core/dtype.h"

namespace tenon::reference {

struct Grid {
  int mantissa_bits, min_exponent, bias;
  double largest;  // finite
  bool saturates;  // else: to infinity
};
const Grid& grid_of(DType dtype);  // bf16, f16, e4m3, e4m3fnuz

// The grid's nearest value, ties to even.
double to_grid(const Grid& grid, double value);
// The same for a type of 16 bits: rne_T of docs/boundary.md.
float round16(DType dtype, float value);

float value16(DType dtype, std::uint16_t bits);
std::uint16_t bits16(DType dtype, double value);  // `value` lies on the grid
std::uint8_t code8(DType fp8, double value);      // rounded to nearest even, saturating
bool is_nan16(DType dtype, std::uint16_t bits);
bool is_nan8(DType fp8, std::uint8_t bits);

}  // namespace tenon::reference
