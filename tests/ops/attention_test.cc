// attention against a double-precision reading of its header, on every target and variant; and bit
// for bit: against the header's order in fp32, on every target, whatever the rest of the batch and
// the chunks of a prompt are.
#include "tenon/ops/attention/attention.h"

#include <gtest/gtest.h>

#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tests/support/attention_steps.h"
#include "tests/support/exact_math.h"

namespace tenon::attention {
namespace {

using namespace test::attention_steps;
using test::DeviceFixture;
using test::for_each_way;
using test::Way;

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
    for (int length :
         test::sizes({1, 2, 15, 16, 17, 64, 65, 200, 256, 257, 700}, {1, 17, 65, 257})) {
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
    for (int length : test::sizes({1, 2, 3, 17, 65, 130}, {1, 17, 65})) {
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
    const bool is_short = test::is_slow(way.target) || test::is_small_run();
    for (int round = 0; round < (is_short ? 1 : 4); ++round) {
      SCOPED_TRACE("round " + std::to_string(round));
      const int begin = is_short ? 500 : 0, end = 560;
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
