// Scheduler and step input: properties under random work, refusals by their sentence, and the flat
// buffer read back against the plan it was written from.
#include "tenon/runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <random>
#include <set>

#include "tenon/ops/common/normed_rows.h"
#include "tenon/runtime/step_input.h"

namespace tenon {
namespace {

std::vector<std::int32_t> prompt_of(int tokens, int first = 100) {
  std::vector<std::int32_t> prompt(static_cast<std::size_t>(tokens));
  for (int i = 0; i < tokens; ++i) prompt[static_cast<std::size_t>(i)] = first + i;
  return prompt;
}

SamplingParams tokens(int max_tokens) {
  SamplingParams sampling;
  sampling.max_tokens = max_tokens;
  return sampling;
}

void expect_refused(const Status& status, const std::string& mentions) {
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find(mentions), std::string_view::npos)
      << status.to_string() << "\n does not mention " << mentions;
}

TEST(Scheduler, RefusesLimitsUnderWhichPromptsStarve) {
  EXPECT_TRUE(Scheduler::check({16, 256, 4096}));
  EXPECT_TRUE(Scheduler::check({16, 80, 4096}));
  expect_refused(Scheduler::check({16, 79, 4096}), "at least 80");
  expect_refused(Scheduler::check({0, 256, 4096}), "max_sequences is 0");
  expect_refused(Scheduler::check({1, 256, 0}), "max_context 0");
}

// A step is the rows of one boundary.
static_assert(kMaxTokensPerStep == kMaxNormedRows);

TEST(Scheduler, RefusesStepsThatNoBoundaryTakes) {
  EXPECT_TRUE(Scheduler::check({8128, 8192, 64}));
  expect_refused(Scheduler::check({8129, 8192, 64}),
                 "max_sequences is 8129; accepted are at most 8128");
  expect_refused(Scheduler::check({16, 8193, 64}),
                 "max_tokens_per_step is 8193; accepted are at most 8192");
}

TEST(Scheduler, RefusesLimitsThatOverflow) {
  constexpr int kMost = std::numeric_limits<int>::max();
  EXPECT_TRUE(Scheduler::check({2047, 4096, kMaxContext}));
  expect_refused(Scheduler::check({2048, 4096, kMaxContext}), "accepted are at most 2047");
  expect_refused(Scheduler::check({1, 256, kMaxContext + 1}), "max_context is 1048577; accepted");
  expect_refused(Scheduler::check({1, 256, kMost}), "max_context is 2147483647; accepted");
  expect_refused(Scheduler::check({kMost, 256, 1}), "max_sequences is 2147483647; accepted");
  expect_refused(Scheduler::check({1, kMost, 1}), "max_tokens_per_step is 2147483647; accepted");
}

TEST(Scheduler, RefusesRequestsThatCanNeverRun) {
  CachePool caches(4, 64, 2), large(5, 64, 2);
  Scheduler scheduler({2, 128, 300}, caches);
  expect_refused(scheduler.add(RequestId{1}, {}, tokens(1)), "no tokens");
  expect_refused(
      scheduler.add(RequestId{1}, prompt_of(300), tokens(1)),
      "the prompt has 300 tokens; a context of 300 with room for one more takes at most 299");
  EXPECT_TRUE(Scheduler({2, 128, 300}, large).add(RequestId{1}, prompt_of(299), tokens(1)));
  expect_refused(scheduler.add(RequestId{1}, prompt_of(200), tokens(80)), "cache for 280 tokens");
  expect_refused(scheduler.add(RequestId{1}, prompt_of(2), tokens(0)), "max_tokens is 0");
  SamplingParams wrong = tokens(1);
  wrong.temperature = -1;
  expect_refused(scheduler.add(RequestId{1}, prompt_of(2), wrong), "temperature");
  wrong.temperature = std::numeric_limits<float>::quiet_NaN();
  expect_refused(scheduler.add(RequestId{1}, prompt_of(2), wrong), "temperature");
  wrong = tokens(1);
  wrong.top_p = 0;
  expect_refused(scheduler.add(RequestId{1}, prompt_of(2), wrong), "top_p");
  wrong = tokens(1);
  wrong.top_k = -1;
  expect_refused(scheduler.add(RequestId{1}, prompt_of(2), wrong), "top_k");
  EXPECT_TRUE(scheduler.idle());
  EXPECT_TRUE(scheduler.next().entries.empty());
}

TEST(Scheduler, CutsLongPromptsAtWholeChunks) {
  CachePool caches(100, 64, 4);
  Scheduler scheduler({4, 150, 4096}, caches);
  ASSERT_TRUE(scheduler.add(RequestId{1}, prompt_of(333), tokens(3)));
  std::vector<int> counts;
  for (int step = 0; step < 4; ++step) {
    const BatchPlan plan = scheduler.next();
    ASSERT_EQ(plan.entries.size(), 1u);
    counts.push_back(plan.entries[0].count);
    EXPECT_EQ(plan.entries[0].draws(), step >= 2);
    EXPECT_EQ(plan.decode_only(), step == 3);
    scheduler.apply(plan, std::vector<std::int32_t>{5});
  }
  EXPECT_EQ(counts, (std::vector<int>{128, 128, 77, 1}));
}

// How a prompt that is alone is cut, up to the step that draws.
std::vector<int> pieces_of(int prompt, const Scheduler::Limits& limits) {
  CachePool caches(100, 64, limits.max_sequences);
  Scheduler scheduler(limits, caches);
  EXPECT_TRUE(scheduler.add(RequestId{1}, prompt_of(prompt), tokens(1)));
  std::vector<int> counts;
  for (bool drew = false; !drew;) {
    const BatchPlan plan = scheduler.next();
    if (plan.entries.size() != 1) return {};
    counts.push_back(plan.entries[0].count);
    drew = plan.entries[0].draws();
    scheduler.apply(plan, std::vector<std::int32_t>{5});
  }
  return counts;
}

// One token alone would meet the delta net's recurrence, in a longer piece its chunks.
TEST(Scheduler, NeverLeavesOneTokenOfAPrompt) {
  EXPECT_EQ(pieces_of(1, {4, 150, 4096}), (std::vector<int>{1}));
  EXPECT_EQ(pieces_of(129, {4, 128, 4096}), (std::vector<int>{64, 65}));
  EXPECT_EQ(pieces_of(257, {4, 128, 4096}), (std::vector<int>{128, 64, 65}));
  EXPECT_EQ(pieces_of(258, {4, 128, 4096}), (std::vector<int>{128, 128, 2}));
  EXPECT_EQ(pieces_of(65, {1, 65, 4096}), (std::vector<int>{65}));
  EXPECT_EQ(pieces_of(129, {1, 65, 4096}), (std::vector<int>{64, 65}));
}

// The tightest limits: all others decode, and a prompt of 65 tokens must still begin.
TEST(Scheduler, APromptOfAQuantumAndOneDoesNotStarve) {
  CachePool caches(100, 64, 4);
  const Scheduler::Limits limits{4, 68, 4096};
  ASSERT_TRUE(Scheduler::check(limits));
  Scheduler scheduler(limits, caches);
  for (std::uint64_t id = 1; id <= 3; ++id)
    ASSERT_TRUE(scheduler.add(RequestId{id}, prompt_of(1), tokens(50)));
  scheduler.apply(scheduler.next(), std::vector<std::int32_t>{5, 5, 5});
  ASSERT_TRUE(scheduler.add(RequestId{4}, prompt_of(65), tokens(3)));
  const BatchPlan& plan = scheduler.next();
  ASSERT_EQ(plan.entries.size(), 4u);
  EXPECT_EQ(plan.entries[3].count, 65);
}

TEST(Scheduler, ACancelledRequestLeavesWithItsCache) {
  CachePool caches(2, 64, 2);
  Scheduler scheduler({2, 128, 64}, caches);
  ASSERT_TRUE(scheduler.add(RequestId{1}, prompt_of(4), tokens(4)));
  ASSERT_TRUE(scheduler.add(RequestId{2}, prompt_of(4), tokens(4)));
  ASSERT_TRUE(scheduler.add(RequestId{3}, prompt_of(4), tokens(4)));
  EXPECT_EQ(scheduler.next().entries.size(), 2u);
  EXPECT_FALSE(scheduler.cancel(RequestId{9}));
  EXPECT_TRUE(scheduler.cancel(RequestId{1}));
  EXPECT_TRUE(scheduler.cancel(RequestId{3}));
  EXPECT_EQ(scheduler.cancelled(), (std::vector<RequestId>{RequestId{1}, RequestId{3}}));
  scheduler.remove(RequestId{1});
  scheduler.remove(RequestId{3});
  EXPECT_EQ(caches.num_free_blocks(), 1);
  EXPECT_EQ(scheduler.find(RequestId{1}), nullptr);
  EXPECT_NE(scheduler.find(RequestId{2}), nullptr);
}

// What the step input must hold for one entry of a plan.
void expect_entry(const BatchEntry& entry, const StepView& step, int row, int token,
                  int block_tokens) {
  const auto* ids = step.token_ids.as<std::int32_t>();
  const auto blocks = entry.sequence->lease.blocks();
  ASSERT_EQ(step.sequence_starts.as<std::int32_t>()[row], token);
  for (int i = 0; i < entry.count; ++i) {
    const int position = entry.first + i;
    ASSERT_EQ(ids[token + i], entry.sequence->tokens[static_cast<std::size_t>(position)]);
    ASSERT_EQ(step.positions.as<std::int32_t>()[token + i], position);
    const int block =
        step.block_table
            .as<std::int32_t>()[row * step.block_table.shape[1] + position / block_tokens];
    ASSERT_EQ(block, blocks[static_cast<std::size_t>(position / block_tokens)]);
    ASSERT_EQ(step.slot_mapping.as<std::int32_t>()[token + i],
              block * block_tokens + position % block_tokens);
  }
  ASSERT_EQ(step.sequence_lengths.as<std::int32_t>()[row], entry.first + entry.count);
  ASSERT_EQ(step.fresh.as<std::int32_t>()[row], entry.first == 0);
  ASSERT_EQ(step.state_slots.as<std::int32_t>()[row], entry.sequence->lease.state_slot());
  ASSERT_EQ(step.logit_rows.as<std::int32_t>()[row], token + entry.count - 1);
}

void expect_step_input(StepWriter& writer, const StepLayout& layout, const BatchPlan& plan) {
  writer.write(plan, 16);
  ASSERT_EQ(StepReader::command(writer.bytes()), StepCommand::kRun);
  std::vector<std::byte> device(writer.bytes().begin(), writer.bytes().end());
  const StepView step = StepReader::step(layout, writer.bytes(), device.data(), Device{});
  ASSERT_EQ(step.num_tokens, plan.num_tokens);
  ASSERT_EQ(step.num_sequences, static_cast<int>(plan.entries.size()));
  ASSERT_EQ(step.max_tokens_per_sequence, plan.max_tokens_per_sequence);
  int token = 0;
  for (int row = 0; row < step.num_sequences; ++row) {
    const BatchEntry& entry = plan.entries[static_cast<std::size_t>(row)];
    expect_entry(entry, step, row, token, 16);
    token += entry.count;
    const auto sampling = StepReader::sampling(layout, writer.bytes(), device.data(), Device{});
    ASSERT_EQ(sampling.temperature.as<float>()[row], entry.sequence->sampling.temperature);
    ASSERT_EQ(sampling.top_p.as<float>()[row], entry.sequence->sampling.top_p);
    ASSERT_EQ(sampling.top_k.as<std::int32_t>()[row], entry.sequence->sampling.top_k);
    ASSERT_EQ(sampling.seed.as<std::int64_t>()[row],
              static_cast<std::int64_t>(entry.sequence->sampling.seed));
    ASSERT_EQ(sampling.position.as<std::int32_t>()[row], entry.first + entry.count);
  }
  ASSERT_EQ(step.sequence_starts.as<std::int32_t>()[step.num_sequences], plan.num_tokens);
}

// Runs random requests to their ends and checks what must hold in every step.
class Workload {
 public:
  explicit Workload(unsigned seed)
      : random_(seed),
        limits_{1 + static_cast<int>(random_() % 6), 0, 40 + static_cast<int>(random_() % 400)} {
    limits_.max_tokens_per_step = 64 + limits_.max_sequences + static_cast<int>(random_() % 150);
    blocks_ = 3 + static_cast<int>(random_() % 40);
    caches_.emplace(blocks_, 16, limits_.max_sequences);
    scheduler_.emplace(limits_, *caches_);
    layout_.emplace(limits_.max_tokens_per_step, limits_.max_sequences,
                    (limits_.max_context + 15) / 16);
    writer_.emplace(*layout_);
  }

