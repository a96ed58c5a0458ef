// Failures of an engine over a model without weights. Those of a rank end everywhere and soon;
// those of a request end the request alone.
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <thread>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/clock.h"
#include "tests/runtime/engine_driver.h"
#include "tests/support/operator_new.h"
#include "tests/support/patience.h"
#include "tests/support/processes.h"

namespace tenon {
namespace {

using namespace test;

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return seconds_since(begin);
}

// Steps until the engine fails; afterwards it stays dead.
Status failure_of(Engine& engine) {
  for (int step = 0; step < 100; ++step) {
    auto events = engine.step();
    if (events) continue;
    const Status again = engine.step().status();
    EXPECT_EQ(again.message(), events.status().message());
    EXPECT_FALSE(engine.submit({1}, greedy(1)));
    return events.status();
  }
  ADD_FAILURE() << "the engine did not fail";
  return Status::ok();
}

TEST(EngineFailure, AFailedForwardEndsEveryRankWithItsReason) {
  for (int tp : {1, 2, 4}) {
    for (int failing = 0; failing < tp; ++failing) {
      SCOPED_TRACE("rank " + std::to_string(failing) + " of " + std::to_string(tp));
      FakeOptions fake = fake_options();
      fake.before_step = [=](int rank, int step) {
        if (rank != failing || step < 3) return Status::ok();
        return Status::error(Code::kDevice, "the disk of rank " + std::to_string(rank) + " melted");
      };
      const double taken = seconds_of([&] {
        auto engine = must_open(engine_options(tp), fake);
        ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(100, true)));
        const Status failure = failure_of(*engine);
        EXPECT_EQ(failure.code(), Code::kDevice) << failure.to_string();
        EXPECT_NE(failure.message().find("rank " + std::to_string(failing) + " melted"),
                  std::string_view::npos)
            << failure.to_string();
      });
      EXPECT_LT(taken, 8.0);  // at once, not at the deadline of 10 s
    }
  }
}

TEST(EngineFailure, AStuckRankIsNamedWithinTheDeadline) {
  for (int stuck : {0, 1}) {
    SCOPED_TRACE(stuck);
    EngineOptions options = engine_options(3);
    options.deadline = Milliseconds(1000);
    std::atomic<bool> released{false};
    FakeOptions fake = fake_options();
    fake.before_step = [&, stuck](int rank, int step) {
      while (rank == stuck && step == 2 && !released) std::this_thread::sleep_for(Milliseconds(1));
      return Status::ok();
    };
    auto engine = must_open(options, fake);
    ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(100, true)));
    // A leader that is stuck itself can only come back when it is let go.
    std::thread release([&] {
      if (stuck == 0)
        std::this_thread::sleep_for(options.deadline + Milliseconds(500 * test::kSlowdown));
      if (stuck == 0) released = true;
    });
    Status failure;
    const double taken = seconds_of([&] { failure = failure_of(*engine); });
    release.join();
    EXPECT_TRUE(failure.code() == Code::kTimeout || failure.code() == Code::kPeerLost)
        << failure.to_string();
    EXPECT_NE(failure.message().find("rank " + std::to_string(stuck)), std::string_view::npos)
        << failure.to_string();
    EXPECT_LT(taken, 5.0 * test::kSlowdown);
    released = true;  // the destructor waits for its threads
  }
}

// Long before the deadline, by whoever asks meanwhile.
TEST(EngineFailure, WhoIsAwaitedCanBeAsked) {
  for (int stuck : {0, 1, 2}) {
    SCOPED_TRACE(stuck);
    EngineOptions options = engine_options(3);
    options.deadline = Milliseconds(60'000);
    std::atomic<bool> released{false}, is_stuck{false};
    FakeOptions fake = fake_options();
    fake.before_step = [&, stuck](int rank, int step) {
      while (rank == stuck && step == 2 && !released) {
        is_stuck = true;
        std::this_thread::sleep_for(Milliseconds(1));
      }
      return Status::ok();
    };
    auto engine = must_open(options, fake);
    ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(5, true)));
    std::thread steps([&] {
      while (!engine->idle()) EXPECT_TRUE(engine->step());
    });
    const auto says = [&](const std::string& expected) {  // soon: others are still on their way
      const auto until = std::chrono::steady_clock::now() + Milliseconds(20'000);
      std::string said;
      while (said != expected && std::chrono::steady_clock::now() < until) {
        if (is_stuck) said = engine->whereabouts();
        std::this_thread::sleep_for(Milliseconds(1));
      }
      EXPECT_EQ(said, expected);
    };
    says("rank " + std::to_string(stuck) + " has not come to call 1 of step 3, where others wait");
    released = true;
    steps.join();
    says("rank 0 has not begun step 6");
  }
}

