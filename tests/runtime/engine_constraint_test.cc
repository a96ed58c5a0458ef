// Constraints of tokens through the engine, against an oracle that knows the logits of the model
// without weights: for any number of ranks, whatever runs beside, and where sequences are
// preempted.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tests/runtime/engine_driver.h"

namespace tenon {
namespace {

using namespace test;

constexpr int kNumTokens = 60;  // of the model, and of the engine

// Allows ids by their remainder and by how many tokens there are; every fourth token is free.
bool allows(std::size_t drawn, std::int32_t id, int kind) {
  if (drawn % 4 == 3) return true;
  return (static_cast<std::size_t>(id) + drawn) % 5 == static_cast<std::size_t>(kind) % 5;
}

// From `none_from` tokens on it allows nothing.
class Remainders final : public TokenConstraint {
 public:
  explicit Remainders(int kind, std::size_t none_from = 1000)
      : kind_(kind), none_from_(none_from) {}
  bool constrains() const override { return drawn_ % 4 != 3 || drawn_ >= none_from_; }
  void fill(std::span<std::uint32_t> words) override {
    EXPECT_EQ(words.size(), 2u);
    std::fill(words.begin(), words.end(), 0u);
    for (std::int32_t id = 0; id < kNumTokens && drawn_ < none_from_; ++id)
      if (allows(drawn_, id, kind_)) words[static_cast<std::size_t>(id) / 32] |= 1u << (id % 32);
  }
  void drew(std::int32_t id) override {
    EXPECT_TRUE(allows(drawn_, id, kind_)) << id << " after " << drawn_;
    ++drawn_;
  }

 private:
  int kind_;
  std::size_t none_from_, drawn_ = 0;
};

Tokens greedy_answer(Tokens context, int kind, int count) {
  Tokens answer;
  while (static_cast<int>(answer.size()) < count) {
    std::uint32_t hash = 0;
    for (const std::int32_t token : context) hash = extended_hash(hash, token);
    std::int32_t best = -1;
    for (std::int32_t id = 0; id < kNumTokens; ++id)
      if (allows(answer.size(), id, kind) &&
          (best < 0 || fake_logit(hash, id, kNumTokens) > fake_logit(hash, best, kNumTokens)))
        best = id;
    answer.push_back(best);
    context.push_back(best);
  }
  return answer;
}

// Half of the requests are constrained; some draw, and are compared with a run alone.
void expect_oracle_answers(const EngineOptions& options, int count,
                           std::int64_t* preemptions = nullptr) {
  std::mt19937 random(9);
  auto engine = must_open(options);
  auto alone = must_open(engine_options(1));
  std::map<RequestId, Tokens> wanted;
  for (int i = 0; i < 16; ++i) {
    const Tokens prompt = random_prompt(random, 40);
    SamplingParams sampling = greedy(count, true);
    if (i % 3 == 0) {
      sampling.temperature = 0.9f;
      sampling.top_p = 0.9f;
      sampling.presence_penalty = 0.5f;
      sampling.seed = static_cast<std::uint64_t>(i);
    }
    const auto constraint = [&]() -> std::unique_ptr<TokenConstraint> {
      if (i % 2 == 0) return nullptr;
      return std::make_unique<Remainders>(i);
    };
    const auto id = engine->submit(prompt, sampling, constraint());
    ASSERT_TRUE(id) << id.status().to_string();
    if (i % 2 != 0 && i % 3 != 0) {
      wanted[*id] = greedy_answer(prompt, i, count);
    } else {
      const auto again = alone->submit(prompt, sampling, constraint());
      wanted[*id] = run_to_end(*alone).at(*again).tokens;
    }
  }
  const Answers answers = run_to_end(*engine);
  if (preemptions != nullptr) *preemptions = engine->stats().preemptions;
  for (const auto& [id, tokens] : wanted) EXPECT_EQ(answers.at(id).tokens, tokens);
}

TEST(EngineConstraint, TokensAreThoseOfTheOracle) {
  for (const int tp : {1, 2, 3}) {
    SCOPED_TRACE(tp);
    ASSERT_NO_FATAL_FAILURE(expect_oracle_answers(engine_options(tp), 40));
  }
}

TEST(EngineConstraint, SurvivesAPreemption) {
  EngineOptions options = engine_options(1);
  options.cache_tokens = 64 * 5;
  std::int64_t preemptions = 0;
  ASSERT_NO_FATAL_FAILURE(expect_oracle_answers(options, 120, &preemptions));
  EXPECT_GT(preemptions, 0);
}

TEST(EngineConstraint, WhatAllowsNothingEndsItsRequestAlone) {
  auto engine = must_open(engine_options(2));
  const auto stuck = engine->submit({1, 2}, greedy(20, true), std::make_unique<Remainders>(1, 6));
  const auto other = engine->submit({1, 2}, greedy(20, true));
  ASSERT_TRUE(stuck && other);
  int failures = 0;
  Tokens told;
  while (!engine->idle()) {
    const auto events = engine->step();
    ASSERT_TRUE(events) << events.status().to_string();
    for (const TokenEvent& event : *events) {
      if (event.id == *other) told.push_back(event.token);
      if (event.finish != Finish::kFailed) continue;
      ++failures;
      EXPECT_EQ(event.id, *stuck);
      EXPECT_NE(event.why.message().find("ends after 6 tokens: none of the tokens that it may"),
                std::string_view::npos)
          << event.why.to_string();
    }
  }
  EXPECT_EQ(failures, 1);
  EXPECT_EQ(told, oracle({1, 2}, greedy(20, true), 300).tokens);
}

// Ranks that share no memory of this engine get their masks with the step.
TEST(EngineConstraint, MasksReachRanksByTheBootstrap) {
  auto handles = local_bootstrap(2);
  EngineOptions options = engine_options(2);
  std::thread follower([options, handle = std::move(handles[1])]() mutable {
    options.bootstrap = std::move(handle);
    auto engine = must_open(options);
    const Status followed = engine->follow();
    EXPECT_TRUE(followed) << followed.to_string();
  });
  {
    options.bootstrap = std::move(handles[0]);
    handles.clear();
    auto engine = must_open(options);
    const Tokens prompt{3, 1, 4};
    std::map<RequestId, Tokens> wanted;
    for (int kind = 0; kind < 4; ++kind) {
      SamplingParams sampling = greedy(20, true);
      if (kind == 2) sampling.logit_bias = {{5, 0.0f}};  // edits travel beside masks
      const auto id = engine->submit(prompt, sampling, std::make_unique<Remainders>(kind));
      ASSERT_TRUE(id) << id.status().to_string();
      wanted[*id] = greedy_answer(prompt, kind, 20);
    }
    const Answers answers = run_to_end(*engine);
    for (const auto& [id, tokens] : wanted) EXPECT_EQ(answers.at(id).tokens, tokens);
    options.bootstrap = nullptr;
  }
  follower.join();
}

TEST(EngineConstraint, NeedsANumberOfTokens) {
  EngineOptions options = engine_options(1);
  options.num_tokens = 0;
  auto engine = must_open(options);
  const auto refused = engine->submit({1}, greedy(3), std::make_unique<Remainders>(1));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.status().message().find("opened without num_tokens"), std::string_view::npos);
}

}  // namespace
}  // namespace tenon
