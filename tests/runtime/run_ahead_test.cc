// Steps that are launched before the tokens of the one in front are known (RunAhead): every request
// gets the same tokens, log probabilities and end as without, and the books of the caches are
// right.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "tests/runtime/engine_driver.h"
#include "tests/support/small_model.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::Answers;
using test::engine_options;
using test::greedy;
using test::must_open;
using test::OnDisk;
using test::oracle;
using test::Tokens;

EngineOptions ahead(int tp) {
  EngineOptions options = engine_options(tp);
  options.run_ahead = RunAhead::kAlways;
  return options;
}

TEST(RunAhead, RandomRequestsGetTheOraclesTokens) {
  for (int tp : {1, 2, 3, 4}) {
    SCOPED_TRACE("tp " + std::to_string(tp));
    for (unsigned seed = 1; seed <= 4; ++seed)
      test::expect_oracle_tokens(ahead(tp), 60, 100 * static_cast<unsigned>(tp) + seed);
  }
}

TEST(RunAhead, AlsoWhereCachesAreShortAndWherePrefixesAreKept) {
  for (int tp : {1, 2}) {
    EngineOptions options = ahead(tp);
    options.cache_tokens = 384;  // of 4 · 300: sequences are preempted
    test::expect_oracle_tokens(options, 60, 7);
    options.prefix_states = 0;
    test::expect_oracle_tokens(options, 60, 8);
  }
}

// The step behind runs with an id that is none, over caches that hold NaN; whoever gets them next
// sees nothing of it.
TEST(RunAhead, ARequestWithoutANumberEndsAlone) {
  for (int tp : {1, 2, 4})
    for (unsigned seed = 1; seed <= 4; ++seed)
      test::expect_oracle_tokens(ahead(tp), 60, 10 + seed, test::poisoned_options());
}

// Of four tokens the first is the prompt's, the second in a step behind it, the others ahead.
TEST(RunAhead, CountsWhatWasLaunchedAhead) {
  auto engine = must_open(ahead(2));
  ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(8, true)));
  test::run_to_end(*engine);
  EXPECT_EQ(engine->stats().tokens_ahead, 6);
  EXPECT_EQ(engine->stats().steps, 8);  // its length is known: none too many
  EngineOptions never = engine_options(2);
  never.run_ahead = RunAhead::kNever;
  auto other = must_open(never);
  ASSERT_TRUE(other->submit({1, 2, 3}, greedy(8, true)));
  test::run_to_end(*other);
  EXPECT_EQ(other->stats().tokens_ahead, 0);
  EXPECT_EQ(other->stats().steps, 8);
}

// A prompt after which the fake model ends by its eos id, behind at least `least` tokens.
Tokens prompt_that_stops(std::size_t least) {
  for (std::int32_t first = 0;; ++first) {
    const Tokens prompt = {first % 60, first / 60};
    const test::Answer answer = oracle(prompt, greedy(200), 300);
    if (answer.finish == Finish::kStop && answer.tokens.size() >= least) return prompt;
  }
}

TEST(RunAhead, AnEndOfSequenceLeavesAStepThatNobodyAwaits) {
  auto engine = must_open(ahead(2));
  const Tokens prompt = prompt_that_stops(5);
  const auto wanted = oracle(prompt, greedy(200), 300).tokens;
  const auto id = engine->submit(prompt, greedy(200));
  EXPECT_EQ(test::run_to_end(*engine)[*id].tokens, wanted);
  EXPECT_TRUE(engine->idle());
  EXPECT_TRUE(engine->check_caches());
  EXPECT_TRUE(engine->make_caches());  // waits for that step
  const auto next = engine->submit(prompt, greedy(200));
  EXPECT_EQ(test::run_to_end(*engine)[*next].tokens, wanted);
  const auto again = engine->submit(prompt, greedy(200));  // comes while that step is on its way
  EXPECT_EQ(test::run_to_end(*engine)[*again].tokens, wanted);
  EXPECT_TRUE(engine->check_caches());
}

