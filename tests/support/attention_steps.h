// What tests of attention have in common: sequences with their caches dealt over pages, steps of
// any parts of them, and the double-precision reading of the op's header that judges a row.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tenon/core/fp8.h"
#include "tenon/ops/attention/attention.h"
#include "tests/support/op_suite.h"

namespace tenon::test {
namespace attention_steps {

using namespace tenon::attention;

constexpr double kFloatUlp = 0x1p-24;  // unit roundoffs
constexpr double kHalfUlp = 0x1p-8;    // of bf16

inline std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
inline double rounded(double value) { return to_float(to_bf16(static_cast<float>(value))); }

struct Shape {
  int q_heads = 4, kv_heads = 2, head_dim = 256, block_tokens = 16;
  float scale = 0.0625f;
  bool gated = true;
};

// The variant of Hopper is for one head size and for blocks that its copies can take.
inline bool serves(const Way& way, const Shape& shape) {
  return way.variant != "sm90" || (shape.head_dim == 256 && shape.block_tokens % kTileTokens == 0);
}
template <class Body>
inline void for_each_way_of(const Shape& shape, const Body& body) {
  for_each_way(kOp, [&](const Way& way) {
    if (serves(way, shape)) body(way);
  });
}

// A sequence: k and v of its whole context, and q and gate of the same positions.
struct Context {
  int tokens = 0;
  std::vector<bf16> q, gate, k, v;
};

inline std::vector<bf16> random_bf16(std::mt19937& random, std::int64_t n, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<bf16> found(at(n));
  for (bf16& each : found) each = to_bf16(normal(random));
  return found;
}

inline Context make_context(const Shape& shape, int tokens, unsigned seed) {
  std::mt19937 random(seed);
  const std::int64_t q = std::int64_t{tokens} * shape.q_heads * shape.head_dim;
  const std::int64_t kv = std::int64_t{tokens} * shape.kv_heads * shape.head_dim;
  return {tokens, random_bf16(random, q, 1.5f), random_bf16(random, q, 2.0f),
          random_bf16(random, kv, 1.5f), random_bf16(random, kv, 1.0f)};
}

// Rows [begin, end) of a context in one step; positions from `end` on are not in the cache yet.
struct Part {
  const Context* context;
  int begin, end;
};

struct StepOptions {
  Way way;
  int extra_rows = 0;                   // behind the last sequence
  int gate_padding = 0;                 // strided gate: elements between heads
  int first_block = 0;                  // rotates which blocks of the cache are used
  const Plan* made_for_more = nullptr;  // a plan to run with, instead of making one
  bool decode_only = false;
  std::int64_t workspace_bytes = 0;  // 0: as many as the op asks for
};

// The paged cache and its table for the parts. Blocks are dealt out in an odd order; what no
// sequence has written is NaN.
struct Pages {
  int blocks = 0, max_blocks = 0;
  std::vector<bf16> k, v;
  std::vector<std::int32_t> table;
};

inline Pages make_pages(const Shape& shape, const std::vector<Part>& parts, int first_block) {
  Pages pages;
  const auto blocks_of = [&](const Part& part) {
    return (part.end + shape.block_tokens - 1) / shape.block_tokens;
  };
  int wanted = 1;
  for (const Part& part : parts) {
    wanted += blocks_of(part);
    pages.max_blocks = std::max(pages.max_blocks, blocks_of(part) + 1);
  }
  pages.blocks = wanted % 7 == 0 ? wanted + 1 : wanted;  // so that steps of 7 reach every block
  const std::int64_t row = std::int64_t{shape.kv_heads} * shape.head_dim;
  pages.k.assign(at(pages.blocks * shape.block_tokens * row), bf16{0x7fc0});
  pages.v = pages.k;
  int dealt = first_block;
  for (const Part& part : parts) {
    const auto line = pages.table.size();
    pages.table.insert(pages.table.end(), at(pages.max_blocks), -1);
    for (int b = 0; b < blocks_of(part); ++b) {
      const int block = dealt++ * 7 % pages.blocks;
      pages.table[line + at(b)] = block;
      for (int t = b * shape.block_tokens; t < std::min(part.end, (b + 1) * shape.block_tokens);
           ++t) {
        const std::int64_t to =
            (std::int64_t{block} * shape.block_tokens + t % shape.block_tokens) * row;
        std::copy_n(&part.context->k[at(t * row)], row, &pages.k[at(to)]);
        std::copy_n(&part.context->v[at(t * row)], row, &pages.v[at(to)]);
      }
    }
  }
  return pages;
}

struct StepRows {
  std::vector<bf16> q, gate;
  std::vector<std::int32_t> starts{0}, lengths;
};

inline StepRows gather(const Shape& shape, const std::vector<Part>& parts,
                       const StepOptions& options) {
  StepRows rows;
  const int n = shape.head_dim;
  for (const Part& part : parts) {
    rows.starts.push_back(rows.starts.back() + part.end - part.begin);
    rows.lengths.push_back(part.end);
    for (int head = part.begin * shape.q_heads; head < part.end * shape.q_heads; ++head) {
      const auto from = std::int64_t{head} * n;
      rows.q.insert(rows.q.end(), part.context->q.begin() + from,
                    part.context->q.begin() + from + n);
      rows.gate.insert(rows.gate.end(), part.context->gate.begin() + from,
                       part.context->gate.begin() + from + n);
      rows.gate.insert(rows.gate.end(), at(options.gate_padding), bf16{0x7fc0});
    }
  }
  const auto extra = at(options.extra_rows) * at(shape.q_heads);
  rows.q.insert(rows.q.end(), extra * at(n), bf16{0x7fc0});
  rows.gate.insert(rows.gate.end(), extra * at(n + options.gate_padding), bf16{0x7fc0});
  return rows;
}

inline Args put(DeviceFixture& fixture, const Shape& shape, const std::vector<Part>& parts,
                const StepOptions& options) {
  const Pages pages = make_pages(shape, parts, options.first_block);
  const StepRows rows = gather(shape, parts, options);
  const std::int64_t tokens = rows.starts.back() + options.extra_rows;
  const auto sequences = static_cast<std::int64_t>(parts.size());
  Args args;
  args.q = fixture.put(rows.q, DType::kBF16, {tokens, shape.q_heads, shape.head_dim});
  if (shape.gated) {
    args.gate = fixture.put(rows.gate, DType::kBF16,
                            {tokens, shape.q_heads, shape.head_dim + options.gate_padding});
    args.gate->shape[2] = shape.head_dim;
  }
  for (auto [cache, rows_of] : {std::pair{&args.k_cache, &pages.k}, {&args.v_cache, &pages.v}})
    *cache = fixture.put(*rows_of, DType::kBF16,
                         {pages.blocks, shape.block_tokens, shape.kv_heads, shape.head_dim});
  args.block_table = fixture.put(pages.table, DType::kI32, {sequences, pages.max_blocks});
  args.sequence_starts = fixture.put(rows.starts, DType::kI32, {sequences + 1});
  args.sequence_lengths = fixture.put(rows.lengths, DType::kI32, {sequences});
  args.scale = shape.scale;
  const std::int64_t width = shape.q_heads * shape.head_dim;
  args.out.bf16 = fixture.blank(DType::kBF16, {tokens, width}, 0xff);  // NaN
  args.decode_only = options.decode_only;
  std::int64_t workspace = workspace_bytes(args, fixture.where());
  if (workspace > 0 && options.workspace_bytes > 0) workspace = options.workspace_bytes;
  if (workspace > 0) args.workspace = fixture.blank(DType::kU8, {workspace}, 0);
  return args;
}

inline std::vector<bf16> run_step(const Shape& shape, const std::vector<Part>& parts,
                                  const StepOptions& options) {
  DeviceFixture fixture(options.way.target);
  const Args args = put(fixture, shape, parts, options);
  const std::string_view variant = options.way.variant;
  test::run_plan(fixture,
                 options.made_for_more != nullptr ? *options.made_for_more
                                                  : test::plan_forced(fixture, args, variant),
                 args);
  return fixture.get<bf16>(*args.out.bf16);
}

// One row in double.
struct Row {
  std::vector<double> o, magnitude;  // Σ p·v, Σ p·|v|
  double score_error = 0;            // fp32 error of the worst score
};

// A score is a dot product over head_dim in head_dim / 32 + 5 levels of addition, times the scale.
inline Row oracle(const Shape& shape, const Context& context, int token, int head) {
  const int n = shape.head_dim, kv_head = head / (shape.q_heads / shape.kv_heads);
  const bf16* q = &context.q[at((std::int64_t{token} * shape.q_heads + head) * n)];
  Row row{std::vector<double>(at(n)), std::vector<double>(at(n)), 0};
  std::vector<double> scores;
  double peak = -1e300, total = 0;
  for (int j = 0; j <= token; ++j) {
    const bf16* k = &context.k[at((std::int64_t{j} * shape.kv_heads + kv_head) * n)];
    double sum = 0, magnitude = 0;
    for (int i = 0; i < n; ++i) {
      sum += double{to_float(q[i])} * to_float(k[i]);
      magnitude += std::abs(double{to_float(q[i])} * to_float(k[i]));
    }
    scores.push_back(sum * shape.scale);
    peak = std::max(peak, scores.back());
    row.score_error =
        std::max(row.score_error, (n / 32 + 5 + 3) * kFloatUlp * magnitude * shape.scale);
  }
  for (double& each : scores) total += each = std::exp(each - peak);
  for (int j = 0; j <= token; ++j) {
    const bf16* v = &context.v[at((std::int64_t{j} * shape.kv_heads + kv_head) * n)];
    for (int i = 0; i < n; ++i) {
      row.o[at(i)] += scores[at(j)] / total * to_float(v[i]);
      row.magnitude[at(i)] += scores[at(j)] / total * std::abs(to_float(v[i]));
    }
  }
  return row;
}

// Weights err by their score's error both ways and the rounding of the difference to the peak
// (scores stay below 64); the sums over positions, the rescaling per tile and the joining of
// partials add one rounding each.
//
// Tensor cores (sm90) take weights in bf16, cut off what their sums cannot hold, in 16 steps of a
// score and 4 of a tile with more than 16 products each, and take powers of two to 2^-22.
inline void expect_row(const Way& way, const Shape& shape, const Context& context, int token,
                       int head, const bf16* out) {
  const Row row = oracle(shape, context, token, head);
  const int context_tokens = token + 1;
  const bool rough = way.variant == "sm90";
  const double relative = (rough ? 8 : 2) * row.score_error +
                          (rough ? kHalfUlp + 32 * kFloatUlp : 0.0) +
                          (rough ? 4 : 1) * kFloatUlp *
                              (2 * 64 + 2 * context_tokens + 4 * (context_tokens / 64 + 1) +
                               16 * (context_tokens / 256 + 1));
  for (int i = 0; i < shape.head_dim; ++i) {
    const double error = relative * row.magnitude[at(i)];
    double low = rounded(row.o[at(i)] - error), high = rounded(row.o[at(i)] + error);
    if (shape.gated) {
      const double z = to_float(
          context.gate[at((std::int64_t{token} * shape.q_heads + head) * shape.head_dim + i)]);
      const double gate = 1.0 / (1.0 + std::exp(-z));
      const double slack = 6 * kFloatUlp;
      const double ends[] = {low * gate * (1 - slack), low * gate * (1 + slack),
                             high * gate * (1 - slack), high * gate * (1 + slack)};
      low = rounded(*std::min_element(ends, ends + 4));
      high = rounded(*std::max_element(ends, ends + 4));
    }
    ASSERT_GE(to_float(out[i]), low) << "component " << i;
    ASSERT_LE(to_float(out[i]), high) << "component " << i;
    // What rounding explains: two neighbours of bf16, seldom more.
    ASSERT_LE(high - low, 8 * kHalfUlp * std::max(std::abs(low), std::abs(high)) + 2 * error);
  }
}

inline void expect_parts(const Shape& shape, const std::vector<Part>& parts,
                         const StepOptions& options) {
  const std::vector<bf16> out = run_step(shape, parts, options);
  std::int64_t row = 0;
  for (std::size_t s = 0; s < parts.size(); ++s)
    for (int token = parts[s].begin; token < parts[s].end; ++token)
      for (int head = 0; head < shape.q_heads; ++head, ++row) {
        SCOPED_TRACE("sequence " + std::to_string(s) + " position " + std::to_string(token) +
                     " head " + std::to_string(head));
        expect_row(options.way, shape, *parts[s].context, token, head,
                   &out[at(row * shape.head_dim)]);
        if (::testing::Test::HasFatalFailure()) return;
      }
  for (auto i = at(row * shape.head_dim); i < out.size(); ++i)
    ASSERT_EQ(out[i].bits, 0) << "rows behind the last sequence are zero";
}

inline void expect_same_bits(const std::vector<bf16>& one, const std::vector<bf16>& other) {
  ASSERT_EQ(one.size(), other.size());
  for (std::size_t i = 0; i < one.size(); ++i) ASSERT_EQ(one[i].bits, other[i].bits) << "at " << i;
}

// Rows [begin, end) of a context in steps that end at the cuts, sequences in a random order beside
// others that decode: as in one step alone.
inline void expect_same_in_pieces(const Shape& shape, const Context& context, int begin, int end,
                                  std::vector<int> cuts, const Way& way) {
  const StepOptions options{way};
  const std::vector<bf16> whole = run_step(shape, {{&context, begin, end}}, options);
  const Context other = make_context(shape, 11, 19);
  std::vector<bf16> pieces;
  cuts.push_back(end);
  int from = begin;
  for (const int to : cuts) {
    std::vector<Part> parts{{&context, from, to}, {&other, 10, 11}, {&other, 0, 3}};
    std::rotate(parts.begin(), parts.begin() + to % 3, parts.end());
    const std::vector<bf16> out = run_step(shape, parts, options);
    std::int64_t row = 0;
    for (const Part& part : parts) {
      const std::int64_t rows = std::int64_t{part.end - part.begin} * shape.q_heads;
      if (part.context == &context)
        pieces.insert(pieces.end(), out.begin() + row * shape.head_dim,
                      out.begin() + (row + rows) * shape.head_dim);
      row += rows;
    }
    from = to;
  }
  expect_same_bits(whole, pieces);
}

}  // namespace attention_steps
}  // namespace tenon::test
