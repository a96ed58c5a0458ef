// Mailboxes: the same layout everywhere, empty at birth, independent of each other, alive as long
// as somebody holds them.
#include "tenon/comm/channel.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "tests/support/ranks.h"

namespace tenon {
namespace {

using test::run_ranks;

TEST(Channel, DefaultIsNothing) {
  const Channel none;
  EXPECT_FALSE(none);
  EXPECT_EQ(none.bytes(), 0u);
  EXPECT_EQ(none.label(), "");
}

TEST(Channel, StartsEmptyWithZeroedState) {
  for (const std::size_t bytes : {0u, 1u, 4u, 4097u})
    run_ranks(3, [&](int rank, Communicator& comm) {
      auto mailbox = comm.make_channel(bytes, "fresh");
      ASSERT_TRUE(mailbox) << mailbox.status().to_string();
      const ChannelView& team = mailbox->view();
      EXPECT_EQ(team.rank, rank);
      EXPECT_EQ(team.size, 3);
      EXPECT_EQ(team.bytes, bytes);
      EXPECT_EQ(mailbox->label(), "fresh");
      for (int peer = 0; peer < 3; ++peer)
        EXPECT_TRUE(std::all_of(team.base[peer], team.base[peer] + bytes,
                                [](std::byte each) { return each == std::byte{0xff}; }));
      for (int word = 0; word < kStateWords; ++word) EXPECT_EQ(team.state[word], 0u);
      const std::chrono::nanoseconds deadline = test::RankOptions{}.deadline;
      EXPECT_EQ(team.deadline_ns, static_cast<std::uint64_t>(deadline.count()));
      std::int32_t none = 0;
      ASSERT_TRUE(comm.agree_min({&none, 1}));  // nobody leaves while others look
    });
}

// A rank writes into every region at its own place; then everybody reads everything.
TEST(Channel, EveryRankSeesEveryRegion) {
  for (const char* transport : {"threads", "shm"})
    run_ranks(4, {.transport = transport}, [](int rank, Communicator& comm) {
      auto mailbox = comm.make_channel(64, "shared");
      ASSERT_TRUE(mailbox);
      for (int peer = 0; peer < 4; ++peer)
        mailbox->view().base[peer][rank * 8] = static_cast<std::byte>(10 * peer + rank);
      std::int32_t written = 1;
      ASSERT_TRUE(comm.agree_min({&written, 1}));
      for (int owner = 0; owner < 4; ++owner)
        for (int writer = 0; writer < 4; ++writer)
          EXPECT_EQ(mailbox->view().base[owner][writer * 8],
                    static_cast<std::byte>(10 * owner + writer));
      ASSERT_TRUE(comm.agree_min({&written, 1}));
    });
}

TEST(Channel, ChannelsAreNumberedAndSeparate) {
  run_ranks(2, [](int rank, Communicator& comm) {
    auto first = comm.make_channel(16, "first");
    auto second = comm.make_channel(16, "second");
    ASSERT_TRUE(first && second);
    EXPECT_NE(first->view().channel, second->view().channel);
    EXPECT_NE(first->view().state, second->view().state);
    for (int peer = 0; peer < 2; ++peer)
      EXPECT_NE(first->view().base[peer], second->view().base[peer]);
    if (rank == 0) std::memset(first->view().base[1], 0, 16);
    std::int32_t written = 1;
    ASSERT_TRUE(comm.agree_min({&written, 1}));
    EXPECT_EQ(second->view().base[1][0], std::byte{0xff});
    ASSERT_TRUE(comm.agree_min({&written, 1}));
  });
}

TEST(Channel, OutlivesItsCommunicatorAndItsPeers) {
  for (const char* transport : {"threads", "shm"}) {
    std::vector<std::optional<Channel>> kept(2);
    run_ranks(2, {.transport = transport}, [&](int rank, Communicator& comm) {
      auto mailbox = comm.make_channel(64, "kept");
      ASSERT_TRUE(mailbox);
      kept[static_cast<std::size_t>(rank)] = *mailbox;
    });
    kept[0].reset();  // rank 0 has gone altogether; its region is still there for rank 1
    std::memset(kept[1]->view().base[0], 7, 64);
    EXPECT_EQ(kept[1]->view().base[0][63], std::byte{7});
    EXPECT_EQ(*kept[1]->view().abort_word[0], 0u);
  }
}

bool is_mapped(std::byte* pages, std::size_t bytes) {
  std::vector<unsigned char> resident((bytes + 4095) / 4096);
  return mincore(pages, bytes, resident.data()) == 0;
}

// To free memory of a device waits for kernels of peers, which may wait for the rank that frees.
TEST(Channel, RanksThatAreThreadsFreeWhenTheyMeet) {
  constexpr std::size_t kBytes = std::size_t{1} << 20;
  std::atomic<int> num_without = 0, num_looked = 0;
  run_ranks(2, {.transport = "threads"}, [&](int rank, Communicator& comm) {
    const auto meet = [&] { return comm.agree(Status::ok(), "meet"); };
    Channel channel;
    {
      auto made = comm.make_channel(kBytes, "let go of");
      ASSERT_TRUE(made);
      channel = *made;
    }
    std::byte* const of_first = channel.view().base[0];
    ASSERT_TRUE(meet());
    if (rank == 0) channel = Channel();
    ASSERT_TRUE(meet());
    EXPECT_TRUE(is_mapped(of_first, kBytes)) << "rank 1 has it still";
    channel = Channel();
    for (++num_without; num_without < 2;) std::this_thread::yield();
    EXPECT_TRUE(is_mapped(of_first, kBytes)) << "they have not met since";
    for (++num_looked; num_looked < 2;) std::this_thread::yield();
    ASSERT_TRUE(meet());
    EXPECT_FALSE(is_mapped(of_first, kBytes));
  });
}

TEST(Channel, DifferentSizesAreRefusedWithBoth) {
  run_ranks(2, [](int rank, Communicator& comm) {
    auto mailbox = comm.make_channel(rank == 0 ? 64 : 128, "uneven");
    ASSERT_FALSE(mailbox);
    EXPECT_EQ(mailbox.status().code(), Code::kInvalidArgument);
    const std::string text(mailbox.status().message());
    EXPECT_NE(text.find("uneven of 64 bytes"), std::string::npos) << text;
    EXPECT_NE(text.find("uneven of 128 bytes"), std::string::npos) << text;
    EXPECT_TRUE(comm.make_channel(64, "even"));  // the ranks are still in step
  });
}

TEST(Channel, TooMuchMemoryIsRefusedOnEveryRank) {
  for (const char* transport : {"threads", "shm"})
    run_ranks(2, {.transport = transport}, [](int rank, Communicator& comm) {
      const std::size_t absurd = std::size_t{1} << 60;
      auto mailbox = comm.make_channel(absurd, "absurd");
      ASSERT_FALSE(mailbox) << rank;
      EXPECT_NE(mailbox.status().message().find("rank 0"), std::string_view::npos)
          << mailbox.status().to_string();
      EXPECT_TRUE(comm.make_channel(64, "modest"));
    });
}

}  // namespace
}  // namespace tenon
