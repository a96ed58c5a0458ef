// rope against a double-precision reading of its header, and bit for bit between targets.
#include "tenon/ops/rope/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/targets.h"

namespace tenon::rope {
namespace {

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

struct Outputs {
  std::vector<bf16> q, k_cache, v_cache;
};

TensorView strided(const void* data, Device device, std::array<std::int64_t, 3> shape,
                   std::int64_t token_stride, std::int64_t head_stride) {
  TensorView found =
      view(const_cast<void*>(data), DType::kBF16, device, {shape[0], shape[1], shape[2]});
  found.stride = {token_stride, head_stride, 1, 0};
  return found;
}

Outputs empty_outputs(const Shape& shape) {
  const auto cache =
      static_cast<std::size_t>(shape.blocks * shape.block_tokens * shape.kv_heads * shape.head_dim);
  return {
      std::vector<bf16>(static_cast<std::size_t>(shape.tokens * shape.q_heads * shape.head_dim)),
      std::vector<bf16>(cache, bf16{0x7fc1}), std::vector<bf16>(cache, bf16{0x7fc1})};
}

Args args_of(Problem& problem, Outputs& outputs, Device device) {
  const Shape& s = problem.shape;
  Args args;
  args.q = strided(problem.q.data(), device, {s.tokens, s.q_heads, s.head_dim}, problem.q_token,
                   problem.q_head);
  args.k = strided(problem.k_at(0, 0), device, {s.tokens, s.kv_heads, s.head_dim}, problem.kv_token,
                   s.head_dim);
  args.v = strided(problem.v_at(0, 0), device, {s.tokens, s.kv_heads, s.head_dim}, problem.kv_token,
                   s.head_dim);
  args.q_norm = view(problem.q_norm.data(), DType::kBF16, device, {s.head_dim});
  args.k_norm = view(problem.k_norm.data(), DType::kBF16, device, {s.head_dim});
  args.positions = view(problem.positions.data(), DType::kI32, device, {s.tokens});
  args.cos_sin = view(problem.cos_sin.data(), DType::kF32, device, {s.max_positions, s.rotary_dim});
  args.slot_mapping = view(problem.slots.data(), DType::kI32, device, {s.tokens});
  args.q_out = view(outputs.q.data(), DType::kBF16, device, {s.tokens, s.q_heads, s.head_dim});
  args.k_cache = view(outputs.k_cache.data(), DType::kBF16, device,
                      {s.blocks, s.block_tokens, s.kv_heads, s.head_dim});
  args.v_cache = view(outputs.v_cache.data(), DType::kBF16, device,
                      {s.blocks, s.block_tokens, s.kv_heads, s.head_dim});
  return args;
}

// With `planned`, the plan is made for that problem instead. With `wide`, these are the norm of q
// and of k.
Outputs run_on(Target target, Problem& problem, Problem* planned = nullptr,
               std::vector<float>* wide = nullptr) {
  const Device device{target, 0};
  Outputs outputs = empty_outputs(problem.shape);
  Args args = args_of(problem, outputs, device);
  if (wide != nullptr)
    args.q_norm = args.k_norm = view(wide->data(), DType::kF32, device, {problem.shape.head_dim});
  Outputs unused = empty_outputs(planned != nullptr ? planned->shape : problem.shape);
  const Args plan_args = planned != nullptr ? args_of(*planned, unused, device) : args;
  auto where = plan_context(device);
  EXPECT_TRUE(where) << where.status().to_string();
  auto stream = Stream::create(device);
  EXPECT_TRUE(stream) << stream.status().to_string();
  auto chosen = plan(plan_args, *where);
  EXPECT_TRUE(chosen) << chosen.status().to_string();
  const Status done = run(*chosen, args, *stream);
  EXPECT_TRUE(done) << done.to_string();
  EXPECT_TRUE(stream->synchronize());
  return outputs;
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
        ASSERT_EQ(outputs.v_cache[c].bits, t >= 0 ? problem.v_at(t, h)[i].bits : 0x7fc1);
        if (t >= 0) continue;
        ASSERT_EQ(outputs.k_cache[c].bits, 0x7fc1) << "slot " << slot << " was written";
      }
    }
}

