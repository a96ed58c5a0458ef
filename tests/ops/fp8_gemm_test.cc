// fp8_gemm against a double-precision reading of its header; and bit for bit: rows that do not
// depend on their number or grouping, targets and instruction sets that agree.
#include "tenon/ops/fp8_gemm/fp8_gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/fp8_product.h"
#include "tests/support/op_suite.h"
#include "tests/support/product_oracle.h"

namespace tenon::fp8_gemm {
namespace {

using test::DeviceFixture;
using Shape = test::Fp8Shape;
using Problem = test::Fp8Problem;
using Output = test::Fp8Output;

Problem make_problem(const Shape& shape, unsigned seed = 1) {
  return test::make_fp8_problem(shape, seed);
}
template <class Body>
void for_each_variant(Body body, const Shape& probe = {}) {
  test::for_each_fp8_variant(body, probe);
}

int expert_of(const Shape& shape, int row) {
  int expert = 0;
  while (shape.grouped() && row >= shape.offsets[static_cast<std::size_t>(expert) + 1]) ++expert;
  return expert;
}
int token_of(const Shape& shape, int row) {
  return shape.row_of.empty() ? row : shape.row_of[static_cast<std::size_t>(row)];
}
int num_written(const Shape& shape) {
  return shape.grouped() ? shape.offsets.back() : shape.rows();
}

struct Expected {
  double value, magnitude;  // the sum, and the sum of absolute values
};
Expected oracle(Problem& problem, int row, int n) {
  const int expert = expert_of(problem.shape, row), token = token_of(problem.shape, row);
  Expected expected{0, 0};
  for (int k = 0; k < problem.shape.k; ++k) {
    const double term = double{problem.x_scale_at(token, k / 128)} *
                        double{problem.weight_scale_at(expert, n, k / 128)} *
                        problem.x_at(token, k) * problem.weight_at(expert, n, k);
    expected.value += term;
    expected.magnitude += std::abs(term);
  }
  return expected;
}

// Any order of K additions of exact products, two scalings: (K + 2) roundings of 2^-24 of the
// magnitude; then one of the output type. Tensor cores cut what they add to fewer bits.
double tolerance(const Shape& shape, const Expected& expected, const std::string& variant) {
  const double half_ulp = shape.out == DType::kBF16 ? 0x1p-8 : 0x1p-24;
  const double of_block = variant.starts_with("sm90") ? test::kWgmmaBlockError : 0.0;
  return ((shape.k + 2) * 0x1p-24 + of_block) * expected.magnitude +
         half_ulp * std::abs(expected.value);
}

void expect_oracle(Problem& problem, const Output& output, const std::string& variant) {
  const Shape& shape = problem.shape;
  ASSERT_EQ(output.values.size(), static_cast<std::size_t>(shape.rows() * shape.n));
  for (int row = 0; row < num_written(shape); ++row)
    for (int n = 0; n < shape.n; ++n) {
      const Expected expected = oracle(problem, row, n);
      ASSERT_NEAR(output.values[static_cast<std::size_t>(row * shape.n + n)], expected.value,
                  tolerance(shape, expected, variant))
          << "row " << row << " column " << n;
    }
}

void expect_all_match(const std::vector<Shape>& shapes) {
  const auto body = [&](Target target, const std::string& variant) {
    for (const Shape& shape : shapes) {
      if (test::wave_of(target) > 1 && shape.rows() * shape.n * shape.k > 200'000) continue;
      SCOPED_TRACE(std::to_string(shape.rows()) + " rows, n " + std::to_string(shape.n) + ", k " +
                   std::to_string(shape.k));
      Problem problem = make_problem(shape);
      expect_oracle(problem, run_variant(problem, target, variant), variant);
    }
  };
  for_each_variant(body, shapes.front());
}

TEST(Fp8Gemm, MatchesTheOracleAtTheEdgesOfTiles) {
  std::vector<Shape> shapes;
  for (const int tokens : test::sizes({1, 2, 3, 4, 5, 7, 8, 9, 33}, {1, 4, 9, 33}))
    for (const int n : test::sizes({1, 3, 15, 16, 17, 63, 65}, {1, 17, 65}))
      shapes.push_back({.tokens = tokens, .n = n, .k = tokens % 2 == 0 ? 384 : 128});
  expect_all_match(shapes);
}

TEST(Fp8Gemm, MatchesTheOracleWithManyScales) {
  std::vector<Shape> shapes;
  for (const ScaleLayout layout : {ScaleLayout::kRow, ScaleLayout::kMnMajor})
    for (const DType out : {DType::kBF16, DType::kF32}) {
      shapes.push_back({.tokens = 5, .n = 130, .k = 256, .layout = layout, .out = out});
      shapes.push_back({.tokens = 2, .n = 257, .k = 384, .layout = layout, .out = out});
      shapes.push_back({.tokens = 35, .n = 20, .k = 1408, .layout = layout, .out = out});
    }
  expect_all_match(shapes);
}

TEST(Fp8Gemm, MatchesTheOracleWithStridedRows) {
  expect_all_match(
      {{.tokens = 6, .n = 33, .k = 256, .x_padding = 16, .out_padding = 5},
       {.tokens = 3, .n = 20, .k = 128, .out = DType::kF32, .x_padding = 128, .out_padding = 1}});
}

TEST(Fp8Gemm, MatchesTheOracleInGroups) {
  expect_all_match({{.tokens = 12, .n = 20, .k = 128, .offsets = {0, 0, 1, 10, 10, 12}},
                    {.tokens = 3,
                     .n = 130,
                     .k = 256,
                     .layout = ScaleLayout::kMnMajor,
                     .offsets = {0, 2, 2, 7},
                     .row_of = {0, 2, 1, 1, 0, 2, 2}},
                    {.tokens = 40, .n = 9, .k = 256, .out = DType::kF32, .offsets = {0, 3, 40}}});
}

TEST(Fp8Gemm, RowsPastTheLastGroupStay) {
  const Shape shape{
      .tokens = 4, .n = 18, .k = 128, .offsets = {0, 2, 3}, .row_of = {3, 0, 1, 0, 0}};
  const auto body = [&](Target target, const std::string& variant) {
    Problem problem = make_problem(shape);
    const Output output = run_variant(problem, target, variant);
    expect_oracle(problem, output, variant);
    for (std::size_t i = 3 * 18 * 2; i < output.bytes.size(); ++i) ASSERT_EQ(output.bytes[i], 0xa5);
  };
  for_each_variant(body, shape);
}

TEST(Fp8Gemm, NoRowsIsFine) {
  for_each_variant([](Target target, const std::string& variant) {
    EXPECT_TRUE(run_variant(make_problem({.tokens = 0}), target, variant).values.empty());
  });
  const Problem none = make_problem({.tokens = 2, .offsets = {0, 0, 0}, .row_of = {0, 0, 0}});
  const auto body = [&](Target target, const std::string& variant) {
    for (const std::uint8_t byte : run_variant(none, target, variant).bytes) ASSERT_EQ(byte, 0xa5);
  };
  for_each_variant(body, none.shape);
}

TEST(Fp8Gemm, ARowDoesNotDependOnTheOthers) {
  for_each_variant([](Target target, const std::string& variant) {
    const int tokens = test::wave_of(target) > 1 ? 11 : 70;
    Problem all = make_problem({.tokens = tokens, .n = 70, .k = 1280, .out = DType::kF32});
    const auto reference = run_variant(all, target, variant).values;
    for (const int count :
         test::sizes({1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 32, 33, 64}, {3, 9, 33})) {
      if (count > tokens) break;
      std::vector<int> picked;
      for (int i = 0; i < count; ++i) picked.push_back((i * 7 + count) % tokens);
      const auto output = run_variant(pick_rows(all, picked), target, variant).values;
      for (int i = 0; i < count; ++i)
        for (int n = 0; n < 70; ++n)
          ASSERT_EQ(
              output[static_cast<std::size_t>(i * 70 + n)],
              reference[static_cast<std::size_t>(picked[static_cast<std::size_t>(i)] * 70 + n)])
              << count << " rows, row " << i << ", column " << n;
    }
  });
}

TEST(Fp8Gemm, ARowDoesNotDependOnItsGroup) {
  const auto body = [](Target target, const std::string& variant) {
    Problem dense = make_problem({.tokens = 9, .n = 40, .k = 640, .out = DType::kF32});
    const std::string of_dense = variant == "sm90_experts" ? "sm90" : variant;
    const auto reference = run_variant(dense, target, of_dense).values;
    Problem grouped = dense;
    grouped.shape.offsets = {0, 1, 6, 9, 10};
    grouped.shape.row_of = {8, 0, 1, 2, 3, 4, 5, 6, 7, 8};
    grouped.weight.clear();
    grouped.weight_scale.clear();
    for (int e = 0; e < 4; ++e) {
      grouped.weight.insert(grouped.weight.end(), dense.weight.begin(), dense.weight.end());
      grouped.weight_scale.insert(grouped.weight_scale.end(), dense.weight_scale.begin(),
                                  dense.weight_scale.end());
    }
    const auto output = run_variant(grouped, target, variant).values;
    for (int row = 0; row < 10; ++row)
      for (int n = 0; n < 40; ++n)
        ASSERT_EQ(output[static_cast<std::size_t>(row * 40 + n)],
                  reference[static_cast<std::size_t>(token_of(grouped.shape, row) * 40 + n)]);
  };
  for_each_variant(body, {.tokens = 1, .offsets = {0, 1}});
}

TEST(Fp8Gemm, ThePortableVariantGivesTheSameBitsOnEveryTarget) {
  const Problem problem = make_problem({.tokens = 10, .n = 37, .k = 384, .out = DType::kF32});
  const auto reference = run_variant(problem, Target::kCpu, "simt");
  for (const Target target : test::usable_targets())
    EXPECT_EQ(run_variant(problem, target, "simt").bytes, reference.bytes) << name(target);
}

test::ProductTerms terms_of(Problem& problem, int row, int n) {
  const Shape& shape = problem.shape;
  test::ProductTerms terms;
  terms.n = shape.n;
  for (int k = 0; k < shape.k; ++k) {
    terms.x.push_back(static_cast<float>(problem.x_at(row, k)));
    terms.w.push_back(static_cast<float>(problem.weight_at(0, n, k)));
  }
  for (int block = 0; block < shape.k_blocks(); ++block)
    terms.scales.push_back(problem.x_scale_at(row, block) * problem.weight_scale_at(0, n, block));
  return terms;
}

// The definition, bit for bit: one segment, several, uneven ones, and scales that cannot be moved.
TEST(Fp8Gemm, KeepsItsDefinitionToTheBit) {
  const Shape shapes[] = {{.tokens = 3, .n = 20, .k = 384, .out = DType::kF32},
                          {.tokens = 2, .n = 20, .k = 1152, .out = DType::kF32},
                          {.tokens = 1, .n = 17, .k = 2176, .out = DType::kF32},
                          {.tokens = 6, .n = 4, .k = 5248, .out = DType::kF32}};
  for (const Shape& shape : shapes) {
    Problem problem = make_problem(shape);
    for (float& scale : problem.weight_scale) scale *= 1.3f;
    for_each_variant([&](Target target, const std::string& variant) {
      const auto output = run_variant(problem, target, variant).values;
      for (int row = 0; row < shape.tokens; ++row)
        for (int n = 0; n < shape.n; ++n)
          ASSERT_EQ(output[static_cast<std::size_t>(row * shape.n + n)],
                    test::exact_product(terms_of(problem, row, n), variant))
              << "k " << shape.k << " row " << row << " column " << n;
    });
  }
}

// Devices choose another kernel for up to 8, 16, 32 and more rows: all give the same bits, and
// those of the definition.
TEST(Fp8Gemm, OnDevicesARowIsTheSameAmongAnyNumberOfRows) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const auto shapes = test::sizes<Shape>(
      {{.tokens = 512, .n = 200, .k = 1280},                     // two segments
       {.tokens = 512, .n = 70, .k = 4224, .out = DType::kF32},  // eight, uneven
       {.tokens = 512, .n = 4100, .k = 384, .layout = ScaleLayout::kMnMajor},
       // Up to 16 rows with a block's weight whole in shared memory: one, two and four segments.
       {.tokens = 33, .n = 5200, .k = 1024},
       {.tokens = 33, .n = 2100, .k = 4096, .layout = ScaleLayout::kMnMajor},
       {.tokens = 33, .n = 1100, .k = 2048, .out = DType::kF32},
       {.tokens = 33, .n = 2100, .k = 1024, .x_padding = 16, .out_padding = 5},
       // Two warpgroups in turns: a short last batch, refilled stages.
       {.tokens = 20, .n = 5130, .k = 2944},
       {.tokens = 20, .n = 4040, .k = 6528, .layout = ScaleLayout::kMnMajor},
       {.tokens = 40, .n = 10250, .k = 256},    // two blocks on a multiprocessor
       {.tokens = 80, .n = 17000, .k = 1152}},  // three
      {{.tokens = 130, .n = 200, .k = 1280},
       {.tokens = 65, .n = 70, .k = 4224, .out = DType::kF32},
       {.tokens = 130, .n = 4100, .k = 384, .layout = ScaleLayout::kMnMajor},
       {.tokens = 9, .n = 5200, .k = 1024},
       {.tokens = 9, .n = 2100, .k = 1024, .x_padding = 16, .out_padding = 5},
       {.tokens = 9, .n = 1100, .k = 2048, .out = DType::kF32},
       {.tokens = 9, .n = 5130, .k = 2944},
       {.tokens = 9, .n = 10250, .k = 256}});
  for_each_variant([&](Target target, const std::string& variant) {
    if (is_host(target)) return;
    for (const Shape& shape : shapes) {
      SCOPED_TRACE("n " + std::to_string(shape.n) + ", k " + std::to_string(shape.k));
      Problem all = make_problem(shape);
      for (float& scale : all.weight_scale) scale *= 1.3f;
      const auto reference = run_variant(all, target, variant).values;
      for (int i = 0; i < test::size(4000, 200); ++i) {
        const int row = i * 29 % shape.tokens, n = i * 23 % shape.n;
        const float exact = test::exact_product(terms_of(all, row, n), variant);
        ASSERT_EQ(reference[static_cast<std::size_t>(row * shape.n + n)],
                  shape.out == DType::kF32 ? exact : to_float(to_bf16(exact)))
            << "row " << row << ", column " << n;
      }
      for (const int count : test::row_counts(shape.tokens, 130, 1, 47)) {
        std::vector<int> picked;
        for (int i = 0; i < count; ++i) picked.push_back((i * 37 + count) % shape.tokens);
        const auto output = run_variant(pick_rows(all, picked), target, variant).values;
        for (int i = 0; i < count; ++i)
          for (int n = 0; n < shape.n; ++n)
            ASSERT_EQ(output[static_cast<std::size_t>(i * shape.n + n)],
                      reference[static_cast<std::size_t>(
                          picked[static_cast<std::size_t>(i)] * shape.n + n)])
                << count << " rows, row " << i << ", column " << n;
      }
    }
  });
}

TEST(Fp8Gemm, OnHopperFewRowsHaveAKernelOfTheirOwn) {
  for_each_variant([](Target target, const std::string& variant) {
    if (variant != "sm90") return;
    const std::pair<Shape, int> table[] = {{{.n = 5200, .k = 1024}, 1},
                                           {{.n = 2100, .k = 1024}, 2},
                                           {{.n = 2100, .k = 4096}, 2},
                                           {{.n = 1100, .k = 2048}, 4}};
    for (auto [shape, segments] : table)
      for (const int rows : {1, 8, 9, 16, 17}) {
        SCOPED_TRACE(std::to_string(rows) + " rows, n " + std::to_string(shape.n));
        shape.tokens = rows;
        DeviceFixture fixture(target);
        const Plan planned = test::plan_forced(fixture, put(fixture, make_problem(shape)), variant);
        const std::string_view kernel = planned.launches.front().kernel;
        EXPECT_EQ(kernel, rows > 16 ? "sm90_kernel" : "sm90_few_kernel");
        if (kernel != "sm90_few_kernel") continue;
        EXPECT_EQ(planned.setting("rows"), rows > 8 ? 16 : 8);
        EXPECT_EQ(planned.setting("segments"), segments);
      }
  });
}

// From 2048 rows on pairs of blocks share what they read of the weight.
TEST(Fp8Gemm, OnDevicesManyRowsHaveTheBitsOfFew) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const Shape shapes[] = {
      {.tokens = 2300, .n = 516, .k = 1280, .layout = ScaleLayout::kMnMajor, .out_padding = 4},
      {.tokens = 2100, .n = 4101, .k = 384},
      {.tokens = 2049, .n = 4228, .k = 640, .out = DType::kF32}};
  for_each_variant([&](Target target, const std::string& variant) {
    if (is_host(target)) return;
    for (const Shape& shape : shapes) {
      SCOPED_TRACE("n " + std::to_string(shape.n) + ", k " + std::to_string(shape.k));
      Problem all = make_problem(shape);
      const auto together = run_variant(all, target, variant).values;
      for (int first = 0; first < shape.tokens; first += test::size(310, 1240)) {
        std::vector<int> picked;
        for (int i = first; i < std::min(first + 64, shape.tokens); ++i) picked.push_back(i);
        const auto output = run_variant(pick_rows(all, picked), target, variant).values;
        for (std::size_t i = 0; i < output.size(); ++i)
          ASSERT_EQ(output[i], together[static_cast<std::size_t>(first * shape.n) + i])
              << "row " << first + static_cast<int>(i) / shape.n << ", column "
              << static_cast<int>(i) % shape.n;
      }
    }
  });
}

// Rows of an expert, whatever their number and whoever scatters them, have the bits of a product
// with that expert's matrix alone.
void expect_the_bits_of_dense_products(Target target, const Shape& dense,
                                       const std::vector<int>& sizes, bool scattered) {
  Problem grouped = make_problem(dense);
  grouped.shape.offsets = {0};
  for (const int size : sizes) grouped.shape.offsets.push_back(grouped.shape.offsets.back() + size);
  const int rows = grouped.shape.offsets.back() + 5;  // the last five have no expert
  if (!scattered) grouped.shape.tokens = rows;
  grouped = make_problem(grouped.shape);
  if (scattered)
    for (int i = 0; i < rows; ++i) grouped.shape.row_of.push_back(i * 37 % dense.tokens);
  std::string chosen;
  {
    DeviceFixture fixture(target);
    const auto planned = plan(put(fixture, grouped), fixture.where());
    ASSERT_TRUE(planned) << planned.status().to_string();
    chosen = planned->variant_name;
  }
  const auto output = run_variant(grouped, target, chosen).bytes;
  const std::size_t row_bytes = output.size() / static_cast<std::size_t>(rows);
  for (std::size_t e = 0; e < sizes.size(); ++e) {
    std::vector<int> tokens;
    for (int row = grouped.shape.offsets[e]; row < grouped.shape.offsets[e + 1]; ++row)
      tokens.push_back(token_of(grouped.shape, row));
    if (tokens.empty()) continue;
    Problem one = pick_rows(grouped, tokens);
    one.shape.offsets.clear(), one.shape.row_of.clear();
    const auto part = [&](auto& values) {
      const std::size_t size = values.size() / sizes.size();
      values = {values.data() + e * size, values.data() + (e + 1) * size};
    };
    part(one.weight), part(one.weight_scale);
    DeviceFixture fixture(target);
    const auto planned = plan(put(fixture, one), fixture.where());
    ASSERT_TRUE(planned) << planned.status().to_string();
    EXPECT_EQ(planned->promise.name, chosen == "simt" ? std::string_view("simt_fp32") : "sm90_fp8");
    const auto expected = run_variant(one, target, std::string(planned->variant_name)).bytes;
    const std::size_t begin = static_cast<std::size_t>(grouped.shape.offsets[e]) * row_bytes;
    ASSERT_TRUE(std::equal(expected.begin(), expected.end(), output.begin() + begin))
        << "expert " << e;
  }
  for (std::size_t i = static_cast<std::size_t>(rows - 5) * row_bytes; i < output.size(); ++i)
    ASSERT_EQ(output[i], 0xa5);
}

TEST(Fp8Gemm, OnDevicesExpertsHaveTheBitsOfDenseProducts) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const auto shapes =
      test::sizes<Shape>({{.tokens = 90, .n = 200, .k = 1280},                     // two segments
                          {.tokens = 90, .n = 70, .k = 4224, .out = DType::kF32},  // eight, uneven
                          {.tokens = 90, .n = 258, .k = 2048, .layout = ScaleLayout::kMnMajor},
                          {.tokens = 90, .n = 2048, .k = 512},
                          {.tokens = 90, .n = 4100, .k = 384}},
                         {{.tokens = 90, .n = 200, .k = 1280},
                          {.tokens = 90, .n = 258, .k = 2048, .layout = ScaleLayout::kMnMajor}});
  const std::vector<int> few = {0, 1, 3, 0, 64, 65, 0, 8, 0, 0, 9, 2, 0};
  const std::vector<int> many = {0, 1, 3, 0, 64, 65, 130, 8, 0, 128, 300, 129, 0};
  for (const Target target : test::device_targets())
    for (const Shape& dense : shapes)
      for (const auto& sizes : {few, many})
        for (const bool scattered : {true, false}) {
          SCOPED_TRACE("n " + std::to_string(dense.n) + (scattered ? ", scattered" : "") +
                       (sizes == few ? ", few" : ", many"));
          expect_the_bits_of_dense_products(target, dense, sizes, scattered);
        }
}

