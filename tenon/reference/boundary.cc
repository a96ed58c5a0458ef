#include "tenon/reference/boundary.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tenon/reference/formats.h"
#include "tenon/reference/scales.h"

namespace tenon::reference {
namespace {

using std::size_t;

float weight_value(const BoundaryCase& shape, std::uint32_t bits) {
  if (shape.weight_dtype == DType::kF32) return std::bit_cast<float>(bits);
  return value16(shape.weight_dtype, static_cast<std::uint16_t>(bits));
}

// Steps 9 and 10 of one row of values.
void quantize_row(const BoundaryCase& shape, int row, const std::vector<float>& n,
                  std::uint8_t* codes, ScaleSink& scales) {
  const float fmax = shape.fp8 == DType::kE4M3 ? 448.0f : 240.0f;
  for (int group = 0; group * shape.group < shape.hidden; ++group) {
    const int begin = group * shape.group, end = begin + shape.group;
    float a = 0.0f;
    for (int k = begin; k < end; ++k) {
      const float magnitude = std::fabs(n[static_cast<size_t>(k)]);
      if (std::isnan(magnitude) || magnitude > a) a = magnitude;
      if (std::isnan(a)) break;
    }
    const float floored = std::isnan(a) ? a : std::max(a, 1e-10f);
    const float reciprocal = 1.0f / fmax;
    float multiplier = 0.0f;
    if (shape.layout != ScaleLayout::kUe8m0Packed) {
      multiplier = fmax / floored;
      scales.put(row, group, floored * reciprocal);
    } else if (std::isnan(a)) {
      multiplier = std::numeric_limits<float>::quiet_NaN();
      scales.put_exponent(row, group, 255);
    } else {
      // ceil(log2 x) of a positive float: x = m · 2^e with m in [0.5, 1).
      int exponent = 128;
      if (!std::isinf(a)) {
        const float mantissa = std::frexp(floored * reciprocal, &exponent);
        if (mantissa == 0.5f) --exponent;
      }
      multiplier = static_cast<float>(std::ldexp(1.0, -exponent));
      scales.put_exponent(row, group, static_cast<unsigned>(exponent + 127));
    }
    for (int k = begin; k < end; ++k)
      codes[k] = code8(shape.fp8, n[static_cast<size_t>(k)] * multiplier);
  }
}

// Step 6, literally: padded with +0 to the next power of two, then level by level.
float tree_sum(std::vector<float> p) {
  p.resize(std::bit_ceil(p.size()), 0.0f);
  while (p.size() > 1) {
    for (size_t i = 0; i < p.size() / 2; ++i) p[i] = p[2 * i] + p[2 * i + 1];
    p.resize(p.size() / 2);
  }
  return p[0];
}

}  // namespace

BoundaryOutputs boundary(const BoundaryCase& shape, const BoundaryInputs& inputs) {
  BoundaryOutputs out;
  const auto hidden = static_cast<size_t>(shape.hidden);
  const size_t elements = static_cast<size_t>(shape.rows) * hidden;
  out.residual.resize(elements);
  if (shape.want_bf16) out.norm.resize(elements);
  if (shape.want_fp8) out.codes.resize(elements);
  ScaleSink scales(shape);
  std::vector<float> h(hidden), n(hidden);
  for (int row = 0; row < shape.rows; ++row) {
    const size_t begin = static_cast<size_t>(row) * hidden;
    for (size_t k = 0; k < hidden; ++k) {
      float s = value16(shape.dtype, inputs.addends[0][begin + k]);
      for (int r = 1; r < shape.team; ++r)
        s = s + value16(shape.dtype, inputs.addends[static_cast<size_t>(r)][begin + k]);
      const float y = round16(shape.dtype, s);
      h[k] = shape.fresh_residual
                 ? y
                 : round16(shape.dtype, y + value16(shape.dtype, inputs.residual[begin + k]));
      out.residual[begin + k] = bits16(shape.dtype, h[k]);
    }
    std::vector<float> p(hidden / 8);
    for (size_t i = 0; i < p.size(); ++i) {
      p[i] = h[8 * i] * h[8 * i];
      for (size_t j = 1; j < 8; ++j) p[i] = p[i] + h[8 * i + j] * h[8 * i + j];
    }
    const float ss = tree_sum(p);
    const float rstd = 1.0f / std::sqrt(ss / static_cast<float>(shape.hidden) + shape.eps);
    for (size_t k = 0; k < hidden; ++k) {
      const float w = shape.offset + weight_value(shape, inputs.weight[k]);
      n[k] = round16(shape.dtype, (h[k] * rstd) * w);
      if (shape.want_bf16) out.norm[begin + k] = bits16(shape.dtype, n[k]);
    }
    if (shape.want_fp8) quantize_row(shape, row, n, out.codes.data() + begin, scales);
  }
  out.scales = std::move(scales.bytes);
  return out;
}

BoundaryOutputs quantize(const BoundaryCase& shape, const std::vector<std::uint16_t>& rows) {
  BoundaryOutputs out;
  out.codes.resize(rows.size());
  ScaleSink scales(shape);
  const auto hidden = static_cast<size_t>(shape.hidden);
  std::vector<float> n(hidden);
  for (int row = 0; row < shape.rows; ++row) {
    const size_t begin = static_cast<size_t>(row) * hidden;
    for (size_t k = 0; k < hidden; ++k) n[k] = value16(shape.dtype, rows[begin + k]);
    quantize_row(shape, row, n, out.codes.data() + begin, scales);
  }
  out.scales = std::move(scales.bytes);
  return out;
}

std::string describe(const BoundaryCase& shape) {
  std::string text = std::to_string(shape.rows) + " x " + std::to_string(shape.hidden) + " " +
                     std::string(name(shape.dtype)) + ", weight " +
                     std::string(name(shape.weight_dtype)) + ", " + std::to_string(shape.team) +
                     " ranks";
  if (shape.fresh_residual) text += ", fresh";
  if (shape.want_bf16) text += ", 16-bit rows";
  if (shape.want_fp8)
    text += ", " + std::string(name(shape.fp8)) + " by " + std::to_string(shape.group) + " " +
            std::string(name(shape.layout));
  return text;
}

}  // namespace tenon::reference
