// One suite for every line of transports.def: the same checks between ranks that are threads, and
// between processes where the transport accepts those.
#include <dirent.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <set>

#include "tenon/comm/transport/transport.h"
#include "tests/support/conform.h"
#include "tests/support/fake_ccl.h"
#include "tests/support/processes.h"
#include "tests/support/ranks.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;
using test::RankOptions;
using test::run_ranks;

using test::conform;

// Which transport serves what. One that does not refuses, and says why.
bool serves(std::string_view transport, Target target, bool processes) {
  if (transport == "threads") return !processes;
  if (transport == "ipc") return !is_host(target);
  if (transport == "shm") return is_host(target);
  if (transport == "ccl") return is_host(target);  // the library of these tests is a stand-in
  return true;
}

std::set<std::string> shared_memory_of_tenon() {
  std::set<std::string> names;
  if (DIR* folder = opendir("/dev/shm")) {
    while (const dirent* entry = readdir(folder))
      if (std::strncmp(entry->d_name, "tenon-", 6) == 0) names.insert(entry->d_name);
    closedir(folder);
  }
  return names;
}

// Names of this process: other tests of the machine may be mapping at this moment.
std::size_t num_own_names() {
  const std::string prefix = "tenon-" + std::to_string(getpid()) + "-";
  std::size_t found = 0;
  for (const std::string& each : shared_memory_of_tenon()) found += each.starts_with(prefix);
  return found;
}

class EveryTransport : public testing::TestWithParam<TransportEntry> {};
INSTANTIATE_TEST_SUITE_P(Transport, EveryTransport,
                         testing::ValuesIn(transport_lines().begin(), transport_lines().end()),
                         [](const auto& each) { return std::string(each.param.name); });

TEST_P(EveryTransport, ConformsBetweenThreads) {
  for (const Target target : test::usable_targets()) {
    if (!serves(GetParam().name, target, false)) continue;
    for (const int size : {1, 2, 4}) {
      RankOptions options;
      options.target = target;
      options.transport = GetParam().name;
      run_ranks(size, options, [&](int, Communicator& comm) {
        EXPECT_EQ(comm.transport(), GetParam().name);
        conform(comm);
      });
    }
  }
  EXPECT_EQ(num_own_names(), 0u);
}

TEST_P(EveryTransport, RefusesTargetsThatItDoesNotServe) {
  for (const Target target : test::usable_targets()) {
    if (serves(GetParam().name, target, false)) continue;
    CommOptions options;
    options.transport = GetParam().name;
    const auto comm = Communicator::create(options, *nth_device(target, 0));
    ASSERT_FALSE(comm);
    EXPECT_EQ(comm.status().code(), Code::kUnsupported);
    EXPECT_NE(comm.status().message().find("only, not " + test::to_string(target)),
              std::string_view::npos)
        << comm.status().message();
  }
}

