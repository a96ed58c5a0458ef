// The table of measurements: which line a call takes, and what is said of it.
#include "tenon/boundary/tuned.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace tenon {
namespace {

TEST(Tuned, LinesAreTakenByBytes) {
  EXPECT_EQ(fastest("NVIDIA H200", 2, 1).choice, "one_shot");
  EXPECT_EQ(fastest("NVIDIA H200", 2, 393'216).choice, "one_shot");
  EXPECT_EQ(fastest("NVIDIA H200", 2, 393'217).choice, "one_shot_packed");
  EXPECT_EQ(fastest("NVIDIA H200", 2, std::int64_t{1} << 40).choice, "two_shot_packed");
  EXPECT_EQ(fastest("NVIDIA H200", 3, 1).choice, "");
  EXPECT_EQ(fastest("another device", 2, 1).choice, "");
}

// What nobody has measured on a device is not said to have been.
TEST(Tuned, ClaimsSayWhereAChoiceWasMeasured) {
  EXPECT_EQ(claim(fastest("NVIDIA H200", 2, 1)), "was measured to be faster (2026-11-26)");
  EXPECT_EQ(claim(fastest("NVIDIA H100 80GB HBM3", 2, 1)),
            "is taken to be faster, as it was measured to be on NVIDIA H200 (2026-11-26)");
  EXPECT_EQ(claim(fastest("host", 2, 1)), "is taken to be faster");
}

TEST(Tuned, PlansPreferWhatWasMeasured) {
  PlanContext where;
  where.team_size = 2;
  where.properties.name = "NVIDIA H200";
  prefer_measured(where, 4096, 4096);
  EXPECT_EQ(where.preferred, "two_shot_packed");
  EXPECT_EQ(where.why_preferred, "was measured to be faster (2026-11-26)");
  prefer_measured(where, 48, 4096);  // 393,216 bytes
  EXPECT_EQ(where.preferred, "one_shot");
  where.properties.name = "host";
  prefer_measured(where, 48, 4096);
  EXPECT_EQ(where.preferred, "");
  EXPECT_EQ(where.why_preferred, "");
}

TEST(Tuned, EveryLineNamesAChoice) {
  for (const char* device : {"NVIDIA H200", "NVIDIA H100 80GB HBM3"})
    for (std::int64_t bytes = 1; bytes < std::int64_t{1} << 32; bytes *= 2)
      EXPECT_NE(std::ranges::find(kBoundaryChoices, fastest(device, 2, bytes).choice),
                std::end(kBoundaryChoices));
}

}  // namespace
}  // namespace tenon
