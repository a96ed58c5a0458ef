#include "tests/support/boundary_oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace tenon::testing {
namespace {

using std::size_t;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// --- formats as grids of real numbers (first formulation) ---------------------------------------

struct Grid {
  int mantissa_bits, min_exponent, bias;
  double largest;  // finite
  bool saturates;  // else: to infinity
};
constexpr Grid kBf16Grid{7, -126, 127, 0x1.fep127, false};
constexpr Grid kF16Grid{10, -14, 15, 65504.0, false};
constexpr Grid kE4M3Grid{3, -6, 7, 448.0, true};
constexpr Grid kFnuzGrid{3, -7, 8, 240.0, true};

const Grid& grid_of(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return kBf16Grid;
    case DType::kF16: return kF16Grid;
    case DType::kE4M3: return kE4M3Grid;
    default: return kFnuzGrid;
  }
}

// The grid's nearest value, ties to even. Exact: quantum is a power of two.
double to_grid(const Grid& grid, double value) {
  if (std::isnan(value) || value == 0) return value;
  const double most = grid.saturates ? grid.largest : std::numeric_limits<double>::infinity();
  if (std::isinf(value)) return std::copysign(most, value);
  const double quantum =
      std::ldexp(1.0, std::max(std::ilogb(value), grid.min_exponent) - grid.mantissa_bits);
  const double rounded = std::nearbyint(value / quantum) * quantum;
  return std::fabs(rounded) > grid.largest ? std::copysign(most, value) : rounded;
}

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

float value16(DType dtype, std::uint16_t bits) {
  const unsigned infinity = dtype == DType::kBF16 ? 0x7f80u : 0x7c00u;
  const unsigned magnitude = bits & 0x7fffu;
  double value = magnitude > infinity    ? kNan
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

std::uint8_t code_of(DType fp8, double value) {
  const bool fnuz = fp8 == DType::kE4M3Fnuz;
  if (std::isnan(value)) return fnuz ? 0x80 : 0x7f;
  const double rounded = to_grid(grid_of(fp8), value);
  const unsigned magnitude = grid_bits(grid_of(fp8), std::fabs(rounded));
  const unsigned sign = std::signbit(value) && !(fnuz && magnitude == 0) ? 0x80u : 0u;
  return static_cast<std::uint8_t>(magnitude | sign);
}

// --- what both formulations share: addresses of scales ------------------------------------------

struct ScaleSink {
  const BoundaryCase& shape;
  std::vector<std::uint8_t> bytes;
  std::int64_t padded;

  explicit ScaleSink(const BoundaryCase& of) : shape(of), padded((of.rows + 3) / 4 * 4) {
    if (!of.want_fp8) return;
    const auto extents = scale_shape(of.layout, of.rows, of.hidden, of.group);
    bytes.assign(static_cast<size_t>(extents[0] * extents[1] * 4), 0);
  }
  void put(int row, int group, float scale) {
    const int groups = shape.hidden / shape.group;
    const std::int64_t at = shape.layout == ScaleLayout::kRow ? std::int64_t{row} * groups + group
                                                              : std::int64_t{group} * padded + row;
    std::memcpy(bytes.data() + at * 4, &scale, 4);
  }
  void put_exponent(int row, int group, unsigned biased) {
    const std::int64_t word = std::int64_t{group / 4} * padded + row;
    bytes[static_cast<size_t>(word * 4 + group % 4)] = static_cast<std::uint8_t>(biased);
  }
};

float weight_value(const BoundaryCase& shape, std::uint32_t bits) {
  if (shape.weight_dtype == DType::kF32) return std::bit_cast<float>(bits);
  return value16(shape.weight_dtype, static_cast<std::uint16_t>(bits));
}

// --- first formulation
// ----------------------------------------------------------------------------

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
      multiplier = kNan;
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
      codes[k] = code_of(shape.fp8, n[static_cast<size_t>(k)] * multiplier);
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

float round16(DType dtype, float value) {
  return static_cast<float>(to_grid(grid_of(dtype), value));
}

}  // namespace

