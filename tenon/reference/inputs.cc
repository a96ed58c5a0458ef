#include "tenon/reference/inputs.h"

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "tenon/reference/formats.h"

namespace tenon::reference {
namespace {

using std::size_t;

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
      if (k == 40) weight = std::numeric_limits<double>::quiet_NaN();
    }
    if (k / 128 == 1 && !plain) weight = -0.25;  // a stretch of equal numbers
    inputs.weight.push_back(wide ? std::bit_cast<std::uint32_t>(static_cast<float>(weight))
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

}  // namespace tenon::reference
