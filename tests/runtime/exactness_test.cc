// The promise of docs/exactness.md from end to end: a token, and every bit of its logits, depends
// on its sequence alone. The same prompts run alone, together, in random order and with random
// limits of a step; whatever a step holds, each sequence's logits are hashed under the tokens it
// has so far.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/runtime/witness.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::Tokens;

struct Way {
  int max_batch = 1;
  int max_tokens_per_step = 0;
  StagePolicy force_stage = StagePolicy::kFree;
};

class Exactness : public testing::Test {
 protected:
  // Prompts of every kind: one token, any number, around the multiples of 64, beyond a partial of
  // attention.
  void make_prompts(int count, unsigned seed) {
    std::mt19937 random(seed);
    const auto below = [&](int limit) {
      return static_cast<int>(random() % static_cast<unsigned>(limit));
    };
    for (int i = 0; i < count; ++i) {
      int length = 1 + below(70);
      if (i == 0) length = 1;
      if (i % 4 == 1) length = 64 * (1 + below(2)) - 1 + i / 4 % 4;
      if (i % 16 == 2) length = 250 + below(80);
      prompts_.push_back(test::prompt(length, 1000 + i));
    }
  }

  // Runs the prompts in this order; the tokens that each got, in the order of prompts_.
  std::map<std::size_t, Tokens> run(const EngineOptions& base, const Way& way,
                                    const std::vector<std::size_t>& order) {
    EngineOptions options = base;
    options.max_batch = way.max_batch;
    options.max_tokens_per_step = way.max_tokens_per_step;
    options.force_stage = static_cast<StagePolicy>(way.force_stage);
    auto engine = Engine::open(options, test::witness_factory(options, record_));
    EXPECT_TRUE(engine) << engine.status().to_string();
    std::map<std::size_t, Tokens> made;
    if (!engine) return made;
    std::map<RequestId, std::size_t> asked;
    for (const std::size_t each : order) {
      const auto id = (*engine)->submit(prompts_[each], sampling(each));
      EXPECT_TRUE(id) << id.status().to_string();
      if (id) asked[*id] = each;
    }
    while (!(*engine)->idle()) {
      const auto events = (*engine)->step();
      EXPECT_TRUE(events) << events.status().to_string();
      if (!events) break;
      for (const TokenEvent& event : *events) made[asked.at(event.id)].push_back(event.token);
    }
    return made;
  }

  // Every second request draws; its seed is its own.
  static SamplingParams sampling(std::size_t prompt) {
    SamplingParams params;
    params.max_tokens = kDrawn;
    params.ignore_eos = true;
    params.temperature = prompt % 2 == 0 ? 0.0f : 1.0f;
    params.seed = 5 + prompt;
    return params;
  }

  // All of the prompts, in every way.
  void hold(Target target, const std::string& model, std::initializer_list<int> teams);

  std::vector<std::size_t> in_order() const {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < prompts_.size(); ++i) order.push_back(i);
    return order;
  }

  static constexpr int kDrawn = 4;
  std::vector<Tokens> prompts_;
  test::Record record_;
};

// All in one engine that runs one sequence at a time; then 16 and 64 at a time, shuffled, with
// random limits, in each stage.
void Exactness::hold(Target target, const std::string& model, std::initializer_list<int> teams) {
  for (const int tp : teams) {
    SCOPED_TRACE(std::string(name(target)) + ", tp " + std::to_string(tp));
    EngineOptions options;
    options.model = model;
    options.target = target;
    options.tp = tp;
    options.max_context = 400;
    const auto alone = run(options, {.max_batch = 1, .max_tokens_per_step = 400}, in_order());
    ASSERT_EQ(alone.size(), prompts_.size());
    for (const auto& [prompt, tokens] : alone) EXPECT_EQ(tokens.size(), std::size_t{kDrawn});
    const std::size_t seen = record_.size();
    EXPECT_GE(seen, prompts_.size() * kDrawn * static_cast<std::size_t>(tp));

    std::mt19937 random(17 + static_cast<unsigned>(tp));
    EXPECT_EQ(run(options, {.max_batch = 64, .max_tokens_per_step = 4096}, in_order()), alone);
    for (int round = 0; round < 3; ++round) {
      if (tp == 1 && round == 1) continue;  // one rank has no stages
      std::vector<std::size_t> order = in_order();
      std::shuffle(order.begin(), order.end(), random);
      Way way{.max_batch = round == 0 ? 64 : 16,
              .force_stage = static_cast<StagePolicy>(1 + round)};
      way.max_tokens_per_step = 64 + way.max_batch + static_cast<int>(random() % 200);
      EXPECT_EQ(run(options, way, order), alone)
          << way.max_batch << " sequences, " << way.max_tokens_per_step << " tokens a step";
    }
    EXPECT_EQ(record_.differences(), 0) << "logits of one sequence in different bits";
    record_.clear();  // another number of ranks rounds its sums elsewhere
  }
}

TEST_F(Exactness, ATokenAndItsLogitsDependOnTheirSequenceAlone) {
  const test::OnDisk files(test::moe_shape());
  make_prompts(64, 3);
  hold(Target::kCpu, files.where(), {1, 2});
}

TEST_F(Exactness, HoldsOnDevices) {
  const std::vector<Target> targets = test::device_targets();
  if (targets.empty()) GTEST_SKIP() << test::kNoDevice;
  const test::OnDisk experts(test::moe_shape()), dense(test::dense_shape());
  make_prompts(64, 3);
  for (const Target target : targets)
    for (const test::OnDisk* files : {&experts, &dense}) hold(target, files->where(), {1, 2, 4});
}

// The emulated targets are slow: a small model and a few prompts, one of them cut.
TEST_F(Exactness, HoldsOnTheEmulatedTargets) {
  test::TinyShape shape = test::moe_shape();
  shape.hidden = 128;
  shape.heads = 2;
  shape.kv_heads = 1;
  shape.k_heads = 1;
  shape.v_heads = 2;
  shape.shared_intermediate = 128;
  const test::OnDisk files(shape);
  prompts_ = {test::prompt(1, 1), test::prompt(70, 2), test::prompt(5, 3)};
  for (const Target target : {Target::kEmu32, Target::kEmu64}) {
    if (!properties(Device{target, 0})) continue;  // not in this build
    SCOPED_TRACE(name(target));
    EngineOptions options;
    options.model = files.where();
    options.target = target;
    options.max_context = 80;
    const auto alone = run(options, {.max_batch = 1, .max_tokens_per_step = 80}, in_order());
    EXPECT_EQ(run(options, {.max_batch = 3, .max_tokens_per_step = 67}, {1, 2, 0}), alone);
    EXPECT_EQ(record_.differences(), 0);
    record_.clear();  // the next target's bits are its own
  }
}

}  // namespace
}  // namespace tenon
