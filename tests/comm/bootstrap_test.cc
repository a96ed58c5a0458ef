// How ranks find each other: the in-process bootstrap and the one over TCP pass the same tests; the
// rendezvous and the launcher's variables have their own.
#include "tenon/comm/bootstrap/bootstrap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <latch>
#include <map>
#include <thread>

#include "tenon/comm/bootstrap/greeting.h"
#include "tenon/comm/bootstrap/tcp.h"
#include "tenon/comm/communicator.h"
#include "tests/support/chaos.h"
#include "tests/support/operator_new.h"
#include "tests/support/processes.h"
#include "tests/support/says.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;
using test::says;
constexpr milliseconds kLong(10'000), kShort(250);

using Body = std::function<void(std::shared_ptr<Bootstrap>)>;

void on_threads(int size, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

void with_local(int size, const Body& body) {
  auto handles = local_bootstrap(size);
  on_threads(size, [&](int rank) { body(std::move(handles[static_cast<std::size_t>(rank)])); });
}

void with_sockets(int size, const Body& body) {
  const int port = test::free_port();
  on_threads(size, [&](int rank) {
    auto bootstrap = socket_bootstrap({rank, size, rank, "127.0.0.1", port}, kLong);
    ASSERT_TRUE(bootstrap) << bootstrap.status().to_string();
    body(*std::move(bootstrap));
  });
}

struct Kind {
  const char* name;
  void (*with)(int size, const Body& body);
};
void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }
class EveryBootstrap : public testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(Bootstrap, EveryBootstrap,
                         testing::Values(Kind{"local", with_local}, Kind{"socket", with_sockets}),
                         [](const auto& each) { return std::string(each.param.name); });

Status exchange_int(Bootstrap& bootstrap, int mine, std::vector<int>* all, std::string_view label,
                    milliseconds deadline = kLong) {
  all->assign(static_cast<std::size_t>(bootstrap.size()), -1);
  return bootstrap.exchange(std::as_bytes(std::span(&mine, 1)),
                            std::as_writable_bytes(std::span(*all)), label, deadline);
}

TEST_P(EveryBootstrap, GathersInRankOrderHoweverRanksDrift) {
  for (const int size : {1, 2, 3, 8})
    GetParam().with(size, [&](std::shared_ptr<Bootstrap> bootstrap) {
      test::Delays delays(static_cast<std::uint64_t>(bootstrap->rank()));
      for (int round = 0; round < 50; ++round) {
        delays.maybe_wait();
        std::vector<int> all;
        ASSERT_TRUE(exchange_int(*bootstrap, bootstrap->rank() * 1000 + round, &all, "round"));
        for (int peer = 0; peer < size; ++peer)
          EXPECT_EQ(all[static_cast<std::size_t>(peer)], peer * 1000 + round);
      }
    });
}

TEST_P(EveryBootstrap, CarriesLargeBlobsAndNothing) {
  GetParam().with(3, [](std::shared_ptr<Bootstrap> bootstrap) {
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{1'000'003}}) {
      const std::vector<std::byte> mine(count, static_cast<std::byte>(bootstrap->rank() + 1));
      std::vector<std::byte> all(3 * count);
      ASSERT_TRUE(bootstrap->exchange(mine, all, "blob", kLong));
      for (std::size_t i = 0; i < all.size(); ++i)
        ASSERT_EQ(all[i], static_cast<std::byte>(i / count + 1));
    }
  });
}

TEST_P(EveryBootstrap, BarrierHoldsEverybodyBack) {
  std::atomic<int> num_arrived{0};
  GetParam().with(4, [&](std::shared_ptr<Bootstrap> bootstrap) {
    std::this_thread::sleep_for(milliseconds(5 * bootstrap->rank()));
    ++num_arrived;
    ASSERT_TRUE(bootstrap->barrier("all here", kLong));
    EXPECT_EQ(num_arrived, 4);
    ASSERT_TRUE(bootstrap->barrier("all have looked", kLong));
  });
}

