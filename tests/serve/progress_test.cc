// Since when a queue has had work without the end of a step.
#include <gtest/gtest.h>

#include "tenon/serve/request_queue.h"
#include "tests/serve/serve_driver.h"

namespace tenon::serve::test {
namespace {

using std::chrono::milliseconds;

void pass(milliseconds time) {
  const auto until = Clock::now() + time;
  while (Clock::now() < until) {
  }
}

TEST(Progress, IsTheEndOfStepsWhileThereIsWork) {
  auto model = must_open_speaking(engine_options(1));
  auto queue = RequestQueue::without_thread(*model);
  ASSERT_TRUE(queue) << queue.status().to_string();
  pass(milliseconds(5));
  EXPECT_EQ((*queue)->stalled_for().count(), 0);  // no work
  Request request;
  request.prompt = Tokens{1, 2, 3};
  request.sampling = greedy(3, true);
  Submission made = (*queue)->submit(std::move(request));
  ASSERT_TRUE(made) << made.why.to_string();
  pass(milliseconds(20));
  EXPECT_GE((*queue)->stalled_for().count(), 20);  // it waits for a step
  (*queue)->step();
  const auto after_step = (*queue)->stalled_for();
  pass(milliseconds(20));
  EXPECT_GE((*queue)->stalled_for(), after_step + milliseconds(19));
  const auto before = Clock::now();
  (*queue)->step();
  EXPECT_LE((*queue)->stalled_for(), Clock::now() - before);
  while ((*queue)->step()) {
  }
  EXPECT_EQ(made.reply.complete().outcome.reason, FinishReason::kLength);
  pass(milliseconds(5));
  EXPECT_EQ((*queue)->stalled_for().count(), 0);
}

}  // namespace
}  // namespace tenon::serve::test
