// team_wait(): every end a wait can have, and what it leaves behind.
#include "tests/comm/wait_test.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#define TENON_TEST_SPACE wait_test
#include "tests/support/kernels.inc"

namespace tenon {
namespace {

using namespace std::chrono_literals;
using wait_test::kernels;

// The memory of a team of three as rank 2 sees it.
struct Team {
  explicit Team(std::chrono::nanoseconds deadline) {
    view.rank = 2;
    view.size = 3;
    for (int rank = 0; rank < 3; ++rank) view.abort_word[rank] = &abort_words[rank];
    view.fault = &fault;
    view.deadline_ns = static_cast<std::uint64_t>(deadline.count());
    view.channel = 5;
    view.state = state;
  }
  std::uint32_t abort_words[3] = {};
  FaultRecord fault{};
  std::uint32_t state[kStateWords] = {};
  ChannelView view;
};

LaunchShape shape_of(Target target, int blocks) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.threads = test::wave_of(target);
  shape.cooperative = true;
  return shape;
}

struct Outcome {
  std::vector<std::uint32_t> came;
  std::chrono::nanoseconds took;
};

Outcome wait(Target target, Team& team, std::uint32_t* signal, std::uint32_t wanted,
             int blocks = 1) {
  Outcome out;
  out.came.resize(static_cast<std::size_t>(blocks));
  auto stream = Stream::create({target, 0});
  const auto begin = std::chrono::steady_clock::now();
  const Status status = launch(*stream, shape_of(target, blocks), kernels(target).wait,
                               {team.view, signal, wanted, out.came.data()});
  out.took = std::chrono::steady_clock::now() - begin;
  EXPECT_TRUE(status) << status.to_string();
  return out;
}

TEST(Wait, ReturnsAtOnceWhenReady) {
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    Team team(10s);
    std::uint32_t signal = 4;
    EXPECT_EQ(wait(target, team, &signal, 4).came, std::vector<std::uint32_t>{1});
    EXPECT_EQ(team.fault.claimed, 0u);
    EXPECT_EQ(team.abort_words[0] | team.abort_words[1] | team.abort_words[2], 0u);
  }
}

TEST(Wait, DeadlineNamesWhoWaitedForWhom) {
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    Team team(30ms);
    std::uint32_t signal = 0;
    const Outcome out = wait(target, team, &signal, 1);
    EXPECT_EQ(out.came, std::vector<std::uint32_t>{2});
    EXPECT_GE(out.took, 30ms);
    EXPECT_LT(out.took, 5s);  // generous: the machine may be busy
    EXPECT_EQ(team.fault.ready, 1u);
    EXPECT_EQ(team.fault.reason, 1u);
    EXPECT_EQ(team.fault.phase, static_cast<std::uint32_t>(Phase::kGather));
    EXPECT_EQ(team.fault.my_rank, 2u);
    EXPECT_EQ(team.fault.awaited_rank, 1u);
    EXPECT_EQ(team.fault.channel, 5u);
    EXPECT_EQ(team.fault.call, 7u);
    EXPECT_EQ(team.fault.row, 3u);
    for (std::uint32_t word : team.abort_words) EXPECT_EQ(word, 3u);  // 1 + rank 2
  }
}

TEST(Wait, AbortEndsAtOnceAndKeepsItsAuthor) {
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    Team team(60s);
    team.abort_words[2] = 1;  // rank 0 gave up
    std::uint32_t signal = 0;
    const Outcome out = wait(target, team, &signal, 1);
    EXPECT_EQ(out.came, std::vector<std::uint32_t>{2});
    EXPECT_LT(out.took, 5s);
    EXPECT_EQ(team.fault.reason, 2u);
    EXPECT_EQ(team.abort_words[2], 1u);
  }
}

TEST(Wait, SignalThatCameInTimeBeatsAnAbort) {
  for (Target target : test::host_targets()) {
    Team team(60s);
    team.abort_words[2] = 1;
    std::uint32_t signal = 1;
    EXPECT_EQ(wait(target, team, &signal, 1).came, std::vector<std::uint32_t>{1});
    EXPECT_EQ(team.fault.claimed, 0u);
  }
}

TEST(Wait, FirstFailureIsTheOneThatIsKept) {
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    Team team(10ms);
    std::uint32_t signal = 0;
    wait(target, team, &signal, 1, 2);
    EXPECT_EQ(team.fault.call, 7u);
    team.fault.call = 99;  // marks the record
    const Outcome later = wait(target, team, &signal, 1);
    EXPECT_EQ(later.came, std::vector<std::uint32_t>{2});
    EXPECT_LT(later.took, 5s);
    EXPECT_EQ(team.fault.call, 99u);
  }
}

TEST(Wait, AbsentPeersAreNotTold) {
  for (Target target : test::host_targets()) {
    Team team(10ms);
    team.view.abort_word[0] = nullptr;
    std::uint32_t signal = 0;
    EXPECT_EQ(wait(target, team, &signal, 1).came, std::vector<std::uint32_t>{2});
    EXPECT_EQ(team.abort_words[0], 0u);
    EXPECT_EQ(team.abort_words[1], 3u);
  }
}

constexpr int kPayload = 500;
constexpr std::uint32_t kPayloadSum = kPayload * (kPayload + 1) / 2;

TEST(Wait, PayloadIsThereWhenTheSignalIsBetweenBlocks) {
  for (Target target : test::host_targets()) {
    if (test::wave_of(target) == 1) continue;  // blocks of one launch run one after the other
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(test::to_string(target) + " seed " + std::to_string(seed));
      set_emu_seed(seed);
      Team team(20s);
      std::vector<std::uint32_t> payload(kPayload);
      std::uint32_t signal = 0, sum = 0;
      auto stream = Stream::create({target, 0});
      const Status status = launch(*stream, shape_of(target, 2), kernels(target).pass,
                                   {team.view, payload.data(), kPayload, &signal, &sum});
      ASSERT_TRUE(status) << status.to_string();
      ASSERT_EQ(sum, kPayloadSum);
    }
  }
}

TEST(Wait, PayloadIsThereWhenTheSignalIsBetweenRanks) {
  for (Target target : test::host_targets()) {
    for (int round = 0; round < 20; ++round) {
      Team team(20s);
      std::vector<std::uint32_t> payload(kPayload);
      std::uint32_t signal = 0, sum = 0;
      const wait_test::PassArgs args{team.view, payload.data(), kPayload, &signal, &sum};
      const auto rank = [&](void (*kernel)(wait_test::PassArgs)) {
        auto stream = Stream::create({target, 0});
        const Status status = launch(*stream, shape_of(target, 1), kernel, args);
        EXPECT_TRUE(status) << status.to_string();
      };
      std::thread consumer(rank, kernels(target).consume);
      rank(kernels(target).produce);
      consumer.join();
      ASSERT_EQ(sum, kPayloadSum) << test::to_string(target);
    }
  }
}

}  // namespace
}  // namespace tenon
