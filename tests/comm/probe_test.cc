// The trial of the links between ranks: everybody meets everybody, data that arrives wrong is found
// and named, and what is measured is a time.
#include "tenon/comm/collectives/probe/probe.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/ranks.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::meet;
using test::run_ranks;

TEST(Probe, EverybodyMeetsEverybodyOnce) {
  for (int size = 1; size <= kMaxRanks; ++size)
    for (int rank = 0; rank < size; ++rank) {
      std::set<int> met;
      for (int round = 0; round < probe::num_rounds(size); ++round) {
        const int other = probe::partner(rank, size, round);
        ASSERT_GE(other, 0);
        ASSERT_LT(other, size);
        EXPECT_EQ(probe::partner(other, size, round), rank) << "of " << size;
        if (other == rank) continue;
        EXPECT_TRUE(met.insert(other).second);
      }
      EXPECT_EQ(met.size(), static_cast<std::size_t>(size - 1));
    }
}

// Tries the links of a team with `seed_of(rank)` for its data.
void try_links(Target target, int size, bool measure, std::uint32_t (*seed_of)(int rank),
               void (*judge)(int rank, const Result<std::vector<Link>>& links)) {
  SCOPED_TRACE(test::to_string(target));
  run_ranks(size, {.target = target}, [&](int rank, Communicator& comm) {
    auto channel = comm.make_channel(probe::mailbox_bytes(measure), "links");
    ASSERT_TRUE(channel) << channel.status().to_string();
    auto run = probe::LinkProbe::prepare(*channel, comm.device(), measure);
    ASSERT_TRUE(run) << run.status().to_string();
    meet(comm);
    judge(rank, run->run(seed_of(rank)));
    meet(comm);
  });
}

TEST(Probe, SoundLinksPass) {
  for (const Target target : test::usable_targets())
    for (const int size : {2, 3, 8})
      try_links(
          target, size, false, [](int) { return 7u; },
          [](int, const Result<std::vector<Link>>& links) {
            EXPECT_TRUE(links) << links.status().to_string();
          });
}

TEST(Probe, DataThatArrivesWrongNamesThePair) {
  for (const Target target : test::usable_targets())
    try_links(
        target, 3, false, [](int rank) { return rank == 1 ? 8u : 7u; },
        [](int rank, const Result<std::vector<Link>>& links) {
          ASSERT_FALSE(links);
          EXPECT_EQ(links.status().code(), Code::kDevice);
          const std::string text(links.status().message());
          // Rank 1 expects of all what nobody sends.
          const std::string pair = "to rank " + std::to_string(rank) + " arrives wrong: word ";
          EXPECT_NE(text.find(pair), std::string::npos) << text;
          if (rank == 1) return;
          EXPECT_EQ(text.find("what rank 1 sends"), 0u) << text;
        });
}

TEST(Probe, MeasuresEveryPair) {
  for (const Target target : test::usable_targets()) {
    if (is_host(target) && target != Target::kCpu) continue;  // emulated: pushes take seconds
    try_links(
        target, 3, true, [](int) { return 7u; },
        [](int rank, const Result<std::vector<Link>>& links) {
          ASSERT_TRUE(links) << links.status().to_string();
          for (int peer = 0; peer < 3; ++peer) {
            const Link& link = (*links)[static_cast<std::size_t>(peer)];
            EXPECT_EQ(link.latency_us > 0, peer != rank);
            EXPECT_EQ(link.gbytes_per_s > 0, peer != rank);
          }
        });
  }
}

TEST(Probe, HostTargetsAreNotTriedAtCreation) {
  run_ranks(2, [](int, Communicator& comm) { EXPECT_TRUE(comm.links().empty()); });
}

// Creation on devices has done all of the above.
TEST(Probe, DevicesKnowTheirLinksAtCreation) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  for (const Target target : test::device_targets())
    for (const int size : {2, 4, 8})
      run_ranks(size, {.target = target}, [&](int rank, Communicator& comm) {
        ASSERT_EQ(comm.links().size(), static_cast<std::size_t>(size));
        for (int peer = 0; peer < size; ++peer) {
          const Link link = comm.links()[static_cast<std::size_t>(peer)];
          EXPECT_EQ(link.latency_us > 0 && link.gbytes_per_s > 0, peer != rank);
          if (peer != rank && rank == 0)
            std::printf("%d ranks: to rank %d %.2f us, %.0f GB/s\n", size, peer, link.latency_us,
                        link.gbytes_per_s);
        }
      });
}

// The bound of the issue: 200 ms after the bootstrap, contexts apart, which the first team makes.
TEST(Probe, CreationOnDevicesIsQuick) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  const Target target = test::device_targets().front();
  const int count = *(*backend(target))->num_devices();
  for (const bool timed : {false, true}) {
    const auto begin = std::chrono::steady_clock::now();
    run_ranks(count, {.target = target},
              [](int, Communicator& comm) { EXPECT_TRUE(comm.make_channel(1 << 20, "first")); });
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - begin);
    if (timed) {
      EXPECT_LE(took.count(), 200);
    }
    std::printf("%d ranks, %s: %d ms\n", count, timed ? "again" : "with contexts",
                static_cast<int>(took.count()));
  }
}

}  // namespace
}  // namespace tenon
