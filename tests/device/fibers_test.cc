// The emulator: real interleavings from a seed, and reports instead of hangs.
#include "tests/device/fibers_test.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#define TENON_TEST_SPACE fibers_test
#include "tests/support/kernels.inc"

namespace tenon {
namespace {

using fibers_test::Args;
using fibers_test::Kernel;
using fibers_test::kernels;

std::vector<Target> emulated() {
  std::vector<Target> found;
  for (Target each : test::host_targets())
    if (each != Target::kCpu) found.push_back(each);
  return found;
}

struct Outcome {
  std::vector<std::uint32_t> order, out;
  Status status;
};

LaunchShape grid(int blocks, int threads, bool cooperative = false) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.threads = threads;
  shape.cooperative = cooperative;
  return shape;
}

Outcome run(Target target, Kernel kernel, const LaunchShape& shape, std::uint64_t seed = 1,
            int n = 0) {
  Outcome result;
  const auto threads =
      static_cast<std::size_t>(shape.blocks) * static_cast<std::size_t>(shape.threads);
  result.order.resize(threads);
  result.out.resize(std::max<std::size_t>(threads, 64));
  std::uint32_t counter = 0;
  set_emu_seed(seed);
  auto stream = Stream::create({target, 0});
  result.status =
      launch(*stream, shape, kernel, Args{&counter, result.order.data(), result.out.data(), n});
  return result;
}

// On a thread of its own, because launches of one thread draw from one sequence.
Outcome run_fresh(Target target, Kernel kernel, const LaunchShape& shape, std::uint64_t seed) {
  Outcome result;
  std::thread([&] { result = run(target, kernel, shape, seed); }).join();
  return result;
}

void expect_stuck(Target target, Kernel kernel, const LaunchShape& shape,
                  std::initializer_list<std::string> parts) {
  const Outcome result = run(target, kernel, shape);
  EXPECT_EQ(result.status.code(), Code::kInternal);
  const std::string message(result.status.message());
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" is not in: " << message;
}

TEST(Fibers, KnowTheirPlace) {
  for (Target target : emulated()) {
    const int wave = test::wave_of(target);
    const Outcome result = run(target, kernels(target).position, grid(3, 2 * wave));
    ASSERT_TRUE(result.status) << result.status.to_string();
    for (int block = 0; block < 3; ++block)
      for (int thread = 0; thread < 2 * wave; ++thread)
        ASSERT_EQ(result.out[static_cast<std::size_t>(block * 2 * wave + thread)],
                  static_cast<std::uint32_t>(thread + 10'000 * block + 3'000'000 + 200'000'000));
  }
}

TEST(Fibers, SeedDecidesTheOrder) {
  for (Target target : emulated()) {
    std::set<std::vector<std::uint32_t>> orders;
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      const Outcome first = run_fresh(target, kernels(target).arrival, grid(2, 128, true), seed);
      const Outcome again = run_fresh(target, kernels(target).arrival, grid(2, 128, true), seed);
      ASSERT_TRUE(first.status) << first.status.to_string();
      EXPECT_EQ(first.order, again.order) << "the same seed gives the same order";
      orders.insert(first.order);
      std::vector<std::uint32_t> sorted = first.order;
      std::sort(sorted.begin(), sorted.end());
      for (std::size_t i = 0; i < sorted.size(); ++i) ASSERT_EQ(sorted[i], i);
    }
    EXPECT_EQ(orders.size(), 8u) << "every seed gives another order";
  }
}

TEST(Fibers, CooperativeBlocksMixAndOthersDoNot) {
  for (Target target : emulated()) {
    const auto mixed = [&](bool cooperative) {
      const Outcome result = run(target, kernels(target).arrival, grid(2, 128, cooperative));
      EXPECT_TRUE(result.status);
      const auto [low, high] =
          std::minmax_element(result.order.begin(), result.order.begin() + 128);
      return *high - *low != 127;  // block 0's tickets are not in one piece
    };
    EXPECT_TRUE(mixed(true));
    EXPECT_FALSE(mixed(false));
  }
}

TEST(Fibers, BlocksRunInADrawnOrder) {
  for (Target target : emulated()) {
    std::set<std::uint32_t> first_tickets;
    for (std::uint64_t seed = 0; seed < 20; ++seed)
      first_tickets.insert(run(target, kernels(target).arrival, grid(4, 64), seed).order[0] / 64);
    EXPECT_EQ(first_tickets.size(), 4u);
  }
}

TEST(Fibers, BarriersAndSharedMemoryHoldInEveryOrder) {
  for (Target target : emulated()) {
    for (int threads : {64, 192, 1024}) {
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        const Outcome result =
            run(target, kernels(target).staged, grid(2, threads, seed % 2 == 0), seed);
        ASSERT_TRUE(result.status) << result.status.to_string();
        for (int block = 0; block < 2; ++block) {
          std::vector<std::uint32_t> values(static_cast<std::size_t>(threads));
          std::iota(values.begin(), values.end(), static_cast<std::uint32_t>(block * threads));
          for (int round = 0; round < 3; ++round) {
            std::vector<std::uint32_t> next = values;
            for (std::size_t i = 0; i < values.size(); ++i)
              next[i] += values[(i + 1) % values.size()];
            values = next;
          }
          const auto begin = result.out.begin() + block * threads;
          ASSERT_TRUE(std::equal(values.begin(), values.end(), begin));
        }
      }
    }
  }
}

TEST(Fibers, RolesMeetAtDifferentPlaces) {
  for (Target target : emulated()) {
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      const int half = 128;
      const Outcome result = run(target, kernels(target).roles, grid(1, 2 * half), seed);
      ASSERT_TRUE(result.status) << result.status.to_string();
      for (int i = 0; i < half; ++i)
        ASSERT_EQ(result.out[static_cast<std::size_t>(half + i)],
                  static_cast<std::uint32_t>(0 + 1000 + 2000 + 3000 + 4 * ((i + 1) % half)));
    }
  }
}

