// The bytes of a step: where arrays lie, how a step is padded, when its tokens are on the device
// already, and how many bytes travel. What a step of random work holds is in scheduler_test.cc.
#include "tenon/runtime/step_input.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

namespace tenon {
namespace {

std::vector<std::int32_t> prompt_of(int length) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(length));
  std::iota(ids.begin(), ids.end(), 100);
  return ids;
}
SamplingParams tokens(int count) {
  SamplingParams sampling;
  sampling.max_tokens = count;
  sampling.temperature = 1;
  sampling.top_p = 0.5f;
  sampling.seed = 7;
  return sampling;
}

// A scheduler with room for everybody, and a writer of its steps.
struct Bench {
  explicit Bench(int max_sequences = 20)
      : caches(100, kBlockTokens, max_sequences),
        scheduler({max_sequences, 256, 640}, caches),
        layout(256, max_sequences, 10),
        bytes(layout.bytes(), std::byte{0x55}),
        writer(layout, bytes) {}
  void add(std::uint64_t id, int prompt, int count = 30) {
    const Status added = scheduler.add(RequestId{id}, prompt_of(prompt), tokens(count));
    ASSERT_TRUE(added) << added.to_string();
  }
  // Writes the next step, and has every sequence draw 1000 and up.
  StepHeader step() {
    const BatchPlan plan = scheduler.next();
    writer.write(plan, kBlockTokens);
    std::vector<std::int32_t> drawn(plan.entries.size());
    std::iota(drawn.begin(), drawn.end(), 1000);
    scheduler.apply(plan, drawn);
    return StepReader::header(bytes);
  }
  StepArrays arrays() { return layout.arrays(bytes.data()); }

  CachePool caches;
  Scheduler scheduler;
  StepLayout layout;
  std::vector<std::byte> bytes;
  StepWriter writer;
};

TEST(StepInput, CommandsNeedNoPlan) {
  Bench bench;
  for (const StepCommand command : {StepCommand::kIdle, StepCommand::kStop}) {
    bench.writer.write(command);
    EXPECT_EQ(StepReader::header(bench.bytes).command, command);
    EXPECT_EQ(bench.writer.used().size(), bench.layout.offset(StepField::block_table));
  }
}

TEST(StepInput, DecodeStepsAreRoundedUp) {
  const StepLayout layout(256, 45, 10);
  const auto rows = [&](int sequences) {
    const StepShape shape = layout.padded({sequences, sequences, sequences, true});
    EXPECT_EQ(shape, (StepShape{shape.tokens, shape.tokens, shape.tokens, true}));
    return shape.tokens;
  };
  for (int sequences = 1; sequences <= 8; ++sequences) EXPECT_EQ(rows(sequences), sequences);
  EXPECT_EQ(rows(9), 10);
  EXPECT_EQ(rows(15), 16);
  EXPECT_EQ(rows(17), 20);
  EXPECT_EQ(rows(33), 40);
  EXPECT_EQ(rows(41), 45);  // never more than there may be
  const StepShape prefill{77, 9, 9, false};
  EXPECT_EQ(layout.padded(prefill), prefill);
}

TEST(StepInput, PaddingNamesNoCache) {
  Bench bench;
  for (std::uint64_t id = 1; id <= 9; ++id) bench.add(id, 1);
  const StepHeader header = bench.step();
  EXPECT_EQ(header.num_sequences, 9);
  EXPECT_EQ(header.shape, (StepShape{10, 10, 10, true}));
  const StepArrays arrays = bench.arrays();
  EXPECT_EQ(arrays.sequence_starts[9], 9);
  EXPECT_EQ(arrays.sequence_starts[10], 9);
  EXPECT_EQ(arrays.token_ids[9], 0);
  EXPECT_EQ(arrays.positions[9], 0);
  EXPECT_EQ(arrays.slot_mapping[9], -1);
  EXPECT_EQ(arrays.sequence_lengths[9], 0);
  EXPECT_EQ(arrays.state_from[9], -1);
  EXPECT_EQ(arrays.state_to[9], -1);
  EXPECT_EQ(arrays.fresh[9], 1);
  EXPECT_EQ(arrays.logit_rows[9], 0);
  EXPECT_EQ(arrays.temperature[9], 0);
  EXPECT_EQ(arrays.top_p[9], 1);
  for (int block = 0; block < 10; ++block) EXPECT_EQ(arrays.block_table[90 + block], 0);
}

// The writer pads any step to any larger shape.
TEST(StepInput, PromptsMayBePadded) {
  Bench bench;
  bench.add(1, 5);
  bench.add(2, 3);
  bench.writer.write(bench.scheduler.next(), kBlockTokens, {16, 4, 6, false});
  const StepArrays arrays = bench.arrays();
  const std::vector<std::int32_t> starts(arrays.sequence_starts, arrays.sequence_starts + 5);
  EXPECT_EQ(starts, (std::vector<std::int32_t>{0, 5, 8, 8, 8}));
  const std::vector<std::int32_t> rows(arrays.logit_rows, arrays.logit_rows + 6);
  EXPECT_EQ(rows, (std::vector<std::int32_t>{4, 7, 0, 0, 0, 0}));
  EXPECT_TRUE(std::all_of(arrays.slot_mapping + 8, arrays.slot_mapping + 16,
                          [](std::int32_t slot) { return slot == -1; }));
  EXPECT_TRUE(std::all_of(arrays.slot_mapping, arrays.slot_mapping + 8,
                          [](std::int32_t slot) { return slot >= 0; }));
}