TEST_P(EveryBootstrap, ALateRankIsNamedWithCallAndLabel) {
  std::atomic<bool> done{false};
  GetParam().with(3, [&](std::shared_ptr<Bootstrap> bootstrap) {
    ASSERT_TRUE(bootstrap->barrier("first", kLong));
    if (bootstrap->rank() == 2) {
      while (!done) std::this_thread::sleep_for(milliseconds(1));
      return;
    }
    const auto begin = std::chrono::steady_clock::now();
    const Status status = bootstrap->barrier("second", kShort);
    const auto waited = std::chrono::steady_clock::now() - begin;
    EXPECT_EQ(status.code(), Code::kTimeout);
    EXPECT_TRUE(says(status, "rank " + std::to_string(bootstrap->rank()) +
                                 " waited for rank 2 in bootstrap call 1 \"second\""))
        << status.message();
    EXPECT_GE(waited, kShort);
    EXPECT_LE(waited, kShort + milliseconds(1000));
    if (bootstrap->rank() == 0) {
      std::this_thread::sleep_for(2 * kShort);  // rank 1 has given up too
      done = true;
    }
    while (!done) std::this_thread::sleep_for(milliseconds(1));
  });
}

TEST_P(EveryBootstrap, ARankThatLeftIsNamedAtOnce) {
  GetParam().with(3, [](std::shared_ptr<Bootstrap> bootstrap) {
    ASSERT_TRUE(bootstrap->barrier("first", kLong));
    if (bootstrap->rank() == 1) return;
    const Status status = bootstrap->barrier("second", kLong);
    EXPECT_EQ(status.code(), Code::kPeerLost);
    EXPECT_TRUE(says(status, "waited for rank 1")) << status.message();
    EXPECT_TRUE(says(status, "left")) << status.message();
  });
}

TEST_P(EveryBootstrap, AnAbortReachesEverybodyWithItsReason) {
  std::atomic<int> num_told{0};
  std::latch all_past_first(3);  // an abort may overtake another rank's part of the first barrier
  GetParam().with(3, [&](std::shared_ptr<Bootstrap> bootstrap) {
    const int id = bootstrap->watch([&](const Bootstrap::Loss& loss) {
      EXPECT_EQ(loss.rank, 1);
      ++num_told;
    });
    EXPECT_TRUE(bootstrap->barrier("first", kLong));
    all_past_first.arrive_and_wait();
    if (bootstrap->rank() == 1) bootstrap->abort("the roof fell in");
    const Status status = bootstrap->barrier("second", kLong);
    EXPECT_EQ(status.code(), Code::kPeerLost);
    EXPECT_TRUE(says(status, "rank 1 gave up: the roof fell in")) << status.message();
    EXPECT_EQ(bootstrap->barrier("third", kLong).code(), Code::kPeerLost);
    bootstrap->unwatch(id);
    // Who watches too late is told as well.
    bool told = false;
    bootstrap->watch([&](const Bootstrap::Loss&) { told = true; });
    EXPECT_TRUE(told);
  });
  EXPECT_EQ(num_told, 3);
}

// The first reading thread that asks for memory gets none, then and later.
std::atomic<pthread_t> failing{};
bool reader_fails(std::int64_t) {
  char name[16] = {};
  pthread_getname_np(pthread_self(), name, sizeof name);
  if (std::strcmp(name, "tenon reader") != 0) return false;
  pthread_t none{};
  return failing.compare_exchange_strong(none, pthread_self()) || none == pthread_self();
}

TEST(SocketBootstrap, ARankWithoutMemoryToReadGivesUp) {
  const auto begin = std::chrono::steady_clock::now();
  std::latch all_past_first(3);
  std::atomic<int> num_told{0};
  std::array<std::string, 3> why;
  with_sockets(3, [&](std::shared_ptr<Bootstrap> bootstrap) {
    const int id = bootstrap->watch([&](const Bootstrap::Loss&) { ++num_told; });
    EXPECT_TRUE(bootstrap->barrier("first", kLong));
    all_past_first.arrive_and_wait();
    test::allocation_fails = &reader_fails;  // the next beat of a rank at the latest
    Status status;
    for (int call = 0; call < 1000 && status; ++call) status = bootstrap->barrier("again", kLong);
    EXPECT_EQ(status.code(), Code::kPeerLost) << status.to_string();
    why[static_cast<std::size_t>(bootstrap->rank())] =
        bootstrap->loss().value_or(Bootstrap::Loss{}).why;
    bootstrap->unwatch(id);
  });
  test::allocation_fails = nullptr;
  failing = {};
  EXPECT_EQ(num_told, 3);
  for (const std::string& each : why) {
    EXPECT_NE(each.find("gave up: it can hear nobody any more: its host has no more memory"),
              std::string::npos)
        << each;
    EXPECT_EQ(each, why[0]);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kLong / 2);
}