TEST(EngineFailure, ARankThatCannotOpenIsTold) {
  for (int failing : {0, 1, 2}) {
    EngineOptions options = engine_options(3);
    auto engine =
        Engine::open(options, [=](Communicator& comm, Stream&) -> Result<std::unique_ptr<Model>> {
          if (comm.rank() == failing)
            return Status::error(Code::kIo, "no weights on rank " + std::to_string(failing));
          return std::unique_ptr<Model>(new FakeModel(fake_options(), comm, options.max_batch));
        });
    ASSERT_FALSE(engine);
    EXPECT_NE(engine.status().message().find("no weights on rank " + std::to_string(failing)),
              std::string_view::npos)
        << engine.status().to_string();
  }
}

TEST(EngineFailure, CachesThatNoMachineHoldsAreRefused) {
  EngineOptions options = engine_options(2);
  options.max_batch = 2000;
  options.max_context = 1 << 20;
  options.max_tokens_per_step = 4096;
  FakeOptions fake = fake_options();
  fake.kv_layers = 100'000;
  const Status status = open_fake(options, fake).status();
  EXPECT_EQ(status.code(), Code::kOutOfMemory);
  for (const char* piece : {"max_context 1048576 with max_batch 2000", "GB; accepted are"})
    EXPECT_NE(status.message().find(piece), std::string_view::npos) << status.to_string();
}

// An exception ends at its rank and tells the others; nothing terminates.
TEST(EngineFailure, ARankWithoutMemoryEndsEveryRank) {
  for (int failing : {0, 1, 2}) {
    SCOPED_TRACE(failing);
    FakeOptions fake = fake_options();
    fake.before_step = [=](int rank, int step) {
      if (rank == failing && step == 3) throw std::bad_alloc();
      return Status::ok();
    };
    auto engine = must_open(engine_options(3), fake);
    ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(100, true)));
    const Status failure = failure_of(*engine);
    EXPECT_EQ(failure.code(), Code::kOutOfMemory) << failure.to_string();

    auto unopened = Engine::open(
        engine_options(3), [=](Communicator& comm, Stream&) -> Result<std::unique_ptr<Model>> {
          if (comm.rank() == failing) throw std::length_error("too many weights");
          return std::unique_ptr<Model>(new FakeModel(fake_options(), comm, 4));
        });
    EXPECT_EQ(unopened.status().code(), Code::kOutOfMemory) << unopened.status().to_string();
  }
}

// Any one allocation of a run, and any stretch of them: it ends with an error or does not matter.
TEST(EngineFailure, AnyAllocationMayFail) {
  EngineOptions options = engine_options(2);
  options.deadline = Milliseconds(100);  // of a rank that had no memory to say that it gives up
  int failures = 0, successes = 0;
  for (const std::int64_t count : {1, 1000}) {
    for (std::int64_t first = 0; first < 600; first += count == 1 && first < 180 ? 1 : 13) {
      SCOPED_TRACE(std::to_string(count) + " from " + std::to_string(first));
      Engine::ModelFactory factory = fake_factory(options, fake_options());
      Tokens prompt{1, 2, 3};
      fail_allocations(first, count);
      auto engine = Engine::open(options, std::move(factory));
      Status failure = engine.status();
      if (engine) failure = (*engine)->submit(std::move(prompt), greedy(20, true)).status();
      while (failure && !(*engine)->idle()) failure = (*engine)->step().status();
      allocation_fails = nullptr;
      ++(failure ? successes : failures);
      if (failure) continue;
      EXPECT_TRUE(failure.code() == Code::kOutOfMemory || failure.code() == Code::kPeerLost ||
                  failure.code() == Code::kTimeout)
          << failure.to_string();
    }
  }
  EXPECT_GT(failures, 50);
  EXPECT_GT(successes, 0);
}

// ---- logits that hold no number: the request ends, nobody else does ----

TEST(EnginePoison, OneRequestEndsAndTheOthersGoOn) {
  const FakeOptions fake = poisoned_options();
  for (int tp : {1, 2}) {
    auto engine = must_open(engine_options(tp), fake);
    const SamplingParams sampling = greedy(30, true);
    const Tokens good(40, 3), bad{1, fake.poison, 2};
    const auto first = engine->submit(good, sampling);
    const auto failing = engine->submit(bad, sampling), failing_too = engine->submit(bad, sampling);
    const auto last = engine->submit(Tokens{5}, sampling);
    Answers answers = run_to_end(*engine);
    for (const auto& id : {failing, failing_too}) {
      EXPECT_EQ(answers[*id].finish, Finish::kFailed);
      EXPECT_TRUE(answers[*id].tokens.empty());
    }
    EXPECT_EQ(answers[*first].tokens, oracle(good, sampling, 300, fake).tokens);
    EXPECT_EQ(answers[*last].tokens, oracle({5}, sampling, 300, fake).tokens);
    EXPECT_EQ(name(Finish::kFailed), "failed");
  }
}