// Tokens are left where the draw put them while every row goes on with its own sequence.
TEST(StepInput, KnowsWhenTheTokensAreTheDrawnOnes) {
  Bench bench;
  bench.add(1, 4);
  bench.add(2, 6);
  EXPECT_EQ(bench.step().continues, 0);  // prompts
  EXPECT_EQ(bench.step().continues, 1);
  EXPECT_EQ(bench.arrays().token_ids[0], 1000);
  EXPECT_EQ(bench.arrays().token_ids[1], 1001);
  EXPECT_EQ(bench.step().continues, 1);
  bench.add(3, 2);
  EXPECT_EQ(bench.step().continues, 0);  // one more, with a prompt
  EXPECT_EQ(bench.step().continues, 1);
  bench.scheduler.remove(RequestId{1});
  EXPECT_EQ(bench.step().continues, 0);  // rows have moved up
  EXPECT_EQ(bench.step().continues, 1);
  bench.scheduler.remove(RequestId{3});
  EXPECT_EQ(bench.step().continues, 0);  // one row less
}

// A prompt's last token alone is not what the step before drew, though its sequence was in it.
TEST(StepInput, APieceOfAPromptDrawsNothingToGoOnWith) {
  Bench bench;
  bench.add(1, 300);
  EXPECT_EQ(bench.step().shape.tokens, 256);  // draws nothing
  EXPECT_EQ(bench.step().continues, 0);
  EXPECT_EQ(bench.step().continues, 1);
}

// What lies behind the rows in use is not sent.
TEST(StepInput, UsedBytesEndWithTheBlockTable) {
  Bench bench;
  bench.add(1, 4);
  const StepHeader header = bench.step();
  const auto used = bench.writer.used();
  EXPECT_EQ(used.data(), bench.bytes.data());
  EXPECT_EQ(used.size(), bench.layout.used_bytes(header.shape));
  EXPECT_EQ(used.size(), bench.layout.offset(StepField::block_table) + 10 * 4);
  EXPECT_LT(used.size(), bench.layout.bytes());
  EXPECT_EQ(bench.bytes[used.size()], std::byte{0x55});
}

// Edits lie behind everything else, one row's behind another's; few steps send any.
TEST(StepInput, EditsAreSentWhereThereAreAny) {
  Bench bench;
  SamplingParams biased = tokens(9);
  biased.logit_bias = {{5, 1.5f}, {6, -2.0f}};
  biased.presence_penalty = 0.5f;
  biased.logprobs = 3;
  bench.add(1, 4);
  ASSERT_TRUE(bench.scheduler.add(RequestId{2}, prompt_of(4), biased));
  bench.add(3, 4);
  for (int edits : {2, 3}) {  // the second step knows one more token
    const StepHeader header = bench.step();
    EXPECT_EQ(header.num_edits, edits);
    EXPECT_EQ(header.num_reports, 1);
    const StepArrays arrays = bench.arrays();
    const std::vector<std::int32_t> begins(arrays.edit_begins, arrays.edit_begins + 4);
    EXPECT_EQ(begins, (std::vector<std::int32_t>{0, 0, edits, edits}));
    const std::vector<std::int32_t> wanted(arrays.wanted, arrays.wanted + 3);
    EXPECT_EQ(wanted, (std::vector<std::int32_t>{-1, 3, -1}));
    EXPECT_EQ(arrays.presence[1], 0.5f);
    EXPECT_EQ(arrays.repetition[1], 1.0f);
    EXPECT_EQ(arrays.edits[3], 6);
    EXPECT_EQ(std::bit_cast<float>(arrays.edits[4]), -2.0f);
    EXPECT_EQ(bench.writer.used().size(), bench.layout.offset(StepField::edits) + 12u * edits);
    if (edits == 3) {
      EXPECT_EQ(arrays.edits[6], 1001);
      EXPECT_EQ(arrays.edits[8], 2);
    }
  }
}

// Of which rows the next token's log probability is told: none of the last, none twice.
TEST(StepInput, SaysWhatIsToldOfPrompts) {
  Bench bench;
  SamplingParams sampling = tokens(3);
  sampling.prompt_logprobs = 4;
  sampling.prompt_logprobs_from = 60;
  const std::vector<std::int32_t> prompt = prompt_of(400);
  ASSERT_TRUE(bench.scheduler.add(RequestId{1}, prompt, sampling));
  bench.add(2, 70);
  const auto at = [&](int row) {
    const StepArrays arrays = bench.arrays();
    return std::array{arrays.told_from[row], arrays.told_next[row]};
  };
  EXPECT_EQ(bench.step().num_told, 256 - 60);
  EXPECT_EQ(at(0), (std::array{60, prompt[256]}));
  EXPECT_EQ(bench.arrays().told_likeliest[0], 4);
  const StepHeader second = bench.step();  // positions 256 to 399, and all of the other prompt
  EXPECT_EQ(second.num_sequences, 2);
  EXPECT_EQ(second.num_told, 400 - 256 - 1);
  EXPECT_EQ(at(0), (std::array{0, -1}));
  EXPECT_EQ(bench.arrays().told_from[1], -1);
  EXPECT_EQ(bench.step().num_told, 0);
  EXPECT_EQ(bench.arrays().told_from[0], -1);
}

TEST(StepInputDeathTest, APlanLargerThanTheLayoutIsABug) {
  Bench bench;
  bench.add(1, 200);
  const BatchPlan plan = bench.scheduler.next();
  const StepLayout layout(128, 4, 64);
  std::vector<std::byte> bytes(layout.bytes());
  StepWriter writer(layout, bytes);
  EXPECT_DEATH(writer.write(plan, 64), "internal check failed");
}

}  // namespace
}  // namespace tenon
