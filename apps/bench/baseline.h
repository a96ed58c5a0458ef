// The regression gate: ratios between arms against those of an earlier run. Ratios, since absolute
// times depend on the machine's clocks of the day.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "apps/bench/results.h"

namespace tenon::apps {

// The JSON of an earlier run: the file, or, in a folder, "<device name with dashes>.json".
Result<nlohmann::json> read_baseline(const std::string& path, const std::string& device);

// Ok where a run may be compared with it: it is of the same device, team, type and inputs. Looks at
// nothing that the run has yet to find.
Status check_comparable(const nlohmann::json& baseline, const Results& results);

// One ratio between arms of one shape, and what it was.
struct Slower {
  Shape shape{};
  std::string mode, l2;
  std::string slow, fast;  // arms: the time of `slow` over that of `fast`
  double now = 0, was = 0, percent = 0;
};
struct Comparison {
  int compared = 0;            // ratios that both have
  std::vector<Slower> slower;  // those worse by more than the tolerance, the worst first
};
// Refused without common ratios.
Result<Comparison> compare(const nlohmann::json& baseline, const Results& results,
                           double tolerance_percent);

}  // namespace tenon::apps