TEST(Fibers, ShufflesExchangeWithinTheWave) {
  for (Target target : emulated()) {
    const int wave = test::wave_of(target);
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      const Outcome result = run(target, kernels(target).shuffles, grid(1, 3 * wave), seed);
      ASSERT_TRUE(result.status) << result.status.to_string();
      for (int first = 0; first < 3 * wave; first += wave) {
        std::vector<std::uint32_t> lanes(static_cast<std::size_t>(wave));
        std::iota(lanes.begin(), lanes.end(), static_cast<std::uint32_t>(first));
        for (std::size_t mask = 1; mask < lanes.size(); mask *= 2) {
          std::vector<std::uint32_t> next = lanes;
          for (std::size_t i = 0; i < lanes.size(); ++i) next[i] = 3 * lanes[i] + lanes[i ^ mask];
          lanes = next;
        }
        for (std::size_t i = 0; i < lanes.size(); ++i)
          ASSERT_EQ(result.out[static_cast<std::size_t>(first) + i],
                    lanes[i] + lanes[(i + 5) % lanes.size()]);
      }
    }
  }
}

TEST(Fibers, GridsMeetWhenTheyAreCooperative) {
  for (Target target : emulated()) {
    const Outcome result = run(target, kernels(target).grid_barrier, grid(8, 64, true));
    ASSERT_TRUE(result.status) << result.status.to_string();
    for (std::size_t block = 0; block < 8; ++block) EXPECT_EQ(result.out[block], 8u);
  }
}