  void run() {
    for (int step = 0; step < 4000 && (submitted_ < 40 || !scheduler_->idle()); ++step) {
      if (submitted_ < 40 && random_() % 3 == 0) submit();
      if (random_() % 40 == 0) cancel();
      const BatchPlan plan = scheduler_->next();
      if (plan.entries.empty()) {
        ASSERT_TRUE(scheduler_->idle()) << "work waits and nothing runs";
        continue;
      }
      ASSERT_NO_FATAL_FAILURE(check(plan));
      ASSERT_NO_FATAL_FAILURE(expect_step_input(*writer_, *layout_, plan));
      finish(plan);
      const Status whole = caches_->check();
      ASSERT_TRUE(whole) << whole.to_string();
    }
    EXPECT_TRUE(scheduler_->idle());
    EXPECT_EQ(caches_->num_free_blocks(), blocks_);
    EXPECT_EQ(caches_->num_free_slots(), limits_.max_sequences);
    // Nobody who came earlier begins later.
    EXPECT_TRUE(std::is_sorted(begun_.begin(), begun_.end()));
  }

 private:
  void submit() {
    const RequestId id{++submitted_};
    const int prompt = 1 + static_cast<int>(random_() % static_cast<unsigned>(limits_.max_context));
    SamplingParams sampling = tokens(1 + static_cast<int>(random_() % 60));
    sampling.temperature = static_cast<float>(random_() % 3);
    sampling.seed = random_();
    sampling.top_k = static_cast<int>(random_() % 9);
    const int whole = prompt + std::min(sampling.max_tokens, limits_.max_context - prompt);
    const bool fits = prompt < limits_.max_context && caches_->can_ever_fit(whole);
    const Status added =
        scheduler_->add(id, prompt_of(prompt, static_cast<int>(submitted_)), sampling);
    EXPECT_EQ(static_cast<bool>(added), fits) << added.to_string();
  }

