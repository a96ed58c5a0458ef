// rope against a double-precision reading of its header, and bit for bit between targets and rows.
#include "tenon/ops/rope/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/op_suite.h"

namespace tenon::rope {
namespace {

using test::DeviceFixture;
using test::Way;

// One unit roundoff of bf16: 8 bits of precision.
constexpr double kHalfUlp = 0x1p-8;

struct Shape {
  int tokens = 3, q_heads = 4, kv_heads = 2, head_dim = 256, rotary_dim = 64;
  int blocks = 3, block_tokens = 4, max_positions = 50;
  bool interleaved = true;  // q as every other head of a doubled projection; k and v in one row
};

struct Problem {
  Shape shape;
  std::vector<bf16> q, kv, q_norm, k_norm;
  std::vector<float> cos_sin;
  std::vector<std::int32_t> positions, slots;
  std::int64_t q_token = 0, q_head = 0, kv_token = 0;  // strides

  const bf16* q_at(int t, int h) const { return q.data() + t * q_token + h * q_head; }
  const bf16* k_at(int t, int h) const { return kv.data() + t * kv_token + h * shape.head_dim; }
  const bf16* v_at(int t, int h) const {
    return k_at(t, h) + (shape.interleaved ? shape.kv_heads * shape.head_dim : 0);
  }
};

std::vector<bf16> random_bf16(std::mt19937& random, std::int64_t n, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<bf16> found(static_cast<std::size_t>(n));
  for (bf16& each : found) each = to_bf16(normal(random));
  return found;
}

Problem make_problem(const Shape& shape, unsigned seed = 1) {
  std::mt19937 random(seed);
  Problem problem;
  problem.shape = shape;
  problem.q_head = shape.head_dim * (shape.interleaved ? 2 : 1);
  problem.q_token = problem.q_head * shape.q_heads;
  problem.kv_token = std::int64_t{shape.kv_heads} * shape.head_dim * (shape.interleaved ? 2 : 1);
  problem.q = random_bf16(random, shape.tokens * problem.q_token, 2.0f);
  problem.kv = random_bf16(random, shape.tokens * problem.kv_token, 2.0f);
  problem.q_norm = random_bf16(random, shape.head_dim, 0.3f);
  problem.k_norm = random_bf16(random, shape.head_dim, 0.3f);
  const int half = shape.rotary_dim / 2;
  for (int position = 0; position < shape.max_positions; ++position)
    for (int i = 0; i < shape.rotary_dim; ++i) {
      const double angle = position * std::pow(1e7, -2.0 * (i % half) / shape.rotary_dim);
      problem.cos_sin.push_back(static_cast<float>(i < half ? std::cos(angle) : std::sin(angle)));
    }
  for (int t = 0; t < shape.tokens; ++t) {
    problem.positions.push_back((t * 17 + 5) % shape.max_positions);
    problem.slots.push_back(t % 3 == 1 ? -1 : (t * 5 + 2) % (shape.blocks * shape.block_tokens));
  }
  return problem;
}

constexpr std::uint16_t kUnwritten = 0xa5a5;  // what DeviceFixture::blank leaves

struct Outputs {
  std::vector<bf16> q, k_cache, v_cache;
};

// [tokens, heads, head_dim] from its first element on.
TensorView strided(const TensorView& memory, std::int64_t offset, std::array<std::int64_t, 3> shape,
                   std::int64_t token_stride, std::int64_t head_stride) {
  TensorView found =
      view(memory.as<bf16>() + offset, DType::kBF16, memory.device, {shape[0], shape[1], shape[2]});
  found.stride = {token_stride, head_stride, 1, 0};
  return found;
}

// With `wide`, these are the norm of q and of k.
Args put(DeviceFixture& fixture, const Problem& problem, const std::vector<float>* wide = nullptr) {
  const Shape& s = problem.shape;
  const TensorView q = fixture.put(problem.q, DType::kBF16, {s.tokens * problem.q_token});
  const TensorView kv = fixture.put(problem.kv, DType::kBF16, {s.tokens * problem.kv_token});
  Args args;
  args.q = strided(q, 0, {s.tokens, s.q_heads, s.head_dim}, problem.q_token, problem.q_head);
  args.k = strided(kv, 0, {s.tokens, s.kv_heads, s.head_dim}, problem.kv_token, s.head_dim);
  args.v = strided(kv, problem.v_at(0, 0) - problem.k_at(0, 0), {s.tokens, s.kv_heads, s.head_dim},
                   problem.kv_token, s.head_dim);
  if (wide != nullptr) {
    args.q_norm = args.k_norm = fixture.put(*wide, DType::kF32, {s.head_dim});
  } else {
    args.q_norm = fixture.put(problem.q_norm, DType::kBF16, {s.head_dim});
    args.k_norm = fixture.put(problem.k_norm, DType::kBF16, {s.head_dim});
  }
  args.positions = fixture.put(problem.positions, DType::kI32, {s.tokens});
  args.cos_sin = fixture.put(problem.cos_sin, DType::kF32, {s.max_positions, s.rotary_dim});
  args.slot_mapping = fixture.put(problem.slots, DType::kI32, {s.tokens});
  args.q_out = fixture.blank(DType::kBF16, {s.tokens, s.q_heads, s.head_dim});
  for (TensorView* cache : {&args.k_cache, &args.v_cache})
    *cache = fixture.blank(DType::kBF16, {s.blocks, s.block_tokens, s.kv_heads, s.head_dim});
  return args;
}

Outputs get(DeviceFixture& fixture, const Args& args) {
  return {fixture.get<bf16>(args.q_out), fixture.get<bf16>(args.k_cache),
          fixture.get<bf16>(args.v_cache)};
}

Outputs run_way(const Way& way, const Problem& problem, const std::vector<float>* wide = nullptr) {
  DeviceFixture fixture(way.target);
  const Args args = put(fixture, problem, wide);
  test::run_forced(fixture, args, way.variant);
  return get(fixture, args);
}

// Both bf16 neighbours that a value within `slack` of `exact` may round to, as doubles.
struct Range {
  double low, high;
};
double rounded(double value) { return to_float(to_bf16(static_cast<float>(value))); }

// The head norm in double. The fp32 sum of squares errs by at most (n + 1) u relative, halved by
// the root; the rest are four roundings. So a value may round to either side of a tie that is this
// near.
double as_double(bf16 value) { return to_float(value); }
double as_double(float value) { return value; }
template <class Weight>
std::vector<Range> oracle_norm(const bf16* row, const Weight* weight, int n, double eps) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += std::pow(double{to_float(row[i])}, 2);
  const double rstd = 1.0 / std::sqrt(squares / n + eps);
  const double slack = (0.5 * (n / 32 + 6) + 6) * 0x1p-24;
  std::vector<Range> found;
  for (int i = 0; i < n; ++i) {
    const double exact = to_float(row[i]) * rstd * (1.0 + as_double(weight[i]));
    const double one = rounded(exact * (1 - slack)), other = rounded(exact * (1 + slack));
    found.push_back({std::min(one, other), std::max(one, other)});
  }
  return found;
}

// Every value the rotation may give from the normed ranges: fp32 slack and one bf16 rounding.
std::vector<Range> oracle_head(const Problem& problem, const bf16* row, const bf16* weight,
                               int position) {
  const int n = problem.shape.head_dim, half = problem.shape.rotary_dim / 2;
  std::vector<Range> found = oracle_norm(row, weight, n, 1e-6);
  const std::vector<Range> normed = found;
  const float* table =
      &problem.cos_sin[static_cast<std::size_t>(position * problem.shape.rotary_dim)];
  for (int i = 0; i < problem.shape.rotary_dim; ++i) {
    const bool first = i < half;
    const Range a = normed[static_cast<std::size_t>(i)];
    const Range b = normed[static_cast<std::size_t>(first ? i + half : i - half)];
    const double cosine = table[i % half], sine = (first ? -1.0 : 1.0) * table[half + i % half];
    const double ends[] = {a.low * cosine + b.low * sine, a.low * cosine + b.high * sine,
                           a.high * cosine + b.low * sine, a.high * cosine + b.high * sine};
    const double low = *std::min_element(ends, ends + 4), high = *std::max_element(ends, ends + 4);
    const double slack = 3 * 0x1p-24 * (std::abs(a.high * cosine) + std::abs(b.high * sine));
    found[static_cast<std::size_t>(i)] = {rounded(low - slack), rounded(high + slack)};
  }
  return found;
}

void expect_head(const std::vector<Range>& expected, const bf16* found, const std::string& what) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = to_float(found[i]);
    ASSERT_TRUE(value >= expected[i].low && value <= expected[i].high)
        << what << " component " << i << " is " << value << ", allowed [" << expected[i].low << ", "
        << expected[i].high << "]";
    // The range itself stays as narrow as rounding explains: neighbours, seldom more.
    ASSERT_LE(expected[i].high - expected[i].low, 8 * kHalfUlp * (1 + std::abs(value)));
  }
}

