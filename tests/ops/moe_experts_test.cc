// moe_experts against the chain of single ops that it stands for, bit for bit, on devices that have
// a variant of it: any routing, any number of tokens that it takes, and replayed.
#include "tenon/ops/moe_experts/moe_experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tenon/core/fp8.h"
#include "tenon/ops/fp8_gemm/fp8_gemm.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tenon/ops/moe_combine/moe_combine.h"
#include "tenon/ops/moe_route/moe_route.h"
#include "tests/support/op_suite.h"

namespace tenon::moe_experts {
namespace {

using test::DeviceFixture;

enum class Routed { kAnywhere, kSkewed, kToTheSame, kNowhere };

struct Shape {
  int tokens = 3, experts = 16, top_k = 4, hidden = 512, width = 128;
  int all_experts = 16;  // over all ranks
  Routed routed = Routed::kAnywhere;
  bool shared = true;
  ScaleLayout layout = ScaleLayout::kRow;
  int first_expert = 0;  // of this rank, where experts are chosen by logits
};

struct Routing {
  std::vector<std::int32_t> offsets, token_of, slot;
  std::vector<float> weights;
};

// As moe_route leaves it.
Routing make_routing(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(0.01f, 1.0f);
  Routing routing;
  std::vector<std::vector<int>> pairs(static_cast<std::size_t>(shape.experts));
  const int num_pairs = shape.tokens * shape.top_k;
  routing.slot.assign(static_cast<std::size_t>(num_pairs), -1);
  for (int t = 0; t < shape.tokens; ++t) {
    std::vector<std::pair<float, int>> order;
    for (int e = 0; e < shape.all_experts; ++e) {
      float key = uniform(random);
      if (shape.routed == Routed::kSkewed) key -= 0.1f * static_cast<float>(e);
      if (shape.routed == Routed::kToTheSame) key = -static_cast<float>(e);
      if (shape.routed == Routed::kNowhere && e < shape.experts) key = -10.0f;
      order.emplace_back(-key, e);
    }
    std::sort(order.begin(), order.end());
    std::shuffle(order.begin(), order.begin() + shape.top_k, random);
    for (int k = 0; k < shape.top_k; ++k) {
      const int e = order[static_cast<std::size_t>(k)].second;
      routing.weights.push_back(uniform(random));
      if (e < shape.experts) pairs[static_cast<std::size_t>(e)].push_back(t * shape.top_k + k);
    }
  }
  routing.offsets.push_back(0);
  for (const auto& of_expert : pairs) {
    for (const int pair : of_expert) {
      routing.slot[static_cast<std::size_t>(pair)] =
          static_cast<std::int32_t>(routing.token_of.size());
      routing.token_of.push_back(pair / shape.top_k);
    }
    routing.offsets.push_back(static_cast<std::int32_t>(routing.token_of.size()));
  }
  routing.token_of.resize(static_cast<std::size_t>(num_pairs), 0);
  return routing;
}

// Finite codes of every magnitude; scales over several powers of two.
std::vector<std::uint8_t> make_codes(std::int64_t count, std::mt19937& random) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(count));
  for (auto& each : codes) {
    const auto bits = static_cast<std::uint32_t>(random());
    each = static_cast<std::uint8_t>((bits & 0x80u) | (bits >> 8) % 0x7fu);
  }
  return codes;
}
std::vector<float> make_scales(std::int64_t count, float least, float most, std::mt19937& random) {
  std::uniform_real_distribution<float> exponent(least, most);
  std::vector<float> scales(static_cast<std::size_t>(count));
  for (auto& each : scales) each = 1.3f * std::exp2(exponent(random));
  return scales;
}

// Everything of a call on a device, and what the chain needs besides.
struct Bench {
  Bench(Target target, const Shape& of) : shape(of), on(target) {
    const std::int64_t e = shape.experts, h = shape.hidden, w = shape.width;
    args.routed =
        put_matrices(e, {e, 2 * w, h}, {e, 2 * w / 128, h / 128}, {e, h, w}, {e, h / 128, w / 128});
    if (shape.shared)
      args.shared = put_matrices(1, {2 * w, h}, {2 * w / 128, h / 128}, {h, w}, {h / 128, w / 128});
    put_rows(1);
  }

