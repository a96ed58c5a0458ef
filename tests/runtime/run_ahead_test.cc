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