  void cancel() {
    if (submitted_ == 0) return;
    const RequestId id{1 + random_() % submitted_};
    scheduler_->cancel(id);
    for (const RequestId each : scheduler_->cancelled()) scheduler_->remove(each);
    EXPECT_EQ(scheduler_->find(id), nullptr);
  }

  void check(const BatchPlan& plan) {
    ASSERT_LE(plan.num_tokens, limits_.max_tokens_per_step);
    ASSERT_LE(static_cast<int>(plan.entries.size()), limits_.max_sequences);
    std::set<const Sequence*> seen;
    int count = 0, longest = 0;
    bool all_decode = true;
    for (const BatchEntry& entry : plan.entries) {
      ASSERT_TRUE(seen.insert(entry.sequence).second) << "a sequence twice in one step";
      ASSERT_GE(entry.count, 1);
      ASSERT_EQ(entry.first, entry.sequence->computed);
      const int end = entry.first + entry.count;
      ASSERT_LE(end, static_cast<int>(entry.sequence->tokens.size()));
      ASSERT_TRUE(entry.draws() || end % kPrefillQuantum == 0) << "a prompt cut at " << end;
      ASSERT_NE(end, entry.sequence->prompt_tokens - 1) << "one token of a prompt is left";
      count += entry.count;
      longest = std::max(longest, entry.count);
      all_decode = all_decode && entry.count == 1 && entry.draws();
      // A prompt of one token runs like a decode step, before longer prompts.
      if (entry.first == 0 && entry.sequence->prompt_tokens > 1)
        begun_.push_back(entry.sequence->id);
    }
    ASSERT_EQ(count, plan.num_tokens);
    ASSERT_EQ(longest, plan.max_tokens_per_sequence);
    ASSERT_EQ(all_decode, plan.decode_only());
  }