TEST(RunAhead, AnEngineMayEndWithStepsOnTheirWay) {
  for (int tp : {1, 3}) {
    auto engine = must_open(ahead(tp));
    ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(100, true)));
    for (int step = 0; step < 5; ++step) ASSERT_TRUE(engine->step());
    engine.reset();
  }
}

TEST(RunAhead, AFailureOfAStepNamesItsCause) {
  for (int failing : {0, 1, 2}) {
    SCOPED_TRACE("rank " + std::to_string(failing));
    test::FakeOptions fake = test::fake_options();
    fake.before_step = [failing](int rank, int step) {
      if (rank != failing || step != 5) return Status::ok();
      return Status::error(Code::kInternal, "the coffee is cold");
    };
    auto engine = must_open(ahead(3), fake);
    ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(100, true)));
    Status status = Status::ok();
    while (status) status = engine->step().status();
    EXPECT_NE(status.message().find("the coffee is cold"), std::string_view::npos)
        << status.to_string();
    EXPECT_EQ(engine->step().status().message(), status.message());
  }
}

// --- the plan -------------------------------------------------------------------------------

// A plan as numbers: of each entry the request, and which tokens.
std::vector<std::vector<int>> numbers(const BatchPlan& plan) {
  std::vector<std::vector<int>> made;
  for (const BatchEntry& each : plan.entries)
    made.push_back({static_cast<int>(each.sequence->id), each.first, each.count});
  return made;
}

// Under random work: wherever a step is planned ahead, the next one is the same if no id ends a
// sequence, and it draws for everybody.
TEST(RunAhead, IsThePlanThatComesAnyway) {
  int ahead = 0, not_ahead = 0;
  for (unsigned seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    CachePool caches(12 + static_cast<int>(random() % 12), 64, 6);
    Scheduler scheduler({4, 140, 400, seed % 2 == 0}, caches);
    std::uint64_t id = 0;
    for (int step = 0; step < 400; ++step) {
      if (random() % 12 == 0) {
        SamplingParams sampling = greedy(1 + static_cast<int>(random() % 90));
        if (random() % 4 == 0) sampling.frequency_penalty = 0.5f;
        const Tokens prompt(1 + random() % (random() % 3 == 0 ? 300 : 20), 5);
        ASSERT_TRUE(scheduler.add(RequestId{++id}, prompt, sampling));
      }
      const BatchPlan plan = scheduler.next();
      if (plan.entries.empty()) continue;
      const BatchPlan planned = scheduler.ahead(plan);
      for (const BatchEntry& each : planned.entries) EXPECT_TRUE(each.draws());
      EXPECT_EQ(planned.num_tokens, static_cast<int>(planned.entries.size()));
      scheduler.apply(plan, std::vector<std::int32_t>(plan.entries.size(), 3));
      std::vector<RequestId> ended;
      for (const BatchEntry& each : plan.entries)
        if (each.sequence->length() - each.sequence->prompt_tokens == each.sequence->max_tokens)
          ended.push_back(each.sequence->id);
      for (const RequestId each : ended) scheduler.remove(each);
      ASSERT_TRUE(caches.check());
      (planned.entries.empty() ? not_ahead : ahead) += 1;
      if (planned.entries.empty()) continue;
      EXPECT_TRUE(ended.empty());
      EXPECT_EQ(numbers(scheduler.next()), numbers(planned));
    }
  }
  EXPECT_GT(ahead, 1000);
  EXPECT_GT(not_ahead, 500);
}

