// Broken variants of the centre piece, compiled here from its own source, and proof that the tests'
// way of looking catches each: no clearing, no fences, a counter that stands still, ranks in
// different slots, sums in another order, a sentinel sent as data. The sound variant passes the
// same runs, on a memory as weak as the protocol allows (tests/support/weak_memory.h).
#define TENON_TARGET weak
#define TENON_WAVE 1
#define TENON_DEVICE_HEADER "tests/support/weak_device.h"
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.cu"
#include "tests/support/fused_run.h"
#include "tests/support/hand_made_team.h"

namespace tenon {
namespace {

namespace kernels = weak::fused_allreduce_rmsnorm_quant;
using testing::BoundaryTensors;
using testing::FusedCase;
using testing::HandMadeTeam;
using testing::WeakMemory;
using testing::Weakness;
using weak::Sound;

struct NoClears : Sound {
  static constexpr bool kClears = false;
};
struct NoFences : Sound {
  static constexpr bool kFences = false, kFencesCalls = false, kOrdersHops = false;
};
struct StaleCounter : Sound {
  static constexpr bool kAdvances = false;
};
struct WrongGeneration : Sound {
  static constexpr bool kSharesSlot = false;
};
struct RotatedOrder : Sound {
  static constexpr bool kRankOrder = false;
};
struct AsOnDevices : Sound {
  static constexpr bool kOrdersHops = false;
};
struct OneStep : AsOnDevices {
  static constexpr int kLeastSteps = 1;
};
struct SentinelAsData : Sound {
  static constexpr bool kReplaces = false;
};

// One series of calls by ranks as threads over one mailbox.
struct Series {
  std::uint64_t deadline_ns = 300'000'000;  // short: what broken rules lose is waited for
  int team = 3, calls = 40;
  std::vector<std::string_view> variants = {"one_shot"};  // in turn
  Weakness weakness = Weakness::kShuffled;
  int min_rows = 1, max_rows = 5, hidden = 64, mailbox_rows = 8;
  int blocks = 1;        // of a kernel; they run one after the other
  bool plain = true;     // no NaN among the inputs
  bool lingers = false;  // ranks rest after clears
  bool lags = true;      // now and then a rank looks late for what was sent to it
  std::uint32_t seed = 1;
};

struct Prepared {
  FusedCase call;
  testing::BoundaryInputs inputs;
  testing::BoundaryOutputs expected;
};
std::vector<Prepared> prepare(const Series& series) {
  std::vector<Prepared> calls(8);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    testing::BoundaryCase& shape = calls[i].call.shape;
    shape.team = series.team;
    shape.rows = std::max(series.min_rows, 1 + static_cast<int>(i * 3) % series.max_rows);
    shape.hidden = series.hidden << (i % 2);
    shape.group = 32;
    shape.want_bf16 = i % 3 != 0;
    shape.weight_dtype = DType::kF32;
    calls[i].inputs = testing::make_inputs(shape, i, series.plain);
    calls[i].expected = testing::boundary_oracle(shape, calls[i].inputs);
  }
  return calls;
}

template <class Rules>
Status launch_broken(std::string_view variant, int blocks,
                     const fused_allreduce_rmsnorm_quant::Args& args, const TeamView& team,
                     Stream& stream) {
  const LaunchShape shape{blocks, 1, true, 0};
  using kernels::Packed;
  using kernels::Plain;
  if (variant == "one_shot")
    return kernels::launch_one_shot<bf16, Plain, Rules>(shape, args, &team, stream);
  if (variant == "one_shot_packed")
    return kernels::launch_one_shot<bf16, Packed, Rules>(shape, args, &team, stream);
  if (variant == "two_shot")
    return kernels::launch_two_shot<bf16, Plain, Rules>(shape, args, &team, stream);
  return kernels::launch_two_shot<bf16, Packed, Rules>(shape, args, &team, stream);
}

// What one rank finds wrong, or nothing.
template <class Rules>
std::string run_rank(const Series& series, const std::vector<Prepared>& prepared, int rank,
                     const HandMadeTeam& team, const std::atomic<bool>& stop) {
  const Device device{Target::kCpu, 0};
  auto stream = Stream::create(device);
  TENON_CHECK(static_cast<bool>(stream));
  WeakMemory memory(series.weakness, series.seed * 8 + static_cast<std::uint32_t>(rank));
  if (series.lingers) memory.linger();
  testing::weak_memory = &memory;
  std::vector<BoundaryTensors> tensors;
  tensors.reserve(prepared.size());
  for (const Prepared& each : prepared)
    tensors.emplace_back(each.call.shape, each.inputs, rank, device, *stream);
  std::mt19937 random(series.seed + 100 * static_cast<std::uint32_t>(rank));
  std::string wrong;
  for (int n = 0; n < series.calls && wrong.empty() && !stop; ++n) {
    const auto i = static_cast<std::size_t>(n) % prepared.size();
    const std::string_view variant =
        series.variants[static_cast<std::size_t>(n) % series.variants.size()];
    tensors[i].reset(*stream);
    if (series.lags && random() % 6 == 0) memory.lag_once(std::chrono::microseconds(2000));
    const Status ran = launch_broken<Rules>(variant, series.blocks,
                                            testing::fused_args(prepared[i].call, tensors[i]),
                                            team.view(rank), *stream);
    if (!ran) wrong = ran.to_string();
    if (wrong.empty() && team.fault(rank).claimed != 0)
      wrong = "a wait for rank " + std::to_string(team.fault(rank).awaited_rank) + " failed";
    if (wrong.empty())
      wrong = testing::compare_fused(prepared[i].call, tensors[i], prepared[i].expected, variant,
                                     rank, *stream);
    if (!wrong.empty()) wrong = "call " + std::to_string(n) + ": " + wrong;
  }
  memory.fence();
  testing::weak_memory = nullptr;
  return wrong;
}

// What the first rank that found something says, or nothing.
template <class Rules>
std::string run_series(const Series& series) {
  const std::vector<Prepared> prepared = prepare(series);
  const HandMadeTeam team(series.team,
                          fused_allreduce_rmsnorm_quant::mailbox_bytes(
                              series.mailbox_rows, 2 * series.hidden, DType::kBF16, series.team),
                          series.deadline_ns);
  std::atomic<bool> stop = false;
  std::vector<std::string> found(static_cast<std::size_t>(series.team));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < series.team; ++rank)
    threads.emplace_back([&, rank] {
      std::string& mine = found[static_cast<std::size_t>(rank)];
      mine = run_rank<Rules>(series, prepared, rank, team, stop);
      if (mine.empty()) return;
      if (stop.exchange(true)) return mine.clear();   // follows from what the first one did
      for (int peer = 0; peer < series.team; ++peer)  // nobody need wait for the deadline
        std::atomic_ref(*team.view(rank).abort_word[peer]).store(1u + static_cast<unsigned>(rank));
    });
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < series.team; ++rank) {
    if (!found[static_cast<std::size_t>(rank)].empty())
      return "rank " + std::to_string(rank) + ", " + found[static_cast<std::size_t>(rank)];
    if (!stop && !team.is_empty(rank))
      found.push_back("rank " + std::to_string(rank) + " has words left");
  }
  return found.size() > static_cast<std::size_t>(series.team) ? found.back() : std::string();
}

