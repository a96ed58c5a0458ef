// Log probabilities of the tokens of prompts through the engine: against an oracle that knows the
// logits of the model without weights, and on a checkpoint against the goldens; to the bit the same
// however the prompt is cut, whoever else runs, whatever is kept of prompts, after a preemption.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <set>
#include <span>

#include "tenon/models/safetensors.h"
#include "tests/runtime/engine_driver.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using namespace test;

constexpr int kNumTokens = 60;  // of the model without weights, and of its engine
const std::string kSource = TENON_SOURCE_DIR;

struct Told {
  std::vector<TokenLogprobs> prompt;
  Tokens tokens;
  Finish finish = Finish::kNone;
  int cached_tokens = 0;
};
using AllTold = std::map<RequestId, Told>;

// Runs to the end. What is told of a prompt comes in one event, the first with a token or the end.
AllTold run_told(Engine& engine) {
  AllTold all;
  while (!engine.idle()) {
    const auto events = engine.step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) break;
    for (const TokenEvent& event : *events) {
      EXPECT_TRUE(event.why) << event.why.to_string();
      Told& told = all[event.id];
      EXPECT_TRUE(told.tokens.empty() || event.prompt_logprobs.empty());
      if (event.token >= 0) told.tokens.push_back(event.token);
      if (!event.prompt_logprobs.empty()) told.prompt = event.prompt_logprobs;
      told.finish = event.finish;
      told.cached_tokens = event.cached_tokens;
    }
  }
  return all;
}

SamplingParams telling(int likeliest, int from = 0, int max_tokens = 0) {
  SamplingParams sampling = greedy(max_tokens, true);
  sampling.prompt_logprobs = likeliest;
  sampling.prompt_logprobs_from = from;
  return sampling;
}

Told tell_alone(Engine& engine, const Tokens& prompt, const SamplingParams& sampling) {
  const auto id = engine.submit(prompt, sampling);
  EXPECT_TRUE(id) << id.status().to_string();
  return run_told(engine)[*id];
}

// The formula itself.
void expect_oracle(const Told& told, const Tokens& prompt, const SamplingParams& sampling) {
  const auto from = static_cast<std::size_t>(sampling.prompt_logprobs_from);
  ASSERT_EQ(told.prompt.size(), prompt.size() - from - 1);
  EXPECT_EQ(told.tokens.size(), static_cast<std::size_t>(sampling.max_tokens));
  EXPECT_EQ(told.finish, Finish::kLength);
  std::uint32_t hash = 0;
  for (std::size_t at = 1; at < prompt.size(); ++at) {
    hash = extended_hash(hash, prompt[at - 1]);
    if (at <= from) continue;
    double sum = 0;
    std::vector<std::pair<float, std::int32_t>> order;  // likeliest first, ties to the lower id
    for (int id = 0; id < kNumTokens; ++id) {
      const float logit = fake_logit(hash, id, kNumTokens);
      sum += std::exp(double{logit});
      order.emplace_back(-logit, id);
    }
    std::sort(order.begin(), order.end());
    const TokenLogprobs& found = told.prompt[at - from - 1];
    ASSERT_NEAR(found.drawn, fake_logit(hash, prompt[at], kNumTokens) - std::log(sum), 1e-5) << at;
    const auto place =
        std::ranges::find(order, prompt[at], &std::pair<float, std::int32_t>::second);
    ASSERT_EQ(found.rank, place - order.begin() + 1) << at;
    ASSERT_EQ(found.likeliest.size(), static_cast<std::size_t>(sampling.prompt_logprobs));
    for (std::size_t i = 0; i < found.likeliest.size(); ++i) {
      EXPECT_EQ(found.likeliest[i].first, order[i].second);
      EXPECT_NEAR(found.likeliest[i].second, -order[i].first - std::log(sum), 1e-5);
    }
  }
}

Tokens prompt_of(std::mt19937& random, int length, int ids = kNumTokens) {
  Tokens prompt(static_cast<std::size_t>(length));
  for (auto& each : prompt) each = static_cast<std::int32_t>(random() % static_cast<unsigned>(ids));
  return prompt;
}

// Requests that tell and others, all together.
void expect_oracle_of_many(const EngineOptions& options) {
  std::mt19937 random(3);
  auto engine = must_open(options);
  std::map<RequestId, std::pair<Tokens, SamplingParams>> asked;
  for (const int length : {1, 2, 3, 64, 65, 66, 128, 200, 259}) {
    const Tokens prompt = prompt_of(random, length);
    const int from = random() % 2 == 0 ? 0 : static_cast<int>(random()) % length;
    const int likeliest = static_cast<int>(random() % 5);
    const auto sampling = telling(likeliest, std::abs(from), length % 2 == 0 ? 0 : 20);
    const auto id = engine->submit(prompt, sampling);
    ASSERT_TRUE(id) << id.status().to_string();
    asked[*id] = {prompt, sampling};
    ASSERT_TRUE(engine->submit(prompt_of(random, 70), greedy(20, true)));
  }
  AllTold all = run_told(*engine);
  EXPECT_EQ(all.size(), 2 * asked.size());
  for (const auto& [id, request] : asked) {
    SCOPED_TRACE("a prompt of " + std::to_string(request.first.size()));
    ASSERT_NO_FATAL_FAILURE(expect_oracle(all[id], request.first, request.second));
  }
}

