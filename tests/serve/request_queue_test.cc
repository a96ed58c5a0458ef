// The queue over a model without weights: what it takes and refuses, how requests end, and what
// readers see of it.
#include "tenon/serve/request_queue.h"

#include <gtest/gtest.h>
#include <time.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "tenon/core/thread.h"
#include "tests/serve/serve_driver.h"

namespace tenon::serve::test {
namespace {

constexpr int kMaxContext = 300;

Request plain(Tokens prompt, int max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling = greedy(max_tokens, true);
  return request;
}

std::unique_ptr<RequestQueue> must_start(LanguageModel& model, const QueueOptions& options = {}) {
  auto queue = RequestQueue::start(model, options);
  EXPECT_TRUE(queue) << queue.status().to_string();
  return std::move(*queue);
}

std::unique_ptr<RequestQueue> by_hand(LanguageModel& model, const QueueOptions& options = {}) {
  auto queue = RequestQueue::without_thread(model, options);
  EXPECT_TRUE(queue) << queue.status().to_string();
  return std::move(*queue);
}

Reply must_submit(RequestQueue& queue, Request request) {
  Submission made = queue.submit(std::move(request));
  EXPECT_TRUE(made) << name(made.admission) << ": " << made.why.to_string();
  return std::move(made.reply);
}

TEST(RequestQueue, TellsWhatALoneRunTells) {
  for (const int tp : {1, 2}) {
    auto model = must_open_speaking(engine_options(tp));
    auto queue = must_start(*model);
    std::mt19937 random(11u + static_cast<unsigned>(tp));
    std::vector<Request> requests;
    std::vector<Reply> replies;
    for (int i = 0; i < 60; ++i) {
      requests.push_back(random_request(random));
      replies.push_back(must_submit(*queue, requests.back()));
    }
    std::map<FinishReason, int> reasons;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(i);
      const Completion made = replies[i].complete();
      expect_told(made, told_alone(model->text().tokenizer(), requests[i], kMaxContext));
      ++reasons[made.outcome.reason];
    }
    EXPECT_EQ(reasons.size(), 4u) << "not every way to finish was met";
    EXPECT_TRUE(queue->drain(Milliseconds(10'000)));
    const QueueCounts counts = queue->counts();
    EXPECT_EQ(counts.accepted, 60);
    EXPECT_EQ(counts.finished, 60);
  }
}

TEST(RequestQueue, RefusesByKind) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = by_hand(*model, {.max_queued = 2});
  const auto refused = [&](Request request, std::string_view why) {
    const Submission made = queue->submit(std::move(request));
    EXPECT_EQ(made.admission, Admission::kInvalid);
    EXPECT_FALSE(made.reply);
    EXPECT_NE(made.why.to_string().find(why), std::string::npos) << made.why.to_string();
  };
  refused(plain({}, 5), "the prompt has no tokens");
  refused(plain({1, 300}, 5), "token id 300; accepted are 0 to 299");
  refused(plain(Tokens(300, 1), 5), "the prompt has 300 tokens");
  refused(plain({1}, 0), "max_tokens is 0");
  Request request = plain({1}, 5);
  request.stops = {"fine", ""};
  refused(request, "a stop string has 0 bytes");
  request.stops = {"\xc3"};
  refused(request, "accepted is valid UTF-8");
  request = plain({1}, 5);
  request.stop_ids = {-1};
  refused(request, "stop id -1");
  request = plain({1}, 5);
  request.max_untaken_tokens = -1;
  refused(request, "max_untaken_tokens is -1");
  request = plain({1}, 5);
  request.prompt = ChatPrompt{{{"user", "hello", {}}}};
  refused(request, "no chat template was read");

  Reply one = must_submit(*queue, plain({1}, 5)), two = must_submit(*queue, plain({2}, 5));
  Submission full = queue->submit(plain({3}, 5));
  EXPECT_EQ(full.admission, Admission::kFull);
  EXPECT_NE(full.why.to_string().find("2 requests wait"), std::string::npos);
  queue->step();  // both run
  Reply three = must_submit(*queue, plain({3}, 5));
  queue->close();
  EXPECT_EQ(queue->submit(plain({4}, 5)).admission, Admission::kClosed);
  EXPECT_TRUE(queue->drain(Milliseconds(10'000)));
  for (Reply* each : {&one, &two, &three})
    EXPECT_EQ(each->complete().outcome.reason, FinishReason::kLength);
  EXPECT_EQ(queue->counts().accepted, 3);
  EXPECT_EQ(RequestQueue::start(*model, {.max_queued = 0}).status().code(), Code::kInvalidArgument);
}

TEST(RequestQueue, TextsAreEncodedAndAnswered) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = must_start(*model);
  Request request = plain({}, 6);
  request.prompt = std::string("the end of it");
  Reply reply = must_submit(*queue, request);
  const Tokens ids = *model->text().tokenizer().encode("the end of it");
  EXPECT_EQ(reply.prompt_tokens(), static_cast<std::int64_t>(ids.size()));
  request.prompt = ids;
  expect_told(reply.complete(), told_alone(model->text().tokenizer(), request, kMaxContext));
}

TEST(RequestQueue, SaysWhatAKeptPromptHad) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = must_start(*model);
  for (const std::int64_t cached : {0, 192}) {
    const Completion made = must_submit(*queue, plain(Tokens(250, 1), 3)).complete();
    EXPECT_EQ(made.outcome.prompt_tokens, 250);
    EXPECT_EQ(made.outcome.cached_tokens, cached);
  }
}

TEST(RequestQueue, TellsProbabilitiesTokenByToken) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = must_start(*model);
  Request request = plain({1, 2}, 9);
  EXPECT_TRUE(must_submit(*queue, request).complete().logprobs.empty());
  request.sampling.logprobs = 2;
  const Completion made = must_submit(*queue, request).complete();
  EXPECT_EQ(made.tokens.size(), 9u);
  ASSERT_EQ(made.logprobs.size(), 9u);
  for (std::size_t i = 0; i < 9; ++i) {  // greedy: the likeliest is the drawn one
    ASSERT_EQ(made.logprobs[i].likeliest.size(), 2u);
    EXPECT_EQ(made.logprobs[i].likeliest[0].first, made.tokens[i]);
    EXPECT_EQ(made.logprobs[i].likeliest[0].second, made.logprobs[i].drawn);
  }
}

TEST(RequestQueue, TellsProbabilitiesOfThePrompt) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = must_start(*model);
  Request request = plain(Tokens(150, 3), 5);
  request.sampling.prompt_logprobs = 2;
  request.sampling.prompt_logprobs_from = 100;
  const Completion made = must_submit(*queue, request).complete();
  EXPECT_EQ(made.tokens.size(), 5u);
  EXPECT_TRUE(made.logprobs.empty());
  ASSERT_EQ(made.prompt_logprobs.size(), 49u);
  EXPECT_EQ(made.prompt_logprobs[0].likeliest.size(), 2u);
  // The prompt alone: no token, and an end like any other.
  request.sampling.max_tokens = 0;
  const Completion alone = must_submit(*queue, request).complete();
  EXPECT_TRUE(alone.tokens.empty());
  EXPECT_EQ(alone.text, "");
  EXPECT_EQ(alone.outcome.reason, FinishReason::kLength);
  EXPECT_EQ(alone.outcome.completion_tokens, 0);
  ASSERT_EQ(alone.prompt_logprobs.size(), 49u);
  for (std::size_t i = 0; i < 49; ++i)
    EXPECT_EQ(alone.prompt_logprobs[i].drawn, made.prompt_logprobs[i].drawn);
  request.sampling.prompt_logprobs = -1;
  EXPECT_EQ(queue->submit(request).admission, Admission::kInvalid);
}

TEST(RequestQueue, StopIdsAreHeldBackByMinTokens) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = must_start(*model);
  Request request = plain({1, 2}, 9);
  request.stop_ids = {must_submit(*queue, request).complete().tokens[0]};
  EXPECT_EQ(must_submit(*queue, request).complete().tokens.size(), 1u);
  request.sampling.min_tokens = 4;
  request.sampling.logit_bias = {{request.stop_ids[0], 100.0f}};  // as soon as it may be
  const Completion made = must_submit(*queue, request).complete();
  ASSERT_EQ(made.tokens.size(), 5u);
  EXPECT_EQ(std::count(made.tokens.begin(), made.tokens.end(), request.stop_ids[0]), 1);
  EXPECT_EQ(made.outcome.reason, FinishReason::kStop);
}

TEST(RequestQueue, CancelEndsWhatIsQueuedAtOnceAndWhatRunsBeforeTheNextStep) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = by_hand(*model);
  Reply reply = must_submit(*queue, plain({1}, 50));
  reply.cancel();
  EXPECT_EQ(reply.state(), RequestState::kCancelled);
  EXPECT_EQ(reply.take().outcome->reason, FinishReason::kCancelled);
  EXPECT_TRUE(reply.take().empty());
  EXPECT_TRUE(reply.wait().empty());

