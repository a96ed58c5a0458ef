// The table of transitions, by what must hold of any such table.
#include "tenon/serve/request_state.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tenon/serve/request.h"

namespace tenon::serve {
namespace {

constexpr RequestState state(int i) { return static_cast<RequestState>(i); }

TEST(RequestState, NothingFollowsAnEndAndEverythingElseEnds) {
  for (int now = 0; now < kNumRequestStates; ++now) {
    int ways = 0, ends = 0;
    for (int next = 0; next < kNumRequestStates; ++next) {
      const bool may = may_follow(state(now), state(next));
      ways += may;
      ends += may && is_end(state(next));
      EXPECT_FALSE(may && next <= now) << "a way back or in a circle";
    }
    EXPECT_EQ(ways == 0, is_end(state(now))) << name(state(now));
    EXPECT_EQ(ends > 0, !is_end(state(now))) << name(state(now));
  }
  EXPECT_FALSE(may_follow(RequestState::kQueued, RequestState::kFinished));
}

TEST(RequestState, AWrongWayAborts) {
  RequestState now = RequestState::kQueued;
  advance(now, RequestState::kRunning);
  advance(now, RequestState::kFinished);
  EXPECT_EQ(now, RequestState::kFinished);
  EXPECT_DEATH(advance(now, RequestState::kCancelled), "may_follow");
  now = RequestState::kQueued;
  EXPECT_DEATH(advance(now, RequestState::kFinished), "may_follow");
}

TEST(RequestState, EveryReasonIsAnEndAndHasAName) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(FinishReason::kStopped); ++i) {
    const auto reason = static_cast<FinishReason>(i);
    EXPECT_TRUE(is_end(state_of(reason)));
    EXPECT_TRUE(names.insert(name(reason)).second) << name(reason);
  }
  EXPECT_FALSE(names.contains("?"));
}

TEST(Outcome, TimesAreThoseBetweenTheMarks) {
  using std::chrono::milliseconds;
  Outcome outcome;
  EXPECT_FALSE(first_token_seconds(outcome));
  EXPECT_FALSE(seconds_per_token(outcome));
  const Clock::time_point begin{};
  outcome.times = {begin, begin, begin + milliseconds(100), begin + milliseconds(400), begin};
  outcome.completion_tokens = 4;
  EXPECT_DOUBLE_EQ(first_token_seconds(outcome).value(), 0.1);
  EXPECT_DOUBLE_EQ(seconds_per_token(outcome).value(), 0.1);
  outcome.completion_tokens = 1;
  EXPECT_FALSE(seconds_per_token(outcome));
}

}  // namespace
}  // namespace tenon::serve
