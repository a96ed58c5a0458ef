// Transport ccl with a real NCCL (or RCCL) between devices: two ranks that are threads. Skipped,
// with the reason, where there are no two devices or no library.
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <tuple>

#include "tests/support/ccl_cases.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::CclRows;
using test::meet;
using test::RankBody;
using test::RankOptions;
using test::run_ranks;

constexpr int kRanks = 2;

// The target whose devices this test can use; null with the reason otherwise.
std::optional<Target> device_target(std::string& reason) {
  reason = "this build has no target with devices";
  for (const Target target : built_targets()) {
    if (is_host(target)) continue;
    const auto held = backend(target);
    const auto count = held ? (*held)->num_devices() : Result<int>(held.status());
    if (!count || *count < kRanks) {
      reason = "two devices are needed; found " +
               (count ? std::to_string(*count) : count.status().to_string());
      continue;
    }
    CommOptions options;
    options.transport = "ccl";
    options.bootstrap = local_bootstrap(1).front();
    const auto alone = Communicator::create(options, Device{target, 0});
    if (alone || alone.status().message().find("no library") == std::string_view::npos)
      return target;  // another failure is the business of the tests
    reason = alone.status().message();
  }
  return std::nullopt;
}

class CclDevice : public testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    const auto found = device_target(reason);
    if (!found) GTEST_SKIP() << reason;
    options_.target = *found;
    options_.transport = "ccl";
  }
  void run(const RankBody& body) { run_ranks(kRanks, options_, body); }

  RankOptions options_;
};

TEST_F(CclDevice, AllReduceHasTheBitsOfTheOracle) {
  run([](int rank, Communicator& comm) {
    EXPECT_EQ(comm.transport(), "ccl");
    test::ccl_reduces(rank, comm, {0, 1, 7, 8, 641, 4096, 70'001, 5'000'000, 3});
  });
}

TEST_F(CclDevice, AllGatherCarriesAnyBytes) {
  run([](int rank, Communicator& comm) { test::ccl_gathers(rank, comm); });
}

TEST_F(CclDevice, ReplayedGraphsMixWithEagerCalls) {
  run([](int rank, Communicator& comm) { test::ccl_replays(rank, comm); });
}

TEST_F(CclDevice, CommunicatorsComeAndGo) {
  for (int round = 0; round < 3; ++round)
    run([](int rank, Communicator& comm) { test::ccl_reduces(rank, comm, {100}); });
}

// Two addends have one order: the library's sum has our bits.
TEST_F(CclDevice, VendorSumOfTwoRanksHasTheSameBits) {
  auto handles = local_bootstrap(kRanks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank)
    threads.emplace_back([&, rank, handle = std::move(handles[static_cast<std::size_t>(rank)])] {
      CommOptions options;
      options.transport = "ccl";
      options.vendor_sum = true;
      options.bootstrap = handle;
      auto comm = Communicator::create(options, Device{options_.target, rank});
      ASSERT_TRUE(comm) << comm.status().to_string();
      EXPECT_EQ((*comm)->transport(), "ccl with its own sum");
      test::ccl_reduces(rank, **comm, {1, 641, 4096, 70'001, 5'000'000});
      test::ccl_replays(rank, **comm);
    });
  handles.clear();
  for (std::thread& thread : threads) thread.join();
}

// The kernel of the rank that did not wait in vain must be gone: its stream can be waited for.
TEST_F(CclDevice, ARankThatNeverArrivesEndsTheKernelOfTheOther) {
  options_.deadline = std::chrono::milliseconds(2'000);
  options_.expect_healthy = false;
  std::atomic<bool> ended{false};
  run([&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    auto rows = CclRows::make(comm, DType::kBF16, 4096);
    ASSERT_TRUE(stream && rows);
    meet(comm);
    if (rank == 1) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      while (!ended && std::chrono::steady_clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return;
    }
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_TRUE(comm.all_reduce({rows->view_of(rows->in)}, rows->view_of(rows->out), *stream));
    std::ignore = stream->synchronize();
    const auto waited = std::chrono::steady_clock::now() - begin;
    ended = true;
    EXPECT_LT(waited, std::chrono::seconds(20));
    while (comm.health() && std::chrono::steady_clock::now() - begin < std::chrono::seconds(20))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const Status health = comm.health();
    EXPECT_EQ(health.code(), Code::kTimeout);
    EXPECT_NE(health.message().find("ncclAllGather, call"), std::string_view::npos)
        << health.to_string();
  });
}

TEST_F(CclDevice, RanksThatShareADeviceAreRefused) {
  auto handles = local_bootstrap(kRanks);
  std::vector<std::thread> threads;
  for (auto& handle : handles)
    threads.emplace_back([&] {
      CommOptions options;
      options.transport = "ccl";
      options.bootstrap = handle;
      const auto comm = Communicator::create(options, Device{options_.target, 0});
      ASSERT_FALSE(comm);
      EXPECT_NE(comm.status().message().find("share"), std::string_view::npos)
          << comm.status().to_string();
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace tenon