void expect_q(const Problem& problem, const Outputs& outputs) {
  const Shape& s = problem.shape;
  for (int t = 0; t < s.tokens; ++t)
    for (int h = 0; h < s.q_heads; ++h)
      expect_head(oracle_head(problem, problem.q_at(t, h), problem.q_norm.data(),
                              problem.positions[static_cast<std::size_t>(t)]),
                  &outputs.q[static_cast<std::size_t>((t * s.q_heads + h) * s.head_dim)],
                  "q of token " + std::to_string(t) + " head " + std::to_string(h));
}

void expect_caches(const Problem& problem, const Outputs& outputs) {
  const Shape& s = problem.shape;
  std::vector<int> writer(static_cast<std::size_t>(s.blocks * s.block_tokens), -1);
  for (int t = 0; t < s.tokens; ++t)
    if (const int slot = problem.slots[static_cast<std::size_t>(t)]; slot >= 0)
      writer[static_cast<std::size_t>(slot)] = t;
  for (int slot = 0; slot < s.blocks * s.block_tokens; ++slot)
    for (int h = 0; h < s.kv_heads; ++h) {
      const int t = writer[static_cast<std::size_t>(slot)];
      const auto at = static_cast<std::size_t>((slot * s.kv_heads + h) * s.head_dim);
      if (t >= 0)
        expect_head(oracle_head(problem, problem.k_at(t, h), problem.k_norm.data(),
                                problem.positions[static_cast<std::size_t>(t)]),
                    &outputs.k_cache[at], "k in slot " + std::to_string(slot));
      for (int i = 0; i < s.head_dim; ++i) {
        const auto c = at + static_cast<std::size_t>(i);
        ASSERT_EQ(outputs.v_cache[c].bits, t >= 0 ? problem.v_at(t, h)[i].bits : kUnwritten);
        if (t >= 0) continue;
        ASSERT_EQ(outputs.k_cache[c].bits, kUnwritten) << "slot " << slot << " was written";
      }
    }
}

