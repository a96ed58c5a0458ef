// Transport ccl over a library that runs on the host (tests/support/fake_ccl.cc): exact sums, the
// library's own, and everything that can go wrong. With a real library: ccl_device_test.cc.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>

#include "tenon/comm/transport/transport.h"
#include "tenon/core/env.h"
#include "tests/support/ccl_cases.h"
#include "tests/support/fake_ccl.h"
#include "tests/support/processes.h"
#include "tests/support/says.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;
using test::CclRows;
using test::FakeCclFault;
using test::RankBody;
using test::RankOptions;
using test::run_ranks;
using test::says;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kDeadline(200);
// Twice, for a wait in the library and one at its end, and what a busy machine may take.
constexpr milliseconds kEnd = 2 * kDeadline + milliseconds(700);

RankOptions over_ccl(Target target = Target::kCpu) {
  RankOptions options;
  options.target = target;
  options.transport = "ccl";
  return options;
}

TEST(Ccl, AddendsOfTheseTestsDependOnTheOrder) {
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const int size : {3, 8})
      EXPECT_NE(test::ccl_sum(dtype, 640, size, 1), test::ccl_sum(dtype, 640, size, 1, true));
}

TEST(Ccl, AllReduceHasTheBitsOfTheOracleInEveryWorld) {
  for (const Target target : test::host_targets())
    for (int size = 1; size <= kMaxRanks; ++size)
      run_ranks(size, over_ccl(target), [&](int rank, Communicator& comm) {
        EXPECT_EQ(comm.transport(), "ccl");
        EXPECT_FALSE(comm.can().peer_pointers);
        EXPECT_TRUE(comm.can().capturable);
        test::ccl_reduces(rank, comm, {0, 1, 7, 8, 641, 1024, 3});
      });
}

