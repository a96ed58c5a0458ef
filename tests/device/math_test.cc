// Every function against the double-precision C library, over a lattice of all bit patterns, and
// every target, GPUs among them, against the cpu, bit for bit.
#include "tests/device/math_test.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tenon/core/fp8.h"
#include "tests/support/device_array.h"

#define TENON_TEST_SPACE math_test
#include "tests/support/kernels.inc"

namespace tenon {
namespace {

using math_test::Function;
using math_test::kernels;
using test::DeviceArray;

double oracle(Function function, double x) {
  switch (function) {
    case Function::kExp: return std::exp(x);
    case Function::kLog: return std::log(x);
    case Function::kLog1p: return std::log1p(x);
    case Function::kSoftplus:
      return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))) + (std::isnan(x) ? x : 0.0);
    case Function::kSigmoid: return 1.0 / (1.0 + std::exp(-x));
    case Function::kSilu: return x / (1.0 + std::exp(-x));
    case Function::kSqrt: return std::sqrt(x);
    case Function::kRsqrt: return static_cast<double>(1.0f / static_cast<float>(std::sqrt(x)));
    case Function::kAbs: return std::fabs(x);
  }
  return 0.0;
}

// Units of the last place that math.cuh promises.
double promised(Function function) {
  switch (function) {
    case Function::kExp:
    case Function::kLog: return 1.1;
    case Function::kSqrt: return 0.5;
    case Function::kRsqrt:  // the oracle rounds where the definition does
    case Function::kAbs: return 0.0;
    default: return 3.0;
  }
}

double error_in_ulps(float got, double want) {
  const auto rounded = static_cast<float>(want);
  if (std::isnan(want)) return std::isnan(got) ? 0.0 : 1e9;
  if (std::isinf(rounded) || std::isinf(got) || std::isnan(got)) return rounded == got ? 0.0 : 1e9;
  int exponent = 0;
  std::frexp(want, &exponent);
  return std::fabs(static_cast<double>(got) - want) /
         std::ldexp(1.0, std::max(exponent - 24, -149));
}

std::vector<float> lattice(std::uint32_t step) {
  std::vector<float> values;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += step)
    values.push_back(bits_float(static_cast<std::uint32_t>(bits)));
  for (float each : {0.0f, 1.0f, 0.5f, 88.7228f, 88.723f, -87.3365f, -103.972f, -103.98f, 20.0f,
                     std::numeric_limits<float>::infinity(), 0x1p-126f, 0x1p-149f})
    values.insert(values.end(), {each, -each});
  values.push_back(std::numeric_limits<float>::quiet_NaN());
  return values;
}

std::vector<float> apply(Target target, Function function, const std::vector<float>& in) {
  auto stream = Stream::create({target, 0});
  DeviceArray<float> there(*stream, in.size()), out(*stream, in.size());
  there.put(in);
  LaunchShape shape;
  shape.threads = is_host(target) ? test::wave_of(target) : 256;
  const Status status = launch(*stream, shape, kernels(target).unary,
                               {function, there.data(), out.data(), static_cast<int>(in.size())});
  EXPECT_TRUE(status) << status.to_string();
  return out.get(in.size());
}

TEST(Math, KeepsItsPromiseOverTheWholeRange) {
  const std::vector<float> in = lattice(24'571);  // a prime: every exponent, many mantissas
  for (Target target : test::usable_targets()) {
    for (Function function : math_test::kFunctions) {
      const std::vector<float> out = apply(target, function, in);
      for (std::size_t i = 0; i < in.size(); ++i) {
        const double want = oracle(function, static_cast<double>(in[i]));
        if (function == Function::kSilu && std::isinf(in[i])) continue;  // inf · 0 below
        if (function == Function::kSilu && std::fabs(want) < 0x1p-100 &&
            std::fabs(static_cast<double>(out[i]) - want) < 0x1p-142)
          continue;
        ASSERT_LE(error_in_ulps(out[i], want), promised(function))
            << test::to_string(target) << " function " << static_cast<int>(function) << " of "
            << in[i] << " is " << out[i] << ", not " << want;
      }
    }
  }
}

TEST(Math, SiluOfInfinities) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (Target target : test::usable_targets()) {
    const std::vector<float> out = apply(target, Function::kSilu, {infinity, -infinity});
    EXPECT_EQ(out[0], infinity);
    EXPECT_TRUE(std::isnan(out[1]));  // as x · sigmoid(x) is everywhere else
  }
}

TEST(Math, GivesTheSameBitsOnEveryTarget) {
  const std::vector<float> in = lattice(49'157);
  for (Function function : math_test::kFunctions) {
    const std::vector<float> first = apply(Target::kCpu, function, in);
    for (Target target : test::usable_targets()) {
      const std::vector<float> out = apply(target, function, in);
      for (std::size_t i = 0; i < in.size(); ++i)
        ASSERT_TRUE(float_bits(out[i]) == float_bits(first[i]) || std::isnan(out[i])) << in[i];
    }
  }
}

TEST(Math, FmaRoundsOnceAndExtremesKeepNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> a{1.0f + 0x1p-12f, nan, 2.0f, -0.5f, 3.0f};
  const std::vector<float> b{1.0f + 0x1p-12f, 1.0f, nan, 7.0f, 3.0f};
  const std::vector<float> c{-1.0f - 0x1p-11f, 0.0f, 0.0f, 1.0f, 1.0f};
  for (Target target : test::usable_targets()) {
    auto stream = Stream::create({target, 0});
    const std::size_t count = a.size();
    DeviceArray<float> a_there(*stream, count), b_there(*stream, count), c_there(*stream, count),
        fma_there(*stream, count), min_there(*stream, count), max_there(*stream, count);
    a_there.put(a), b_there.put(b), c_there.put(c);
    LaunchShape shape;
    shape.threads = test::wave_of(target);
    ASSERT_TRUE(launch(*stream, shape, kernels(target).ternary,
                       {a_there.data(), b_there.data(), c_there.data(), fma_there.data(),
                        min_there.data(), max_there.data(), static_cast<int>(count)}));
    const auto fma = fma_there.get(count), min = min_there.get(count), max = max_there.get(count);
    EXPECT_EQ(fma[0], 0x1p-24f);  // two roundings would give 0
    EXPECT_TRUE(std::isnan(min[1]) && std::isnan(max[1]) && std::isnan(min[2]) &&
                std::isnan(max[2]));
    EXPECT_EQ(min[3], -0.5f);
    EXPECT_EQ(max[3], 7.0f);
    EXPECT_EQ(min[4], 3.0f);
    EXPECT_EQ(max[4], 3.0f);
  }
}

}  // namespace
}  // namespace tenon