void expect_same(const std::vector<bf16>& one, const std::vector<bf16>& other) {
  ASSERT_EQ(one.size(), other.size());
  for (std::size_t i = 0; i < one.size(); ++i) ASSERT_EQ(one[i].bits, other[i].bits) << "at " << i;
}

TEST(Rope, MatchesOracleAndAgreesBetweenTargets) {
  std::vector<Shape> shapes(8);
  shapes[1] = {.tokens = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 8, .rotary_dim = 2};
  shapes[2] = {.tokens = 2,
               .q_heads = 3,
               .kv_heads = 1,
               .head_dim = 40,
               .rotary_dim = 40,
               .interleaved = false};
  shapes[3] = {.tokens = 5, .q_heads = 2, .kv_heads = 2, .head_dim = 64, .rotary_dim = 16};
  shapes[4] = {.tokens = 9,
               .q_heads = 8,
               .kv_heads = 1,
               .head_dim = 128,
               .rotary_dim = 126,
               .interleaved = false};
  shapes[5] = {.tokens = 2, .q_heads = 2, .kv_heads = 1, .head_dim = 248, .rotary_dim = 62};
  shapes[6] = {.tokens = 7, .q_heads = 3, .kv_heads = 2, .head_dim = 64};
  shapes[7] = {.tokens = 3, .q_heads = 5, .kv_heads = 1, .head_dim = 96, .interleaved = false};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE("head_dim " + std::to_string(shape.head_dim));
    const Problem problem = make_problem(shape);
    const Outputs reference = run_way(test::on_cpu(kOp), problem);
    test::for_each_way(kOp, [&](const Way& way) {
      const bool waves_take_it = shape.head_dim % 32 == 0 && shape.rotary_dim == 64;
      if (way.variant == "wave" && !waves_take_it) return;
      const Outputs outputs = run_way(way, problem);
      expect_q(problem, outputs);
      expect_caches(problem, outputs);
      expect_same(reference.q, outputs.q);
      expect_same(reference.k_cache, outputs.k_cache);
    });
  }
}

