// Communicators as their users see them: creation, agreement, broadcast, the choice of a transport.
#include "tenon/comm/communicator.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/conform.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::meet;
using test::run_ranks;

TEST(Communicator, LoneRankNeedsNobody) {
  auto comm = Communicator::create({}, Device{});
  ASSERT_TRUE(comm) << comm.status().to_string();
  EXPECT_EQ((*comm)->rank(), 0);
  EXPECT_EQ((*comm)->size(), 1);
  std::int32_t value = 3;
  EXPECT_TRUE((*comm)->agree_min({&value, 1}));
  EXPECT_EQ(value, 3);
}

TEST(Communicator, RanksKnowTheirPlaceAndTransport) {
  for (const int size : {1, 2, 3, 8})
    run_ranks(size, [&](int rank, Communicator& comm) {
      EXPECT_EQ(comm.rank(), rank);
      EXPECT_EQ(comm.size(), size);
      EXPECT_EQ(comm.transport(), "threads");
      EXPECT_TRUE(comm.refusals().empty());
      EXPECT_TRUE(comm.can().peer_pointers);
    });
}

TEST(Communicator, AgreeMinTakesEachMinimum) {
  for (const int size : {1, 2, 5, 8})
    run_ranks(size, [&](int rank, Communicator& comm) {
      for (int round = 0; round < 20; ++round) {
        std::int32_t values[3] = {rank + round, -rank, 7};
        ASSERT_TRUE(comm.agree_min(values));
        EXPECT_EQ(values[0], round);
        EXPECT_EQ(values[1], 1 - size);
        EXPECT_EQ(values[2], 7);
      }
    });
}

