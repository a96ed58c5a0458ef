// Kept prefixes and preemption through the engine. With the model without weights: every token
// against an oracle, while prompts repeat, extend and fork earlier ones, are cancelled, evicted and
// preempted; that model refuses a step whose caches do not hold what its tables say. With real
// layers: every bit of the logits is that of a run that keeps nothing.
#include <gtest/gtest.h>

#include <random>

#include "tests/runtime/engine_driver.h"
#include "tests/runtime/witness.h"

namespace tenon {
namespace {

using test::Tokens;

// Prompts as agents, chats and samplers of many answers send them, out of what was said before.
class Conversations {
 public:
  Conversations(unsigned seed, int most_tokens, int num_ids)
      : random_(seed), most_(most_tokens), num_ids_(num_ids) {}

  Tokens next() {
    Tokens prompt;
    if (!said_.empty() && random_() % 4 != 0) {
      prompt = said_[random_() % said_.size()];
      const auto kind = random_() % 3;
      if (kind == 0) return prompt;                                 // asked again
      if (kind == 1) prompt.resize(1 + random_() % prompt.size());  // goes apart
      extend(prompt, 1 + static_cast<int>(random_() % 40));
    } else {
      const int least = random_() % 4 == 0 ? 1 : most_ / 3;
      extend(prompt, least + static_cast<int>(random_() % static_cast<unsigned>(most_)));
    }
    heard(prompt);
    return prompt;
  }
  // The whole of a turn: what the next prompt may begin with.
  void heard(const Tokens& tokens) {
    if (static_cast<int>(tokens.size()) > most_) return;
    said_.push_back(tokens);
    if (said_.size() > 12) said_.erase(said_.begin());
  }
  std::uint64_t random() { return random_(); }

