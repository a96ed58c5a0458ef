// suspend() and resume(): the memory goes and comes back empty, mailboxes keep working, and what is
// called in between says why it cannot.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "tests/support/conform.h"
#include "tests/support/says.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::meet;
using test::RankOptions;
using test::run_ranks;
using test::says;

std::vector<RankOptions> every_team() {
  std::vector<RankOptions> found;
  for (const Target target : test::usable_targets())
    for (const char* transport : {"threads", "shm", "ipc"}) {
      const std::string_view name = transport;
      if ((name == "shm" && !is_host(target)) || (name == "ipc" && is_host(target))) continue;
      found.push_back({.target = target, .transport = transport});
    }
  return found;
}

TEST(Suspend, MailboxesWorkBeforeAndAfter) {
  for (const RankOptions& options : every_team())
    for (const int size : {1, 2, 4})
      run_ranks(size, options, [](int, Communicator& comm) {
        auto stream = Stream::create(comm.device());
        auto channel =
            comm.make_channel(collectives::all_reduce_mailbox_bytes(comm.size(), 128), "kept");
        ASSERT_TRUE(stream && channel);
        test::Conformance conformance(comm, *stream, *channel);
        const std::uint32_t number = channel->view().channel;
        for (int sleep = 0; sleep < 3; ++sleep) {
          meet(comm);
          for (int round = 0; round < 4; ++round) conformance.round(round);
          const Status suspended = comm.suspend();
          ASSERT_TRUE(suspended) << suspended.to_string();
          EXPECT_TRUE(comm.suspended());
          EXPECT_EQ(channel->view().base[0], nullptr);
          const Status resumed = comm.resume();
          ASSERT_TRUE(resumed) << resumed.to_string();
          EXPECT_FALSE(comm.suspended());
          EXPECT_EQ(channel->view().channel, number);
        }
        meet(comm);
        for (int round = 0; round < 4; ++round) conformance.round(round);
        meet(comm);
      });
}

TEST(Suspend, ResumedMailboxesAreFresh) {
  for (const Target target : test::host_targets())
    run_ranks(2, {.target = target}, [](int rank, Communicator& comm) {
      auto channel = comm.make_channel(4096, "fresh");
      ASSERT_TRUE(channel);
      const ChannelView* const team = &channel->view();
      std::fill_n(team->base[1 - rank], 4096, std::byte{1});
      std::fill_n(team->state, kStateWords, 5u);
      ASSERT_TRUE(comm.suspend());
      ASSERT_TRUE(comm.resume());
      EXPECT_EQ(team, &channel->view());
      for (int peer = 0; peer < 2; ++peer)
        EXPECT_TRUE(std::all_of(team->base[peer], team->base[peer] + 4096,
                                [](std::byte each) { return each == std::byte{0xff}; }));
      for (int word = 0; word < kStateWords; ++word) EXPECT_EQ(team->state[word], 0u);
      meet(comm);
    });
}

TEST(Suspend, WhatNeedsAMailboxIsRefusedInBetween) {
  run_ranks(2, [](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    auto channel = comm.make_channel(collectives::all_reduce_mailbox_bytes(2, 128), "asleep");
    ASSERT_TRUE(stream && channel);
    test::DeviceArray<std::uint16_t> in(*stream, 16), out(*stream, 32);
    const TensorView rows = in.first(16, DType::kBF16), all = out.first(32, DType::kBF16);
    EXPECT_TRUE(channel->ready());
    EXPECT_TRUE(says(comm.resume(), "not suspended"));
    ASSERT_TRUE(comm.suspend());
    const std::string_view why = "the communicator is suspended; call resume() on every rank first";
    EXPECT_TRUE(says(channel->ready(), "channel \"asleep\": the communicator is suspended"));
    EXPECT_TRUE(says(comm.suspend(), why));
    EXPECT_TRUE(says(comm.all_reduce({rows}, rows, *stream), why));
    EXPECT_TRUE(says(comm.all_gather(rows, all, *stream), why));
    EXPECT_TRUE(says(collectives::all_reduce(*channel, {rows}, rows, *stream), why));
    EXPECT_TRUE(says(comm.make_channel(64, "late").status(), why));
    meet(comm);  // hosts still talk to each other
    EXPECT_TRUE(comm.health());
    ASSERT_TRUE(comm.resume());
    EXPECT_TRUE(comm.make_channel(64, "early"));
    meet(comm);
  });
}

TEST(Suspend, MailboxesThatARankHasDestroyedStayGone) {
  run_ranks(2, [](int rank, Communicator& comm) {
    auto made = comm.make_channel(64, "half gone");
    auto other = comm.make_channel(64, "whole");
    ASSERT_TRUE(made && other);
    std::optional<Channel> channel = *std::move(made);
    made = Channel();
    if (rank == 1) channel.reset();
    ASSERT_TRUE(comm.suspend());
    ASSERT_TRUE(comm.resume());
    EXPECT_TRUE(other->ready());
    EXPECT_NE(other->view().base[1 - rank], nullptr);
    if (rank == 0) {
      EXPECT_TRUE(says(channel->ready(), "another rank had destroyed its mailbox before"));
    }
    meet(comm);
  });
}

TEST(Suspend, ALostRankEndsIt) {
  run_ranks(2, {.deadline = std::chrono::milliseconds(200), .expect_healthy = false},
            [](int rank, Communicator& comm) {
              if (rank == 1) return comm.abort("no more paper");
              const Status status = comm.suspend();
              EXPECT_EQ(status.code(), Code::kPeerLost) << status.to_string();
            });
}

}  // namespace
}  // namespace tenon
