// Two channels in flight at once, in another order on each rank: of one communicator and of two. On
// devices only: streams of host targets do their work when they are told of it, in one order.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "tenon/reference/inputs.h"
#include "tests/support/fused_run.h"
#include "tests/support/ranks.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;
using test::BoundaryTensors;
using test::FusedCase;
using test::meet;
using test::RankOptions;
using test::run_ranks;

// Long calls: each of them alone would fill a device.
std::vector<FusedCase> long_cases() {
  std::vector<FusedCase> cases(2);
  for (int i = 0; i < 2; ++i) {
    reference::BoundaryCase& shape = cases[static_cast<std::size_t>(i)].shape;
    shape.team = 2;
    shape.rows = 1100 - 300 * i;
    shape.hidden = 4096 << i;
  }
  return cases;
}

int num_rounds() {
  const char* const wanted = std::getenv("SOAK_CALLS");
  return wanted == nullptr ? 1000 : std::atoi(wanted);
}

// A stream, a channel and what runs there.
struct Lane {
  Communicator* comm;
  const FusedCase& call;
  std::unique_ptr<BoundaryTensors> tensors;
  Stream stream;
  Channel mailbox;
  Plan plan;

  Status enqueue() {
    return fused::run(plan, test::fused_args(call, *tensors), mailbox.view(), stream);
  }
};

Result<Lane> open(Communicator& comm, const FusedCase& call,
                  const reference::BoundaryInputs& inputs) {
  TENON_ASSIGN(Stream stream, Stream::create(comm.device()));
  auto tensors =
      std::make_unique<BoundaryTensors>(call.shape, inputs, comm.rank(), comm.device(), stream);
  TENON_ASSIGN(Plan plan, test::plan_of(test::fused_args(call, *tensors), comm, "two_shot"));
  TENON_ASSIGN(Channel mailbox,
               comm.make_channel(fused::mailbox_bytes({call.shape.rows, call.shape.hidden,
                                                       comm.size(), comm.max_blocks(), false}),
                                 "lane"));
  return Lane{&comm,          call, std::move(tensors), std::move(stream), std::move(mailbox),
              std::move(plan)};
}

// Rank 0 starts the first lane's calls before the second's, rank 1 the other way round. Ends with
// the first error.
Status run_crosswise(int rank, std::array<Lane, 2>& lanes, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (int turn = 0; turn < 2; ++turn)
      TENON_TRY(lanes[static_cast<std::size_t>(turn ^ rank)].enqueue());
    if (round % 16 != 15 && round + 1 != rounds) continue;
    for (Lane& lane : lanes) TENON_TRY(lane.stream.synchronize());
    for (Lane& lane : lanes) TENON_TRY(lane.comm->health());
  }
  return Status::ok();
}

struct Setting {
  int communicators = 1, concurrent_channels = 2;
  std::chrono::milliseconds deadline{20'000};
  int rounds = 0;
};

// What ends it on each rank.
std::array<Status, 2> cross(Target target, const Setting& setting) {
  const std::vector<FusedCase> cases = long_cases();
  std::vector<reference::BoundaryInputs> inputs;
  for (const FusedCase& each : cases) inputs.push_back(reference::make_inputs(each.shape, 0));
  std::array<Status, 2> ends;
  auto second_bootstraps = local_bootstrap(2);
  RankOptions options;
  options.target = target;
  options.deadline = setting.deadline;
  options.concurrent_channels = setting.concurrent_channels;
  options.expect_healthy = false;
  run_ranks(2, options, [&](int rank, Communicator& comm) {
    const auto place = static_cast<std::size_t>(rank);
    std::unique_ptr<Communicator> own;
    if (setting.communicators == 2) {
      CommOptions second;
      second.bootstrap = second_bootstraps[place];
      second.deadline = setting.deadline;
      second.concurrent_channels = setting.concurrent_channels;
      auto made = Communicator::create(second, comm.device());
      ASSERT_TRUE(made) << made.status().to_string();
      own = *std::move(made);
    }
    auto first = open(comm, cases[0], inputs[0]);
    ASSERT_TRUE(first) << first.status().to_string();
    auto other = open(own ? *own : comm, cases[1], inputs[1]);
    ASSERT_TRUE(other) << other.status().to_string();
    std::array<Lane, 2> lanes{*std::move(first), *std::move(other)};
    meet(comm);
    ends[place] = run_crosswise(rank, lanes, setting.rounds);
    if (!ends[place]) return;
    for (std::size_t i = 0; i < 2; ++i) {
      lanes[i].tensors->reset(lanes[i].stream);
      ASSERT_TRUE(lanes[i].stream.synchronize());
    }
    meet(comm);
    ASSERT_TRUE(run_crosswise(rank, lanes, 1));
    for (std::size_t i = 0; i < 2; ++i)
      EXPECT_EQ(test::compare_fused(cases[i], *lanes[i].tensors,
                                    reference::boundary(cases[i].shape, inputs[i]), "two_shot",
                                    rank, lanes[i].stream),
                "");
    meet(comm);
  });
  return ends;
}

TEST(ConcurrentChannels, CallsInOppositeOrderAllEnd) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  for (Target target : test::device_targets()) {
    for (int communicators : {1, 2}) {
      const auto ends = cross(target, {.communicators = communicators, .rounds = num_rounds()});
      for (const Status& end : ends)
        EXPECT_TRUE(end) << name(target) << ", " << communicators
                         << " communicators: " << end.to_string();
    }
  }
}

// Why a communicator has to be told: by hand, on two devices.
TEST(ConcurrentChannels, DISABLED_UntoldTheyWaitForEachOther) {
  for (Target target : test::device_targets()) {
    const auto ends = cross(target, {.concurrent_channels = 1,
                                     .deadline = std::chrono::milliseconds(1000),
                                     .rounds = num_rounds()});
    for (const Status& end : ends) EXPECT_EQ(end.code(), Code::kTimeout) << end.to_string();
  }
}

// Kernels of as many channels as were told of fit the device together: their threads are no more
// than those of one channel alone, which has all of it.
TEST(ConcurrentChannels, SharesAddUpToTheDevice) {
  RankOptions options;
  for (int channels : {1, 2, 3, 5, 16}) {
    options.concurrent_channels = channels;
    run_ranks(2, options, [&](int, Communicator& comm) {
      const auto properties = tenon::properties(comm.device());
      ASSERT_TRUE(properties);
      EXPECT_LE(comm.max_blocks(), std::max(properties->max_cooperative_blocks / channels, 1));
      EXPECT_GE(comm.max_blocks(), 1);
      EXPECT_EQ(comm.may_start_early(), channels == 1);
    });
  }
}

TEST(ConcurrentChannels, NumbersOutOfRangeAndDifferentOnesAreRefusedByAll) {
  for (const int wrong : {0, 17, 2}) {  // 2: the other rank says 1
    auto bootstraps = local_bootstrap(2);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 2; ++rank)
      ranks.emplace_back([&, rank] {
        CommOptions options;
        options.bootstrap = bootstraps[static_cast<std::size_t>(rank)];
        options.concurrent_channels = rank == 1 ? wrong : 1;
        const auto made = Communicator::create(options, Device{Target::kCpu, 0});
        ASSERT_FALSE(made);
        EXPECT_EQ(made.status().code(), Code::kInvalidArgument);
        EXPECT_NE(made.status().message().find("concurrent"), std::string_view::npos)
            << made.status().message();
      });
    for (std::thread& each : ranks) each.join();
  }
}

}  // namespace
}  // namespace tenon