void expect_same(const std::vector<bf16>& one, const std::vector<bf16>& other) {
  ASSERT_EQ(one.size(), other.size());
  for (std::size_t i = 0; i < one.size(); ++i) ASSERT_EQ(one[i].bits, other[i].bits) << "at " << i;
}

TEST(Rope, MatchesOracleAndAgreesBetweenTargets) {
  std::vector<Shape> shapes(6);
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
  for (const Shape& shape : shapes) {
    Problem problem = make_problem(shape);
    std::optional<Outputs> first;
    for (Target target : test::host_targets()) {
      SCOPED_TRACE(test::to_string(target) + " head_dim " + std::to_string(shape.head_dim));
      const Outputs outputs = run_on(target, problem);
      expect_q(problem, outputs);
      expect_caches(problem, outputs);
      if (!first) first = outputs;
      expect_same(first->q, outputs.q);
      expect_same(first->k_cache, outputs.k_cache);
    }
  }
}

TEST(Rope, PositionZeroOnlyNorms) {
  Problem problem = make_problem({.tokens = 2, .q_heads = 1, .kv_heads = 1});
  problem.positions = {0, -7};  // padding reads as position 0
  for (Target target : test::host_targets()) {
    const Outputs outputs = run_on(target, problem);
    for (int t = 0; t < 2; ++t)
      expect_head(oracle_norm(problem.q_at(t, 0), problem.q_norm.data(), 256, 1e-6),
                  &outputs.q[static_cast<std::size_t>(t) * 256], "normed q");
  }
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
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    const Outputs narrow = run_on(target, problem), wide = run_on(target, problem, nullptr, &same);
    expect_same(narrow.q, wide.q);
    expect_same(narrow.k_cache, wide.k_cache);
    const Outputs finer = run_on(target, problem, nullptr, &between);
    EXPECT_NE(std::memcmp(finer.q.data(), narrow.q.data(), finer.q.size() * sizeof(bf16)), 0);
    for (int t = 0; t < 3; ++t)
      for (int h = 0; h < 2; ++h)
        expect_head(oracle_norm(problem.q_at(t, h), between.data(), 256, 1e-6),
                    &finer.q[static_cast<std::size_t>(2 * t + h) * 256], "normed q");
  }
}

TEST(Rope, PlanServesFewerTokens) {
  Problem many = make_problem({.tokens = 9}), few = make_problem({.tokens = 2});
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    const Outputs outputs = run_on(target, few, &many);
    expect_q(few, outputs);
    expect_caches(few, outputs);
  }
}

TEST(Rope, ZeroTokensDoNothing) {
  Problem problem = make_problem({.tokens = 0});
  for (Target target : test::host_targets()) EXPECT_TRUE(run_on(target, problem).q.empty());
}

TEST(Rope, CheckNamesWhatItRefuses) {
  Problem problem = make_problem({});
  Outputs outputs = empty_outputs(problem.shape);
  const Args good = args_of(problem, outputs, Device{});
  ASSERT_TRUE(check(good)) << check(good).to_string();

  Args args = good;
  args.k.shape[1] = 3;
  EXPECT_NE(check(args).message().find("v is"), std::string_view::npos) << check(args).message();
  args = good;
  args.cos_sin.shape[1] = 63;
  args.cos_sin.stride[0] = 63;
  EXPECT_NE(check(args).message().find("rotary_dim"), std::string_view::npos);
  args = good;
  args.q.stride[2] = 2;
  EXPECT_NE(check(args).message().find("strided"), std::string_view::npos);
  args = good;
  args.q_norm.dtype = DType::kF32;  // and k_norm is bf16
  EXPECT_NE(check(args).message().find("k_norm"), std::string_view::npos);
  args.k_norm.dtype = DType::kF32;
  EXPECT_TRUE(check(args)) << check(args).message();
  args.q_norm.dtype = args.k_norm.dtype = DType::kF16;
  EXPECT_NE(check(args).message().find("q_norm"), std::string_view::npos);
  EXPECT_FALSE(plan(good, *plan_context(Device{}), "no_such_variant"));
}

}  // namespace
}  // namespace tenon::rope