TEST_P(EveryBootstrap, DifferentCallsAreFoundOutByAll) {
  GetParam().with(3, [](std::shared_ptr<Bootstrap> bootstrap) {
    std::vector<int> all;
    const bool odd = bootstrap->rank() == 1;
    const Status label = exchange_int(*bootstrap, 1, &all, odd ? "apples" : "pears");
    EXPECT_EQ(label.code(), Code::kInvalidArgument);
    EXPECT_TRUE(says(label, "apples") && says(label, "pears")) << label.message();
    std::vector<std::byte> mine(odd ? 8 : 4), bytes(3 * mine.size());
    const Status size = bootstrap->exchange(mine, bytes, "sizes", kLong);
    EXPECT_EQ(size.code(), Code::kInvalidArgument);
    EXPECT_TRUE(says(size, "rank 1 is in \"sizes\" with 8 bytes")) << size.message();
    EXPECT_TRUE(exchange_int(*bootstrap, 1, &all, "in step again"));
  });
}

TEST_P(EveryBootstrap, AgreeGivesTheFirstFailureToAll) {
  GetParam().with(4, [](std::shared_ptr<Bootstrap> bootstrap) {
    EXPECT_TRUE(agree(*bootstrap, Status::ok(), "fine", kLong));
    Status mine;
    if (bootstrap->rank() >= 2)
      mine = Status::error(Code::kIo, "no disk " + std::to_string(bootstrap->rank()));
    const Status agreed = agree(*bootstrap, mine, "not fine", kLong);
    EXPECT_EQ(agreed.code(), Code::kIo);
    EXPECT_EQ(agreed.message(), "rank 2: no disk 2");
  });
}