 private:
  void extend(Tokens& prompt, int tokens) {
    for (int i = 0; i < tokens && static_cast<int>(prompt.size()) < most_; ++i)
      prompt.push_back(static_cast<std::int32_t>(random_() % static_cast<unsigned>(num_ids_)));
  }
  std::mt19937 random_;
  const int most_, num_ids_;
  std::vector<Tokens> said_;
};

struct Counts {
  PrefixStats prefixes;
  std::int64_t preemptions = 0, replayed_tokens = 0;
};

// Random conversations against the oracle. Some prompts have a token of poison, if there is any.
Counts converse(const EngineOptions& options, unsigned seed, int requests,
                const test::FakeOptions& fake = test::fake_options()) {
  auto engine = test::must_open(options, fake);
  Conversations talk(seed, options.max_context / 2, 59);
  std::map<RequestId, test::Answer> wanted;
  std::map<RequestId, Tokens> prompts;
  test::Answers answers;
  int submitted = 0;
  while (submitted < requests || !engine->idle()) {
    if (submitted < requests && talk.random() % 3 == 0) {
      const SamplingParams sampling =
          test::greedy(1 + static_cast<int>(talk.random() % 250), talk.random() % 4 != 0);
      Tokens prompt = talk.next();
      if (fake.poison >= 0 && talk.random() % 4 == 0)
        prompt[talk.random() % prompt.size()] = fake.poison;
      const int copies = talk.random() % 8 == 0 ? 3 : 1;
      for (int copy = 0; copy < copies; ++copy, ++submitted) {
        const auto id = engine->submit(prompt, sampling);
        EXPECT_TRUE(id) << id.status().to_string();
        if (!id) return {};
        prompts[*id] = prompt;
        wanted[*id] = test::oracle(prompt, sampling, options.max_context, fake);
      }
    }
    if (talk.random() % 60 == 0 && !wanted.empty()) {
      const auto at =
          std::next(wanted.begin(), static_cast<std::ptrdiff_t>(talk.random() % wanted.size()));
      const bool runs = answers[at->first].finish == Finish::kNone;
      EXPECT_EQ(static_cast<bool>(engine->cancel(at->first)), runs);
    }
    const auto events = engine->step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) return {};
    test::collect(*events, answers);
    for (const TokenEvent& event : *events) {
      if (event.finish == Finish::kNone || event.finish == Finish::kCancelled) continue;
      Tokens whole = prompts[event.id];
      const Tokens& answer = answers[event.id].tokens;
      whole.insert(whole.end(), answer.begin(), answer.end());
      talk.heard(whole);
    }
  }
  for (const auto& [id, answer] : wanted) {
    Tokens tokens = answer.tokens;
    const bool cancelled = answers[id].finish == Finish::kCancelled;
    if (cancelled) tokens.resize(answers[id].tokens.size());
    EXPECT_EQ(answers[id].tokens, tokens) << "request " << static_cast<std::uint64_t>(id);
    EXPECT_EQ(answers[id].finish, cancelled ? Finish::kCancelled : answer.finish);
  }
  const Status books = engine->check_caches();
  EXPECT_TRUE(books) << books.to_string();
  const EngineStats stats = engine->stats();
  return {stats.prefixes, stats.preemptions, stats.replayed_tokens};
}

EngineOptions small_caches(int tp) {
  EngineOptions options = test::engine_options(tp);
  options.max_context = 640;
  options.cache_tokens = 64 * 12;  // 4 sequences of 10 blocks share 12
  options.prefix_states = 3;
  return options;
}

TEST(PrefixCache, GivesTheOraclesTokensWhateverIsKeptEvictedOrPreempted) {
  for (const int tp : {1, 2}) {
    SCOPED_TRACE(tp);
    const Counts run = converse(small_caches(tp), 40u + unsigned(tp), tp == 1 ? 150 : 50);
    EXPECT_GT(run.prefixes.hits, 4);
    EXPECT_GT(run.prefixes.evicted_blocks, 20);
    EXPECT_GT(run.preemptions, 2);
    EXPECT_GT(run.replayed_tokens, 20);
  }
  EngineOptions options = small_caches(1);
  options.cache_tokens = 0;
  options.prefix_states = 1;
  const Counts run = converse(options, 43, 150);
  EXPECT_GT(run.prefixes.hits, 20);
  EXPECT_GT(run.prefixes.evicted_states, 20);
  EXPECT_EQ(run.preemptions, 0);
}

TEST(PrefixCache, KeepsNothingOfWhatHoldsNoNumber) {
  EngineOptions options = small_caches(2);
  options.cache_tokens = 0;
  const Counts run = converse(options, 7, 200, test::poisoned_options());
  EXPECT_GT(run.prefixes.hits, 20);
}

// What an agent sends: every prompt is the whole conversation so far. Each goes on from the last
// multiple of 64 of the prompt before, and only what is new is computed.
TEST(PrefixCache, AConversationIsComputedOnce) {
  EngineOptions options = test::engine_options(2);
  options.max_context = 3000;
  auto engine = test::must_open(options);
  Tokens prompt(150, 3);
  int before = 0;
  for (int turn = 0; turn < 8; ++turn) {
    const std::int64_t computed = engine->stats().prompt_tokens;
    const auto id = engine->submit(prompt, test::greedy(100, true));
    ASSERT_TRUE(id) << id.status().to_string();
    Tokens answer;
    int cached = -1;
    while (!engine->idle()) {
      const auto events = engine->step();
      ASSERT_TRUE(events) << events.status().to_string();
      for (const TokenEvent& event : *events) {
        answer.push_back(event.token);
        cached = event.cached_tokens;
      }
    }
    const int length = static_cast<int>(prompt.size());
    EXPECT_EQ(cached, turn == 0 ? 0 : (before - kEndTokens) / 64 * 64) << "turn " << turn;
    EXPECT_EQ(engine->stats().prompt_tokens - computed, length - cached);
    before = length;
    prompt.insert(prompt.end(), answer.begin(), answer.end());
    prompt.insert(prompt.end(), 60, turn);
  }
  EXPECT_EQ(engine->stats().prefixes.hits, 7);
}

TEST(PrefixCache, NothingIsKeptWhereNoStateMayBe) {
  EngineOptions options = test::engine_options(1);
  options.prefix_states = 0;
  auto engine = test::must_open(options);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(engine->submit(Tokens(200, 3), test::greedy(3, true)));
    test::run_to_end(*engine);
  }
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prompt_tokens, 400);
  EXPECT_EQ(stats.prefixes.lookups, 0);
  EXPECT_EQ(stats.prefixes.blocks, 0);
}

