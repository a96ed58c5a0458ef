// Ops of one rank's decoder layer, each by itself, as `tenon bench ops` times them: made weights of
// the sizes that a config asks for, so many copies of them that a call finds none in the
// second-level cache. Not here: how calls are timed (calls.h), whether their results are right
// (tests/ops).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tenon/device/plan.h"
#include "tenon/models/qwen3_5/config.h"

namespace tenon::apps {

// An op for so many rows.
struct OpCall {
  std::string variant;
  Traffic traffic;
  std::function<Status(int copy)> run;  // copy: 0 … copies − 1 of its part. Launches only
};

// An op of the layer. What it holds is freed with it, and its calls then must not run.
struct OpPart {
  std::string op;     // "fp8_gemm"
  std::string shape;  // "12288 x 5120"
  int copies = 1;
  int most_rows = 0;
  std::string why_most_rows = {};
  // kUnsupported: no variant of this target takes so many rows.
  std::function<Result<OpCall>(int rows)> at = {};
};

struct OpMaker {
  std::string name;  // "delta net: q|k|v|z", as tables have it and --only finds it
  std::function<Result<OpPart>(Stream& stream)> make;  // allocates, and fills on the stream
};

// Of rank 0 of `share`, in the order of a step. `most_rows`: of any call.
std::vector<OpMaker> op_makers(const qwen3_5::Config& config, const qwen3_5::Share& share,
                               const PlanContext& where, int most_rows);

}  // namespace tenon::apps
