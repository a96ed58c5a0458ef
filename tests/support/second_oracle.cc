#include "tests/support/second_oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tenon/reference/scales.h"

namespace tenon::test {
namespace {

using std::size_t;
using namespace reference;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// An fp32 operation is the double one rounded once: double has more than 2 · 24 + 2 bits.
float narrow(double value) { return static_cast<float>(value); }

std::uint32_t float_word(float value) { return std::bit_cast<std::uint32_t>(value); }
float word_float(std::uint32_t word) { return std::bit_cast<float>(word); }

// bf16 and fp16 by shifting bits; what is shifted out decides.
std::uint16_t narrow16(DType dtype, float value) {
  const std::uint32_t word = float_word(value);
  const std::uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
  const bool bf = dtype == DType::kBF16;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | (bf ? 0x7fffu : 0x7e01u));
  std::uint32_t kept = magnitude, dropped_bits = 16;
  if (!bf) {
    const int exponent = static_cast<int>(magnitude >> 23) - 127;
    if (exponent > 15) return static_cast<std::uint16_t>(sign | 0x7c00u);
    const std::uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
    if (exponent < -25) return static_cast<std::uint16_t>(sign);
    if (exponent < -14) {
      kept = fraction;
      dropped_bits = static_cast<std::uint32_t>(-1 - exponent);  // unit 2^-24
    } else {
      kept = (static_cast<std::uint32_t>(exponent + 15) << 23) | (fraction & 0x7fffffu);
      dropped_bits = 13;
    }
  }
  const std::uint64_t unit = std::uint64_t{1} << dropped_bits;
  std::uint64_t quotient = kept / unit;
  const std::uint64_t rest = kept % unit;
  if (rest > unit / 2 || (rest == unit / 2 && quotient % 2 == 1)) ++quotient;
  return static_cast<std::uint16_t>(sign | quotient);
}
float widen16(DType dtype, std::uint16_t bits) {
  if (dtype == DType::kBF16) return word_float(std::uint32_t{bits} << 16);
  const std::uint32_t field = bits >> 10 & 31u, fraction = bits & 0x3ffu;
  const double sign = (bits & 0x8000u) != 0 ? -1.0 : 1.0;
  if (field == 31) return fraction != 0 ? kNan : narrow(sign / 0.0);
  if (field == 0) return narrow(sign * fraction / 16777216.0);
  return narrow(sign * (1024.0 + fraction) * std::pow(2.0, static_cast<double>(field) - 25.0));
}

// The positive codes of an fp8 type in rising order, by the definition of its fields.
std::vector<double> code_values(DType fp8) {
  const int bias = fp8 == DType::kE4M3 ? 7 : 8;
  std::vector<double> values;
  for (int code = 0; code < (fp8 == DType::kE4M3 ? 127 : 128); ++code) {
    const int field = code / 8, fraction = code % 8;
    values.push_back(field == 0 ? fraction / 8.0 * std::pow(2.0, 1 - bias)
                                : (1 + fraction / 8.0) * std::pow(2.0, field - bias));
  }
  return values;
}

// The nearest code by search; between two, the nearer, or the even one.
std::uint8_t search_code(DType fp8, float value) {
  static const std::vector<double> kFn = code_values(DType::kE4M3);
  static const std::vector<double> kFnuz = code_values(DType::kE4M3Fnuz);
  const bool fnuz = fp8 == DType::kE4M3Fnuz;
  if (std::isnan(value)) return fnuz ? 0x80 : 0xff;
  const std::vector<double>& values = fnuz ? kFnuz : kFn;
  const double magnitude = std::fabs(static_cast<double>(value));
  const auto above = std::upper_bound(values.begin(), values.end(), magnitude);
  auto code = static_cast<size_t>(above - values.begin()) - 1;
  if (above != values.end()) {
    const double below_gap = magnitude - values[code], above_gap = *above - magnitude;
    if (above_gap < below_gap || (above_gap == below_gap && code % 2 == 1)) ++code;
  }
  if (fnuz && code == 0) return 0;
  return static_cast<std::uint8_t>(code | (std::signbit(value) ? 0x80u : 0u));
}

float recursive_sum(const float* p, size_t count, size_t width) {
  if (count == 0) return 0.0f;
  if (width == 1) return p[0];
  const size_t half = width / 2;
  const double low = recursive_sum(p, std::min(count, half), half);
  return narrow(low +
                recursive_sum(p + std::min(count, half), count - std::min(count, half), half));
}

void second_quantize(const BoundaryCase& shape, int row, const std::uint16_t* n,
                     std::uint8_t* codes, ScaleSink& scales) {
  const double fmax = shape.fp8 == DType::kE4M3 ? 448.0 : 240.0;
  const double reciprocal = narrow(1.0 / fmax);
  for (int begin = 0; begin < shape.hidden; begin += shape.group) {
    bool damaged = false;
    double a = 1e-10f;
    for (int k = begin; k < begin + shape.group; ++k) {
      const double magnitude = std::fabs(static_cast<double>(widen16(shape.dtype, n[k])));
      damaged |= std::isnan(magnitude);
      a = std::fmax(a, magnitude);
    }
    if (damaged) a = kNan;
    const float scale = narrow(a * reciprocal);
    float multiplier = narrow(fmax / a);
    const int group = begin / shape.group;
    if (shape.layout == ScaleLayout::kUe8m0Packed) {
      const std::uint32_t word = float_word(scale);
      std::uint32_t biased = word >> 23;
      if (word << 9 != 0) ++biased;
      if (damaged) biased = 255;
      multiplier = damaged ? kNan : narrow(std::pow(2.0, 127.0 - static_cast<double>(biased)));
      scales.put_exponent(row, group, biased);
    } else {
      scales.put(row, group, scale);
    }
    for (int k = begin; k < begin + shape.group; ++k)
      codes[k] = search_code(shape.fp8,
                             narrow(static_cast<double>(widen16(shape.dtype, n[k])) * multiplier));
  }
}

}  // namespace

