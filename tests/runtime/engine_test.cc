// The engine over a model without weights: every token against an oracle whatever runs beside it,
// the same tokens for any number of ranks, and failures of single ranks, which end everywhere and
// soon.
#include "tenon/runtime/engine.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <map>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>

#include "tenon/comm/bootstrap.h"
#include "tests/runtime/fake_model.h"
#include "tests/support/processes.h"

namespace {
std::atomic<std::int64_t> num_allocations{0};
std::atomic<std::int64_t> failing_from{INT64_MAX};  // these allocations fail, by number
std::atomic<std::int64_t> failing_to{INT64_MAX};
}  // namespace

// Counts what every thread allocates. Not inlined: the compiler would pair new with free and
// object.
__attribute__((noinline)) void* operator new(std::size_t bytes) {
  const std::int64_t number = num_allocations.fetch_add(1, std::memory_order_relaxed);
  const bool fails = number >= failing_from && number < failing_to;
  if (void* memory = fails ? nullptr : std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace tenon {
namespace {

using test::expected_token;
using test::FakeModel;
using test::FakeOptions;
using Tokens = std::vector<std::int32_t>;
using Milliseconds = std::chrono::milliseconds;

constexpr int kVocab = 72;  // over 1, 2, 3 and 4 ranks

FakeOptions fake_options() {
  FakeOptions options;
  options.vocab = options.num_ids = kVocab;
  return options;
}

EngineOptions engine_options(int tp, Target target = Target::kCpu) {
  EngineOptions options;
  options.tp = tp;
  options.target = target;
  options.max_batch = 4;
  options.max_context = 300;
  options.max_tokens_per_step = 140;
  options.num_tokens = fake_options().num_tokens;
  options.deadline = Milliseconds(10'000);
  return options;
}

Engine::ModelFactory fake_factory(const EngineOptions& options, const FakeOptions& fake) {
  return [=](Communicator& comm, Stream&) -> Result<std::unique_ptr<Model>> {
    return std::unique_ptr<Model>(new FakeModel(fake, comm, options.max_batch));
  };
}

Result<std::unique_ptr<Engine>> open_fake(const EngineOptions& options,
                                          const FakeOptions& fake = fake_options()) {
  return Engine::open(options, fake_factory(options, fake));
}

std::unique_ptr<Engine> must_open(const EngineOptions& options,
                                  const FakeOptions& fake = fake_options()) {
  auto engine = open_fake(options, fake);
  EXPECT_TRUE(engine) << engine.status().to_string();
  return std::move(*engine);
}

struct Answer {
  Tokens tokens;
  Finish finish = Finish::kNone;
};
using Answers = std::map<RequestId, Answer>;

void collect(const std::vector<TokenEvent>& events, Answers& answers) {
  for (const TokenEvent& event : events) {
    Answer& answer = answers[event.id];
    EXPECT_EQ(answer.finish, Finish::kNone) << "an event after the last";
    const bool drew = event.finish != Finish::kCancelled && event.finish != Finish::kFailed;
    EXPECT_EQ(event.token >= 0, drew);
    if (event.token >= 0) answer.tokens.push_back(event.token);
    answer.finish = event.finish;
    EXPECT_EQ(static_cast<bool>(event.why), event.finish != Finish::kFailed);
    if (event.why) continue;
    EXPECT_EQ(event.why.code(), Code::kInternal);
    const std::string named = "request " + std::to_string(static_cast<std::uint64_t>(event.id));
    for (const std::string& piece : {named, std::string("logits hold no number")})
      EXPECT_NE(event.why.message().find(piece), std::string_view::npos) << event.why.to_string();
  }
}

Answers run_to_end(Engine& engine) {
  Answers answers;
  while (!engine.idle()) {
    auto events = engine.step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) break;
    collect(*events, answers);
  }
  return answers;
}

SamplingParams greedy(int max_tokens, bool ignore_eos = false) {
  SamplingParams sampling;
  sampling.max_tokens = max_tokens;
  sampling.ignore_eos = ignore_eos;
  return sampling;
}

Answer oracle(Tokens context, const SamplingParams& sampling, int max_context,
              const FakeOptions& fake = fake_options()) {
  Answer answer;
  while (answer.finish == Finish::kNone) {
    if (fake.poison >= 0 &&
        std::find(context.begin(), context.end(), fake.poison) != context.end()) {
      answer.finish = Finish::kFailed;
      break;
    }
    const std::int32_t next = expected_token(context, fake.num_tokens);
    context.push_back(next);
    answer.tokens.push_back(next);
    if (next == fake.eos && !sampling.ignore_eos) {
      answer.finish = Finish::kStop;
    } else if (static_cast<int>(answer.tokens.size()) >= sampling.max_tokens) {
      answer.finish = Finish::kLength;
    } else if (static_cast<int>(context.size()) >= max_context) {
      answer.finish = Finish::kContext;
    }
  }
  return answer;
}

Tokens random_prompt(std::mt19937& random, int most) {
  Tokens prompt(1 + random() % static_cast<unsigned>(most));
  const auto count = static_cast<unsigned>(fake_options().num_tokens);
  for (auto& token : prompt) token = static_cast<std::int32_t>(random() % count);
  return prompt;
}

// Random requests that come while others run, some of them cancelled: each gets the oracle's tokens
// and ends once.
void expect_oracle_tokens(const EngineOptions& options, int requests, unsigned seed,
                          const FakeOptions& fake = fake_options()) {
  std::mt19937 random(seed);
  auto engine = must_open(options, fake);
  Answers answers;
  std::map<RequestId, Answer> wanted;
  std::map<RequestId, bool> cancelled;
  for (int submitted = 0; submitted < requests || !engine->idle();) {
    if (submitted < requests && random() % 2 == 0) {
      const Tokens prompt = random_prompt(random, random() % 4 == 0 ? 299 : 70);
      const SamplingParams sampling =
          greedy(1 + static_cast<int>(random() % 50), random() % 2 == 0);
      auto id = engine->submit(prompt, sampling);
      ASSERT_TRUE(id) << id.status().to_string();
      wanted[*id] = oracle(prompt, sampling, options.max_context, fake);
      ++submitted;
      if (random() % 8 == 0) cancelled[*id] = true;
    }
    if (!cancelled.empty() && random() % 10 == 0) {
      const RequestId id = cancelled.begin()->first;
      const bool runs = answers[id].finish == Finish::kNone;
      EXPECT_EQ(static_cast<bool>(engine->cancel(id)), runs);
      cancelled.erase(cancelled.begin());
    }
    auto events = engine->step();
    ASSERT_TRUE(events) << events.status().to_string();
    collect(*events, answers);
  }
  for (const auto& [id, answer] : wanted) {
    Tokens tokens = answer.tokens;
    if (answers[id].finish == Finish::kCancelled) tokens.resize(answers[id].tokens.size());
    EXPECT_EQ(answers[id].tokens, tokens);
    EXPECT_TRUE(answers[id].finish == answer.finish || answers[id].finish == Finish::kCancelled);
    EXPECT_NE(answers[id].finish, Finish::kNone) << "it never ended";
  }
  EXPECT_EQ(answers.size(), wanted.size());
}

TEST(Engine, GivesTheOraclesTokensWhateverRunsBesides) {
  for (int tp : {1, 2, 3, 4}) {
    SCOPED_TRACE(tp);
    ASSERT_NO_FATAL_FAILURE(expect_oracle_tokens(engine_options(tp), 25, 100u + unsigned(tp)));
  }
}

TEST(Engine, RunsOnTheEmulatedTargets) {
  for (const Target target : {Target::kEmu32, Target::kEmu64}) {
    if (!properties(Device{target, 0})) continue;  // not in this build
    SCOPED_TRACE(name(target));
    ASSERT_NO_FATAL_FAILURE(expect_oracle_tokens(engine_options(2, target), 1, 5));
  }
}

TEST(Engine, SampledTokensDependOnNobodyElse) {
  std::mt19937 random(9);
  std::vector<Tokens> prompts;
  for (int i = 0; i < 6; ++i) prompts.push_back(random_prompt(random, 90));
  const auto sampling = [](std::size_t i) {
    SamplingParams params = greedy(30, true);
    params.temperature = 2.0f;
    params.top_k = i % 2 == 0 ? 0 : 20;
    params.top_p = i % 3 == 0 ? 1.0f : 0.9f;
    params.seed = 77 + i;
    return params;
  };
  std::vector<Tokens> alone;
  auto one = must_open(engine_options(1));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto id = one->submit(prompts[i], sampling(i));
    ASSERT_TRUE(id);
    alone.push_back(run_to_end(*one)[*id].tokens);
    EXPECT_EQ(alone.back().size(), 30u);
  }
  EXPECT_NE(alone[0], alone[1]);
  for (int tp : {2, 3}) {
    auto many = must_open(engine_options(tp));
    std::vector<RequestId> ids;
    for (std::size_t i = 0; i < prompts.size(); ++i)
      ids.push_back(*many->submit(prompts[i], sampling(i)));
    Answers answers = run_to_end(*many);
    for (std::size_t i = 0; i < prompts.size(); ++i)
      EXPECT_EQ(answers[ids[i]].tokens, alone[i]) << "request " << i << " at tp " << tp;
  }
}

TEST(Engine, EndsAtTheContextsEnd) {
  auto engine = must_open(engine_options(2));
  auto id = engine->submit(Tokens(290, 3), greedy(1000, true));
  ASSERT_TRUE(id);
  const Answer answer = run_to_end(*engine)[*id];
  EXPECT_EQ(answer.finish, Finish::kContext);
  EXPECT_EQ(answer.tokens.size(), 10u);
}

TEST(Engine, SaysWhichLimitEndedARequest) {
  auto engine = must_open(engine_options(1));
  const auto finish = [&](int max_tokens) {
    auto id = engine->submit(Tokens(290, 3), greedy(max_tokens, true));
    EXPECT_TRUE(id);
    return run_to_end(*engine)[*id].finish;
  };
  EXPECT_EQ(name(finish(9)), "length");
  EXPECT_EQ(name(finish(10)), "length");  // both at once: it got all that it asked for
  EXPECT_EQ(name(finish(11)), "context");
}

TEST(Engine, RefusesWhatCannotRun) {
  auto engine = must_open(engine_options(1));
  const auto refused = [&](const Tokens& prompt, const SamplingParams& sampling) {
    return engine->submit(prompt, sampling).status().code() == Code::kInvalidArgument;
  };
  EXPECT_TRUE(refused({}, greedy(1)));
  EXPECT_TRUE(refused({-1}, greedy(1)));
  EXPECT_TRUE(refused({kVocab}, greedy(1)));
  EXPECT_TRUE(refused({1, fake_options().num_tokens}, greedy(1)));
  EXPECT_TRUE(refused(Tokens(300, 1), greedy(1)));
  EXPECT_TRUE(refused({1}, greedy(0)));
  EXPECT_FALSE(engine->cancel(RequestId{99}));
  auto nothing = engine->step();
  ASSERT_TRUE(nothing);
  EXPECT_TRUE(nothing->empty());
  EngineOptions wrong = engine_options(9);
  EXPECT_EQ(open_fake(wrong).status().code(), Code::kInvalidArgument);
  wrong = engine_options(1);
  wrong.max_tokens_per_step = 20;
  EXPECT_EQ(open_fake(wrong).status().code(), Code::kInvalidArgument);
  wrong = engine_options(1);
  wrong.max_batch = wrong.max_context = std::numeric_limits<int>::max();
  EXPECT_EQ(open_fake(wrong).status().code(), Code::kInvalidArgument);
  wrong = engine_options(1);
  wrong.max_stage = 4;
  EXPECT_EQ(open_fake(wrong).status().message(),
            "open engine: max_stage is 4; accepted are 1 to 3");
  wrong = engine_options(1);
  wrong.force_variant = "slow";
  wrong.transport = "pigeon";
  EXPECT_NE(
      Engine::check(wrong).message().find("transport \"pigeon\" is not known; accepted: auto"),
      std::string_view::npos);
  wrong.transport = "shm";
  EXPECT_NE(
      Engine::check(wrong).message().find("variant \"slow\" is not known; accepted: one_shot"),
      std::string_view::npos);
  wrong = engine_options(1, Target::kCuda);
  EXPECT_EQ(static_cast<bool>(open_fake(wrong)),
            static_cast<bool>(properties(Device{Target::kCuda, 0})));
}

TEST(Engine, ItsThreadsHaveNames) {
  char names[3][16] = {};
  FakeOptions fake = fake_options();
  fake.before_step = [&](int rank, int) {
    pthread_getname_np(pthread_self(), names[rank], sizeof names[rank]);
    return Status::ok();
  };
  auto engine = must_open(engine_options(3), fake);
  ASSERT_TRUE(engine->submit({1, 2, 3}, greedy(2, true)));
  run_to_end(*engine);
  EXPECT_STREQ(names[1], "tenon rank 1");
  EXPECT_STREQ(names[2], "tenon rank 2");
}

TEST(Engine, CountsWhatItDid) {
  auto engine = must_open(engine_options(2));
  ASSERT_TRUE(engine->submit(Tokens(100, 1), greedy(5, true)));
  run_to_end(*engine);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.steps, 5);
  EXPECT_EQ(stats.prompt_tokens, 100);
  EXPECT_EQ(stats.decode_tokens, 4);
  EXPECT_GT(stats.decode_seconds, 0);
  EXPECT_NE(stats.logits_fingerprint, 0u);
  auto other = must_open(engine_options(3));
  ASSERT_TRUE(other->submit(Tokens(100, 1), greedy(5, true)));
  run_to_end(*other);
  EXPECT_EQ(other->stats().logits_fingerprint, stats.logits_fingerprint);
}

TEST(Engine, ADecodeStepAllocatesOnlyItsEvents) {
  auto engine = must_open(engine_options(2));
  ASSERT_TRUE(engine->submit(Tokens(40, 1), greedy(200, true)));
  ASSERT_TRUE(engine->submit(Tokens(50, 2), greedy(200, true)));
  for (int step = 0; step < 10; ++step) ASSERT_TRUE(engine->step());
  const std::int64_t before = num_allocations.load();
  constexpr int kSteps = 100;
  for (int step = 0; step < kSteps; ++step) {
    auto events = engine->step();
    ASSERT_TRUE(events);
    ASSERT_EQ(events->size(), 2u);
  }
  EXPECT_EQ(num_allocations.load() - before, kSteps);
}

// ---- failures ----

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
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
      if (stuck == 0) std::this_thread::sleep_for(Milliseconds(1500));
      if (stuck == 0) released = true;
    });
    Status failure;
    const double taken = seconds_of([&] { failure = failure_of(*engine); });
    release.join();
    EXPECT_TRUE(failure.code() == Code::kTimeout || failure.code() == Code::kPeerLost)
        << failure.to_string();
    EXPECT_NE(failure.message().find("rank " + std::to_string(stuck)), std::string_view::npos)
        << failure.to_string();
    EXPECT_LT(taken, 5.0);
    released = true;  // the destructor waits for its threads
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

