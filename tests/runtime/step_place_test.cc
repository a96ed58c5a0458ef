// What is said of where ranks are.
#include "tenon/runtime/step_place.h"

#include <gtest/gtest.h>

#include <vector>

namespace tenon {
namespace {

RankSign sign(const StepPlace& place, int silence_ms = 0) {
  return {place.word(), std::chrono::milliseconds(silence_ms)};
}

constexpr StepPlace kEnded17{17, true, 0}, kIn18{18, false, 3}, kFurtherIn18{18, false, 4},
    kEnded18{18, true, 0};

TEST(StepPlace, GrowsAsARankGoesOn) {
  const std::vector<StepPlace> in_order = {{0, true, 0}, {1, false, 0}, {1, false, 1},
                                           {1, true, 0}, {2, false, 0}, kEnded17,
                                           kIn18,        kFurtherIn18,  kEnded18};
  EXPECT_EQ(in_order[0].word(), 0u);  // of a rank that has told nothing
  for (std::size_t i = 0; i < in_order.size(); ++i) {
    const StepPlace back = StepPlace::of(in_order[i].word());
    EXPECT_EQ(back.step, in_order[i].step);
    EXPECT_EQ(back.has_ended, in_order[i].has_ended);
    EXPECT_EQ(back.calls, in_order[i].calls);
    if (i > 0) {
      EXPECT_GT(in_order[i].word(), in_order[i - 1].word());
    }
  }
}

TEST(StepPlace, WhoIsBehindIsNamed) {
  const auto told = [](std::vector<RankSign> signs) { return tell_places(signs); };
  EXPECT_EQ(told({sign(kIn18), sign(kEnded17)}), "rank 1 has not begun step 18");
  EXPECT_EQ(told({sign(kEnded17), sign(kIn18), sign(kEnded17)}),
            "ranks 0, 2 have not begun step 18");
  EXPECT_EQ(told({sign(kEnded18), sign(kEnded18), sign(kFurtherIn18)}),
            "rank 2 has not ended step 18");
  EXPECT_EQ(told({sign(kFurtherIn18), sign(kFurtherIn18), sign(kIn18), sign(kFurtherIn18)}),
            "rank 2 has not come to call 4 of step 18, where others wait");
  EXPECT_EQ(told({sign(kIn18), sign(kIn18)}), "ranks 0, 1 are all in step 18");
  EXPECT_EQ(told({sign(kIn18)}), "rank 0 is in step 18");
  EXPECT_EQ(told({sign(kEnded18), sign(kEnded18)}), "rank 0 has not begun step 19");
}

TEST(StepPlace, WhoIsNotHeardOfIsNamed) {
  const std::vector<RankSign> signs = {sign(kIn18), sign(kIn18, 1600), sign(kIn18, 900)};
  EXPECT_EQ(tell_places(signs),
            "ranks 0, 1, 2 are all in step 18; nothing was heard of rank 1 for 1.6 s");
  // Where ranks share no memory each sees its own place alone.
  const std::vector<RankSign> apart = {sign(kIn18), {{}, std::chrono::milliseconds(2'340)}};
  EXPECT_EQ(tell_places(apart), "rank 0 is in step 18; nothing was heard of rank 1 for 2.3 s");
  EXPECT_EQ(tell_places(std::vector<RankSign>(1)), "where the ranks are cannot be seen");
}

}  // namespace
}  // namespace tenon
