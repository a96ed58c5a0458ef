// attention against a double-precision reading of its header, on every target and variant; and bit
// for bit: against the header's order in fp32, on every target, whatever the rest of the batch and
// the chunks of a prompt are.
#include "tenon/ops/attention/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tenon/core/fp8.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tests/support/exact_math.h"
#include "tests/support/op_suite.h"

namespace tenon::attention {
namespace {

using test::DeviceFixture;
using test::for_each_way;
using test::Way;

constexpr double kFloatUlp = 0x1p-24;  // unit roundoffs
constexpr double kHalfUlp = 0x1p-8;    // of bf16

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
double rounded(double value) { return to_float(to_bf16(static_cast<float>(value))); }

struct Shape {
  int q_heads = 4, kv_heads = 2, head_dim = 256, block_tokens = 16;
  float scale = 0.0625f;
  bool gated = true;
};

// The variant of Hopper is for one head size and for blocks that its copies can take.
bool serves(const Way& way, const Shape& shape) {
  return way.variant != "sm90" || (shape.head_dim == 256 && shape.block_tokens % kTileTokens == 0);
}
template <class Body>
void for_each_way_of(const Shape& shape, const Body& body) {
  for_each_way(kOp, [&](const Way& way) {
    if (serves(way, shape)) body(way);
  });
}

// A sequence: k and v of its whole context, and q and gate of the same positions.
struct Context {
  int tokens = 0;
  std::vector<bf16> q, gate, k, v;
};

std::vector<bf16> random_bf16(std::mt19937& random, std::int64_t n, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<bf16> found(at(n));
  for (bf16& each : found) each = to_bf16(normal(random));
  return found;
}

Context make_context(const Shape& shape, int tokens, unsigned seed) {
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

Pages make_pages(const Shape& shape, const std::vector<Part>& parts, int first_block) {
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

StepRows gather(const Shape& shape, const std::vector<Part>& parts, const StepOptions& options) {
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

Args put(DeviceFixture& fixture, const Shape& shape, const std::vector<Part>& parts,
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

std::vector<bf16> run_step(const Shape& shape, const std::vector<Part>& parts,
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
Row oracle(const Shape& shape, const Context& context, int token, int head) {
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
void expect_row(const Way& way, const Shape& shape, const Context& context, int token, int head,
                const bf16* out) {
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

void expect_parts(const Shape& shape, const std::vector<Part>& parts, const StepOptions& options) {
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

void expect_same_bits(const std::vector<bf16>& one, const std::vector<bf16>& other) {
  ASSERT_EQ(one.size(), other.size());
  for (std::size_t i = 0; i < one.size(); ++i) ASSERT_EQ(one[i].bits, other[i].bits) << "at " << i;
}

// --- the header's order in fp32, as the variant "tiled" fills it in -----------------------------

// Slot i % 32 sums its elements in order; the upper half of the slots is added to the lower half.
float dot(const bf16* a, const bf16* b, int n) {
  float slots[32] = {};
  for (int i = 0; i < n; ++i) slots[i % 32] = slots[i % 32] + to_float(a[i]) * to_float(b[i]);
  for (int half = 16; half > 0; half /= 2)
    for (int slot = 0; slot < half; ++slot) slots[slot] = slots[slot] + slots[slot + half];
  return slots[0];
}

struct Softmax {
  float peak = -INFINITY, total = 0;
  std::vector<float> sum;
};

// Positions [first, last) of one tile, in order.
void take_tile(const Shape& shape, const Context& context, const bf16* q, int kv_head, int first,
               int last, Softmax& running) {
  const auto row_of = [&](const std::vector<bf16>& rows, int position) {
    return &rows[at((std::int64_t{position} * shape.kv_heads + kv_head) * shape.head_dim)];
  };
  std::vector<float> weights;
  float peak = running.peak;
  for (int j = first; j < last; ++j) {
    weights.push_back(dot(q, row_of(context.k, j), shape.head_dim) * shape.scale);
    peak = std::max(peak, weights.back());
  }
  const float rescale = test::exact_exp(running.peak - peak);
  running.peak = peak;
  running.total = running.total * rescale;
  for (float& sum : running.sum) sum = sum * rescale;
  for (int j = first; j < last; ++j) {
    const float weight = test::exact_exp(weights[at(j - first)] - peak);
    running.total = running.total + weight;
    for (int i = 0; i < shape.head_dim; ++i)
      running.sum[at(i)] = running.sum[at(i)] + weight * to_float(row_of(context.v, j)[i]);
  }
}

void join(const Softmax& next, Softmax& whole) {
  const float peak = std::max(whole.peak, next.peak);
  const float a = test::exact_exp(whole.peak - peak), b = test::exact_exp(next.peak - peak);
  whole.peak = peak;
  whole.total = whole.total * a + next.total * b;
  for (std::size_t i = 0; i < whole.sum.size(); ++i)
    whole.sum[i] = whole.sum[i] * a + next.sum[i] * b;
}

// The row without its gate.
std::vector<bf16> exact_row(const Shape& shape, const Context& context, int token, int head) {
  const int kv_head = head / (shape.q_heads / shape.kv_heads);
  const bf16* q = &context.q[at((std::int64_t{token} * shape.q_heads + head) * shape.head_dim)];
  Softmax whole;
  for (int partial = 0; partial <= token; partial += kPartialTokens) {
    const int end = std::min(partial + kPartialTokens, token + 1);
    Softmax mine{.sum = std::vector<float>(at(shape.head_dim))};
    for (int first = partial; first < end; first += kTileTokens)
      take_tile(shape, context, q, kv_head, first, std::min(first + kTileTokens, end), mine);
    if (partial == 0) {
      whole = mine;
    } else {
      join(mine, whole);
    }
  }
  std::vector<bf16> row;
  const float inverse = 1.0f / whole.total;
  for (const float sum : whole.sum) row.push_back(to_bf16(sum * inverse));
  return row;
}

// Ends in every place that matters: within a tile, at its end, at a partial's end, just behind.
TEST(Attention, KeepsItsDefinitionToTheBit) {
  const Shape shape{.q_heads = 3,
                    .kv_heads = 1,
                    .head_dim = 40,
                    .block_tokens = 48,
                    .scale = 0.2f,
                    .gated = false};
  const Context context = make_context(shape, 800, 21);
  for_each_way_of(shape, [&](const Way& way) {
    for (const auto& [begin, end] :
         {std::pair{0, 70}, {127, 130}, {250, 260}, {511, 514}, {640, 641}, {767, 800}}) {
      SCOPED_TRACE("from " + std::to_string(begin));
      const auto out = run_step(shape, {{&context, begin, end}}, {way});
      std::vector<bf16> expected;
      for (int token = begin; token < end; ++token)
        for (int head = 0; head < shape.q_heads; ++head)
          for (const bf16 each : exact_row(shape, context, token, head)) expected.push_back(each);
      expect_same_bits(expected, out);
    }
  });
}

TEST(Attention, DecodeMatchesOracle) {
  const Shape shape;
  for_each_way_of(shape, [&](const Way& way) {
    for (int length : {1, 2, 15, 16, 17, 64, 65, 200, 256, 257, 700}) {
      if (test::is_slow(way.target) && length > 65 && length != 257) continue;
      SCOPED_TRACE("length " + std::to_string(length));
      const Context context = make_context(shape, length, 3);
      expect_parts(shape, {{&context, length - 1, length}}, {way});
    }
  });
}

TEST(Attention, PrefillMatchesOracle) {
  const Shape shape{.head_dim = 64, .block_tokens = 4, .scale = 0.125f};
  for_each_way_of(shape, [&](const Way& way) {
    for (int length : {1, 2, 3, 17, 65, 130}) {
      if (test::is_slow(way.target) && length > 17) continue;
      SCOPED_TRACE("length " + std::to_string(length));
      const Context context = make_context(shape, length, 4);
      expect_parts(shape, {{&context, 0, length}}, {way});
    }
  });
}

TEST(Attention, TakesEveryGroupingAndHeadSize) {
  const Shape shapes[] = {
      {.q_heads = 1, .kv_heads = 1, .head_dim = 8, .block_tokens = 1, .scale = 0.3f},
      {.q_heads = 3, .kv_heads = 1, .head_dim = 40, .block_tokens = 5, .scale = 0.2f},
      {.q_heads = 16, .kv_heads = 1, .head_dim = 64, .scale = 0.125f, .gated = false},
      {.q_heads = 6, .kv_heads = 2, .head_dim = 248, .block_tokens = 64},
      {.q_heads = 2, .kv_heads = 2, .head_dim = 128, .block_tokens = 3, .scale = 0.1f}};
  for_each_way(kOp, [&](const Way& way) {
    for (const Shape& shape : shapes) {
      if (!serves(way, shape)) continue;
      SCOPED_TRACE("head_dim " + std::to_string(shape.head_dim));
      const Context context = make_context(shape, 19, 5);
      expect_parts(shape, {{&context, 12, 19}}, {way, 2, 16});
    }
  });
}

TEST(Attention, MixedBatchHasTheBitsOfEachSequenceAlone) {
  const Shape shape{.head_dim = 64, .scale = 0.125f};
  const Context a = make_context(shape, 40, 6), b = make_context(shape, 9, 7),
                c = make_context(shape, 23, 8);
  const std::vector<Part> parts{{&a, 39, 40}, {&b, 0, 9}, {&c, 20, 23}};
  const std::vector<bf16> reference = run_step(shape, parts, {test::on_cpu(kOp), 3, 8, 5});
  for_each_way_of(shape, [&](const Way& way) {
    const StepOptions options{way, 3, 8, 5};
    expect_parts(shape, parts, options);
    const std::vector<bf16> together = run_step(shape, parts, options);
    std::vector<bf16> alone;
    for (const Part& part : parts) {
      const std::vector<bf16> one = run_step(shape, {part}, {way});
      alone.insert(alone.end(), one.begin(), one.end());
    }
    alone.insert(alone.end(), at(3 * shape.q_heads * shape.head_dim), bf16{0});
    expect_same_bits(alone, together);
    expect_same_bits(reference, together);
  });
}

// Rows [begin, end) of a context in steps that end at the cuts, sequences in a random order beside
// others that decode: as in one step alone.
void expect_same_in_pieces(const Shape& shape, const Context& context, int begin, int end,
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

TEST(Attention, ChunksOfAPromptGiveTheSameBits) {
  const Shape shape{
      .q_heads = 6, .kv_heads = 2, .head_dim = 64, .block_tokens = 8, .scale = 0.125f};
  const Context context = make_context(shape, 50, 9);
  for_each_way_of(shape, [&](const Way& way) {
    expect_same_in_pieces(shape, context, 0, 50, {1, 7, 33, 34, 49}, way);
  });
}

TEST(Attention, RandomChunksOfLongPromptsGiveTheSameBits) {
  const Shape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 32, .scale = 0.2f};
  const Context context = make_context(shape, 600, 22);
  std::mt19937 random(23);
  for_each_way_of(shape, [&](const Way& way) {
    for (int round = 0; round < (!test::is_slow(way.target) ? 4 : 1); ++round) {
      SCOPED_TRACE("round " + std::to_string(round));
      const int begin = !test::is_slow(way.target) ? 0 : 500, end = 560;
      std::vector<int> cuts;
      for (int at = begin; (at += 1 + static_cast<int>(random() % 120)) < end;) cuts.push_back(at);
      expect_same_in_pieces(shape, context, begin, end, cuts, way);
    }
  });
}

TEST(Attention, PlanServesFewerSequencesAndTokens) {
  const Shape shape{.head_dim = 64, .scale = 0.125f};
  const Context a = make_context(shape, 20, 13), b = make_context(shape, 6, 14);
  for_each_way_of(shape, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    const Args many = put(fixture, shape, {{&a, 0, 20}, {&b, 0, 6}, {&a, 3, 9}}, {});
    const Plan made = test::plan_forced(fixture, many, way.variant);
    expect_parts(shape, {{&b, 4, 6}}, {.way = way, .made_for_more = &made});
  });
}

// Lengths and tables of padding sequences: nothing to see, or no block.
TEST(Attention, PaddingSequencesAreHarmless) {
  const Shape shape{.head_dim = 64, .scale = 0.125f};
  const Context nothing = make_context(shape, 0, 10), real = make_context(shape, 5, 11);
  for_each_way_of(shape, [&](const Way& way) {
    expect_parts(shape, {{&nothing, 0, 0}, {&real, 4, 5}, {&nothing, 0, 0}}, {way, 2});
  });
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const Shape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 32, .scale = 40.0f, .gated = false};
  const Context context = make_context(shape, 33, 12);
  for_each_way_of(shape, [&](const Way& way) {
    const std::vector<bf16> out = run_step(shape, {{&context, 32, 33}}, {way});
    const Row row = oracle(shape, context, 32, 0);  // one position takes nearly all
    for (int i = 0; i < 32; ++i)
      ASSERT_NEAR(to_float(out[at(i)]), row.o[at(i)],
                  2 * row.score_error * row.magnitude[at(i)] + kHalfUlp * std::abs(row.o[at(i)]));
  });
}

// --- fp8 rows -----------------------------------------------------------------------------------

struct Quantised {
  std::vector<std::uint8_t> codes, scales;
};
Quantised get_quantised(DeviceFixture& fixture, const QuantView& fp8) {
  TensorView bytes = fp8.data;
  bytes.dtype = DType::kU8;
  TensorView words = fp8.scale;
  words.dtype = DType::kI32;
  return {fixture.get<std::uint8_t>(bytes), test::bytes_of(fixture.get<std::int32_t>(words))};
}
QuantView blank_quantised(DeviceFixture& fixture, std::int64_t rows, std::int64_t width, int group,
                          ScaleLayout layout) {
  const auto [height, columns] = scale_shape(layout, rows, width, group);
  return {fixture.blank(DType::kE4M3, {rows, width}),
          fixture.blank(scale_dtype(layout), {height, columns}), group, layout};
}

// The codes and scales that fp8_quant makes of the bf16 rows, with those rows or without.
void expect_quantised(const Way& way, const Shape& shape, const std::vector<Part>& parts, int group,
                      ScaleLayout layout) {
  DeviceFixture fixture(way.target);
  Args args = put(fixture, shape, parts, {.way = way, .extra_rows = 2});
  const std::int64_t rows = args.q.shape[0], width = shape.q_heads * shape.head_dim;
  test::run_forced(fixture, args, way.variant);
  const std::vector<bf16> expected_rows = fixture.get<bf16>(*args.out.bf16);
  fp8_quant::Args quant{
      .in = *args.out.bf16,
      .out = {.bf16 = {}, .fp8 = blank_quantised(fixture, rows, width, group, layout)}};
  test::run_forced(fixture, quant, "segment");
  const Quantised expected = get_quantised(fixture, *quant.out.fp8);
  for (const bool both : {true, false}) {
    SCOPED_TRACE(both ? "both" : "fp8 alone");
    args.out.fp8 = blank_quantised(fixture, rows, width, group, layout);
    args.out.bf16.reset();
    if (both) args.out.bf16 = fixture.blank(DType::kBF16, {rows, width}, 0xff);
    test::run_forced(fixture, args, way.variant);
    const Quantised found = get_quantised(fixture, *args.out.fp8);
    ASSERT_EQ(found.codes, expected.codes);
    ASSERT_EQ(found.scales, expected.scales);
    if (both) expect_same_bits(fixture.get<bf16>(*args.out.bf16), expected_rows);
  }
}

TEST(Attention, QuantisesAsFp8QuantDoes) {
  const Shape wide{.block_tokens = 64}, narrow{.q_heads = 6, .head_dim = 96, .scale = 0.1f},
      plain{.q_heads = 2, .kv_heads = 1, .head_dim = 128, .scale = 0.1f, .gated = false};
  for_each_way(kOp, [&](const Way& way) {
    for (const auto& [shape, group, layout] : {std::tuple{wide, 128, ScaleLayout::kRow},
                                               {plain, 128, ScaleLayout::kRow},
                                               {plain, 64, ScaleLayout::kMnMajor},
                                               {wide, 256, ScaleLayout::kUe8m0Packed},
                                               {narrow, 32, ScaleLayout::kUe8m0Packed}}) {
      if (!serves(way, shape) || (way.variant == "sm90" && group != 128)) continue;
      SCOPED_TRACE("groups of " + std::to_string(group));
      const Context a = make_context(shape, 40, 31), b = make_context(shape, 12, 32);
      expect_quantised(way, shape, {{&a, 39, 40}, {&b, 9, 12}}, group, layout);
    }
  });
}

// --- heads of 256 in blocks of 64, as Qwen3.5 has them
// --------------------------------------------

constexpr Shape kModels[] = {
    {.q_heads = 8, .kv_heads = 1, .block_tokens = 64},
    {.q_heads = 12, .kv_heads = 2, .block_tokens = 64},
    {.q_heads = 16, .kv_heads = 1, .block_tokens = 128, .gated = false},
};

TEST(AttentionOfModels, DecodeMatchesOracle) {
  for (const Shape& shape : kModels) {
    SCOPED_TRACE(std::to_string(shape.q_heads) + " q heads");
    for_each_way_of(shape, [&](const Way& way) {
      if (test::is_slow(way.target)) return;  // heads of 256 are there in the tests above
      for (const int length : {1, 2, 63, 64, 65, 128, 200, 256, 257, 320, 700, 2311}) {
        if (is_host(way.target) && length > 65 && length != 257) continue;
        SCOPED_TRACE("length " + std::to_string(length));
        const Context context = make_context(shape, length, 3);
        for (const bool only : {false, true})
          expect_parts(shape, {{&context, length - 1, length}},
                       {.way = way, .gate_padding = 8, .decode_only = only});
      }
    });
  }
}

TEST(AttentionOfModels, PromptsMatchOracle) {
  for (const Shape& shape : kModels) {
    SCOPED_TRACE(std::to_string(shape.q_heads) + " q heads");
    for_each_way_of(shape, [&](const Way& way) {
      if (test::is_slow(way.target)) return;  // heads of 256 are there in the tests above
      for (const auto& [begin, end] :
           {std::pair{0, 2}, {0, 65}, {5, 70}, {60, 64}, {250, 270}, {500, 530}, {1000, 1027}}) {
        if (is_host(way.target) && end > 70) continue;
        SCOPED_TRACE("to " + std::to_string(end));
        const Context context = make_context(shape, end, 4);
        expect_parts(shape, {{&context, begin, end}}, {.way = way, .extra_rows = 1});
      }
    });
  }
}

// One sequence of each kind, in both orders, with padding: the bits of each alone.
TEST(AttentionOfModels, MixedBatchHasTheBitsOfEachSequenceAlone) {
  for (const Shape& shape : kModels) {
    for_each_way_of(shape, [&](const Way& way) {
      if (test::is_slow(way.target)) return;  // heads of 256 are there in the tests above
      const int scale = is_host(way.target) ? 10 : 1;
      const Context a = make_context(shape, 900 / scale, 6),
                    b = make_context(shape, 300 / scale, 7),
                    c = make_context(shape, 640 / scale, 8), none = make_context(shape, 0, 9);
      std::vector<Part> parts{{&a, a.tokens - 1, a.tokens},  {&b, 0, b.tokens},
                              {&c, c.tokens - 21, c.tokens}, {&b, 1, 2},
                              {&c, c.tokens - 1, c.tokens},  {&a, 0, 1}};
      for (int round = 0; round < 2; ++round) {
        std::vector<Part> padded = parts;
        padded.push_back({&none, 0, 0});
        const std::vector<bf16> together =
            run_step(shape, padded, {.way = way, .extra_rows = 3, .first_block = 5});
        std::vector<bf16> alone;
        for (const Part& part : parts) {
          const std::vector<bf16> one = run_step(
              shape, {part}, {.way = way, .decode_only = part.end - part.begin == 1 && round == 0});
          alone.insert(alone.end(), one.begin(), one.end());
        }
        alone.insert(alone.end(), at(3 * shape.q_heads * shape.head_dim), bf16{0});
        expect_same_bits(alone, together);
        std::reverse(parts.begin(), parts.end());
      }
    });
  }
}

// No piece has one token: that would be a step of decoding.
TEST(AttentionOfModels, ChunksOfAPromptGiveTheSameBits) {
  const Shape shape = kModels[1];
  std::mt19937 random(24);
  for_each_way_of(shape, [&](const Way& way) {
    if (test::is_slow(way.target)) return;  // heads of 256 are there in the tests above
    const int begin = is_host(way.target) ? 500 : 0, end = is_host(way.target) ? 530 : 1100;
    const Context context = make_context(shape, end, 22);
    for (int round = 0; round < (is_host(way.target) ? 1 : 4); ++round) {
      SCOPED_TRACE("round " + std::to_string(round));
      std::vector<int> cuts;
      for (int at = begin; (at += 2 + static_cast<int>(random() % 150)) < end - 2;)
        cuts.push_back(at);
      expect_same_in_pieces(shape, context, begin, end, cuts, way);
    }
  });
}

// With room for few partials sequences are walked over instead.
TEST(AttentionOfModels, SlotsForPartialsShowInNoBit) {
  for (const Shape& shape : kModels) {
    for_each_way_of(shape, [&](const Way& way) {
      if (test::is_slow(way.target)) return;  // heads of 256 are there in the tests above
      if (is_host(way.target)) return;        // no variant of theirs has a workspace
      std::vector<Context> contexts;
      for (int s = 0; s < 20; ++s)
        contexts.push_back(make_context(shape, 1 + s * 97, 40u + static_cast<unsigned>(s)));
      std::vector<Part> parts;
      for (const Context& each : contexts) parts.push_back({&each, each.tokens - 1, each.tokens});
      const StepOptions plenty{.way = way, .decode_only = true};
      const std::vector<bf16> expected = run_step(shape, parts, plenty);
      StepOptions few = plenty;
      few.workspace_bytes = 65536 * 4 + 20 * 16 * 1032;
      expect_same_bits(expected, run_step(shape, parts, few));
    });
  }
}

// A call leaves its workspace ready for the next one, with other sequences, also in a graph.
TEST(AttentionOfModels, CallsShareAWorkspace) {
  const Shape shape = kModels[0];
  for_each_way_of(shape, [&](const Way& way) {
    if (test::is_slow(way.target)) return;  // heads of 256 are there in the tests above
    const int length = is_host(way.target) ? 70 : 1500;
    const Context a = make_context(shape, length, 50), b = make_context(shape, length / 2, 51);
    DeviceFixture fixture(way.target);
    const Args two = put(
        fixture, shape, {{&a, a.tokens - 1, a.tokens}, {&b, b.tokens - 1, b.tokens}}, {.way = way});
    Args one = put(fixture, shape, {{&b, b.tokens - 1, b.tokens}}, {.way = way});
    one.workspace = two.workspace;
    const Plan plan_two = test::plan_forced(fixture, two, way.variant),
               plan_one = test::plan_forced(fixture, one, way.variant);
    std::vector<bf16> first;
    ASSERT_TRUE(Graph::begin(fixture.stream()));
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(run(plan_two, two, fixture.stream()));
      ASSERT_TRUE(run(plan_one, one, fixture.stream()));
    }
    Graph graph = DeviceFixture::must(Graph::end(fixture.stream()));
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(graph.replay(fixture.stream()));
      ASSERT_TRUE(fixture.stream().synchronize());
      const std::vector<bf16> of_two = fixture.get<bf16>(*two.out.bf16),
                              of_one = fixture.get<bf16>(*one.out.bf16);
      expect_same_bits(of_one,
                       {of_two.begin() + static_cast<std::ptrdiff_t>(of_one.size()), of_two.end()});
      if (i == 0) first = of_two;
      expect_same_bits(first, of_two);
    }
  });
}

TEST(Attention, RefusalsSayWhatIsAccepted) {
  const Context context = make_context({.head_dim = 64}, 3, 1);
  DeviceFixture fixture(Target::kCpu);
  const Args good = put(fixture, {.head_dim = 64}, {{&context, 0, 2}, {&context, 0, 1}}, {});
  const auto bf16_view = [](const TensorView& memory, std::initializer_list<std::int64_t> shape) {
    return view(memory.data, DType::kBF16, Device{}, shape);
  };
  test::expect_refusals(kOp, good,
                        {{[&](Args& a) {
                            a.k_cache = a.v_cache = bf16_view(a.k_cache, {5, 16, 3, 64});
                          },
                          "evenly"},
                         {[](Args& a) { a.sequence_starts.shape[0] = 2; }, "sequence_starts"},
                         {[&](Args& a) {
                            a.q = bf16_view(a.q, {3, 4, 512});
                          },
                          "head_dim"},
                         {[](Args& a) { a.gate->stride[2] = 2; }, "gate"},
                         {[](Args& a) { a.out.bf16->stride[0] = 300; }, "multiples of 16"},
                         {[](Args& a) { a.out = {}; }, "neither"},
                         {[](Args& a) { a.block_table.stride[0] = 9; }, "strided"},
                         {[](Args& a) { a.workspace = a.sequence_starts; }, "workspace"},
                         {[&](Args& a) {
                            a.out.fp8 = {
                                .data = view(a.out.bf16->data, DType::kE4M3, Device{}, {3, 256}),
                                .scale = view(a.q.data, DType::kF32, Device{}, {3, 2}),
                                .group = 128};
                          },
                          "divide head_dim"}});
}

}  // namespace
}  // namespace tenon::attention