// The body of one rank of the tests below. Conforms, or refuses and says why.
TEST(TransportChild, DISABLED_Conform) {
  CommOptions options;
  options.transport = std::getenv("CHILD_TRANSPORT");
  options.deadline = milliseconds(10'000);
  const auto device = test::child_device();
  ASSERT_TRUE(device) << device.status().to_string();
  // What creation takes is counted from here: the ranks have met, and the device has its context.
  ASSERT_TRUE(Stream::create(*device));
  const auto launch = read_launch([](const char* name) { return std::getenv(name); });
  ASSERT_TRUE(launch) << launch.status().to_string();
  auto bootstrap = socket_bootstrap(*launch, options.deadline);
  ASSERT_TRUE(bootstrap) << bootstrap.status().to_string();
  options.bootstrap = *bootstrap;
  ASSERT_TRUE(options.bootstrap->barrier("ready", options.deadline));
  const auto begin = std::chrono::steady_clock::now();
  auto comm = Communicator::create(options, *device);
  const auto took =
      std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - begin);
  if (!comm) {
    std::printf("refused: %s\n", comm.status().to_string().c_str());
    return;
  }
  std::printf("transport: %s\n", std::string((*comm)->transport()).c_str());
  std::printf("created in %d ms\n", static_cast<int>(took.count()));
  if (!is_host(device->target) && !(*comm)->shares_device()) {
    EXPECT_LE(took, milliseconds(200));
  }
  conform(**comm);
  EXPECT_EQ((*comm)->links().empty(),
            is_host(device->target) || (*comm)->size() == 1 || !(*comm)->can().peer_pointers);
  for (std::size_t peer = 0; peer < (*comm)->links().size(); ++peer) {
    const Link link = (*comm)->links()[peer];
    std::printf("link to %zu: %.2f us, %.1f GB/s\n", peer, link.latency_us, link.gbytes_per_s);
    const bool own = static_cast<int>(peer) == (*comm)->rank();
    EXPECT_EQ(link.latency_us > 0 && link.gbytes_per_s > 0, !own);
  }
  for (const std::string& refusal : (*comm)->refusals())
    std::printf("passed over: %s\n", refusal.c_str());
  EXPECT_EQ(num_own_names(), 0u);
}

// Stops for good in its n-th exchange.
class Stopping final : public Bootstrap {
 public:
  explicit Stopping(int call) : inner_(local_bootstrap(1).front()), calls_left_(call) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Status exchange(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view label,
                  WaitBudget budget) override {
    if (calls_left_-- == 0) {
      std::printf("stopped, pid %d\n", static_cast<int>(getpid()));
      std::fflush(stdout);
      for (;;) pause();
    }
    return inner_->exchange(mine, all, label, budget);
  }
  void abort(std::string_view why) override { inner_->abort(why); }

 private:
  const std::shared_ptr<Bootstrap> inner_;
  int calls_left_;
};

