// The exchange as devices run it: blocks of several waves, the instances for two, four and eight
// ranks, and a memory on which the fence of one thread covers its block up to the last barrier only
// (tests/support/weak_memory.h). No call begins with a fence: the end of a kernel shows everything.
// The sound rules pass; then each barrier, fence, clear, slot and counter is taken away, and found
// to be missing.
#define TENON_TARGET weak_wave
#define TENON_WAVE 32
#define TENON_DEVICE_HEADER "tests/support/weak_wave_device.h"
#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>

#include "tenon/comm/collectives/all_reduce/all_reduce.cuh"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/launch.cuh"
#include "tests/support/targets.h"
#include "tests/support/weak_rules.h"
#include "tests/support/weak_series.h"

namespace tenon {
namespace {

namespace kernels = weak_wave::fused_allreduce_rmsnorm_quant;
using test::Weakness;
using test::WeakSeries;
using weak_wave::ChosenRules;
using weak_wave::Rule;

constexpr int kMostThreads = 512;

// A kernel of so many blocks, and its end.
template <class Launch>
Status run_kernel(int blocks, const Launch& launch) {
  weak_wave::begin_kernel(blocks, kMostThreads);
  const Status ran = launch();
  test::weak_memory->show_all();
  return ran;
}

Status launch_fused(std::string_view variant, int blocks,
                    const fused_allreduce_rmsnorm_quant::Args& args, const ChannelView& team,
                    Stream& stream) {
  const auto vectors = static_cast<int>(args.residual.shape[1] / 8);
  const auto rows = static_cast<int>(args.residual.shape[0]);
  const bool packs = variant.ends_with("packed"), one = variant.starts_with("one");
  const int tasks = one ? rows : (rows + team.size - 1) / team.size;
  LaunchShape shape;
  shape.blocks = std::min(blocks, tasks);
  // Plain rows of some calls with two vectors for each thread.
  shape.threads = !packs && vectors >= 128 && rows % 2 == 0 ? vectors / 2 : vectors;
  shape.cooperative = true;
  using kernels::Packed;
  using kernels::Plain;
  return run_kernel(shape.blocks + 1, [&] {  // and one for notes
    if (one && packs)
      return kernels::launch_one_shot<bf16, Packed, ChosenRules>(shape, args, &team, stream);
    if (one) return kernels::launch_one_shot<bf16, Plain, ChosenRules>(shape, args, &team, stream);
    if (packs)
      return kernels::launch_two_shot<bf16, Packed, ChosenRules>(shape, args, &team, stream);
    return kernels::launch_two_shot<bf16, Plain, ChosenRules>(shape, args, &team, stream);
  });
}
Status launch_all_reduce(const ChannelView& team, const TensorView& in, const TensorView& out,
                         Stream& stream) {
  PlanContext where;
  where.team_size = team.size;
  where.peer_pointers = true;
  where.properties.max_cooperative_blocks = team.max_blocks;
  where.may_start_early = team.may_start_early;
  where.mailbox_bytes = team.bytes;
  LaunchShape shape;
  TENON_TRY(weak_wave::collectives::shape_for(
      in.bytes(), where, weak_wave::all_reduce::slot_in(team.bytes, team.size), 0, &shape));
  return run_kernel(team.max_blocks, [&] {
    return weak_wave::all_reduce::launch_all_reduce<ChosenRules>(shape, {in, out}, team, stream);
  });
}

using Variants = std::vector<std::string_view>;
const Variants kOne = {"one_shot"}, kTwo = {"two_shot"}, kReduce = {"all_reduce"};
const Variants kPackedOne = {"one_shot_packed"}, kPackedTwo = {"two_shot_packed"};
const Variants kMixed = {"one_shot", "two_shot", "one_shot_packed", "two_shot_packed",
                         "all_reduce"};
const std::vector<Variants> kEach = {kOne, kTwo, kPackedOne, kPackedTwo, kReduce};

class WeakWaves : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!backend(Target::kEmu32)) GTEST_SKIP() << "this build has no emulated waves";
    ChosenRules::kFencesCalls = ChosenRules::kOrdersHops = false;  // as on devices
  }

  // Calls of one and of many generations, each of the least size; ranks, waves and threads that lag
  // at a look or rest after a clear.
  static WeakSeries series_of(const Variants& variants) {
    WeakSeries series;
    series.variants = variants;
    series.weakness = Weakness::kLateClears;
    series.hidden = 512;
    series.max_rows = 25;
    series.mailbox_rows = 1;
    series.max_blocks = 3;
    series.calls = 10;
    series.lags = 1500;
    series.lingers = 512;
    return series;
  }
  static std::string run(const WeakSeries& series) {
    return test::run_series(series, {Target::kEmu32, launch_fused, launch_all_reduce});
  }
  static std::string first_finding(const WeakSeries& series, int seeds) {
    return test::first_finding(series, seeds, {Target::kEmu32, launch_fused, launch_all_reduce});
  }
};

