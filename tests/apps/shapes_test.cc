#include "apps/bench/shapes.h"

#include <gtest/gtest.h>

namespace tenon::apps {
namespace {

std::vector<int> rows(const char* text, bool around = false) {
  const auto found = parse_numbers("--rows", text, around);
  return found ? *found : std::vector<int>{};
}

TEST(Shapes, RangesHaveBothEnds) {
  EXPECT_EQ(rows("1..3"), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(rows("1..4"), (std::vector<int>{1, 2, 4}));
  EXPECT_EQ(rows("16..512"), (std::vector<int>{16, 32, 64, 128, 256, 512}));
  EXPECT_EQ(rows("5..7"), (std::vector<int>{5, 7}));
  EXPECT_EQ(rows("6..6"), (std::vector<int>{6}));
  EXPECT_EQ(rows("100..500"), (std::vector<int>{100, 128, 256, 500}));
  EXPECT_EQ(rows("1..2147483647").size(), 32u);
}

TEST(Shapes, ListsAreSortedAndHoldEachOnce) {
  EXPECT_EQ(rows("8,3,1..3"), (std::vector<int>{1, 2, 3, 8}));
  EXPECT_EQ(rows("3,8..16", true), (std::vector<int>{3, 7, 8, 9, 15, 16, 17}));
}

TEST(Shapes, WhatIsNoListIsRefusedByName) {
  for (const char* text : {"", "9..3", "0", "1,,2", "5..", "..5", "many", "-1", "1..2..3", "1 2"}) {
    const auto found = parse_numbers("--rows", text);
    ASSERT_FALSE(found) << text;
    EXPECT_NE(found.status().message().find("--rows has \""), std::string::npos);
  }
}

TEST(Shapes, GraphsHoldOnlySoManyCalls) {
  BoundaryBench options;
  options.mode = Mode::kGraph;
  options.iterations = 2'000'000'000;
  EXPECT_NE(complete(options).message().find("--mode eager"), std::string::npos);
  options.mode = Mode::kEager;
  EXPECT_TRUE(complete(options)) << complete(options).to_string();
}

}  // namespace
}  // namespace tenon::apps