BoundaryOutputs second_oracle(const BoundaryCase& shape, const BoundaryInputs& inputs) {
  BoundaryOutputs out;
  const auto hidden = static_cast<size_t>(shape.hidden);
  const size_t elements = static_cast<size_t>(shape.rows) * hidden;
  const DType dtype = shape.dtype;
  out.residual.resize(elements);
  if (shape.want_bf16) out.norm.resize(elements);
  if (shape.want_fp8) out.codes.resize(elements);
  ScaleSink scales(shape);
  std::vector<float> partials(hidden / 8);
  std::vector<std::uint16_t> n(hidden);
  for (size_t begin = 0; begin < elements; begin += hidden) {
    for (size_t k = begin; k < begin + hidden; ++k) {
      double s = widen16(dtype, inputs.addends[0][k]);
      for (size_t r = 1; r < inputs.addends.size(); ++r)
        s = narrow(s + widen16(dtype, inputs.addends[r][k]));
      std::uint16_t h = narrow16(dtype, narrow(s));
      if (!shape.fresh_residual) {
        const double y = widen16(dtype, h);
        h = narrow16(dtype, narrow(y + widen16(dtype, inputs.residual[k])));
      }
      out.residual[k] = h;
    }
    for (size_t i = 0; i < partials.size(); ++i) {
      double sum = -0.0;  // the neutral element: the first square is kept as it is
      for (size_t j = 0; j < 8; ++j) {
        const double h = widen16(dtype, out.residual[begin + 8 * i + j]);
        sum = narrow(sum + narrow(h * h));
      }
      partials[i] = narrow(sum);
    }
    const double ss =
        recursive_sum(partials.data(), partials.size(), std::bit_ceil(partials.size()));
    const double mean = narrow(ss / shape.hidden);
    const double root = narrow(std::sqrt(static_cast<double>(narrow(mean + shape.eps))));
    const double rstd = narrow(1.0 / root);
    for (size_t k = 0; k < hidden; ++k) {
      const double weight = shape.weight_dtype == DType::kF32
                                ? word_float(inputs.weight[k])
                                : widen16(dtype, static_cast<std::uint16_t>(inputs.weight[k]));
      const double factor = narrow(static_cast<double>(shape.offset) + weight);
      const double scaled = narrow(widen16(dtype, out.residual[begin + k]) * rstd);
      n[k] = narrow16(dtype, narrow(scaled * factor));
    }
    if (shape.want_bf16) std::copy(n.begin(), n.end(), out.norm.begin() + static_cast<long>(begin));
    if (shape.want_fp8)
      second_quantize(shape, static_cast<int>(begin / hidden), n.data(), out.codes.data() + begin,
                      scales);
  }
  out.scales = std::move(scales.bytes);
  return out;
}

}  // namespace tenon::test