using SoundWaves = WeakWaves;
using BrokenWaves = WeakWaves;

void PrintSeries(const WeakSeries& series, std::ostream& out) {
  out << "team " << series.team << ", " << series.variants.front() << " and "
      << series.variants.size() - 1 << " more, weakness " << static_cast<int>(series.weakness)
      << ", seed " << series.seed;
}

// TEST_FULL runs forty times as many series.
TEST_F(SoundWaves, NothingIsFound) {
  const std::uint32_t rounds = std::getenv("TEST_FULL") != nullptr ? 40 : 1;
  std::uint32_t seed = 0;
  for (std::uint32_t round = 0; round < rounds; ++round) {
    for (int team : {2, 3, 4, 5}) {
      for (const Variants& variants : {kMixed, kOne, kTwo, kPackedOne, kPackedTwo, kReduce}) {
        WeakSeries series = series_of(variants);
        series.deadline_ns = 20'000'000'000;  // nothing is lost, but cores may be
        series.team = team;
        series.seed = ++seed;
        if (seed % 5 == 0) series.weakness = Weakness::kShuffled;
        series.plain = seed % 2 == 0;
        if (team > 3) series.calls = 6;
        if (seed % 7 == 3) series.mailbox_rows = 8;
        std::ostringstream what;
        PrintSeries(series, what);
        ASSERT_EQ(run(series), "") << what.str();
      }
    }
  }
}

TEST_F(BrokenWaves, WordsThatAreNotCleared) {
  const Rule broken(ChosenRules::kClears, false);
  for (const Variants& variants : kEach) EXPECT_NE(first_finding(series_of(variants), 4), "");
}

// Others cover what the block takes with a barrier of their own: a row's norm.
TEST_F(BrokenWaves, GenerationsWithoutBarrier) {
  const Rule broken(ChosenRules::kMeets, false);
  EXPECT_NE(first_finding(series_of(kReduce), 16), "");
}

TEST_F(BrokenWaves, GenerationsWithoutFence) {
  const Rule broken(ChosenRules::kFences, false);
  for (const Variants& variants : kEach) EXPECT_NE(first_finding(series_of(variants), 16), "");
}

TEST_F(BrokenWaves, TwoSlots) {
  const Rule broken(ChosenRules::kSlots, 2);
  EXPECT_NE(first_finding(series_of(kMixed), 16), "");
}

TEST_F(BrokenWaves, GenerationsOfOneStep) {
  const Rule broken(ChosenRules::kLeastSteps, 1);
  for (const Variants& variants : {kTwo, kPackedTwo})
    EXPECT_NE(first_finding(series_of(variants), 16), "");
}

TEST_F(BrokenWaves, CountersThatAreSetBeforeTheyAreRead) {
  const Rule broken(ChosenRules::kReadsFirst, false);
  for (const Variants& variants : kEach) EXPECT_NE(first_finding(series_of(variants), 4), "");
}

TEST_F(BrokenWaves, BlocksBeyondTheGridThatAreNotCounted) {
  const Rule broken(ChosenRules::kCountsAll, false);
  // Not all_reduce alone: its vectors are of the same blocks in every call.
  for (const Variants& variants : {kMixed, kOne, kTwo, kPackedOne, kPackedTwo})
    EXPECT_NE(first_finding(series_of(variants), 16), "") << variants.front();
}

TEST_F(BrokenWaves, CountersThatStandStill) {
  const Rule broken(ChosenRules::kAdvances, false);
  EXPECT_NE(first_finding(series_of(kMixed), 8), "");
}

TEST_F(BrokenWaves, RanksInDifferentSlots) {
  const Rule broken(ChosenRules::kSharesSlot, false);
  for (const Variants& variants : kEach) EXPECT_NE(first_finding(series_of(variants), 2), "");
}

TEST_F(BrokenWaves, SentinelsSentAsData) {
  const Rule broken(ChosenRules::kReplaces, false);
  for (const Variants& variants : kEach) {
    WeakSeries series = series_of(variants);
    series.plain = false;
    EXPECT_NE(first_finding(series, 4), "");
  }
}

TEST_F(BrokenWaves, SumsInAnotherOrder) {
  const Rule broken(ChosenRules::kRankOrder, false);
  for (const Variants& variants : {kOne, kTwo, kPackedOne, kPackedTwo})
    EXPECT_NE(first_finding(series_of(variants), 2), "");
}

}  // namespace
}  // namespace tenon
