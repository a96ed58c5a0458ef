// tenon env --ops: the plan of every op for a few calls: what is launched, and why nothing else.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"

namespace tenon::apps {

struct OpsQuestion {
  Target target = Target::kCpu;
  int hidden = 4096, max_rows = 8192, tp = 2;
};

// How one call would run, or why it cannot.
struct OpPlan {
  std::string op, call;  // "fp8_gemm", "64 rows of 4096 to 4096"
  Result<Plan> plan = Status::error(Code::kInternal, "no plan was made");
  Traffic traffic;
};

// Plans of one row and of max_rows for every op, in the order of core/ops.def, on the first device
// of the target. Runs nothing and touches no memory of the device. An error where there is no such
// device.
Result<std::vector<OpPlan>> plan_ops(const OpsQuestion& question);

std::string text_of(const std::vector<OpPlan>& plans);
nlohmann::json json_of(const std::vector<OpPlan>& plans);

}  // namespace tenon::apps
