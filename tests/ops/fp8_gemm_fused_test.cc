// What fp8_gemm makes in the launch of a product besides it, an activation or another product: bit
// for bit what launches of their own make.
#include <gtest/gtest.h>

#include "tenon/ops/bf16_gemm/bf16_gemm.h"
#include "tenon/ops/fp8_gemm/fp8_gemm.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tests/support/fp8_product.h"

namespace tenon::fp8_gemm {
namespace {

using test::DeviceFixture;
using Shape = test::Fp8Shape;
using Problem = test::Fp8Problem;

Problem make_problem(const Shape& shape, unsigned seed = 1) {
  return test::make_fp8_problem(shape, seed);
}
template <class Body>
void for_each_variant(Body body, const Shape& probe = {}) {
  test::for_each_fp8_variant(body, probe);
}

// What of a mlp lies between two products: codes and scales.
struct Activated {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
};
QuantView blank_activated(DeviceFixture& fixture, int rows, int width) {
  QuantView made;
  made.data = fixture.blank(DType::kE4M3, {rows, width});
  made.scale = fixture.blank(DType::kF32, {rows, width / 128});
  return made;
}
Activated read(DeviceFixture& fixture, const QuantView& made) {
  return {fixture.get<std::uint8_t>(made.data), fixture.get<float>(made.scale)};
}

// One launch instead of two, for any number of rows and with a plan for more: the same bits.
TEST(Fp8GemmFused, OnDevicesTheActivationHasTheBitsOfTheChain) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const Shape shapes[] = {{.tokens = 300, .n = 512, .k = 640},
                          {.tokens = 2200, .n = 768, .k = 896, .layout = ScaleLayout::kMnMajor},
                          {.tokens = 150, .n = 34816, .k = 256}};
  const auto counts =
      test::sizes({1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 127, 128, 129, 256, 300, 2200},
                  {1, 9, 17, 33, 65, 129, 300, 2200});
  for_each_variant([&](Target target, const std::string& variant) {
    if (is_host(target) || variant != "sm90") return;
    for (const Shape& shape : shapes) {
      SCOPED_TRACE("n " + std::to_string(shape.n) + ", k " + std::to_string(shape.k));
      Problem all = make_problem(shape);
      for (float& scale : all.weight_scale) scale *= 0x1p-9f;  // both ends of the activation
      for (const int count : counts) {
        if (count > shape.tokens) break;
        std::vector<int> picked;
        for (int i = 0; i < count; ++i) picked.push_back((i * 37 + count) % shape.tokens);
        const Problem problem = pick_rows(all, picked);
        DeviceFixture fixture(target);
        Args args = put(fixture, problem);
        test::run_forced(fixture, args, variant);
        const QuantView expected = blank_activated(fixture, count, shape.n / 2);
        const fp8_quant::Args quantise{.in = args.out,
                                       .prologue = fp8_quant::Prologue::kSiluMul,
                                       .row_limit = nullptr,
                                       .out = {.bf16 = {}, .fp8 = expected}};
        const auto quantised = fp8_quant::plan(quantise, fixture.where());
        ASSERT_TRUE(quantised) << quantised.status().to_string();
        ASSERT_TRUE(fp8_quant::run(*quantised, quantise, fixture.stream()));
        const auto before = fixture.get<std::uint16_t>(args.out);
        args.activated = blank_activated(fixture, count, shape.n / 2);
        test::run_forced(fixture, args, variant);
        const Activated one = read(fixture, *args.activated), two = read(fixture, expected);
        EXPECT_EQ(test::bytes_of(one.scales), test::bytes_of(two.scales)) << count << " rows";
        ASSERT_EQ(one.codes, two.codes) << count << " rows";
        ASSERT_EQ(fixture.get<std::uint16_t>(args.out), before) << "out was written";
      }
    }
  });
}

// The same of experts with many rows; rows that belong to none stay. With few rows the plan is
// refused.
TEST(Fp8GemmFused, OnDevicesTheActivationOfExpertsHasTheBitsOfTheChain) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const std::vector<int> sizes = {0, 1, 300, 0, 64, 65, 130, 8, 0, 128, 129, 63};
  for_each_variant(
      [&](Target target, const std::string& variant) {
        if (is_host(target) || variant != "sm90_experts") return;
        for (const Shape& shape : test::sizes<Shape>(
                 {{.tokens = 90, .n = 1024, .k = 2048},
                  {.tokens = 90, .n = 256, .k = 128},
                  {.tokens = 90, .n = 768, .k = 1408},
                  {.tokens = 90, .n = 512, .k = 640, .layout = ScaleLayout::kMnMajor}},
                 {{.tokens = 90, .n = 256, .k = 128},
                  {.tokens = 90, .n = 512, .k = 640, .layout = ScaleLayout::kMnMajor}}))
          for (const bool scattered : {true, false}) {
            SCOPED_TRACE("n " + std::to_string(shape.n) + (scattered ? ", scattered" : ""));
            Shape grouped = shape;
            grouped.offsets = {0};
            for (const int size : sizes) grouped.offsets.push_back(grouped.offsets.back() + size);
            const int filled = grouped.offsets.back(), rows = filled + 3, width = shape.n / 2;
            if (!scattered) grouped.tokens = rows;
            for (int i = 0; scattered && i < rows; ++i) grouped.row_of.push_back(i * 37 % 90);
            Problem problem = make_problem(grouped);
            for (float& scale : problem.weight_scale) scale *= 0x1p-9f;
            DeviceFixture fixture(target);
            Args args = put(fixture, problem);
            test::run_forced(fixture, args, variant);
            const QuantView expected = blank_activated(fixture, rows, width);
            const TensorView limit =
                fixture.put(std::vector<std::int32_t>{filled}, DType::kI32, {1});
            const fp8_quant::Args quantise{.in = args.out,
                                           .prologue = fp8_quant::Prologue::kSiluMul,
                                           .row_limit = limit.as<std::int32_t>(),
                                           .out = {.bf16 = {}, .fp8 = expected}};
            const auto quantised = fp8_quant::plan(quantise, fixture.where());
            ASSERT_TRUE(quantised) << quantised.status().to_string();
            ASSERT_TRUE(fp8_quant::run(*quantised, quantise, fixture.stream()));
            args.activated = blank_activated(fixture, rows, width);
            test::run_forced(fixture, args, variant);
            const Activated one = read(fixture, *args.activated), two = read(fixture, expected);
            ASSERT_EQ(test::bytes_of(one.scales), test::bytes_of(two.scales));
            ASSERT_EQ(one.codes, two.codes);
            if (!scattered) continue;
            Args less = args;
            for (TensorView* each :
                 {&less.out, &*less.row_of, &less.activated->data, &less.activated->scale})
              *each = each->rows(0, 90);
            const auto refused = plan(less, fixture.where(), variant);
            ASSERT_FALSE(refused);
            EXPECT_NE(refused.status().message().find("90 rows of 12 experts; tiles are for 32"),
                      std::string_view::npos)
                << refused.status().to_string();
          }
      },
      {.tokens = 1, .n = 256, .offsets = {0, 1}});
}