TEST(Rope, PositionZeroOnlyNorms) {
  Problem problem = make_problem({.tokens = 2, .q_heads = 1, .kv_heads = 1});
  problem.positions = {0, -7};  // padding reads as position 0
  test::for_each_way(kOp, [&](const Way& way) {
    const Outputs outputs = run_way(way, problem);
    for (int t = 0; t < 2; ++t)
      expect_head(oracle_norm(problem.q_at(t, 0), problem.q_norm.data(), 256, 1e-6),
                  &outputs.q[static_cast<std::size_t>(t) * 256], "normed q");
  });
}

// Norms in f32: those that bf16 can hold give the same bits, others are not rounded to it.
TEST(Rope, ReadsWideNorms) {
  Problem problem = make_problem({.tokens = 3, .q_heads = 2, .kv_heads = 1});
  problem.k_norm = problem.q_norm;
  problem.positions = {0, 0, 0};
  std::vector<float> same, between;
  for (bf16 each : problem.q_norm) {
    same.push_back(to_float(each));
    between.push_back(to_float(each) * (1 + 0.9f / 512));  // rounds to the same bf16
  }
  test::for_each_way(kOp, [&](const Way& way) {
    const Outputs narrow = run_way(way, problem), wide = run_way(way, problem, &same);
    expect_same(narrow.q, wide.q);
    expect_same(narrow.k_cache, wide.k_cache);
    const Outputs finer = run_way(way, problem, &between);
    EXPECT_NE(test::bytes_of(finer.q), test::bytes_of(narrow.q));
    for (int t = 0; t < 3; ++t)
      for (int h = 0; h < 2; ++h)
        expect_head(oracle_norm(problem.q_at(t, h), between.data(), 256, 1e-6),
                    &finer.q[static_cast<std::size_t>(2 * t + h) * 256], "normed q");
  });
}

TEST(Rope, PlanServesFewerTokens) {
  const Problem many = make_problem({.tokens = 9}), few = make_problem({.tokens = 2});
  test::for_each_way(kOp, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    const Plan made = test::plan_forced(fixture, put(fixture, many), way.variant);
    const Args args = put(fixture, few);
    test::run_plan(fixture, made, args);
    const Outputs outputs = get(fixture, args);
    expect_q(few, outputs);
    expect_caches(few, outputs);
  });
}

TEST(Rope, ATokenDoesNotDependOnTheOthers) {
  const Problem all = make_problem({.tokens = 7, .head_dim = 64});
  test::for_each_way(kOp, [&](const Way& way) {
    test::expect_rows_alone_equal_together(7, [&](const std::vector<int>& tokens) {
      Problem some = all;
      some.shape.tokens = static_cast<int>(tokens.size());
      some.q.clear(), some.kv.clear(), some.positions.clear(), some.slots.clear();
      for (const int token : tokens) {
        some.q.insert(some.q.end(), all.q_at(token, 0), all.q_at(token, 0) + all.q_token);
        some.kv.insert(some.kv.end(), all.k_at(token, 0), all.k_at(token, 0) + all.kv_token);
        some.positions.push_back(all.positions[static_cast<std::size_t>(token)]);
        some.slots.push_back(static_cast<std::int32_t>(some.slots.size()));
      }
      Outputs outputs = run_way(way, some);
      outputs.k_cache.resize(tokens.size() * 2 * 64);  // the slots that have a token
      outputs.v_cache.resize(tokens.size() * 2 * 64);
      std::vector<test::RowBytes> found(tokens.size());
      test::append_rows(found, outputs.q);
      test::append_rows(found, outputs.k_cache);
      test::append_rows(found, outputs.v_cache);
      return found;
    });
  });
}

TEST(Rope, ZeroTokensDoNothing) {
  const Problem problem = make_problem({.tokens = 0});
  test::for_each_way(kOp, [&](const Way& way) { EXPECT_TRUE(run_way(way, problem).q.empty()); });
}

TEST(Rope, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  const Args good = put(fixture, make_problem({}));
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.k.shape[1] = 3; }, "v is"},
       {[](Args& a) { a.cos_sin.shape[1] = a.cos_sin.stride[0] = 63; }, "rotary_dim"},
       {[](Args& a) { a.q.stride[2] = 2; }, "strided"},
       {[](Args& a) { a.q_norm.dtype = DType::kF32; }, "k_norm"},
       {[](Args& a) { a.q_norm.dtype = a.k_norm.dtype = DType::kF16; }, "q_norm"}});
}

}  // namespace
}  // namespace tenon::rope