  void finish(const BatchPlan& plan) {
    std::vector<std::int32_t> drawn(plan.entries.size());
    for (auto& token : drawn) token = static_cast<std::int32_t>(random_() % 1000);
    std::vector<std::pair<const Sequence*, std::size_t>> before;
    for (const BatchEntry& entry : plan.entries)
      before.emplace_back(entry.sequence, entry.sequence->tokens.size() + (entry.draws() ? 1 : 0));
    scheduler_->apply(plan, drawn);
    for (const auto& [sequence, size] : before) {
      ASSERT_EQ(sequence->tokens.size(), size);
      const int made = static_cast<int>(size) - sequence->prompt_tokens;
      ASSERT_LE(static_cast<int>(size), limits_.max_context);
      if (made >= sequence->max_tokens || random_() % 50 == 0) scheduler_->remove(sequence->id);
    }
  }

  std::mt19937 random_;
  Scheduler::Limits limits_;
  int blocks_ = 0;
  std::optional<CachePool> caches_;
  std::optional<Scheduler> scheduler_;
  std::optional<StepLayout> layout_;
  std::optional<StepWriter> writer_;
  std::uint64_t submitted_ = 0;
  std::vector<RequestId> begun_;
};

TEST(Scheduler, KeepsItsPromisesUnderRandomWork) {
  for (unsigned seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    Workload workload(seed);
    ASSERT_NO_FATAL_FAILURE(workload.run());
  }
}

TEST(StepInput, CommandsNeedNoPlan) {
  const StepLayout layout(128, 4, 8);
  StepWriter writer(layout);
  EXPECT_EQ(writer.bytes().size(), layout.bytes());
  for (const StepCommand command : {StepCommand::kIdle, StepCommand::kStop}) {
    writer.write(command);
    EXPECT_EQ(StepReader::command(writer.bytes()), command);
  }
}

TEST(StepInputDeathTest, APlanLargerThanTheLayoutIsABug) {
  CachePool caches(100, 64, 4);
  Scheduler scheduler({4, 256, 4096}, caches);
  ASSERT_TRUE(scheduler.add(RequestId{1}, prompt_of(200), tokens(3)));
  const BatchPlan plan = scheduler.next();
  const StepLayout layout(128, 4, 64);
  StepWriter writer(layout);
  EXPECT_DEATH(writer.write(plan, 64), "internal check failed");
}

}  // namespace
}  // namespace tenon