// A small product of bf16 in the same launch: both have the bits that they have alone, and the plan
// serves fewer rows.
TEST(Fp8GemmFused, OnDevicesAProductBesideHasItsOwnBits) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  struct Pair {
    Shape main;
    int n, k;
    DType out;
  };
  const Pair pairs[] = {{{.tokens = 64, .n = 8192, .k = 640}, 48, 2560, DType::kBF16},
                        {{.tokens = 64, .n = 5200, .k = 2944}, 48, 5120, DType::kBF16},
                        {{.tokens = 64, .n = 6144, .k = 256}, 33, 1032, DType::kF32},
                        {{.tokens = 64, .n = 5200, .k = 1024}, 32, 2048, DType::kBF16},
                        {{.tokens = 64, .n = 5120, .k = 3072}, 32, 3072, DType::kBF16},
                        {{.tokens = 64, .n = 200, .k = 512}, 1, 200, DType::kBF16}};
  for_each_variant([&](Target target, const std::string& variant) {
    if (is_host(target) || variant != "sm90") return;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (const Pair& pair : pairs) {
      SCOPED_TRACE("n " + std::to_string(pair.main.n) + " and " + std::to_string(pair.n));
      std::vector<std::uint16_t> x, weight;
      for (int i = 0; i < 64 * pair.k; ++i) x.push_back(to_bf16(normal(random)).bits);
      for (int i = 0; i < pair.n * pair.k; ++i) weight.push_back(to_bf16(normal(random)).bits);
      Problem problem = make_problem(pair.main);
      DeviceFixture fixture(target);
      Args whole = put(fixture, problem);
      whole.beside = Beside{fixture.put(x, DType::kBF16, {64, pair.k}),
                            fixture.put(weight, DType::kBF16, {pair.n, pair.k}),
                            fixture.blank(pair.out, {64, pair.n})};
      for (const int rows : test::sizes({64, 63, 32, 17, 16, 9, 8, 1}, {63, 17, 9, 1})) {
        const auto with_rows = [&](int count) {
          Args some = whole;
          for (TensorView* each :
               {&some.x.data, &some.x.scale, &some.out, &some.beside->x, &some.beside->out})
            each->shape[0] = count;
          return some;
        };
        const Args args = with_rows(rows);
        Args alone = args;
        alone.beside.reset();
        alone.out = fixture.blank(DType::kBF16, {rows, pair.main.n});
        bf16_gemm::Args other;
        other.x = args.beside->x;
        other.weight = args.beside->weight;
        other.out = fixture.blank(pair.out, {rows, pair.n});
        test::run_forced(fixture, alone, variant);
        test::run_forced(fixture, other, variant);
        const auto read = [&](const TensorView& out) {
          TensorView bytes = out;
          bytes.dtype = DType::kU8;
          bytes.shape[1] *= static_cast<std::int64_t>(size_of(out.dtype));
          bytes.stride[0] = bytes.shape[1];
          return fixture.get<std::uint8_t>(bytes);
        };
        for (const int planned : {rows, 16, 64}) {
          if (planned < rows) continue;
          ASSERT_TRUE(fixture.stream().fill(args.out.data, 0xa5, args.out.bytes()));
          ASSERT_TRUE(fixture.stream().fill(args.beside->out.data, 0xa5, args.beside->out.bytes()));
          test::run_plan(fixture, test::plan_forced(fixture, with_rows(planned), variant), args);
          EXPECT_EQ(read(args.out), read(alone.out)) << rows << " of " << planned << " rows";
          EXPECT_EQ(read(args.beside->out), read(other.out))
              << rows << " of " << planned << " rows";
        }
      }
    }
  });
}