// A plan serves calls with fewer rows, whose blocks find no work, and a graph every value of x.
TEST(Fp8Gemm, AReplayedPlanForMoreRowsGivesTheSameBits) {
  // Devices have kernels of their own for up to 16 rows of such a weight.
  const auto shapes_of = [](Target target) {
    return is_host(target) ? std::vector<Shape>{{.tokens = 20, .n = 150, .k = 1152}}
                           : std::vector<Shape>{{.tokens = 300, .n = 150, .k = 1152},
                                                {.tokens = 16, .n = 5200, .k = 1024},
                                                {.tokens = 16, .n = 2100, .k = 1024},
                                                {.tokens = 16, .n = 1100, .k = 2048}};
  };
  for_each_variant([&](Target target, const std::string& variant) {
    for (const Shape& shape : shapes_of(target)) {
      const int most = shape.tokens;
      Problem problem = make_problem(shape);
      Problem other = make_problem(problem.shape, 2);
      DeviceFixture bench(target);
      const Args whole = put(bench, problem);
      const auto planned = plan(whole, bench.where(), variant);
      ASSERT_TRUE(planned) << planned.status().to_string();
      for (const int rows : {most, most / 2, 7, 1}) {
        std::vector<int> first;
        for (int i = 0; i < rows; ++i) first.push_back(i);
        const auto expected = run_variant(pick_rows(problem, first), target, variant).bytes;
        Args args = whole;
        args.x.data.shape[0] = args.x.scale.shape[0] = args.out.shape[0] = rows;
        Buffer codes = DeviceFixture::must(Buffer::allocate(bench.device(), other.x.size()));
        ASSERT_TRUE(bench.stream().copy(codes.data(), other.x.data(), other.x.size()));
        ASSERT_TRUE(bench.stream().synchronize());
        args.x.data.data = codes.data();
        ASSERT_TRUE(Graph::begin(bench.stream()));
        for (int i = 0; i < 3; ++i) ASSERT_TRUE(run(*planned, args, bench.stream()));
        Graph graph = DeviceFixture::must(Graph::end(bench.stream()));
        ASSERT_TRUE(graph.replay(bench.stream()));
        ASSERT_TRUE(bench.stream().copy(codes.data(), problem.x.data(), problem.x.size()));
        ASSERT_TRUE(graph.replay(bench.stream()));
        EXPECT_EQ(test::bytes_of(bench.get<bf16>(args.out)), expected) << rows << " rows";
      }
    }
  });
}