TEST(PromptLogprobs, AreThoseOfTheModel) {
  for (const int tp : {1, 2, 3})
    for (const int step : {68, 140, 1000}) {
      SCOPED_TRACE(std::to_string(tp) + " ranks, steps of " + std::to_string(step));
      EngineOptions options = engine_options(tp);
      options.max_tokens_per_step = step;
      ASSERT_NO_FATAL_FAILURE(expect_oracle_of_many(options));
    }
}

// A prompt that takes so many steps that the answer beside it needs more cache than was put by.
TEST(PromptLogprobs, SurviveAPreemption) {
  std::mt19937 random(5);
  EngineOptions options = engine_options(1);
  options.max_context = 8192;
  options.max_tokens_per_step = 68;
  options.cache_tokens = 64 * 97;
  auto engine = must_open(options);
  ASSERT_TRUE(engine->submit(prompt_of(random, 126), greedy(100, true)));
  const Tokens prompt = prompt_of(random, 6000);
  const SamplingParams sampling = telling(1, 70);
  const auto id = engine->submit(prompt, sampling);
  ASSERT_TRUE(id) << id.status().to_string();
  AllTold all = run_told(*engine);
  ASSERT_NO_FATAL_FAILURE(expect_oracle(all[*id], prompt, sampling));
  EXPECT_GT(engine->stats().preemptions, 0);
}

// What an earlier prompt left is used up to where something is to be told, and no further.
TEST(PromptLogprobs, OfKeptPrefixesAreComputedAgain) {
  std::mt19937 random(9);
  auto engine = must_open(engine_options(1));
  const Tokens prompt = prompt_of(random, 280);
  EXPECT_EQ(tell_alone(*engine, prompt, greedy(2, true)).cached_tokens, 0);
  EXPECT_EQ(tell_alone(*engine, prompt, greedy(2, true)).cached_tokens, 256);
  for (const auto& [from, cached] : std::map<int, int>{{0, 0}, {127, 0}, {256, 256}, {279, 256}}) {
    SCOPED_TRACE(from);
    const SamplingParams sampling = telling(2, from, 1);
    const Told told = tell_alone(*engine, prompt, sampling);
    ASSERT_NO_FATAL_FAILURE(expect_oracle(told, prompt, sampling));
    EXPECT_EQ(told.cached_tokens, cached);
  }
}

TEST(PromptLogprobs, AreRefusedWhereTheyCannotBe) {
  auto engine = must_open(engine_options(1));
  const auto why = [&](const SamplingParams& sampling) {
    return std::string(engine->check_request({1, 2, 3}, sampling).message());
  };
  EXPECT_EQ(why(telling(0, 2)), "");
  EXPECT_EQ(why(telling(21)), "prompt_logprobs is 21; accepted are at most 20");
  EXPECT_EQ(why(telling(0, 3)), "prompt_logprobs_from is 3; a prompt of 3 tokens accepts 0 to 2");
  EXPECT_EQ(why(telling(0, -1)), "prompt_logprobs_from is -1; accepted are 0 and more");
  EXPECT_EQ(why(telling(-1)), "max_tokens is 0; at least 1 is needed");
  EXPECT_EQ(why(telling(0, 0, -1)), "max_tokens is -1; at least 0 is needed");
  EXPECT_FALSE(engine->submit_computed({1, 2, 3}, telling(0)));
}

// ---- on a checkpoint ----

EngineOptions tiny_options(int tp) {
  EngineOptions options;
  options.model = kSource + "/checkpoints/tiny";
  options.tp = tp;
  options.max_batch = 8;
  options.max_context = 512;
  return options;
}

std::unique_ptr<Engine> open_tiny(const EngineOptions& options) {
  auto engine = Engine::open(options);
  EXPECT_TRUE(engine) << engine.status().to_string();
  return std::move(*engine);
}

// Every bit of what is told.
std::vector<std::uint32_t> bits_of(const std::vector<TokenLogprobs>& told) {
  std::vector<std::uint32_t> bits;
  for (const TokenLogprobs& each : told) {
    bits.push_back(std::bit_cast<std::uint32_t>(each.drawn));
    bits.push_back(static_cast<std::uint32_t>(each.rank));
    for (const auto& [id, logprob] : each.likeliest) {
      bits.push_back(static_cast<std::uint32_t>(id));
      bits.push_back(std::bit_cast<std::uint32_t>(logprob));
    }
  }
  return bits;
}