TEST(Fp8GemmFused, RefusalsOfAnActivationSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  Args good = put(fixture, make_problem({.tokens = 2, .n = 256, .k = 128}));
  good.activated = blank_activated(fixture, 2, 128);
  EXPECT_TRUE(check(good));
  const auto refused = plan(good, fixture.where());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.status().code(), Code::kUnsupported);
  EXPECT_NE(refused.status().message().find("activated is asked for; it makes a plain product"),
            std::string_view::npos);
  const auto refusal_after = [&](auto change) {
    Args args = good;
    change(args);
    return test::refusal(check(args));
  };
  EXPECT_EQ(refusal_after([](Args& a) { a.activated->data.shape[1] = 256; }),
            "fp8_gemm: activated is e4m3fn [2, 256] on cpu:0 but must be [rows, width] with width "
            "= 128");
  EXPECT_EQ(refusal_after([](Args& a) { a.activated->layout = ScaleLayout::kMnMajor; }),
            "fp8_gemm: activated must have groups of 128 elements and scales of the layout row");
  EXPECT_EQ(refusal_after([](Args& a) { a.out.dtype = DType::kF32; }),
            "fp8_gemm: activated was given, but out is f32 [2, 256] on cpu:0; gate and up are "
            "rounded to bf16");
  EXPECT_EQ(refusal_after([](Args& a) {
              a.weight.shape[0] = a.out.shape[1] = 128;
              a.weight_scale.shape[0] = 1;
            }),
            "fp8_gemm: weight is e4m3fn [128, 128] on cpu:0 but with activated, n must be a "
            "multiple of 256");
}

TEST(Fp8GemmFused, RefusalsOfAProductBesideSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  Args good = put(fixture, make_problem({.tokens = 2, .n = 256, .k = 128}));
  good.beside = Beside{fixture.blank(DType::kBF16, {2, 64}), fixture.blank(DType::kBF16, {3, 64}),
                       fixture.blank(DType::kF32, {2, 3})};
  EXPECT_TRUE(check(good));
  EXPECT_EQ(plan(good, fixture.where()).status().code(), Code::kUnsupported);
  const auto refusal_after = [&](auto change) {
    Args args = good;
    change(args);
    return test::refusal(check(args));
  };
  EXPECT_EQ(refusal_after([](Args& a) { a.beside->x.shape[0] = a.beside->out.shape[0] = 1; }),
            "fp8_gemm: beside: out is f32 [1, 3] on cpu:0 but out is bf16 [2, 256] on cpu:0; they "
            "must have the same number of rows");
  EXPECT_EQ(refusal_after([](Args& a) { a.beside->weight.dtype = DType::kF16; }),
            "fp8_gemm: beside: weight is f16 [3, 64] on cpu:0 but must be of type bf16");
  EXPECT_EQ(refusal_after([&](Args& a) { a.activated = blank_activated(fixture, 2, 128); }),
            "fp8_gemm: a product beside was given; it is for one matrix [n, k] without activation");
}

}  // namespace
}  // namespace tenon::fp8_gemm
