#include "apps/progress.h"

#include <gtest/gtest.h>

#include <vector>

namespace tenon::apps {
namespace {

struct Paper {
  double now = 0;
  std::vector<std::string> written;
  Progress::Screen screen(bool terminal) {
    return {[this](std::string_view text) { written.emplace_back(text); }, [this] { return now; },
            terminal, 60};
  }
};

// A checkpoint of so many tensors that takes `seconds`.
void load(Progress& progress, Paper& paper, int tensors, double seconds, double bytes) {
  for (int i = 0; i <= tensors; ++i) {
    progress.update(bytes * i / tensors, bytes);
    paper.now += seconds / tensors;
  }
}

TEST(Progress, ElsewhereALineEveryFewSecondsAndOneAtTheEnd) {
  Paper paper;
  Progress progress("loading", "loaded", paper.screen(false));
  load(progress, paper, 60'000, 21, 4e9);
  ASSERT_EQ(paper.written.size(), 5u);
  EXPECT_EQ(paper.written[0], "loading 952 MB of 4.00 GB, 23 %, 190 MB/s, 16 s left\n");
  EXPECT_EQ(paper.written[4], "loaded 4.00 GB in 21.0 s, 190 MB/s\n");
}

TEST(Progress, WhatIsQuickSaysOneLineElsewhere) {
  Paper paper;
  Progress progress("loading", "loaded", paper.screen(false));
  load(progress, paper, 240, 0.04, 15e6);
  EXPECT_EQ(paper.written, std::vector<std::string>{"loaded 15.0 MB in 0.04 s\n"});
}

TEST(Progress, ATerminalHasOneLineThatGoesAway) {
  Paper paper;
  {
    Progress progress("loading", "loaded", paper.screen(true));
    load(progress, paper, 60'000, 21, 4e9);
    EXPECT_LE(paper.written.size(), 212u);
    EXPECT_GE(paper.written.size(), 150u);
    for (const std::string& each : paper.written) {
      EXPECT_EQ(each.front(), '\r');
      EXPECT_EQ(each.find('\n'), std::string::npos);
      EXPECT_LE(each.size(), 61u);
    }
  }
  const std::string& last = paper.written.back();
  EXPECT_EQ(last.find_first_not_of(" \r"), std::string::npos) << last;
}

TEST(Progress, WhatLimitedARateIsToldEverywhere) {
  for (const bool terminal : {false, true}) {
    Paper paper;
    Progress progress("loading", "loaded", paper.screen(terminal));
    progress.update(0, 4e9);
    paper.now = 2;
    progress.update(4e9, 4e9, "the disk, 97 % of the time of 4 readers");
    EXPECT_EQ(paper.written.back(),
              "loaded 4.00 GB in 2.0 s, 2.00 GB/s, limited by the disk, 97 % of the time of 4 "
              "readers\n");
  }
}

TEST(Progress, AFailureLeavesNoHalfLine) {
  Paper paper;
  { Progress("loading", "loaded", paper.screen(true)).update(1e6, 4e6); }
  ASSERT_EQ(paper.written.size(), 2u);
  EXPECT_EQ(paper.written[1].find_first_not_of(" \r"), std::string::npos);
}

TEST(Progress, SharesOfOtherThingsSayWhereTheyAre) {
  Paper paper;
  Progress progress("bench boundary:", "", paper.screen(false));
  progress.update(0, 8);
  paper.now = 6;
  progress.update(2, 8, "512 x 4096");
  progress.update(8, 8);
  EXPECT_EQ(paper.written,
            std::vector<std::string>{"bench boundary: 512 x 4096, 25 %, 18 s left\n"});
}

TEST(Progress, Texts) {
  EXPECT_EQ(bytes_text(999), "999 B");
  EXPECT_EQ(bytes_text(1000), "1.00 kB");
  EXPECT_EQ(bytes_text(999'999), "1.00 MB");
  EXPECT_EQ(bytes_text(397e9), "397 GB");
  EXPECT_EQ(duration_text(0.2), "1 s");
  EXPECT_EQ(duration_text(80), "1 min 20 s");
  EXPECT_EQ(duration_text(7500), "2 h 5 min");
  EXPECT_EQ(duration_text(1e300), "years");
}

}  // namespace
}  // namespace tenon::apps
