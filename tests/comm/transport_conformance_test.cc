// One suite for every line of transports.def: the same checks between ranks that are threads, and
// between processes where the transport accepts those.
#include <dirent.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <set>

#include "tenon/comm/collectives.h"
#include "tenon/comm/transport.h"
#include "tenon/core/fp8.h"
#include "tests/support/chaos.h"
#include "tests/support/fake_ccl.h"
#include "tests/support/processes.h"
#include "tests/support/ranks.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;

// What every transport must do, seen from one rank.
void conform(Communicator& comm) {
  const int rank = comm.rank(), size = comm.size();
  auto stream = Stream::create(comm.device());
  ASSERT_TRUE(stream);
  auto channel = comm.mailbox(collectives::all_reduce_mailbox_bytes(size, 128), "conformance");
  ASSERT_TRUE(channel) << channel.status().to_string();
  test::Delays delays(static_cast<std::uint64_t>(rank));

  for (int round = 0; round < 20; ++round) {
    const int count = 1 + round * 61 % 300;
    // Small whole numbers: every sum is exact, and different for every element and round.
    std::vector<std::uint16_t> mine(static_cast<std::size_t>(count)), peer_sum(mine),
        host_sum(mine);
    for (int i = 0; i < count; ++i)
      mine[static_cast<std::size_t>(i)] = to_bf16(static_cast<float>((i + round) % 11 + rank)).bits;
    const auto rows = [&](std::vector<std::uint16_t>& values) {
      return view(values.data(), DType::kBF16, comm.device(), {count});
    };
    delays.maybe_wait();
    if (comm.can().peer_pointers) {
      ASSERT_TRUE(collectives::all_reduce(*channel, {rows(mine)}, rows(peer_sum), *stream));
    }
    delays.maybe_wait();
    ASSERT_TRUE(comm.all_reduce({rows(mine)}, rows(host_sum), *stream));
    for (int i = 0; i < count; ++i) {
      const float want =
          static_cast<float>(size * ((i + round) % 11)) + static_cast<float>(size * (size - 1) / 2);
      ASSERT_EQ(to_float(bf16{host_sum[static_cast<std::size_t>(i)]}), want);
      if (comm.can().peer_pointers) {
        ASSERT_EQ(to_float(bf16{peer_sum[static_cast<std::size_t>(i)]}), want);
      }
    }

    std::vector<std::uint8_t> all(static_cast<std::size_t>(size));
    std::uint8_t own = static_cast<std::uint8_t>(rank * 16 + round % 16);
    ASSERT_TRUE(comm.all_gather(view(&own, DType::kU8, comm.device(), {1}),
                                view(all.data(), DType::kU8, comm.device(), {size, 1}), *stream));
    for (int peer = 0; peer < size; ++peer)
      ASSERT_EQ(all[static_cast<std::size_t>(peer)], peer * 16 + round % 16);

    std::int32_t value = round - rank;
    ASSERT_TRUE(comm.agree_min({&value, 1}));
    ASSERT_EQ(value, round - size + 1);
    std::vector<std::byte> bytes(70'000, static_cast<std::byte>(rank == 0 ? round : 0xee));
    ASSERT_TRUE(comm.broadcast(bytes));
    ASSERT_EQ(bytes.front(), static_cast<std::byte>(round));
    ASSERT_EQ(bytes.back(), static_cast<std::byte>(round));
  }
  const Status health = comm.health();
  EXPECT_TRUE(health) << health.to_string();
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

class EveryTransport : public testing::TestWithParam<TransportLine> {};
INSTANTIATE_TEST_SUITE_P(Transport, EveryTransport,
                         testing::ValuesIn(transport_lines().begin(), transport_lines().end()),
                         [](const auto& each) { return std::string(each.param.name); });

TEST_P(EveryTransport, ConformsBetweenThreads) {
  for (const Target target : test::host_targets())
    for (const int size : {1, 2, 4}) {
      RankOptions options;
      options.target = target;
      options.transport = GetParam().name;
      run_ranks(size, options, [&](int, Communicator& comm) {
        EXPECT_EQ(comm.transport(), GetParam().name);
        conform(comm);
      });
    }
  EXPECT_EQ(num_own_names(), 0u);
}

// The body of one rank of the tests below. Conforms, or refuses and says why.
TEST(TransportChild, DISABLED_Conform) {
  CommOptions options;
  options.transport = std::getenv("CHILD_TRANSPORT");
  options.deadline = milliseconds(10'000);
  auto comm = Communicator::create(options, Device{});
  if (!comm) {
    std::printf("refused: %s\n", comm.status().to_string().c_str());
    return;
  }
  std::printf("transport: %s\n", std::string((*comm)->transport()).c_str());
  conform(**comm);
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
                  milliseconds deadline) override {
    if (calls_left_-- == 0) {
      std::printf("stopped, pid %d\n", static_cast<int>(getpid()));
      std::fflush(stdout);
      for (;;) pause();
    }
    return inner_->exchange(mine, all, label, deadline);
  }
  void abort(std::string_view why) override { inner_->abort(why); }

 private:
  const std::shared_ptr<Bootstrap> inner_;
  int calls_left_;
};

// Opens shm, which maps its first regions, and stops in one of the exchanges of that.
TEST(TransportChild, DISABLED_StopInsideMap) {
  Stopping bootstrap(std::atoi(std::getenv("CHILD_CALL")));
  const RankCard card = own_card(Device{});
  for (const TransportLine& line : transport_lines())
    if (line.name == "shm")
      std::ignore = line.open({bootstrap, Device{}, {&card, 1}, milliseconds(10'000)});
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
    const bool accepts = GetParam().name != "threads";
    const std::string want =
        accepts
            ? "transport: " + std::string(GetParam().name)
            : "refused: unsupported: communicator: no transport that all ranks accept; threads: "
              "rank 0: rank 1 is in another process (pid ";
    EXPECT_NE(rank.output().find(want), std::string::npos) << rank.output();
  }
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
                "transport \"pigeon\" is not known; accepted: auto, threads, shm"),
            std::string_view::npos)
      << comm.status().message();
}

}  // namespace
}  // namespace tenon