  // Rows and routing of their own; the weights stay.
  void put_rows(unsigned seed) {
    random.seed(seed);
    const std::int64_t t = shape.tokens, h = shape.hidden, k = shape.top_k;
    const Routing routing = make_routing(shape, seed);
    args.x.layout = shape.layout;
    args.x.data = on.put(make_codes(t * h, random), DType::kE4M3, {t, h});
    const auto [first, second] = scale_shape(shape.layout, t, h, 128);
    args.x.scale =
        on.put(make_scales(first * second, -8, -1, random), DType::kF32, {first, second});
    args.offsets = on.put(routing.offsets, DType::kI32, {shape.experts + 1});
    args.token_of = on.put(routing.token_of, DType::kI32, {t * k});
    args.weights = on.put(routing.weights, DType::kF32, {t, k});
    args.slot = on.put(routing.slot, DType::kI32, {t, k});
    std::vector<float> gates;
    for (int i = 0; i < t; ++i) gates.push_back(static_cast<float>(random() % 1000) / 100 - 5);
    args.shared_gate = on.put(gates, DType::kF32, {t, 1});
    args.activation = on.blank(DType::kBF16, {t * (k + 1), shape.width}, 0xff);
    args.out.addend = on.blank(DType::kBF16, {t, h}, 0xff);
  }

  Matrices put_matrices(std::int64_t count, std::initializer_list<std::int64_t> up,
                        std::initializer_list<std::int64_t> up_scale,
                        std::initializer_list<std::int64_t> down,
                        std::initializer_list<std::int64_t> down_scale) {
    const std::int64_t size = count * shape.hidden * shape.width;
    Matrices made;
    made.gate_up = on.put(make_codes(2 * size, random), DType::kE4M3, up);
    made.gate_up_scale =
        on.put(make_scales(2 * size / 16384, -14, -8, random), DType::kF32, up_scale);
    made.down = on.put(make_codes(size, random), DType::kE4M3, down);
    made.down_scale = on.put(make_scales(size / 16384, -14, -8, random), DType::kF32, down_scale);
    return made;
  }

  // An mlp by single ops: rows of x that `of` and `offsets` name, or all.
  TensorView by_single_ops(const Matrices& matrices, std::int64_t rows,
                           const std::optional<TensorView>& offsets,
                           const std::optional<TensorView>& of) {
    const std::int64_t w = shape.width;
    const TensorView gate_up = on.blank(DType::kBF16, {rows, 2 * w});
    const TensorView out = on.blank(DType::kBF16, {rows, shape.hidden});
    const QuantView codes{.data = on.blank(DType::kE4M3, {rows, w}, 0),
                          .scale = on.blank(DType::kF32, {rows, w / 128}, 0)};
    run_op(fp8_gemm::Args{.x = args.x,
                          .weight = matrices.gate_up,
                          .weight_scale = matrices.gate_up_scale,
                          .out = gate_up,
                          .offsets = offsets,
                          .row_of = of});
    run_op(fp8_quant::Args{.in = gate_up,
                           .prologue = fp8_quant::Prologue::kSiluMul,
                           .out = {.bf16 = {}, .fp8 = codes}});
    run_op(fp8_gemm::Args{.x = codes,
                          .weight = matrices.down,
                          .weight_scale = matrices.down_scale,
                          .out = out,
                          .offsets = offsets,
                          .row_of = {}});
    return out;
  }
  std::vector<std::uint8_t> chain() {
    const std::int64_t t = shape.tokens;
    const TensorView routed =
        by_single_ops(args.routed, t * shape.top_k, args.offsets, args.token_of);
    const TensorView shared = shape.shared ? by_single_ops(*args.shared, t, {}, {})
                                           : on.blank(DType::kBF16, {t, shape.hidden}, 0);
    const PartialRows out{on.blank(DType::kBF16, {t, shape.hidden})};
    run_op(moe_combine::Args{.routed = routed,
                             .weights = args.weights,
                             .slot = args.slot,
                             .shared = shared,
                             .shared_gate = args.shared_gate,
                             .out = out});
    return test::bytes_of(on.get<bf16>(out.addend));
  }
  template <class OpArgs>
  void run_op(const OpArgs& of_op) {
    const auto planned = plan(of_op, on.where());
    ASSERT_TRUE(planned) << planned.status().to_string();
    const Status ran = run(*planned, of_op, on.stream());
    ASSERT_TRUE(ran) << ran.to_string();
  }
  std::vector<std::uint8_t> out() { return test::bytes_of(on.get<bf16>(args.out.addend)); }