// Allocations [first, first + count) from here on fail, whichever thread makes them.
void fail_allocations(std::int64_t first, std::int64_t count) {
  failing_from = INT64_MAX;
  failing_to = num_allocations + first + count;
  failing_from = num_allocations + first;
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
      failing_from = INT64_MAX;
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

FakeOptions poisoned_options() {
  FakeOptions fake = fake_options();
  fake.poison = 59;
  return fake;
}

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

// ---- the vocabulary's padding ----

// 71 ids shared by 2 or 3 ranks as 72: nobody may ask with the last one, and it is never drawn
// though its logit is the largest.
TEST(Engine, PaddingIsNoToken) {
  FakeOptions fake = fake_options();
  fake.num_ids = fake.num_tokens = 71;
  for (int tp : {2, 3}) {
    for (int num_tokens : {0, 71, 72, 1000}) {
      EngineOptions options = engine_options(tp);
      options.num_tokens = num_tokens;
      auto engine = must_open(options, fake);
      const Status refused = engine->submit({1, 71}, greedy(1)).status();
      EXPECT_EQ(refused.code(), Code::kInvalidArgument);
      EXPECT_NE(refused.message().find("token id 71; accepted are 0 to 70"), std::string_view::npos)
          << refused.to_string();
      SamplingParams hot = greedy(200, true);
      hot.temperature = 100;
      for (const SamplingParams& sampling : {greedy(200, true), hot}) {
        const auto id = engine->submit({1, 70}, sampling);
        ASSERT_TRUE(id) << id.status().to_string();
        const Answer answer = run_to_end(*engine)[*id];
        EXPECT_EQ(answer.tokens.size(), 200u);
        for (const std::int32_t token : answer.tokens) EXPECT_LT(token, 71);
      }
    }
  }
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
