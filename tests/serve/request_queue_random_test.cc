// What must hold of the queue whatever its callers do and whenever they do it: random submissions,
// cancellations, readers and ends. By hand, with every state looked at after every step; then from
// several threads at once.
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>

#include "tenon/core/thread.h"
#include "tests/serve/serve_driver.h"

namespace tenon::serve::test {
namespace {

constexpr int kMaxContext = 300;
constexpr Milliseconds kLong{60'000};

bool is_cancelled(FinishReason reason) { return state_of(reason) == RequestState::kCancelled; }

// An answer that its reader ended: the beginning of the whole one.
void expect_beginning(const Completion& made, const Told& whole) {
  ASSERT_LE(made.tokens.size(), whole.tokens.size());
  EXPECT_TRUE(std::equal(made.tokens.begin(), made.tokens.end(), whole.tokens.begin()));
  // The end of a cut answer may be an incomplete character, or what was held back.
  std::string text = made.text;
  while (text.ends_with("\xef\xbf\xbd")) text.resize(text.size() - 3);
  EXPECT_TRUE(whole.text.starts_with(text) || !whole.stop.empty())
      << made.text << "\n is not the beginning of\n"
      << whole.text;
}

void add(Completion& whole, ReplyPart part) {
  whole.text += part.text;
  whole.tokens.insert(whole.tokens.end(), part.tokens.begin(), part.tokens.end());
  if (part.outcome) whole.outcome = *std::move(part.outcome);
}

// ---- by hand ----

// One request as a test sees it from outside.
struct Watched {
  Request request;
  Reply reply;
  RequestState state = RequestState::kQueued;
  int outcomes = 0;
  bool left = false;
  Completion made = {};
};

class ByHand {
 public:
  ByHand(LanguageModel& model, unsigned seed)
      : model_(model),
        queue_(*RequestQueue::without_thread(model, {.max_queued = kMaxQueued})),
        random_(seed) {}

  void run(int actions) {
    for (int i = 0; i < actions && !testing::Test::HasFatalFailure(); ++i) {
      act();
      look();
    }
    while (queue_->step()) look();
    for (Watched& each : watched_) take(each);
    look();
    for (Watched& each : watched_) judge(each);
    const QueueCounts counts = queue_->counts();
    EXPECT_EQ(counts.queued + counts.running, 0);
    EXPECT_TRUE(model_.engine().idle());
    EXPECT_GT(refused_, 0);
  }

 private:
  static constexpr int kMaxQueued = 5;

  Watched* any() { return watched_.empty() ? nullptr : &watched_[random_() % watched_.size()]; }

  void act() {
    const unsigned what = static_cast<unsigned>(random_() % 16);
    Watched* chosen = any();
    if (what < 5) {
      Request request = random_request(random_);
      if (random_() % 8 == 0) request.max_untaken_tokens = 1 + static_cast<int>(random_() % 10);
      Submission made = queue_->submit(request);
      const bool full = queue_->counts().queued == kMaxQueued && !made;
      ASSERT_EQ(name(made.admission), full ? "full" : "accepted");
      refused_ += full;
      if (made) watched_.push_back({std::move(request), std::move(made.reply)});
    } else if (what < 6 && chosen != nullptr) {
      if (!chosen->left) chosen->reply.cancel();
    } else if (what < 7 && chosen != nullptr && !chosen->left && random_() % 4 == 0) {
      chosen->reply = Reply();
      chosen->left = true;
      ++left_;
    } else if (what < 10 && chosen != nullptr) {
      take(*chosen);
    } else {
      queue_->step();
    }
  }

  void take(Watched& each) {
    if (each.left) return;
    ReplyPart part = each.reply.take();
    each.outcomes += part.outcome.has_value();
    if (each.outcomes > 0 && !part.outcome) {
      EXPECT_TRUE(part.empty()) << "something after the end";
    }
    add(each.made, std::move(part));
  }

  // The invariants.
  void look() {
    std::int64_t tally[kNumRequestStates] = {};
    for (Watched& each : watched_) {
      if (each.left) continue;
      const RequestState now = each.reply.state();
      const bool two_ways = each.state == RequestState::kQueued && is_end(now);  // begun and ended
      EXPECT_TRUE(now == each.state || may_follow(each.state, now) || two_ways)
          << name(each.state) << " to " << name(now);
      EXPECT_TRUE(each.outcomes == 0 || is_end(now));
      EXPECT_LE(each.outcomes, 1);
      each.state = now;
      ++tally[static_cast<int>(now)];
    }
    const QueueCounts counts = queue_->counts();
    const std::int64_t counted[] = {counts.queued, counts.running, counts.finished, counts.failed,
                                    counts.cancelled};
    std::int64_t sum = 0, unseen = 0;
    for (int i = 0; i < kNumRequestStates; ++i) {
      EXPECT_GE(counted[i], tally[i]) << name(static_cast<RequestState>(i));
      unseen += counted[i] - tally[i];
      sum += counted[i];
    }
    EXPECT_EQ(unseen, left_);
    EXPECT_EQ(sum, counts.accepted);
    EXPECT_EQ(counts.accepted, static_cast<std::int64_t>(watched_.size()));
    EXPECT_LE(counts.queued, kMaxQueued);
    EXPECT_LE(counts.running, model_.max_batch());
    EXPECT_EQ(counts.failed, 0);
  }

  void judge(Watched& each) {
    if (each.left) return;
    EXPECT_EQ(each.outcomes, 1);
    const Told whole = told_alone(model_.text().tokenizer(), each.request, kMaxContext);
    if (is_cancelled(each.made.outcome.reason)) {
      expect_beginning(each.made, whole);
    } else {
      expect_told(each.made, whole);
    }
  }

  LanguageModel& model_;
  std::unique_ptr<RequestQueue> queue_;
  std::mt19937 random_;
  std::vector<Watched> watched_;
  int left_ = 0, refused_ = 0;
};

TEST(RequestQueueRandom, TheInvariantsHoldAfterEveryStep) {
  auto model = must_open_speaking(engine_options(1));
  for (unsigned seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    ByHand(*model, seed).run(400);
  }
}

// ---- from several threads ----

std::vector<Thread> start_callers(int count, const std::function<void(unsigned)>& body) {
  std::vector<Thread> callers;
  for (int i = 0; i < count; ++i) {
    auto thread = start_thread("caller", [body, i] { body(static_cast<unsigned>(i)); });
    EXPECT_TRUE(thread);
    callers.push_back(std::move(*thread));
  }
  return callers;
}

// Submits until it is taken or refused for good.
std::optional<Reply> submit(RequestQueue& queue, const Request& request) {
  for (;;) {
    Submission made = queue.submit(request);
    if (made) return std::move(made.reply);
    if (made.admission != Admission::kFull) return std::nullopt;
    std::this_thread::yield();
  }
}

// Reads as one of the kinds of readers that there are; what it got, if it stayed to the end.
std::optional<Completion> read(Reply reply, std::mt19937& random) {
  const unsigned kind = static_cast<unsigned>(random() % 8);
  if (kind == 0) return std::nullopt;  // leaves at once
  Completion made;
  int outcomes = 0;
  std::optional<Thread> other;
  if (kind == 1) reply.cancel();
  if (kind == 2) {
    auto started = start_thread("canceller", [&reply] { reply.cancel(); });
    EXPECT_TRUE(started);
    if (started) other = std::move(*started);
  }
  for (int parts = 0; outcomes == 0; ++parts) {
    ReplyPart part = kind == 3 ? reply.wait_for(Milliseconds(1)) : reply.wait();
    outcomes += part.outcome.has_value();
    add(made, std::move(part));
    if (kind == 4 && parts == 3) reply.cancel();
    if (kind == 5 && parts == 3 && outcomes == 0) return std::nullopt;
    if (kind == 6) std::this_thread::sleep_for(Milliseconds(2));
  }
  EXPECT_TRUE(reply.take().empty());
  EXPECT_TRUE(reply.wait().empty());
  return made;
}

TEST(RequestQueueRandom, EveryCallerGetsItsLoneAnswer) {
  constexpr int kCallers = 4, kRequests = 40;
  auto model = must_open_speaking(engine_options(2));
  auto queue = *RequestQueue::start(*model, {.max_queued = 6});
  std::atomic<int> whole{0};
  start_callers(kCallers, [&](unsigned caller) {
    std::mt19937 random(100 + caller);
    for (int i = 0; i < kRequests; ++i) {
      const Request request = random_request(random);
      auto reply = submit(*queue, request);
      ASSERT_TRUE(reply);
      const auto made = read(*std::move(reply), random);
      if (!made) continue;
      const Told told = told_alone(model->text().tokenizer(), request, kMaxContext);
      if (is_cancelled(made->outcome.reason)) {
        expect_beginning(*made, told);
      } else {
        expect_told(*made, told);
        ++whole;
      }
    }
  }).clear();
  ASSERT_TRUE(queue->drain(kLong));
  const QueueCounts counts = queue->counts();
  EXPECT_EQ(counts.accepted, kCallers * kRequests);
  EXPECT_EQ(counts.finished + counts.cancelled, counts.accepted);
  EXPECT_GT(whole, kCallers * kRequests / 4);
  queue = nullptr;
  EXPECT_TRUE(model->engine().idle());
}

// However it ends, and whatever callers do at that moment: all of them come home.
TEST(RequestQueueRandom, EveryReplyEndsWhenTheQueueDoes) {
  auto model = must_open_speaking(engine_options(1));
  for (unsigned round = 0; round < 20; ++round) {
    auto queue = *RequestQueue::start(*model, {.max_queued = 6});
    std::atomic<std::int64_t> accepted{0}, ended{0};
    std::vector<std::vector<Reply>> kept(3);
    auto callers = start_callers(3, [&](unsigned caller) {
      std::mt19937 random(round * 10 + caller);
      while (auto reply = submit(*queue, random_request(random))) {
        ++accepted;
        kept[caller].push_back(*std::move(reply));
        if (random() % 3 == 0) kept[caller].back().wait();
        if (random() % 5 == 0) kept[caller].back().cancel();
      }
    });
    std::mt19937 random(round);
    std::this_thread::sleep_for(Milliseconds(random() % 30));
    queue->close();
    callers.clear();
    if (round % 2 == 0) {
      EXPECT_TRUE(queue->drain(kLong));
    }
    queue = nullptr;
    for (auto& replies : kept)
      for (Reply& each : replies) {
        EXPECT_TRUE(is_end(each.state()));
        each.complete();
        ++ended;
      }
    EXPECT_EQ(ended, accepted);
  }
}

TEST(RequestQueueRandom, EveryReplyEndsWhenTheEngineDies) {
  for (unsigned round = 0; round < 8; ++round) {
    FakeOptions fake = speaking_options();
    fake.before_step = [=](int rank, int step) {
      return rank == 1 && step == static_cast<int>(round * round) + 1
                 ? Status::error(Code::kDevice, "the disk melted")
                 : Status::ok();
    };
    auto model = must_open_speaking(engine_options(2), fake);
    auto queue = *RequestQueue::start(*model, {.max_queued = 6});
    start_callers(3, [&](unsigned caller) {
      std::mt19937 random(round * 10 + caller);
      for (;;) {
        Submission made = queue->submit(random_request(random));
        if (made.admission == Admission::kFull) std::this_thread::yield();
        if (made) static_cast<void>(read(std::move(made.reply), random));
        if (made.admission != Admission::kFailed) continue;
        EXPECT_NE(made.why.to_string().find("the disk melted"), std::string::npos);
        return;
      }
    }).clear();
    const QueueCounts counts = queue->counts();
    EXPECT_EQ(counts.queued + counts.running, 0);
    EXPECT_EQ(counts.failed + counts.finished + counts.cancelled, counts.accepted);
    EXPECT_GT(counts.failed, 0);
  }
}

}  // namespace
}  // namespace tenon::serve::test