  Shape shape;
  DeviceFixture on;
  Args args;
  std::mt19937 random{3};
};

// Calls body(target, variant) for every variant that this machine can run.
template <class Body>
void for_each_variant(const Body& body) {
  bool found = false;
  for (const test::Way& way : test::all_ways(kOp)) {
    if (!plan(Bench(way.target, {}).args, DeviceFixture(way.target).where(), way.variant)) continue;
    found = true;
    SCOPED_TRACE(to_string(way));
    body(way.target, way.variant);
    if (::testing::Test::HasFatalFailure()) return;
  }
  if (!found) GTEST_SKIP() << test::kNoDevice;
}

void expect_the_chain(const std::vector<Shape>& shapes) {
  for_each_variant([&](Target target, std::string_view variant) {
    for (const Shape& shape : shapes) {
      SCOPED_TRACE(std::to_string(shape.tokens) + " tokens, hidden " +
                   std::to_string(shape.hidden) + ", width " + std::to_string(shape.width));
      Bench bench(target, shape);
      test::run_forced(bench.on, bench.args, variant);
      const auto found = bench.out(), expected = bench.chain();
      ASSERT_FALSE(std::all_of(expected.begin(), expected.end(), [](auto b) { return b == 0; }));
      std::size_t first = 0;
      while (first < found.size() && found[first] == expected[first]) ++first;
      ASSERT_EQ(first, found.size())
          << "token " << first / 2 / static_cast<std::size_t>(shape.hidden) << ", element "
          << first / 2 % static_cast<std::size_t>(shape.hidden);
    }
  });
}

TEST(MoeExperts, HasTheBitsOfTheChainForAnyNumberOfTokens) {
  std::vector<Shape> shapes;
  for (const int tokens :
       test::sizes({1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 48, 63, 64}, {1, 2, 8, 9, 17, 33, 63}))
    shapes.push_back({.tokens = tokens});
  expect_the_chain(shapes);
}

TEST(MoeExperts, HasTheBitsOfTheChainForAnyRouting) {
  std::vector<Shape> shapes;
  for (const Routed routed : {Routed::kAnywhere, Routed::kSkewed, Routed::kToTheSame})
    for (const int tokens : test::sizes({1, 8, 13, 64}, {1, 13}))
      for (const int experts : test::sizes({16, 70}, {70}))
        shapes.push_back({.tokens = tokens,
                          .experts = experts,
                          .top_k = 8,
                          .hidden = 256,
                          .all_experts = experts,
                          .routed = routed});
  expect_the_chain(shapes);
}

// So few units that a block has a tile or two, which often lie in two experts.
TEST(MoeExperts, HasTheBitsOfTheChainWhereTilesLieInTwoExperts) {
  std::vector<Shape> shapes;
  for (const int tokens : test::sizes({1, 2, 3, 12}, {1, 3, 12}))
    for (const int width : test::sizes({256, 512, 896}, {896}))
      shapes.push_back({.tokens = tokens,
                        .experts = 24,
                        .top_k = 8,
                        .hidden = 384,
                        .width = width,
                        .all_experts = 24});
  expect_the_chain(shapes);
}