  reply = must_submit(*queue, plain({1}, 50));
  for (int i = 0; i < 3; ++i) queue->step();
  EXPECT_EQ(reply.state(), RequestState::kRunning);
  reply.cancel();
  EXPECT_EQ(reply.state(), RequestState::kRunning);
  EXPECT_FALSE(queue->step());
  const Completion made = reply.complete();
  EXPECT_EQ(made.outcome.reason, FinishReason::kCancelled);
  EXPECT_EQ(made.tokens.size(), 3u);
  EXPECT_EQ(made.text, model->text().tokenizer().decode(made.tokens));
  EXPECT_TRUE(model->engine().idle());

  reply = must_submit(*queue, plain({1}, 2));
  while (queue->step()) {
  }
  reply.cancel();
  EXPECT_EQ(reply.complete().outcome.reason, FinishReason::kLength);

  reply = must_submit(*queue, plain({1}, 50));
  queue->step();
  reply = Reply();  // a reader that leaves
  EXPECT_FALSE(queue->step());
  const QueueCounts counts = queue->counts();
  EXPECT_EQ(counts.cancelled, 3);
  EXPECT_EQ(counts.finished, 1);
}

TEST(RequestQueue, AStopStringFreesThePlaceAtOnce) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = by_hand(*model);
  Request request = plain({5, 6, 7}, 200);
  const Told whole = told_alone(model->text().tokenizer(), request, kMaxContext);
  request.stops = {whole.text.substr(0, 1)};
  Reply reply = must_submit(*queue, request);
  while (reply.state() != RequestState::kFinished) ASSERT_TRUE(queue->step());
  EXPECT_EQ(queue->counts().running, 0);
  EXPECT_EQ(reply.take().text, "");
  EXPECT_FALSE(queue->step());
  EXPECT_TRUE(model->engine().idle());
}

