// What benchmarks ask of an engine: several stage policies over one copy of the weights, sequences
// that begin at a length, caches that are made, times of the device.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "tenon/runtime/engine.h"

namespace tenon {
namespace {

const std::string kModel = std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny";
constexpr int kLength = 100, kSteps = 6, kSequences = 3;

EngineOptions options_of(int tp) {
  EngineOptions options;
  options.model = kModel;
  options.tp = tp;
  options.max_batch = 4;
  options.max_context = 256;
  options.more_stages = {StagePolicy::kGeneric, StagePolicy::kMixed};
  options.time_steps = true;
  return options;
}

std::unique_ptr<Engine> open(int tp) {
  auto engine = Engine::open(options_of(tp));
  EXPECT_TRUE(engine) << engine.status().to_string();
  return engine ? *std::move(engine) : nullptr;
}

std::vector<std::int32_t> prompt(int sequence) {
  std::vector<std::int32_t> ids(kLength);
  for (int i = 0; i < kLength; ++i)
    ids[static_cast<std::size_t>(i)] = (sequence * 31 + i * 7) % 500;
  return ids;
}

// The tokens of kSequences sequences that decode kSteps steps from kLength tokens on.
std::vector<std::int32_t> decode(Engine& engine) {
  SamplingParams sampling;
  sampling.max_tokens = kSteps;
  sampling.ignore_eos = true;
  for (int i = 0; i < kSequences; ++i) EXPECT_TRUE(engine.submit_computed(prompt(i), sampling));
  std::vector<std::int32_t> drawn;
  for (int step = 0; step < kSteps; ++step) {
    const auto events = engine.step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) return drawn;
    EXPECT_EQ(events->size(), std::size_t{kSequences}) << "every sequence draws in every step";
    for (const TokenEvent& each : *events) drawn.push_back(each.token);
  }
  EXPECT_TRUE(engine.idle());
  return drawn;
}

TEST(EngineMeasure, EveryArmDrawsTheSameTokensFromTheSameCaches) {
  for (const int tp : {1, 2}) {
    const auto engine = open(tp);
    ASSERT_NE(engine, nullptr);
    std::vector<std::int32_t> first;
    for (int turn = 0; turn < 6; ++turn) {
      const Status chosen = engine->use_arm(turn % 3);
      ASSERT_TRUE(chosen) << chosen.to_string();
      const Status made = engine->make_caches();
      ASSERT_TRUE(made) << made.to_string();
      const auto drawn = decode(*engine);
      if (turn == 0) first = drawn;
      EXPECT_EQ(drawn, first) << "tp " << tp << ", turn " << turn;
    }
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.steps, 6 * kSteps);
    EXPECT_EQ(stats.decode_tokens, 6 * kSteps * kSequences);
    std::uint64_t fused = 0, generic = 0;
    for (const BoundaryUse& use : stats.boundaries)
      (use.stage == Stage::kOneKernel ? fused : generic) +=
          use.site == "embedding" && use.stage != Stage::kTwoKernels ? use.count : 0;
    // The embedding's boundary: fused in arm 0 and in the mixed arm, which begins with stage 1.
    EXPECT_EQ(fused, 4u * kSteps);
    EXPECT_EQ(generic, 2u * kSteps);
  }
}

TEST(EngineMeasure, ADeviceTimeLiesWithinTheWallClocks) {
  const auto engine = open(2);
  ASSERT_NE(engine, nullptr);
  const auto begin = std::chrono::steady_clock::now();
  decode(*engine);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
  const double on_device = engine->stats().device_seconds;
  EXPECT_GT(on_device, 0);
  EXPECT_LE(on_device, passed.count());
}

TEST(EngineMeasure, RefusalsSayWhatIsAccepted) {
  const auto engine = open(2);
  ASSERT_NE(engine, nullptr);
  EXPECT_NE(engine->use_arm(3).message().find("arm is 3; accepted are 0 to 2"), std::string::npos)
      << engine->use_arm(3).to_string();
  ASSERT_TRUE(engine->submit(prompt(0), {}));
  const Status busy = engine->make_caches();
  EXPECT_EQ(busy.code(), Code::kInvalidArgument);
  EXPECT_NE(busy.message().find("accepted is an idle engine"), std::string::npos);
  EXPECT_TRUE(engine->step()) << "a refusal leaves the engine as it was";
  EXPECT_FALSE(engine->submit_computed({}, {}));
}

TEST(EngineMeasure, StepCostsComeFromTheModel) {
  const auto engine = open(2);
  ASSERT_NE(engine, nullptr);
  const StepCost one = engine->step_cost({.tokens = 1, .sequences = 1, .context = 10});
  const StepCost longer = engine->step_cost({.tokens = 1, .sequences = 1, .context = 200});
  EXPECT_GT(one.weight_bytes, 0);
  EXPECT_LT(one.weight_bytes, static_cast<double>(engine->stats().weight_bytes));
  EXPECT_EQ(one.weight_bytes, longer.weight_bytes);
  EXPECT_GT(longer.cache_bytes, one.cache_bytes);
}

}  // namespace
}  // namespace tenon