// Opens shm, which maps its first regions, and stops in one of the exchanges of that.
TEST(TransportChild, DISABLED_StopInsideMap) {
  Stopping bootstrap(std::atoi(std::getenv("CHILD_CALL")));
  const RankInfo info = own_card(Device{});
  for (const TransportEntry& line : transport_lines())
    if (line.name == "shm")
      std::ignore = line.open({bootstrap, Device{}, {&info, 1}, milliseconds(10'000)});
  std::printf("opened, pid %d\n", static_cast<int>(getpid()));
}

TEST(SharedMemory, AKilledRankLeavesNothingBehind) {
  int num_stopped = 0;
  for (bool stopped = true; stopped; ++num_stopped) {
    test::Process child =
        test::start_rank(0, 1, test::free_port(), "TransportChild.DISABLED_StopInsideMap",
                         {"CHILD_CALL=" + std::to_string(num_stopped)});
    ASSERT_TRUE(child.prints(", pid ", milliseconds(20'000)));
    ASSERT_TRUE(child.prints("\n", milliseconds(20'000)));
    stopped = child.output().find("stopped") != std::string::npos;
    child.send(SIGKILL);
    child.wait(milliseconds(20'000));
    const int pid = std::atoi(child.output().c_str() + child.output().find(", pid ") + 6);
    for (const std::string& each : shared_memory_of_tenon())
      EXPECT_FALSE(each.starts_with("tenon-" + std::to_string(pid) + "-"))
          << each << " is left when killed in exchange " << num_stopped;
  }
  EXPECT_GT(num_stopped, 2);
}

TEST_P(EveryTransport, ConformsBetweenProcessesOrRefuses) {
  auto ranks = test::start_ranks(3, "TransportChild.DISABLED_Conform",
                                 {"CHILD_TRANSPORT=" + std::string(GetParam().name)});
  test::expect_all_succeed(ranks, milliseconds(60'000));
  for (test::Process& rank : ranks) {
    const bool accepts = serves(GetParam().name, Target::kCpu, true);
    const std::string name(GetParam().name);
    const std::string want =
        accepts ? "transport: " + name
                : "refused: unsupported: communicator: no transport that all ranks accept; " +
                      name + ": rank 0: " +
                      (name == "threads" ? "rank 1 is in another process (pid "
                                         : "serves devices only, not cpu");
    EXPECT_NE(rank.output().find(want), std::string::npos) << rank.output();
  }
}

// Two ranks, on a device each where there are two, and four, which share devices.
TEST_P(EveryTransport, ConformsBetweenProcessesOnDevices) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  for (const Target target : test::device_targets())
    for (const int size : {2, 4}) {
      if (!serves(GetParam().name, target, true)) continue;
      auto ranks = test::start_ranks(size, "TransportChild.DISABLED_Conform",
                                     {"CHILD_TRANSPORT=" + std::string(GetParam().name),
                                      "CHILD_TARGET=" + test::to_string(target)});
      test::expect_all_succeed(ranks, milliseconds(60'000));
      for (test::Process& rank : ranks)
        EXPECT_NE(rank.output().find("transport: " + std::string(GetParam().name)),
                  std::string::npos)
            << rank.output();
      std::printf("%s", ranks[0].output().c_str());
    }
}

TEST(Transport, AutoTakesIpcBetweenProcessesOnDevices) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  for (const Target target : test::device_targets()) {
    auto ranks =
        test::start_ranks(2, "TransportChild.DISABLED_Conform",
                          {"CHILD_TRANSPORT=auto", "CHILD_TARGET=" + test::to_string(target)});
    test::expect_all_succeed(ranks, milliseconds(60'000));
    for (test::Process& rank : ranks)
      EXPECT_NE(rank.output().find("transport: ipc"), std::string::npos) << rank.output();
  }
}

// As some launchers do it: every process knows its device as number 0.
TEST(Transport, ProcessesThatSeeOneDeviceEachMeetOverIpc) {
  if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
  if (std::getenv("CUDA_VISIBLE_DEVICES") != nullptr ||
      std::getenv("HIP_VISIBLE_DEVICES") != nullptr)
    GTEST_SKIP() << "this test hides devices, and somebody has done so already";
  const Target target = test::device_targets().front();
  const int count = *(*backend(target))->num_devices();
  const int port = test::free_port();
  std::vector<test::Process> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    const std::string visible = std::to_string(rank % count);
    ranks.push_back(
        test::start_rank(rank, 2, port, "TransportChild.DISABLED_Conform",
                         {"CHILD_TRANSPORT=ipc", "CHILD_TARGET=" + test::to_string(target),
                          "CUDA_VISIBLE_DEVICES=" + visible, "HIP_VISIBLE_DEVICES=" + visible}));
  }
  test::expect_all_succeed(ranks, milliseconds(60'000));
}

TEST(Transport, AutoPassesOverWhatARankRefusesAndSaysWhy) {
  auto ranks = test::start_ranks(2, "TransportChild.DISABLED_Conform", {"CHILD_TRANSPORT=auto"});
  test::expect_all_succeed(ranks, milliseconds(60'000));
  for (test::Process& rank : ranks) {
    EXPECT_NE(rank.output().find("transport: shm"), std::string::npos) << rank.output();
    EXPECT_NE(rank.output().find("passed over: threads: rank 0: rank 1 is in another process"),
              std::string::npos)
        << rank.output();
  }
}

TEST(Transport, UnknownNamesAreRefusedWithTheList) {
  CommOptions options;
  options.transport = "pigeon";
  const auto comm = Communicator::create(options, Device{});
  ASSERT_FALSE(comm);
  EXPECT_NE(comm.status().message().find(
                "transport \"pigeon\" is not known; accepted: auto, threads, ipc, shm"),
            std::string_view::npos)
      << comm.status().message();
}

}  // namespace
}  // namespace tenon