TEST(RequestQueue, ASlowReaderHoldsUpNobodyAndLosesNothing) {
  auto model = must_open_speaking(engine_options(2));
  auto queue = must_start(*model);
  const Request request = plain({9, 8}, 200);
  Reply slow = must_submit(*queue, request), quick = must_submit(*queue, request);
  const Told wanted = told_alone(model->text().tokenizer(), request, kMaxContext);
  expect_told(quick.complete(), wanted);
  ASSERT_TRUE(queue->drain(Milliseconds(10'000)));
  const ReplyPart all = slow.take();
  EXPECT_EQ(all.text, wanted.text);
  EXPECT_EQ(all.tokens, wanted.tokens);
  EXPECT_TRUE(all.outcome);
}

TEST(RequestQueue, AReaderThatIsTooFarBehindIsGivenUp) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = by_hand(*model);
  Request request = plain({9, 8}, 200);
  request.max_untaken_tokens = 5;
  Reply reply = must_submit(*queue, request);
  for (int i = 0; i < 5; ++i) queue->step();
  EXPECT_EQ(reply.take().tokens.size(), 5u);
  for (int i = 0; i < 5; ++i) queue->step();
  EXPECT_EQ(reply.state(), RequestState::kRunning);
  while (queue->step()) {
  }
  const ReplyPart rest = reply.take();
  EXPECT_EQ(rest.tokens.size(), 6u);
  ASSERT_TRUE(rest.outcome);
  EXPECT_EQ(rest.outcome->reason, FinishReason::kReaderBehind);
  EXPECT_EQ(reply.state(), RequestState::kCancelled);
}

TEST(RequestQueue, RingsOnceUntilItsReaderTakes) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = by_hand(*model);
  auto rings = std::make_shared<int>(0);
  Request request = plain({9, 8}, 10);
  request.on_ready = [rings] {
    ++*rings;
    throw std::runtime_error("a bell that breaks");  // and harms nobody
  };
  Reply reply = must_submit(*queue, request);
  for (int i = 0; i < 4; ++i) queue->step();
  EXPECT_EQ(*rings, 1);
  EXPECT_EQ(reply.take().tokens.size(), 4u);
  queue->step();
  queue->step();
  EXPECT_EQ(*rings, 2);
  while (queue->step()) {
  }
  EXPECT_EQ(*rings, 3);  // the end always rings
  EXPECT_EQ(reply.take().tokens.size(), 6u);
  reply = must_submit(*queue, request);
  reply.cancel();
  EXPECT_EQ(*rings, 4);
  reply = must_submit(*queue, request);
  queue->step();
  EXPECT_EQ(*rings, 5);
  reply = Reply();
  queue->step();
  EXPECT_EQ(*rings, 5);  // nobody is left to be woken
}

TEST(RequestQueue, CountsAndTimesWhatItDid) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = must_start(*model);
  const auto before = Clock::now();
  const Completion made = must_submit(*queue, plain(Tokens(40, 3), 7)).complete();
  const Outcome& outcome = made.outcome;
  EXPECT_EQ(outcome.prompt_tokens, 40);
  EXPECT_EQ(outcome.completion_tokens, 7);
  const TimeMarks& times = outcome.times;
  ASSERT_TRUE(times.started && times.first_token && times.last_token);
  EXPECT_LE(before, times.queued);
  EXPECT_LE(times.queued, *times.started);
  EXPECT_LE(*times.started, *times.first_token);
  EXPECT_LT(*times.first_token, *times.last_token);
  EXPECT_LE(*times.last_token, times.ended);
  EXPECT_GT(first_token_seconds(outcome).value(), 0);
  EXPECT_GT(seconds_per_token(outcome).value(), 0);
  const auto stats = queue->engine_stats();
  ASSERT_TRUE(stats) << stats.status().to_string();
  EXPECT_EQ(stats->steps, 7);
  EXPECT_EQ(stats->prompt_tokens, 40);
}

