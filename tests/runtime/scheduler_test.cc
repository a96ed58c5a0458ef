// Scheduler and step input: properties under random work, refusals by their sentence, and the flat
// buffer read back against the plan it was written from.
#include "tenon/runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
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

// Runs a request to its end, alone; the pieces of its prompt.
std::vector<int> run_alone(Scheduler& scheduler, std::uint64_t id,
                           const std::vector<std::int32_t>& prompt) {
  EXPECT_TRUE(scheduler.add(RequestId{id}, prompt, tokens(1)));
  std::vector<int> counts;
  for (bool drew = false; !drew;) {
    const BatchPlan plan = scheduler.next();
    if (plan.entries.size() != 1) return {};
    counts.push_back(plan.entries[0].count);
    drew = plan.entries[0].draws();
    scheduler.apply(plan, std::vector<std::int32_t>{5});
  }
  scheduler.remove(RequestId{id});
  return counts;
}

Scheduler::Limits keeping() {
  Scheduler::Limits limits{4, 1000, 4096};
  limits.keeps_prefixes = true;
  return limits;
}

// A prompt is cut once, near its end; what begins like it begins there.
TEST(Scheduler, APromptGoesOnFromWhereAnEarlierOneWasCut) {
  CachePool caches(100, 64, 8);
  Scheduler scheduler(keeping(), caches);
  EXPECT_EQ(run_alone(scheduler, 1, prompt_of(333)), (std::vector<int>{320, 13}));
  EXPECT_EQ(run_alone(scheduler, 2, prompt_of(600)), (std::vector<int>{256, 24}));
  EXPECT_EQ(run_alone(scheduler, 3, prompt_of(600)), (std::vector<int>{24}));
  EXPECT_EQ(run_alone(scheduler, 4, prompt_of(650)), (std::vector<int>{74}));
  const PrefixStats stats = caches.prefix_stats();
  EXPECT_EQ(stats.lookups, 4);
  EXPECT_EQ(stats.hits, 3);
  EXPECT_EQ(stats.matched_tokens, 320 + 576 + 576);
  EXPECT_EQ(stats.states, 2);
  EXPECT_EQ(stats.blocks, 10);
  EXPECT_EQ(stats.lost_never_kept + stats.lost_evicted + stats.lost_at_end, 0);
}

// Two tokens are left: one alone would have the bits of a decode step.
TEST(Scheduler, AKeptPrefixLeavesTwoTokens) {
  for (const int length : {320, 321, 322}) {
    SCOPED_TRACE(length);
    CachePool caches(100, 64, 8);
    Scheduler scheduler(keeping(), caches);
    run_alone(scheduler, 1, prompt_of(600));
    run_alone(scheduler, 2, prompt_of(length));
    const std::vector<int> pieces = run_alone(scheduler, 3, prompt_of(length));
    EXPECT_EQ(pieces, std::vector<int>{length < 322 ? length - 256 : 2});
    EXPECT_EQ(caches.prefix_stats().lost_at_end, length < 322 ? 128 : 0);
  }
}

// The second of two prompts that go apart is cut there, the third goes on from there.
TEST(Scheduler, KeepsAStateWherePromptsGoApart) {
  CachePool caches(100, 64, 8);
  Scheduler scheduler(keeping(), caches);
  const auto asked = [](int own) {
    std::vector<std::int32_t> prompt = prompt_of(370);
    for (std::size_t i = 300; i < prompt.size(); ++i) prompt[i] = own;
    return prompt;
  };
  EXPECT_EQ(run_alone(scheduler, 1, asked(1)), (std::vector<int>{320, 50}));
  EXPECT_EQ(run_alone(scheduler, 2, asked(2)), (std::vector<int>{256, 114}));
  EXPECT_EQ(run_alone(scheduler, 3, asked(3)), std::vector<int>{114});
  EXPECT_EQ(caches.prefix_stats().lost_never_kept, 256);
}

