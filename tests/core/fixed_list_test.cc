#include "tenon/core/fixed_list.h"

#include <gtest/gtest.h>

namespace tenon {
namespace {

TEST(FixedList, KeepsWhatIsPushedInOrder) {
  FixedList<int, 3> list;
  EXPECT_TRUE(list.empty());
  for (int value : {5, 6, 7}) list.push_back(value);
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list.front(), 5);
  list[1] = 9;
  int sum = 0;
  for (const int value : list) sum += value;
  EXPECT_EQ(sum, 5 + 9 + 7);
}

TEST(FixedList, CopiesAreApart) {
  FixedList<int, 2> list;
  list.push_back(1);
  FixedList<int, 2> copy = list;
  copy.push_back(2);
  copy.front() = 3;
  EXPECT_EQ(list.size(), 1u);
  EXPECT_EQ(list.front(), 1);
}

TEST(FixedListDeath, MoreThanFitAreAMistake) {
  FixedList<int, 1> list;
  list.push_back(1);
  EXPECT_DEATH(list.push_back(2), "");
}

}  // namespace
}  // namespace tenon