TEST(MoeExperts, HasTheBitsOfTheChainWithExpertsOfOtherRanks) {
  std::vector<Shape> shapes;
  for (const int tokens : test::sizes({1, 8, 40}, {1, 40})) {
    shapes.push_back({.tokens = tokens, .experts = 40, .top_k = 8, .all_experts = 160});
    shapes.push_back({.tokens = tokens, .all_experts = 64, .routed = Routed::kNowhere});
    shapes.push_back({.tokens = tokens, .all_experts = 64, .shared = false});
  }
  expect_the_chain(shapes);
}

// Segments of k: one, two, four, eight; of even and of odd lengths; both layouts of scales.
TEST(MoeExperts, HasTheBitsOfTheChainForAnyWidths) {
  std::vector<Shape> shapes;
  for (const int tokens : {1, 9, 64})
    for (const auto& [hidden, width] :
         test::sizes<std::pair<int, int>>({{2048, 128},
                                           {2048, 256},
                                           {2048, 512},
                                           {3072, 1024},
                                           {1152, 384},
                                           {4224, 128},
                                           {128, 1152}},
                                          {{2048, 256}, {1152, 384}, {4224, 128}, {128, 1152}}))
      shapes.push_back({.tokens = tokens,
                        .experts = 9,
                        .top_k = 3,
                        .hidden = hidden,
                        .width = width,
                        .all_experts = 9,
                        .layout = tokens == 9 ? ScaleLayout::kMnMajor : ScaleLayout::kRow});
  expect_the_chain(shapes);
}

// A plan for more tokens, in a graph, with rows and a routing that change between replays.
TEST(MoeExperts, AReplayedPlanForMoreTokensGivesTheSameBits) {
  for_each_variant([&](Target target, std::string_view variant) {
    for (const int most : {8, 64}) {
      const Bench largest(target, {.tokens = most});
      const auto planned = plan(largest.args, largest.on.where(), variant);
      ASSERT_TRUE(planned) << planned.status().to_string();
      for (const int tokens : {1, most / 2, most}) {
        Bench bench(target, {.tokens = tokens});
        ASSERT_TRUE(Graph::begin(bench.on.stream()));
        for (int i = 0; i < 3; ++i) ASSERT_TRUE(run(*planned, bench.args, bench.on.stream()));
        Graph graph = DeviceFixture::must(Graph::end(bench.on.stream()));
        const Args first = bench.args;
        for (const unsigned seed : {5u, 6u}) {
          bench.put_rows(seed);
          const auto expected = bench.chain();
          const auto copy = [&](const TensorView& to, const TensorView& from) {
            ASSERT_TRUE(bench.on.stream().copy(to.data, from.data, to.bytes()));
          };
          copy(first.x.data, bench.args.x.data), copy(first.x.scale, bench.args.x.scale);
          copy(first.offsets, bench.args.offsets), copy(first.token_of, bench.args.token_of);
          copy(first.weights, bench.args.weights), copy(first.slot, bench.args.slot);
          copy(first.shared_gate, bench.args.shared_gate);
          ASSERT_TRUE(graph.replay(bench.on.stream()));
          EXPECT_EQ(test::bytes_of(bench.on.get<bf16>(first.out.addend)), expected)
              << tokens << " of " << most;
        }
      }
    }
  });
}

// Of few values, so that p are often equal; or nearly of few values, so that p are often equal
// where the logits are not; or any. Of some, one of the last token is a NaN or an infinity.
std::vector<float> make_logits(const Shape& shape, std::mt19937& random) {
  const auto kind = random() % 4, broken = random() % 8;
  std::uniform_int_distribution<int> of_few(-40, 40);
  std::normal_distribution<float> any(0, 2);
  std::vector<float> logits;
  for (int i = 0; i < shape.tokens * (shape.all_experts + 1); ++i) {
    const auto value = static_cast<float>(of_few(random));
    const auto beside = static_cast<float>(random() % 8) * 0x1p-21f;
    logits.push_back(kind == 0   ? value
                     : kind == 1 ? value / 8
                     : kind == 2 ? value / 8 + beside
                                 : any(random));
  }
  constexpr float kBroken[] = {NAN, INFINITY, -NAN, -INFINITY};
  if (broken < 4)
    logits[static_cast<std::size_t>((shape.tokens - 1) * (shape.all_experts + 1) + 3)] =
        kBroken[broken];
  return logits;
}
void put_logits(Bench& bench) {
  const Shape& shape = bench.shape;
  bench.args.logits = bench.on.put(make_logits(shape, bench.random), DType::kF32,
                                   {shape.tokens, shape.all_experts + 1});
  bench.args.logits->shape[1] = shape.all_experts;
  bench.args.first_expert = shape.first_expert;
}