TEST(RequestQueue, WaitingForAPartEndsByTheBudget) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = by_hand(*model);
  Reply reply = must_submit(*queue, plain({1}, 3));
  EXPECT_TRUE(reply.wait_for(Milliseconds(1)).empty());
  queue->step();
  EXPECT_EQ(reply.wait_for(Milliseconds(10'000)).tokens.size(), 1u);
}

TEST(RequestQueue, ARequestThatFailsAloneHarmsNobody) {
  FakeOptions fake = speaking_options();
  fake.poison = 299;
  auto model = must_open_speaking(engine_options(1), fake);
  auto queue = must_start(*model);
  Reply bad = must_submit(*queue, plain({1, 299}, 20)), good = must_submit(*queue, plain({1}, 1));
  const Completion failed = bad.complete();
  EXPECT_EQ(failed.outcome.reason, FinishReason::kFailed);
  EXPECT_NE(failed.outcome.why.to_string().find("logits hold no number"), std::string::npos);
  EXPECT_EQ(good.complete().outcome.reason, FinishReason::kLength);
  EXPECT_TRUE(queue->health());
}

TEST(RequestQueue, WhenTheEngineDiesEveryRequestEndsWithItsReason) {
  for (const bool threaded : {false, true}) {
    FakeOptions fake = speaking_options();
    fake.before_step = [](int rank, int step) {
      return rank == 1 && step == 5 ? Status::error(Code::kDevice, "the disk melted")
                                    : Status::ok();
    };
    auto model = must_open_speaking(engine_options(2), fake);
    auto queue = threaded ? must_start(*model) : by_hand(*model);
    std::vector<Reply> replies;
    for (int i = 0; i < 10; ++i) {  // four run, six wait
      Submission made = queue->submit(plain({i}, 100));
      if (made) replies.push_back(std::move(made.reply));
      if (!made) {
        EXPECT_EQ(made.admission, Admission::kFailed);
      }
    }
    while (!threaded && queue->step()) {
    }
    for (Reply& each : replies) {
      const Completion made = each.complete();
      EXPECT_EQ(made.outcome.reason, FinishReason::kFailed);
      EXPECT_NE(made.outcome.why.to_string().find("the disk melted"), std::string::npos)
          << made.outcome.why.to_string();
      EXPECT_TRUE(each.take().empty());
    }
    const Submission late = queue->submit(plain({1}, 5));
    EXPECT_EQ(late.admission, Admission::kFailed);
    EXPECT_NE(late.why.to_string().find("the disk melted"), std::string::npos);
    EXPECT_EQ(queue->health().code(), Code::kDevice);
    EXPECT_EQ(queue->engine_stats().status().code(), Code::kDevice);
    EXPECT_EQ(queue->counts().failed, static_cast<std::int64_t>(replies.size()));
    EXPECT_TRUE(queue->drain(Milliseconds(0)));
  }
}

// Where the engine is dead, a request is not to blame, nor is a lack of memory of its own.
TEST(RequestQueue, AnEngineThatDiedWithoutMemoryIsDead) {
  FakeOptions fake = speaking_options();
  fake.before_step = [](int, int) { return Status::error(Code::kOutOfMemory, "it is used up"); };
  auto model = must_open_speaking(engine_options(1), fake);
  auto queue = by_hand(*model);
  Reply lost = must_submit(*queue, plain({1}, 5));
  while (queue->step()) {
  }
  EXPECT_EQ(lost.complete().outcome.why.code(), Code::kOutOfMemory);
  EXPECT_EQ(queue->submit(plain({1}, 5)).admission, Admission::kFailed);
}

// Another engine in the place of one that died: the same queue takes requests and answers them.
TEST(RequestQueue, IsRevivedWithAnotherEngine) {
  for (const bool threaded : {false, true}) {
    FakeOptions fake = speaking_options();
    const auto dies = std::make_shared<std::atomic<bool>>(true);
    fake.before_step = [dies](int rank, int step) {
      return *dies && rank == 1 && step == 5 ? Status::error(Code::kDevice, "the disk melted")
                                             : Status::ok();
    };
    const EngineOptions options = engine_options(2);
    auto model = must_open_speaking(options, fake);
    auto queue = threaded ? must_start(*model) : by_hand(*model);
    for (int round = 0; round < 2; ++round) {
      Reply lost = must_submit(*queue, plain({1}, 100));
      while (!threaded && queue->step()) {
      }
      EXPECT_EQ(lost.complete().outcome.reason, FinishReason::kFailed);
      ASSERT_FALSE(queue->health());
      model->close();
      EXPECT_EQ(queue->submit(plain({1}, 5)).admission, Admission::kFailed);
      EXPECT_EQ(queue->engine_stats().status().code(), Code::kDevice);
      *dies = round == 0;
      const Status again = model->reopen(options);
      ASSERT_TRUE(again) << again.to_string();
      queue->revive();
      EXPECT_TRUE(queue->health());
      EXPECT_EQ(queue->counts().revivals, round + 1);
    }
    const Request request = plain({1, 2, 3}, 40);
    Reply whole = must_submit(*queue, request);
    while (!threaded && queue->step()) {
    }
    const Told told = told_alone(model->text().tokenizer(), request, options.max_context);
    EXPECT_EQ(whole.complete().tokens, told.tokens);
    const auto counts = queue->counts();
    EXPECT_EQ(counts.failed, 2);
    EXPECT_EQ(counts.finished, 1);
  }
}

TEST(RequestQueue, ItsEndEndsEverythingAndLeavesTheModelUsable) {
  FakeOptions fake = speaking_options();
  fake.before_step = [](int, int) {  // so that nothing is finished before the end comes
    std::this_thread::sleep_for(Milliseconds(1));
    return Status::ok();
  };
  auto model = must_open_speaking(engine_options(1), fake);
  for (const bool threaded : {false, true}) {
    auto queue = threaded ? must_start(*model) : by_hand(*model);
    std::vector<Reply> replies;
    for (int i = 0; i < 10; ++i) replies.push_back(must_submit(*queue, plain({i}, 250)));
    if (threaded) replies[0].wait();
    if (!threaded) queue->step();
    queue = nullptr;
    for (Reply& each : replies) {
      each.cancel();  // of a queue that is no more
      EXPECT_EQ(name(each.complete().outcome.reason), "stopped");
      EXPECT_TRUE(each.wait().empty());
    }
    EXPECT_TRUE(model->engine().idle());
  }
  auto queue = must_start(*model);
  const Request request = plain({1, 2, 3}, 20);
  expect_told(must_submit(*queue, request).complete(),
              told_alone(model->text().tokenizer(), request, kMaxContext));
}

TEST(RequestQueue, SleepsWhileThereIsNothingToDo) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = must_start(*model);
  must_submit(*queue, plain({1}, 5)).complete();
  const auto cpu_ms = [] {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
  };
  const double before = cpu_ms();
  Reply reply = must_submit(*queue, plain({1}, 1));
  reply.complete();
  std::this_thread::sleep_for(Milliseconds(500));
  EXPECT_LT(cpu_ms() - before, 150);
}

}  // namespace
}  // namespace tenon::serve::test