// Conversations behind one beginning, in another order in every round, each with a template's words
// at its end that the next turn does not have. One slot for the sequence that runs, one for its new
// state, one for the beginning and one for each conversation are enough for everybody to go on from
// its last turn.
TEST(Scheduler, EveryConversationGoesOnFromItsLastTurn) {
  constexpr int kTalks = 8, kRounds = 7, kShared = 640;
  std::mt19937 random(5);
  CachePool caches(400, 64, kTalks + 3);
  Scheduler scheduler(keeping(), caches);
  std::vector<std::vector<std::int32_t>> talks(kTalks, prompt_of(kShared));
  std::vector<int> order(kTalks), before(kTalks);
  std::iota(order.begin(), order.end(), 0);
  std::uint64_t id = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::ranges::shuffle(order, random);
    for (const int each : order) {
      auto& talk = talks[static_cast<std::size_t>(each)];
      int& last = before[static_cast<std::size_t>(each)];
      talk.insert(talk.end(), 140u + random() % 40, 1000 + each);
      std::vector<std::int32_t> prompt = talk;
      prompt.insert(prompt.end(), 6, -1 - round);
      const std::vector<int> pieces = run_alone(scheduler, ++id, prompt);
      const int length = static_cast<int>(prompt.size());
      const int kept = round == 0 ? 0 : (last - kEndTokens) / 64 * 64;
      EXPECT_LE(std::accumulate(pieces.begin(), pieces.end(), 0), length - kept)
          << "round " << round << ", conversation " << each;
      last = length;
    }
  }
  EXPECT_EQ(caches.prefix_stats().lost_evicted, 0);
  EXPECT_TRUE(caches.check());
}

// Four answers to one prompt: three wait until the first one's state is kept.
TEST(Scheduler, EqualPromptsAreComputedOnce) {
  CachePool caches(100, 64, 8);
  Scheduler scheduler(keeping(), caches);
  for (std::uint64_t id = 1; id <= 4; ++id)
    ASSERT_TRUE(scheduler.add(RequestId{id}, prompt_of(500), tokens(9)));
  int computed = 0;
  for (int step = 0; step < 2; ++step) {
    const BatchPlan& plan = scheduler.next();
    computed += plan.num_tokens;
    scheduler.apply(plan, std::vector<std::int32_t>(plan.entries.size(), 5));
  }
  EXPECT_EQ(computed, 448 + 4 * 52);
  EXPECT_EQ(scheduler.next().entries.size(), 4u);
  EXPECT_EQ(caches.prefix_stats().hits, 3);
  EXPECT_TRUE(caches.check());
}

// Four users of one agent at once: what their prompts have in common is computed once, and the
// first keeps its own end as well.
TEST(Scheduler, WhatPromptsHaveInCommonIsComputedOnce) {
  CachePool caches(100, 64, 12);
  Scheduler scheduler(keeping(), caches);
  for (std::uint64_t id = 1; id <= 4; ++id) {
    std::vector<std::int32_t> prompt = prompt_of(660);
    prompt.insert(prompt.end(), 200, 1000 + static_cast<int>(id));
    ASSERT_TRUE(scheduler.add(RequestId{id}, prompt, tokens(9)));
  }
  int computed = 0;
  for (int step = 0; step < 4; ++step) {
    const BatchPlan& plan = scheduler.next();
    for (const BatchEntry& each : plan.entries)
      if (each.first < each.sequence->prompt_tokens) computed += each.count;
    scheduler.apply(plan, std::vector<std::int32_t>(plan.entries.size(), 5));
  }
  EXPECT_EQ(computed, 640 + 4 * 220);
  EXPECT_EQ(caches.prefix_stats().hits, 3);
  EXPECT_EQ(caches.prefix_stats().states, 5);
  EXPECT_TRUE(caches.check());
}