// What moe_route and the chain make of the logits.
void expect_the_choice(Bench& bench, const Plan& plan) {
  const Shape& shape = bench.shape;
  const Status ran = run(plan, bench.args, bench.on.stream());
  ASSERT_TRUE(ran) << ran.to_string();
  const auto found = bench.out();
  const auto weights = test::bytes_of(bench.on.get<float>(bench.args.weights));
  const auto slots = bench.on.get<std::int32_t>(bench.args.slot);
  bench.run_op(moe_route::Args{.logits = *bench.args.logits,
                               .top_k = shape.top_k,
                               .first_expert = shape.first_expert,
                               .local_experts = shape.experts,
                               .weights = bench.args.weights,
                               .slot = bench.args.slot,
                               .offsets = bench.args.offsets,
                               .token_of = bench.args.token_of});
  EXPECT_EQ(found, bench.chain());
  EXPECT_EQ(weights, test::bytes_of(bench.on.get<float>(bench.args.weights)));
  EXPECT_EQ(slots, bench.on.get<std::int32_t>(bench.args.slot));
}

TEST(MoeExperts, ChoosesAsMoeRouteDoes) {
  std::vector<Shape> shapes;
  for (const int width : {128, 256, 512})
    shapes.push_back({.tokens = 1,
                      .experts = width == 128 ? 256 : 60,
                      .top_k = 8,
                      .hidden = width == 128 ? 384 : 2048,
                      .width = width,
                      .all_experts = width == 128 ? 256 : 60});
  // Experts of other ranks, few of this one, no shared expert, many choices and columns.
  shapes.push_back(
      {.tokens = 1, .experts = 70, .top_k = 5, .all_experts = 200, .first_expert = 90});
  shapes.push_back({.tokens = 1, .experts = 12, .all_experts = 256, .first_expert = 244});
  shapes.push_back({.tokens = 1, .experts = 20, .all_experts = 20, .shared = false});
  shapes.push_back(
      {.tokens = 1, .experts = 40, .top_k = 16, .hidden = 3072, .width = 384, .all_experts = 40});
  shapes.push_back({.tokens = 1, .experts = 12, .top_k = 3, .all_experts = 13});
  // Experts of 16 slices, or not quite so many.
  shapes.push_back(
      {.tokens = 1, .experts = 512, .top_k = 10, .hidden = 4096, .width = 256, .all_experts = 512});
  shapes.push_back(
      {.tokens = 1, .experts = 100, .top_k = 16, .all_experts = 487, .first_expert = 301});
  for (const int tokens : {2, 8, 9, 23})
    shapes.push_back({.tokens = tokens,
                      .experts = tokens == 8 ? 512 : 130,
                      .top_k = tokens == 9 ? 16 : 10,
                      .all_experts = tokens == 2 ? 257 : 512,
                      .first_expert = tokens == 8 ? 0 : 127});
  // Several tokens, a wave each; more than there are waves; quantised between the two.
  for (const int tokens : {2, 3, 7, 8, 9, 12, 16, 19, 24}) {
    shapes.push_back({.tokens = tokens,
                      .experts = tokens % 8 == 0 ? 256 : 40,
                      .top_k = 8,
                      .hidden = 256,
                      .all_experts = tokens % 8 == 0 ? 256 : 40});
    shapes.push_back({.tokens = tokens,
                      .experts = 70,
                      .top_k = tokens == 7 ? 16 : 5,
                      .all_experts = 200,
                      .shared = tokens != 3,
                      .first_expert = 90});
  }
  shapes.push_back({.tokens = 4, .experts = 5, .top_k = 5, .all_experts = 5});
  shapes.push_back({.tokens = 6, .experts = 7, .all_experts = 250, .first_expert = 31});
  for_each_variant([&](Target target, std::string_view variant) {
    for (const Shape& shape : shapes) {
      SCOPED_TRACE(std::to_string(shape.tokens) + " tokens, " + std::to_string(shape.top_k) +
                   " of " + std::to_string(shape.all_experts) + ", hidden " +
                   std::to_string(shape.hidden));
      Bench bench(target, shape);
      put_logits(bench);
      const auto planned = plan(bench.args, bench.on.where(), variant);
      ASSERT_TRUE(planned) << planned.status().to_string();
      for (unsigned seed = 1; seed <= static_cast<unsigned>(test::size(10, 2)); ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        bench.put_rows(seed);
        put_logits(bench);
        expect_the_choice(bench, *planned);
      }
    }
  });
}

