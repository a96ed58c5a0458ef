#include "tenon/comm/messages.h"

#include <gtest/gtest.h>

namespace tenon {
namespace {

using std::chrono::milliseconds;

TEST(Words, NoWaitIsShownAsNothing) {
  EXPECT_EQ(seconds_text(milliseconds(1)), "0.001 s");
  EXPECT_EQ(seconds_text(milliseconds(4)), "0.004 s");
  EXPECT_EQ(seconds_text(milliseconds(15)), "0.015 s");
  EXPECT_EQ(seconds_text(milliseconds(99)), "0.099 s");
}

TEST(Words, LongerWaitsKeepTheirPlaces) {
  EXPECT_EQ(seconds_text(milliseconds(250)), "0.25 s");
  EXPECT_EQ(seconds_text(milliseconds(2500)), "2.5 s");
  EXPECT_EQ(seconds_text(milliseconds(30'000)), "30.0 s");
}

}  // namespace
}  // namespace tenon