TEST(Fibers, WrongUsesOfClustersAreReported) {
  for (Target target : emulated()) {
    if (kernels(target).cluster_lost == nullptr) continue;
    LaunchShape pair = grid(2, 64, true);
    pair.cluster = 2;
    expect_stuck(target, kernels(target).cluster_lost, pair,
                 {"block 1, whose shared memory is wanted, has ended"});
    expect_stuck(target, kernels(target).cluster_wild, pair, {"lies in no array of this block"});
    expect_stuck(target, kernels(target).cluster_outside, pair,
                 {"block 2 is asked for of a cluster of 2"});
    for (const auto& [blocks, cooperative] : {std::pair(3, true), std::pair(2, false)}) {
      LaunchShape shape = grid(blocks, 64, cooperative);
      shape.cluster = 2;
      const Outcome refused = run(target, kernels(target).position, shape);
      EXPECT_EQ(refused.status.code(), Code::kInvalidArgument);
      EXPECT_NE(refused.status.message().find("whole clusters"), std::string_view::npos)
          << refused.status.to_string();
    }
  }
}

TEST(Fibers, EarlyReturnIsReported) {
  for (Target target : emulated())
    expect_stuck(target, kernels(target).early_return, grid(1, 64),
                 {"return", "threads 3-3 returned", "fibers_test.cu:"});
}

TEST(Fibers, DifferentBarriersAreReported) {
  for (Target target : emulated())
    expect_stuck(target, kernels(target).divergent, grid(1, 64), {"different barriers"});
}

TEST(Fibers, LanesMissingInAShuffleAreReported) {
  for (Target target : emulated()) {
    expect_stuck(target, kernels(target).half_shuffle, grid(2, 128), {"shuffle", "block"});
    expect_stuck(target, kernels(target).mixed_shuffle, grid(1, 64), {"different shuffles"});
    expect_stuck(target, kernels(target).wrong_lane, grid(1, 64), {"reads lane"});
  }
}

TEST(Fibers, WorkAfterAReport) {  // the abandoned stacks are good again
  for (Target target : emulated()) {
    for (int i = 0; i < 3; ++i) {
      EXPECT_FALSE(run(target, kernels(target).early_return, grid(2, 256, true)).status);
      EXPECT_TRUE(run(target, kernels(target).staged, grid(2, 256, true)).status);
    }
  }
}

TEST(Fibers, SharedMemoryIsLimitedAndStartsAsNaNs) {
  for (Target target : emulated()) {
    expect_stuck(target, kernels(target).too_much_shared, grid(1, 64), {"shared arrays"});
    LaunchShape shape = grid(2, 64);
    shape.shared_bytes = 256;
    for (int repeat = 0; repeat < 2; ++repeat) {
      const Outcome result = run(target, kernels(target).shared_start, shape);
      ASSERT_TRUE(result.status) << result.status.to_string();
      for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(result.out[i], 0xffffffffu);
    }
    shape.shared_bytes = 1 << 20;
    EXPECT_EQ(run(target, kernels(target).shared_start, shape).status.code(),
              Code::kInvalidArgument);
  }
}

TEST(Fibers, ShapesThatNoDeviceTakesAreRefused) {
  for (Target target : emulated()) {
    const int wave = test::wave_of(target);
    for (const LaunchShape& shape :
         {grid(1, wave / 2), grid(1, wave + 1), grid(1, 2048), grid(9, wave, true)}) {
      const Outcome result = run(target, kernels(target).arrival, shape);
      EXPECT_EQ(result.status.code(), Code::kInvalidArgument) << result.status.to_string();
    }
    EXPECT_TRUE(run(target, kernels(target).arrival, grid(9, wave)).status);
  }
}

TEST(Fibers, StacksAreDeepEnough) {
  for (Target target : emulated()) {
    const Outcome result = run(target, kernels(target).deep, grid(1, 128), 1, 32 * 1024);
    ASSERT_TRUE(result.status) << result.status.to_string();
  }
}

#if !defined(__SANITIZE_ADDRESS__)
TEST(FibersDeathTest, OverrunStacksEndTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (Target target : emulated())
    EXPECT_DEATH(run(target, kernels(target).deep, grid(1, 128), 1, 66 * 1024),
                 "overran its stack");
}
#endif

}  // namespace
}  // namespace tenon