// The same series with several seeds: the first that shows something.
template <class Rules>
std::string first_finding(Series series, int seeds) {
  std::string found;
  for (int s = 0; s < seeds && found.empty(); ++s) {
    series.seed = static_cast<std::uint32_t>(s + 1);
    found = run_series<Rules>(series);
  }
  return found;
}

const std::vector<std::string_view> kOne = {"one_shot"};
const std::vector<std::string_view> kTwo = {"two_shot"};
const std::vector<std::string_view> kBoth = {"one_shot", "two_shot", "two_shot", "one_shot",
                                             "two_shot"};

const std::vector<std::string_view> kPackedOne = {"one_shot_packed"};
const std::vector<std::string_view> kPackedTwo = {"two_shot_packed"};
// Packed and plain calls on one mailbox.
const std::vector<std::string_view> kMixed = {"one_shot_packed", "two_shot", "two_shot_packed",
                                              "one_shot", "two_shot_packed"};

constexpr std::uint64_t kPatient = 20'000'000'000;  // nothing is lost, but cores may be

TEST(SoundProtocol, PassesOnEveryAllowedMemory) {
  for (Weakness weakness : {Weakness::kNone, Weakness::kShuffled, Weakness::kLateClears}) {
    for (const auto& variants : {kOne, kTwo, kBoth, kMixed}) {
      for (int team : {1, 2, 3, 5}) {
        Series series;
        series.deadline_ns = kPatient;
        series.weakness = weakness;
        series.variants = variants;
        series.team = team;
        series.calls = 16;
        EXPECT_EQ(run_series<Sound>(series), "") << static_cast<int>(weakness) << " " << team;
      }
    }
  }
}

