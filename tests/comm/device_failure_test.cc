// A rank that dies, stops or stays away while kernels of others wait for it, on devices: they get
// their error in time, their devices stay usable, and the same processes meet again.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include "tests/support/conform.h"
#include "tests/support/processes.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;
using test::meet;
using test::run_ranks;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kPatience(60'000);  // for contexts and for what is not the subject

int number_from(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 0 : std::atoi(text);
}

// Reduces on a device until a wait fails. Says what, and how long the last call took.
void reduce_until_it_fails(Communicator& comm, milliseconds nap) {
  auto stream = Stream::create(comm.device());
  auto channel =
      comm.make_channel(collectives::all_reduce_mailbox_bytes(comm.size(), 4096), "loop");
  ASSERT_TRUE(stream && channel);
  test::DeviceArray<std::uint16_t> memory(*stream, 64);
  memory.put(std::vector<std::uint16_t>(64, to_bf16(1.0f).bits));
  const TensorView rows = memory.first(64, DType::kBF16);
  meet(comm);
  std::printf("running\n");
  std::fflush(stdout);
  for (;;) {
    std::this_thread::sleep_for(nap);
    const auto begin = Clock::now();
    Status status = collectives::all_reduce(*channel, {rows}, rows, *stream);
    if (status) status = stream->synchronize();
    const auto waited = std::chrono::duration_cast<milliseconds>(Clock::now() - begin);
    if (status) status = comm.health();
    if (status) continue;
    std::printf("failed after %d ms: %s\n", static_cast<int>(waited.count()),
                status.to_string().c_str());
    std::fflush(stdout);
    return;
  }
}

// One rank: meets, runs until a peer is lost, and then meets whoever comes to the second port.
TEST(DeviceChild, DISABLED_FailAndMeetAgain) {
  const auto device = test::child_device();
  ASSERT_TRUE(device) << device.status().to_string();
  CommOptions options;
  options.transport = "ipc";
  options.deadline = milliseconds(number_from("CHILD_DEADLINE_MS"));
  const int rank = number_from("RANK");
  {
    auto comm = Communicator::create(options, *device);
    ASSERT_TRUE(comm) << comm.status().to_string();
    reduce_until_it_fails(**comm, milliseconds(rank == 0 ? number_from("CHILD_NAP_MS") : 0));
  }
  const Launch second{rank, number_from("WORLD_SIZE"), number_from("LOCAL_RANK"), "127.0.0.1",
                      number_from("CHILD_SECOND_PORT")};
  auto bootstrap = socket_bootstrap(second, kPatience);
  ASSERT_TRUE(bootstrap) << bootstrap.status().to_string();
  options.bootstrap = *bootstrap;
  options.deadline = milliseconds(10'000);
  auto comm = Communicator::create(options, *device);
  ASSERT_TRUE(comm) << comm.status().to_string();
  test::conform(**comm);
  std::printf("met again\n");
}

// Who takes the place of the lost rank.
TEST(DeviceChild, DISABLED_Replace) {
  const auto device = test::child_device();
  ASSERT_TRUE(device) << device.status().to_string();
  CommOptions options;
  options.transport = "ipc";
  options.deadline = milliseconds(10'000);
  auto comm = Communicator::create(options, *device);
  ASSERT_TRUE(comm) << comm.status().to_string();
  test::conform(**comm);
}

int milliseconds_waited(const std::string& output) {
  const std::string marker = "failed after ";
  const auto at = output.find(marker);
  return at == std::string::npos ? -1 : std::atoi(output.c_str() + at + marker.size());
}

struct Case {
  int size = 2;
  int signal_number = SIGKILL;
  milliseconds deadline{1'000};
  milliseconds nap{0};     // of rank 0 before every call: the others are in a wait for it
  bool is_waiting = true;  // the survivors wait for the victim, so that the deadline ends them
};

// Sends a signal to the last rank while all run; the others must end in time, and meet its
// replacement afterwards.
void disturb(Target target, const Case& each) {
  SCOPED_TRACE(std::to_string(each.size) + " ranks, signal " + std::to_string(each.signal_number) +
               ", nap " + std::to_string(each.nap.count()) + " ms");
  const int second_port = test::free_port(), victim = each.size - 1;
  const std::string of_target = "CHILD_TARGET=" + test::to_string(target);
  auto ranks =
      test::start_ranks(each.size, "DeviceChild.DISABLED_FailAndMeetAgain",
                        {of_target, "CHILD_DEADLINE_MS=" + std::to_string(each.deadline.count()),
                         "CHILD_NAP_MS=" + std::to_string(each.nap.count()),
                         "CHILD_SECOND_PORT=" + std::to_string(second_port)});
  for (test::Process& rank : ranks)
    ASSERT_TRUE(rank.prints("running\n", kPatience)) << rank.output();
  std::this_thread::sleep_for(milliseconds(50));
  ranks[static_cast<std::size_t>(victim)].send(each.signal_number);
  const auto most = each.deadline * 11 / 10 + each.nap;
  for (int rank = 0; rank < victim; ++rank) {
    test::Process& other = ranks[static_cast<std::size_t>(rank)];
    ASSERT_TRUE(other.prints("failed after", most + milliseconds(10'000))) << other.output();
    ASSERT_TRUE(other.prints("\n", kPatience));
    const int waited = milliseconds_waited(other.output());
    EXPECT_LE(waited, most.count()) << other.output();
    if (each.signal_number == SIGSTOP && each.is_waiting) {
      EXPECT_GE(waited, each.deadline.count() * 9 / 10) << other.output();
    }
    EXPECT_NE(other.output().find("rank " + std::to_string(victim)), std::string::npos)
        << other.output();
  }
  test::Process replacement =
      test::start_rank(victim, each.size, second_port, "DeviceChild.DISABLED_Replace", {of_target});
  for (int rank = 0; rank < victim; ++rank) {
    test::Process& other = ranks[static_cast<std::size_t>(rank)];
    const int status = other.wait(kPatience);
    EXPECT_TRUE(status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << status << ": " << other.output();
    EXPECT_NE(other.output().find("met again"), std::string::npos) << other.output();
    std::printf("%s", other.output().substr(other.output().find("failed after")).c_str());
  }
  const int status = replacement.wait(kPatience);
  EXPECT_TRUE(status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
      << status << ": " << replacement.output();
}

class DeviceFailure : public testing::Test {
 protected:
  void SetUp() override {
    if (test::device_targets().empty()) GTEST_SKIP() << test::kNoDevice;
    target = test::device_targets().front();
  }
  Target target = Target::kCuda;
};

TEST_F(DeviceFailure, AKilledRankIsNoticedByThoseWhoWaitForIt) {
  disturb(target, {.signal_number = SIGKILL});
}

TEST_F(DeviceFailure, ARankKilledInAWaitIsNoticedByWhoComesLate) {
  disturb(target, {.signal_number = SIGKILL, .nap = milliseconds(300)});
}

TEST_F(DeviceFailure, AStoppedRankIsNamedAtTheDeadline) {
  disturb(target, {.signal_number = SIGSTOP});
}

// Two on each device where there are two: they take turns on it, so the bound is the upper one.
TEST_F(DeviceFailure, AKilledRankAmongFourIsNoticed) {
  disturb(target, {.size = 4, .signal_number = SIGKILL, .deadline = milliseconds(4'000)});
}

TEST_F(DeviceFailure, AStoppedRankAmongFourIsNamed) {
  disturb(
      target,
      {.size = 4, .signal_number = SIGSTOP, .deadline = milliseconds(4'000), .is_waiting = false});
}

// Ranks as threads: the one that stays away is named, and the devices serve the next team.
TEST_F(DeviceFailure, AThreadThatStaysAwayIsNamed) {
  constexpr milliseconds kDeadline(500);
  run_ranks(2, {.target = target, .deadline = kDeadline, .expect_healthy = false},
            [&](int rank, Communicator& comm) {
              auto stream = Stream::create(comm.device());
              auto channel =
                  comm.make_channel(collectives::all_reduce_mailbox_bytes(2, 4096), "loop");
              ASSERT_TRUE(stream && channel);
              test::DeviceArray<std::uint16_t> memory(*stream, 64);
              const TensorView rows = memory.first(64, DType::kBF16);
              meet(comm);
              if (rank == 1) {  // stays while the other waits
                std::this_thread::sleep_for(kDeadline * 2);
                return;
              }
              const auto begin = Clock::now();
              ASSERT_TRUE(collectives::all_reduce(*channel, {rows}, rows, *stream));
              ASSERT_TRUE(stream->synchronize());
              const auto waited = Clock::now() - begin;
              EXPECT_GE(waited, kDeadline * 9 / 10);
              EXPECT_LE(waited, kDeadline * 11 / 10);
              const Status health = comm.health();
              EXPECT_EQ(health.code(), Code::kTimeout);
              EXPECT_NE(health.message().find("for rank 1 (phase scatter), call 0"),
                        std::string_view::npos)
                  << health.to_string();
            });
  run_ranks(2, {.target = target}, [](int, Communicator& comm) { test::conform(comm); });
}

}  // namespace
}  // namespace tenon
