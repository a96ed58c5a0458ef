// The engine over a model without weights: every token against an oracle whatever runs beside it,
// the same tokens for any number of ranks, and refusals of what cannot run.
#include "tenon/runtime/engine.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <limits>
#include <random>

#include "tests/runtime/engine_driver.h"
#include "tests/support/operator_new.h"

namespace tenon {
namespace {

using namespace test;

TEST(Engine, GivesTheOraclesTokensWhateverRunsBesides) {
  for (int tp : {1, 2, 3, 4}) {
    SCOPED_TRACE(tp);
    ASSERT_NO_FATAL_FAILURE(expect_oracle_tokens(engine_options(tp), 25, 100u + unsigned(tp)));
  }
}

TEST(Engine, RunsOnTheEmulatedTargets) {
  for (const Target target : {Target::kEmu32, Target::kEmu64}) {
    if (!properties(Device{target, 0})) continue;  // not in this build
    SCOPED_TRACE(name(target));
    ASSERT_NO_FATAL_FAILURE(expect_oracle_tokens(engine_options(2, target), 1, 5));
  }
}

TEST(Engine, SampledTokensDependOnNobodyElse) {
  std::mt19937 random(9);
  std::vector<Tokens> prompts;
  for (int i = 0; i < 6; ++i) prompts.push_back(random_prompt(random, 90));
  const auto sampling = [](std::size_t i) {
    SamplingParams params = greedy(30, true);
    params.temperature = 2.0f;
    params.top_k = i % 2 == 0 ? 0 : 20;
    params.top_p = i % 3 == 0 ? 1.0f : 0.9f;
    params.seed = 77 + i;
    return params;
  };
  std::vector<Tokens> alone;
  auto one = must_open(engine_options(1));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto id = one->submit(prompts[i], sampling(i));
    ASSERT_TRUE(id);
    alone.push_back(run_to_end(*one)[*id].tokens);
    EXPECT_EQ(alone.back().size(), 30u);
  }
  EXPECT_NE(alone[0], alone[1]);
  for (int tp : {2, 3}) {
    auto many = must_open(engine_options(tp));
    std::vector<RequestId> ids;
    for (std::size_t i = 0; i < prompts.size(); ++i)
      ids.push_back(*many->submit(prompts[i], sampling(i)));
    Answers answers = run_to_end(*many);
    for (std::size_t i = 0; i < prompts.size(); ++i)
      EXPECT_EQ(answers[ids[i]].tokens, alone[i]) << "request " << i << " at tp " << tp;
  }
}

TEST(Engine, EndsAtTheContextsEnd) {
  auto engine = must_open(engine_options(2));
  auto id = engine->submit(Tokens(290, 3), greedy(1000, true));
  ASSERT_TRUE(id);
  const Answer answer = run_to_end(*engine)[*id];
  EXPECT_EQ(answer.finish, Finish::kContext);
  EXPECT_EQ(answer.tokens.size(), 10u);
}

TEST(Engine, SaysWhichLimitEndedARequest) {
  auto engine = must_open(engine_options(1));
  const auto finish = [&](int max_tokens) {
    auto id = engine->submit(Tokens(290, 3), greedy(max_tokens, true));
    EXPECT_TRUE(id);
    return run_to_end(*engine)[*id].finish;
  };
  EXPECT_EQ(name(finish(9)), "length");
  EXPECT_EQ(name(finish(10)), "length");  // both at once: it got all that it asked for
  EXPECT_EQ(name(finish(11)), "context");
}

TEST(Engine, RefusesWhatCannotRun) {
  auto engine = must_open(engine_options(1));
  const auto refused = [&](const Tokens& prompt, const SamplingParams& sampling) {
    const Status why = engine->check_request(prompt, sampling);
    const auto id = engine->submit(prompt, sampling);
    EXPECT_EQ(static_cast<bool>(why), static_cast<bool>(id));
    if (id) return false;
    EXPECT_EQ(id.status().message(), "submit: " + std::string(why.message()));
    return id.status().code() == Code::kInvalidArgument;
  };
  EXPECT_TRUE(refused({}, greedy(1)));
  EXPECT_TRUE(refused({-1}, greedy(1)));
  EXPECT_TRUE(refused({kVocab}, greedy(1)));
  EXPECT_TRUE(refused({1, fake_options().num_tokens}, greedy(1)));
  EXPECT_TRUE(refused(Tokens(300, 1), greedy(1)));
  EXPECT_TRUE(refused({1}, greedy(0)));
  EXPECT_FALSE(engine->cancel(RequestId{99}));
  auto nothing = engine->step();
  ASSERT_TRUE(nothing);
  EXPECT_TRUE(nothing->empty());
  EngineOptions wrong = engine_options(9);
  EXPECT_EQ(open_fake(wrong).status().code(), Code::kInvalidArgument);
  wrong = engine_options(1);
  wrong.max_tokens_per_step = 20;
  EXPECT_EQ(open_fake(wrong).status().code(), Code::kInvalidArgument);
  wrong = engine_options(1);
  wrong.max_batch = wrong.max_context = std::numeric_limits<int>::max();
  EXPECT_EQ(open_fake(wrong).status().code(), Code::kInvalidArgument);
  wrong = engine_options(1);
  wrong.max_stage = 4;
  EXPECT_EQ(open_fake(wrong).status().message(),
            "open engine: max_stage is 4; accepted are 1 to 3");
  wrong = engine_options(1);
  wrong.force_variant = "slow";
  wrong.transport = "pigeon";
  EXPECT_NE(
      Engine::check(wrong).message().find("transport \"pigeon\" is not known; accepted: auto"),
      std::string_view::npos);
  wrong.transport = "shm";
  EXPECT_NE(
      Engine::check(wrong).message().find("variant \"slow\" is not known; accepted: one_shot"),
      std::string_view::npos);
  wrong = engine_options(1, Target::kCuda);
  EXPECT_EQ(static_cast<bool>(open_fake(wrong)),
            static_cast<bool>(properties(Device{Target::kCuda, 0})));
}

TEST(Engine, ItsThreadsHaveNames) {
  char names[3][16] = {};
  FakeOptions fake = fake_options();
  fake.before_step = [&](int rank, int) {
    pthread_getname_np(pthread_self(), names[rank], sizeof names[rank]);
    return Status::ok();
  };
  auto engine = must_open(engine_options(3), fake);
  ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(2, true)));
  run_to_end(*engine);
  EXPECT_STREQ(names[1], "tenon rank 1/3");
  EXPECT_STREQ(names[2], "tenon rank 2/3");
}