// Room for both prompts, not for both answers: the second waits again, and runs what it had drawn
// token by token.
TEST(Scheduler, PreemptsTheOneThatHasDrawnLeast) {
  CachePool caches(4, 64, 2);
  Scheduler scheduler({2, 256, 192}, caches);
  ASSERT_TRUE(scheduler.add(RequestId{1}, prompt_of(60), tokens(132)));
  const auto step = [&] {
    const BatchPlan plan = scheduler.next();
    std::vector<int> counts;
    for (const BatchEntry& each : plan.entries) counts.push_back(each.count);
    scheduler.apply(plan, std::vector<std::int32_t>(counts.size(), 5));
    return counts;
  };
  EXPECT_EQ(step(), std::vector<int>{60});
  ASSERT_TRUE(scheduler.add(RequestId{2}, prompt_of(30), tokens(132)));
  EXPECT_EQ(step(), (std::vector<int>{1, 30}));
  int together = 0;
  while (scheduler.num_preemptions() == 0) together += step().size() == 2 ? 1 : 0;
  const Sequence& second = *scheduler.find(RequestId{2});
  EXPECT_EQ(second.computed, 0);
  EXPECT_EQ(second.length(), 31 + together);
  EXPECT_EQ(caches.num_free_blocks(), 1);
  scheduler.remove(RequestId{1});
  EXPECT_EQ(step(), std::vector<int>{30});
  for (int i = 0; i < together; ++i) EXPECT_EQ(step(), std::vector<int>{1});
  EXPECT_EQ(second.length(), 31 + together);
  EXPECT_EQ(scheduler.num_replayed_tokens(), together);
  EXPECT_EQ(step(), std::vector<int>{1});
  EXPECT_EQ(second.length(), 32 + together);
}

// Two requests whose penalties know more ids together than a step has room for.
TEST(Scheduler, PreemptsWhereEditsHaveNoRoom) {
  CachePool caches(100, 64, 2);
  Scheduler::Limits limits{2, 256, 512};
  limits.max_edits = 50;
  Scheduler scheduler(limits, caches);
  SamplingParams counting = tokens(40);
  counting.presence_penalty = 1;
  ASSERT_TRUE(scheduler.add(RequestId{1}, prompt_of(3), counting));
  ASSERT_TRUE(scheduler.add(RequestId{2}, prompt_of(3), counting));
  std::int32_t next = 0;
  int steps = 0;
  while (scheduler.num_preemptions() == 0 && steps < 40) {
    const BatchPlan plan = scheduler.next();
    int edits = 0;
    for (const BatchEntry& each : plan.entries) edits += each.sequence->num_edits();
    EXPECT_LE(edits, 50);
    std::vector<std::int32_t> drawn(plan.entries.size());
    for (auto& each : drawn) each = next++;
    scheduler.apply(plan, drawn);
    ++steps;
  }
  EXPECT_EQ(steps, 27);
  EXPECT_EQ(scheduler.find(RequestId{2})->computed, 0);
  EXPECT_EQ(scheduler.next().entries.size(), 1u) << "it has no room before the first ends";
  scheduler.remove(RequestId{1});
  EXPECT_EQ(scheduler.next().entries.at(0).sequence->id, RequestId{2});
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
  ASSERT_EQ(step.state_from.as<std::int32_t>()[row], entry.sequence->lease.state_from());
  ASSERT_EQ(step.state_to.as<std::int32_t>()[row], entry.sequence->lease.state_slot());
  ASSERT_EQ(step.logit_rows.as<std::int32_t>()[row], token + entry.count - 1);
}

void expect_step_input(StepWriter& writer, const StepLayout& layout, const BatchPlan& plan) {
  writer.write(plan, 16);
  const StepHeader header = StepReader::header(writer.bytes());
  ASSERT_EQ(header.command, StepCommand::kRun);
  ASSERT_EQ(header.num_sequences, static_cast<int>(plan.entries.size()));
  std::vector<std::byte> device(writer.bytes().begin(), writer.bytes().end());
  const StepView step = StepReader::step(layout, header.shape, device.data(), Device{});
  ASSERT_GE(step.shape.tokens, plan.num_tokens);
  ASSERT_GE(step.shape.sequences, header.num_sequences);
  ASSERT_EQ(step.shape.logits, step.shape.sequences);
  ASSERT_EQ(step.shape.decode, plan.max_tokens_per_sequence == 1);
  const DrawView sampling = StepReader::draw(layout, header.shape, device.data(), Device{});
  int token = 0;
  for (int row = 0; row < header.num_sequences; ++row) {
    const BatchEntry& entry = plan.entries[static_cast<std::size_t>(row)];
    expect_entry(entry, step, row, token, 16);
    token += entry.count;
    ASSERT_EQ(sampling.temperature.as<float>()[row], entry.sequence->sampling.temperature);
    ASSERT_EQ(sampling.top_p.as<float>()[row], entry.sequence->sampling.top_p);
    ASSERT_EQ(sampling.top_k.as<std::int32_t>()[row], entry.sequence->sampling.top_k);
    ASSERT_EQ(sampling.seed.as<std::int64_t>()[row],
              static_cast<std::int64_t>(entry.sequence->sampling.seed));
    ASSERT_EQ(sampling.draw_position.as<std::int32_t>()[row], entry.first + entry.count);
  }
  for (int row = header.num_sequences; row <= step.shape.sequences; ++row)
    ASSERT_EQ(step.sequence_starts.as<std::int32_t>()[row], plan.num_tokens);
}

