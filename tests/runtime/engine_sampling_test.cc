// Biases, penalties, held-back ends and log probabilities through the engine, against an oracle
// that knows the logits of the model without weights: for any number of ranks, whatever runs
// beside, and where sequences are preempted.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/runtime/engine_driver.h"

namespace tenon {
namespace {

using namespace test;

constexpr int kNumTokens = 60;  // of the model, and of the engine

std::vector<float> logits_behind(const Tokens& context) {
  std::uint32_t hash = 0;
  for (const std::int32_t token : context) hash = extended_hash(hash, token);
  std::vector<float> logits;
  for (int id = 0; id < kNumTokens; ++id) logits.push_back(fake_logit(hash, id, kNumTokens));
  return logits;
}

// The formula of ops/sampling, with everything counted anew for every token.
std::vector<float> edited(std::vector<float> logits, const Tokens& prompt, const Tokens& answer,
                          const SamplingParams& sampling, std::int32_t eos) {
  for (const auto& [id, bias] : sampling.logit_bias) logits[static_cast<std::size_t>(id)] += bias;
  if (static_cast<int>(answer.size()) < sampling.min_tokens)
    logits[static_cast<std::size_t>(eos)] = -std::numeric_limits<float>::infinity();
  for (int id = 0; id < kNumTokens; ++id) {
    const auto drawn = std::count(answer.begin(), answer.end(), id);
    float& logit = logits[static_cast<std::size_t>(id)];
    if (drawn == 0 && std::count(prompt.begin(), prompt.end(), id) == 0) continue;
    logit = logit > 0 ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
    const float often = sampling.frequency_penalty * static_cast<float>(drawn);
    logit -= often;
    if (drawn > 0) logit -= sampling.presence_penalty;
  }
  return logits;
}

Tokens greedy_answer(const Tokens& prompt, const SamplingParams& sampling, std::int32_t eos) {
  Tokens context = prompt, answer;
  while (static_cast<int>(answer.size()) < sampling.max_tokens) {
    const auto logits = edited(logits_behind(context), prompt, answer, sampling, eos);
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    answer.push_back(static_cast<std::int32_t>(best));
    context.push_back(answer.back());
    if (answer.back() == eos && !sampling.ignore_eos) break;
  }
  return answer;
}

std::vector<SamplingParams> all_kinds(int max_tokens) {
  std::vector<SamplingParams> made(8, greedy(max_tokens, true));
  made[0].repetition_penalty = 9;
  made[1].frequency_penalty = 2;
  made[1].logit_bias = {{3, 50.0f}};  // said until it has been said too often
  made[2].presence_penalty = 2;
  made[2].frequency_penalty = 1.5f;
  made[3].logit_bias = {{3, -100.0f}, {11, 7.5f}, {40, -std::numeric_limits<float>::infinity()}};
  made[4].min_tokens = max_tokens - 1;
  made[4].ignore_eos = false;
  made[4].logit_bias = {{7, 100.0f}};  // the end, as soon as it may be
  made[5].repetition_penalty = 0.5f;
  made[5].presence_penalty = -1;
  made[7].repetition_penalty = 3;  // and 6 has none
  made[7].temperature = 1;
  made[7].min_p = 0.01f;
  made[7].seed = 5;
  return made;
}

void expect_oracle_answers(const EngineOptions& options, int max_tokens,
                           std::int64_t* preemptions = nullptr) {
  std::mt19937 random(6);
  const std::vector<SamplingParams> kinds = all_kinds(max_tokens);
  auto engine = must_open(options);
  std::map<RequestId, std::size_t> asked;
  std::vector<Tokens> prompts;
  for (std::size_t i = 0; i < 2 * kinds.size(); ++i) {
    prompts.push_back(random_prompt(random, 40));
    const auto id = engine->submit(prompts.back(), kinds[i % kinds.size()]);
    ASSERT_TRUE(id) << id.status().to_string();
    asked[*id] = i;
  }
  const Answers answers = run_to_end(*engine);
  if (preemptions != nullptr) *preemptions = engine->stats().preemptions;
  auto alone = must_open(engine_options(1));
  for (const auto& [id, i] : asked) {
    const SamplingParams& sampling = kinds[i % kinds.size()];
    SCOPED_TRACE("kind " + std::to_string(i % kinds.size()));
    if (sampling.temperature > 0) {
      const auto again = alone->submit(prompts[i], sampling);
      EXPECT_EQ(answers.at(id).tokens, run_to_end(*alone).at(*again).tokens);
    } else {
      EXPECT_EQ(answers.at(id).tokens, greedy_answer(prompts[i], sampling, 7));
    }
  }
}

TEST(EngineSampling, EditsAreThoseOfTheOracle) {
  for (const int tp : {1, 2, 3}) {
    SCOPED_TRACE(tp);
    ASSERT_NO_FATAL_FAILURE(expect_oracle_answers(engine_options(tp), 40));
  }
}

TEST(EngineSampling, EditsSurviveAPreemption) {
  EngineOptions options = engine_options(1);
  options.cache_tokens = 64 * 5;
  std::int64_t preemptions = 0;
  ASSERT_NO_FATAL_FAILURE(expect_oracle_answers(options, 120, &preemptions));
  EXPECT_GT(preemptions, 0);
}

TEST(EngineSampling, LogprobsAreThoseOfTheModel) {
  for (const int tp : {1, 2}) {
    auto engine = must_open(engine_options(tp));
    SamplingParams sampling = greedy(20, true);
    sampling.logprobs = 4;
    sampling.repetition_penalty = 9;  // not seen in what is told
    sampling.temperature = 0.7f;
    const Tokens prompt{1, 2, 3};
    ASSERT_TRUE(engine->submit(prompt, sampling));
    ASSERT_TRUE(engine->submit({4, 5}, greedy(20, true)));
    Tokens context = prompt;
    int told = 0;
    while (!engine->idle()) {
      const auto events = engine->step();
      ASSERT_TRUE(events) << events.status().to_string();
      for (const TokenEvent& event : *events) {
        if (event.id != RequestId{1}) {
          EXPECT_FALSE(event.logprobs);
          continue;
        }
        ASSERT_TRUE(event.logprobs);
        ++told;
        const std::vector<float> logits = logits_behind(context);
        double sum = 0;
        for (const float each : logits) sum += std::exp(double{each});
        const auto expected = [&](std::int32_t id) {
          return double{logits[static_cast<std::size_t>(id)]} - std::log(sum);
        };
        EXPECT_NEAR(event.logprobs->drawn, expected(event.token), 1e-5);
        ASSERT_EQ(event.logprobs->likeliest.size(), 4u);
        for (std::size_t i = 0; i < 4; ++i) {
          const auto& [id, logprob] = event.logprobs->likeliest[i];
          EXPECT_NEAR(logprob, expected(id), 1e-5);
          if (i > 0) {
            EXPECT_LE(logprob, event.logprobs->likeliest[i - 1].second);
          }
        }
        EXPECT_EQ(event.logprobs->likeliest[0].first, expected_token(context, kNumTokens));
        context.push_back(event.token);
      }
    }
    EXPECT_EQ(told, 20);
  }
}

// What a request was told: tokens, and log probabilities where it asked for them.
struct Told {
  Tokens tokens;
  std::vector<float> drawn;
  std::vector<std::pair<std::int32_t, float>> likeliest;
  bool operator==(const Told&) const = default;
};

std::vector<Told> told_to(const EngineOptions& options, const std::vector<SamplingParams>& asked) {
  std::mt19937 random(8);
  std::vector<Told> told(asked.size());
  std::map<RequestId, std::size_t> places;
  auto engine = must_open(options);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const auto id = engine->submit(random_prompt(random, 20), asked[i]);
    EXPECT_TRUE(id) << id.status().to_string();
    if (id) places[*id] = i;
  }
  while (!engine->idle()) {
    const auto events = engine->step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) break;
    for (const TokenEvent& event : *events) {
      Told& one = told[places.at(event.id)];
      one.tokens.push_back(event.token);
      EXPECT_EQ(event.logprobs.has_value(), asked[places.at(event.id)].logprobs >= 0);
      if (!event.logprobs) continue;
      one.drawn.push_back(event.logprobs->drawn);
      for (const auto& each : event.logprobs->likeliest) one.likeliest.push_back(each);
    }
  }
  return told;
}