// What ranks brought to calls that failed goes when the last of them has failed or left.
TEST(LocalBootstrap, FailedCallsKeepNothing) {
  constexpr int kCalls = 8;
  const std::vector<std::byte> blob(1'000'000);
  std::vector<std::byte> all(2 * blob.size());
  auto ranks = local_bootstrap(2);
  const std::int64_t before = test::bytes_held;
  const auto call = [&](int rank, const char* label) {
    return ranks[static_cast<std::size_t>(rank)]->exchange(blob, all, label, milliseconds(1));
  };
  for (int i = 0; i < kCalls; ++i) EXPECT_EQ(call(0, "late").code(), Code::kTimeout);
  for (int i = 0; i < kCalls; ++i) EXPECT_TRUE(call(1, "late"));
  EXPECT_LT(test::bytes_held - before, 100'000) << "after deadlines";
  EXPECT_EQ(call(0, "apples").code(), Code::kTimeout);
  EXPECT_EQ(call(1, "pears").code(), Code::kInvalidArgument);
  EXPECT_LT(test::bytes_held - before, 100'000) << "after a different call";
  EXPECT_EQ(call(0, "before rank 1 leaves").code(), Code::kTimeout);
  ranks[1].reset();
  EXPECT_EQ(call(0, "after rank 1 has left").code(), Code::kPeerLost);
  EXPECT_LT(test::bytes_held - before, 100'000) << "after a rank has left";
}

// --- rendezvous
// -----------------------------------------------------------------------------------

TEST(Rendezvous, NamesTheRanksThatDoNotCome) {
  const int port = test::free_port();
  on_threads(2, [&](int rank) {
    const auto met = socket_bootstrap({rank, 4, rank, "127.0.0.1", port}, kShort);
    ASSERT_FALSE(met);
    EXPECT_TRUE(says(met.status(), rank == 0 ? "rank 2, rank 3" : "rank 0"))
        << met.status().message();
  });
}

TEST(Rendezvous, EndsForAllWhenWhoStartedThemGivesUp) {
  const int port = test::free_port();
  const auto begin = std::chrono::steady_clock::now();
  on_threads(2, [&](int rank) {
    Launch launch{rank, 3, rank, "127.0.0.1", port};
    if (rank == 0)
      launch.given_up = [&] {
        return std::chrono::steady_clock::now() - begin < milliseconds(1'000)
                   ? Status::ok()
                   : Status::error(Code::kPeerLost, "rank 2 fell asleep");
      };
    const auto met = socket_bootstrap(launch, kLong);
    ASSERT_FALSE(met);
    EXPECT_EQ(met.status().code(), Code::kPeerLost);
    EXPECT_TRUE(says(met.status(), "for rank 2 to connect: rank 2 fell asleep"))
        << met.status().message();
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kLong / 2);
}

TEST(Rendezvous, NamesRankZeroWhenNobodyListens) {
  const int port = test::free_port();
  const auto begin = std::chrono::steady_clock::now();
  const auto met = socket_bootstrap({1, 2, 1, "127.0.0.1", port}, kShort);
  EXPECT_LE(std::chrono::steady_clock::now() - begin, kShort + milliseconds(500));
  ASSERT_FALSE(met);
  EXPECT_EQ(met.status().code(), Code::kTimeout);
  EXPECT_TRUE(says(met.status(),
                   "rank 1 waited for rank 0 to accept it at 127.0.0.1:" + std::to_string(port)))
      << met.status().message();
}

TEST(Rendezvous, RefusesAnotherWorldAndTellsBoth) {
  const int port = test::free_port();
  on_threads(2, [&](int rank) {
    // Rank 0 goes on waiting for the right one, and tells then what came instead.
    const auto budget = rank == 0 ? milliseconds(1'000) : kLong;
    const auto met = socket_bootstrap({rank, 2 + rank, rank, "127.0.0.1", port}, budget);
    ASSERT_FALSE(met);
    EXPECT_EQ(met.status().code(), rank == 0 ? Code::kTimeout : Code::kPeerLost);
    EXPECT_TRUE(says(met.status(), "rank 1 of 3")) << met.status().message();
  });
}

TEST(Rendezvous, SaysThatThePortIsTaken) {
  auto taken = tcp::listen_at("127.0.0.1", 0);
  ASSERT_TRUE(taken);
  const auto port = tcp::port_of(*taken);
  ASSERT_TRUE(port);
  const auto met = socket_bootstrap({0, 2, 0, "127.0.0.1", *port}, kShort);
  ASSERT_FALSE(met);
  EXPECT_TRUE(says(met.status(), "rank 0 cannot listen at")) << met.status().message();
}

TEST(Rendezvous, StrangersDoNotDisturb) {
  const int port = test::free_port();
  std::vector<tcp::Socket> strangers;  // one talks nonsense, one is silent
  std::atomic<bool> strangers_came{false};
  on_threads(3, [&](int thread) {
    if (thread == 2) {
      const auto end = tcp::Clock::now() + kLong;
      while (strangers.size() < 2 && tcp::Clock::now() < end) {
        if (auto stranger = tcp::connect_to("127.0.0.1", port, end))
          strangers.push_back(*std::move(stranger));
        else
          std::this_thread::yield();
      }
      ASSERT_EQ(strangers.size(), 2u);
      const std::vector<std::byte> nonsense(4096, std::byte{'x'});
      std::ignore = tcp::send_all(strangers[0], nonsense, end);
      strangers_came = true;
      return;
    }
    // Rank 1 comes after the strangers.
    while (thread == 1 && !strangers_came) std::this_thread::sleep_for(milliseconds(1));
    const auto met = socket_bootstrap({thread, 2, thread, "127.0.0.1", port}, kLong);
    ASSERT_TRUE(met) << met.status().to_string();
    EXPECT_TRUE((*met)->barrier("after strangers", kLong));
  });
}

// What `rank` of `size` says when rank 0 answers with texts that never end: as one that knows the
// secret, or not.
Status met_by_endless_texts(int rank, int size, greeting::Verdict verdict, bool knows_secret) {
  auto listener = tcp::listen_at("127.0.0.1", 0);
  EXPECT_TRUE(listener);
  const auto port = tcp::port_of(*listener);
  Status status;
  on_threads(2, [&](int thread) {
    if (thread == 1) {
      status = socket_bootstrap({rank, size, rank, "127.0.0.1", *port}, milliseconds(500)).status();
      listener->close();
      return;
    }
    const auto end = tcp::Clock::now() + kLong;
    auto caller = tcp::accept_from(*listener);
    for (; !caller && tcp::Clock::now() < end; caller = tcp::accept_from(*listener))
      std::this_thread::yield();
    ASSERT_TRUE(caller);
    const greeting::Key key(knows_secret ? "" : "another");
    const greeting::Challenge challenge;
    ASSERT_TRUE(tcp::send_all(*caller, bytes_of(challenge), end));
    greeting::Hello hello;
    ASSERT_TRUE(tcp::receive_all(*caller, writable_bytes_of(hello), end));
    greeting::Answer answer;
    answer.verdict = verdict;
    std::memset(answer.why, '.', sizeof answer.why);
    answer.tag = greeting::tag_of(key, challenge, hello.nonce, answer);
    std::ignore = tcp::send_all(*caller, bytes_of(answer), end);
    greeting::Welcome welcome;
    welcome.complete = 1;
    for (auto& place : welcome.places) std::memset(place.address, '.', sizeof place.address);
    welcome.tag = greeting::tag_of(key, challenge, hello.nonce, welcome);
    std::ignore = tcp::send_all(*caller, bytes_of(welcome), end);
    std::byte byte;  // until the caller has gone
    while (tcp::receive_all(*caller, {&byte, 1}, end)) continue;
  });
  return status;
}

TEST(Rendezvous, TextsOfAHostileRankZeroEnd) {
  const auto dots = [](const Status& status) {
    return std::count(status.message().begin(), status.message().end(), '.');
  };
  for (const bool knows_secret : {true, false}) {
    const Status refused = met_by_endless_texts(1, 2, greeting::Verdict::kNever, knows_secret);
    EXPECT_TRUE(says(refused, knows_secret ? "rank 0 refused: ...." : "and says: ...."))
        << refused.message();
    EXPECT_LE(dots(refused), 410) << refused.message();
  }
  const Status welcomed = met_by_endless_texts(2, 3, greeting::Verdict::kAccepted, true);
  EXPECT_TRUE(says(welcomed, "waited for rank 1")) << welcomed.message();
  EXPECT_LE(dots(welcomed), 2 * 64 + 10) << welcomed.message();
}

TEST(Rendezvous, TheSamePortServesOneWorldAfterTheOther) {
  const int port = test::free_port();
  on_threads(3, [&](int rank) {
    for (int round = 0; round < 5; ++round) {
      const auto met = socket_bootstrap({rank, 3, rank, "127.0.0.1", port}, kLong);
      ASSERT_TRUE(met) << met.status().to_string();
      ASSERT_TRUE((*met)->barrier("round", kLong));
    }
  });
}

// --- variables
// ------------------------------------------------------------------------------------

using Environment = std::map<std::string, std::string>;

Result<Launch> read(const Environment& environment) {
  return read_launch([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

const Environment kTorchrun = {{"RANK", "3"},
                               {"WORLD_SIZE", "8"},
                               {"LOCAL_RANK", "1"},
                               {"MASTER_ADDR", "node7"},
                               {"MASTER_PORT", "29500"}};

TEST(Launch, ReadsTheVariablesOfTorchrun) {
  const auto launch = read(kTorchrun);
  ASSERT_TRUE(launch) << launch.status().to_string();
  EXPECT_EQ(launch->rank, 3);
  EXPECT_EQ(launch->size, 8);
  EXPECT_EQ(launch->local_rank, 1);
  EXPECT_EQ(launch->address, "node7");
  EXPECT_EQ(launch->port, 29500);
}

TEST(Launch, FallsBackToSlurmAndOpenMpi) {
  const auto slurm = read(
      {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}});
  ASSERT_TRUE(slurm) << slurm.status().to_string();
  EXPECT_EQ(slurm->rank, 1);
  EXPECT_EQ(slurm->size, 2);
  const auto open_mpi = read({{"OMPI_COMM_WORLD_RANK", "2"},
                              {"OMPI_COMM_WORLD_SIZE", "3"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                              {"MASTER_ADDR", "a"},
                              {"MASTER_PORT", "1"}});
  ASSERT_TRUE(open_mpi) << open_mpi.status().to_string();
  EXPECT_EQ(open_mpi->rank, 2);
  EXPECT_EQ(open_mpi->local_rank, 0);
}

TEST(Launch, LeavesItsPortToTorchrunsAgent) {
  Environment environment = kTorchrun;
  environment["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  const auto launch = read(environment);
  ASSERT_TRUE(launch);
  EXPECT_EQ(launch->port, 29501);
}

// One rank that nobody has launched needs no launcher's variables.
TEST(Launch, ALonePortDoesNotStopALoneRank) {
  ASSERT_EQ(setenv("MASTER_PORT", "29500", 1), 0);
  const auto comm = Communicator::create(CommOptions{}, Device{});
  CommOptions two;
  two.size = 2;
  const auto pair = Communicator::create(two, Device{});
  unsetenv("MASTER_PORT");
  EXPECT_TRUE(comm) << comm.status().to_string();
  ASSERT_FALSE(pair);
  EXPECT_TRUE(says(pair.status(), "WORLD_SIZE (or SLURM_NTASKS, OMPI_COMM_WORLD_SIZE) is not set"))
      << pair.status().message();
}

TEST(Launch, TheLocalRankIsTheLaunchersOrTheRank) {
  const auto local_rank = [](const Environment& environment) {
    return local_rank_or(5, [&](const char* name) -> const char* {
      const auto found = environment.find(name);
      return found == environment.end() ? nullptr : found->second.c_str();
    });
  };
  EXPECT_EQ(local_rank(kTorchrun), 1);
  EXPECT_EQ(local_rank({}), 5);
}

TEST(Launch, MissingVariablesAreNamed) {
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) {
    Environment environment = kTorchrun;
    environment.erase(name);
    const auto launch = read(environment);
    ASSERT_FALSE(launch) << name;
    EXPECT_EQ(launch.status().code(), Code::kInvalidArgument);
    EXPECT_TRUE(says(launch.status(), name) && says(launch.status(), "is not set"))
        << launch.status().message();
  }
}

TEST(Launch, EverythingThatIsMissingIsNamedAtOnce) {
  const auto launch = read({{"MASTER_PORT", "29500"}, {"MASTER_ADDR", ""}});
  ASSERT_FALSE(launch);
  EXPECT_EQ(launch.status().message(),
            "WORLD_SIZE (or SLURM_NTASKS, OMPI_COMM_WORLD_SIZE) is not set; accepted: the number "
            "of ranks; RANK (or SLURM_PROCID, OMPI_COMM_WORLD_RANK) is not set; accepted: this "
            "process's rank, from 0; MASTER_ADDR is not set; accepted: the host name or IP address "
            "of rank 0");
}

// Variables that are left over in a shell are no launcher.
TEST(Launch, OnlyACompleteSetIsALauncher) {
  const auto launched = [](const Environment& environment) {
    return was_launched([&](const char* name) -> const char* {
      const auto found = environment.find(name);
      return found == environment.end() ? nullptr : found->second.c_str();
    });
  };
  EXPECT_TRUE(launched(kTorchrun));
  EXPECT_TRUE(launched(
      {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}}));
  EXPECT_FALSE(launched({}));
  testing::internal::CaptureStderr();
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) {
    EXPECT_FALSE(launched({{name, "1"}})) << name;
    Environment environment = kTorchrun;
    environment.erase(name);
    EXPECT_FALSE(launched(environment)) << name;
  }
  const std::string warned = testing::internal::GetCapturedStderr();
  EXPECT_NE(
      warned.find("RANK is set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT: no launcher is at "
                  "work, and it is ignored\n"),
      std::string::npos)
      << warned;
}

TEST(Launch, TheSecretIsChosenOrTheLaunchersJobId) {
  const auto secret = [](Environment more) {
    more.insert(kTorchrun.begin(), kTorchrun.end());
    const auto launch = read(more);
    EXPECT_TRUE(launch);
    return launch->secret;
  };
  EXPECT_EQ(secret({}), "");
  EXPECT_EQ(secret({{"TORCHELASTIC_RUN_ID", "none"}}), "") << "what torchrun says for none";
  EXPECT_EQ(secret({{"SLURM_JOB_ID", "77"}}), "SLURM_JOB_ID=77");
  EXPECT_EQ(secret({{"TORCHELASTIC_RUN_ID", "none"}, {"SLURM_JOB_ID", "77"}}), "SLURM_JOB_ID=77");
  EXPECT_EQ(secret({{"TORCHELASTIC_RUN_ID", "a1b2"}, {"SLURM_JOB_ID", "77"}}),
            "TORCHELASTIC_RUN_ID=a1b2");
  EXPECT_EQ(secret({{"TORCHELASTIC_RUN_ID", "a1b2"}, {"TENON_SECRET", "nobody knows this"}}),
            "nobody knows this");
}

TEST(Launch, MalformedVariablesAreNamedWithWhatTheyHold) {
  const std::pair<const char*, const char*> wrong[] = {
      {"RANK", "-1"},           {"RANK", "8"},          {"RANK", "two"},
      {"RANK", "1x"},           {"RANK", ""},           {"WORLD_SIZE", "0"},
      {"WORLD_SIZE", "8 "},     {"LOCAL_RANK", "99"},   {"MASTER_PORT", "0"},
      {"MASTER_PORT", "65536"}, {"MASTER_PORT", "http"}};
  for (const auto& [name, value] : wrong) {
    Environment environment = kTorchrun;
    environment[name] = value;
    const auto launch = read(environment);
    ASSERT_FALSE(launch) << name << "=" << value;
    EXPECT_TRUE(says(launch.status(), std::string(name) + " is \"" + value + "\"; accepted: "))
        << launch.status().message();
  }
}

}  // namespace
}  // namespace tenon