// At the first piece of a prompt, not after all of it.
TEST(EnginePoison, EndsAPromptAtThePieceThatFails) {
  EngineOptions options = engine_options(2);
  auto engine = must_open(options, poisoned_options());
  Tokens prompt(250, 3);
  prompt[10] = poisoned_options().poison;
  const auto id = engine->submit(prompt, greedy(5));
  ASSERT_TRUE(id);
  const auto events = engine->step();
  ASSERT_TRUE(events) << events.status().to_string();
  ASSERT_EQ(events->size(), 1u);
  EXPECT_EQ((*events)[0].finish, Finish::kFailed);
  EXPECT_TRUE(engine->idle());
}

// The next one gets the same blocks and the same state slot, with nothing in them.
TEST(EnginePoison, NobodyInheritsTheCaches) {
  const FakeOptions fake = poisoned_options();
  for (int tp : {1, 2, 3}) {
    EngineOptions options = engine_options(tp);
    options.max_batch = 1;
    auto engine = must_open(options, fake);
    for (int round = 0; round < 3; ++round) {
      Tokens bad(150, 4);
      bad[static_cast<std::size_t>(20 + 60 * round)] = fake.poison;
      const auto failing = engine->submit(bad, greedy(10, true));
      const auto next = engine->submit(Tokens(5, 3), greedy(10, true));
      Answers answers = run_to_end(*engine);
      EXPECT_EQ(answers[*failing].finish, Finish::kFailed);
      EXPECT_EQ(answers[*next].tokens, oracle(Tokens(5, 3), greedy(10, true), 300, fake).tokens);
    }
  }
}

// Prompts and answers that meet the token at any time, and everybody else around them.
TEST(EnginePoison, EveryRequestEndsOnce) {
  for (int tp : {1, 2, 3})
    ASSERT_NO_FATAL_FAILURE(
        expect_oracle_tokens(engine_options(tp), 40, 300u + unsigned(tp), poisoned_options()));
}

// ---- ranks as processes ----

Result<std::unique_ptr<Engine>> open_process(Milliseconds deadline, const FakeOptions& fake) {
  TENON_ASSIGN(const Launch launch,
               read_launch([](const char* name) -> const char* { return std::getenv(name); }));
  EngineOptions options = engine_options(launch.size);
  options.deadline = deadline;
  TENON_ASSIGN(options.bootstrap, socket_bootstrap(launch, Milliseconds(10'000)));
  return open_fake(options, fake);
}

TEST(EngineProcessRank, DISABLED_Answers) {
  const FakeOptions fake = poisoned_options();
  auto opened = open_process(Milliseconds(1200), fake);
  ASSERT_TRUE(opened) << opened.status().to_string();
  Engine& engine = **opened;
  if (!engine.leads()) {
    const Status followed = engine.follow();
    ASSERT_TRUE(followed) << followed.to_string();
    return;
  }
  for (int round = 0; round < 2; ++round) {
    // Idle for longer than the deadline.
    if (round > 0) std::this_thread::sleep_for(Milliseconds(2000));
    const Tokens prompt(70, 5 + round);
    auto failing = engine.submit({1, fake.poison}, greedy(20, true));
    auto id = engine.submit(prompt, greedy(20, true));
    ASSERT_TRUE(failing && id);
    Answers answers = run_to_end(engine);
    EXPECT_EQ(answers[*failing].finish, Finish::kFailed);
    EXPECT_EQ(answers[*id].tokens, oracle(prompt, greedy(20, true), 300, fake).tokens);
  }
}

TEST(EngineProcesses, AnswerAndOutliveIdleTimes) {
  auto ranks = test::start_ranks(3, "EngineProcessRank.DISABLED_Answers");
  test::expect_all_succeed(ranks, Milliseconds(30'000));
}

TEST(EngineProcessRank, DISABLED_RunsUntilAPeerDies) {
  FakeOptions fake = fake_options();
  fake.before_step = [](int rank, int step) {
    if (rank == 1 && step == 5) raise(SIGKILL);
    return Status::ok();
  };
  auto opened = open_process(Milliseconds(5000), fake);
  ASSERT_TRUE(opened) << opened.status().to_string();
  Status failure;
  if ((*opened)->leads()) {
    ASSERT_TRUE((*opened)->submit({1, 2, 3}, greedy(100, true)));
    failure = failure_of(**opened);
  } else {
    failure = (*opened)->follow();
  }
  ASSERT_FALSE(failure);
  EXPECT_NE(failure.message().find("rank 1"), std::string_view::npos) << failure.to_string();
}

TEST(EngineProcesses, AKilledRankIsNamedByTheOthers) {
  auto ranks = test::start_ranks(3, "EngineProcessRank.DISABLED_RunsUntilAPeerDies");
  const int killed = ranks[1].wait(Milliseconds(20'000));
  EXPECT_TRUE(WIFSIGNALED(killed));
  for (std::size_t rank : {0u, 2u}) {
    const int status = ranks[rank].wait(Milliseconds(20'000));
    EXPECT_TRUE(status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "rank " << rank << " printed:\n"
        << ranks[rank].output();
  }
}

}  // namespace
}  // namespace tenon