TEST(MoeExperts, APlanThatChoosesServesFewerTokens) {
  for_each_variant([&](Target target, std::string_view variant) {
    for (const int experts : {70, 300})
      for (const int most : {2, 8, 16, 24}) {
        Shape shape{.tokens = most, .experts = experts, .top_k = 8, .all_experts = experts};
        Bench largest(target, shape);
        put_logits(largest);
        const auto planned = plan(largest.args, largest.on.where(), variant);
        ASSERT_TRUE(planned) << planned.status().to_string();
        for (const int tokens : {1, most / 2 + 1, most - 1}) {
          SCOPED_TRACE(std::to_string(tokens) + " of " + std::to_string(most));
          shape.tokens = tokens;
          Bench bench(target, shape);
          put_logits(bench);
          expect_the_choice(bench, *planned);
        }
      }
  });
}

// A lane of the wave that chooses knows four of its experts in order. Here one of them has four of
// the chosen ones and, so near to the last of these that only p decides, a fifth.
TEST(MoeExperts, ChoosesWhereALaneHasMoreOfTheChosenThanItKnows) {
  for_each_variant([&](Target target, std::string_view variant) {
    for (const int experts : {256, 512})
      for (const int tokens : {1, 2, 12}) {
        SCOPED_TRACE(std::to_string(tokens) + " tokens of " + std::to_string(experts));
        Bench bench(target,
                    {.tokens = tokens, .experts = experts, .top_k = 4, .all_experts = experts});
        // One token has neighbours in a lane, several have every 32nd.
        const int step = tokens == 1 ? 1 : 32, first = tokens == 1 ? 3 * experts / 32 : 3;
        std::vector<float> logits(static_cast<std::size_t>(tokens * (experts + 1)), -5.0f);
        for (int token = 0; token < tokens; ++token) {
          const auto of = [&](int place) -> float& {
            return logits[static_cast<std::size_t>(token * (experts + 1) + first + place * step)];
          };
          of(0) = 0.5f, of(1) = 30, of(2) = 29, of(3) = 28, of(4) = 0.5f + 0x1p-22f;
        }
        bench.args.logits = bench.on.put(logits, DType::kF32, {tokens, experts + 1});
        bench.args.logits->shape[1] = experts;
        const auto planned = plan(bench.args, bench.on.where(), variant);
        ASSERT_TRUE(planned) << planned.status().to_string();
        expect_the_choice(bench, *planned);
      }
  });
}

