// tenon bench boundary: one boundary, four ways, interleaved, each checked against the oracle.
// The arms and their names follow the microbenchmark of the work that tenon started from:
//   split      three kernels: all-reduce; residual add + norm; quantise
//   fused2     two kernels:   all-reduce; residual add + norm + quantise
//   fused1     one kernel, FP8 out
//   fused1bf16 one kernel, FP8 and bf16 out
#pragma once

#include <string>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon::apps {

struct BoundaryBench {
  std::vector<int> rows{1, 2, 4, 8, 16, 32, 64, 128};
  std::vector<int> hidden{4096};
  int tp = 2;
  Target target = Target::kCpu;
  DType dtype = DType::kBF16;
  int iterations = 30, repeats = 5, warm_up = 10;
  std::string variant;  // of the fused arms; empty leaves the choice
  std::string csv_path, json_path;
  bool json_to_stdout = false;  // one JSON object on standard output and nothing else
};

Status run(const BoundaryBench& options);

}  // namespace tenon::apps