TEST(PrefixCache, RefusesCachesThatNoStepCanName) {
  EngineOptions options = test::engine_options(1);
  options.cache_tokens = std::int64_t{1} << 40;
  EXPECT_NE(Engine::check(options).message().find("cache_tokens is 1099511627776; accepted are 0"),
            std::string_view::npos);
  options = test::engine_options(1);
  options.prefix_states = -1;
  EXPECT_EQ(Engine::check(options).message(), "prefix_states is -1; accepted are 0 to 8192");
  options = test::engine_options(1);
  options.cache_tokens = 128;  // less than one sequence may have
  auto engine = test::must_open(options);
  EXPECT_TRUE(engine->submit(Tokens(100, 1), test::greedy(20)));
  const Status refused = engine->submit(Tokens(100, 1), test::greedy(100)).status();
  EXPECT_NE(refused.message().find("needs cache for 200 tokens"), std::string_view::npos)
      << refused.to_string();
}

// ---- real layers ----

struct Asked {
  Tokens prompt;
  SamplingParams sampling;
};

SamplingParams drawn(int max_tokens, std::uint64_t seed) {
  SamplingParams sampling = test::greedy(max_tokens, true);
  sampling.temperature = seed % 2 == 0 ? 0.0f : 1.0f;
  sampling.seed = seed;
  return sampling;
}

// Conversations of which the engine under test is told turn by turn.
std::vector<Tokens> run_all(const EngineOptions& options, const std::vector<Asked>& asked,
                            test::Record& record, unsigned seed, EngineStats* stats) {
  auto engine = Engine::open(options, test::witness_factory(options, record));
  EXPECT_TRUE(engine) << engine.status().to_string();
  std::vector<Tokens> made(asked.size());
  if (!engine) return made;
  std::mt19937 random(seed);
  std::map<RequestId, std::size_t> index;
  std::size_t submitted = 0;
  while (submitted < asked.size() || !(*engine)->idle()) {
    if (submitted < asked.size() && (random() % 3 == 0 || (*engine)->idle())) {
      const auto id = (*engine)->submit(asked[submitted].prompt, asked[submitted].sampling);
      EXPECT_TRUE(id) << id.status().to_string();
      if (!id) return made;
      index[*id] = submitted++;
    }
    const auto events = (*engine)->step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) return made;
    for (const TokenEvent& event : *events) made[index.at(event.id)].push_back(event.token);
  }
  *stats = (*engine)->stats();
  return made;
}

// Prompts that repeat, extend and fork what was asked and answered before, the answers as a run
// that keeps nothing gives them.
std::vector<Asked> conversations(const EngineOptions& cold, int count, unsigned seed, int num_ids,
                                 test::Record& record, std::vector<Tokens>* answers) {
  Conversations talk(seed, cold.max_context - 60, num_ids);
  std::vector<Asked> asked;
  for (int i = 0; i < count; ++i) {
    const int tokens = 1 + static_cast<int>(talk.random() % 12);
    asked.push_back({talk.next(), drawn(tokens, talk.random() % 1000)});
    EngineStats stats;
    answers->push_back(run_all(cold, {asked.back()}, record, 1, &stats)[0]);
    EXPECT_EQ(stats.prefixes.lookups, 0);
    Tokens whole = asked.back().prompt;
    whole.insert(whole.end(), answers->back().begin(), answers->back().end());
    talk.heard(whole);
  }
  return asked;
}