// All of a step's choices are other ranks', and so is the shared expert.
TEST(MoeExperts, WithoutAnythingToDoOutIsZeros) {
  for_each_variant([&](Target target, std::string_view variant) {
    for (const int tokens : {1, 3, 9, 24, 64})
      for (const bool chooses : {false, true}) {
        if (chooses && tokens > kMaxChosenTokens) continue;
        SCOPED_TRACE(std::to_string(tokens) + (chooses ? " tokens, by logits" : " tokens"));
        Shape shape{.tokens = tokens, .all_experts = 64, .shared = false};
        Bench before(target, shape);  // leaves numbers wherever a block keeps its lists
        test::run_forced(before.on, before.args, variant);
        shape.routed = Routed::kNowhere;
        Bench bench(target, shape);
        if (chooses) {
          std::vector<float> logits(static_cast<std::size_t>(tokens * 65), 1.0f);
          for (std::size_t i = 0; i < logits.size(); ++i)
            if (i % 65 < 16) logits[i] = -3.0f;
          bench.args.logits = bench.on.put(logits, DType::kF32, {tokens, 65});
          bench.args.logits->shape[1] = 64;
        }
        test::run_forced(bench.on, bench.args, variant);
        const auto out = bench.out();
        EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](auto byte) { return byte == 0; }));
      }
  });
}

TEST(MoeExperts, APlanWithLogitsIsNotForCallsWithout) {
  for_each_variant([&](Target target, std::string_view variant) {
    for (const int tokens : {1, 4, 12}) {
      Bench without(target, {.tokens = tokens}), with(target, {.tokens = tokens});
      put_logits(with);
      const auto chosen = plan(without.args, without.on.where(), variant);
      const auto choosing = plan(with.args, with.on.where(), variant);
      ASSERT_TRUE(chosen && choosing);
      const Status lacks = run(*choosing, without.args, without.on.stream());
      EXPECT_EQ(lacks.code(), Code::kInvalidArgument);
      EXPECT_EQ(lacks.message(),
                "moe_experts: the plan is for logits of up to 256 experts, but the call has no "
                "logits");
      EXPECT_EQ(run(*chosen, with.args, with.on.stream()).code(), Code::kInvalidArgument);
    }
  });
}

TEST(MoeExperts, SaysWhyItDoesNotChoose) {
  for_each_variant([&](Target target, std::string_view variant) {
    const std::pair<Shape, const char*> table[] = {
        {{.tokens = 25}, "for up to 24"},
        {{.tokens = 1, .experts = 520, .all_experts = 520}, "up to 16 of 512"},
        {{.tokens = 1, .experts = 50, .top_k = 17, .all_experts = 50}, "up to 16 of 512"},
        {{.tokens = 1, .experts = 11, .all_experts = 64}, "cannot hold the list"}};
    for (const auto& [shape, words] : table) {
      Bench bench(target, shape);
      put_logits(bench);
      const auto planned = plan(bench.args, bench.on.where(), variant);
      ASSERT_FALSE(planned);
      EXPECT_NE(planned.status().to_string().find(words), std::string::npos)
          << planned.status().to_string();
    }
  });
}

TEST(MoeExperts, ATokenDoesNotDependOnTheOthers) {
  for_each_variant([&](Target target, std::string_view variant) {
    Bench bench(target, {.tokens = 21, .experts = 32, .all_experts = 32});
    test::run_forced(bench.on, bench.args, variant);
    const auto together = bench.on.get<bf16>(bench.args.out.addend);
    const auto slots = bench.on.get<std::int32_t>(bench.args.slot);
    const auto offsets = bench.on.get<std::int32_t>(bench.args.offsets);
    for (int t = 0; t < 21; ++t) {
      Args one = bench.args;
      one.x = {.data = one.x.data.rows(t, 1), .scale = one.x.scale.rows(t, 1)};
      one.weights = one.weights.rows(t, 1), one.shared_gate = one.shared_gate.rows(t, 1);
      std::vector<int> experts, sorted;
      for (int k = 0; k < 4; ++k)
        experts.push_back(
            static_cast<int>(std::upper_bound(offsets.begin(), offsets.end(),
                                              slots[static_cast<std::size_t>(4 * t + k)]) -
                             offsets.begin() - 1));
      std::vector<std::int32_t> own_offsets(33, 0), own_slots;
      for (const int e : experts)
        for (int above = e + 1; above <= 32; ++above)
          own_offsets[static_cast<std::size_t>(above)]++;
      for (const int e : experts) own_slots.push_back(own_offsets[static_cast<std::size_t>(e)]);
      one.offsets = bench.on.put(own_offsets, DType::kI32, {33});
      one.slot = bench.on.put(own_slots, DType::kI32, {1, 4});
      one.token_of = bench.on.put(std::vector<std::int32_t>(4, 0), DType::kI32, {4});
      one.activation = bench.on.blank(DType::kBF16, {5, 128});
      one.out.addend = bench.on.blank(DType::kBF16, {1, 512});
      test::run_forced(bench.on, one, variant);
      const auto alone = bench.on.get<bf16>(one.out.addend);
      for (std::size_t i = 0; i < 512; ++i)
        ASSERT_EQ(alone[i].bits, together[static_cast<std::size_t>(t) * 512 + i].bits)
            << "token " << t << ", element " << i;
    }
  });
}

