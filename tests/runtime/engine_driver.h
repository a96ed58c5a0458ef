// An engine over the model without weights, for the tests of the engine: opening it, running it to
// the end, and an oracle that knows every token and every end.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tenon/runtime/engine.h"
#include "tests/runtime/fake_model.h"

namespace tenon::test {

using Tokens = std::vector<std::int32_t>;
using Milliseconds = std::chrono::milliseconds;

inline constexpr int kVocab = 72;  // over 1, 2, 3 and 4 ranks

inline FakeOptions fake_options() {
  FakeOptions options;
  options.vocab = options.num_ids = kVocab;
  return options;
}

inline FakeOptions poisoned_options() {
  FakeOptions fake = fake_options();
  fake.poison = 59;
  return fake;
}

inline EngineOptions engine_options(int tp, Target target = Target::kCpu) {
  EngineOptions options;
  options.tp = tp;
  options.target = target;
  options.max_batch = 4;
  options.max_context = 300;
  options.max_tokens_per_step = 140;
  options.num_tokens = fake_options().num_tokens;
  options.deadline = Milliseconds(10'000);
  return options;
}

inline Engine::ModelFactory fake_factory(const EngineOptions& options, const FakeOptions& fake) {
  return [=](Communicator& comm, Stream&) -> Result<std::unique_ptr<Model>> {
    return std::unique_ptr<Model>(new FakeModel(fake, comm, options.max_batch));
  };
}

inline Result<std::unique_ptr<Engine>> open_fake(const EngineOptions& options,
                                                 const FakeOptions& fake = fake_options()) {
  return Engine::open(options, fake_factory(options, fake));
}

inline std::unique_ptr<Engine> must_open(const EngineOptions& options,
                                         const FakeOptions& fake = fake_options()) {
  auto engine = open_fake(options, fake);
  EXPECT_TRUE(engine) << engine.status().to_string();
  return std::move(*engine);
}

struct Answer {
  Tokens tokens;
  Finish finish = Finish::kNone;
};
using Answers = std::map<RequestId, Answer>;

inline void collect(const std::vector<TokenEvent>& events, Answers& answers) {
  for (const TokenEvent& event : events) {
    Answer& answer = answers[event.id];
    EXPECT_EQ(answer.finish, Finish::kNone) << "an event after the last";
    const bool drew = event.finish != Finish::kCancelled && event.finish != Finish::kFailed;
    EXPECT_EQ(event.token >= 0, drew);
    if (event.token >= 0) answer.tokens.push_back(event.token);
    answer.finish = event.finish;
    EXPECT_EQ(static_cast<bool>(event.why), event.finish != Finish::kFailed);
    if (event.why) continue;
    EXPECT_EQ(event.why.code(), Code::kInternal);
    const std::string named = "request " + std::to_string(static_cast<std::uint64_t>(event.id));
    for (const std::string& piece : {named, std::string("logits hold no number")})
      EXPECT_NE(event.why.message().find(piece), std::string_view::npos) << event.why.to_string();
  }
}

inline Answers run_to_end(Engine& engine) {
  Answers answers;
  while (!engine.idle()) {
    auto events = engine.step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) break;
    collect(*events, answers);
  }
  return answers;
}

inline SamplingParams greedy(int max_tokens, bool ignore_eos = false) {
  SamplingParams sampling;
  sampling.max_tokens = max_tokens;
  sampling.ignore_eos = ignore_eos;
  return sampling;
}

inline Answer oracle(Tokens context, const SamplingParams& sampling, int max_context,
                     const FakeOptions& fake = fake_options()) {
  Answer answer;
  while (answer.finish == Finish::kNone) {
    if (fake.poison >= 0 &&
        std::find(context.begin(), context.end(), fake.poison) != context.end()) {
      answer.finish = Finish::kFailed;
      break;
    }
    const std::int32_t next = expected_token(context, fake.num_tokens);
    context.push_back(next);
    answer.tokens.push_back(next);
    if (next == fake.eos && !sampling.ignore_eos) {
      answer.finish = Finish::kStop;
    } else if (static_cast<int>(answer.tokens.size()) >= sampling.max_tokens) {
      answer.finish = Finish::kLength;
    } else if (static_cast<int>(context.size()) >= max_context) {
      answer.finish = Finish::kContext;
    }
  }
  return answer;
}

inline Tokens random_prompt(std::mt19937& random, int most) {
  Tokens prompt(1 + random() % static_cast<unsigned>(most));
  const auto count = static_cast<unsigned>(fake_options().num_tokens);
  for (auto& token : prompt) token = static_cast<std::int32_t>(random() % count);
  return prompt;
}

// Random requests that come while others run, some of them cancelled: each gets the oracle's tokens
// and ends once.
inline void expect_oracle_tokens(const EngineOptions& options, int requests, unsigned seed,
                                 const FakeOptions& fake = fake_options()) {
  std::mt19937 random(seed);
  auto engine = must_open(options, fake);
  Answers answers;
  std::map<RequestId, Answer> wanted;
  std::map<RequestId, bool> cancelled;
  for (int submitted = 0; submitted < requests || !engine->idle();) {
    if (submitted < requests && random() % 2 == 0) {
      const Tokens prompt = random_prompt(random, random() % 4 == 0 ? 299 : 70);
      const SamplingParams sampling =
          greedy(1 + static_cast<int>(random() % 50), random() % 2 == 0);
      auto id = engine->submit(prompt, sampling);
      ASSERT_TRUE(id) << id.status().to_string();
      wanted[*id] = oracle(prompt, sampling, options.max_context, fake);
      ++submitted;
      if (random() % 8 == 0) cancelled[*id] = true;
    }
    if (!cancelled.empty() && random() % 10 == 0) {
      const RequestId id = cancelled.begin()->first;
      const bool runs = answers[id].finish == Finish::kNone;
      EXPECT_EQ(static_cast<bool>(engine->cancel(id)), runs);
      cancelled.erase(cancelled.begin());
    }
    auto events = engine->step();
    ASSERT_TRUE(events) << events.status().to_string();
    collect(*events, answers);
  }
  for (const auto& [id, answer] : wanted) {
    Tokens tokens = answer.tokens;
    if (answers[id].finish == Finish::kCancelled) tokens.resize(answers[id].tokens.size());
    EXPECT_EQ(answers[id].tokens, tokens);
    EXPECT_TRUE(answers[id].finish == answer.finish || answers[id].finish == Finish::kCancelled);
    EXPECT_NE(answers[id].finish, Finish::kNone) << "it never ended";
  }
  EXPECT_EQ(answers.size(), wanted.size());
}

}  // namespace tenon::test