TEST(Communicator, BroadcastSpreadsTheBytesOfRankZero) {
  for (const std::size_t count : {0, 1, 1000, 65536, 65537, 300'000})
    run_ranks(3, [&](int rank, Communicator& comm) {
      for (int round = 0; round < 3; ++round) {
        std::vector<std::byte> bytes(count);
        for (std::size_t i = 0; i < count; ++i)
          bytes[i] = rank == 0 ? static_cast<std::byte>(i * 7 + static_cast<std::size_t>(round))
                               : std::byte{0xee};
        ASSERT_TRUE(comm.broadcast(bytes));
        for (std::size_t i = 0; i < count; ++i)
          ASSERT_EQ(bytes[i], static_cast<std::byte>(i * 7 + static_cast<std::size_t>(round)));
      }
    });
}

// Two teams of the same ranks, three channels each, used in turn: nothing of a process is shared.
TEST(Communicator, ManyInOneProcessDoNotMeet) {
  for (const Target target : test::usable_targets()) {
    auto second = local_bootstrap(3);
    run_ranks(3, {.target = target}, [&](int rank, Communicator& first) {
      CommOptions options;
      options.bootstrap = second[static_cast<std::size_t>(rank)];
      options.deadline = std::chrono::milliseconds(10'000);
      auto other = Communicator::create(options, first.device());
      ASSERT_TRUE(other) << other.status().to_string();
      auto stream = Stream::create(first.device());
      ASSERT_TRUE(stream);
      std::vector<Channel> channels;
      channels.reserve(6);
      std::vector<std::unique_ptr<test::Conformance>> users;
      for (int each = 0; each < 6; ++each) {
        Communicator& comm = each % 2 == 0 ? first : **other;
        auto made = comm.make_channel(collectives::all_reduce_mailbox_bytes(3, 64 << each),
                                      "channel " + std::to_string(each));
        ASSERT_TRUE(made) << made.status().to_string();
        channels.push_back(*made);
        users.push_back(std::make_unique<test::Conformance>(comm, *stream, channels.back()));
      }
      meet(first);
      for (int round = 0; round < 8; ++round)
        for (const int each : {3, 0, 1, 5, 4, 2, 0, 3})
          users[static_cast<std::size_t>(each)]->round(round);
      EXPECT_TRUE((*other)->health());
      meet(first);
    });
  }
}

// The failure of one team is not that of another.
TEST(Communicator, AnAbortStaysInItsTeam) {
  auto second = local_bootstrap(2);
  run_ranks(2, [&](int rank, Communicator& first) {
    CommOptions options;
    options.bootstrap = second[static_cast<std::size_t>(rank)];
    auto other = Communicator::create(options, first.device());
    ASSERT_TRUE(other);
    if (rank == 0) (*other)->abort("enough");
    test::conform(first);
    EXPECT_FALSE((*other)->health());
  });
}

// What every rank hears where all ask for `options`, but rank 1 alone for its place and `device`.
std::vector<Status> refusals(int size, const CommOptions& options, Device device) {
  auto handles = local_bootstrap(size);
  std::vector<Status> heard(handles.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < handles.size(); ++rank)
    threads.emplace_back([&, rank, handle = std::move(handles[rank])] {
      CommOptions own = options;
      own.bootstrap = handle;
      if (rank != 1) own.rank = 0, own.size = 1;
      const auto made = Communicator::create(own, rank == 1 ? device : Device{});
      EXPECT_FALSE(made) << "rank " << rank;
      heard[rank] = made.status();
    });
  handles.clear();
  for (std::thread& thread : threads) thread.join();
  return heard;
}

// Ranks that wait must not keep another rank's work off the device that they share.
TEST(Communicator, RanksThatShareADeviceLeaveRoomForOtherKernels) {
  const std::vector<Target> targets = test::device_targets();
  if (targets.empty()) GTEST_SKIP() << test::kNoDevice;
  for (Target target : targets)
    for (const bool alone : {false, true}) {
      const auto devices = (*backend(target))->num_devices();
      ASSERT_TRUE(devices);
      const int ranks = std::min(2 * *devices, kMaxRanks);
      test::RankOptions options;
      options.target = target;
      options.only_exchanges = alone;
      test::run_ranks(ranks, options, [&](int, Communicator& comm) {
        if (!comm.shares_device()) return;
        const auto properties = tenon::properties(comm.device());
        ASSERT_TRUE(properties);
        const int sharing = (ranks + *devices - 1) / *devices;
        const int all = comm.max_blocks() * sharing * (alone ? 1 : kMaxBlocksPerUnit);
        EXPECT_LE(all, properties->max_cooperative_blocks / (alone ? 1 : 2));
      });
    }
}

TEST(Communicator, WhatCannotBeIsTheSameErrorOnAll) {
  const auto expect = [](const std::vector<Status>& heard, Code code, std::string_view words) {
    for (const Status& status : heard) {
      EXPECT_EQ(status.code(), code) << status.to_string();
      EXPECT_NE(status.message().find(words), std::string_view::npos) << status.to_string();
    }
  };
  const Code invalid = Code::kInvalidArgument;
  CommOptions misplaced;
  misplaced.size = 3;
  expect(refusals(2, misplaced, Device{}), invalid,
         "rank 1: the options say rank 0 of 3, the bootstrap says rank 1 of 2");
  expect(refusals(kMaxRanks + 1, {}, Device{}), invalid, "9 ranks; accepted: 1 to 8");
  for (const int late : {0, -5}) {
    CommOptions hasty;
    hasty.deadline = std::chrono::milliseconds(late);
    expect(refusals(2, hasty, Device{}), invalid,
           "a deadline of " + std::to_string(late) + " ms; accepted: more than 0");
  }
  for (const int channels : {0, 17}) {
    CommOptions crowded;
    crowded.concurrent_channels = channels;
    expect(refusals(2, crowded, Device{}), invalid,
           std::to_string(channels) + " concurrent channels; accepted: 1 to 16");
  }
  CommOptions vendors;
  vendors.vendor_sum = true;
  expect(refusals(2, vendors, Device{}), invalid, "has no sum of its own; accepted: transport ccl");
  expect(refusals(2, {}, Device{Target::kCpu, 999}), Code::kUnsupported,
         "rank 1 has no device cpu:999");
  if (backend(Target::kEmu32))
    expect(refusals(2, {}, Device{Target::kEmu32, 0}), invalid,
           "rank 0 runs on cpu and rank 1 on emu32; all must run on the same target");
}

}  // namespace
}  // namespace tenon