TEST(MoeExperts, NoTokensIsFine) {
  for_each_variant([](Target target, std::string_view variant) {
    Bench bench(target, {.tokens = 0});
    test::run_forced(bench.on, bench.args, variant);
  });
}

TEST(MoeExperts, RefusalsSayWhatIsAccepted) {
  Bench bench(Target::kCpu, {.tokens = 2, .experts = 2, .hidden = 256, .all_experts = 8});
  const Args& good = bench.args;
  ASSERT_TRUE(check(good)) << check(good).to_string();
  const std::pair<std::function<void(Args&)>, const char*> table[] = {
      {[](Args& a) { a.x.group = 64; }, "x has groups of 64 elements but must have 128"},
      {[](Args& a) { a.routed.down.shape[2] = 64; }, "hidden and width must be multiples of 128"},
      {[](Args& a) { a.routed.gate_up.shape[1] = 128; },
       "must be [experts, 2 * width, hidden] with 2 * width = 256"},
      {[](Args& a) { a.shared->down.shape[0] = 128; }, "must be [hidden, width] with hidden = 256"},
      {[](Args& a) { a.offsets.shape[0] = 2; }, "must be [experts + 1] with experts + 1 = 3"},
      {[](Args& a) { a.slot.shape[1] = 3; }, "must be [tokens, top_k] with top_k = 4"},
      {[](Args& a) { a.shared_gate.dtype = DType::kBF16; }, "must be of type f32"},
      {[](Args& a) { a.logits = a.out.addend; }, "must be of type f32"},
      {[](Args& a) { a.logits = a.shared_gate; }, "must be a part of [0, 1)"},
      {[](Args& a) { a.activation.shape[0] = 8; },
       "must be [tokens * (top_k + 1), width] with tokens * (top_k + 1) = 10"},
      {[](Args& a) { a.routed.down.device.index = 1; }, "all must lie on one device"},
      {[](Args& a) { a.out.addend.data = a.out.addend.as<bf16>() + 1; },
       "every row must begin at a multiple of 16 bytes"}};
  for (const auto& [change, words] : table) {
    Args args = good;
    change(args);
    const std::string sentence = test::refusal(check(args));
    EXPECT_NE(sentence.find(words), std::string::npos) << sentence << "\nexpected: " << words;
  }
}

// Where there is no variant, a plan says so; the caller then runs the chain.
TEST(MoeExperts, OtherTargetsHaveNoPlan) {
  Bench bench(Target::kCpu, {});
  const auto planned = plan(bench.args, bench.on.where());
  ASSERT_FALSE(planned);
  EXPECT_EQ(planned.status().code(), Code::kUnsupported);
}

TEST(MoeExperts, TrafficCountsEveryExpertOnce) {
  Bench bench(Target::kCpu, {.tokens = 2, .experts = 16, .top_k = 4, .hidden = 256});
  const Traffic found = traffic(bench.args);
  EXPECT_EQ(found.flops, 6.0 * 10 * 256 * 128);
  EXPECT_EQ(found.memory_bytes, 3.0 * 9 * 256 * 128 + 2 * 256 * 3 + 8 * 8);
}

}  // namespace
}  // namespace tenon::moe_experts
