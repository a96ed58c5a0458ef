// bf16_gemm against a double-precision reading of its header; and bit for bit: rows that do not
// depend on their number or grouping, targets that agree.
#include "tenon/ops/bf16_gemm/bf16_gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/op_suite.h"
#include "tests/support/product_oracle.h"

namespace tenon::bf16_gemm {
namespace {

using test::DeviceFixture;

struct Shape {
  int tokens = 3, n = 16, k = 64;
  DType out = DType::kBF16;
  std::vector<std::int32_t> row_index = {};             // dense
  std::vector<std::int32_t> offsets = {}, row_of = {};  // grouped if offsets are not empty
  int x_padding = 0, out_padding = 0;                   // elements between rows

  bool grouped() const { return !offsets.empty(); }
  int experts() const { return grouped() ? static_cast<int>(offsets.size()) - 1 : 1; }
  const std::vector<std::int32_t>& map() const { return grouped() ? row_of : row_index; }
  int rows() const { return map().empty() ? tokens : static_cast<int>(map().size()); }
};

struct Problem {
  Shape shape;
  std::vector<bf16> x, weight;
};

// Values over many powers of two, so that the order of additions shows.
Problem make_problem(const Shape& shape, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> exponent(-8.0f, 8.0f);
  const auto values = [&](int count) {
    std::vector<bf16> found(static_cast<std::size_t>(count));
    for (bf16& each : found) each = to_bf16(normal(random) * std::exp2(exponent(random)));
    return found;
  };
  return {shape, values(shape.tokens * shape.k), values(shape.experts() * shape.n * shape.k)};
}

int expert_of(const Shape& shape, int row) {
  int expert = 0;
  while (shape.grouped() && row >= shape.offsets[static_cast<std::size_t>(expert) + 1]) ++expert;
  return expert;
}
int token_of(const Shape& shape, int row) {
  return shape.map().empty() ? row : shape.map()[static_cast<std::size_t>(row)];
}

struct Expected {
  double value = 0, magnitude = 0;  // the sum, and the sum of absolute values
};
Expected oracle(const Problem& problem, int row, int n) {
  const auto k = static_cast<std::size_t>(problem.shape.k);
  const bf16* x = &problem.x[static_cast<std::size_t>(token_of(problem.shape, row)) * k];
  const auto expert = static_cast<std::size_t>(expert_of(problem.shape, row));
  const bf16* weight =
      &problem.weight[(expert * static_cast<std::size_t>(problem.shape.n) + n) * k];
  Expected expected;
  for (std::size_t i = 0; i < k; ++i) {
    const double term = double{to_float(x[i])} * double{to_float(weight[i])};
    expected.value += term;
    expected.magnitude += std::abs(term);
  }
  return expected;
}

Args put(DeviceFixture& fixture, const Problem& problem) {
  const Shape& shape = problem.shape;
  Args args;
  const int stride = shape.k + shape.x_padding;
  std::vector<bf16> x(static_cast<std::size_t>(shape.tokens * stride), to_bf16(NAN));
  for (int t = 0; t < shape.tokens; ++t)
    std::copy_n(problem.x.begin() + t * shape.k, shape.k, x.begin() + t * stride);
  args.x = fixture.put(x, DType::kBF16, {shape.tokens, stride});
  args.x.shape[1] = shape.k;
  if (shape.grouped()) {
    args.weight = fixture.put(problem.weight, DType::kBF16, {shape.experts(), shape.n, shape.k});
    args.offsets = fixture.put(shape.offsets, DType::kI32, {shape.experts() + 1});
    if (!shape.row_of.empty()) args.row_of = fixture.put(shape.row_of, DType::kI32, {shape.rows()});
  } else {
    args.weight = fixture.put(problem.weight, DType::kBF16, {shape.n, shape.k});
    if (!shape.row_index.empty())
      args.row_index = fixture.put(shape.row_index, DType::kI32, {shape.rows()});
  }
  args.out = fixture.rows(shape.out, shape.rows(), shape.n, shape.n + shape.out_padding);
  return args;
}

std::vector<float> run_variant(const Problem& problem, Target target, const std::string& variant) {
  DeviceFixture fixture(target);
  const Args args = put(fixture, problem);
  test::run_forced(fixture, args, variant);
  if (problem.shape.out == DType::kF32) return fixture.get<float>(args.out);
  std::vector<float> values;
  for (const bf16 each : fixture.get<bf16>(args.out)) values.push_back(to_float(each));
  return values;
}

// Any order of K additions of exact products, then one rounding to the output type.
void expect_oracle(const Problem& problem, const std::vector<float>& output) {
  const Shape& shape = problem.shape;
  ASSERT_EQ(output.size(), static_cast<std::size_t>(shape.rows() * shape.n));
  const int written = shape.grouped() ? shape.offsets.back() : shape.rows();
  const double half_ulp = shape.out == DType::kBF16 ? 0x1p-8 : 0x1p-24;
  for (int row = 0; row < written; ++row)
    for (int n = 0; n < shape.n; ++n) {
      const Expected expected = oracle(problem, row, n);
      ASSERT_NEAR(output[static_cast<std::size_t>(row * shape.n + n)], expected.value,
                  shape.k * 0x1p-24 * expected.magnitude + half_ulp * std::abs(expected.value))
          << "row " << row << " column " << n;
    }
}

// Runs a body for every target and variant that this machine can run and that takes products like
// `probe`.
template <class Body>
void for_each_variant(Body body, const Shape& probe = {}) {
  test::for_each_way(kOp, [&](const test::Way& way) {
    DeviceFixture fixture(way.target);
    const Args args = put(fixture, make_problem(probe));
    if (plan(args, fixture.where(), way.variant)) body(way.target, std::string(way.variant));
  });
}

void expect_all_match(const std::vector<Shape>& shapes) {
  const auto body = [&](Target target, const std::string& variant) {
    for (const Shape& shape : shapes) {
      if (test::wave_of(target) > 1 && shape.rows() * shape.n * shape.k > 100'000) continue;
      SCOPED_TRACE(std::to_string(shape.rows()) + " rows, n " + std::to_string(shape.n) + ", k " +
                   std::to_string(shape.k));
      const Problem problem = make_problem(shape);
      expect_oracle(problem, run_variant(problem, target, variant));
    }
  };
  for_each_variant(body, shapes.front());
}

TEST(Bf16Gemm, MatchesTheOracleAtTheEdgesOfTiles) {
  std::vector<Shape> shapes;
  for (const int tokens : test::sizes({1, 2, 3, 4, 5, 7, 8, 9, 33}, {1, 4, 9, 33}))
    for (const int n : test::sizes({1, 3, 15, 16, 17, 63, 65}, {1, 17, 65}))
      shapes.push_back({.tokens = tokens, .n = n, .k = 8 * tokens + n / 8 * 8});
  expect_all_match(shapes);
}

TEST(Bf16Gemm, MatchesTheOracleForEveryLengthOfRows) {
  std::vector<Shape> shapes;
  for (const int k : test::sizes({8, 16, 24, 120, 128, 136, 248, 256, 1000, 1024, 1032, 2056},
                                 {8, 136, 1032, 2056}))
    for (const DType out : {DType::kBF16, DType::kF32})
      shapes.push_back({.tokens = k > 200 ? 2 : 6, .n = 9, .k = k, .out = out});
  expect_all_match(shapes);
}

TEST(Bf16Gemm, MatchesTheOracleWithStridedAndGatheredRows) {
  expect_all_match({{.tokens = 6, .n = 33, .k = 72, .x_padding = 8, .out_padding = 5},
                    {.tokens = 6,
                     .n = 20,
                     .k = 128,
                     .out = DType::kF32,
                     .row_index = {5, 0, 0, 3},
                     .x_padding = 128,
                     .out_padding = 1},
                    {.tokens = 2, .n = 7, .k = 40, .row_index = {1, 0, 1, 1, 0, 1, 0, 0, 1}}});
}

TEST(Bf16Gemm, MatchesTheOracleInGroups) {
  expect_all_match(
      {{.tokens = 12, .n = 20, .k = 88, .offsets = {0, 0, 1, 10, 10, 12}},
       {.tokens = 3, .n = 50, .k = 64, .offsets = {0, 2, 2, 7}, .row_of = {0, 2, 1, 1, 0, 2, 2}},
       {.tokens = 40, .n = 9, .k = 136, .out = DType::kF32, .offsets = {0, 3, 40}}});
}

TEST(Bf16Gemm, NoRowsIsFine) {
  for_each_variant([](Target target, const std::string& variant) {
    EXPECT_TRUE(run_variant(make_problem({.tokens = 0}), target, variant).empty());
  });
  const Problem none = make_problem({.tokens = 2, .offsets = {0, 0, 0}, .row_of = {0, 0, 0}});
  const auto body = [&](Target target, const std::string& variant) {
    for (const float value : run_variant(none, target, variant))
      ASSERT_EQ(value, to_float(bf16{0xa5a5}));
  };
  for_each_variant(body, none.shape);
}

TEST(Bf16Gemm, ARowDoesNotDependOnTheOthers) {
  for_each_variant([](Target target, const std::string& variant) {
    const int tokens = test::wave_of(target) > 1 ? 11 : 70;
    const int n = 30, k = 1112;
    const Problem all = make_problem({.tokens = tokens, .n = n, .k = k, .out = DType::kF32});
    const auto reference = run_variant(all, target, variant);
    for (const int count :
         test::sizes({1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 32, 33, 64}, {3, 9, 33})) {
      if (count > tokens) break;
      Problem picked = all;
      for (int i = 0; i < count; ++i) picked.shape.row_index.push_back((i * 7 + count) % tokens);
      const auto output = run_variant(picked, target, variant);
      for (int i = 0; i < count; ++i)
        for (int column = 0; column < n; ++column)
          ASSERT_EQ(output[static_cast<std::size_t>(i * n + column)],
                    reference[static_cast<std::size_t>(token_of(picked.shape, i) * n + column)])
              << count << " rows, row " << i << ", column " << column;
    }
  });
}

TEST(Bf16Gemm, ARowDoesNotDependOnItsGroup) {
  const auto body = [](Target target, const std::string& variant) {
    const Problem dense = make_problem({.tokens = 9, .n = 40, .k = 328, .out = DType::kF32});
    const auto reference = run_variant(dense, target, variant);
    Problem grouped = dense;
    grouped.shape.offsets = {0, 1, 6, 9, 10};
    grouped.shape.row_of = {8, 0, 1, 2, 3, 4, 5, 6, 7, 8};
    grouped.weight.clear();
    for (int e = 0; e < 4; ++e)
      grouped.weight.insert(grouped.weight.end(), dense.weight.begin(), dense.weight.end());
    const auto output = run_variant(grouped, target, variant);
    for (int row = 0; row < 10; ++row)
      for (int n = 0; n < 40; ++n)
        ASSERT_EQ(output[static_cast<std::size_t>(row * 40 + n)],
                  reference[static_cast<std::size_t>(token_of(grouped.shape, row) * 40 + n)]);
  };
  for_each_variant(body, {.tokens = 1, .offsets = {0, 1}});
}

// Devices choose another kernel for up to 8, 16, 32 and more rows, and copy rows that are gathered
// in another way: all give the same bits, and those of the definition.
TEST(Bf16Gemm, OnDevicesARowIsTheSameAmongAnyNumberOfRows) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const auto shapes =
      test::sizes<Shape>({{.tokens = 300, .n = 200, .k = 1288, .out = DType::kF32},
                          {.tokens = 140, .n = 70, .k = 4232},  // eight segments, uneven
                          {.tokens = 33, .n = 257, .k = 2048, .out = DType::kF32},
                          {.tokens = 33, .n = 70, .k = 3080},
                          {.tokens = 140, .n = 4100, .k = 392, .out = DType::kF32},
                          {.tokens = 80, .n = 34100, .k = 1152, .x_padding = 8}},
                         {{.tokens = 130, .n = 200, .k = 1288, .out = DType::kF32},
                          {.tokens = 9, .n = 257, .k = 2048, .out = DType::kF32},
                          {.tokens = 17, .n = 70, .k = 3080, .x_padding = 8}});
  for_each_variant([&](Target target, const std::string& variant) {
    if (is_host(target)) return;
    for (const Shape& shape : shapes) {
      SCOPED_TRACE("n " + std::to_string(shape.n) + ", k " + std::to_string(shape.k));
      const Problem all = make_problem(shape);
      const auto reference = run_variant(all, target, variant);
      for (int i = 0; i < test::size(4000, 200); ++i) {
        const int row = i * 29 % shape.tokens, n = i * 23 % shape.n;
        test::ProductTerms terms;
        terms.n = shape.n;
        for (int k = 0; k < shape.k; ++k) {
          terms.x.push_back(to_float(all.x[static_cast<std::size_t>(row * shape.k + k)]));
          terms.w.push_back(to_float(all.weight[static_cast<std::size_t>(n * shape.k + k)]));
        }
        const float exact = test::exact_product(terms, variant);
        ASSERT_EQ(reference[static_cast<std::size_t>(row * shape.n + n)],
                  shape.out == DType::kF32 ? exact : to_float(to_bf16(exact)))
            << "row " << row << ", column " << n;
      }
      for (const int count : test::row_counts(shape.tokens, 70, 3, 41)) {
        for (const char* rows : {"first", "scattered", "mostly following"}) {
          SCOPED_TRACE(rows);
          Problem picked = all;
          if (rows[0] == 'f') {
            picked.shape.tokens = count;
          } else {
            for (int i = 0; i < count; ++i)
              picked.shape.row_index.push_back((rows[0] == 's' ? i * 37 + count
                                                : i % 29 == 5  ? count
                                                               : i) %
                                               shape.tokens);
          }
          const auto output = run_variant(picked, target, variant);
          for (int i = 0; i < count; ++i)
            for (int n = 0; n < shape.n; ++n)
              ASSERT_EQ(
                  output[static_cast<std::size_t>(i * shape.n + n)],
                  reference[static_cast<std::size_t>(token_of(picked.shape, i) * shape.n + n)])
                  << count << " rows, row " << i << ", column " << n;
        }
      }
    }
  });
}

// From 4096 rows on, tiles of 128 of them in pairs of blocks.
TEST(Bf16Gemm, OnDevicesManyRowsHaveTheBitsOfFew) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const Shape shapes[] = {{.tokens = 4200, .n = 256, .k = 2048, .out = DType::kF32},
                          {.tokens = 4096, .n = 1, .k = 1288, .out = DType::kF32},
                          {.tokens = 4303, .n = 70, .k = 392, .x_padding = 8},
                          {.tokens = 4100, .n = 4101, .k = 136}};
  for_each_variant([&](Target target, const std::string& variant) {
    if (is_host(target)) return;
    for (const Shape& shape : shapes) {
      SCOPED_TRACE("n " + std::to_string(shape.n) + ", k " + std::to_string(shape.k));
      const Problem all = make_problem(shape);
      const auto together = run_variant(all, target, variant);
      for (int first = 0; first < shape.tokens; first += test::size(310, 1240)) {
        Problem picked = all;
        for (int i = first; i < std::min(first + 64, shape.tokens); ++i)
          picked.shape.row_index.push_back(i);
        const auto output = run_variant(picked, target, variant);
        for (std::size_t i = 0; i < output.size(); ++i)
          ASSERT_EQ(output[i], together[static_cast<std::size_t>(first * shape.n) + i])
              << "row " << first + static_cast<int>(i) / shape.n << ", column "
              << static_cast<int>(i) % shape.n;
      }
    }
  });
}

// A plan serves calls with fewer rows, and a graph every value of x and of the index.
TEST(Bf16Gemm, AReplayedPlanForMoreRowsGivesTheSameBits) {
  for_each_variant([](Target target, const std::string& variant) {
    const int most = is_host(target) ? 20 : 200, tokens = 12;
    Problem problem = make_problem({.tokens = tokens, .n = 70, .k = 1160});
    for (int i = 0; i < most; ++i) problem.shape.row_index.push_back(i * 5 % tokens);
    DeviceFixture bench(target);
    const Args whole = put(bench, problem);
    const auto planned = plan(whole, bench.where(), variant);
    ASSERT_TRUE(planned) << planned.status().to_string();
    for (const int rows : {most, most / 2, 7, 1}) {
      Problem part = problem, other = problem;
      part.shape.row_index.resize(static_cast<std::size_t>(rows));
      other.shape.row_index.assign(static_cast<std::size_t>(rows), 3);
      const auto expected = run_variant(part, target, variant);
      Args args = whole;
      args.out.shape[0] = rows;
      args.row_index = bench.put(other.shape.row_index, DType::kI32, {rows});
      ASSERT_TRUE(Graph::begin(bench.stream()));
      for (int i = 0; i < 3; ++i) ASSERT_TRUE(run(*planned, args, bench.stream()));
      Graph graph = DeviceFixture::must(Graph::end(bench.stream()));
      ASSERT_TRUE(graph.replay(bench.stream()));
      ASSERT_TRUE(bench.stream().copy(args.row_index->data, part.shape.row_index.data(),
                                      static_cast<std::size_t>(rows) * sizeof(std::int32_t)));
      ASSERT_TRUE(graph.replay(bench.stream()));
      std::vector<float> values;
      for (const bf16 each : bench.get<bf16>(args.out)) values.push_back(to_float(each));
      EXPECT_EQ(values, expected) << rows << " rows";
    }
  });
}

TEST(Bf16Gemm, TheVariantDoesNotDependOnTheNumberOfRows) {
  for (const Target target : test::usable_targets()) {
    DeviceFixture bench(target);
    std::string first;
    for (const int tokens : {1, 64, 65, 300}) {
      const Args args = put(bench, make_problem({.tokens = tokens, .n = 150, .k = 256}));
      const auto planned = plan(args, bench.where());
      ASSERT_TRUE(planned) << planned.status().to_string();
      if (first.empty()) first = planned->variant_name;
      EXPECT_EQ(planned->variant_name, first) << tokens << " rows";
    }
  }
}

TEST(Bf16Gemm, ThePortableVariantGivesTheSameBitsOnEveryTarget) {
  const Problem problem = make_problem({.tokens = 10, .n = 37, .k = 376, .out = DType::kF32});
  const auto reference = run_variant(problem, Target::kCpu, "simt");
  for (const Target target : test::usable_targets())
    EXPECT_EQ(run_variant(problem, target, "simt"), reference) << name(target);
}

// The definition, bit for bit: one segment, several, uneven ones, and a last block that is short.
TEST(Bf16Gemm, KeepsItsDefinitionToTheBit) {
  const Shape shapes[] = {{.tokens = 3, .n = 20, .k = 392, .out = DType::kF32},
                          {.tokens = 2, .n = 20, .k = 1160, .out = DType::kF32},
                          {.tokens = 1, .n = 17, .k = 2056, .out = DType::kF32},
                          {.tokens = 6, .n = 4, .k = 5248, .out = DType::kF32}};
  for (const Shape& shape : shapes) {
    const Problem problem = make_problem(shape);
    for_each_variant([&](Target target, const std::string& variant) {
      const auto output = run_variant(problem, target, variant);
      for (int row = 0; row < shape.tokens; ++row)
        for (int n = 0; n < shape.n; ++n) {
          test::ProductTerms terms;
          terms.n = shape.n;
          for (int k = 0; k < shape.k; ++k) {
            terms.x.push_back(to_float(problem.x[static_cast<std::size_t>(row * shape.k + k)]));
            terms.w.push_back(to_float(problem.weight[static_cast<std::size_t>(n * shape.k + k)]));
          }
          ASSERT_EQ(output[static_cast<std::size_t>(row * shape.n + n)],
                    test::exact_product(terms, variant))
              << "k " << shape.k << " row " << row << " column " << n;
        }
    });
  }
}

TEST(Bf16Gemm, InstructionSetsAgree) {
  for (const int tokens : {1, 2, 3, 4, 5, 8, 9, 34}) {
    const Problem problem =
        make_problem({.tokens = tokens, .n = 70, .k = 1416, .out = DType::kF32});
    const auto reference = run_variant(problem, Target::kCpu, "lanes");
    for_each_variant([&](Target target, const std::string& variant) {
      if (target != Target::kCpu || variant == "simt") return;
      const auto output = run_variant(problem, target, variant);
      EXPECT_EQ(output, reference) << variant << ", " << tokens << " tokens";
    });
  }
}

TEST(Bf16Gemm, NaNsAndInfinitiesReachTheirOutputsOnly) {
  for_each_variant([](Target target, const std::string& variant) {
    for (const int tokens : {1, 2, 6}) {
      const Shape shape{.tokens = tokens, .n = 20, .k = 72, .out = DType::kF32};
      Problem problem = make_problem(shape);
      problem.x[static_cast<std::size_t>((tokens - 1) * shape.k + 71)] = to_bf16(NAN);
      problem.weight[static_cast<std::size_t>(3 * shape.k)] = to_bf16(INFINITY);
      const auto output = run_variant(problem, target, variant);
      for (int row = 0; row < tokens; ++row)
        for (int n = 0; n < shape.n; ++n) {
          const float value = output[static_cast<std::size_t>(row * shape.n + n)];
          ASSERT_EQ(std::isnan(value), row == tokens - 1) << row << " " << n;
          ASSERT_EQ(std::isinf(value), row != tokens - 1 && n == 3) << row << " " << n;
        }
    }
  });
}

TEST(Bf16Gemm, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  const Args good = put(fixture, make_problem({.tokens = 2, .n = 16, .k = 64, .row_index = {1}}));
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.x.shape[1] = a.weight.shape[1] = 60; },
        "bf16_gemm: x is bf16 [2, 60] on cpu:0 but k must be a multiple of 8"},
       {[](Args& a) { a.weight.dtype = DType::kF16; },
        "bf16_gemm: weight is f16 [16, 64] on cpu:0 but must be of type bf16"},
       {[](Args& a) { a.out.dtype = DType::kF16; },
        "bf16_gemm: out is f16 [1, 16] on cpu:0 but must be of type bf16 or f32"},
       {[](Args& a) { a.weight.shape[1] = 56; },
        "bf16_gemm: weight is bf16 [16, 56] on cpu:0 but must be [n, k] with k = 64"},
       {[](Args& a) { a.row_index->dtype = DType::kI64; },
        "bf16_gemm: row_index is i64 [1] on cpu:0 but must be of type i32"},
       {[](Args& a) { a.row_of = a.row_index; },
        "bf16_gemm: offsets or row_of were given, but weight is bf16 [16, 64] on cpu:0; a "
        "grouped product needs [experts, n, k]"},
       {[](Args& a) {
          a.weight.num_dims = 3;
          a.weight.shape = {1, 16, 64, 0};
          a.weight.stride = {1024, 64, 1, 0};
        },
        "bf16_gemm: row_index was given for a grouped product; it is dense only, give row_of"},
       {[](Args& a) {
          a.weight.num_dims = 3;
          a.weight.shape = {1, 16, 64, 0};
          a.weight.stride = {1024, 64, 1, 0};
          a.row_index.reset();
        },
        "bf16_gemm: weight is bf16 [1, 16, 64] on cpu:0 (one matrix per expert) but offsets "
        "were not given"}});
}

TEST(Bf16Gemm, TrafficCountsEveryOperandOnce) {
  DeviceFixture fixture(Target::kCpu);
  const Traffic dense = traffic(put(fixture, make_problem({.tokens = 2, .n = 16, .k = 64})));
  EXPECT_EQ(dense.flops, 2.0 * 2 * 16 * 64);
  EXPECT_EQ(dense.memory_bytes, 2.0 * (2 * 64 + 16 * 64 + 2 * 16));
}

}  // namespace
}  // namespace tenon::bf16_gemm
