// tenon env --boundary: how each row bucket of a boundary would run, and why not otherwise.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/layers/boundary.h"

namespace tenon::apps {

struct BoundaryQuestion {
  int hidden = 4096, max_rows = 8192, tp = 2;
  Target target = Target::kCpu;
};

// The plans of one boundary's row buckets, for three kinds of site.
struct Explanation {
  BoundaryQuestion question;
  std::string transport;
  std::vector<BoundaryUse> uses;
};

// Makes the boundaries of three kinds of site (fp8, fp8 and 16-bit rows, 16-bit rows alone) on a
// team of threads, and runs nothing.
Result<Explanation> explain(const BoundaryQuestion& question);

std::string text_of(const Explanation& found);
nlohmann::json json_of(const Explanation& found);

}  // namespace tenon::apps
