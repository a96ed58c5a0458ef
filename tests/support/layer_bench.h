// Layers alone on one device: random rows in both forms, random bf16 and block-fp8 matrices that
// can be read back as doubles, the scratch and the context that a model would give.
#pragma once

#include <cmath>
#include <random>

#include "tenon/core/fp8.h"
#include "tenon/layers/layers.h"
#include "tests/support/device_fixture.h"

namespace tenon::test {

using Doubles = std::vector<double>;

// Values on the device and what they stand for.
struct TestMatrix {
  Matrix matrix;
  Doubles values;  // [out, in], or [experts, out, in]
  std::int64_t in = 0;
  double at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row * in + column)];
  }
};
struct TestRows {
  NormedRows rows;
  Doubles bf16, fp8;  // [rows, hidden] of either form
};

class LayerBench {
 public:
  LayerBench(Target target, int max_rows, int hidden)
      : bench(target),
        scratch(bench.stream(), max_rows),
        hidden_(hidden),
        context{.scratch = scratch,
                .where = bench.where(),
                .x = {},
                .partial = DeviceFixture::must(scratch.rows("partial", DType::kBF16, hidden)),
                .max_sequences = max_rows,
                .max_blocks = 4,
                .max_logits = max_rows,
                .block_tokens = 4} {
    context.x.bf16 = DeviceFixture::must(scratch.rows("x", DType::kBF16, hidden));
    context.x.fp8 = DeviceFixture::must(scratch.codes("x", max_rows, hidden));
  }

  // Normal values with this deviation, rounded to bf16.
  Doubles normal(std::int64_t count, double deviation) {
    std::normal_distribution<double> distribution(0, deviation);
    Doubles values;
    for (std::int64_t i = 0; i < count; ++i)
      values.push_back(to_float(to_bf16(static_cast<float>(distribution(random_)))));
    return values;
  }
  TensorView put_bf16(const Doubles& values, std::initializer_list<std::int64_t> shape) {
    std::vector<std::uint16_t> bits;
    for (double each : values) bits.push_back(to_bf16(static_cast<float>(each)).bits);
    return bench.put(bits, DType::kBF16, shape);
  }
  TensorView put_f32(const Doubles& values, std::initializer_list<std::int64_t> shape) {
    return bench.put(std::vector<float>(values.begin(), values.end()), DType::kF32, shape);
  }
  TensorView put_i32(const std::vector<std::int32_t>& values) {
    return bench.put(values, DType::kI32, {static_cast<std::int64_t>(values.size())});
  }

  // Rows as a boundary leaves them: bf16, and the same quantised by groups of 128.
  TestRows normed_rows(std::int64_t rows) {
    TestRows made;
    made.bf16 = normal(rows * hidden_, 1);
    std::vector<std::uint8_t> codes;
    std::vector<float> scales;
    for (std::size_t group = 0; group < made.bf16.size(); group += 128) {
      float absmax = 0;
      for (std::size_t i = group; i < group + 128; ++i)
        absmax = std::max(absmax, static_cast<float>(std::abs(made.bf16[i])));
      const GroupScale scale = group_scale(absmax, DType::kE4M3);
      scales.push_back(scale.scale);
      for (std::size_t i = group; i < group + 128; ++i) {
        codes.push_back(to_fp8<DType::kE4M3>(static_cast<float>(made.bf16[i]) * scale.multiplier));
        made.fp8.push_back(static_cast<double>(from_fp8<DType::kE4M3>(codes.back())) * scale.scale);
      }
    }
    made.rows.bf16 = put_bf16(made.bf16, {rows, hidden_});
    made.rows.fp8 = QuantView{.data = bench.put(codes, DType::kE4M3, {rows, hidden_}),
                              .scale = bench.put(scales, DType::kF32, {rows, hidden_ / 128}),
                              .group = 128,
                              .layout = ScaleLayout::kRow};
    return made;
  }

  // A matrix that keeps the size of random rows; experts = 0: one matrix.
  TestMatrix matrix(bool fp8, std::int64_t out, std::int64_t in, std::int64_t experts = 0) {
    TestMatrix made;
    made.in = in;
    const std::int64_t rows = out * std::max<std::int64_t>(1, experts);
    const double size = 1 / std::sqrt(static_cast<double>(in));
    made.values = normal(rows * in, size);
    if (!fp8) {
      made.matrix.weight = experts == 0 ? put_bf16(made.values, {out, in})
                                        : put_bf16(made.values, {experts, out, in});
      return made;
    }
    const std::int64_t high = (out + 127) / 128, wide = (in + 127) / 128;
    const std::int64_t num_scales = high * wide * rows / out;
    std::uniform_real_distribution<float> around(0.5f, 2.0f);
    std::vector<float> scales;
    for (std::int64_t i = 0; i < num_scales; ++i)
      scales.push_back(static_cast<float>(size) * around(random_));
    std::vector<std::uint8_t> codes;
    for (std::int64_t i = 0; i < rows * in; ++i) {
      double& value = made.values[static_cast<std::size_t>(i)];
      codes.push_back(to_fp8<DType::kE4M3>(static_cast<float>(value / size)));
      const std::int64_t row = i / in,
                         block = (row / out * high + row % out / 128) * wide + i % in / 128;
      value = static_cast<double>(from_fp8<DType::kE4M3>(codes.back())) *
              scales[static_cast<std::size_t>(block)];
    }
    made.matrix.weight = experts == 0 ? bench.put(codes, DType::kE4M3, {out, in})
                                      : bench.put(codes, DType::kE4M3, {experts, out, in});
    made.matrix.scale = experts == 0 ? bench.put(scales, DType::kF32, {high, wide})
                                     : bench.put(scales, DType::kF32, {experts, high, wide});
    return made;
  }

  Doubles get_bf16(const TensorView& tensor) {
    Doubles values;
    for (std::uint16_t bits : bench.get<std::uint16_t>(tensor))
      values.push_back(to_float(bf16{bits}));
    return values;
  }

  DeviceFixture bench;
  Scratch scratch;

 private:
  std::mt19937 random_{5};
  std::int64_t hidden_;

 public:
  LayerContext context;
};

// x [rows, in] · weightᵀ for rows of `weight` [begin, begin + out), without any rounding.
inline Doubles product(const Doubles& x, const TestMatrix& weight, std::int64_t begin,
                       std::int64_t out) {
  Doubles result;
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / weight.in;
  for (std::int64_t m = 0; m < rows; ++m)
    for (std::int64_t n = begin; n < begin + out; ++n) {
      double sum = 0;
      for (std::int64_t k = 0; k < weight.in; ++k)
        sum += x[static_cast<std::size_t>(m * weight.in + k)] * weight.at(n, k);
      result.push_back(sum);
    }
  return result;
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }
inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// rms(found − expected) / rms(expected).
inline double relative_rms(const Doubles& found, const Doubles& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

// One rounding to bf16 is off by at most 2^-9 of a value; the layers round a handful of times.
inline constexpr double kBf16Chain = 1.0 / 128;
// An e4m3 code is off by up to 2^-4 of a value, 2^-5 in rms at the least favourable place: a chain
// that quantises one activation inside is off by about that.
inline constexpr double kFp8Chain = 1.0 / 24;

}  // namespace tenon::test
