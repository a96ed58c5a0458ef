// What a boundary must give, written down from docs/boundary.md step by step: this is the
// definition that every kernel is judged by, in tests and in the bench. It is slow and plain, uses
// none of the codecs or kernels that it judges, and needs no device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tenon/core/tensor.h"

namespace tenon::reference {

// One boundary, apart from its numbers.
struct BoundaryCase {
  int rows = 1, hidden = 256, team = 2;
  DType dtype = DType::kBF16;         // of rows: bf16 or f16
  DType weight_dtype = DType::kBF16;  // that of rows, or f32
  float eps = 1e-6f, offset = 1.0f;
  bool fresh_residual = false;
  bool want_bf16 = true, want_fp8 = true;
  DType fp8 = DType::kE4M3;  // or kE4M3Fnuz
  int group = 128;
  ScaleLayout layout = ScaleLayout::kRow;
};
std::string describe(const BoundaryCase& shape);

// Bits of 16-bit elements, row-major; the weight as bits of its type in the low part.
struct BoundaryInputs {
  std::vector<std::vector<std::uint16_t>> addends;  // [team][rows × hidden]
  std::vector<std::uint16_t> residual;              // [rows × hidden]
  std::vector<std::uint32_t> weight;                // [hidden]
};

// Bits of everything a boundary writes. Scales as the bytes of their layout, padding included.
struct BoundaryOutputs {
  std::vector<std::uint16_t> residual, norm;  // [rows × hidden]
  std::vector<std::uint8_t> codes;            // [rows × hidden]
  std::vector<std::uint8_t> scales;
};

// All ten steps.
BoundaryOutputs boundary(const BoundaryCase& shape, const BoundaryInputs& inputs);

// Steps 9 and 10 alone, of rows that are given.
BoundaryOutputs quantize(const BoundaryCase& shape, const std::vector<std::uint16_t>& rows);

}  // namespace tenon::reference