TEST(Ccl, LongAddendsGoThroughTheScratchInChunks) {
  for (const int size : {2, 3})
    run_ranks(size, over_ccl(), [&](int rank, Communicator& comm) {
      test::ccl_reduces(rank, comm, {32'768, 32'769, 100'001, 5});
    });
}

TEST(Ccl, AllGatherCarriesAnyBytes) {
  for (const int size : {1, 2, 5, 8})
    run_ranks(size, over_ccl(),
              [&](int rank, Communicator& comm) { test::ccl_gathers(rank, comm); });
}

TEST(Ccl, ReplayedGraphsMixWithEagerCalls) {
  for (const Target target : test::host_targets())
    run_ranks(3, over_ccl(target),
              [&](int rank, Communicator& comm) { test::ccl_replays(rank, comm); });
}

TEST(Ccl, AProcessMayHaveManyCommunicators) {
  std::vector<std::vector<std::shared_ptr<Bootstrap>>> teams;
  for (int team = 0; team < 3; ++team) teams.push_back(local_bootstrap(2));
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < 2; ++rank)
    threads.emplace_back([&, rank] {
      std::vector<std::unique_ptr<Communicator>> comms;
      for (auto& team : teams) {
        CommOptions options;
        options.transport = "ccl";
        options.bootstrap = team[rank];
        auto comm = Communicator::create(options, Device{});
        ASSERT_TRUE(comm) << comm.status().to_string();
        comms.push_back(*std::move(comm));
      }
      for (int round = 0; round < 3; ++round)
        for (auto& comm : comms) test::ccl_reduces(static_cast<int>(rank), *comm, {100});
      comms.erase(comms.begin() + 1);
      for (auto& comm : comms) test::ccl_reduces(static_cast<int>(rank), *comm, {33});
    });
  for (std::thread& thread : threads) thread.join();
}

// --- the library's own sum ----------------------------------------------------------------------

// Every rank's result of creating a communicator; `change` may make ranks different.
std::vector<Status> create_all(int size, const std::function<void(int, CommOptions&)>& change,
                               const RankBody& body = {}) {
  auto handles = local_bootstrap(size);
  std::vector<Status> statuses(handles.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < handles.size(); ++rank)
    threads.emplace_back([&, rank, handle = std::move(handles[rank])] {
      CommOptions options;
      options.transport = "ccl";
      options.bootstrap = handle;
      options.deadline = milliseconds(10'000);
      change(static_cast<int>(rank), options);
      auto comm = Communicator::create(options, Device{});
      statuses[rank] = comm.status();
      if (comm && body) body(static_cast<int>(rank), **comm);
    });
  handles.clear();
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

TEST(Ccl, VendorSumIsTheLibrarysOwnAndSaysSo) {
  const auto statuses = create_all(
      3, [](int, CommOptions& options) { options.vendor_sum = true; },
      [](int rank, Communicator& comm) {
        EXPECT_EQ(comm.transport(), "ccl with its own sum");
        auto stream = Stream::create(comm.device());
        ASSERT_TRUE(stream);
        for (const DType dtype : {DType::kBF16, DType::kF16}) {
          auto rows = CclRows::make(comm, dtype, 641);
          ASSERT_TRUE(rows && rows->set(test::ccl_addend(dtype, 641, rank, 9), *stream));
          ASSERT_TRUE(
              comm.all_reduce({rows->view_of(rows->in)}, rows->view_of(rows->out), *stream));
          EXPECT_EQ(rows->get(rows->out, *stream), test::ccl_sum(dtype, 641, 3, 9, true));
        }
        test::ccl_replays(rank, comm, false);
        test::ccl_gathers(rank, comm);
      });
  for (const Status& status : statuses) EXPECT_TRUE(status) << status.to_string();
}

TEST(Ccl, VendorSumNeedsTransportCcl) {
  for (const char* transport : {"threads", "shm", "auto"}) {
    const auto statuses = create_all(2, [&](int, CommOptions& options) {
      options.vendor_sum = true;
      options.transport = transport;
    });
    for (const Status& status : statuses) {
      EXPECT_EQ(status.code(), Code::kInvalidArgument);
      EXPECT_TRUE(says(status, "has no sum of its own; accepted: transport ccl"))
          << status.to_string();
    }
  }
}

TEST(Ccl, RanksThatDisagreeOnVendorSumAreRefused) {
  const auto statuses =
      create_all(2, [](int rank, CommOptions& options) { options.vendor_sum = rank == 1; });
  for (const Status& status : statuses)
    EXPECT_TRUE(says(status, "vendor_sum: false on rank 0, true on rank 1")) << status.to_string();
}

// --- one rank for each device -------------------------------------------------------------------

// What transport ccl says to ranks on GPUs that they know by these numbers and that are these.
std::vector<Status> probe_gpus(const std::vector<int>& numbers, const std::vector<int>& devices) {
  const auto bootstraps = local_bootstrap(static_cast<int>(numbers.size()));
  std::vector<RankInfo> infos;
  for (std::size_t rank = 0; rank < numbers.size(); ++rank) {
    infos.push_back(own_card(Device{}));
    infos.back().process += rank;
    infos.back().device = Device{Target::kCuda, numbers[rank]};
    infos.back().device_id = {static_cast<std::uint8_t>(1 + devices[rank])};
  }
  std::vector<Status> statuses;
  for (std::size_t rank = 0; rank < numbers.size(); ++rank) {
    const TransportContext context{*bootstraps[rank], infos[rank].device, infos, kDeadline};
    for (const TransportEntry& line : transport_lines())
      if (line.name == "ccl") statuses.push_back(line.probe(context));
  }
  return statuses;
}

// As launchers do it that show each process its own GPU, by the number 0.
TEST(Ccl, ProcessesThatEachSeeOneGpuAreAccepted) {
  for (const auto& numbers : {std::vector{0, 0, 0}, {1, 0, 0}, {0, 1, 2}})
    for (const Status& status : probe_gpus(numbers, {0, 1, 2}))
      // No more than that this library is a stand-in: nothing is said against the devices.
      EXPECT_TRUE(says(status, "serves host targets, not cuda")) << status.to_string();
}

TEST(Ccl, OneGpuUnderTwoNumbersIsRefused) {
  for (const Status& status : probe_gpus({0, 1, 2}, {0, 1, 0})) {
    EXPECT_EQ(status.code(), Code::kUnsupported);
    EXPECT_EQ(status.message(),
              "ranks 0 and 2 share one device, which they call cuda:0 and cuda:2; accepted: one "
              "rank per device");
  }
  for (const Status& status : probe_gpus({3, 3}, {0, 0}))
    EXPECT_TRUE(says(status, "ranks 0 and 1 share one device")) << status.to_string();
}

// --- libraries that cannot be used --------------------------------------------------------------

TEST(CclChild, DISABLED_Create) {
  CommOptions options;
  options.transport = "ccl";
  options.deadline = milliseconds(10'000);
  const auto comm = Communicator::create(options, Device{});
  std::printf("created: %s\n", comm.status().to_string().c_str());
}

// What one process says that is started with these variables.
std::string creation_with(const std::vector<std::string>& variables) {
  std::ignore = env();  // read before the next line
  const std::string fake = std::getenv("TENON_CCL_LIBRARY");
  unsetenv("TENON_CCL_LIBRARY");
  test::Process child =
      test::start_rank(0, 1, test::free_port(), "CclChild.DISABLED_Create", variables);
  setenv("TENON_CCL_LIBRARY", fake.c_str(), 1);
  child.wait(milliseconds(20'000));
  return child.output();
}

TEST(Ccl, AMissingLibraryIsNamed) {
  const std::string said = creation_with({"TENON_CCL_LIBRARY=/nowhere/libnccl.so.2"});
  EXPECT_NE(said.find("no transport that all ranks accept; ccl: rank 0: no library: "
                      "/nowhere/libnccl.so.2: cannot open shared object file"),
            std::string::npos)
      << said;
  EXPECT_NE(said.find("(TENON_CCL_LIBRARY names another file)"), std::string::npos) << said;
}

TEST(Ccl, ALibraryWithoutTheFunctionsIsNamedWithTheFirstThatIsMissing) {
  const std::string said = creation_with({"TENON_CCL_LIBRARY=libm.so.6"});
  EXPECT_NE(said.find("libm.so.6 has no function ncclGetVersion; accepted: NCCL or RCCL"),
            std::string::npos)
      << said;
}

// --- failures -----------------------------------------------------------------------------------

TEST(Ccl, AFailedInitEndsTheWaitsOfAllWithItsReason) {
  const FakeCclFault fault("1 fail_init");
  const auto begin = Clock::now();
  const auto statuses =
      create_all(3, [](int, CommOptions& options) { options.deadline = milliseconds(20'000); });
  EXPECT_LT(Clock::now() - begin, milliseconds(5'000));
  EXPECT_TRUE(says(statuses[1], "ncclCommInitRankConfig: internal error (3)"))
      << statuses[1].to_string();
  for (const int rank : {0, 2})
    EXPECT_TRUE(says(statuses[static_cast<std::size_t>(rank)],
                     "rank 1 gave up: ncclCommInitRankConfig: internal error (3)"))
        << statuses[static_cast<std::size_t>(rank)].to_string();
}

TEST(Ccl, AnInitThatNeverEndsEndsAtTheDeadline) {
  const FakeCclFault fault("1 hang_init");
  const auto begin = Clock::now();
  const auto statuses =
      create_all(2, [](int, CommOptions& options) { options.deadline = kDeadline; });
  EXPECT_LT(Clock::now() - begin, kEnd);
  for (const Status& status : statuses)
    EXPECT_TRUE(says(status, "making the communicator")) << status.to_string();
}

TEST(Ccl, DifferentVersionsAreRefusedByAll) {
  const int port = test::free_port();
  std::vector<test::Process> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.push_back(test::start_rank(
        rank, 2, port, "CclChild.DISABLED_Create",
        {rank == 1 ? std::string("FAKE_CCL=-1 old_version") : std::string("CHILD=0")}));
  for (test::Process& rank : ranks) {
    rank.wait(milliseconds(20'000));
    EXPECT_NE(rank.output().find("rank 0 has NCCL 2.28.3 and rank 1 has 2.27.5; all must load"),
              std::string::npos)
        << rank.output();
  }
}

// Two ranks reduce until rank 0 is not healthy, or for 20 rounds. `ends` gets what it then says.
void reduce_until_it_fails(int num_ranks, milliseconds deadline, std::vector<Status>& ends) {
  RankOptions options = over_ccl();
  options.deadline = deadline;
  options.expect_healthy = false;
  ends.resize(static_cast<std::size_t>(num_ranks));
  std::atomic<int> num_ended{0};
  run_ranks(num_ranks, options, [&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    auto rows = CclRows::make(comm, DType::kBF16, 100);
    ASSERT_TRUE(stream && rows);
    for (int round = 0; round < 20 && comm.health(); ++round) {
      EXPECT_TRUE(comm.all_reduce({rows->view_of(rows->in)}, rows->view_of(rows->out), *stream));
      std::this_thread::sleep_for(milliseconds(5));
    }
    ends[static_cast<std::size_t>(rank)] = comm.health();
    // Everything afterwards ends at once.
    const auto begin = Clock::now();
    EXPECT_TRUE(comm.all_reduce({rows->view_of(rows->in)}, rows->view_of(rows->out), *stream));
    EXPECT_FALSE(comm.agree_min({}));
    EXPECT_LT(Clock::now() - begin, milliseconds(500));
    for (++num_ended; num_ended < num_ranks;) std::this_thread::sleep_for(milliseconds(1));
  });
}

TEST(Ccl, ACallThatTheLibraryRefusesIsNamedOnEveryRank) {
  const FakeCclFault fault("1 fail 4");  // two calls of every rank are for the connections
  std::vector<Status> ends;
  reduce_until_it_fails(3, milliseconds(20'000), ends);
  EXPECT_EQ(ends[1].code(), Code::kDevice);
  for (const Status& end : ends)
    EXPECT_TRUE(says(end,
                     "rank 1 in ncclAllGather, call 4, channel \"ccl\": ncclAllGather: "
                     "internal error (3)"))
        << end.to_string();
}

TEST(Ccl, AnAsynchronousErrorIsNamedOnEveryRank) {
  const FakeCclFault fault("2 report 5");
  std::vector<Status> ends;
  reduce_until_it_fails(3, milliseconds(20'000), ends);
  for (const Status& end : ends)
    EXPECT_TRUE(says(end, "remote process exited or there was a network error (6)"))
        << end.to_string();
  EXPECT_TRUE(says(ends[0], "rank 2")) << ends[0].to_string();
}

TEST(Ccl, ACallThatNeverBeginsEndsAtTheDeadline) {
  const FakeCclFault fault("1 hang 6");
  std::vector<Status> ends;
  const auto begin = Clock::now();
  reduce_until_it_fails(2, kDeadline, ends);
  EXPECT_LT(Clock::now() - begin, kEnd + kEnd);
  for (const Status& end : ends) {
    EXPECT_TRUE(says(end, "ncclAllGather, call 6, channel \"ccl\"")) << end.to_string();
    EXPECT_TRUE(says(end, "deadline")) << end.to_string();
  }
}

TEST(Ccl, ARankThatNeverArrivesEndsTheOthersAtTheDeadline) {
  for (const char* what : {"all_reduce", "all_gather", "agree_min"}) {
    SCOPED_TRACE(what);
    RankOptions options = over_ccl();
    options.deadline = kDeadline;
    options.expect_healthy = false;
    std::atomic<int> num_ended{0};
    run_ranks(3, options, [&](int rank, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      auto rows = CclRows::make(comm, DType::kBF16, 64);
      auto all = Buffer::allocate(comm.device(), 3 * 128);
      ASSERT_TRUE(stream && rows && all);
      if (rank != 1) {
        const TensorView in = rows->view_of(rows->in);
        const auto begin = Clock::now();
        const TensorView gathered = view(all->data(), DType::kBF16, comm.device(), {3, 64});
        if (what[4] == 'r') {
          EXPECT_TRUE(comm.all_reduce({in}, rows->view_of(rows->out), *stream));
        } else if (what[4] == 'g') {
          EXPECT_TRUE(comm.all_gather(in, gathered, *stream));
        } else {
          EXPECT_FALSE(comm.agree_min({}));
        }
        EXPECT_LT(Clock::now() - begin, kEnd);
        const Status health = comm.health();
        EXPECT_TRUE(says(health, "deadline")) << health.to_string();
        EXPECT_EQ(comm.health().to_string(), health.to_string()) << "it stays so";
      }
      for (++num_ended; num_ended < 3;) std::this_thread::sleep_for(milliseconds(1));
    });
  }
}

TEST(Ccl, AnAbortEndsTheWaitsOfAllWithItsReason) {
  RankOptions options = over_ccl();
  options.deadline = milliseconds(20'000);  // nobody may wait that long
  options.expect_healthy = false;
  const auto begin = Clock::now();
  run_ranks(3, options, [&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    auto rows = CclRows::make(comm, DType::kBF16, 64);
    ASSERT_TRUE(stream && rows);
    if (rank == 1) {
      std::this_thread::sleep_for(milliseconds(20));
      comm.abort("no more paper");
    } else {
      ASSERT_TRUE(comm.all_reduce({rows->view_of(rows->in)}, rows->view_of(rows->out), *stream));
    }
    const Status health = comm.health();
    EXPECT_EQ(health.code(), Code::kPeerLost);
    EXPECT_TRUE(says(health, "rank 1 gave up: no more paper")) << health.to_string();
  });
  EXPECT_LT(Clock::now() - begin, milliseconds(5'000));
}

// --- processes ----------------------------------------------------------------------------------

// Reduces, or agrees, until something goes wrong, and says what.
TEST(CclChild, DISABLED_ReduceUntilItFails) {
  const std::string mode = std::getenv("CHILD_MODE");
  CommOptions options;
  options.transport = "ccl";
  options.deadline = milliseconds(std::atoi(std::getenv("CHILD_DEADLINE_MS")));
  auto comm = Communicator::create(options, Device{});
  ASSERT_TRUE(comm) << comm.status().to_string();
  auto stream = Stream::create(Device{});
  auto rows = CclRows::make(**comm, DType::kBF16, 100);
  ASSERT_TRUE(stream && rows);
  std::printf("running\n");
  std::fflush(stdout);
  for (Status status; status;) {
    const auto begin = Clock::now();
    const TensorView in = rows->view_of(rows->in), out = rows->view_of(rows->out);
    status = mode == "reduce" ? (*comm)->all_reduce({in}, out, *stream) : (*comm)->agree_min({});
    if (status) status = (*comm)->health();
    const auto waited = std::chrono::duration_cast<milliseconds>(Clock::now() - begin);
    if (!status)
      std::printf("failed after %d ms: %s\n", static_cast<int>(waited.count()),
                  status.to_string().c_str());
  }
}

// What the ranks that were not disturbed say.
std::vector<std::string> disturb(const char* mode, int victim, int signal_number,
                                 milliseconds deadline) {
  auto ranks = test::start_ranks(
      3, "CclChild.DISABLED_ReduceUntilItFails",
      {std::string("CHILD_MODE=") + mode, "CHILD_DEADLINE_MS=" + std::to_string(deadline.count())});
  for (test::Process& rank : ranks)
    EXPECT_TRUE(rank.prints("running\n", milliseconds(20'000))) << rank.output();
  std::this_thread::sleep_for(milliseconds(20));
  ranks[static_cast<std::size_t>(victim)].send(signal_number);
  std::vector<std::string> said;
  for (int rank = 0; rank < 3; ++rank) {
    if (rank == victim) continue;
    const int status = ranks[static_cast<std::size_t>(rank)].wait(milliseconds(10'000));
    EXPECT_TRUE(status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    said.push_back(ranks[static_cast<std::size_t>(rank)].output());
  }
  return said;
}

TEST(Ccl, AKilledRankIsNoticedLongBeforeTheDeadline) {
  for (const char* mode : {"reduce", "agree"})
    for (const int victim : {0, 2})
      for (const std::string& said : disturb(mode, victim, SIGKILL, milliseconds(20'000)))
        EXPECT_NE(said.find("rank " + std::to_string(victim) + " is gone"), std::string::npos)
            << said;
}

TEST(Ccl, AStoppedRankEndsTheOthersAtTheDeadline) {
  for (const char* mode : {"reduce", "agree"})
    for (const std::string& said : disturb(mode, 1, SIGSTOP, kDeadline))
      EXPECT_NE(said.find("deadline"), std::string::npos) << said;
}

}  // namespace
}  // namespace tenon