TEST(Engine, CountsWhatItDid) {
  auto engine = must_open(engine_options(2));
  ASSERT_TRUE(engine->submit(Tokens(100, 1), greedy(5, true)));
  run_to_end(*engine);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.steps, 5);
  EXPECT_EQ(stats.prompt_tokens, 100);
  EXPECT_EQ(stats.decode_tokens, 4);
  EXPECT_GT(stats.decode_seconds, 0);
  EXPECT_NE(stats.logits_fingerprint, 0u);
  auto other = must_open(engine_options(3));
  ASSERT_TRUE(other->submit(Tokens(100, 1), greedy(5, true)));
  run_to_end(*other);
  EXPECT_EQ(other->stats().logits_fingerprint, stats.logits_fingerprint);
}

TEST(Engine, ADecodeStepAllocatesOnlyItsEvents) {
  auto engine = must_open(engine_options(2));
  ASSERT_TRUE(engine->submit(Tokens(40, 1), greedy(200, true)));
  ASSERT_TRUE(engine->submit(Tokens(50, 2), greedy(200, true)));
  for (int step = 0; step < 10; ++step) ASSERT_TRUE(engine->step());
  const std::int64_t before = num_allocations.load();
  constexpr int kSteps = 100;
  for (int step = 0; step < kSteps; ++step) {
    auto events = engine->step();
    ASSERT_TRUE(events);
    ASSERT_EQ(events->size(), 2u);
  }
  EXPECT_EQ(num_allocations.load() - before, kSteps);
}

// ---- the vocabulary's padding ----

// 71 ids shared by 2 or 3 ranks as 72: nobody may ask with the last one, and it is never drawn
// though its logit is the largest.
TEST(Engine, PaddingIsNoToken) {
  FakeOptions fake = fake_options();
  fake.num_ids = fake.num_tokens = 71;
  for (int tp : {2, 3}) {
    for (int num_tokens : {0, 71, 72, 1000}) {
      EngineOptions options = engine_options(tp);
      options.num_tokens = num_tokens;
      auto engine = must_open(options, fake);
      const Status refused = engine->submit({1, 71}, greedy(1)).status();
      EXPECT_EQ(refused.code(), Code::kInvalidArgument);
      EXPECT_NE(refused.message().find("token id 71; accepted are 0 to 70"), std::string_view::npos)
          << refused.to_string();
      SamplingParams hot = greedy(200, true);
      hot.temperature = 100;
      for (const SamplingParams& sampling : {greedy(200, true), hot}) {
        const auto id = engine->submit({1, 70}, sampling);
        ASSERT_TRUE(id) << id.status().to_string();
        const Answer answer = run_to_end(*engine)[*id];
        EXPECT_EQ(answer.tokens.size(), 200u);
        for (const std::int32_t token : answer.tokens) EXPECT_LT(token, 71);
      }
    }
  }
}

}  // namespace
}  // namespace tenon
