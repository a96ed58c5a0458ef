// attention with heads of 256 in blocks of 64, as Qwen3.5 has them: what the variant of Hopper
// serves. Against the oracle, and bit for bit: alone against together, in pieces, through slots or
// not, and with the work of rope against rope before it.
#include <gtest/gtest.h>

#include "tenon/ops/rmsnorm/rmsnorm.h"
#include "tenon/ops/rope/rope.h"
#include "tests/support/attention_steps.h"

namespace tenon::attention {
namespace {

using namespace test::attention_steps;
using test::DeviceFixture;
using test::Way;

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
      for (const int length :
           test::sizes({1, 2, 63, 64, 65, 128, 200, 256, 257, 320, 700, 2311}, {1, 65, 257, 700})) {
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
      for (const auto& [begin, end] : test::sizes<std::pair<int, int>>(
               {{0, 2}, {0, 65}, {5, 70}, {60, 64}, {250, 270}, {500, 530}, {1000, 1027}},
               {{0, 65}, {250, 270}})) {
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
      const int scale = is_host(way.target) ? 10 : test::size(1, 3);
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
    const bool is_short = is_host(way.target) || test::is_small_run();
    const int begin = is_short ? 500 : 0, end = is_host(way.target) ? 530 : test::size(1100, 700);
    const Context context = make_context(shape, end, 22);
    for (int round = 0; round < (is_short ? 1 : 4); ++round) {
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
      for (int s = 0; s < test::size(20, 7); ++s)
        contexts.push_back(make_context(shape, 1 + s * 97, 40u + static_cast<unsigned>(s)));
      std::vector<Part> parts;
      for (const Context& each : contexts) parts.push_back({&each, each.tokens - 1, each.tokens});
      const StepOptions plenty{.way = way, .decode_only = true};
      const std::vector<bf16> expected = run_step(shape, parts, plenty);
      StepOptions few = plenty;
      few.workspace_bytes = 20 * 16 * 1032;
      expect_same_bits(expected, run_step(shape, parts, few));
      std::vector<bf16> alone;
      for (const Part& part : parts) {
        const std::vector<bf16> one = run_step(shape, {part}, plenty);
        alone.insert(alone.end(), one.begin(), one.end());
      }
      expect_same_bits(expected, alone);
    });
  }
}

// More partials than a device has multiprocessors, of all lengths, some of them exactly whole.
TEST(AttentionOfModels, ManySequencesHaveTheBitsOfEachAlone) {
  for (const Shape& shape : kModels) {
    for_each_way_of(shape, [&](const Way& way) {
      if (test::is_slow(way.target)) return;  // heads of 256 are there in the tests above
      if (is_host(way.target)) return;  // no variant of theirs goes by the number of sequences
      const Context a = make_context(shape, 1024, 70), b = make_context(shape, 700, 71);
      std::mt19937 random(72);
      std::vector<Part> parts;
      for (int s = 0; s < test::size(160, 48); ++s) {
        const Context& from = s % 3 == 0 ? a : b;
        const int any = 1 + static_cast<int>(random() % static_cast<unsigned>(from.tokens));
        const int end = s % 5 == 0 ? (any + 255) / 256 * 256 : any;
        parts.push_back({&from, std::min(end, from.tokens) - 1, std::min(end, from.tokens)});
      }
      const StepOptions options{.way = way, .decode_only = true};
      StepOptions padded = options;
      padded.extra_rows = 2;
      const std::vector<bf16> together = run_step(shape, parts, padded);
      std::vector<bf16> alone;
      for (const Part& part : parts) {
        const std::vector<bf16> one = run_step(shape, {part}, options);
        alone.insert(alone.end(), one.begin(), one.end());
      }
      alone.insert(alone.end(), at(2 * shape.q_heads * shape.head_dim), bf16{0});
      expect_same_bits(alone, together);
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

// --- the work of rope ---------------------------------------------------------------------------

constexpr std::int64_t kDim = 256, kRotary = 64, kPositions = 3000;

// A projected row: q and gate of each head, then k heads, then v heads.
struct Projected {
  TensorView rows;
  std::int64_t q_heads, kv_heads;
  TensorView heads(std::int64_t begin, std::int64_t count, std::int64_t stride) const {
    TensorView part =
        view(rows.as<bf16>() + begin, DType::kBF16, rows.device, {rows.shape[0], count, kDim});
    part.stride = {rows.shape[1], stride, 1, 0};
    return part;
  }
  TensorView q() const { return heads(0, q_heads, 2 * kDim); }
  TensorView gate() const { return heads(kDim, q_heads, 2 * kDim); }
  TensorView k() const { return heads(2 * q_heads * kDim, kv_heads, kDim); }
  TensorView v() const { return heads((2 * q_heads + kv_heads) * kDim, kv_heads, kDim); }
};

TensorView copy_of(DeviceFixture& fixture, const TensorView& from) {
  const TensorView to = fixture.blank(from.dtype, {static_cast<std::int64_t>(from.bytes())});
  TensorView found = from;
  found.data = to.data;
  EXPECT_TRUE(fixture.stream().copy(found.data, from.data, from.bytes()));
  return found;
}

// Everything that a step leaves: rows, both caches.
struct Left {
  std::vector<bf16> out, k_cache, v_cache;
};

// Calls in a graph, each right behind the kernel that writes its rows, which lets it start early:
// what a call does before that one has ended shows in no bit.
void expect_same_behind(DeviceFixture& fixture, const TensorView& rows, const Args& args,
                        const Way& way) {
  constexpr int kKinds = 2, kCalls = 6;
  std::mt19937 random(90);
  const std::int64_t tokens = rows.shape[0], width = rows.shape[1];
  const auto put_rows = [&] {
    return fixture.put(random_bf16(random, tokens * width, 1.0f), DType::kBF16, {tokens, width});
  };
  const rmsnorm::Args write{
      .y = put_rows(),
      .residual = fixture.blank(DType::kBF16, {tokens, width}),
      .weight = fixture.put(random_bf16(random, width, 1.0f), DType::kBF16, {width}),
      .fresh_residual = true,
      .out = {.bf16 = rows, .fp8 = {}}};
  rmsnorm::Args writes[kKinds] = {write, write};
  writes[1].y = put_rows();
  const Plan writing = DeviceFixture::must(rmsnorm::plan(write, fixture.where())),
             reading = test::plan_forced(fixture, args, way.variant);
  std::vector<std::vector<bf16>> expected;
  for (const rmsnorm::Args& each : writes) {
    ASSERT_TRUE(rmsnorm::run(writing, each, fixture.stream()));
    ASSERT_TRUE(fixture.stream().synchronize());
    ASSERT_TRUE(run(reading, args, fixture.stream()));
    expected.push_back(fixture.get<bf16>(*args.out.bf16));
  }
  std::vector<Args> calls(kCalls, args);
  for (Args& each : calls)
    each.out.bf16 = fixture.blank(DType::kBF16, {tokens, args.out.bf16->shape[1]}, 0xff);
  ASSERT_TRUE(Graph::begin(fixture.stream()));
  for (int i = 0; i < kCalls; ++i) {
    ASSERT_TRUE(rmsnorm::run(writing, writes[i % kKinds], fixture.stream()));
    ASSERT_TRUE(run(reading, calls[at(i)], fixture.stream()));
  }
  Graph graph = DeviceFixture::must(Graph::end(fixture.stream()));
  for (int replay = 0; replay < 5; ++replay) {
    ASSERT_TRUE(graph.replay(fixture.stream()));
    ASSERT_TRUE(fixture.stream().synchronize());
    for (int i = 0; i < kCalls; ++i)
      expect_same_bits(expected[at(i % kKinds)], fixture.get<bf16>(*calls[at(i)].out.bf16));
  }
}

TEST(AttentionOfModels, HeadsGiveTheBitsOfRopeBeforeIt) {
  for (const Shape& shape : kModels) {
    for (const bool wide : {false, true}) {
      for_each_way_of(shape, [&](const Way& way) {
        if (way.variant != "sm90") return;
        DeviceFixture fixture(way.target);
        std::vector<Context> contexts;
        for (const int length :
             test::sizes({1, 64, 65, 256, 257, 300, 1000, 2049, 128, 2}, {1, 65, 256, 700, 2}))
          contexts.push_back(make_context(shape, length, 60u + static_cast<unsigned>(length)));
        std::vector<Part> parts;
        for (const Context& each : contexts) parts.push_back({&each, each.tokens - 1, each.tokens});
        const Args base =
            put(fixture, shape, parts, {.way = way, .extra_rows = 1, .decode_only = true});
        const std::int64_t tokens = base.q.shape[0];
        std::mt19937 random(9);
        const std::int64_t width = (2 * shape.q_heads + 2 * shape.kv_heads) * kDim;
        const Projected projected{
            fixture.put(random_bf16(random, tokens * width, 2.0f), DType::kBF16, {tokens, width}),
            shape.q_heads, shape.kv_heads};
        std::vector<float> table;
        std::uniform_real_distribution<float> angle(-3.0f, 3.0f);
        for (int i = 0; i < kPositions * kRotary / 2; ++i) table.push_back(angle(random));
        table.resize(static_cast<std::size_t>(kPositions * kRotary));
        for (float& each : table) each = std::cos(each + angle(random));
        std::vector<float> norm;
        for (int i = 0; i < kDim; ++i) norm.push_back(0.3f * angle(random));
        std::vector<bf16> narrow;
        for (const float each : norm) narrow.push_back(to_bf16(each));
        const std::vector<std::int32_t> blocks = fixture.get<std::int32_t>(base.block_table);
        std::vector<std::int32_t> positions, slots;
        for (std::size_t s = 0; s < parts.size(); ++s) {
          const int last = parts[s].end - 1;
          positions.push_back(last);
          const std::size_t column = at(last / shape.block_tokens);
          slots.push_back(blocks[s * at(base.block_table.shape[1]) + column] * shape.block_tokens +
                          last % shape.block_tokens);
        }
        positions.push_back(-5), slots.push_back(-1);
        NewHeads heads;
        heads.k = projected.k();
        heads.v = projected.v();
        heads.q_norm = heads.k_norm = wide ? fixture.put(norm, DType::kF32, {kDim})
                                           : fixture.put(narrow, DType::kBF16, {kDim});
        heads.positions = fixture.put(positions, DType::kI32, {tokens});
        heads.cos_sin = fixture.put(table, DType::kF32, {kPositions, kRotary});
        heads.slot_mapping = fixture.put(slots, DType::kI32, {tokens});

        const auto with_caches = [&](Args args) {
          args.gate = projected.gate();
          args.k_cache = copy_of(fixture, base.k_cache);
          args.v_cache = copy_of(fixture, base.v_cache);
          args.out.bf16 = fixture.blank(DType::kBF16, {tokens, shape.q_heads * kDim}, 0xff);
          return args;
        };
        const auto left_by = [&](const Args& args) {
          return Left{fixture.get<bf16>(*args.out.bf16), fixture.get<bf16>(args.k_cache),
                      fixture.get<bf16>(args.v_cache)};
        };
        Args chain = with_caches(base);
        chain.q = fixture.blank(DType::kBF16, {tokens, shape.q_heads, kDim});
        const rope::Args rotate{.q = projected.q(),
                                .k = heads.k,
                                .v = heads.v,
                                .q_norm = heads.q_norm,
                                .k_norm = heads.k_norm,
                                .eps = heads.eps,
                                .norm_offset = heads.norm_offset,
                                .positions = heads.positions,
                                .cos_sin = heads.cos_sin,
                                .slot_mapping = heads.slot_mapping,
                                .q_out = chain.q,
                                .k_cache = chain.k_cache,
                                .v_cache = chain.v_cache};
        test::run_forced(fixture, rotate, "head");
        test::run_forced(fixture, chain, way.variant);
        const Left expected = left_by(chain);
        Args fused = with_caches(base);
        fused.q = projected.q();
        fused.heads = heads;
        test::run_forced(fixture, fused, way.variant);
        const Left found = left_by(fused);
        expect_same_bits(expected.out, found.out);
        expect_same_bits(expected.k_cache, found.k_cache);
        expect_same_bits(expected.v_cache, found.v_cache);
        if (wide) return;
        expect_same_behind(fixture, projected.rows, fused, way);
      });
    }
  }
}

}  // namespace
}  // namespace tenon::attention
