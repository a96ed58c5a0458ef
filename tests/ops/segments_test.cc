// Where products are cut: the promises of segments.h, and the values that decode shapes get, which
// no change may move unnoticed, for they are part of every product's bits.
#include "tenon/ops/common/segments.h"

#include <gtest/gtest.h>

namespace tenon {
namespace {

TEST(Segments, CoverTheSumInOrderAtWholeBlocks) {
  for (int n = 1; n < 20'000; n = n * 3 / 2 + 1)
    for (int k = 8; k < 40'000; k = k * 5 / 4 / 8 * 8 + 8) {
      const Segments cut = segments_of(n, k);
      ASSERT_EQ(cut.begin(0), 0);
      ASSERT_GE(cut.begin(cut.count), k);
      ASSERT_LT(cut.begin(cut.count), k + kProductBlock);
      for (int segment = 0; segment < cut.count; ++segment) {
        ASSERT_EQ(cut.begin(segment) % kProductBlock, 0);
        const int end = segment + 1 == cut.count ? k : cut.begin(segment + 1);
        ASSERT_GT(end, cut.begin(segment));
        ASSERT_TRUE(cut.count == 1 || end - cut.begin(segment) >= kMinSegmentSize);
      }
    }
}

TEST(Segments, AreAsManyAsADecodeStepNeeds) {
  struct Case {
    int n, k, count;
  };
  const Case cases[] = {{2048, 2048, 4},   {2048, 4096, 4}, {2560, 4096, 4}, {5120, 6144, 2},
                        {3072, 4096, 2},   {4096, 4096, 2}, {6144, 5120, 1}, {12288, 2048, 1},
                        {248320, 2048, 1}, {256, 2048, 4},  {32, 5120, 8},   {96, 1024, 2},
                        {512, 2048, 4},    {2048, 512, 1},  {2048, 256, 1},  {1, 1'000'000, 8}};
  for (const Case& each : cases)
    EXPECT_EQ(segments_of(each.n, each.k).count, each.count) << each.n << " x " << each.k;
}

TEST(Segments, AreNearlyEqual) {
  const Segments cut = segments_of(64, 41 * 128);  // 41 blocks in 8 segments
  ASSERT_EQ(cut.count, 8);
  for (int segment = 0; segment < 8; ++segment) {
    const int blocks = (cut.begin(segment + 1) - cut.begin(segment)) / kProductBlock;
    EXPECT_EQ(blocks, segment == 7 ? 6 : 5) << segment;
  }
}

}  // namespace
}  // namespace tenon
