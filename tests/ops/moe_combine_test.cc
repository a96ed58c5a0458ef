// moe_combine against a double-precision reading of its header; and bit for bit: against the
// header's order in fp32, on every target, for every choice of tokens.
#include "tenon/ops/moe_combine/moe_combine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/exact_math.h"
#include "tests/support/op_suite.h"

namespace tenon::moe_combine {
namespace {

using test::DeviceFixture;
using test::Way;

struct Shape {
  int tokens = 3, hidden = 8, top_k = 2;
  DType gate = DType::kBF16;
  int padding = 0;  // elements between rows
};

struct Problem {
  Shape shape;
  int pairs = 0;
  std::vector<bf16> routed, shared;
  std::vector<float> weights, gate;
  std::vector<std::int32_t> slot;
};

// A third of the pairs lies on another rank; the slots of the others are in a shuffled order.
Problem make_problem(const Shape& shape, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Problem problem;
  problem.shape = shape;
  std::vector<std::int32_t> order;
  for (int pair = 0; pair < shape.tokens * shape.top_k; ++pair)
    if (pair % 3 != 1) order.push_back(static_cast<std::int32_t>(order.size()));
  problem.pairs = static_cast<int>(order.size());
  std::shuffle(order.begin(), order.end(), random);
  for (int pair = 0, next = 0; pair < shape.tokens * shape.top_k; ++pair) {
    problem.slot.push_back(pair % 3 != 1 ? order[static_cast<std::size_t>(next++)] : -1);
    problem.weights.push_back(std::abs(normal(random)));
  }
  const int stride = shape.hidden + shape.padding;
  for (int i = 0; i < problem.pairs * stride; ++i)
    problem.routed.push_back(to_bf16(normal(random) * std::exp2(normal(random) * 3.0f)));
  for (int i = 0; i < shape.tokens * stride; ++i) problem.shared.push_back(to_bf16(normal(random)));
  for (int t = 0; t < shape.tokens; ++t)
    problem.gate.push_back(to_float(to_bf16(normal(random) * 4.0f)));
  return problem;
}

Args put(DeviceFixture& fixture, const Problem& problem) {
  const Shape& shape = problem.shape;
  const int stride = shape.hidden + shape.padding;
  Args args;
  args.routed = fixture.put(problem.routed, DType::kBF16, {problem.pairs, stride});
  args.shared = fixture.put(problem.shared, DType::kBF16, {shape.tokens, stride});
  args.routed.shape[1] = args.shared.shape[1] = shape.hidden;
  args.weights = fixture.put(problem.weights, DType::kF32, {shape.tokens, shape.top_k});
  args.slot = fixture.put(problem.slot, DType::kI32, {shape.tokens, shape.top_k});
  if (shape.gate == DType::kF32) {
    args.shared_gate = fixture.put(problem.gate, DType::kF32, {shape.tokens, 1});
  } else {
    std::vector<bf16> gate;
    for (const float each : problem.gate) gate.push_back(to_bf16(each));
    args.shared_gate = fixture.put(gate, DType::kBF16, {shape.tokens, 1});
  }
  args.out.addend = fixture.rows(DType::kBF16, shape.tokens, shape.hidden, stride);
  return args;
}

std::vector<bf16> run_way(const Problem& problem, const Way& way) {
  DeviceFixture fixture(way.target);
  const Args args = put(fixture, problem);
  test::run_forced(fixture, args, way.variant);
  return fixture.get<bf16>(args.out.addend);
}

void expect_oracle(const Problem& problem, const std::vector<bf16>& output) {
  const Shape& shape = problem.shape;
  const int stride = shape.hidden + shape.padding;
  ASSERT_EQ(output.size(), static_cast<std::size_t>(shape.tokens * shape.hidden));
  for (int t = 0; t < shape.tokens; ++t)
    for (int i = 0; i < shape.hidden; ++i) {
      double value = 0, magnitude = 0;
      const auto add = [&](double term) { value += term, magnitude += std::abs(term); };
      for (int k = 0; k < shape.top_k; ++k) {
        const auto pair = static_cast<std::size_t>(t * shape.top_k + k);
        if (problem.slot[pair] < 0) continue;
        const auto at = static_cast<std::size_t>(problem.slot[pair] * stride + i);
        add(double{problem.weights[pair]} * double{to_float(problem.routed[at])});
      }
      const double gate =
          1.0 / (1.0 + std::exp(-double{problem.gate[static_cast<std::size_t>(t)]}));
      add(gate * double{to_float(problem.shared[static_cast<std::size_t>(t * stride + i)])});
      // A product and a sum per term, three units in the sigmoid; then one rounding to bf16.
      const double tolerance =
          (2 * shape.top_k + 5) * 0x1p-24 * magnitude + 0x1p-8 * std::abs(value);
      ASSERT_NEAR(to_float(output[static_cast<std::size_t>(t * shape.hidden + i)]), value,
                  tolerance)
          << "token " << t << " element " << i;
    }
}

void expect_all_give(const Problem& problem, const std::vector<bf16>& expected) {
  test::for_each_way(kOp, [&](const Way& way) {
    EXPECT_EQ(test::bytes_of(run_way(problem, way)), test::bytes_of(expected));
  });
}

void expect_all_match(const Problem& problem) {
  const auto reference = run_way(problem, test::on_cpu(kOp));
  expect_oracle(problem, reference);
  expect_all_give(problem, reference);
}

TEST(MoeCombine, MatchesTheOracle) {
  for (const int tokens : {1, 2, 7})
    for (const int hidden : {8, 16, 1016, 1024, 1032})
      for (const int top_k : {1, 2, 8})
        expect_all_match(make_problem({.tokens = tokens, .hidden = hidden, .top_k = top_k}));
}

TEST(MoeCombine, KeepsItsDefinitionToTheBit) {
  const Problem problem = make_problem({.tokens = 6, .hidden = 72, .top_k = 8});
  const Shape& shape = problem.shape;
  std::vector<bf16> expected;
  for (int t = 0; t < shape.tokens; ++t)
    for (int i = 0; i < shape.hidden; ++i) {
      float sum = 0.0f;
      for (int k = 0; k < shape.top_k; ++k) {
        const auto pair = static_cast<std::size_t>(t * shape.top_k + k);
        if (problem.slot[pair] < 0) continue;
        const auto at = static_cast<std::size_t>(problem.slot[pair] * shape.hidden + i);
        sum = sum + problem.weights[pair] * to_float(problem.routed[at]);
      }
      const float gate = test::exact_sigmoid(problem.gate[static_cast<std::size_t>(t)]);
      const auto at = static_cast<std::size_t>(t * shape.hidden + i);
      expected.push_back(to_bf16(sum + gate * to_float(problem.shared[at])));
    }
  expect_all_give(problem, expected);
}

// Beside the same pairs.
TEST(MoeCombine, ATokenDoesNotDependOnTheOthers) {
  const Problem all = make_problem({.tokens = 9, .hidden = 40, .top_k = 4, .gate = DType::kF32});
  const Shape& shape = all.shape;
  test::for_each_way(kOp, [&](const Way& way) {
    test::expect_rows_alone_equal_together(shape.tokens, [&](const std::vector<int>& tokens) {
      Problem some = all;
      some.shape.tokens = static_cast<int>(tokens.size());
      some.weights.clear(), some.slot.clear(), some.shared.clear(), some.gate.clear();
      const auto append = [](const auto& from, int token, int width, auto& to) {
        to.insert(to.end(), from.begin() + token * width, from.begin() + (token + 1) * width);
      };
      for (const int token : tokens) {
        append(all.weights, token, shape.top_k, some.weights);
        append(all.slot, token, shape.top_k, some.slot);
        append(all.shared, token, shape.hidden, some.shared);
        append(all.gate, token, 1, some.gate);
      }
      std::vector<test::RowBytes> found(tokens.size());
      test::append_rows(found, run_way(some, way));
      return found;
    });
  });
}

TEST(MoeCombine, TakesStridedRowsAndFloatGates) {
  expect_all_match(
      make_problem({.tokens = 5, .hidden = 40, .top_k = 3, .gate = DType::kF32, .padding = 24}));
}

TEST(MoeCombine, ATokenWithoutLocalExpertsHasItsSharedOneOnly) {
  Problem problem = make_problem({.tokens = 2, .hidden = 16, .top_k = 2});
  std::fill(problem.slot.begin(), problem.slot.end(), -1);
  expect_all_match(problem);
}

TEST(MoeCombine, NoTokensAndNoPairsAreFine) {
  expect_all_match(make_problem({.tokens = 0}));
  Problem problem = make_problem({.tokens = 1});
  problem.slot = {-1, -1};
  problem.pairs = 0;
  problem.routed.clear();
  expect_all_match(problem);
}

TEST(MoeCombine, SkippedPairsMayHoldAnything) {
  Problem problem = make_problem({.tokens = 3, .hidden = 8, .top_k = 3});
  for (std::size_t pair = 0; pair < problem.slot.size(); ++pair)
    if (problem.slot[pair] < 0) problem.weights[pair] = std::nanf("");
  expect_all_match(problem);
}

TEST(MoeCombine, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  const Args good = put(fixture, make_problem({}));
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.slot.shape[1] = 3; },
        "moe_combine: slot is i32 [3, 3] on cpu:0 but must be [tokens, top_k] with top_k = 2"},
       {[](Args& a) { a.weights.dtype = DType::kBF16; },
        "moe_combine: weights is bf16 [3, 2] on cpu:0 but must be of type f32"},
       {[](Args& a) { a.shared_gate.shape[1] = 2; },
        "moe_combine: shared_gate is bf16 [3, 2] on cpu:0 but must be [tokens, 1] with 1 = 1"},
       {[](Args& a) { a.routed.stride[0] = 9; },
        "moe_combine: routed is bf16 [4, 8] on cpu:0 but every row must begin at a multiple of "
        "16 bytes"},
       {[](Args& a) { a.weights.stride[0] = 4; },
        "moe_combine: weights is f32 [3, 2] on cpu:0 but must be contiguous"},
       {[](Args& a) { a.shared.device.index = 1; },
        "moe_combine: shared is bf16 [3, 8] on cpu:1 but out is bf16 [3, 8] on cpu:0; all must "
        "lie on one device"}});
}

}  // namespace
}  // namespace tenon::moe_combine
