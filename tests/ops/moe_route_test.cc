// moe_route against a plain reading of its header in doubles, and bit for bit between targets.
#include "tenon/ops/moe_route/moe_route.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/op_suite.h"

namespace tenon::moe_route {
namespace {

using test::DeviceFixture;
using test::Way;

struct Shape {
  int tokens = 3, experts = 8, top_k = 2, first = 0, local = 8;
  DType dtype = DType::kF32;
  int padding = 0;  // elements between rows of logits
};

struct Problem {
  Shape shape;
  std::vector<float> logits;  // [tokens, experts]
  const float* row(int token) const {
    return &logits[static_cast<std::size_t>(token * shape.experts)];
  }
};

// bf16 logits over a narrow range meet often, so that ties are tried.
Problem make_problem(const Shape& shape, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  Problem problem{shape, {}};
  for (int i = 0; i < shape.tokens * shape.experts; ++i) {
    const float logit = normal(random);
    problem.logits.push_back(shape.dtype == DType::kF32 ? logit : to_float(to_bf16(logit)));
  }
  return problem;
}

Args put(DeviceFixture& fixture, const Problem& problem) {
  const Shape& shape = problem.shape;
  const int stride = shape.experts + shape.padding;
  std::vector<float> logits(static_cast<std::size_t>(shape.tokens * stride), NAN);
  for (int t = 0; t < shape.tokens; ++t)
    std::copy_n(problem.row(t), shape.experts, logits.begin() + t * stride);
  std::vector<bf16> halves;
  for (const float each : logits) halves.push_back(to_bf16(each));
  Args args;
  args.logits = shape.dtype == DType::kF32
                    ? fixture.put(logits, DType::kF32, {shape.tokens, stride})
                    : fixture.put(halves, DType::kBF16, {shape.tokens, stride});
  args.logits.shape[1] = shape.experts;
  args.top_k = shape.top_k;
  args.first_expert = shape.first;
  args.local_experts = shape.local;
  args.weights = fixture.blank(DType::kF32, {shape.tokens, shape.top_k});
  args.slot = fixture.blank(DType::kI32, {shape.tokens, shape.top_k});
  args.offsets = fixture.blank(DType::kI32, {shape.local + 1});
  args.token_of = fixture.blank(DType::kI32, {std::int64_t{shape.tokens} * shape.top_k});
  return args;
}

struct Output {
  std::vector<float> weights;
  std::vector<std::int32_t> slot, offsets, token_of;
};
Output run_way(const Problem& problem, const Way& way) {
  DeviceFixture fixture(way.target);
  const Args args = put(fixture, problem);
  test::run_forced(fixture, args, way.variant);
  return {fixture.get<float>(args.weights), fixture.get<std::int32_t>(args.slot),
          fixture.get<std::int32_t>(args.offsets), fixture.get<std::int32_t>(args.token_of)};
}

// Whether the variant takes so many tokens.
bool takes(const Way& way, const Problem& problem) {
  DeviceFixture fixture(way.target);
  return bool(plan(put(fixture, problem), fixture.where(), way.variant));
}
Way on_cpu(const Problem& problem) {
  for (const Variant& each : variants(kOp, Target::kCpu))
    if (takes({Target::kCpu, each.name}, problem)) return {Target::kCpu, each.name};
  ADD_FAILURE() << "no variant takes it";
  return {};
}

// Experts by logit, lowest index first on ties: the order of p, but for rounding of p.
std::vector<int> chosen_experts(const Problem& problem, int token) {
  std::vector<int> order(static_cast<std::size_t>(problem.shape.experts));
  std::iota(order.begin(), order.end(), 0);
  const float* logits = problem.row(token);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  order.resize(static_cast<std::size_t>(problem.shape.top_k));
  return order;
}

void expect_weights(const Problem& problem, int token, const std::vector<int>& experts,
                    const Output& output) {
  double sum = 0;
  const float* logits = problem.row(token);
  for (const int e : experts) sum += std::exp(double{logits[e]} - logits[experts[0]]);
  for (int k = 0; k < problem.shape.top_k; ++k) {
    const double expected =
        std::exp(double{logits[experts[static_cast<std::size_t>(k)]]} - logits[experts[0]]) / sum;
    // exp: 1.1 units and the rounded difference in its argument; two divisions; the sum of top_k.
    const double spread = logits[experts[0]] - logits[experts[static_cast<std::size_t>(k)]];
    const double units = 10 + spread + problem.shape.top_k;
    EXPECT_NEAR(output.weights[static_cast<std::size_t>(token * problem.shape.top_k + k)], expected,
                units * 0x1p-23 * expected);
  }
}

void expect_oracle(const Problem& problem, const Output& output) {
  const Shape& shape = problem.shape;
  std::vector<std::vector<int>> pairs_of(static_cast<std::size_t>(shape.local));
  std::vector<std::int32_t> slot(static_cast<std::size_t>(shape.tokens * shape.top_k), -1);
  for (int t = 0; t < shape.tokens; ++t) {
    const std::vector<int> experts = chosen_experts(problem, t);
    expect_weights(problem, t, experts, output);
    for (int k = 0; k < shape.top_k; ++k) {
      const int local = experts[static_cast<std::size_t>(k)] - shape.first;
      if (local >= 0 && local < shape.local)
        pairs_of[static_cast<std::size_t>(local)].push_back(t * shape.top_k + k);
    }
  }
  std::vector<std::int32_t> offsets{0}, token_of;
  for (const auto& pairs : pairs_of) {
    for (const int pair : pairs) {
      slot[static_cast<std::size_t>(pair)] = static_cast<std::int32_t>(token_of.size());
      token_of.push_back(pair / shape.top_k);
    }
    offsets.push_back(static_cast<std::int32_t>(token_of.size()));
  }
  token_of.resize(slot.size(), 0);
  EXPECT_EQ(output.slot, slot);
  EXPECT_EQ(output.offsets, offsets);
  EXPECT_EQ(output.token_of, token_of);
}

void expect_same_bits(const Problem& problem, const Output& reference) {
  test::for_each_way(kOp, [&](const Way& way) {
    if (!takes(way, problem)) return;
    const Output output = run_way(problem, way);
    EXPECT_EQ(test::bytes_of(output.weights), test::bytes_of(reference.weights));
    EXPECT_EQ(output.slot, reference.slot);
    EXPECT_EQ(output.offsets, reference.offsets);
    EXPECT_EQ(output.token_of, reference.token_of);
  });
}

void expect_all_match(const Shape& shape) {
  SCOPED_TRACE(std::to_string(shape.tokens) + " tokens, " + std::to_string(shape.experts) +
               " experts, top " + std::to_string(shape.top_k));
  const Problem problem = make_problem(shape);
  const Output reference = run_way(problem, on_cpu(problem));
  expect_oracle(problem, reference);
  expect_same_bits(problem, reference);
}

TEST(MoeRoute, MatchesTheOracle) {
  for (const int tokens : test::sizes({1, 2, 3, 9, 33}, {1, 3, 33}))
    for (const int experts : test::sizes({1, 2, 31, 33, 64, 65, 256}, {1, 33, 256}))
      for (const int top_k : {1, 2, 8})
        if (top_k <= experts)
          expect_all_match(
              {.tokens = tokens, .experts = experts, .top_k = top_k, .local = experts});
}

TEST(MoeRoute, SortsTheLocalExpertsOnly) {
  for (const int first : {0, 3, 12})
    expect_all_match(
        {.tokens = 17, .experts = 16, .top_k = 4, .first = first, .local = first == 12 ? 4 : 5});
  expect_all_match({.tokens = 40, .experts = 512, .top_k = 10, .first = 256, .local = 256});
}

// More than a block holds.
TEST(MoeRoute, ManyTokensAreSortedInParts) {
  for (const int tokens : test::sizes({17, 63, 64, 65, 127, 128, 300}, {17, 65, 300}))
    expect_all_match({.tokens = tokens, .experts = 70, .top_k = 8, .first = 10, .local = 45});
  expect_all_match({.tokens = 130, .experts = 300, .top_k = 10, .local = 300});
  const Problem many = make_problem({.tokens = 2000, .experts = 256, .top_k = 8, .local = 256});
  for (const Target target : test::usable_targets())
    if (!test::is_slow(target)) expect_oracle(many, run_way(many, {target, "in_parts"}));
}

// A plan serves calls with fewer tokens.
TEST(MoeRoute, APlanForMoreTokensGivesTheSame) {
  for (const auto& [most, fewer] : {std::pair{16, 3}, {300, 70}, {300, 0}}) {
    const Problem large = make_problem({.tokens = most, .experts = 20, .top_k = 3, .local = 20});
    const Problem problem =
        make_problem({.tokens = fewer, .experts = 20, .top_k = 3, .local = 20}, 2);
    test::for_each_way(kOp, [&](const Way& way) {
      if (!takes(way, large)) return;
      DeviceFixture fixture(way.target);
      const auto planned = plan(put(fixture, large), fixture.where(), way.variant);
      ASSERT_TRUE(planned) << planned.status().to_string();
      const Args args = put(fixture, problem);
      const Status ran = run(*planned, args, fixture.stream());
      ASSERT_TRUE(ran) << ran.to_string();
      expect_oracle(
          problem,
          {fixture.get<float>(args.weights), fixture.get<std::int32_t>(args.slot),
           fixture.get<std::int32_t>(args.offsets), fixture.get<std::int32_t>(args.token_of)});
    });
  }
}

TEST(MoeRoute, TiesGoToTheLowestIndex) {
  expect_all_match({.tokens = 60, .experts = 200, .top_k = 8, .local = 200, .dtype = DType::kBF16});
  Problem problem = make_problem({.tokens = 2, .experts = 70, .top_k = 5, .local = 70});
  std::fill(problem.logits.begin(), problem.logits.end(), 1.5f);
  expect_oracle(problem, run_way(problem, test::on_cpu(kOp)));
  expect_same_bits(problem, run_way(problem, test::on_cpu(kOp)));
}

TEST(MoeRoute, TakesAllExpertsAndStridedRows) {
  expect_all_match({.tokens = 5, .experts = 6, .top_k = 6, .local = 6, .padding = 3});
  expect_all_match({.tokens = 3,
                    .experts = kMaxExperts,
                    .top_k = 3,
                    .local = kMaxExperts,
                    .dtype = DType::kBF16,
                    .padding = 8});
}

TEST(MoeRoute, NoTokensGiveEmptyExperts) { expect_all_match({.tokens = 0}); }

TEST(MoeRoute, FarLogitsStayFinite) {
  Problem problem = make_problem({.tokens = 1, .experts = 4, .top_k = 2, .local = 4});
  problem.logits = {-3e38f, 1000.0f, 999.0f, -INFINITY};
  const Output output = run_way(problem, test::on_cpu(kOp));
  expect_oracle(problem, output);
  expect_same_bits(problem, output);
}

TEST(MoeRoute, ANaNDamagesItsTokenOnlyAndVisibly) {
  Problem problem = make_problem({.tokens = 3, .experts = 40, .top_k = 3, .local = 40});
  problem.logits[40 + 17] = NAN;
  const Output output = run_way(problem, test::on_cpu(kOp));
  for (std::size_t i = 0; i < 9; ++i) EXPECT_EQ(std::isnan(output.weights[i]), i / 3 == 1);
  // Its experts are the first three: valid rows, so that nothing reads out of bounds.
  std::fill_n(problem.logits.begin() + 40, 40, 0.0f);
  EXPECT_EQ(output.slot, run_way(problem, test::on_cpu(kOp)).slot);
  problem.logits[40 + 17] = NAN;
  test::for_each_way(kOp,
                     [&](const Way& way) { EXPECT_EQ(run_way(problem, way).slot, output.slot); });
}

// The expert of a sorted pair.
int expert_of_row(const Output& output, std::int32_t row) {
  int expert = 0;
  while (row >= output.offsets[static_cast<std::size_t>(expert) + 1]) ++expert;
  return expert;
}

// The same experts and the same weights.
TEST(MoeRoute, ATokenDoesNotDependOnTheOthers) {
  constexpr int kTokens = 16;
  const Problem all = make_problem({.tokens = kTokens, .experts = 64, .top_k = 4, .local = 64});
  test::for_each_way(kOp, [&](const Way& way) {
    test::expect_rows_alone_equal_together(kTokens, [&](const std::vector<int>& tokens) {
      Problem some = all;
      some.shape.tokens = static_cast<int>(tokens.size());
      some.logits.clear();
      for (const int token : tokens)
        some.logits.insert(some.logits.end(), all.row(token), all.row(token) + 64);
      const Output output = run_way(some, way);
      std::vector<int> experts;
      for (const std::int32_t row : output.slot) experts.push_back(expert_of_row(output, row));
      std::vector<test::RowBytes> found(tokens.size());
      test::append_rows(found, output.weights);
      test::append_rows(found, experts);
      return found;
    });
  });
}

TEST(MoeRoute, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  const Args good = put(fixture, make_problem({}));
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.top_k = 9; }, "moe_route: top_k is 9 but must be 1 to 8"},
       {[](Args& a) { a.top_k = 0; }, "moe_route: top_k is 0 but must be 1 to 8"},
       {[](Args& a) { a.first_expert = 1; },
        "moe_route: local experts are [1, 9) but must be a part of [0, 8)"},
       {[](Args& a) { a.local_experts = 0; },
        "moe_route: local experts are [0, 0) but must be a part of [0, 8)"},
       {[](Args& a) { a.logits.shape[1] = 1025; },
        "moe_route: logits is f32 [3, 1025] on cpu:0 but there may be 1 to 1024 experts"},
       {[](Args& a) { a.logits.dtype = DType::kF16; },
        "moe_route: logits is f16 [3, 8] on cpu:0 but must be of type bf16 or f32"},
       {[](Args& a) { a.offsets.shape[0] = 8; },
        "moe_route: offsets is i32 [8] on cpu:0 but must be [local_experts + 1] with "
        "local_experts + 1 = 9"},
       {[](Args& a) { a.token_of.shape[0] = 5; },
        "moe_route: token_of is i32 [5] on cpu:0 but must be [tokens * top_k] with tokens * "
        "top_k = 6"},
       {[](Args& a) { a.slot.device.index = 1; },
        "moe_route: slot is i32 [3, 2] on cpu:1 but logits is f32 [3, 8] on cpu:0; all must "
        "lie on one device"}});
}

}  // namespace
}  // namespace tenon::moe_route