TEST(Fp8Gemm, TheVariantDoesNotDependOnTheNumberOfRows) {
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

TEST(Fp8Gemm, InstructionSetsAgree) {
  for (const int tokens : {1, 2, 3, 4, 5, 8, 9, 34}) {
    const Problem problem =
        make_problem({.tokens = tokens, .n = 70, .k = 1408, .out = DType::kF32});
    const auto reference = run_variant(problem, Target::kCpu, "lanes");
    for_each_variant([&](Target target, const std::string& variant) {
      if (target != Target::kCpu || variant == "simt") return;
      const auto output = run_variant(problem, target, variant);
      EXPECT_EQ(output.bytes, reference.bytes) << variant << ", " << tokens << " tokens";
    });
  }
}

TEST(Fp8Gemm, NaNsReachExactlyTheOutputsTheyBelongTo) {
  for_each_variant([](Target target, const std::string& variant) {
    for (const int tokens : {1, 2, 6}) {
      const Shape shape{.tokens = tokens, .n = 136, .k = 256, .out = DType::kF32};
      const auto expect_nan = [&](const Problem& problem, auto&& is_damaged) {
        const auto output = run_variant(problem, target, variant).values;
        for (int row = 0; row < tokens; ++row)
          for (int n = 0; n < shape.n; ++n)
            ASSERT_EQ(std::isnan(output[static_cast<std::size_t>(row * shape.n + n)]),
                      is_damaged(row, n))
                << row << " " << n;
      };
      Problem code = make_problem(shape), scale = code, weight = code, weight_scale = code;
      code.x[static_cast<std::size_t>((tokens - 1) * shape.k + 200)] = 0xff;
      expect_nan(code, [&](int row, int) { return row == tokens - 1; });
      scale.x_scale_at(0, 1) = std::nanf("");
      expect_nan(scale, [&](int row, int) { return row == 0; });
      weight.weight[static_cast<std::size_t>(77 * shape.k + 3)] = 0x7f;
      weight.weight[static_cast<std::size_t>(135 * shape.k + 255)] = 0xff;
      expect_nan(weight, [&](int, int n) { return n == 77 || n == 135; });
      weight_scale.weight_scale_at(0, 130, 0) = std::nanf("");
      expect_nan(weight_scale, [&](int, int n) { return n >= 128; });
    }
  });
}

TEST(Fp8Gemm, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  const Args good = put(fixture, make_problem({.tokens = 2, .n = 16, .k = 256}));
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.x.group = 64; }, "fp8_gemm: x has groups of 64 elements but must have 128"},
       {[](Args& a) { a.x.layout = ScaleLayout::kUe8m0Packed; },
        "fp8_gemm: x.scale has the layout ue8m0_packed; accepted are row and mn_major"},
       {[](Args& a) { a.weight.dtype = DType::kBF16; },
        "fp8_gemm: weight is bf16 [16, 256] on cpu:0 but must be of type e4m3fn"},
       {[](Args& a) { a.x.data.dtype = DType::kE5M2; },
        "fp8_gemm: x is e5m2 [2, 256] on cpu:0 but must be of type e4m3fn"},
       {[](Args& a) { a.weight_scale.shape[0] = 2; },
        "fp8_gemm: weight_scale is f32 [2, 2] on cpu:0 but must be [1, 2] with 1 = 1"},
       {[](Args& a) { a.x.scale.dtype = DType::kBF16; },
        "fp8_gemm: x.scale is bf16 [2, 2] on cpu:0 but must be of type f32"},
       {[](Args& a) { a.x.data.data = a.x.data.as<std::uint8_t>() + 1; },
        "fp8_gemm: x is e4m3fn [2, 256] on cpu:0 at an address that is not a multiple of 16 "
        "bytes"},
       {[](Args& a) { a.x.data.stride[0] = 257; },
        "fp8_gemm: x is e4m3fn [2, 256] on cpu:0 with a stride of 257 bytes in dimension 0; "
        "it must be a multiple of 16"},
       {[](Args& a) { a.out.shape[0] = 1; },
        "fp8_gemm: out is bf16 [1, 16] on cpu:0 but x is e4m3fn [2, 256] on cpu:0; without an "
        "index of rows they have the same number"},
       {[](Args& a) {
          a.out.device = Device{Target::kEmu32, 0};
        },
        "fp8_gemm: x is e4m3fn [2, 256] on cpu:0 but out is bf16 [2, 16] on emu32:0; all "
        "tensors must lie on one device"},
       {[](Args& a) { a.offsets = a.out; },
        "fp8_gemm: offsets or row_of were given, but weight is e4m3fn [16, 256] on cpu:0; a "
        "grouped product needs [experts, n, k]"}});
}

TEST(Fp8Gemm, RefusesAWidthThatScalesDoNotCover) {
  DeviceFixture fixture(Target::kCpu);
  Args args = put(fixture, make_problem({.tokens = 2, .n = 16, .k = 256}));
  args.x.data.shape[1] = args.weight.shape[1] = 192;
  EXPECT_EQ(test::refusal(check(args)),
            "fp8_gemm: x is e4m3fn [2, 192] on cpu:0 but k must be a multiple of 128");
}

TEST(Fp8Gemm, TrafficCountsEveryOperandOnce) {
  DeviceFixture fixture(Target::kCpu);
  const Traffic dense = traffic(put(fixture, make_problem({.tokens = 2, .n = 16, .k = 256})));
  EXPECT_EQ(dense.flops, 2.0 * 2 * 16 * 256);
  EXPECT_EQ(dense.memory_bytes, 2 * 256 + 16 * 256 + 2 * 16 * 2 + 2 * 2 * 4);
}

}  // namespace
}  // namespace tenon::fp8_gemm