TEST(SoundProtocol, PassesInChunksWithEverySpecialValue) {
  for (const auto& variants : {kOne, kTwo, kBoth, kPackedOne, kPackedTwo, kMixed}) {
    Series series;
    series.deadline_ns = kPatient;
    series.variants = variants;
    series.weakness = Weakness::kLateClears;
    series.max_rows = 163;
    series.mailbox_rows = 1;
    series.plain = false;
    series.calls = 16;
    EXPECT_EQ(run_series<Sound>(series), "");
    series.blocks = 64;  // those that have work then have the least that they may
    series.seed = 2;
    EXPECT_EQ(run_series<Sound>(series), "");
  }
}

TEST(NegativeControl, WordsThatAreNotClearedAreTakenAgain) {
  for (const auto& variants : {kOne, kTwo, kBoth, kPackedOne, kPackedTwo}) {
    Series series;
    series.variants = variants;
    EXPECT_NE(first_finding<NoClears>(series, 1), "");
  }
}

TEST(NegativeControl, MissingFencesLoseWords) {
  for (const auto& variants : {kOne, kTwo, kBoth, kPackedOne, kPackedTwo}) {
    Series series;
    series.variants = variants;
    series.weakness = Weakness::kLateClears;
    EXPECT_NE(first_finding<NoFences>(series, 8), "");
    series.min_rows = 181;  // and between the chunks of one call
    series.mailbox_rows = 1;
    series.calls = 1;
    EXPECT_NE(first_finding<NoFences>(series, 8), "");
  }
}

// Not in two shots alone: there a result leaves its owner only after all parts of its row were
// taken, so nobody is fast enough.
TEST(NegativeControl, StaleCounterLetsFastRanksOverwrite) {
  for (const auto& variants : {kOne, kBoth}) {
    Series series;
    series.variants = variants;
    series.weakness = Weakness::kNone;
    EXPECT_NE(first_finding<StaleCounter>(series, 8), "");
  }
}

// Where generations overlap, a rank may send the first part of one while its peer still owes the
// clears of the last two steps.
TEST(NegativeControl, GenerationsOfOneStepOverlapTooFar) {
  Series series;
  series.variants = kTwo;
  series.weakness = Weakness::kLateClears;
  series.lingers = true;
  series.min_rows = 181;
  series.mailbox_rows = 1;
  series.blocks = 64;  // more than have work: as many as a generation has stripes for
  series.calls = 1;
  series.team = 2;
  EXPECT_EQ(first_finding<AsOnDevices>(series, 4), "");
  EXPECT_NE(first_finding<OneStep>(series, 8), "");
}

TEST(NegativeControl, RanksInDifferentGenerationsMiss) {
  for (const auto& variants : {kOne, kTwo}) {
    Series series;
    series.variants = variants;
    series.team = 2;
    EXPECT_NE(first_finding<WrongGeneration>(series, 1), "");
  }
}

TEST(NegativeControl, RotatedSumsGiveOtherBits) {
  for (const auto& variants : {kOne, kTwo}) {
    Series series;
    series.variants = variants;
    series.lags = false;
    const std::string found = first_finding<RotatedOrder>(series, 1);
    EXPECT_NE(found.find("must be"), std::string::npos) << found;
  }
}

TEST(NegativeControl, SentinelSentAsDataNeverArrives) {
  for (const auto& variants : {kOne, kTwo}) {
    Series series;
    series.variants = variants;
    series.plain = false;
    series.team = 2;
    series.hidden = 64;
    const std::string found = first_finding<SentinelAsData>(series, 1);
    EXPECT_NE(found.find("a wait for rank"), std::string::npos) << found;
  }
}

}  // namespace
}  // namespace tenon
