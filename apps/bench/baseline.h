// The regression gate: ratios between arms against those of an earlier run. Ratios, since absolute
// times depend on the machine's clocks of the day.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "apps/bench/results.h"

namespace tenon::apps {

// The JSON of an earlier run: the file, or, in a folder, "<device name with dashes>.json".
Result<nlohmann::json> read_baseline(const std::string& path, const std::string& device);

// Ok when no ratio of a shape that both have is worse by more than the tolerance. The error names
// the worst ones. A baseline of another device, team or type, or without common shapes, is refused.
Status check_against(const nlohmann::json& baseline, const Results& results,
                     double tolerance_percent);

}  // namespace tenon::apps
