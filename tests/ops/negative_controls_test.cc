// The centre piece with one rule of its exchange broken, and proof that the tests' way of looking
// catches each. The sound rules pass the same runs, on a memory as weak as the protocol allows
// (tests/support/weak_memory.h). Here a block is one thread, as on cpu; weak_waves_test.cc has
// blocks of waves and the rules of devices.
#define TENON_TARGET weak
#define TENON_WAVE 1
#define TENON_DEVICE_HEADER "tests/support/weak_device.h"
#include <gtest/gtest.h>

#include "tenon/ops/fused_allreduce_rmsnorm_quant/launch.cuh"
#include "tests/support/weak_rules.h"
#include "tests/support/weak_series.h"

namespace tenon {
namespace {

namespace kernels = weak::fused_allreduce_rmsnorm_quant;
using test::Weakness;
using test::WeakSeries;
using weak::ChosenRules;
using weak::Rule;

Status launch_fused(std::string_view variant, int blocks,
                    const fused_allreduce_rmsnorm_quant::Args& args, const ChannelView& team,
                    Stream& stream) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.cooperative = true;
  using kernels::Packed;
  using kernels::Plain;
  if (variant == "one_shot")
    return kernels::launch_one_shot<bf16, Plain, ChosenRules>(shape, args, &team, stream);
  if (variant == "one_shot_packed")
    return kernels::launch_one_shot<bf16, Packed, ChosenRules>(shape, args, &team, stream);
  if (variant == "two_shot")
    return kernels::launch_two_shot<bf16, Plain, ChosenRules>(shape, args, &team, stream);
  return kernels::launch_two_shot<bf16, Packed, ChosenRules>(shape, args, &team, stream);
}

std::string run_series(const WeakSeries& series) {
  return test::run_series(series, {Target::kCpu, launch_fused, nullptr});
}
std::string first_finding(const WeakSeries& series, int seeds) {
  return test::first_finding(series, seeds, {Target::kCpu, launch_fused, nullptr});
}

using Variants = std::vector<std::string_view>;
const Variants kOne = {"one_shot"}, kTwo = {"two_shot"}, kBoth = {"one_shot", "two_shot"};
const Variants kPackedOne = {"one_shot_packed"}, kPackedTwo = {"two_shot_packed"};
const Variants kMixed = {"one_shot", "two_shot", "one_shot_packed", "two_shot_packed"};

constexpr std::uint64_t kPatient = 20'000'000'000;  // nothing is lost, but cores may be

// Ranks that lag, as every test has them.
WeakSeries series_of(const Variants& variants) {
  WeakSeries series;
  series.variants = variants;
  series.lags = 16;
  series.deadline_ns = 300'000'000;  // short: what broken rules lose is waited for
  series.max_blocks = 2;
  return series;
}
// Calls of many generations each.
WeakSeries long_series_of(const Variants& variants) {
  WeakSeries series = series_of(variants);
  series.min_rows = 121;
  series.max_rows = 181;
  series.mailbox_rows = 1;
  series.calls = 1;
  series.max_blocks = 1;
  return series;
}

TEST(SoundProtocol, PassesOnEveryAllowedMemory) {
  for (Weakness weakness : {Weakness::kNone, Weakness::kShuffled, Weakness::kLateClears}) {
    for (const Variants& variants : {kOne, kTwo, kBoth, kMixed}) {
      for (int team : {1, 2, 3, 5}) {
        WeakSeries series = series_of(variants);
        series.deadline_ns = kPatient;
        series.weakness = weakness;
        series.team = team;
        series.max_rows = 5;
        series.calls = 16;
        ASSERT_EQ(run_series(series), "") << static_cast<int>(weakness) << " " << team;
      }
    }
  }
}

TEST(SoundProtocol, PassesInChunksWithEverySpecialValue) {
  for (const Variants& variants : {kOne, kTwo, kBoth, kPackedOne, kPackedTwo, kMixed}) {
    WeakSeries series = series_of(variants);
    series.deadline_ns = kPatient;
    series.weakness = Weakness::kLateClears;
    series.max_rows = 24;
    series.mailbox_rows = 1;
    series.plain = false;
    series.calls = 16;
    ASSERT_EQ(run_series(series), "");
    series.min_blocks = series.max_blocks = 64;  // those that have work then have the least
    series.seed = 2;
    ASSERT_EQ(run_series(series), "");
  }
}

TEST(NegativeControl, WordsThatAreNotClearedAreTakenAgain) {
  const Rule broken(ChosenRules::kClears, false);
  for (const Variants& variants : {kOne, kTwo, kBoth, kPackedOne, kPackedTwo})
    EXPECT_NE(first_finding(series_of(variants), 1), "");
}

TEST(NegativeControl, MissingFencesBetweenCallsLoseWords) {
  const Rule broken(ChosenRules::kFencesCalls, false);
  for (const Variants& variants : {kOne, kTwo, kBoth, kPackedOne, kPackedTwo}) {
    WeakSeries series = series_of(variants);
    series.weakness = Weakness::kLateClears;
    series.max_rows = 5;
    EXPECT_NE(first_finding(series, 8), "");
  }
}

// The fence of a hop covers that of a generation here, where a block is one thread.
TEST(NegativeControl, MissingFencesBetweenGenerationsLoseWords) {
  const Rule as_on_devices(ChosenRules::kOrdersHops, false);
  const Rule broken(ChosenRules::kFences, false);
  for (const Variants& variants : {kOne, kTwo, kBoth, kPackedOne, kPackedTwo}) {
    WeakSeries series = long_series_of(variants);
    series.weakness = Weakness::kLateClears;
    EXPECT_NE(first_finding(series, 8), "");
  }
}

// Not in two shots alone: there a result leaves its owner only after all parts of its row were
// taken, so nobody is fast enough.
TEST(NegativeControl, StaleCounterLetsFastRanksOverwrite) {
  const Rule broken(ChosenRules::kAdvances, false);
  for (const Variants& variants : {kOne, kBoth}) {
    WeakSeries series = series_of(variants);
    series.weakness = Weakness::kNone;
    EXPECT_NE(first_finding(series, 8), "");
  }
}

// Where generations overlap, a rank may send the first part of one while its peer still owes the
// clears of the last two steps.
TEST(NegativeControl, GenerationsOfOneStepOverlapTooFar) {
  const Rule as_on_devices(ChosenRules::kOrdersHops, false);
  WeakSeries series = long_series_of(kTwo);
  series.weakness = Weakness::kLateClears;
  series.lingers = 16;
  series.min_rows = series.max_rows;
  series.min_blocks = series.max_blocks = 64;  // as many as a generation has stripes for have work
  series.team = 2;
  EXPECT_EQ(first_finding(series, 4), "");
  const Rule broken(ChosenRules::kLeastSteps, 1);
  EXPECT_NE(first_finding(series, 8), "");
}

TEST(NegativeControl, RanksInDifferentGenerationsMiss) {
  const Rule broken(ChosenRules::kSharesSlot, false);
  for (const Variants& variants : {kOne, kTwo}) {
    WeakSeries series = series_of(variants);
    series.team = 2;
    EXPECT_NE(first_finding(series, 1), "");
  }
}

TEST(NegativeControl, RotatedSumsGiveOtherBits) {
  const Rule broken(ChosenRules::kRankOrder, false);
  for (const Variants& variants : {kOne, kTwo}) {
    WeakSeries series = series_of(variants);
    series.lags = 0;
    const std::string found = first_finding(series, 1);
    EXPECT_NE(found.find("must be"), std::string::npos) << found;
  }
}

TEST(NegativeControl, SentinelSentAsDataNeverArrives) {
  const Rule broken(ChosenRules::kReplaces, false);
  for (const Variants& variants : {kOne, kTwo}) {
    WeakSeries series = series_of(variants);
    series.plain = false;
    series.team = 2;
    const std::string found = first_finding(series, 4);
    EXPECT_NE(found.find("a wait for rank"), std::string::npos) << found;
  }
}

}  // namespace
}  // namespace tenon