BoundaryOutputs boundary_oracle(const BoundaryCase& shape, const BoundaryInputs& inputs) {
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

BoundaryOutputs quantize_oracle(const BoundaryCase& shape, const std::vector<std::uint16_t>& rows) {
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

// --- second formulation
// ---------------------------------------------------------------------------

namespace {

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

// --- inputs
// ---------------------------------------------------------------------------------------

namespace {

class Numbers {
 public:
  Numbers(const BoundaryCase& shape, std::uint64_t seed)
      : dtype_(shape.dtype), random_(static_cast<std::uint32_t>(seed * 7919 + 17)) {}

  std::uint32_t below(std::uint32_t bound) { return static_cast<std::uint32_t>(random_() % bound); }
  bool sign() { return below(2) == 1; }
  // ±[1, 2) · 2^exponent with all the mantissa bits of the type.
  double number(int exponent) {
    const double mantissa = 1.0 + static_cast<double>(below(1024)) / 1024.0;
    return std::ldexp(sign() ? -mantissa : mantissa, exponent);
  }
  std::uint16_t element(double value) { return bits16(dtype_, to_grid(grid_of(dtype_), value)); }

 private:
  DType dtype_;
  std::mt19937 random_;
};

// Parts that cancel: +V on one rank, −V on another, and smaller numbers of several sizes on the
// rest and on the same two, so that what survives depends on when V comes and goes.
void fill_plain(const BoundaryCase& shape, Numbers& numbers, size_t at, BoundaryInputs& inputs) {
  std::vector<double> parts(static_cast<size_t>(shape.team));
  const int top = shape.dtype == DType::kBF16 ? 24 : 14;
  for (double& part : parts) part = numbers.number(-static_cast<int>(numbers.below(4)));
  if (shape.team > 1 && numbers.below(2) == 0) {
    const auto plus = static_cast<size_t>(numbers.below(static_cast<std::uint32_t>(shape.team)));
    const auto minus = (plus + 1 + numbers.below(static_cast<std::uint32_t>(shape.team - 1))) %
                       static_cast<size_t>(shape.team);
    parts[plus] = numbers.number(top - static_cast<int>(numbers.below(6)));
    parts[minus] = -parts[plus];
    if (shape.dtype == DType::kF16)  // fp16 is too narrow to lose 2^-3 beside 2^14 in fp32
      for (size_t r = 0; r < parts.size(); ++r)
        if (r != plus && r != minus) parts[r] = numbers.number(-14);
  }
  for (size_t r = 0; r < parts.size(); ++r) inputs.addends[r][at] = numbers.element(parts[r]);
}

// How many powers of two below the largest of its row an element is.
int near_exponent(Numbers& numbers) {
  constexpr int kRare[] = {7, 8, 13, 14, 15, 16, 17, 30};
  const std::uint32_t draw = numbers.below(1024);
  return -(draw < 8 ? kRare[draw] : static_cast<int>(draw % 6));
}

void fill_element(const BoundaryCase& shape, Numbers& numbers, RowKind kind, int k, size_t at,
                  BoundaryInputs& inputs) {
  const bool bf = shape.dtype == DType::kBF16;
  const auto infinity = static_cast<std::uint16_t>(bf ? 0x7f80 : 0x7c00);
  const auto sign = [&] { return static_cast<std::uint16_t>(numbers.sign() ? 0x8000 : 0); };
  fill_plain(shape, numbers, at, inputs);
  inputs.residual[at] = numbers.element(numbers.number(-static_cast<int>(numbers.below(6))));
  const auto rank = numbers.below(static_cast<std::uint32_t>(shape.team));
  switch (kind) {
    case RowKind::kPlain: return;
    case RowKind::kConstant:
      for (auto& addend : inputs.addends) addend[at] = numbers.element(-0.5);
      inputs.residual[at] = numbers.element(-1.0);
      return;
    case RowKind::kTiny:
      for (auto& addend : inputs.addends)
        addend[at] = static_cast<std::uint16_t>(numbers.below(6) | sign());
      inputs.residual[at] = static_cast<std::uint16_t>(numbers.below(4) | sign());
      return;
    case RowKind::kInfinite:
      if (k % 61 == 5) inputs.addends[rank][at] = static_cast<std::uint16_t>(infinity | sign());
      if (k % 97 == 7) inputs.residual[at] = static_cast<std::uint16_t>(infinity | sign());
      return;
    case RowKind::kNan:
      // Aligned pairs of 0xffff are the sentinel; a run of eight is a whole vector of it.
      if (k % 64 < 8)
        inputs.addends[static_cast<size_t>(k / 64) % inputs.addends.size()][at] = 0xffff;
      if (k % 64 == 20)
        inputs.addends[rank][at] = static_cast<std::uint16_t>(infinity | 1 | sign());
      if (k % 64 == 40 || k % 64 == 41) inputs.residual[at] = 0xffff;
      return;
    case RowKind::kZero:
      for (auto& addend : inputs.addends) addend[at] = sign();
      inputs.residual[at] = sign();
      return;
    case RowKind::kNear:
      for (auto& addend : inputs.addends) {
        addend[at] = numbers.element(numbers.number(near_exponent(numbers)));
        if (k / 8 % 37 == 3) addend[at] |= bf ? 0x807f : 0x83ff;
      }
      inputs.residual[at] = numbers.element(numbers.number(near_exponent(numbers) - 3));
      return;
  }
}

}  // namespace

BoundaryInputs make_inputs(const BoundaryCase& shape, std::uint64_t seed, bool plain) {
  Numbers numbers(shape, seed);
  BoundaryInputs inputs;
  const size_t elements = static_cast<size_t>(shape.rows) * static_cast<size_t>(shape.hidden);
  inputs.addends.assign(static_cast<size_t>(shape.team), std::vector<std::uint16_t>(elements));
  inputs.residual.resize(elements);
  for (size_t at = 0; at < elements; ++at) {
    const auto row = at / static_cast<size_t>(shape.hidden);
    const auto kind = plain ? RowKind::kPlain : static_cast<RowKind>((row + seed) % kNumRowKinds);
    fill_element(shape, numbers, kind, static_cast<int>(at % static_cast<size_t>(shape.hidden)), at,
                 inputs);
  }
  const bool wide = shape.weight_dtype == DType::kF32;
  for (int k = 0; k < shape.hidden; ++k) {
    double weight = numbers.number(-2 - static_cast<int>(numbers.below(8)));
    if (!plain && shape.hidden >= 512) {
      if (k == 300) weight = std::numeric_limits<double>::infinity();
      if (k == 40) weight = kNan;
    }
    if (k / 128 == 1 && !plain) weight = -0.25;  // a stretch of equal numbers
    inputs.weight.push_back(wide ? float_word(static_cast<float>(weight))
                                 : numbers.element(weight));
  }
  return inputs;
}

int order_sensitive_elements(const BoundaryCase& shape, const BoundaryInputs& inputs, int first) {
  int changed = 0;
  for (size_t k = 0; k < inputs.residual.size(); ++k) {
    const auto y = [&](int begin) {
      float s = -0.0f;
      for (int step = 0; step < shape.team; ++step) {
        const auto rank = static_cast<size_t>((begin + step) % shape.team);
        s = s + value16(shape.dtype, inputs.addends[rank][k]);
      }
      return round16(shape.dtype, s);
    };
    changed += y(0) != y(first);
  }
  return changed;
}

// --- comparing
// ------------------------------------------------------------------------------------

bool is_nan16(DType dtype, std::uint16_t bits) {
  return (bits & 0x7fffu) > (dtype == DType::kBF16 ? 0x7f80u : 0x7c00u);
}
bool is_nan8(DType fp8, std::uint8_t bits) {
  return fp8 == DType::kE4M3Fnuz ? bits == 0x80 : (bits & 0x7fu) == 0x7fu;
}

namespace {

template <class Bits, class Same>
std::string first_difference(const char* what, int width, const std::vector<Bits>& expected,
                             const std::vector<Bits>& found, Same same) {
  if (expected.size() != found.size())
    return std::string(what) + " has " + std::to_string(found.size()) + " elements instead of " +
           std::to_string(expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == found[i] || same(expected[i], found[i])) continue;
    char text[96];
    std::snprintf(text, sizeof text, "[%zu][%zu] is 0x%x but must be 0x%x",
                  i / static_cast<size_t>(width), i % static_cast<size_t>(width),
                  static_cast<unsigned>(found[i]), static_cast<unsigned>(expected[i]));
    return what + std::string(text);
  }
  return {};
}

}  // namespace

std::string difference16(const char* what, const BoundaryCase& shape,
                         const std::vector<std::uint16_t>& expected,
                         const std::vector<std::uint16_t>& found) {
  return first_difference(what, shape.hidden, expected, found,
                          [&](std::uint16_t a, std::uint16_t b) {
                            return is_nan16(shape.dtype, a) && is_nan16(shape.dtype, b);
                          });
}

std::string difference(const BoundaryCase& shape, const BoundaryOutputs& expected,
                       const BoundaryOutputs& found) {
  std::string text = difference16("residual", shape, expected.residual, found.residual);
  if (text.empty()) text = difference16("norm", shape, expected.norm, found.norm);
  if (text.empty())
    text = first_difference("codes", shape.hidden, expected.codes, found.codes,
                            [&](std::uint8_t a, std::uint8_t b) {
                              return is_nan8(shape.fp8, a) && is_nan8(shape.fp8, b);
                            });
  if (!text.empty()) return text;
  if (shape.layout == ScaleLayout::kUe8m0Packed)
    return first_difference("scale bytes", 4, expected.scales, found.scales,
                            [](std::uint8_t, std::uint8_t) { return false; });
  const auto words = [](const std::vector<std::uint8_t>& bytes) {
    std::vector<std::uint32_t> out(bytes.size() / 4);
    if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  };
  return first_difference("scales", 1, words(expected.scales), words(found.scales),
                          [](std::uint32_t a, std::uint32_t b) {
                            return std::isnan(word_float(a)) && std::isnan(word_float(b));
                          });
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

}  // namespace tenon::testing