TEST(RunAhead, OthersThatMayBeginComeFirst) {
  CachePool caches(24, 64, 6);
  Scheduler scheduler({2, 140, 400}, caches);
  const auto plan = [&] { return BatchPlan(scheduler.next()); };
  const auto apply = [&](const BatchPlan& ran) {
    scheduler.apply(ran, std::vector<std::int32_t>(ran.entries.size(), 3));
  };
  ASSERT_TRUE(scheduler.add(RequestId{1}, {1, 2}, greedy(100)));
  BatchPlan now = plan();
  EXPECT_TRUE(scheduler.ahead(now).entries.empty());  // a prompt
  apply(now);
  now = plan();
  EXPECT_EQ(scheduler.ahead(now).entries.size(), 1u);
  ASSERT_TRUE(scheduler.add(RequestId{2}, {1, 2}, greedy(100)));
  EXPECT_TRUE(scheduler.ahead(now).entries.empty());
  apply(now);
  for (int step = 0; step < 2; ++step) apply(now = plan());
  now = plan();
  EXPECT_EQ(scheduler.ahead(now).entries.size(), 2u);
  ASSERT_TRUE(scheduler.add(RequestId{3}, {1, 2}, greedy(100)));  // two run: it cannot begin
  EXPECT_TRUE(scheduler.ahead(now).entries.empty());              // nobody has tried so far
  apply(now);
  now = plan();
  EXPECT_EQ(scheduler.ahead(now).entries.size(), 2u);
  EXPECT_TRUE(scheduler.cancel(RequestId{1}));
  EXPECT_TRUE(scheduler.ahead(now).entries.empty());
}

// --- real layers ----------------------------------------------------------------------------

struct Seen {
  std::map<std::uint64_t, Tokens> tokens;
  std::map<std::uint64_t, std::vector<float>> logprobs;
  std::map<std::uint64_t, Finish> finish;
  std::int64_t tokens_ahead = 0, replayed = 0;
};

SamplingParams params(int i) {
  SamplingParams sampling;
  sampling.max_tokens = 6 + 3 * i;
  sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
  sampling.seed = static_cast<std::uint64_t>(i);
  if (i % 3 == 1) sampling.logprobs = 2;
  if (i % 5 == 4) sampling.repetition_penalty = 1.3f;  // its steps wait for its tokens
  return sampling;
}

Seen run_requests(EngineOptions options, RunAhead run_ahead) {
  Seen seen;
  options.run_ahead = run_ahead;
  auto engine = Engine::open(options);
  EXPECT_TRUE(engine) << engine.status().to_string();
  if (!engine) return seen;
  constexpr int kRequests = 9;
  for (int submitted = 0, step = 0; submitted < kRequests || !(*engine)->idle(); ++step) {
    if (submitted < kRequests && step % 3 == 0) {
      EXPECT_TRUE(
          (*engine)->submit(test::prompt(3 + 11 * submitted, submitted), params(submitted)));
      ++submitted;
    }
    auto events = (*engine)->step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) return seen;
    for (const TokenEvent& each : *events) {
      const auto id = static_cast<std::uint64_t>(each.id);
      seen.tokens[id].push_back(each.token);
      seen.finish[id] = each.finish;
      if (!each.logprobs) continue;
      seen.logprobs[id].push_back(each.logprobs->drawn);
      for (const auto& [token, logprob] : each.logprobs->likeliest)
        seen.logprobs[id].push_back(logprob);
    }
  }
  seen.tokens_ahead = (*engine)->stats().tokens_ahead;
  seen.replayed = (*engine)->stats().replayed_steps;
  EXPECT_TRUE((*engine)->check_caches());
  return seen;
}

TEST(RunAhead, RealLayersDrawTheSame) {
  const OnDisk model(test::moe_shape());
  for (const Target target : test::usable_targets()) {
    if (target == Target::kEmu32 || target == Target::kEmu64) continue;  // they take minutes
    for (int tp : {1, 2}) {
      SCOPED_TRACE(std::string(name(target)) + ", tp " + std::to_string(tp));
      EngineOptions options;
      options.model = model.where();
      options.tp = tp;
      options.target = target;
      options.max_batch = 5;
      options.max_context = 256;
      options.max_tokens_per_step = 128;
      const Seen without = run_requests(options, RunAhead::kNever);
      const Seen with = run_requests(options, RunAhead::kAlways);
      EXPECT_EQ(with.tokens, without.tokens);
      EXPECT_EQ(with.logprobs, without.logprobs);
      EXPECT_EQ(with.finish, without.finish);
      EXPECT_GT(with.tokens_ahead, 20);
      EXPECT_EQ(without.tokens_ahead, 0);
      EXPECT_EQ(with.replayed > 0, without.replayed > 0);
    }
  }
}

}  // namespace
}  // namespace tenon