void expect_the_bits_of_cold_runs(const std::string& model, int num_ids, int count, int tp) {
  EngineOptions options;
  options.model = model;
  options.tp = tp;
  options.max_context = 448;
  options.max_tokens_per_step = 448;
  options.max_batch = 1;
  options.prefix_states = 0;
  test::Record record;
  std::vector<Tokens> answers;
  const auto asked = conversations(options, count, 3u + unsigned(tp), num_ids, record, &answers);
  ASSERT_EQ(record.differences(), 0);
  const std::size_t cold = record.size();

  options.max_batch = 4;
  std::int64_t hits = 0;
  for (unsigned round = 0; round < 3; ++round) {
    options.max_tokens_per_step = 68 + 60 * static_cast<int>(round);
    options.prefix_states = round == 0 ? 16 : 2;
    options.cache_tokens = round == 2 ? 64 * 8 : 0;
    EngineStats stats;
    EXPECT_EQ(run_all(options, asked, record, round, &stats), answers) << "round " << round;
    hits += stats.prefixes.hits;
  }
  EXPECT_EQ(record.differences(), 0) << "logits of one sequence in different bits";
  EXPECT_GE(record.size(), cold);
  EXPECT_GT(hits, count / 3);
}

TEST(PrefixCache, AHitHasTheBitsOfAColdRun) {
  const test::OnDisk files(test::moe_shape());
  for (const int tp : {1, 2}) {
    SCOPED_TRACE("tp " + std::to_string(tp));
    ASSERT_NO_FATAL_FAILURE(
        expect_the_bits_of_cold_runs(files.where(), 256, tp == 1 ? 30 : 15, tp));
  }
}

TEST(PrefixCache, AHitHasTheBitsOfAColdRunOfTheTrainedCheckpoint) {
  ASSERT_NO_FATAL_FAILURE(
      expect_the_bits_of_cold_runs(std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny", 400, 8, 2));
}

// Three answers of three blocks each share four: somebody runs again what it had drawn.
TEST(PrefixCache, APreemptedSequenceKeepsItsBits) {
  const test::OnDisk files(test::moe_shape());
  EngineOptions options;
  options.model = files.where();
  options.tp = 1;
  options.max_context = 192;
  options.max_batch = 1;
  options.prefix_states = 0;
  test::Record record;
  std::vector<Asked> asked;
  std::vector<Tokens> answers;
  EngineStats stats;
  for (int i = 0; i < 3; ++i) {
    asked.push_back({test::prompt(50 + i, 70 + i), drawn(100, 3u + unsigned(i))});
    answers.push_back(run_all(options, {asked.back()}, record, 1, &stats)[0]);
    EXPECT_EQ(answers.back().size(), 100u);
  }
  options.max_batch = 3;
  options.cache_tokens = 64 * 4;
  EXPECT_EQ(run_all(options, asked, record, 1, &stats), answers);
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_GT(stats.replayed_tokens, 0);
  EXPECT_EQ(record.differences(), 0);
}

// A state and blocks are what makes a hit: had one of them other bits, this would show it. The same
// text, drawn at first and given as a prompt now, has other bits: it is computed again.
TEST(PrefixCache, WhatWasDrawnIsNotKept) {
  const test::OnDisk files(test::moe_shape());
  EngineOptions options;
  options.model = files.where();
  options.tp = 1;
  options.max_context = 448;
  options.max_batch = 1;
  auto engine = Engine::open(options);
  ASSERT_TRUE(engine) << engine.status().to_string();
  const auto ask = [&](const Tokens& prompt, int tokens) {
    EXPECT_TRUE((*engine)->submit(prompt, drawn(tokens, 2)));
    Tokens made;
    while (!(*engine)->idle()) {
      const auto events = (*engine)->step();
      EXPECT_TRUE(events) << events.status().to_string();
      if (!events) break;
      for (const TokenEvent& event : *events) made.push_back(event.token);
    }
    return made;
  };
  Tokens prompt = test::prompt(140, 5);
  const Tokens answer = ask(prompt, 150);
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  ask(prompt, 1);
  EXPECT_EQ((*engine)->stats().prefixes.matched_tokens, 128);
  EXPECT_EQ((*engine)->stats().prompt_tokens, 140 + 290 - 128);
}

}  // namespace
}  // namespace tenon
