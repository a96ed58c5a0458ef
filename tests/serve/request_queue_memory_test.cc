// The queue where memory ends: whichever allocation fails, every accepted request ends once.
#include <gtest/gtest.h>

#include "tests/serve/serve_driver.h"
#include "tests/support/operator_new.h"

namespace tenon::serve::test {
namespace {

TEST(RequestQueueMemory, EveryRequestEndsWhicheverAllocationFails) {
  int hurt = 0, unhurt = 0;
  for (std::int64_t failing = 0; unhurt < 3; ++failing) {
    SCOPED_TRACE(failing);
    ASSERT_LT(failing, 5000);
    auto model = must_open_speaking(engine_options(1));
    auto queue = *RequestQueue::without_thread(*model);
    std::vector<Reply> replies;
    replies.reserve(8);
    Request request;
    request.prompt = Tokens{1, 2, 3};
    request.sampling = greedy(6, true);
    request.stops = {"\xef\xbf\xbd"};
    std::vector<Request> requests(6, request);
    bool refused = false;
    fail_allocations(failing, 1);
    for (Request& each : requests) {
      Submission made = queue->submit(std::move(each));
      refused |= !made;
      if (made) replies.push_back(std::move(made.reply));
      queue->step();
    }
    while (queue->step()) {
    }
    allocation_fails = nullptr;
    bool failed = false;
    for (Reply& each : replies) {
      ASSERT_TRUE(is_end(each.state()));
      const Completion made = each.complete();
      EXPECT_TRUE(each.take().empty());
      failed |= made.outcome.reason == FinishReason::kFailed;
      if (made.outcome.reason == FinishReason::kFailed) {
        EXPECT_EQ(made.outcome.why.code(), Code::kOutOfMemory) << made.outcome.why.to_string();
      }
    }
    const QueueCounts counts = queue->counts();
    EXPECT_EQ(counts.accepted, static_cast<std::int64_t>(replies.size()));
    EXPECT_EQ(counts.queued + counts.running, 0);
    (refused || failed ? hurt : unhurt) += 1;
  }
  EXPECT_GT(hurt, 50);
}

}  // namespace
}  // namespace tenon::serve::test
