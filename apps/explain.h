// tenon env --boundary: how each row bucket of a boundary would run, and why not otherwise.
#pragma once

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon::apps {

struct BoundaryQuestion {
  int hidden = 4096, max_rows = 8192, tp = 2;
  Target target = Target::kCpu;
};

// Makes the boundaries of three kinds of site (fp8, fp8 and 16-bit rows, 16-bit rows alone) on a
// team of threads, runs nothing, and prints their plans.
Status explain(const BoundaryQuestion& question);

}  // namespace tenon::apps
