// From the times of every choice of kernels to a table of choices by bytes per rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/bench/results.h"

namespace tenon::apps {

// "Up to so many bytes per rank: this choice." The last threshold has no end.
struct Threshold {
  std::int64_t up_to_bytes;
  std::string choice;
};

struct Tuning {
  bool bf16 = false;
  std::vector<Threshold> thresholds;
  double worst_regret = 0, mean_regret = 0;  // over the best choice of each shape; 0.02 is 2 %
  std::string worst_shape;
};

// One for each set of outputs that was timed: thresholds, each choice at most once, with the least
// worst regret; of equals, with the least mean regret.
std::vector<Tuning> tune(const Results& results);

// One TENON_TUNED line per threshold.
std::string tuned_lines(const Results& results, const std::vector<Tuning>& tunings);
// What each table costs, a line each, for people.
std::string regrets(const std::vector<Tuning>& tunings);

}  // namespace tenon::apps