// More than four rows of logits are dealt to the ranks, fewer are drawn by every rank: nobody can
// tell which it was.
TEST(EngineSampling, DealtRowsAreDrawnLikeGatheredOnes) {
  constexpr int kDrawn = 12;
  std::vector<SamplingParams> asked;
  for (std::size_t i = 0; i < 21; ++i) {
    asked.push_back(all_kinds(kDrawn)[i % 8]);
    SamplingParams& one = asked.back();
    one.ignore_eos = true;
    one.seed = 100 + i;
    if (i % 3 != 0) one.temperature = 0.5f + 0.25f * static_cast<float>(i % 5);
    if (i % 4 == 1) one.top_k = 7;
    if (i % 5 == 2) one.top_p = 0.8f;
    if (i % 2 == 1) one.logprobs = static_cast<int>(i % 6);
  }
  const std::vector<Told> expected = told_to(engine_options(1), asked);
  for (const Told& one : expected) EXPECT_EQ(one.tokens.size(), std::size_t{kDrawn});
  for (const Target target : {Target::kCpu, Target::kEmu32}) {
    if (!properties(Device{target, 0})) continue;  // not in this build
    for (const int tp : {1, 2, 3, 4, 8}) {
      EngineOptions options = engine_options(tp, target);
      options.max_tokens_per_step = 500;  // all prompts in the first step
      for (const int batch : {5, 16, 21}) {
        SCOPED_TRACE(std::string(name(target)) + ", tp " + std::to_string(tp) + ", " +
                     std::to_string(batch) + " sequences");
        options.max_batch = batch;
        EXPECT_TRUE(told_to(options, asked) == expected);
      }
    }
  }
}

TEST(EngineSampling, RefusesABiasOfNoToken) {
  auto engine = must_open(engine_options(1));
  SamplingParams sampling = greedy(3);
  sampling.logit_bias = {{60, 1.0f}};
  EXPECT_EQ(engine->check_request({1}, sampling).message(),
            "logit_bias has token id 60; accepted are 0 to 59");
  sampling.logit_bias = {{59, 1.0f}};
  EXPECT_TRUE(engine->check_request({1}, sampling));
}

}  // namespace
}  // namespace tenon