// Each prompt alone, in one piece, in an engine of its own that keeps nothing; then all together
// and beside others, in pieces, twice, in other stages.
void expect_the_same_bits(Target target, int tp) {
  SCOPED_TRACE(std::string(name(target)) + ", " + std::to_string(tp) + " ranks");
  std::mt19937 random(4);
  std::vector<Tokens> prompts;
  for (const int length : {2, 65, 190}) prompts.push_back(prompt_of(random, length, 960));
  prompts.push_back(prompts.back());  // begins as another, which may have kept it
  prompts.back().insert(prompts.back().end(), {5, 6, 7});
  EngineOptions options = tiny_options(tp);
  options.target = target;
  options.max_batch = 1;
  options.prefix_states = 0;
  options.max_tokens_per_step = 512;
  std::vector<std::vector<std::uint32_t>> wanted;
  for (const Tokens& prompt : prompts) {
    wanted.push_back(bits_of(tell_alone(*open_tiny(options), prompt, telling(3)).prompt));
    EXPECT_EQ(wanted.back().size(), (prompt.size() - 1) * 8);
  }
  EXPECT_GT(std::set(wanted.begin(), wanted.end()).size(), 3u);
  options.max_batch = 8;
  options.prefix_states = 16;
  for (const auto& [stage, step] : std::map<int, int>{{1, 72}, {3, 150}}) {
    SCOPED_TRACE("stage " + std::to_string(stage) + ", steps of " + std::to_string(step));
    options.force_stage = static_cast<StagePolicy>(stage);
    options.max_stage = stage;
    options.max_tokens_per_step = step;
    auto engine = open_tiny(options);
    for (int round = 0; round < 2; ++round) {
      std::map<RequestId, std::size_t> asked;
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        const auto id = engine->submit(prompts[i], telling(3, 0, static_cast<int>(i) % 2));
        ASSERT_TRUE(id) << id.status().to_string();
        asked[*id] = i;
        ASSERT_TRUE(engine->submit(prompts[(i + 1) % 3], greedy(2, true)));
      }
      AllTold all = run_told(*engine);
      for (const auto& [id, i] : asked) EXPECT_EQ(bits_of(all[id].prompt), wanted[i]) << i;
    }
  }
}

TEST(PromptLogprobs, DependOnTheSequenceAlone) {
  for (const int tp : {1, 2}) ASSERT_NO_FATAL_FAILURE(expect_the_same_bits(Target::kCpu, tp));
}

TEST(PromptLogprobs, DependOnTheSequenceAloneOnDevices) {
  const std::vector<Target> targets = device_targets();
  if (targets.empty()) GTEST_SKIP() << kNoDevice;
  for (const Target target : targets)
    for (const int tp : {1, 2}) ASSERT_NO_FATAL_FAILURE(expect_the_same_bits(target, tp));
}

std::int32_t golden_id(std::uint64_t x) {
  std::uint64_t z = x + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<std::int32_t>((z ^ (z >> 31)) % 960);
}

// Four forced tokens behind each golden prompt, by the logits of transformers: as near as its own
// two runs, in fp32 and in bf16, are to each other.
TEST(PromptLogprobs, AreNearThoseOfTransformers) {
  const auto file = SafetensorsFile::open(kSource + "/tests/data/goldens/tiny/logits.safetensors");
  ASSERT_TRUE(file) << file.status().to_string();
  const auto open = file->reopen();
  ASSERT_TRUE(open) << open.status().to_string();
  constexpr std::size_t kVocab = 1024;
  const auto logprob = [&](const std::string& name, std::size_t row, std::int32_t id) {
    std::vector<float> logits(kVocab);
    const auto bytes = std::as_writable_bytes(std::span(logits));
    EXPECT_TRUE(open->read(file->tensors().at(name).offset + row * bytes.size(), bytes.size(),
                           bytes.data()));
    double sum = 0;
    for (const float each : logits) sum += std::exp(double{each});
    return logits[static_cast<std::size_t>(id)] - std::log(sum);
  };
  auto engine = open_tiny(tiny_options(1));
  double ours = 0, theirs = 0, size = 0;
  for (const int length : {1, 2, 3, 63, 64, 65, 200}) {
    const auto number = static_cast<std::uint64_t>(length);
    Tokens prompt;
    for (std::uint64_t j = 0; j < number; ++j) prompt.push_back(golden_id(1000 * number + j));
    for (std::uint64_t step = 0; step < 4; ++step)
      prompt.push_back(golden_id(7777 + 1000 * number + step));
    const Told told = tell_alone(*engine, prompt, telling(0, length - 1));
    ASSERT_EQ(told.prompt.size(), 4u);
    for (std::size_t row = 0; row < 4; ++row) {
      const std::int32_t id = prompt[number + row];
      const std::string behind = ".T" + std::to_string(length);
      const double exact = logprob("fp32q" + behind, row, id);
      ours += std::pow(told.prompt[row].drawn - exact, 2);
      theirs += std::pow(logprob("bf16q" + behind, row, id) - exact, 2);
      size += exact * exact;
    }
  }
  EXPECT_LT(ours, 4 * theirs);
  EXPECT_LT(theirs, size / 100);
}

}  // namespace
}  // namespace tenon