// Runs random requests to their ends and checks what must hold in every step.
class Workload {
 public:
  explicit Workload(unsigned seed)
      : random_(seed),
        limits_{1 + static_cast<int>(random_() % 6), 0, 40 + static_cast<int>(random_() % 400)} {
    limits_.max_tokens_per_step = 64 + limits_.max_sequences + static_cast<int>(random_() % 150);
    blocks_ = 3 + static_cast<int>(random_() % 40);
    slots_ = limits_.max_sequences + static_cast<int>(random_() % 4);
    limits_.keeps_prefixes = random_() % 2 == 0;
    limits_.least_kept_tokens = 64 * (1 + static_cast<int>(random_() % 2));
    caches_.emplace(blocks_, 16, slots_);
    scheduler_.emplace(limits_, *caches_);
    layout_.emplace(limits_.max_tokens_per_step, limits_.max_sequences,
                    (limits_.max_context + 15) / 16);
    bytes_.resize(layout_->bytes());
    writer_.emplace(*layout_, bytes_);
  }

  std::int64_t num_preemptions() const { return scheduler_->num_preemptions(); }
  PrefixStats prefix_stats() const { return caches_->prefix_stats(); }

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
    EXPECT_EQ(caches_->num_available_blocks(), blocks_);
    EXPECT_EQ(caches_->num_available_slots(), slots_);
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
        scheduler_->add(id, prompt_of(prompt, 1000 * static_cast<int>(random_() % 4)), sampling);
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
      const int prompt = entry.sequence->prompt_tokens;
      ASSERT_TRUE(end >= prompt || end % kPrefillQuantum == 0) << "a prompt cut at " << end;
      ASSERT_TRUE(entry.first < prompt || entry.count == 1) << "drawn tokens together";
      ASSERT_TRUE(entry.count > 1 || entry.first >= prompt || prompt == 1) << "one of a prompt";
      ASSERT_NE(end, prompt - 1) << "one token of a prompt is left";
      ASSERT_LE(end,
                caches_->block_tokens() * static_cast<int>(entry.sequence->lease.blocks().size()));
      ASSERT_LE(entry.sequence->lease.num_shared() * caches_->block_tokens(), entry.first)
          << "writes where others read";
      count += entry.count;
      longest = std::max(longest, entry.count);
      all_decode = all_decode && entry.count == 1 && entry.draws();
      // A prompt of one token runs like a decode step, before longer prompts.
      if (entry.first == entry.sequence->cached_tokens && prompt > 1 &&
          entry.sequence->preemptions == 0)
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
  int blocks_ = 0, slots_ = 0;
  std::optional<CachePool> caches_;
  std::optional<Scheduler> scheduler_;
  std::optional<StepLayout> layout_;
  std::vector<std::byte> bytes_;
  std::optional<StepWriter> writer_;
  std::uint64_t submitted_ = 0;
  std::vector<RequestId> begun_;
};

TEST(Scheduler, KeepsItsPromisesUnderRandomWork) {
  std::int64_t preemptions = 0, hits = 0, evicted = 0;
  for (unsigned seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    Workload workload(seed);
    ASSERT_NO_FATAL_FAILURE(workload.run());
    preemptions += workload.num_preemptions();
    hits += workload.prefix_stats().hits;
    evicted += workload.prefix_stats().evicted_blocks + workload.prefix_stats().evicted_states;
  }
  EXPECT_GT(preemptions, 50);
  EXPECT_GT(hits, 100);
  EXPECT_GT(evicted, 100);
}

}  // namespace
}  // namespace tenon
