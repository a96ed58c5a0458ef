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

// One table for all outputs: the boundaries of a model run alike (BoundaryChannel).
struct Tuning {
  std::vector<Threshold> thresholds;
  double worst_regret = 0, mean_regret = 0;  // over the best choice of each shape; 0.02 is 2 %
  std::string worst_shape;
};

// Thresholds, each choice at most once, with the least worst regret; of equals, with the least mean
// regret.
Tuning tune(const Results& results);

// One TENON_TUNED line per threshold, for tenon/boundary/tuned.def.
std::string tuned_lines(const Results& results, const Tuning& tuning);
// What the table costs, a line for people.
std::string regret(const Tuning& tuning);

}  // namespace tenon::apps
