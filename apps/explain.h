// tenon env --boundary: how each row bucket of a boundary would run, and why not otherwise.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tenon/boundary/explain.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon::apps {

struct BoundaryQuestion {
  int hidden = 4096, max_rows = 8192, tp = 2;
  Target target = Target::kCpu;
};

// Asks a team of threads: tenon/boundary/explain.h. An error where there is no such team.
Result<Explanation> explain(const BoundaryQuestion& question);

std::string text_of(const BoundaryQuestion& question, const Explanation& found);
nlohmann::json json_of(const BoundaryQuestion& question, const Explanation& found);

}  // namespace tenon::apps
