// Products of fp8_gemm that tests make, put on a device and run.
#pragma once

#include <random>

#include "tenon/core/fp8.h"
#include "tenon/ops/fp8_gemm/fp8_gemm.h"
#include "tests/support/op_suite.h"

namespace tenon::test {

struct Fp8Shape {
  int tokens = 3, n = 16, k = 128;
  ScaleLayout layout = ScaleLayout::kRow;
  DType out = DType::kBF16;
  std::vector<std::int32_t> offsets = {};  // grouped if not empty
  std::vector<std::int32_t> row_of = {};
  int x_padding = 0, out_padding = 0;  // elements between rows

  bool grouped() const { return !offsets.empty(); }
  int experts() const { return grouped() ? static_cast<int>(offsets.size()) - 1 : 1; }
  int rows() const { return row_of.empty() ? tokens : static_cast<int>(row_of.size()); }
  int n_blocks() const { return (n + 127) / 128; }
  int k_blocks() const { return k / 128; }
};

inline double value_of(std::uint8_t code) {
  static const std::vector<double> values = [] {
    std::vector<double> found;
    for (int each = 0; each < 256; ++each)
      found.push_back(from_fp8<DType::kE4M3>(static_cast<std::uint8_t>(each)));
    return found;
  }();
  return values[code];
}

struct Fp8Problem {
  Fp8Shape shape;
  std::vector<std::uint8_t> x, weight;       // codes
  std::vector<float> x_scale, weight_scale;  // [tokens, k / 128], [experts, n blocks, k blocks]

  double x_at(int token, int k) const {
    return value_of(x[static_cast<std::size_t>(token * shape.k + k)]);
  }
  double weight_at(int expert, int n, int k) const {
    return value_of(weight[(static_cast<std::size_t>(expert) * shape.n + n) * shape.k + k]);
  }
  float& x_scale_at(int token, int block) {
    return x_scale[static_cast<std::size_t>(token * shape.k_blocks() + block)];
  }
  float& weight_scale_at(int expert, int n, int block) {
    return weight_scale[static_cast<std::size_t>(
        (expert * shape.n_blocks() + n / 128) * shape.k_blocks() + block)];
  }
};

// Finite codes of every magnitude, subnormals included; scales over many powers of two.
inline Fp8Problem make_fp8_problem(const Fp8Shape& shape, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> magnitude(0, 0x7e), sign(0, 1);
  std::uniform_real_distribution<float> exponent(-12.0f, 4.0f);
  const auto codes = [&](int count) {
    std::vector<std::uint8_t> found(static_cast<std::size_t>(count));
    for (auto& each : found)
      each = static_cast<std::uint8_t>(sign(random) << 7 | magnitude(random));
    return found;
  };
  const auto scales = [&](int count) {
    std::vector<float> found(static_cast<std::size_t>(count));
    for (auto& each : found) each = std::exp2(exponent(random));
    return found;
  };
  Fp8Problem problem;
  problem.shape = shape;
  problem.x = codes(shape.tokens * shape.k);
  problem.weight = codes(shape.experts() * shape.n * shape.k);
  problem.x_scale = scales(shape.tokens * shape.k_blocks());
  problem.weight_scale = scales(shape.experts() * shape.n_blocks() * shape.k_blocks());
  return problem;
}

inline QuantView put_x(DeviceFixture& fixture, const Fp8Problem& problem) {
  const Fp8Shape& shape = problem.shape;
  QuantView x;
  x.layout = shape.layout;
  const int stride = shape.k + shape.x_padding;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(shape.tokens * stride), 0x7f);
  for (int t = 0; t < shape.tokens; ++t)
    std::copy_n(problem.x.begin() + t * shape.k, shape.k, codes.begin() + t * stride);
  x.data = fixture.put(codes, DType::kE4M3, {shape.tokens, stride});
  x.data.shape[1] = shape.k;
  const auto [first, second] = scale_shape(shape.layout, shape.tokens, shape.k, 128);
  std::vector<float> scale(static_cast<std::size_t>(first * second), 0.0f);
  for (int t = 0; t < shape.tokens; ++t)
    for (int block = 0; block < shape.k_blocks(); ++block) {
      const auto at = shape.layout == ScaleLayout::kRow ? t * second + block : block * second + t;
      scale[static_cast<std::size_t>(at)] = const_cast<Fp8Problem&>(problem).x_scale_at(t, block);
    }
  x.scale = fixture.put(scale, DType::kF32, {first, second});
  return x;
}

inline fp8_gemm::Args put(DeviceFixture& fixture, const Fp8Problem& problem) {
  const Fp8Shape& shape = problem.shape;
  fp8_gemm::Args args;
  args.x = put_x(fixture, problem);
  if (shape.grouped()) {
    args.weight = fixture.put(problem.weight, DType::kE4M3, {shape.experts(), shape.n, shape.k});
    args.weight_scale = fixture.put(problem.weight_scale, DType::kF32,
                                    {shape.experts(), shape.n_blocks(), shape.k_blocks()});
    args.offsets = fixture.put(shape.offsets, DType::kI32, {shape.experts() + 1});
    if (!shape.row_of.empty()) args.row_of = fixture.put(shape.row_of, DType::kI32, {shape.rows()});
  } else {
    args.weight = fixture.put(problem.weight, DType::kE4M3, {shape.n, shape.k});
    args.weight_scale =
        fixture.put(problem.weight_scale, DType::kF32, {shape.n_blocks(), shape.k_blocks()});
  }
  args.out = fixture.rows(shape.out, shape.rows(), shape.n, shape.n + shape.out_padding);
  return args;
}

// The output as floats and, exactly, as bytes.
struct Fp8Output {
  std::vector<float> values;
  std::vector<std::uint8_t> bytes;
};
inline Fp8Output run_variant(const Fp8Problem& problem, Target target, const std::string& variant) {
  DeviceFixture fixture(target);
  const fp8_gemm::Args args = put(fixture, problem);
  run_forced(fixture, args, variant);
  Fp8Output output;
  if (problem.shape.out == DType::kF32) {
    output.values = fixture.get<float>(args.out);
    output.bytes = bytes_of(output.values);
  } else {
    const auto halves = fixture.get<bf16>(args.out);
    for (const bf16 each : halves) output.values.push_back(to_float(each));
    output.bytes = bytes_of(halves);
  }
  return output;
}

// The rows of `all` as problems of their own.
inline Fp8Problem pick_rows(Fp8Problem& all, const std::vector<int>& tokens) {
  Fp8Problem picked = all;
  picked.shape.tokens = static_cast<int>(tokens.size());
  picked.x.clear();
  picked.x_scale.clear();
  for (const int token : tokens) {
    const auto codes = all.x.begin() + token * all.shape.k;
    picked.x.insert(picked.x.end(), codes, codes + all.shape.k);
    for (int block = 0; block < all.shape.k_blocks(); ++block)
      picked.x_scale.push_back(all.x_scale_at(token, block));
  }
  return picked;
}

// Runs a body for every target and variant that this machine can run and that takes products like
// `probe`.
template <class Body>
void for_each_fp8_variant(Body body, const Fp8Shape& probe = {}) {
  for_each_way(fp8_gemm::kOp, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    const fp8_gemm::Args args = put(fixture, make_fp8_problem(probe));
    if (plan(args, fixture.where(), way.variant)) body(way.target, std::string(way.variant));
  });
}

}  // namespace tenon::test
